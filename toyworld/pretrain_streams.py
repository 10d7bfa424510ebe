"""
Teach the first world's backbone to read streams: `python -m gazeqwen.toyworld.pretrain_streams OUT --seed 0`.

The committed backbone was pretrained on single clips of six steps, and collapses where other scenes come before its
own. Here it goes on from there, on streams (`streams.py`): slow scenes come one after the other, with jumps of up to
25 minutes between them. After each of them questions are asked about it, of all that was seen until then, or of what a
budget leaves. Gaze enters as the ring in the frames, and in what a budget keeps; its words do not. The vision tower
stays as it is.

Rotary frequencies: Qwen2.5-VL tells time by the highest. The backbone's (base 100) have waves of 6 to 20 positions, of
which there are 2 a second, so that they cannot tell a minute from an hour. So time is given the lowest four instead,
made lower still, up to a wave of 100 minutes; rows and columns get the other eight. Queries and keys are permuted in
the same way, so that text is read nearly as before. With a base of 3e13, which gives time about the same range, what
the backbone knew was lost (docs/log.md).

Two devices make it cheap. A stream's video runs once for the questions of all its scenes. And where all stays, each
token of earlier scenes often counts for several, up to 32: so many times more would be in the memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from gazeqwen.backbones_gazeqwen import decoder_of
from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.streaming import POLICIES
from gazeqwen.toyworld.backbone import BACKBONE_DIR, save_backbone
from gazeqwen.toyworld.highlights import FACTS, Drawer, facts
from gazeqwen.toyworld.packing import GRID_THW, Packer, SharedPrefix, patches_of
from gazeqwen.toyworld.pretrain import Muon, environment, option_losses, split_parameters
from gazeqwen.toyworld.questions import GAZE
from gazeqwen.toyworld.streams import STEP_S, STEP_TOKENS, SlowScene, draw_slow_scene, remembered
from gazeqwen.toyworld.world import GRID, Scene
from gazeqwen.utils.files import write_json

STREAM_BACKBONE_DIR = Path(__file__).parent / "backbone_streams"
KINDS_ASKED = {
    "which": 1.2,
    "color": 0.8,
    "shape": 0.8,
    "alert now": 1.4,
    "alert visible": 1.4,
    "not visible": 0.8,
    "never": 1.2,
    "order": 2.0,
    "longest": 1.2,
    "match": 0.1,
    "of noun": 0.1,
}
TIME_FREQUENCIES = (0.046, 0.0215, 0.006, 0.0005)  # radians a position, of which there are 2 a second
POSITIONS = 2**15
LONGEST_JUMP = 150  # steps, between two scenes
BUDGETS = (64, 256)
MOST_COUNTED = 32  # times that a token of an earlier scene counts
RATES = (0.007, 0.0014)  # of matrices (`Muon`), and of all else
SAVE_EVERY = 50
NEVER = -1e9  # added to a score: not seen


@dataclass(frozen=True)
class Phase:
    """
    One phase: how many streams, of how many scenes, with how many questions after each; in what share of the memories
    that hold all a token of an earlier scene counts for several; and whether a scene's video, too, sees of earlier
    scenes what its questions see of them (else all, once).
    """

    streams: int
    scenes: int
    questions: int
    counted: float
    in_video: bool


PHASES = (
    Phase(250, scenes=6, questions=8, counted=0.5, in_video=False),
    Phase(160, scenes=12, questions=4, counted=1.0, in_video=True),
)


class Heads(nn.Module):
    """What only pretraining needs: which option is right, and facts of nouns."""

    def __init__(self, hidden: int):
        super().__init__()
        self.right = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(2))
        self.facts = nn.ModuleList(nn.Linear(hidden, len(FACTS)) for _ in range(2))


def with_slow_time(model):
    """Return a backbone whose rotary frequencies in time are `TIME_FREQUENCIES`, and which reads text as before."""
    config, weights = model.config, model.state_dict()
    text = config.text_config
    heads, bands = text.num_attention_heads, sum(text.rope_parameters["mrope_section"])
    in_time = text.rope_parameters["mrope_section"][0]
    own = text.rope_parameters["rope_theta"] ** (-np.arange(bands) / bands)
    order = [*range(bands - in_time, bands), *range(bands - in_time)]
    rows = torch.tensor([order + [bands + i for i in order]]) + 2 * bands * torch.arange(heads)[:, None]
    for name in weights:
        if "language_model" in name and ("q_proj" in name or "k_proj" in name):
            weights[name] = weights[name][rows.flatten()]
    wanted = np.concatenate([TIME_FREQUENCIES, own[: bands - in_time]])
    factors = (own / wanted).tolist()
    text.max_position_embeddings = POSITIONS
    text.rope_parameters |= {
        "rope_type": "longrope",  # which divides the frequencies by factors
        "long_factor": factors,
        "short_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": POSITIONS,
    }
    slow = type(model)(config)
    slow.load_state_dict(weights)
    slow.generation_config = model.generation_config
    return slow.eval()


class Streams:
    """
    Draws streams with questions in the words of pretraining or (`gaze_wording`) in those of gaze, as tensors for
    `stream_forward`. Without `jumps` a stream begins at once, and each scene with the end of the one before.
    """

    def __init__(self, model, processor, seed: int, gaze_wording: bool = False, jumps: bool = True):
        self.rng, self.tower = np.random.default_rng([seed, 79]), model.model.visual
        self.packer = Packer(model.config, processor, Scene, GRID_THW, word_dropout=0.0 if gaze_wording else 0.1)
        self.images, self.jumps = processor.video_processor, jumps
        self.wording = {"wordings": (GAZE,)} if gaze_wording else {}
        self.before, self.after = map(
            processor.tokenizer.encode, ("<|im_start|>user\n<|vision_start|>", "<|vision_end|>")
        )
        self.video_id = model.config.video_token_id
        self.step_positions = int(STEP_S * model.config.vision_config.tokens_per_second)

    def draw(self, phase: Phase) -> dict:
        """
        Draw a stream of a phase's M scenes, V visual tokens, behind P tokens of text, and Q questions. Returns

        - the video behind its text: visual (V, hidden), prefix_ids (1, P + V), prefix_position (3, 1, P + V), and what
          is added to its scores, prefix_seen (P + V, P + V);
        - seen (M, V), what is added to the score of each visual token after each scene;
        - the scenes' questions, one after the other: tail_ids, tail_position and tail_number (M, L), the number of the
          question that a token is of, -1 for padding; last: row and place of each question's last token, (Q,) each;
          target (Q,); labels of the auxiliary heads;
        - kinds and memories of the questions, Q names each; the `scenes` and `asked`, the questions.
        """
        rng, begin, scenes = self.rng, int(self.rng.integers(30)) if self.jumps else 0, []
        for _ in range(phase.scenes):
            scenes.append(draw_slow_scene(rng, begin))
            begin = scenes[-1].end
            if self.jumps and rng.random() < 0.4:
                begin += int(LONGEST_JUMP ** rng.random())
        numbers = torch.cat([torch.arange(scene.begin, scene.end) for scene in scenes]).repeat_interleave(STEP_TOKENS)
        start, cell = len(self.before), torch.arange(len(numbers)) % STEP_TOKENS
        offsets = torch.stack([self.step_positions * numbers, cell // GRID, cell % GRID])
        grid = torch.tensor([[len(numbers) // STEP_TOKENS, 2 * GRID, 2 * GRID]])
        with torch.no_grad():
            pixels = patches_of(np.concatenate([scene.frames for scene in scenes]), self.images)
            visual = self.tower(pixels, grid_thw=grid).pooler_output
        ids = torch.tensor([self.before + [self.video_id] * len(numbers)])
        ranks = torch.cat([scene.ranks() for scene in scenes]).flatten()
        memories = [str(rng.choice(["all", *POLICIES], p=[0.5, 0.15, 0.2, 0.15])) for _ in scenes]
        seen = torch.stack(
            [self._seen(s, memory, ranks, numbers, phase) for s, memory in zip(scenes, memories, strict=True)]
        )
        prefix_seen = torch.full((ids.shape[1],) * 2, NEVER).triu(1)
        for scene, own in zip(scenes, seen, strict=True) if phase.in_video else ():
            its, earlier = (numbers >= scene.begin) & (numbers < scene.end), numbers < scene.begin
            prefix_seen[start:, start:][its.nonzero(), earlier.nonzero()[:, 0]] = own[earlier]
        return {
            "visual": visual,
            "prefix_ids": ids,
            "prefix_seen": prefix_seen,
            "prefix_position": torch.cat([torch.arange(start).expand(3, -1), start + offsets], dim=1)[:, None],
            "seen": seen,
            "memories": [memory for memory in memories for _ in range(phase.questions)],
            "scenes": scenes,
            **self._tails(scenes, phase.questions),
        }

    def _seen(
        self, scene: SlowScene, memory: str, ranks: torch.Tensor, numbers: torch.Tensor, phase: Phase
    ) -> torch.Tensor:
        """Return what is added to the scores of visual tokens (V,) when a scene ends, see `draw`."""
        seen = torch.where(numbers < scene.end, 0.0, NEVER)
        past = int((numbers < scene.end).sum())
        if memory == "all":
            more = float(self.rng.uniform(0, np.log(MOST_COUNTED))) if self.rng.random() < phase.counted else 0.0
            return seen.masked_fill(numbers < scene.begin, more)
        budget = int(self.rng.integers(BUDGETS[0], BUDGETS[1] + 1))
        seen[:past][~remembered(ranks[:past], numbers[:past], budget, memory)] = NEVER
        return seen

    def _tails(self, scenes: list[SlowScene], questions: int) -> dict:
        """Return the questions of scenes, see `draw`."""
        rows, found = [], defaultdict(list)
        for row, scene in enumerate(scenes):
            drawer, known, tokens = Drawer(self.rng, scene.view, **self.wording), {}, []
            last_step = self.step_positions * (scene.end - 1)
            position = len(self.before) + max(last_step, GRID - 1) + 1
            for number in range(questions):
                q, begin = drawer.question(KINDS_ASKED), len(tokens)
                ids, places = self.packer._tail(q, self.rng)
                ids = self.after + ids
                for place, option in zip(places, q.options, strict=True):
                    found["option"].append((row, begin + len(self.after) + place, option == q.answer))
                for place, i in enumerate(ids):
                    if i in self.packer.noun_of:
                        noun = self.packer.noun_of[i]
                        known[noun] = known.get(noun) or facts(scene.view, noun)
                        found["noun"].append((row, begin + place, *known[noun]))
                tokens += [(i, position + place, number) for place, i in enumerate(ids)]
                found["last"].append((row, len(tokens) - 1))
                found["target"].append(self.packer._ids(OPTION_LETTERS[q.options.index(q.answer)])[0])
                found["asked"].append(q)
            rows.append(tokens)
        length = max(map(len, rows))
        tails = torch.tensor([tokens + [(0, 0, -1)] * (length - len(tokens)) for tokens in rows])
        options, nouns = (torch.tensor(found[name], dtype=torch.float32) for name in ("option", "noun"))
        return {
            **dict(zip(("tail_ids", "tail_position", "tail_number"), tails.unbind(-1), strict=True)),
            "last": torch.tensor(found["last"]).unbind(1),
            "target": torch.tensor(found["target"]),
            "kinds": [q.kind for q in found["asked"]],
            "asked": found["asked"],
            "option_rows": options[:, 0].long(),
            "option_places": options[:, 1].long(),
            "option_right": options[:, 2],
            "noun_rows": nouns[:, 0].long(),
            "noun_places": nouns[:, 1].long(),
            "noun_facts": nouns[:, 2:],
        }


def stream_forward(model, batch: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """
    Run a stream's video once, and the questions of each of its M scenes on what is seen then: equal to a plain forward
    of each, where each token counts once.

    Returns logits at each question's last token (Q, vocabulary), and hidden states after each layer (M, L, hidden).
    """
    decoder, embed, prefix = decoder_of(model), model.get_input_embeddings(), SharedPrefix()
    is_video = batch["prefix_ids"] == model.config.video_token_id
    hidden = embed(batch["prefix_ids"]).masked_scatter(is_video[..., None], batch["visual"])
    rope = decoder.rotary_emb(hidden, batch["prefix_position"])
    for layer in decoder.layers:
        hidden = layer(
            hidden,
            attention_mask=batch["prefix_seen"][None, None],
            position_embeddings=rope,
            past_key_values=prefix,
            use_cache=True,
        )
    number, seen = batch["tail_number"], batch["seen"]
    prefix.copies, length = number.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril() & (number[:, :, None] == number[:, None, :])
    own = torch.where(causal, 0.0, NEVER)  # (M, L, L)
    text = own.new_zeros(prefix.copies, length, batch["prefix_ids"].shape[1] - seen.shape[1])
    mask = torch.cat([text, seen[:, None].expand(-1, length, -1), own], dim=-1)[:, None]
    hidden, states = embed(batch["tail_ids"]), []
    rope = decoder.rotary_emb(hidden, batch["tail_position"].expand(3, -1, -1))
    for layer in decoder.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rope, past_key_values=prefix, use_cache=True)
        states.append(hidden)
    return model.lm_head(decoder.norm(hidden[batch["last"]])), states


def loss_of(model, heads: Heads, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
    """Return a stream's loss, and accuracies by kind, by memory, and of the auxiliary heads."""
    logits, states = stream_forward(model, batch)
    option_loss, scores = option_losses(heads, states, batch)
    loss = F.cross_entropy(logits, batch["target"]) + option_loss
    for kind, memory, right in zip(
        batch["kinds"], batch["memories"], (logits.argmax(-1) == batch["target"]).tolist(), strict=True
    ):
        scores[kind].append(right)
        scores[f"memory: {memory}"].append(right)
    return loss, {name: float(np.mean(values)) for name, values in scores.items()}


