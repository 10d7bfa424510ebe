"""Clips with several questions each, packed: drawn as tensors, and run so that a clip's video is computed once."""

from __future__ import annotations

import av
import numpy as np
import torch
from torch.utils.data import IterableDataset

from gazeqwen.backbones_gazeqwen import decoder_of, token_types, trained_positions
from gazeqwen.questions.prompts import OPTION_LETTERS, format_alert, format_question
from gazeqwen.toyworld.backbone import PATCH_PX, PROMPT_WORDS, gazeqwen_processor
from gazeqwen.toyworld.highlights import Drawer, Question, facts, make_clip
from gazeqwen.toyworld.questions import STEPS, View
from gazeqwen.toyworld.world import CELL_PX, GRID, KINDS, Highlight, Scene, draw_frame

VIDEO_TOKENS = STEPS * GRID * GRID
GRID_THW = (STEPS, 2 * GRID, 2 * GRID)
RING_COLORS = ((255, 255, 255), (255, 150, 30), (60, 255, 255), (255, 90, 180), (170, 255, 60), (255, 255, 120))


def patches_of(frames: np.ndarray, images) -> torch.Tensor:
    """
    Turn T pairs of frames, uint8 (2 * T, H, W, 3), into patches as a video processor makes them, in one vectorised
    pass: (T * H / 14 * W / 14, 1176). `images` is that processor.
    """
    mean, std = (np.array(v, np.float32) for v in (images.image_mean, images.image_std))
    rows, columns = frames.shape[1] // CELL_PX, frames.shape[2] // CELL_PX
    pixels = (frames.astype(np.float32) / 255 - mean) / std
    pixels = pixels.reshape(-1, 2, rows, 2, PATCH_PX, columns, 2, PATCH_PX, 3)
    # step, row, column, row in token, column in token | channel, frame of pair, y, x
    pixels = pixels.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return torch.from_numpy(np.ascontiguousarray(pixels).reshape(-1, 3 * 2 * PATCH_PX**2))


