"""Pretrain the kitchen's tiny Qwen2.5-VL on marked pictures: `python -m gazeqwen.toyworld.kitchen.pretrain OUT`.

No scanpath and no gaze question enters. What enters are marks that people put on pictures (`marks.py`), wandering over
the things, and questions about what is marked, in the words of StreamGaze's tasks but with other verbs
(`highlights.py`). Unlike in the first world, nothing is ever added to hidden states, and nothing is done to make the
model hear what might be added.

First the vision tower learns to see (`sight.py`). Its last linear layer is then fitted by least squares, so that a
visual token's embedding is near that of the noun of the thing that it shows, and off it in one direction where that is
marked; from there on the tower stays as it is, and its embeddings of `--clips` clips are kept on disk. Then the
decoder learns to read: first to look (below), then to match options in text, then every kind of question; in the first
phases some tokens of empty ground are left out, at the positions of the others. The learning rate decays over the last
phase.

So many clips can be learned by heart. A clip therefore shows other things each time that it is drawn
(`clips.renamed`): in half of the batches by symbols, which are what the tower was fitted to, in the others by tokens
of other clips that show these. In the last phase half of the batches show clips as they are.

Looking is taught early: video tokens are asked, by heads that are thrown away, which thing was marked in the temporal
step before their own, and the prompt's last token before the question, which was in each of the six; and options and
nouns of a question are asked what is true of them. What is printed is of clips that were seen before, under other
names; after each phase the same is asked of clips of another seed, as they are (`held_out`).
Training goes on where it was stopped, with the same numbers as in one go.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gazeqwen.toyworld.backbone import make_backbone, save_backbone
from gazeqwen.toyworld.highlights import FACTS, Drawer
from gazeqwen.toyworld.kitchen.clips import (
    VIDEO_TOKENS,
    ClipEmbeddings,
    Symbols,
    TokensByThing,
    chosen_tokens,
    clip_of,
    heat_of,
    labels_of,
    renamed,
    things_of_steps,
)
from gazeqwen.toyworld.kitchen.marks import KINDS, words
from gazeqwen.toyworld.kitchen.scene import KitchenScene
from gazeqwen.toyworld.kitchen.sight import (
    GRID,
    NO_THING,
    STEP_TOKENS,
    UNCLEAR,
    Sight,
    SightBatches,
    SightHeads,
    sight_loss,
)
from gazeqwen.toyworld.kitchen.things import THINGS
from gazeqwen.toyworld.packing import Packer, packed_forward, prefix_forward, thinned
from gazeqwen.toyworld.pretrain import Muon, environment, option_losses, split_parameters, when_losses
from gazeqwen.toyworld.questions import STEPS
from gazeqwen.utils.files import write_json

GRID_THW = (STEPS, 2 * GRID, 2 * GRID)


@dataclass(frozen=True)
class Lesson:
    """
    What a batch holds: clips, at least and at most so many `tokens` of each temporal step, and questions of some kinds
    about each. Batches of short questions pad less.
    """

    kinds: tuple[tuple[str, float], ...]
    clips: int
    questions: int
    tokens: tuple[int, int] = (STEP_TOKENS, STEP_TOKENS)
    in_words: bool = False  # some batches are of clips that are marked in words; their prompts are long


@dataclass(frozen=True)
class Phase:
    """
    One phase of reading: for how many batches, how fast, and what is asked: each batch draws one of the `lessons`.
    `shown`, of which each batch draws one: "symbols" of other things, "other" things by tokens of other clips, or the
    clips as they are, "own".
    """

    name: str
    steps: int
    lessons: tuple[Lesson, ...]
    decay: bool = False  # the learning rate goes to zero over the second half
    lr: float = 0.5
    shown: tuple[str, ...] = ("symbols", "other")


TEXT_KINDS = {"match": 3.0, "of noun": 1.0, "word which": 0.1}
FIRST_KINDS = {
    "word which": 1.5,
    "word color": 0.7,
    "word category": 0.7,
    "which": 1.5,
    "color": 0.5,
    "category": 0.5,
    "visible": 0.7,
    "alert visible": 0.7,
    "alert now": 0.7,
}
SHORT_KINDS = {
    "which": 1.5,
    "color": 0.9,
    "category": 0.9,
    "alert now": 1.4,
    "alert visible": 1.2,
    "visible": 0.3,
    "match": 0.2,
    "of noun": 0.3,
}
# "visible" can be asked of every clip.
LONG_KINDS = {"never": 1.1, "next": 0.8, "order": 1.8, "longest": 1.5, "not visible": 0.9, "visible": 0.1}
TEXT, FIRST, SHORT, LONG = (tuple(k.items()) for k in (TEXT_KINDS, FIRST_KINDS, SHORT_KINDS, LONG_KINDS))
SIGHT = (
    Sight("sight", 1200, tables=12, pairs=2, most_things=14, most_marks=4, lr=2.0),
    Sight("full tables", 400, tables=6, pairs=4, most_things=20, most_marks=6, decay=True),
    Sight("many marks", 500, tables=10, pairs=2, most_things=16, most_marks=16, heated=0.3, decay=True),
)
LOOK, MATCH = Lesson((), 72, 0, (8, 40)), Lesson(TEXT, 24, 12, (1, 1))
LOOKING_AT_ALL = Lesson((), 24, 0)
QUESTIONS = (Lesson(SHORT, 30, 8, in_words=True), Lesson(LONG, 24, 8, in_words=True))
LAST = (Lesson(SHORT, 24, 6, in_words=True), Lesson(LONG, 18, 6, in_words=True))
ALL_LESSONS = (LOOKING_AT_ALL, MATCH, *QUESTIONS * 3)
PHASES = (
    Phase("looking", 116, (LOOK,)),
    Phase("first words", 185, (LOOK, MATCH, MATCH)),
    Phase("first questions", 352, (LOOK, MATCH, *[Lesson(FIRST, 36, 6, (10, 30))] * 4)),
    Phase("all tokens", 377, (LOOKING_AT_ALL, MATCH, *[Lesson(FIRST, 30, 8)] * 4), lr=0.3),
    Phase("questions", 792, ALL_LESSONS, lr=0.3),
    Phase("pictures", 419, ALL_LESSONS, lr=0.3, shown=("other",)),
    Phase("everything", 802, LAST, decay=True, lr=0.3, shown=("own", "other")),
)
HELD_OUT = 160  # clips
HELD_OUT_BATCHES = 6  # about them, for each lesson of the last phase
LOOKING_WEIGHT, OPTION_WEIGHT = 0.2, 5.0  # of the losses of looking and of options beside those of answers


class NounHead(nn.Module):
    """Which noun's embedding a hidden state points to, or none's: (..., hidden) -> (..., things + 1)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.nothing, self.scale = nn.Parameter(torch.randn(hidden)), nn.Parameter(torch.tensor(12.0))

    def forward(self, states: torch.Tensor, nouns: torch.Tensor) -> torch.Tensor:
        known = F.normalize(torch.cat([nouns, self.nothing[None]]), dim=-1)
        return self.scale * F.normalize(states, dim=-1) @ known.T