class Training:
    """Goes on with pretraining on streams, `step` after step; a run that was stopped goes on from what it saved."""

    def __init__(self, model, processor, seed: int, phases: Sequence[Phase] = PHASES):
        torch.manual_seed(seed)
        self.model, self.done, self.wall_s = model, 0, 0.0
        self.phases = [phase for phase in phases for _ in range(phase.streams)]  # of each stream
        self.streams = Streams(model, processor, seed)
        self.heads = Heads(model.config.text_config.hidden_size)
        self.running: dict[str, float] = {}
        model.model.visual.requires_grad_(False)
        matrices, others = split_parameters(decoder_of(model))
        others += self.heads.parameters()
        self.trained = [*matrices, *others]
        self.optimizers = Muon(matrices, lr=0.0), torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self) -> float:
        """
        Train on one more stream, and return its loss. The rate rises over 20 streams, and falls over the last phase.
        """
        began = time.monotonic()
        left = len(self.phases) - self.done
        factor = min(1, (self.done + 1) / 20, left / self.phases[-1].streams)
        for optimizer, rate in zip(self.optimizers, RATES, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        loss, scores = loss_of(self.model, self.heads, self.streams.draw(self.phases[self.done]))
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for name, value in scores.items():
            self.running[name] = 0.95 * self.running.get(name, value) + 0.05 * value
        self.done, self.wall_s = self.done + 1, self.wall_s + time.monotonic() - began
        return loss.item()

    def save(self, path: Path) -> None:
        """Write all that `resume` needs."""
        modules = nn.ModuleDict({"model": self.model, "heads": self.heads})
        tensors = {f"module.{name}": value.clone() for name, value in modules.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{name}": value for name, value in values.items()}
        rest = [self.done, self.wall_s, self.running, self.streams.rng.bit_generator.state]
        save_file(tensors, path, {"rest": json.dumps(rest)})

    def resume(self, path: Path) -> None:
        """Go on where another run was."""
        states: list[dict] = [defaultdict(dict) for _ in self.optimizers]
        modules = nn.ModuleDict({"model": self.model, "heads": self.heads})
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
            rest = json.loads(file.metadata()["rest"])
        modules.load_state_dict(
            {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}
        )
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, index, key = name.split(".")
                states[int(number)][int(index)][key] = value
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": dict(state)})
        self.done, self.wall_s, self.running, self.streams.rng.bit_generator.state = rest


@torch.no_grad()
def accuracy_of(model, processor, seed: int, streams: int) -> dict[str, float]:
    """Return how many of the questions about other streams are answered right, in gaze's words, by kind and memory."""
    drawn, right = Streams(model, processor, 10_000 + seed, gaze_wording=True), defaultdict(list)
    for _ in range(streams):
        batch = drawn.draw(PHASES[-1])
        answers = (stream_forward(model, batch)[0].argmax(-1) == batch["target"]).tolist()
        for kind, memory, value in zip(batch["kinds"], batch["memories"], answers, strict=True):
            right[kind].append(value)
            right[f"memory: {memory}"].append(value)
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(right.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("out", help="folder to write the backbone into; a run that was stopped goes on there")
    parser.add_argument("--start", default=str(BACKBONE_DIR), help="the backbone that goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--held_out", type=int, default=40, help="other streams to measure on")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = with_slow_time(AutoModelForImageTextToText.from_pretrained(args.start))
    processor = AutoProcessor.from_pretrained(args.start)
    training = Training(model, processor, args.seed)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "training.safetensors"
    if checkpoint.exists():
        training.resume(checkpoint)
    bar = tqdm(total=len(training.phases), initial=training.done, unit="stream")
    while training.done < len(training.phases):
        loss = training.step()
        bar.update()
        if training.done % SAVE_EVERY == 0 or training.done == len(training.phases):
            shown = " ".join(f"{name}={value:.2f}" for name, value in sorted(training.running.items()))
            bar.write(f"{training.done} {training.wall_s:.0f}s loss={loss:.3f} {shown}")
            training.save(checkpoint)
    save_backbone(out, model, processor)
    record = {
        "caveat": "goes on from a backbone that was pretrained on a ring that means 'this one': numbers on the toy "
        "world prove the mechanism and the code, not the gain on a real Qwen",
        "seed": args.seed,
        "started_from": "toyworld/backbone" if args.start == str(BACKBONE_DIR) else args.start,
        "parameters": sum(p.numel() for p in model.parameters()),
        **environment(args.threads),
        "phases": [asdict(phase) for phase in PHASES],
        "time_frequencies": TIME_FREQUENCIES,
        "wall_s": round(training.wall_s, 1),
        "running_accuracy": {name: round(value, 3) for name, value in sorted(training.running.items())},
        "accuracy": accuracy_of(model, processor, args.seed, args.held_out),
    }
    write_json(out / "pretraining.json", record)
    checkpoint.unlink()
    print(json.dumps(record["accuracy"], indent=2))


if __name__ == "__main__":
    main()
