"""Pretrain the tiny Qwen2.5-VL on gaze-free questions: `python -m gazeqwen.toyworld.pretrain OUT --seed 0`.

No scanpath and no gaze question ever enters. What enters instead is a *highlight* that wanders over the objects: a
ring or a halo drawn into the frames, or (in part of the batches) a learned vector added to the hidden states of the
video tokens at the object, after one of the decoder's layers. The questions ask about the highlighted object in the
words of StreamGaze's tasks but with other verbs ("pointing at", "holding", ...). A tenth of the words of a question
are replaced by random words, so that an unseen verb does not matter. The vector is thrown away after training; the
drawn ring is what the measured accuracies use.

Phases: (1) the vision tower, with auxiliary heads; (2) reading: words for answers, and letters by matching options;
(3, 4) every kind of question; (5) the same, where text often may not see the video in the first layers, so that the
model keeps reading video tokens in later layers; the learning rate decays to zero at the end. From (3) on the video
tokens' hidden states are kept small, since a cue added to large ones goes unheard. Auxiliary heads ask at each option
whether it is right, and of a noun whether its object is visible, highlighted now, or ever was: without that last one
"which was never ..." stayed at chance for 1200 steps; with it, it took 200.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration

from gazeqwen.streamgaze import OPTION_LETTERS, format_question
from gazeqwen.toyworld.backbone import PROMPT_WORDS, make_backbone, save_backbone
from gazeqwen.toyworld.generate import make_entries, make_video
from gazeqwen.toyworld.questions import (
    FRAMES,
    STEPS,
    TASKS,
    question_times_s,
    sample_times_s,
    step_shares,
)
from gazeqwen.toyworld.viewer import Fixation, simulate_viewer
from gazeqwen.toyworld.world import (
    CELL_PX,
    COLORS,
    GRID,
    KINDS,
    NOUN_OF,
    SHAPES,
    Highlight,
    Scene,
    draw_frame,
    frame_times_s,
    make_scene,
    write_video,
)

NOUNS = tuple(NOUN_OF.values())
TOKENS_PER_STEP = GRID * GRID
VIDEO_TOKENS = STEPS * TOKENS_PER_STEP
GRID_THW = (STEPS, 2 * GRID, 2 * GRID)
# the verb of "... is the user currently VERB?" and of "which did the user never VERB?"
VERBS = (
    ("pointing at", "point at"),
    ("holding", "hold"),
    ("touching", "touch"),
    ("reaching for", "reach for"),
    ("marking", "mark"),
    ("picking", "pick"),
)
GAZE_VERBS = (("gazing at", "gaze at"),)  # used to measure, never to train
RING_COLORS = ((255, 255, 255), (255, 150, 30), (60, 255, 255), (255, 90, 180), (170, 255, 60), (255, 255, 120))


# --- questions -------------------------------------------------------------------------------------------------------


@dataclass
class Question:
    """One question of a clip. Without options the answer is a word, with options a letter."""

    kind: str
    text: str
    options: list[str]
    answer: str


@dataclass
class Clip:
    """What the model sees of [0, time_s]: 8 frames, and where the highlight is."""

    scene: Scene
    path: list[Fixation]
    current: int
    time_s: float


def make_clip(rng: np.random.Generator) -> Clip:
    """A scene and a path of attention whose last part lies on one object; a highlight will follow that path."""
    while True:
        scene = make_scene(rng)
        path = simulate_viewer(scene, rng, duration_s=(0.9, 2.6) if rng.random() < 0.5 else (1.2, 4.0))
        moments = question_times_s(path)
        if moments:
            late = rng.random() < 0.4
            index, time_s = moments[-1] if late else moments[int(rng.integers(len(moments)))]
            return Clip(scene, path, path[index].object_index, float(time_s))


def _pick(rng: np.random.Generator, items, count: int) -> list:
    items = list(items)
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _shuffled(rng: np.random.Generator, items: list) -> list:
    return _pick(rng, items, len(items))


def highlight_question(rng: np.random.Generator, clip: Clip, kind: str, verb: tuple[str, str]) -> Question | None:
    """The highlight's analogue of a gaze task, with another verb; None where the clip does not allow it."""
    scene, thing = clip.scene, clip.scene.objects[clip.current]
    visible = scene.visible(clip.time_s)
    if kind == "which":
        others = [scene.objects[i].noun for i in visible if i != clip.current]
        options = _pick(rng, others, 3)
        absent = [noun for noun in NOUNS if noun not in others and noun != thing.noun]
        options += _pick(rng, absent, 3 - len(options))
        text = f"Which object is the user currently {verb[0]}?"
        if verb not in GAZE_VERBS and rng.random() < 0.3:
            text = ("Which object is ringed now?", "Which object is highlighted now?")[int(rng.integers(2))]
        return Question(kind, text, _shuffled(rng, [*options, thing.noun]), thing.noun)
    if kind in ("color", "shape"):
        values = tuple(COLORS) if kind == "color" else SHAPES
        answer = getattr(thing, kind)
        shown = {getattr(scene.objects[i], kind) for i in visible} - {answer}
        options = _pick(rng, sorted(shown), 3)
        options += _pick(rng, [v for v in values if v != answer and v not in options], 3 - len(options))
        return Question(kind, f"What {kind} is this object?", _shuffled(rng, [*options, answer]), answer)
    attended = {f.object_index for f in clip.path if f.start_s < clip.time_s}
    seen = {f.object_index for f in clip.path for s in sample_times_s(clip.time_s) if f.start_s <= s < f.end_s}
    ignored = [i for i in scene.visible(0, clip.time_s) if i not in attended]
    if kind == "never":
        if not ignored or len(seen) < 2:
            return None
        answer = ignored[int(rng.integers(len(ignored)))]
        chosen = [*_pick(rng, sorted(seen), 3), answer]
        options = _shuffled(rng, [scene.objects[i].noun for i in chosen])
        listed = f"Among {{{', '.join(_shuffled(rng, options))}}}, which"
        text = f"{listed} did the user never {verb[1]}?"
        if verb not in GAZE_VERBS and rng.random() < 0.25:
            text = f"{listed} was never {('ringed', 'highlighted')[int(rng.integers(2))]}?"
        return Question(kind, text, options, scene.objects[answer].noun)
    if kind == "is it now":
        yes = rng.random() < 0.5
        others = [i for i in visible if i != clip.current]
        asked = clip.current if yes or not others else others[int(rng.integers(len(others)))]
        noun = scene.objects[asked].noun
        text = f"Is the user currently {verb[0]} the {noun}?"
        return Question(kind, text, _shuffled(rng, ["Yes", "No"]), "Yes" if asked == clip.current else "No")
    if kind == "was it ever":
        if not ignored:
            return None
        yes = rng.random() < 0.5
        pool = sorted(seen) if yes else ignored
        noun = scene.objects[pool[int(rng.integers(len(pool)))]].noun
        text = f"Did the user ever {verb[1]} the {noun}?"
        return Question(kind, text, _shuffled(rng, ["Yes", "No"]), "Yes" if yes else "No")
    raise ValueError(f"unknown kind {kind!r}")


