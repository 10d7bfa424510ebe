"""Pretrain the kitchen's tiny Qwen2.5-VL on marked pictures: `python -m gazeqwen.toyworld.kitchen.pretrain OUT`.

No scanpath and no gaze question enters. What enters are marks that people put on pictures (`marks.py`), wandering over
the things, and questions about what is marked, in the words of StreamGaze's tasks but with other verbs
(`highlights.py`). Unlike in the first world, nothing is ever added to hidden states, and nothing is done to make the
model hear what might be added.

Phases: (1) the vision tower, with auxiliary heads that are thrown away: which thing a visual token shows, and whether
that is marked; a token's embedding is trained towards the embedding of the thing's noun. (2) The tower's embeddings of
`--clips` clips are kept on disk: it stays as it is from here on. (3) Reading: words for answers, and letters by
matching options. (4) What is marked in a single temporal step, the clip's last; then in one to three of them: shown
six from the beginning, or right after one, it never learned it (docs/log.md). (5) Every kind of question about six
steps, and in every third batch what is marked in the last one to three; the learning rate decays over the second half.
Training goes on where it was stopped, with the same numbers as in one go.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gazeqwen.toyworld.backbone import make_backbone, save_backbone
from gazeqwen.toyworld.highlights import FACTS, Drawer, make_clip
from gazeqwen.toyworld.kitchen.marks import Mark, draw_mark, marked_frame, words
from gazeqwen.toyworld.kitchen.scene import FRAME_PX, TOKEN_PX, KitchenScene, make_scene
from gazeqwen.toyworld.kitchen.things import THINGS
from gazeqwen.toyworld.packing import Packer, packed_forward, patches_of
from gazeqwen.toyworld.pretrain import Muon, environment, option_losses, split_parameters, when_losses
from gazeqwen.toyworld.questions import FRAMES, STEPS, View
from gazeqwen.utils.files import write_json

GRID = FRAME_PX // TOKEN_PX
STEP_TOKENS = GRID * GRID
GRID_THW = (STEPS, 2 * GRID, 2 * GRID)
FACTS_OF_ONE_STEP = 2  # the first of FACTS: what earlier steps tell, a clip of the last ones alone does not
NO_THING, UNCLEAR = len(THINGS), -1


@dataclass(frozen=True)
class Lesson:
    """What a batch holds: clips, of each its last `temporal_steps`, and questions of some kinds about each."""

    kinds: tuple[tuple[str, float], ...]
    clips: int = 8
    questions: int = 8
    temporal_steps: int = STEPS


@dataclass(frozen=True)
class Phase:
    """
    One phase of pretraining: for how many batches, how fast, and what is asked: each batch draws one of the `lessons`.
    Without any, the vision tower learns from `clips` clips a batch.
    """

    name: str
    steps: int
    lessons: tuple[Lesson, ...] = ()
    clips: int = 8
    decay: bool = False  # the learning rate goes to zero over the second half
    lr: float = 1.0


READ_KINDS = {
    "match": 2.0,
    "word which": 1.5,
    "word color": 0.7,
    "word category": 0.7,
    "which": 1.5,
    "visible": 0.7,
    "not visible": 0.7,
    "alert visible": 0.7,
    "alert now": 0.7,
    "of noun": 0.7,
}
NOW_KINDS = {
    "word which": 2.0,
    "which": 2.0,
    "word color": 0.5,
    "color": 0.5,
    "word category": 0.5,
    "category": 0.5,
    "alert now": 1.0,
    "visible": 0.5,
    "of noun": 0.5,
    "match": 0.3,
}
ALL_KINDS = {
    "which": 1.2,
    "color": 0.7,
    "category": 0.7,
    "never": 1.1,
    "next": 0.8,
    "order": 2.0,
    "longest": 1.5,
    "alert now": 1.6,
    "alert visible": 1.4,
    "not visible": 0.9,
    "visible": 0.3,
    "match": 0.15,
    "of noun": 0.3,
}
NOW = tuple(
    Lesson(tuple(NOW_KINDS.items()), clips, questions=4, temporal_steps=steps)
    for steps, clips in ((1, 16), (2, 12), (3, 12))
)
PHASES = (
    Phase("vision", 2500, lr=2.0, decay=True),
    Phase("reading", 1000, (Lesson(tuple(READ_KINDS.items())),)),
    Phase("one step", 1000, NOW[:1]),
    Phase("few steps", 1200, NOW, lr=0.5),
    Phase("everything", 3500, (*[Lesson(tuple(ALL_KINDS.items()))] * 6, *NOW), lr=0.5, decay=True),
)
VISION_STEPS = 4  # temporal steps of a clip that the vision phase is shown


class Heads(nn.Module):
    """Auxiliary heads, which only pretraining needs."""

    def __init__(self, hidden: int):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(hidden))
        self.marked = nn.Linear(hidden, 1)
        self.right = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(2))
        self.facts = nn.ModuleList(nn.Linear(hidden, len(FACTS)) for _ in range(2))
        self.step = nn.ModuleList(nn.Linear(hidden, STEPS + 1) for _ in range(2))
        self.place = nn.ModuleList(nn.Linear(hidden, 2 * GRID) for _ in range(2))


# ------------------------------------------------------------------ clips
@cache
def clip_of(seed: int, number: int) -> tuple[View, Mark]:
    """Return clip `number` of a seed, and how its things are marked: always the same."""
    rng = np.random.default_rng([seed, 91, number])
    return make_clip(rng, make_scene), draw_mark(rng)


def filmed(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Do roughly what a camera and a video file do to frames: brightness, contrast, and noise."""
    gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-12, 12)
    noise = rng.normal(0, rng.uniform(0, 4), size=4096).astype(np.float32)
    spread = np.resize(np.roll(noise, rng.integers(4096)), frames.size).reshape(frames.shape)
    return (frames * np.float32(gain) + np.float32(offset) + spread).clip(0, 255).astype(np.uint8)