class Heads(nn.Module):
    """Auxiliary heads, which only pretraining needs."""

    def __init__(self, hidden: int):
        super().__init__()
        self.before, self.now = NounHead(hidden), NounHead(hidden)
        self.summary = nn.Sequential(nn.RMSNorm(hidden), nn.Linear(hidden, STEPS * (len(THINGS) + 1)))
        self.right = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(2))
        self.facts = nn.ModuleList(nn.Linear(hidden, len(FACTS)) for _ in range(2))
        self.step = nn.ModuleList(nn.Linear(hidden, STEPS + 1) for _ in range(2))
        self.place = nn.ModuleList(nn.Linear(hidden, 2 * GRID) for _ in range(2))


# ------------------------------------------------------------------ batches
class QuestionBatches(Dataset):
    """
    Step number -> questions about clips drawn at random, packed, with embeddings of visual tokens: the clips' own, or
    of what their things are renamed to.
    """

    def __init__(
        self, seed: int, number: int, phase: Phase, config, processor, clips: int, embeddings: Path, symbols: Symbols
    ):
        self.seed, self.number, self.phase, self.config, self.symbols = seed, number, phase, config, symbols
        kinds = np.array([clip_of(seed, number)[1].kind for number in range(clips)])
        self.embeddings = np.load(embeddings, mmap_mode="r")
        self.labels = np.stack([labels_of(seed, number) for number in range(clips)]).astype(np.int64)
        self.heat = np.stack([heat_of(seed, number) for number in range(clips)])
        self.heated = np.broadcast_to((kinds == "heat")[:, None], self.heat.shape)
        self.tokens = TokensByThing(*(part.reshape(-1, *part.shape[2:]) for part in self._shown(slice(None))))
        self.in_words = np.flatnonzero(kinds == "words")
        self.drawn = np.flatnonzero(kinds != "words")
        self.packer = Packer(config, processor, KitchenScene, GRID_THW)

    def _shown(self, numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.labels[numbers], self.heat[numbers], self.heated[numbers]

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, step: int) -> dict:
        rng = np.random.default_rng([self.seed, 94, self.number, step])
        lessons = self.phase.lessons
        lesson = lessons[int(rng.integers(len(lessons)))]
        show = self.phase.shown[int(rng.integers(len(self.phase.shown)))]
        told = lesson.in_words and rng.random() < KINDS["words"] and len(self.in_words) > 0
        numbers, count = (self.in_words, max(1, lesson.clips // 2)) if told else (self.drawn, lesson.clips)
        numbers = numbers[rng.permutation(len(numbers))[:count]]
        clips = [clip_of(self.seed, int(number)) for number in numbers]
        views, notes = [view for view, _ in clips], [words(*clip) for clip in clips]
        labels, heat, heated = self._shown(numbers)
        if show != "own":
            new = np.stack([[*rng.permutation(len(THINGS)), NO_THING, UNCLEAR] for _ in clips])
            views = [renamed(view, names) for view, names in zip(views, new, strict=True)]
            labels[..., 0] = np.take_along_axis(new, labels[..., 0] % new.shape[1], axis=1)
        if lesson.questions:
            drawers = [Drawer(rng, view) for view in views]
            questions = [drawer.question(dict(lesson.kinds)) for drawer in drawers for _ in range(lesson.questions)]
            batch = self.packer.pack(views, questions, rng, notes)
        else:
            batch = self.packer.prefix(views, notes)
        low, high = lesson.tokens
        chosen = chosen_tokens(labels, int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))), rng)
        batch = thinned(batch, torch.from_numpy(chosen), self.config)
        cells = np.broadcast_to(np.arange(VIDEO_TOKENS) % STEP_TOKENS, chosen.shape)[chosen]
        batch |= {
            "token_labels": torch.from_numpy(labels[chosen].reshape(len(clips), -1, 2)),
            "cells": torch.from_numpy(cells.reshape(len(clips), -1)),
            "marks": [mark.kind for _, mark in clips],
            "steps_show": torch.tensor([things_of_steps(view) for view in views]),
        }
        shown = (labels[chosen], heat[chosen], heated[chosen])
        if show == "symbols":
            visual = self.symbols.draw(*shown, rng)
        elif show == "other":
            visual = self.embeddings.reshape(-1, self.embeddings.shape[-1])[self.tokens.draw(*shown, rng)]
        else:
            visual = self.embeddings[numbers][chosen]
        return batch | {"visual": torch.from_numpy(visual).float()}