def plain_question(rng: np.random.Generator, clip: Clip, kind: str) -> Question | None:
    """Questions that need no highlight: about the text alone, or about the scene."""
    scene = clip.scene
    visible = scene.visible(clip.time_s)
    if kind == "match":
        pool = (NOUNS, NOUNS, tuple(COLORS), SHAPES)[int(rng.integers(4))]
        options = _pick(rng, pool, 4)
        answer = options[int(rng.integers(4))]
        return Question(kind, f"Which option says {answer}?", options, answer)
    if kind == "visible":
        if not scene.visible(0, clip.time_s):
            return None
        answer = scene.objects[_pick(rng, visible, 1)[0]].noun
        absent = [noun for noun in NOUNS if noun not in {thing.noun for thing in scene.objects}]
        return Question(kind, "Which object is visible now?", _shuffled(rng, [answer, *_pick(rng, absent, 3)]), answer)
    if kind == "of noun":
        attribute, values = (("color", tuple(COLORS)), ("shape", SHAPES))[int(rng.integers(2))]
        thing = scene.objects[_pick(rng, visible, 1)[0]]
        answer = getattr(thing, attribute)
        options = _shuffled(rng, [answer, *_pick(rng, [v for v in values if v != answer], 3)])
        return Question(kind, f"What {attribute} is the {thing.noun}?", options, answer)
    raise ValueError(f"unknown kind {kind!r}")


HIGHLIGHT_KINDS = ("which", "color", "shape", "never", "is it now", "was it ever")
PLAIN_KINDS = ("match", "visible", "of noun")