def token_labels(view: View, mark: Mark) -> np.ndarray:
    """
    Return, for each visual token (STEPS * 64, 2): the number of the thing that it shows (NO_THING, UNCLEAR), and
    whether that is marked in one of the step's frames, other than in words.
    """
    labels = np.zeros((STEPS, GRID, GRID, 2), np.int64)
    labels[..., 0] = NO_THING
    centres = (np.arange(GRID) + 0.5) * TOKEN_PX
    nearest = np.full((STEPS, GRID, GRID), np.inf)
    for index, thing in enumerate(view.scene.objects):
        places = thing.position_px(view.frame_times_s)
        drawn = np.array([thing.visible(float(s)) for s in view.frame_times_s])
        for step in range(STEPS):
            pair = slice(2 * step, 2 * step + 2)
            if not drawn[pair].any():
                continue
            x, y = places[pair].mean(axis=0)
            away = np.maximum(abs(centres[None, :] - x), abs(centres[:, None] - y))
            shows = away <= max(thing.size_px * 0.42, TOKEN_PX / 2)
            distance = np.hypot(centres[None, :] - x, centres[:, None] - y)
            closer = shows & (distance < nearest[step])
            moved = not drawn[pair].all() or np.ptp(places[pair], axis=0).max() > TOKEN_PX / 2
            labels[step][closer, 0] = UNCLEAR if moved else thing.number
            drawn_on = mark.kind != "words" and any(index in view.marked[k] for k in (2 * step, 2 * step + 1))
            labels[step][closer, 1] = drawn_on
            nearest[step][closer] = distance[closer]
    return labels.reshape(STEPS * STEP_TOKENS, 2)


class VisionBatches(Dataset):
    """Step number -> pixels (clips * VISION_STEPS * 256, 1176) and labels (clips * VISION_STEPS * 64, 3)."""

    def __init__(self, seed: int, phase: Phase, images):
        self.seed, self.phase, self.images = seed, phase, images

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        pixels, labels = [], []
        for clip in range(self.phase.clips):
            rng = np.random.default_rng([self.seed, 92, number, clip])
            view, mark = make_clip(rng, make_scene), draw_mark(rng)
            steps = np.sort(rng.permutation(STEPS)[:VISION_STEPS])
            frames = np.stack([marked_frame(view, mark, 2 * step + k) for step in steps for k in (0, 1)])
            pixels.append(patches_of(filmed(frames, rng), self.images))
            known = np.full((VISION_STEPS, STEP_TOKENS, 1), mark.kind not in ("heat", "words"))
            of_steps = token_labels(view, mark).reshape(STEPS, STEP_TOKENS, 2)[steps]
            labels.append(np.concatenate([of_steps, known], axis=-1).reshape(-1, 3))
        return {"pixels": torch.cat(pixels), "labels": torch.from_numpy(np.concatenate(labels))}