# ------------------------------------------------------------------ losses
def place_loss(heads: Heads, video_states: list[torch.Tensor], cells: torch.Tensor) -> torch.Tensor:
    """Do video tokens know their column and row? From the second layer on; places in words ask for it."""
    loss = torch.zeros((), device=cells.device)
    for head, state in zip(heads.place, video_states[1:], strict=False):
        guess = head(state)
        for part, truth in ((guess[..., :GRID], cells % GRID), (guess[..., GRID:], cells // GRID)):
            loss = loss + 0.05 * F.cross_entropy(part.flatten(0, 1), truth.flatten())
    return loss


def thing_losses(
    heads: Heads, nouns: torch.Tensor, video_states: list[torch.Tensor], ends: list[torch.Tensor], batch: dict
) -> tuple[torch.Tensor, dict[str, float]]:
    """
    Does each video token know what the temporal step before its own was about, and the prompt's last token before the
    question what each step was? Hidden states of video tokens (C, V, hidden) and of those last tokens (C, hidden):
    the former after the third layer, so that there are layers left to make something of it.
    """
    wanted = batch["steps_show"]  # (C, STEPS)
    of_steps = video_states[2].unflatten(1, (STEPS, -1))[:, 1:]  # (C, STEPS - 1, tokens, hidden)
    before = heads.before(torch.cat([of_steps.flatten(1, 2), ends[2][:, None]], dim=1), nouns)
    tokens = of_steps.shape[2]
    truth = torch.cat([wanted[:, :-1].repeat_interleave(tokens, dim=1), wanted[:, -1:]], dim=1)
    summary = heads.summary(ends[3]).unflatten(1, (STEPS, -1))
    told = (("the step before", before, truth), ("last", before[:, -1], truth[:, -1]), ("summary", summary, wanted))
    in_words = batch["marks"][0] == "words"
    if in_words:  # of these no video token can know
        told = told[1:]
    loss, scores = torch.zeros((), device=wanted.device), {}
    for name, guess, answer in told:
        loss = loss + F.cross_entropy(guess.flatten(0, -2), answer.flatten(), ignore_index=UNCLEAR)
        shown = (answer != NO_THING) & (answer != UNCLEAR)
        if shown.any():
            right = (guess.argmax(-1) == answer)[shown].float().mean().item()
            scores[f"{name}, {'words' if in_words else 'drawn'}"] = right
    return loss, scores


def now_loss(heads: Heads, nouns: torch.Tensor, states: list[torch.Tensor], batch: dict) -> torch.Tensor:
    """Does each token of a question know what the last temporal step is about? After the fourth layer."""
    wanted = batch["steps_show"][:, -1].repeat_interleave(len(states[0]) // len(batch["marks"]))
    guess = heads.now(states[3], nouns)  # (C*Q, L, things)
    return F.cross_entropy(guess.flatten(0, 1), wanted.repeat_interleave(guess.shape[1]), ignore_index=UNCLEAR)


def question_loss(model, heads: Heads, noun_ids: torch.Tensor, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
    """Return a batch's loss and accuracies: the answers, which options are right, what the prompt's tokens know."""
    nouns, asked = model.get_input_embeddings().weight[noun_ids], "tail_ids" in batch
    if asked:
        logits, _, states, video_states, ends = packed_forward(model, batch)
    else:
        _, _, video_states, ends = prefix_forward(model, batch)
    of_text_alone = batch["cells"].shape[1] == STEPS
    loss, right = torch.zeros((), device=nouns.device), {}
    weight = LOOKING_WEIGHT if asked else 1.0
    if not of_text_alone:
        when_loss, when_right = when_losses(heads, video_states, batch["token_labels"][..., 1].bool())
        thing_loss, things_right = thing_losses(heads, nouns, video_states, ends, batch)
        looking = 0.5 * when_loss + thing_loss + place_loss(heads, video_states, batch["cells"])
        loss, right = weight * looking, when_right | things_right
    if not asked:
        return loss, right
    option_loss, scores = option_losses(heads, states, batch, facts_known=not of_text_alone)
    if not of_text_alone:
        loss = loss + now_loss(heads, nouns, states, batch)
    hits = (logits.argmax(-1) == batch["target"]).float().tolist()
    marks = [mark for mark in batch["marks"] for _ in range(len(hits) // len(batch["marks"]))]
    for kind, mark, hit in zip(batch["kinds"], marks, hits, strict=True):
        scores[kind].append(hit)
        if kind == "which":
            scores[f"which, {mark}"].append(hit)
    right |= {kind: float(np.mean(values)) for kind, values in scores.items()}
    return loss + F.cross_entropy(logits, batch["target"]) + OPTION_WEIGHT * option_loss, right


# ------------------------------------------------------------------ training
class Run:
    """
    A half's training under way: the modules (the one that learns, then its helpers), what trains them, and what is
    known of it; kept in `folder`.
    """

    def __init__(self, folder: Path, seed: int, modules: dict[str, nn.Module], workers: int = 1):
        self.folder, self.seed, self.workers = folder, seed, workers
        self.modules = nn.ModuleDict(modules)
        learner, *helpers = self.modules.values()
        matrices, others = split_parameters(learner)
        others += [p for helper in helpers for p in helper.parameters()]
        self.optimizers = (
            Muon(matrices, lr=0.01),
            torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0),
        )
        self.record: dict = {"seed": seed, "phases": {}}
        if (folder / "record.json").exists():
            self._load()

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"module.{name}": value for name, value in self.modules.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer{number}.{index}.{name}": torch.as_tensor(v) for name, v in values.items()}
        return {name: value.contiguous().clone() for name, value in tensors.items()}

    def save(self) -> None:
        """Keep modules, optimizers and record; the record, written last, says that the rest is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"training-{sum(phase['steps'] for phase in self.record['phases'].values())}.safetensors"
        save_file(self._tensors(), self.folder / name)
        write_json(self.folder / "record.json", self.record | {"file": name})
        for file in self.folder.glob("*.safetensors"):
            if file.name != name:
                file.unlink()

    def _load(self) -> None:
        self.record = json.loads((self.folder / "record.json").read_text())
        if self.record["seed"] != self.seed:
            raise ValueError(f"{self.folder}: begun with seed {self.record['seed']}, not {self.seed}")
        tensors = load_file(self.folder / self.record.pop("file"))
        modules = {name.removeprefix("module."): v for name, v in tensors.items() if name.startswith("module.")}
        self.modules.load_state_dict(modules)
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict] = {}
            for name, value in tensors.items():
                if name.startswith(f"optimizer{number}."):
                    _, index, key = name.split(".")
                    state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})

    def train(self, phase: Phase | Sight, batches: Dataset, loss_of, save_every: int = 200) -> None:
        """Go on with a phase to its end. `loss_of(batch)` gives a batch's loss and accuracies."""
        of_phase = self.record["phases"].setdefault(phase.name, {"steps": 0, "wall_s": 0.0, "running_accuracy": {}})
        of_phase["settings"] = asdict(phase)
        first = of_phase["steps"]
        if first >= phase.steps:
            return
        running, started = of_phase["running_accuracy"], time.monotonic() - of_phase["wall_s"]
        everything = list(self.modules.parameters())
        rest = torch.utils.data.Subset(batches, range(first, phase.steps))
        ahead = {"num_workers": self.workers, "prefetch_factor": 4 if self.workers else None}
        loader = DataLoader(rest, batch_size=None, shuffle=False, **ahead)
        self.modules.train()
        bar = tqdm(loader, desc=phase.name, initial=first, total=phase.steps, mininterval=10)
        for step, batch in enumerate(bar, first):
            factor = phase.lr * min(1, (step + 1) / 50)
            if phase.decay:
                factor *= min(1, 2 * (1 - step / phase.steps))
            for optimizer, lr in zip(self.optimizers, (0.01, 2e-3), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = lr * factor
            loss, right = loss_of(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(everything, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            for key, value in right.items():
                running[key] = value if key not in running else 0.97 * running[key] + 0.03 * value
            of_phase.update(steps=step + 1, wall_s=round(time.monotonic() - started, 1))
            if (step + 1) % 50 == 0:
                shown = " ".join(f"{key}={value:.2f}" for key, value in sorted(running.items()))
                tqdm.write(f"{phase.name} {step + 1} {of_phase['wall_s']:.0f}s loss={loss.item():.3f} {shown}")
            if (step + 1) % save_every == 0 or step + 1 == phase.steps:
                self.save()
        self.modules.eval()


def see(out: Path, seed: int, phases: tuple[Sight, ...], model, processor, workers: int) -> None:
    """Let the vision tower learn to see, or go on with it."""
    torch.manual_seed(seed)
    tower, heads = model.model.visual, SightHeads(model.config.vision_config.out_hidden_size).to(model.device)
    run = Run(out / "sight", seed, {"tower": tower, "heads": heads}, workers)
    for number, phase in enumerate(phases):
        batches = SightBatches(seed, number, phase, processor.video_processor)
        run.train(phase, batches, lambda batch: sight_loss(tower, heads, send_to_device(batch, model.device)))


def noun_ids(processor) -> torch.Tensor:
    """Return the token of each thing's noun, as it follows another word: (things,)."""
    return torch.tensor([processor.tokenizer.encode(f" {thing.noun}")[0] for thing in THINGS])


def read(
    out: Path, seed: int, phases: tuple[Phase, ...], clips: int, held_out: int, model, processor, workers: int
) -> Run:
    """Let the decoder learn to read, or go on with it; it is also asked about `held_out` clips of another seed."""
    torch.manual_seed(seed)
    heads = Heads(model.config.text_config.hidden_size).to(model.device)
    nouns, symbols = noun_ids(processor).to(model.device), symbols_of(seed, processor)
    run = Run(out / "reading", seed, {"decoder": model.model.language_model, "heads": heads}, workers)

    def loss_of(batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        return question_loss(model, heads, nouns, send_to_device(batch, model.device))

    for number, phase in enumerate(phases, 1):
        batches = QuestionBatches(seed, number, phase, model.config, processor, clips, out / "embeddings.npy", symbols)
        run.train(phase, batches, loss_of)
        of_phase = run.record["phases"][phase.name]
        if "held_out" not in of_phase:
            lessons = phases[-1].lessons
            asked = Phase("held out", HELD_OUT_BATCHES * len(lessons), lessons, shown=("own",))
            others = QuestionBatches(
                seed + 1, 0, asked, model.config, processor, held_out, out / "held_out.npy", symbols
            )
            of_phase["held_out"] = accuracies(others, loss_of)
            run.save()
            tqdm.write(f"{phase.name} held out {of_phase['held_out']}")
    return run


@torch.no_grad()
def accuracies(batches: Dataset, loss_of) -> dict[str, float]:
    """Return what `loss_of` says of batches, each of its accuracies averaged over those that have it."""
    found: dict[str, list[float]] = {}
    for number in range(len(batches)):
        for name, value in loss_of(batches[number])[1].items():
            found.setdefault(name, []).append(value)
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(found.items())}


@torch.no_grad()
def symbols_of(seed: int, processor) -> Symbols:
    """Return what tokens of a seed's backbone are fitted to: the nouns as they are at the beginning, and a mark."""
    nouns = make_backbone(seed, "kitchen")[0].get_input_embeddings().weight[noun_ids(processor)].numpy()
    mark = torch.randn(nouns.shape[1], generator=torch.Generator().manual_seed(seed)).numpy() * nouns.std(ddof=1)
    return Symbols(nouns, mark)


@torch.no_grad()
def fit_tower(model, processor, seed: int, clips: int = 300, ridge: float = 1e-3) -> float:
    """
    Fit the tower's last linear layer so that a token's embedding is that of the noun of the thing that it shows, zero
    for ground, and where that is marked a vector more; by least squares over clips, in which ground counts a tenth.
    Returns the share of these embeddings' variance that it explains.
    """
    tower, last = model.model.visual, model.model.visual.merger.mlp[-1]
    symbols = symbols_of(seed, processor)
    features, labels, heat = [], [], []
    tower.merger.mlp[-1] = nn.Identity()
    pixels = ClipEmbeddings(seed, clips, processor.video_processor)
    for number in tqdm(range(clips), desc="fitting", mininterval=10):
        features.append(embedded(tower, pixels[number]))
        labels.append(torch.from_numpy(labels_of(seed, number)).long())
        heat.append(torch.from_numpy(heat_of(seed, number)))
    tower.merger.mlp[-1] = last
    things, marked = torch.cat(labels).unbind(-1)
    clear = things != UNCLEAR
    strength = torch.maximum(marked.double(), torch.cat(heat))[clear]
    wanted = torch.from_numpy(symbols.of(things[clear].numpy(), strength.numpy())).double()
    found = F.pad(torch.cat(features)[clear].double(), (0, 1), value=1.0)
    weight = torch.where(things[clear] == NO_THING, 0.1, 1.0)[:, None].double()
    gram = found.T @ (weight * found)
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram))
    fitted = torch.linalg.solve(gram, found.T @ (weight * wanted))
    last.weight.copy_(fitted[:-1].T)
    last.bias.copy_(fitted[-1])
    spread = (weight * (wanted - (weight * wanted).sum(0) / weight.sum()).square()).sum()
    return 1 - float((weight * (found @ fitted - wanted).square()).sum() / spread)


def embedded(tower: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Return the embeddings (STEPS * 64, hidden) of a clip's patches, on the CPU."""
    grid = torch.tensor([GRID_THW], device=tower.device)
    return tower(patches.to(tower.device), grid_thw=grid).pooler_output.cpu()


@torch.no_grad()
def embed_clips(path: Path, seed: int, count: int, tower: nn.Module, images, workers: int) -> None:
    """
    Write to `path` the tower's embeddings of `count` clips, float16 (clips, STEPS * 64, hidden), unless that was done.
    Clips that a stopped run embedded are not embedded again: no embedding is all zeros, as rows not yet written are.
    """
    if path.exists():
        return
    partial = path.with_suffix(".partial.npy")
    shape = (count, VIDEO_TOKENS, tower.config.out_hidden_size)
    begun = partial.exists() and np.load(partial, mmap_mode="r").shape == shape
    array = np.lib.format.open_memmap(partial, mode="r+" if begun else "w+", dtype=np.float16, shape=shape)
    left = [number for number in range(count) if not array[number, -1].any()]
    pixels = torch.utils.data.Subset(ClipEmbeddings(seed, count, images), left)
    loader = DataLoader(pixels, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)
    bar = tqdm(loader, desc="embeddings", unit="clip", initial=count - len(left), total=count, mininterval=10)
    for number, patches in zip(left, bar, strict=True):
        array[number] = embedded(tower, patches).numpy()
    array.flush()
    partial.rename(path)


def pretrain(
    out: Path,
    seed: int,
    clips: int,
    threads: int,
    phases: tuple[Phase, ...] = PHASES,
    sight: tuple[Sight, ...] = SIGHT,
    workers: int = 1,
    held_out: int = HELD_OUT,
    device: str = "cpu",
):
    """Pretrain a backbone from `seed`, or go on with what `out` holds; write it to `out`/backbone, and return it."""
    torch.set_num_threads(threads)
    if device != "cpu":
        torch.set_float32_matmul_precision("high")
    model, processor = make_backbone(seed, "kitchen")
    model.to(device)
    tower, file, named = model.model.visual, out / "tower.safetensors", out / "tower.json"
    if not named.exists():
        see(out, seed, sight, model, processor, workers)
        explained = fit_tower(model, processor, seed)
        save_file({k: v.contiguous().clone() for k, v in tower.state_dict().items()}, file)
        of_sight = json.loads((out / "sight" / "record.json").read_text())["phases"]
        write_json(named, {"phases": of_sight, "variance_explained": round(explained, 4)})
    tower.load_state_dict(load_file(file))
    embed_clips(out / "embeddings.npy", seed, clips, tower, processor.video_processor, 2 * workers)
    embed_clips(out / "held_out.npy", seed + 1, held_out, tower, processor.video_processor, 2 * workers)
    reading = read(out, seed, phases, clips, held_out, model, processor, workers)
    save_backbone(out / "backbone", model, processor)
    seen = json.loads(named.read_text())
    record = {
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        **environment(threads, device),
        "clips": clips,
        **seen,
        "phases": seen["phases"] | reading.record["phases"],
    }
    write_json(out / "backbone" / "pretraining.json", record)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the run: backbone/, sight/, reading/, embeddings.npy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--clips", type=int, default=2_500, help="clips that questions are about, whose embeddings are kept"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw the next batches")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    pretrain(args.out, args.seed, args.clips, args.threads, workers=args.workers, device=args.device)


if __name__ == "__main__":
    main()
