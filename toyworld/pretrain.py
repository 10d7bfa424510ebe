"""Pretrain a tiny Qwen-VL on gaze-free questions: `python -m gazeqwen.toyworld.pretrain OUT --seed 0`.

No scanpath and no gaze question ever enters. What enters instead is a *highlight* that wanders over the objects: a
ring or a halo drawn into the frames, or (in part of the batches) a learned vector added to the hidden states of the
video tokens at the object, after one to three of the decoder's layers. The questions (`highlights.py`) ask about the
highlighted object in the words of StreamGaze's tasks but with other verbs ("pointing at", "holding", ...). A tenth of
the words of a question are replaced by random words, so that an unseen verb does not matter. The vectors are thrown
away after training; the drawn ring is what the measured accuracies (`measure.py`) use.

Phases: (1) the vision tower, with auxiliary heads; (2) reading: words for answers, and letters by matching options;
(3, 4) every kind of question; (5) the same, where text often may not see the video in the first layers, so that the
model keeps reading video tokens in later layers; the learning rate decays to zero at the end. From (3) on the video
tokens' hidden states are kept small, since a cue added to large ones goes unheard. Auxiliary heads ask at each option
whether it is right, and of a noun whether its object is visible, highlighted now, or ever was: without that last one
"which was never ..." stayed at chance for 1200 steps; with it, it took 200.

A backbone may start from one of another family (`--family qwen3_vl --start toyworld/backbone`): the decoder takes the
other's weights, and in phase 1 the new vision tower learns to give the embeddings of the other's.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoTokenizer

from gazeqwen.backbones_gazeqwen import decoder_of
from gazeqwen.toyworld.backbone import make_backbone, save_backbone
from gazeqwen.toyworld.highlights import FACTS, HIGHLIGHT_KINDS
from gazeqwen.toyworld.measure import measure
from gazeqwen.toyworld.packing import Batches, packed_forward
from gazeqwen.toyworld.questions import STEPS
from gazeqwen.toyworld.world import COLORS, SHAPES


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


ALL_KINDS = {
    "which": 0.9,
    "color": 0.6,
    "shape": 0.7,
    "never": 1.1,
    "next": 0.6,
    "order": 2.2,
    "longest": 1.6,
    "alert now": 1.8,
    "alert visible": 1.8,
    "not visible": 0.9,
    "visible": 0.3,
    "match": 0.15,
    "of noun": 0.1,
}
READ_KINDS = {
    "match": 2.5,
    "word which": 1.5,
    "word color": 1.0,
    "word shape": 1.0,
    "which": 1.0,
    "visible": 0.7,
    "not visible": 0.7,
    "alert visible": 0.7,
    "alert now": 0.7,
    "of noun": 0.5,
}
PHASES = (
    Phase("vision", 220, {}, lr=2.0, decay=True),
    Phase("reading", 600, READ_KINDS, clips=8, vector_share=0.2, quiet=0.005),
    Phase("everything", 1300, ALL_KINDS, clips=8, vector_share=0.45, quiet=0.02, lr=0.8),
    Phase("late reading", 900, ALL_KINDS, clips=8, vector_share=0.45, quiet=0.02, lr=0.8, blind_share=0.6, decay=True),
)
# From another family's backbone: less, since the decoder begins with what it knows.
AFTER_ANOTHER = (
    replace(PHASES[0], steps=150, clips=6),
    replace(PHASES[2], steps=200, clips=6, questions=6),
    replace(PHASES[3], steps=220, clips=6, questions=6),
)


class Heads(nn.Module):
    """What only pretraining needs: auxiliary heads, and the highlight vector of each decoder layer."""

    def __init__(self, hidden: int, layers: int):
        super().__init__()
        self.kind = nn.Linear(hidden, 1 + len(COLORS) + 1 + len(SHAPES))
        self.marked = nn.Linear(hidden, 1)
        self.right = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(2))
        self.facts = nn.ModuleList(nn.Linear(hidden, len(FACTS)) for _ in range(2))
        self.step = nn.ModuleList(nn.Linear(hidden, STEPS + 1) for _ in range(2))
        self.vectors = nn.Parameter(torch.randn(layers - 1, hidden))


def imitation_loss(visual: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Return how far embeddings (N, hidden) are from another tower's, 0 if they are equal, 1 if they know nothing."""
    unexplained = (visual - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()
    return unexplained, {"vision like the other's": 1 - unexplained.item()}


def vision_loss(heads: Heads, visual: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Which colour and shape is in each token's cell, and is it marked? `visual` (N, hidden), `labels` (C, 96, 2)."""
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


def when_losses(heads: Heads, video_states: list[torch.Tensor], marked: torch.Tensor):
    """Do video tokens know which temporal step they are of, and whether they are marked in the last one? From the
    second layer on; without this, what is marked *now* was never told from what was marked before."""
    clips, tokens = marked.shape
    step = torch.arange(STEPS, device=marked.device).repeat_interleave(tokens // STEPS).expand(clips, -1)
    now = (marked & (step == STEPS - 1)).float()
    loss, weight = 0.0, torch.tensor(8.0, device=marked.device)
    for head, state in zip(heads.step, video_states[1:], strict=False):
        guess = head(state)
        loss = loss + 0.3 * F.cross_entropy(guess[..., :STEPS].flatten(0, 1), step.flatten())
        loss = loss + 0.3 * F.binary_cross_entropy_with_logits(guess[..., STEPS], now, pos_weight=weight)
    right = {"when: step": (guess[..., :STEPS].argmax(-1) == step).float().mean().item()}
    if now.any():
        right["when: marked now"] = (guess[..., STEPS] > 0)[now > 0].float().mean().item()
    return loss, right


def option_losses(
    heads: Heads, states: list[torch.Tensor], batch: dict, facts_known: bool = True
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """
    Return the losses of what auxiliary heads say of options and, where the video tells (`facts_known`), of nouns, and,
    per fact, how often that is right.
    """
    device = states[0].device
    loss, weight, scores = torch.zeros((), device=device), torch.tensor(2.0, device=device), defaultdict(list)
    if not len(batch["option_rows"]):
        return loss, scores
    for right_head, facts_head, state in zip(heads.right, heads.facts, states[-3:-1], strict=True):
        guess = right_head(state[batch["option_rows"], batch["option_places"]])[:, 0]
        loss = loss + 0.4 * F.binary_cross_entropy_with_logits(guess, batch["option_right"], pos_weight=weight)
        if facts_known:
            facts, truths = facts_head(state[batch["noun_rows"], batch["noun_places"]]), batch["noun_facts"]
            loss = loss + 0.4 * F.binary_cross_entropy_with_logits(facts, truths, pos_weight=weight)
    if not facts_known:
        return loss, scores
    for name, guess, truth in zip(FACTS, (facts > 0).float().unbind(1), truths.unbind(1), strict=True):
        if 0 < truth.sum() < len(truth):  # mean over both classes
            of_class = [(guess == truth)[truth == v].float().mean().item() for v in (0, 1)]
            scores[f"fact: {name}"].append(np.mean(of_class))
    return loss, scores


def question_loss(model, heads: Heads, batch: dict, phase: Phase, rng: np.random.Generator):
    """Return a batch's loss and accuracies: the answers, which options are right, and what the video tokens show."""
    layers = rng.permutation(len(heads.vectors))[: int(rng.integers(1, 4))]
    highlights = {int(layer): heads.vectors[int(layer)] for layer in layers}
    blind_layers = int(rng.integers(1, 3)) if rng.random() < phase.blind_share else 0
    logits, visual, states, video_states, _ = packed_forward(model, batch, blind_layers, highlights)
    loudness = torch.stack([state.square().mean() for state in video_states]).mean()
    when_loss, when_right = when_losses(heads, video_states, batch["token_labels"][..., 1].bool())
    loss = F.cross_entropy(logits, batch["target"]) + phase.quiet * loudness + when_loss
    option_loss, scores = option_losses(heads, states, batch)
    loss = loss + option_loss
    seen_loss, _ = vision_loss(heads, visual, batch["token_labels"])
    loss = loss + 0.1 * seen_loss
    right = (logits.argmax(-1) == batch["target"]).float()
    vector = (batch["heat"].amax(dim=1) > 0).repeat_interleave(len(right) // len(batch["heat"]))
    for kind, value, by_vector in zip(batch["kinds"], right.tolist(), vector.tolist(), strict=True):
        scores[f"{kind} (vector)" if by_vector and kind.removeprefix("word ") in HIGHLIGHT_KINDS else kind].append(
            value
        )
    scores["loudness"].append(loudness.item())
    return loss, {kind: float(np.mean(values)) for kind, values in scores.items()} | when_right


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices of a model, which `Muon` trains, and its other parameters, embeddings among them."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        matrices.append(p) if p.ndim == 2 and "embed" not in name else others.append(p)
    return matrices, others


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


def train(
    model,
    processor,
    phases,
    seed: int,
    record: dict | None = None,
    on_save=None,
    log_every=50,
    save_every=100,
    tower: nn.Module | None = None,
) -> dict:
    """Pretrain `model` in place. Returns steps and wall seconds of each phase, and the last running accuracies.

    `tower`, if any, is another backbone's vision tower, whose embeddings the phase without questions imitates.
    `record` is what an interrupted call returned: phases that it completed are skipped (heads and optimizers start
    afresh). `on_save(record)` is called every `save_every` steps and at the end of each phase.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 78])
    text = model.config.text_config
    heads = Heads(text.hidden_size, text.num_hidden_layers)
    matrices, others = split_parameters(model)
    others = [*(p for p in heads.parameters() if p is not heads.vectors), *others]
    muon = Muon(matrices, lr=0.01)
    groups = [{"params": others, "lr": 2e-3}, {"params": [heads.vectors], "lr": 1e-2}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    rates = [(group, group["lr"]) for optimizer in (muon, adam) for group in optimizer.param_groups]
    everything = [*model.parameters(), *heads.parameters()]
    record = dict(record or {})
    model.train()
    for number, phase in enumerate(phases):
        if record.get(phase.name, {}).get("complete"):
            continue
        batches = Batches(model.config, processor, seed * 100 + number, phase.clips, phase.questions, phase.kinds)
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
                if tower is not None:
                    with torch.no_grad():
                        wanted = tower(batch["pixels"], grid_thw=batch["grid_thw"]).pooler_output
                    unlike, alike = imitation_loss(visual, wanted)
                    loss, right = loss + 3 * unlike, right | alike
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
            if on_save and (step + 1) % save_every == 0:
                on_save(record)
        record[phase.name]["complete"] = True
        if on_save:
            on_save(record)
    model.eval()
    return record


def environment(threads: int, device: str = "cpu") -> dict:
    """Return what a pretraining's record says of the machine and the versions that it ran with."""
    processor = f"{platform.processor() or platform.machine()} CPU, {threads} thread(s)"
    return {
        "device": processor if device == "cpu" else torch.cuda.get_device_name(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def start_from(model, processor, other, folder: str) -> None:
    """
    Give `model` the weights of another backbone, read from `folder`, that have its shapes; those of a word go with the
    word. What only this family has begins so that it changes little: norms of queries and keys keep their sizes, and
    DeepStack maps are zero.
    """
    theirs = AutoTokenizer.from_pretrained(folder).get_vocab()
    weights = other.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            of_words = "embed_tokens" in name or "lm_head" in name
            if not of_words and name in weights and value.shape == weights[name].shape:
                value.copy_(weights[name])
        embeddings = other.get_input_embeddings().weight
        for word, i in processor.tokenizer.get_vocab().items():
            if word in theirs:
                model.get_input_embeddings().weight[i] = embeddings[theirs[word]]
        for layer in decoder_of(model).layers:
            attention, scale = layer.self_attn, layer.input_layernorm.weight
            for name, projection in (("q_norm", attention.q_proj), ("k_norm", attention.k_proj)):
                if hasattr(attention, name):
                    squares = (projection.weight * scale).square().sum(1) + projection.bias.square()
                    getattr(attention, name).weight.fill_(squares.mean().sqrt())
        for merger in getattr(model.model.visual, "deepstack_merger_list", ()):
            merger.linear_fc2.weight.zero_()
            merger.linear_fc2.bias.zero_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", help="folder to write the backbone into (saved on the way, too)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (another process draws the batches)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of steps of every phase")
    parser.add_argument("--videos", type=int, default=150, help="held-out videos to measure on")
    parser.add_argument("--family", default="qwen2_5_vl", choices=("qwen2_5_vl", "qwen3_vl"), help="of the backbone")
    parser.add_argument(
        "--start",
        metavar="BACKBONE",
        help="take its weights, and leave out vision and reading, or, of another family, imitate its vision tower",
    )
    parser.add_argument("--resume", action="store_true", help="go on after the last phase that OUT completed")
    args = parser.parse_args()
    if args.scale <= 0:
        parser.error("--scale must be positive")
    torch.set_num_threads(args.threads)
    phases = PHASES
    model, processor = make_backbone(args.seed, args.family)
    tower = None
    if args.start:
        other = AutoModelForImageTextToText.from_pretrained(args.start)
        start_from(model, processor, other, args.start)
        if other.config.model_type != args.family:
            tower = other.model.visual
            phases = AFTER_ANOTHER
        else:
            phases = [phase for phase in phases if phase.name not in ("vision", "reading")]
    phases = [replace(phase, steps=max(1, round(phase.steps * args.scale))) for phase in phases]
    record = {}
    if args.resume:
        summary = json.loads((Path(args.out) / "pretraining.json").read_text())
        if summary["seed"] != args.seed:
            parser.error(f"{args.out} was started with --seed {summary['seed']}")
        record = {name: phase | {"resumed_after": True} for name, phase in summary["phases"].items()}
        model = AutoModelForImageTextToText.from_pretrained(args.out)

    def save(record: dict, **more) -> None:
        save_backbone(args.out, model, processor)
        summary = {
            "caveat": "pretrained on a highlight (ring, halo, or a vector added to hidden states) that means 'this "
            "one': numbers on the toy world prove the mechanism and the code, not the gain on a real Qwen",
            "family": args.family,
            "seed": args.seed,
            "started_from": args.start,
            "parameters": sum(p.numel() for p in model.parameters()),
            **environment(args.threads),
            "wall_s": round(sum(phase["wall_s"] for phase in record.values()), 1),
            "phases": record,
            **more,
        }
        (Path(args.out) / "pretraining.json").write_text(json.dumps(summary, indent=2) + "\n")

    record = train(model, processor, phases, args.seed, record, save, tower=tower)
    accuracy = measure(model, processor, args.seed, args.videos)
    save(record, accuracy=accuracy)
    print(json.dumps(accuracy, indent=2))


if __name__ == "__main__":
    main()