class ClipEmbeddings(Dataset):
    """Clip number -> the pixels of a whole clip, for the tower to embed."""

    def __init__(self, seed: int, count: int, images):
        self.seed, self.count, self.images = seed, count, images

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> torch.Tensor:
        view, mark = clip_of(self.seed, number)
        frames = np.stack([marked_frame(view, mark, k) for k in range(FRAMES)])
        return patches_of(filmed(frames, np.random.default_rng([self.seed, 93, number])), self.images)


class QuestionBatches(Dataset):
    """Step number -> questions about clips drawn at random, packed, with the tower's embeddings of the clips."""

    def __init__(self, seed: int, number: int, phase: Phase, config, processor, embeddings: Path):
        self.seed, self.number, self.phase = seed, number, phase
        self.embeddings = np.load(embeddings, mmap_mode="r")
        self.packers = {
            steps: Packer(config, processor, KitchenScene, (steps, *GRID_THW[1:]), STEPS)
            for steps in {lesson.temporal_steps for lesson in phase.lessons}
        }

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, step: int) -> dict:
        rng = np.random.default_rng([self.seed, 94, self.number, step])
        lessons = self.phase.lessons
        lesson = lessons[int(rng.integers(len(lessons)))]
        numbers = rng.permutation(len(self.embeddings))[: lesson.clips]
        clips = [clip_of(self.seed, int(number)) for number in numbers]
        questions = []
        for view, _ in clips:
            drawer = Drawer(rng, view)
            questions += [drawer.question(dict(lesson.kinds)) for _ in range(lesson.questions)]
        packer = self.packers[lesson.temporal_steps]
        batch = packer.pack([view for view, _ in clips], questions, rng, [words(*clip) for clip in clips])
        tokens = lesson.temporal_steps * STEP_TOKENS
        labels = np.stack([token_labels(*clip) for clip in clips])[:, -tokens:]
        marks = [mark.kind for _, mark in clips for _ in range(lesson.questions)]
        visual = torch.from_numpy(self.embeddings[numbers, -tokens:].astype(np.float32)).flatten(0, 1)
        return batch | {"visual": visual, "token_labels": torch.from_numpy(labels), "marks": marks}