def make_question(rng: np.random.Generator, clip: Clip, kinds: dict[str, float], verbs=VERBS) -> Question:
    """Draw a question whose kind has the given weights; a leading "word " in a kind leaves its options out."""
    names, weights = list(kinds), np.array(list(kinds.values()))
    while True:
        kind = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        bare = kind.removeprefix("word ")
        verb = verbs[int(rng.integers(len(verbs)))]
        question = (
            plain_question(rng, clip, bare) if bare in PLAIN_KINDS else highlight_question(rng, clip, bare, verb)
        )
        if question:
            question.kind = kind
            if bare != kind:
                question.options = []
            return question


# --- batches ---------------------------------------------------------------------------------------------------------


class Batches(IterableDataset):
    """Draws batches of clips, each with several questions, as tensors.

    One clip's questions share its visual prefix: `<|im_start|>user\\n<|vision_start|>` and the video tokens; a
    question's own *tail* starts at `<|vision_end|>` and ends with the assistant's header.
    """

    def __init__(self, processor, seed: int, clips: int, questions: int, kinds: dict, verbs=VERBS, word_dropout=0.1):
        self.tokenizer = processor.tokenizer
        self.rng = np.random.default_rng([seed, 77])
        self.clips, self.questions, self.kinds, self.verbs = clips, questions, kinds, verbs
        self.word_dropout = word_dropout
        self.vector_share = 0.0  # share of clips whose highlight is the learned vector instead of a drawing
        self.odd_positions = 0.25  # share of clips with the text position rule of older transformers
        encode = self.tokenizer.encode
        self.prefix_ids = encode("<|im_start|>user\n<|vision_start|>") + encode("<|video_pad|>") * VIDEO_TOKENS
        self.spare_ids = [encode(f" {word}")[0] for word in PROMPT_WORDS]
        self.keep_ids = {encode(f"{space}{word}")[0] for word in (*NOUNS, *COLORS, *SHAPES) for space in ("", " ")}
        self.images = processor.video_processor
        self.cache: dict[str, list[int]] = {}

    def __iter__(self):
        while True:
            yield self.draw(vision_only=not self.kinds)

    def _ids(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer.encode(text)
        return self.cache[text]

    def _tail(self, question: Question) -> tuple[list[int], list[int]]:
        """Token ids of a question's tail, and the place of each option's last token in it."""
        drop = self.word_dropout
        asked = self.tokenizer.encode(f" {question.text}")
        asked = [
            self.spare_ids[int(self.rng.integers(len(self.spare_ids)))]
            if i not in self.keep_ids and self.rng.random() < drop
            else i
            for i in asked
        ]
        if question.options:
            before, after = format_question("\0", question.options).split(" \0")
        else:
            before, after = "Question:", ""
        ids = self._ids(f"<|vision_end|>{before}") + asked
        places = []
        lines = after.split("\n")
        for number, line in enumerate(lines):
            ids = ids + self._ids(("\n" if number else "") + line)
            if line[:1] in OPTION_LETTERS and line[1:3] == ". ":
                places.append(len(ids) - 1)
        return ids + self._ids("<|im_end|>\n<|im_start|>assistant\n"), places

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
        """A batch. Shapes, with C clips, Q questions a clip, L tail tokens, 64 video tokens:

        pixels (C*256, 1176); prefix_position (3, C, 68); tail_ids, tail_position (C*Q, L), last (C*Q,);
        target (C*Q,); heat (C, 64) for the vector highlight; labels of the auxiliary heads.
        """
        rng = self.rng
        videos, heat, token_labels, tails, kinds, clips = [], [], [], [], [], []
        for _ in range(self.clips):
            clip = make_clip(rng)
            clips.append(clip)
            by_vector = rng.random() < self.vector_share
            style = self._style()
            frames, marked = [], []
            for time_s in sample_times_s(clip.time_s):
                active = [f.object_index for f in clip.path if f.start_s <= time_s < f.end_s]
                frames.append(draw_frame(clip.scene, time_s, [] if by_vector else [(i, style) for i in active]))
                marked.append(active)
            videos.append(self._degrade(np.stack(frames)))
            heat.append(self._heat(clip) if by_vector else np.zeros(VIDEO_TOKENS, np.float32))
            token_labels.append(self._token_labels(clip, [] if by_vector else marked))
            if not vision_only:
                for _ in range(self.questions):
                    tails.append(make_question(rng, clip, self.kinds, self.verbs))
        batch = {
            "pixels": self._patches(np.stack(videos)),
            "grid_thw": torch.tensor([GRID_THW] * self.clips),
            "token_labels": torch.from_numpy(np.stack(token_labels)),
        }
        if vision_only:
            return batch
        built = [self._tail(q) for q in tails]
        length = max(len(ids) for ids, _ in built)
        tail_ids = torch.zeros(len(built), length, dtype=torch.long)
        option_rows, option_places, option_right, option_facts = [], [], [], []
        for row, ((ids, places), q) in enumerate(zip(built, tails, strict=True)):
            tail_ids[row, : len(ids)] = torch.tensor(ids)
            for place, option in zip(places, q.options, strict=True):
                option_rows.append(row)
                option_places.append(place)
                option_right.append(float(option == q.answer))
                option_facts.append(self._facts(clips[row // self.questions], option))
            kinds.append(q.kind)
        answers = [OPTION_LETTERS[q.options.index(q.answer)] if q.options else q.answer for q in tails]
        prefix_position, tail_start = self._positions([clip.time_s for clip in clips])
        start = tail_start.repeat_interleave(self.questions)
        return batch | {
            "prefix_ids": torch.tensor([self.prefix_ids] * self.clips),
            "prefix_position": prefix_position,
            "tail_ids": tail_ids,
            "tail_position": start[:, None] + torch.arange(length)[None],
            "last": torch.tensor([len(ids) - 1 for ids, _ in built]),
            "target": torch.tensor([self._ids(a)[0] for a in answers]),
            "option_rows": torch.tensor(option_rows, dtype=torch.long),
            "option_places": torch.tensor(option_places, dtype=torch.long),
            "option_right": torch.tensor(option_right),
            "option_facts": torch.tensor(option_facts),
            "heat": torch.from_numpy(np.stack(heat)),
            "kinds": kinds,
        }

    def _positions(self, times_s: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """mRoPE positions of the prefix (3, C, 68) and of each clip's first tail token (C,), as transformers has them.

        In part of the clips the text starts after the last temporal position, which is the rule of other versions.
        """
        step, row, column = (
            i.flatten() for i in torch.meshgrid(*(torch.arange(n) for n in (STEPS, GRID, GRID)), indexing="ij")
        )
        head = len(self.prefix_ids) - VIDEO_TOKENS
        positions, starts = [], []
        for time_s in times_s:
            moment = (step * (2 * time_s / STEPS)).long()
            video = torch.stack([moment, row, column]) + head
            positions.append(torch.cat([torch.arange(head).expand(3, -1), video], dim=1))
            odd = self.rng.random() < self.odd_positions
            starts.append(int(video.max()) + 1 if odd else head + GRID)
        return torch.stack(positions, dim=1), torch.tensor(starts)

    def _heat(self, clip: Clip) -> np.ndarray:
        """How strongly each video token is highlighted, shape (64,): blobs at objects, by their share of the step."""
        rng, span_s = self.rng, clip.time_s / STEPS
        width = float(rng.uniform(0.35, 0.9))  # in cells
        centres = (np.arange(GRID) + 0.5) * CELL_PX
        heat = np.zeros((STEPS, GRID, GRID), np.float32)
        for step, shares in enumerate(step_shares(clip.path, clip.time_s)):
            for thing, share in shares.items():
                x, y = clip.scene.objects[thing].position_px((step + 0.5) * span_s) + rng.normal(0, 1.5, size=2)
                squared = ((centres[:, None] - y) ** 2 + (centres[None, :] - x) ** 2) / CELL_PX**2
                heat[step] += share * np.exp(-squared / (2 * width**2))
        return heat.reshape(-1) * float(rng.uniform(0.7, 1.4))

    @staticmethod
    def _facts(clip: Clip, option: str) -> tuple[float, float, float]:
        """Of an option that is a noun: is it visible now, highlighted now, was it ever? -1 where it is no noun."""
        if option not in NOUNS:
            return (-1.0, -1.0, -1.0)
        for i, thing in enumerate(clip.scene.objects):
            if thing.noun == option:
                ever = any(f.object_index == i and f.start_s < clip.time_s for f in clip.path)
                return (float(thing.visible(clip.time_s)), float(i == clip.current), float(ever))
        return (0.0, 0.0, 0.0)

    def _token_labels(self, clip: Clip, marked: list[list[int]]) -> np.ndarray:
        """Per video token (64, 2): index into KINDS plus 1 of its cell's object (0: none, -1: unclear), marked."""
        labels = np.zeros((STEPS, GRID, GRID, 2), np.int64)
        times = sample_times_s(clip.time_s)
        for step in range(STEPS):
            pair = times[2 * step : 2 * step + 2]
            for i, thing in enumerate(clip.scene.objects):
                shown = [thing.visible(s) for s in pair]
                cells = {tuple((thing.position_px(s) // CELL_PX).astype(int)) for s in pair}
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

    def _patches(self, videos: np.ndarray) -> torch.Tensor:
        """uint8 (C, 8, 112, 112, 3) -> the processor's own patches (C * 256, 1176), in one vectorised pass."""
        mean, std = (np.array(v, np.float32) for v in (self.images.image_mean, self.images.image_std))
        pixels = (videos.astype(np.float32) / 255 - mean) / std
        patch = CELL_PX // 2
        pixels = pixels.reshape(len(videos), STEPS, 2, GRID, 2, patch, GRID, 2, patch, 3)
        # clip, step, row, column, row in cell, column in cell | channel, frame of pair, y, x
        pixels = pixels.transpose(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
        return torch.from_numpy(np.ascontiguousarray(pixels).reshape(-1, 3 * 2 * patch * patch))


# --- model -----------------------------------------------------------------------------------------------------------


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
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Run every question of every clip, computing a clip's visual prefix once: equal to plain forwards.

    Args:
        blind_layers: in this many first layers the tails may not attend to video tokens.
        highlights: decoder layer -> vector (96,): `heat * vector` is added to the video tokens after that layer.

    Returns logits at each tail's last token (C*Q, vocabulary), video embeddings (C*64, hidden), the tails' hidden
    states after each layer, (C*Q, L, hidden) each, and the mean square of the video tokens' hidden states (a scalar).
    """
    decoder = model.model.language_model
    visual = model.model.visual(batch["pixels"], grid_thw=batch["grid_thw"]).pooler_output
    clips, width = batch["prefix_ids"].shape
    head = width - VIDEO_TOKENS
    embed = decoder.embed_tokens
    hidden = torch.cat([embed(batch["prefix_ids"][:, :head]), visual.view(clips, VIDEO_TOKENS, -1)], dim=1)
    prefix, loudness = SharedPrefix(), 0.0
    rope = decoder.rotary_emb(hidden, batch["prefix_position"])
    for i, layer in enumerate(decoder.layers):
        hidden = layer(hidden, position_embeddings=rope, past_key_values=prefix, use_cache=True)
        loudness = loudness + hidden[:, head:].square().mean() / len(decoder.layers)
        if highlights and i in highlights:
            added = batch["heat"][..., None] * highlights[i]
            hidden = hidden + F.pad(added, (0, 0, head, 0))

    tails, length = batch["tail_ids"].shape
    prefix.copies = tails // clips
    hidden = embed(batch["tail_ids"])
    rope = decoder.rotary_emb(hidden, batch["tail_position"].expand(3, -1, -1))
    mask = torch.ones(length, width + length, dtype=torch.bool).tril(width)[None, None]
    blind = mask.clone()
    blind[..., head:width] = False
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
    last = decoder.norm(hidden[torch.arange(tails), batch["last"]])
    return model.lm_head(last), visual, states, loudness


class Heads(nn.Module):
    """What only pretraining needs: auxiliary heads, and the highlight vector of each decoder layer."""

    def __init__(self, hidden: int, layers: int):
        super().__init__()
        self.kind = nn.Linear(hidden, 1 + len(COLORS) + 1 + len(SHAPES))
        self.marked = nn.Linear(hidden, 1)
        self.right = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(2))
        self.facts = nn.ModuleList(nn.Linear(hidden, 3) for _ in range(2))
        self.vectors = nn.Parameter(torch.randn(layers - 1, hidden))


def vision_loss(heads: Heads, visual: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Which colour and shape is in each token's cell, and is it marked? `visual` (N, hidden), `labels` (C, 64, 2)."""
    kind, marked = labels.reshape(-1, 2).unbind(-1)
    clear = kind >= 0
    n_colors, n_shapes = len(COLORS), len(SHAPES)
    color = torch.where(kind > 0, (kind - 1).clamp(min=0) // n_shapes + 1, 0)[clear]
    shape = torch.where(kind > 0, (kind - 1).clamp(min=0) % n_shapes + 1, 0)[clear]
    scores = heads.kind(visual)[clear]
    guess = heads.marked(visual)[:, 0][clear]
    full = color > 0
    loss = (
        F.cross_entropy(scores[:, : n_colors + 1], color)
        + F.cross_entropy(scores[:, n_colors + 1 :], shape)
        + F.binary_cross_entropy_with_logits(guess, marked[clear].float(), pos_weight=torch.tensor(4.0))
    )
    right = {
        "vision color": (scores[:, : n_colors + 1].argmax(-1) == color)[full].float().mean().item(),
        "vision shape": (scores[:, n_colors + 1 :].argmax(-1) == shape)[full].float().mean().item(),
        "vision marked": ((guess > 0) == (marked[clear] > 0))[full].float().mean().item(),
    }
    return loss, right


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (five Newton-Schulz iterations), for matrices."""

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[tuple(p.shape)].append(p)
            for (rows, columns), params in by_shape.items():
                updates = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))
                x = torch.stack(updates)
                x = x.mT if rows > columns else x
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    gram = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                x = x.mT if rows > columns else x
                scale = max(1, rows / columns) ** 0.5
                for p, update in zip(params, x, strict=True):
                    p.add_(update, alpha=-group["lr"] * scale)


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """One phase of pretraining: what is asked, for how long, and how hard it is made."""

    name: str
    steps: int
    kinds: dict[str, float]
    clips: int = 16
    questions: int = 8
    vector_share: float = 0.0
    blind_share: float = 0.0  # share of batches in which text may not see the video in the first one or two layers
    quiet: float = 0.0  # weight of the mean square of the video tokens' hidden states, so that an added cue is heard
    decay: bool = False  # learning rate goes to zero over the second half
    lr: float = 1.0
    until: dict[str, float] | None = None  # stop early once these running accuracies are reached


ALL_KINDS = {
    "which": 1.8,
    "color": 1.2,
    "shape": 1.2,
    "never": 2.6,
    "is it now": 0.2,
    "was it ever": 0.6,
    "match": 0.1,
    "visible": 0.5,
    "of noun": 0.1,
}
READ_KINDS = {"match": 2.5, "word which": 1.5, "word color": 1.0, "word shape": 1.0, "which": 1.0, "of noun": 0.5}
PHASES = (
    Phase("vision", 220, {}, lr=2.0, decay=True),
    Phase("reading", 1200, READ_KINDS, clips=8, vector_share=0.2),
    Phase("everything", 1200, ALL_KINDS, clips=12, vector_share=0.4, quiet=0.01),
    Phase("looking up", 700, ALL_KINDS, clips=12, vector_share=0.35, quiet=0.01, lr=0.8),
    Phase("late reading", 900, ALL_KINDS, clips=12, vector_share=0.4, quiet=0.01, lr=0.8, blind_share=0.6, decay=True),
)


def train(
    model, processor, phases, seed: int, record: dict | None = None, on_save=None, log_every=50, save_every=300
) -> dict:
    """Pretrain `model` in place. Returns steps and wall seconds of each phase, and the last running accuracies.

    `record` is what an interrupted call returned: phases that it completed are skipped (heads and optimizers start
    afresh). `on_save(record)` is called every `save_every` steps and at the end of each phase.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 78])
    text = model.config.text_config
    heads = Heads(text.hidden_size, text.num_hidden_layers)
    vectors, matrices = [heads.vectors], []
    others = [p for p in heads.parameters() if p is not heads.vectors]
    for name, p in model.named_parameters():
        matrices.append(p) if p.ndim == 2 and "embed" not in name else others.append(p)
    muon = Muon(matrices, lr=0.01)
    groups = [{"params": others, "lr": 2e-3}, {"params": vectors, "lr": 1e-2}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    rates = [(group, group["lr"]) for optimizer in (muon, adam) for group in optimizer.param_groups]
    everything = [*model.parameters(), *heads.parameters()]
    record = dict(record or {})
    model.train()
    for number, phase in enumerate(phases):
        if record.get(phase.name, {}).get("complete"):
            continue
        batches = Batches(processor, seed * 100 + number, phase.clips, phase.questions, phase.kinds)
        batches.vector_share = phase.vector_share
        running: dict[str, float] = {}
        started = time.monotonic()
        loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)  # drawn beside training
        for step, batch in zip(tqdm(range(phase.steps), desc=phase.name, mininterval=5), loader, strict=False):
            factor = phase.lr * min(1, (step + 1) / 20)
            if phase.decay:
                factor *= min(1, 2 * (1 - step / phase.steps))
            for group, lr in rates:
                group["lr"] = lr * factor
            if not phase.kinds:
                visual = model.model.visual(batch["pixels"], grid_thw=batch["grid_thw"]).pooler_output
                loss, right = vision_loss(heads, visual, batch["token_labels"])
            else:
                loss, right = question_loss(model, heads, batch, phase, rng)
            loss.backward()
            nn.utils.clip_grad_norm_(everything, 1.0)
            muon.step()
            adam.step()
            for p in everything:
                p.grad = None
            for key, value in right.items():
                running[key] = value if key not in running else 0.95 * running[key] + 0.05 * value
            record[phase.name] = {
                "steps": step + 1,
                "wall_s": round(time.monotonic() - started, 1),
                "running_accuracy": {key: round(value, 3) for key, value in sorted(running.items())},
            }
            if (step + 1) % log_every == 0:
                shown = " ".join(f"{key}={value:.2f}" for key, value in sorted(running.items()))
                tqdm.write(f"{phase.name} {step + 1} {time.monotonic() - started:.0f}s loss={loss.item():.3f} {shown}")
                if phase.until and all(running.get(key, 0) >= value for key, value in phase.until.items()):
                    break
            if on_save and (step + 1) % save_every == 0:
                on_save(record)
        record[phase.name]["complete"] = True
        if on_save:
            on_save(record)
    model.eval()
    return record


def question_loss(model, heads: Heads, batch: dict, phase: Phase, rng: np.random.Generator):
    """Loss and accuracies of one batch: the answers, which options are right, and what the video tokens show."""
    layers = rng.permutation(len(heads.vectors))[: int(rng.integers(1, 4))]
    highlights = {int(layer): heads.vectors[int(layer)] for layer in layers}
    blind_layers = int(rng.integers(1, 3)) if rng.random() < phase.blind_share else 0
    logits, visual, states, loudness = packed_forward(model, batch, blind_layers, highlights)
    loss = F.cross_entropy(logits, batch["target"]) + phase.quiet * loudness
    if len(batch["option_rows"]):
        weight = torch.tensor(2.0)
        nouns = batch["option_facts"][:, 0] >= 0
        for right_head, facts_head, state in zip(heads.right, heads.facts, states[-3:-1], strict=True):
            option = state[batch["option_rows"], batch["option_places"]]
            guess = right_head(option)[:, 0]
            loss = loss + 0.4 * F.binary_cross_entropy_with_logits(guess, batch["option_right"], pos_weight=weight)
            facts = facts_head(option[nouns])
            loss = loss + 0.5 * F.binary_cross_entropy_with_logits(facts, batch["option_facts"][nouns])
    seen_loss, _ = vision_loss(heads, visual, batch["token_labels"])
    loss = loss + 0.1 * seen_loss
    scores = defaultdict(list)
    if len(batch["option_rows"]):
        for name, said, truth in zip(
            ("fact: visible", "fact: now", "fact: ever"),
            (facts > 0).float().unbind(1),
            batch["option_facts"][nouns].unbind(1),
            strict=True,
        ):
            if 0 < truth.sum() < len(truth):  # mean over both classes
                scores[name].append(np.mean([(said == truth)[truth == v].float().mean().item() for v in (0, 1)]))
    right = (logits.argmax(-1) == batch["target"]).float()
    vector = (batch["heat"].amax(dim=1) > 0).repeat_interleave(len(right) // len(batch["heat"]))
    for kind, value, by_vector in zip(batch["kinds"], right.tolist(), vector.tolist(), strict=True):
        scores[f"{kind} (vector)" if by_vector and kind.removeprefix("word ") in HIGHLIGHT_KINDS else kind].append(
            value
        )
    scores["loudness"].append(loudness.item())
    return loss, {kind: float(np.mean(values)) for kind, values in scores.items()}


# --- measuring -------------------------------------------------------------------------------------------------------


def read_frames(path: str | Path, times_s: np.ndarray) -> np.ndarray:
    """Frames of a video file shown at `times_s` (the last one that starts no later), uint8 (N, H, W, 3)."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    starts = np.array([frame.time for frame in decoded])
    shown = [decoded[max(int(np.searchsorted(starts, s + 1e-6, side="right")) - 1, 0)] for s in times_s]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in shown])


@torch.no_grad()
def answer(model, processor, items: list[tuple[np.ndarray, float, str, list[str]]], batch_size: int = 16) -> list[str]:
    """Letters that the full model and processor answer to (frames of [0, t], t, question, options), one each."""
    letters = []
    for begin in range(0, len(items), batch_size):
        part = items[begin : begin + batch_size]
        texts = []
        for _, _, question, options in part:
            content = [{"type": "video"}, {"type": "text", "text": format_question(question, options)}]
            message = [{"role": "user", "content": content}]
            texts.append(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
        details = [
            {"fps": FRAMES / time_s, "total_num_frames": FRAMES, "frames_indices": list(range(FRAMES))}
            for _, time_s, _, _ in part
        ]
        inputs = processor(
            text=texts,
            videos=[frames for frames, _, _, _ in part],
            video_metadata=details,
            do_sample_frames=False,
            padding=True,
            return_tensors="pt",
        )
        logits = model(**inputs, logits_to_keep=1).logits[:, -1]
        for row, (_, _, _, options) in enumerate(part):
            ids = [processor.tokenizer.encode(OPTION_LETTERS[i])[0] for i in range(len(options))]
            letters.append(OPTION_LETTERS[int(logits[row, ids].argmax())])
    return letters


def measure(model, processor, seed: int, videos: int = 150) -> dict[str, dict]:
    """Accuracy per task on real mp4 files of held-out videos, with the plain full model and processor.

    Three conditions: a ring drawn on what the viewer looks at and a verb of pretraining ("pointing at"), the same ring
    and the exact gaze wording ("gazing at"), and the gaze wording without any ring (the floor).
    """
    ring = Highlight()
    made = {f"{i}": make_video(10_000 + seed, "test", i) for i in range(videos)}
    entries = make_entries(10_000 + seed, "test", {name: questions for name, (_, _, questions) in made.items()})
    items = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for name, (scene, fixations, _) in made.items():
            for condition in ("plain", "ring"):
                frames = []
                for time_s in frame_times_s(scene):
                    on = [f.object_index for f in fixations if f.start_s <= time_s < f.end_s]
                    frames.append(draw_frame(scene, time_s, [(i, ring) for i in on] if condition == "ring" else []))
                write_video(Path(folder) / f"{name}-{condition}.mp4", frames)
        for task, pairs in entries.items():
            for entry, q in pairs:
                asked = entry["questions"][0]
                options = [option[3:] for option in asked["options"]]
                time_s = float(q["time_s"])
                shown = {
                    condition: read_frames(
                        Path(folder) / f"{entry['video_path']}-{condition}.mp4", sample_times_s(time_s)
                    )
                    for condition in ("plain", "ring")
                }
                other = asked["question"].replace("gazing at", "pointing at").replace("gaze at", "point at")
                for condition, frames, question in (
                    ("ring, verb of pretraining", shown["ring"], other),
                    ("ring, gaze wording", shown["ring"], asked["question"]),
                    ("no ring, gaze wording", shown["plain"], asked["question"]),
                ):
                    items[task, condition].append(((frames, time_s, question, options), asked["answer"]))
    results: dict[str, dict] = {task: {} for task in TASKS}
    for (task, condition), pairs in items.items():
        given = answer(model, processor, [item for item, _ in pairs])
        results[task]["questions"] = len(pairs)
        results[task][condition] = round(
            float(np.mean([a == right for a, (_, right) in zip(given, pairs, strict=True)])), 4
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", help="folder to write the backbone into (saved on the way, too)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (another process draws the batches)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of steps of every phase")
    parser.add_argument("--videos", type=int, default=150, help="held-out videos to measure on")
    parser.add_argument("--resume", action="store_true", help="go on after the last phase that OUT completed")
    args = parser.parse_args()
    if args.scale <= 0:
        parser.error("--scale must be positive")
    torch.set_num_threads(args.threads)
    phases = [replace(phase, steps=max(1, round(phase.steps * args.scale))) for phase in PHASES]
    model, processor = make_backbone(args.seed)
    record = {}
    if args.resume:
        summary = json.loads((Path(args.out) / "pretraining.json").read_text())
        if summary["seed"] != args.seed:
            parser.error(f"{args.out} was started with --seed {summary['seed']}")
        record = {name: phase | {"resumed_after": True} for name, phase in summary["phases"].items()}
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.out)

    def save(record: dict, **more) -> None:
        save_backbone(args.out, model, processor)
        summary = {
            "caveat": "pretrained on a highlight (ring, halo, or a vector added to hidden states) that means 'this "
            "one': numbers on the toy world prove the mechanism and the code, not the gain on a real Qwen",
            "seed": args.seed,
            "parameters": sum(p.numel() for p in model.parameters()),
            "device": f"{platform.processor() or platform.machine()} CPU, {args.threads} thread(s)",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "wall_s": round(sum(phase["wall_s"] for phase in record.values()), 1),
            "phases": record,
            **more,
        }
        (Path(args.out) / "pretraining.json").write_text(json.dumps(summary, indent=2) + "\n")

    record = train(model, processor, phases, args.seed, record, save)
    accuracy = measure(model, processor, args.seed, args.videos)
    save(record, accuracy=accuracy)
    print(json.dumps(accuracy, indent=2))


if __name__ == "__main__":
    main()