class Packer:
    """
    Make tensors of clips and their questions. `scene` is the class of the world's scenes, `grid_thw` what the vision
    tower makes of a clip. `word_dropout`: the share of a question's words that are replaced by others.
    """

    def __init__(
        self,
        config,
        processor,
        scene,
        grid_thw: tuple[int, int, int],
        word_dropout: float = 0.1,
    ):
        self.config, self.tokenizer = config, processor.tokenizer
        self.prompts = gazeqwen_processor(config, processor)
        self.grid_thw, self.word_dropout = grid_thw, word_dropout
        encode = self.tokenizer.encode
        self.spare_ids = [encode(f" {word}")[0] for word in PROMPT_WORDS]
        self.noun_of = {encode(f"{space}{noun}")[0]: noun for noun in scene.nouns for space in ("", " ")}
        values = [word for words in scene.attributes.values() for word in words]
        self.keep_ids = {encode(f"{space}{word}")[0] for word in values for space in ("", " ")} | set(self.noun_of)
        self.cache: dict[str, list[int]] = {}

    def pack(
        self, clips: list[View], questions: list[Question], rng: np.random.Generator, notes: list[str] | None = None
    ) -> dict:
        """
        Return the tensors of C clips and their Q questions each (a clip's are in a row), with P tokens of a prefix and
        L of a tail: prefix_ids, prefix_mask (C, P), padded on the left; prefix_position (3, C, P);
        seconds_per_step (C,); tail_ids, tail_position (C*Q, L); last, target (C*Q,); labels of the auxiliary heads;
        and the questions' `kinds`. `rng` draws the words that are replaced; `notes` are texts that follow the clips,
        before each question.
        """
        per_clip = len(questions) // len(clips)
        built = [self._tail(q, rng) for q in questions]
        length = max(len(ids) for ids, _ in built)
        tail_ids = torch.zeros(len(built), length, dtype=torch.long)
        option_rows, option_places, option_right = [], [], []
        noun_rows, noun_places, noun_facts, kinds = [], [], [], []
        for row, ((ids, places), q) in enumerate(zip(built, questions, strict=True)):
            tail_ids[row, : len(ids)] = torch.tensor(ids)
            for place, option in zip(places, q.options, strict=True):
                option_rows.append(row)
                option_places.append(place)
                option_right.append(float(option == q.answer))
            known = {}
            for place, i in enumerate(ids):
                if i in self.noun_of:
                    noun = self.noun_of[i]
                    known[noun] = known.get(noun) or facts(clips[row // per_clip], noun)
                    noun_rows.append(row)
                    noun_places.append(place)
                    noun_facts.append(known[noun])
            kinds.append(q.kind)
        answers = [OPTION_LETTERS[q.options.index(q.answer)] if q.options else q.answer for q in questions]
        prefix = self.prefix(clips, notes or [""] * len(clips))
        start = prefix.pop("tail_start").repeat_interleave(per_clip)
        return {
            **prefix,
            "tail_ids": tail_ids,
            "tail_position": start[:, None] + torch.arange(length)[None],
            "last": torch.tensor([len(ids) - 1 for ids, _ in built]),
            "target": torch.tensor([self._ids(a)[0] for a in answers]),
            "option_rows": torch.tensor(option_rows, dtype=torch.long),
            "option_places": torch.tensor(option_places, dtype=torch.long),
            "option_right": torch.tensor(option_right),
            "noun_rows": torch.tensor(noun_rows, dtype=torch.long),
            "noun_places": torch.tensor(noun_places, dtype=torch.long),
            "noun_facts": torch.tensor(noun_facts),
            "kinds": kinds,
        }

    def _ids(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer.encode(text)
        return self.cache[text]

    def _tail(self, question: Question, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Return the token ids of a question's tail, and the place of each option's last token in it."""
        drop = self.word_dropout
        asked = self.tokenizer.encode(f" {question.text}")
        asked = [
            self.spare_ids[int(rng.integers(len(self.spare_ids)))]
            if i not in self.keep_ids and rng.random() < drop
            else i
            for i in asked
        ]
        if question.options == ["Yes", "No"]:
            before, after = format_alert("\0")[0].split(" \0")
        elif question.options:
            before, after = format_question("\0", question.options).split(" \0")
        else:
            before, after = "Question:", ""
        ids = self._ids(before) + asked
        places = []
        lines = after.split("\n")
        for number, line in enumerate(lines):
            ids = ids + self._ids(("\n" if number else "") + line)
            if line[:1] in OPTION_LETTERS and line[1:3] == ". ":
                places.append(len(ids) - 1)
        return ids + self._ids("<|im_end|>\n<|im_start|>assistant\n"), places

    def prefix(self, clips: list[View], notes: list[str]) -> dict[str, torch.Tensor]:
        """
        Return the clips' prefixes, see `pack`, and the position `tail_start` (C,) of each one's first tail token, as
        the family was trained.
        """
        seconds_per_step = torch.tensor([(clip.time_s - clip.start_s) / self.grid_thw[0] for clip in clips])
        grids = torch.tensor([self.grid_thw] * len(clips))
        processed = [
            {
                "pixel_values_videos": torch.empty(0),
                "video_grid_thw": grid,
                "second_per_grid_ts": seconds,
                "step_times_s": self.prompts.step_times_s(clip.frame_times_s - clip.start_s),
            }
            for clip, grid, seconds in zip(clips, grids, seconds_per_step, strict=True)
        ]
        prompts = [f"<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{note}" for note in notes]
        inputs = self.prompts.collate(prompts, processed, padding_side="left")
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        positions, deltas = trained_positions(
            self.config,
            token_types(self.config, ids),
            mask,
            video_grid_thw=grids,
            second_per_grid_ts=seconds_per_step,
        )
        return {
            "prefix_ids": ids,
            "prefix_mask": mask,
            "prefix_position": positions,
            "seconds_per_step": seconds_per_step,
            "tail_start": ids.shape[1] + deltas[:, 0],
        }


class Batches(IterableDataset):
    """Draws batches of clips of the first world, each with several questions, as tensors."""

    def __init__(self, config, processor, seed: int, clips: int, questions: int, kinds: dict, word_dropout=0.1):
        self.rng = np.random.default_rng([seed, 77])
        self.packer = Packer(config, processor, Scene, GRID_THW, word_dropout=word_dropout)
        self.clips, self.questions, self.kinds = clips, questions, kinds
        self.vector_share = 0.0  # share of clips whose highlight is the learned vector instead of a drawing
        self.images = processor.video_processor

    def __iter__(self):
        while True:
            yield self.draw(vision_only=not self.kinds)

    def _style(self) -> Highlight:
        rng = self.rng
        return Highlight(
            rgb=RING_COLORS[int(rng.integers(len(RING_COLORS)))] if rng.random() < 0.6 else RING_COLORS[0],
            radius_px=float(rng.choice([12.5, 13.0, 13.5, 14.5])),
            thickness_px=float(rng.choice([1.5, 2.0, 2.5, 3.5])),
            opacity=float(rng.choice([0.6, 0.8, 1.0])),
            halo=bool(rng.random() < 0.3),
        )

    def draw(self, vision_only: bool = False) -> dict:
        """
        Draw a batch of C clips, with what `Packer.pack` makes of their questions: pixels (C*384, 1176), heat (C, 96)
        for the vector highlight, and token_labels (C, 96, 2).
        """
        rng = self.rng
        videos, heat, token_labels, tails, clips = [], [], [], [], []
        for _ in range(self.clips):
            clip = make_clip(rng)
            clips.append(clip)
            by_vector = rng.random() < self.vector_share
            style, marked = self._style(), clip.marked
            frames = [
                draw_frame(clip.scene, time_s, [] if by_vector else [(i, style) for i in active])
                for time_s, active in zip(clip.frame_times_s, marked, strict=True)
            ]
            videos.append(self._degrade(np.stack(frames)))
            heat.append(self._heat(clip) if by_vector else np.zeros(VIDEO_TOKENS, np.float32))
            token_labels.append(self._token_labels(clip, [] if by_vector else marked))
            if not vision_only:
                drawer = Drawer(rng, clip)
                tails += [drawer.question(self.kinds) for _ in range(self.questions)]
        batch = {
            "pixels": patches_of(np.concatenate(videos), self.images),
            "grid_thw": torch.tensor([GRID_THW] * self.clips),
            "token_labels": torch.from_numpy(np.stack(token_labels)),
        }
        if vision_only:
            return batch
        packed = self.packer.pack(clips, tails, rng)
        return batch | packed | {"heat": torch.from_numpy(np.stack(heat))}

    def _heat(self, clip: View) -> np.ndarray:
        """How strongly each video token is highlighted, shape (96,): blobs at objects, by their share of the step."""
        rng, span_s = self.rng, (clip.time_s - clip.start_s) / STEPS
        width = float(rng.uniform(0.35, 0.9))  # in cells
        centres = (np.arange(GRID) + 0.5) * CELL_PX
        heat = np.zeros((STEPS, GRID, GRID), np.float32)
        for step, shares in enumerate(clip.shares):
            for thing in np.flatnonzero(shares):
                share, place = (
                    shares[thing],
                    clip.scene.objects[thing].position_px(clip.start_s + (step + 0.5) * span_s),
                )
                x, y = place + rng.normal(0, 1.5, size=2)
                squared = ((centres[:, None] - y) ** 2 + (centres[None, :] - x) ** 2) / CELL_PX**2
                heat[step] += share * np.exp(-squared / (2 * width**2))
        return heat.reshape(-1) * float(rng.uniform(0.7, 1.4))

    def _token_labels(self, clip: View, marked: list[list[int]]) -> np.ndarray:
        """Per video token (96, 2): index into KINDS plus 1 of its cell's object (0: none, -1: unclear), marked."""
        labels = np.zeros((STEPS, GRID, GRID, 2), np.int64)
        times = clip.frame_times_s
        for step in range(STEPS):
            pair = times[2 * step : 2 * step + 2]
            for i, thing in enumerate(clip.scene.objects):
                shown = [thing.visible(s) for s in pair]
                cells = {thing.cell(s) for s in pair}
                cells = {(x, y) for x, y in cells if 0 <= x < GRID and 0 <= y < GRID}
                clear = all(shown) and len(cells) == 1
                if not any(shown):
                    continue
                for x, y in cells:
                    labels[step, y, x, 0] = KINDS.index((thing.color, thing.shape)) + 1 if clear else -1
                    labels[step, y, x, 1] = any(i in marked[2 * step + k] for k in (0, 1)) if marked else 0
        return labels.reshape(VIDEO_TOKENS, 2)

    def _degrade(self, frames: np.ndarray) -> np.ndarray:
        """Roughly what a video file does to frames: half-resolution colour, and noise."""
        stacked = frames.reshape(-1, *frames.shape[2:])
        if self.rng.random() < 0.8:
            picture = av.VideoFrame.from_ndarray(stacked, format="rgb24").reformat(format="yuv420p")
            stacked = picture.reformat(format="rgb24").to_ndarray()
        noise = self.rng.normal(0, self.rng.uniform(0, 5), size=(4096,)).astype(np.float32)
        offset = self.rng.integers(4096)
        flat = np.resize(np.roll(noise, offset), stacked.size).reshape(stacked.shape)
        return (stacked + flat).clip(0, 255).astype(np.uint8).reshape(frames.shape)


def thinned(batch: dict, chosen: torch.Tensor, config) -> dict:
    """Return what `Packer.pack` made with some of each clip's video tokens alone, `chosen` (C, V), as many in each."""
    is_video = batch["prefix_ids"] == config.video_token_id
    kept = ~is_video
    kept[is_video] = chosen.flatten()
    shape = (len(kept), -1)
    return batch | {
        "prefix_ids": batch["prefix_ids"][kept].view(shape),
        "prefix_mask": batch["prefix_mask"][kept].view(shape),
        "prefix_position": batch["prefix_position"][:, kept].view(3, *shape),
    }


class SharedPrefix:
    """Keys and values of the visual prefixes, recorded once and then put before every tail of their clip."""

    def __init__(self):
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.copies = 0  # 0: recording

    def update(self, keys, values, layer_idx, *_):
        if not self.copies:
            self.layers[layer_idx] = (keys, values)
            return keys, values
        before = (part.repeat_interleave(self.copies, dim=0) for part in self.layers[layer_idx])
        return tuple(torch.cat([old, new], dim=2) for old, new in zip(before, (keys, values), strict=True))


def packed_forward(
    model, batch: dict, blind_layers: int = 0, highlights: dict[int, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Run every question of every clip, computing a clip's visual prefix once: equal to plain forwards.

    A batch is what `prefix_forward` takes, and the tails. In the first `blind_layers` these may not attend to video
    tokens. `highlights`: see there.

    Returns logits at each tail's last token (C*Q, vocabulary), video embeddings (C*V, hidden), and the hidden states
    after each layer: of the tails, (C*Q, L, hidden) each, of the video tokens, (C, V, hidden), and of the prefixes'
    last tokens, (C, hidden).
    """
    decoder, embed = decoder_of(model), model.get_input_embeddings()
    prefix, visual, video_states, ends = prefix_forward(model, batch, highlights)
    is_video, is_token = batch["prefix_ids"] == model.config.video_token_id, batch["prefix_mask"]
    tails, length = batch["tail_ids"].shape
    prefix.copies = tails // len(is_token)
    hidden = embed(batch["tail_ids"])
    rope = decoder.rotary_emb(hidden, batch["tail_position"].expand(3, -1, -1))
    causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril().expand(tails, 1, -1, -1)
    mask, blind = (
        torch.cat([seen.repeat_interleave(prefix.copies, 0)[:, None, None].expand(-1, 1, length, -1), causal], dim=-1)
        for seen in (is_token, is_token & ~is_video)
    )
    states = []
    for i, layer in enumerate(decoder.layers):
        hidden = layer(
            hidden,
            attention_mask=blind if i < blind_layers else mask,
            position_embeddings=rope,
            past_key_values=prefix,
            use_cache=True,
        )
        states.append(hidden)
    last = decoder.norm(hidden[torch.arange(tails, device=hidden.device), batch["last"]])
    return model.lm_head(last), visual, states, video_states, ends


def prefix_forward(
    model, batch: dict, highlights: dict[int, torch.Tensor] | None = None
) -> tuple[SharedPrefix, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """
    Run the prefixes of clips alone. A batch holds `pixels`, or the video embeddings `visual` (C*V, hidden) of a vision
    tower that stays as it is. `highlights`: decoder layer -> vector (96,): `heat * vector` is added to the video
    tokens after that layer.

    Returns their keys and values, the video embeddings, and hidden states after each layer of the video tokens and of
    the last tokens, see `packed_forward`.
    """
    decoder, embed = decoder_of(model), model.get_input_embeddings()
    visual, deepstack = batch.get("visual"), []
    if visual is None:
        vision = model.model.visual(batch["pixels"], grid_thw=batch["grid_thw"])
        visual, deepstack = vision.pooler_output, getattr(vision, "deepstack_features", None) or []
    clips, width = batch["prefix_ids"].shape
    is_video, is_token = batch["prefix_ids"] == model.config.video_token_id, batch["prefix_mask"]
    hidden = embed(batch["prefix_ids"]).masked_scatter(is_video[..., None], visual)
    itself = torch.eye(width, dtype=torch.bool, device=hidden.device)  # padding sees itself: no row is empty
    mask = torch.ones_like(itself).tril() & (is_token[:, None, :] | itself)
    prefix, video_states, ends = SharedPrefix(), [], []
    rope = decoder.rotary_emb(hidden, batch["prefix_position"])
    for i, layer in enumerate(decoder.layers):
        hidden = layer(
            hidden, attention_mask=mask[:, None], position_embeddings=rope, past_key_values=prefix, use_cache=True
        )
        video_states.append(hidden[is_video].view(clips, -1, hidden.shape[-1]))
        ends.append(hidden[:, -1])
        added = [batch["heat"][..., None] * highlights[i]] if highlights and i in highlights else []
        added += [deepstack[i].view(clips, -1, hidden.shape[-1])] if i < len(deepstack) else []
        if added:
            hidden = hidden + torch.zeros_like(hidden).masked_scatter(is_video[..., None], sum(added))
    return prefix, visual, video_states, ends