# ------------------------------------------------------------------ losses
def vision_loss(model, heads: Heads, noun_ids: torch.Tensor, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
    """What thing does each visual token show, by the embedding of its noun, and is it marked?"""
    steps = len(batch["labels"]) // STEP_TOKENS
    grid = torch.tensor([[1, 2 * GRID, 2 * GRID]] * steps)
    visual = model.model.visual(batch["pixels"], grid_thw=grid).pooler_output
    thing, marked, known = batch["labels"].unbind(-1)
    clear = thing != UNCLEAR
    nouns = torch.cat([model.get_input_embeddings().weight[noun_ids], heads.nothing[None]])
    scores = visual[clear] @ nouns.T / visual.shape[-1] ** 0.5
    full = thing[clear] != NO_THING
    weight = torch.ones(len(nouns))
    weight[-1] = 0.2
    loss = F.cross_entropy(scores, thing[clear], weight=weight)
    of_mark = clear & (known > 0) & (thing != NO_THING)
    guess = heads.marked(visual)[of_mark, 0]
    loss = loss + F.binary_cross_entropy_with_logits(guess, marked[of_mark].float(), pos_weight=torch.tensor(3.0))
    right, truth = scores.argmax(-1) == thing[clear], marked[of_mark] > 0
    return loss, {
        "thing": right[full].float().mean().item(),
        "nothing": right[~full].float().mean().item(),
        "marked": ((guess > 0) == truth)[truth].float().mean().item() if truth.any() else 1.0,
        "not marked": ((guess > 0) == truth)[~truth].float().mean().item() if not truth.all() else 1.0,
    }


def place_loss(heads: Heads, video_states: list[torch.Tensor]) -> torch.Tensor:
    """Do video tokens know their column and row? From the second layer on: places in words ask for it."""
    cells = torch.arange(STEP_TOKENS).repeat(video_states[0].shape[1] // STEP_TOKENS)
    loss = torch.zeros(())
    for head, state in zip(heads.place, video_states[1:], strict=False):
        guess = head(state)
        for part, truth in ((guess[..., :GRID], cells % GRID), (guess[..., GRID:], cells // GRID)):
            loss = loss + 0.1 * F.cross_entropy(part.flatten(0, 1), truth.repeat(len(guess)))
    return loss


def question_loss(model, heads: Heads, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
    """Return a batch's loss and accuracies: the answers, which options are right, and what the video tokens know."""
    logits, _, states, video_states = packed_forward(model, batch)
    marked = batch["token_labels"][..., 1].bool()
    steps = marked.shape[1] // STEP_TOKENS
    when_loss, right = when_losses(heads, video_states, marked, steps)
    known = len(FACTS) if steps == STEPS else FACTS_OF_ONE_STEP
    option_loss, scores = option_losses(heads, states, batch, known)
    loss = F.cross_entropy(logits, batch["target"]) + when_loss + option_loss + place_loss(heads, video_states)
    hits = (logits.argmax(-1) == batch["target"]).float().tolist()
    for kind, mark, hit in zip(batch["kinds"], batch["marks"], hits, strict=True):
        scores[kind].append(hit)
        if kind == "which":
            scores[f"which, {mark}"].append(hit)
    right |= {kind: float(np.mean(values)) for kind, values in scores.items()}
    return loss, {f"{key} ({steps})": value for key, value in right.items()}


# ------------------------------------------------------------------ training
class Run:
    """A pretraining under way: the model, what trains it, and what is known of it; kept in a folder."""

    def __init__(self, out: Path, seed: int, threads: int, workers: int = 1):
        self.out, self.seed, self.workers = out, seed, workers
        torch.manual_seed(seed)
        self.model, self.processor = make_backbone(seed, "kitchen")
        self.heads = Heads(self.model.config.text_config.hidden_size)
        matrices, others = split_parameters(self.model)
        others = [*self.heads.parameters(), *others]
        self.optimizers = (
            Muon(matrices, lr=0.01),
            torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0),
        )
        self.record: dict = {
            "seed": seed,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **environment(threads),
            "phases": {},
        }
        if (out / "state" / "record.json").exists():
            self._load()

    def _workers(self, most: int) -> dict:
        count = min(most, self.workers)
        return {"num_workers": count, "prefetch_factor": 4 if count else None}

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"heads.{name}": value for name, value in self.heads.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer{number}.{index}.{name}": torch.as_tensor(v) for name, v in values.items()}
        return {name: value.contiguous().clone() for name, value in tensors.items()}

    def save(self) -> None:
        """Keep model, heads, optimizers and record; the record, written last, says that the rest is whole."""
        folder = self.out / "state"
        folder.mkdir(parents=True, exist_ok=True)
        steps = sum(phase["steps"] for phase in self.record["phases"].values())
        names = {"model": f"model-{steps}.safetensors", "training": f"training-{steps}.safetensors"}
        save_file({k: v.contiguous().clone() for k, v in self.model.state_dict().items()}, folder / names["model"])
        save_file(self._tensors(), folder / names["training"])
        write_json(folder / "record.json", self.record | {"files": names})
        for file in folder.glob("*.safetensors"):
            if file.name not in names.values():
                file.unlink()

    def _load(self) -> None:
        folder = self.out / "state"
        self.record = json.loads((folder / "record.json").read_text())
        if self.record["seed"] != self.seed:
            raise ValueError(f"{folder}: begun with seed {self.record['seed']}, not {self.seed}")
        names = self.record.pop("files")
        self.model.load_state_dict(load_file(folder / names["model"]), strict=False)
        self.model.tie_weights()
        tensors = load_file(folder / names["training"])
        heads = {name.removeprefix("heads."): v for name, v in tensors.items() if name.startswith("heads.")}
        self.heads.load_state_dict(heads)
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict] = {}
            for name, value in tensors.items():
                if name.startswith(f"optimizer{number}."):
                    _, index, key = name.split(".")
                    state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})

    def train(self, number: int, phase: Phase, batches: Dataset, loss_of, save_every: int = 200) -> None:
        """Go on with a phase to its end. `loss_of(batch)` gives a batch's loss and accuracies."""
        of_phase = self.record["phases"].setdefault(phase.name, {"steps": 0, "wall_s": 0.0, "running_accuracy": {}})
        of_phase["settings"] = asdict(phase)
        first = of_phase["steps"]
        if first >= phase.steps:
            return
        running, started = of_phase["running_accuracy"], time.monotonic() - of_phase["wall_s"]
        everything = [*self.model.parameters(), *self.heads.parameters()]
        rest = torch.utils.data.Subset(batches, range(first, phase.steps))
        loader = DataLoader(rest, batch_size=None, shuffle=False, **self._workers(1))
        self.model.train()
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
            for p in everything:
                p.grad = None
            for key, value in right.items():
                running[key] = value if key not in running else 0.97 * running[key] + 0.03 * value
            of_phase.update(steps=step + 1, wall_s=round(time.monotonic() - started, 1))
            if (step + 1) % 50 == 0:
                shown = " ".join(f"{key}={value:.2f}" for key, value in sorted(running.items()))
                tqdm.write(f"{phase.name} {step + 1} {of_phase['wall_s']:.0f}s loss={loss.item():.3f} {shown}")
            if (step + 1) % save_every == 0 or step + 1 == phase.steps:
                self.save()
        self.model.eval()

    @torch.no_grad()
    def embed_clips(self, count: int) -> Path:
        """
        Write the tower's embeddings of `count` clips, float16 (clips, STEPS * 64, hidden), unless that was done. Clips
        that a stopped run embedded are not embedded again: no embedding is all zeros, as rows not yet written are.
        """
        path = self.out / "embeddings.npy"
        if path.exists():
            return path
        hidden = self.model.config.text_config.hidden_size
        partial = path.with_suffix(".partial.npy")
        shape = (count, STEPS * STEP_TOKENS, hidden)
        begun = partial.exists() and np.load(partial, mmap_mode="r").shape == shape
        array = np.lib.format.open_memmap(partial, mode="r+" if begun else "w+", dtype=np.float16, shape=shape)
        left = [number for number in range(count) if not array[number, -1].any()]
        pixels = torch.utils.data.Subset(ClipEmbeddings(self.seed, count, self.processor.video_processor), left)
        loader = DataLoader(pixels, batch_size=None, **self._workers(2))
        bar = tqdm(loader, desc="embeddings", unit="clip", initial=count - len(left), total=count, mininterval=10)
        grid, started = torch.tensor([GRID_THW]), time.monotonic()
        for number, patches in zip(left, bar, strict=True):
            array[number] = self.model.model.visual(patches, grid_thw=grid).pooler_output.numpy()
        array.flush()
        partial.rename(path)
        self.record["embeddings"] = {"clips": count, "wall_s": round(time.monotonic() - started, 1)}
        self.save()
        return path


def pretrain(
    out: Path, seed: int, clips: int, threads: int, phases: tuple[Phase, ...] = PHASES, workers: int = 2
) -> Run:
    """Pretrain a backbone from `seed`, or go on with what `out` holds; write it to `out`/backbone."""
    torch.set_num_threads(threads)
    run = Run(out, seed, threads, workers)
    encode = run.processor.tokenizer.encode
    nouns = torch.tensor([encode(f" {thing.noun}")[0] for thing in THINGS])
    vision, *reading = phases
    batches = VisionBatches(seed, vision, run.processor.video_processor)
    run.train(0, vision, batches, lambda batch: vision_loss(run.model, run.heads, nouns, batch))
    embeddings = run.embed_clips(clips)
    for p in run.model.model.visual.parameters():
        p.requires_grad_(False)
    for number, phase in enumerate(reading, 1):
        batches = QuestionBatches(seed, number, phase, run.model.config, run.processor, embeddings)
        run.train(number, phase, batches, lambda batch: question_loss(run.model, run.heads, batch))
    save_backbone(out / "backbone", run.model, run.processor)
    write_json(out / "backbone" / "pretraining.json", run.record)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the run: backbone/, state/, embeddings.npy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--clips", type=int, default=5_000, help="clips whose embeddings are kept for the later phases"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    pretrain(args.out, args.seed, args.clips, args.threads)


if __name__ == "__main__":
    main()
