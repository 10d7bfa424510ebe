"""Run temporal steps on a model: the frozen networks on their pixels, and the decoder on the ends of caches."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.streaming.context import Context, Place, Tokens, merged, split_last
from gazeqwen.token_selection_gazeqwen import fixation_ranks


@dataclass(frozen=True)
class Step:
    """
    Hold a temporal step as what `collate` takes, `processed`, and the fixations that it sees, None without gaze.
    `begin_s`, `end_s`: its span, the end as far as it has come; `windows`: the encoder's frames of the steps of its
    window, its own the last.
    """

    number: int
    begin_s: float
    end_s: float
    processed: dict[str, torch.Tensor]
    windows: tuple[torch.Tensor, ...]
    scanpath: Scanpath | None = None


@dataclass(frozen=True)
class PlacedStep:
    """Hold a step, its tokens as the next ones of a context, and the places where it begins and where it ends."""

    step: Step
    tokens: Tokens
    begin: Place
    end: Place


def encode_steps(model, steps: Sequence[Step]) -> None:
    """Put what the frozen networks make of steps in the place of their pixels, together for all of them."""
    waiting = [step.processed for step in steps if "video_embeds" not in step.processed]
    if waiting:
        grids = torch.stack([processed["video_grid_thw"] for processed in waiting]).to(model.device)
        pixels = torch.cat([processed.pop("pixel_values_videos") for processed in waiting]).to(model.device)
        embeds = model.embed_video(pixels, grids).split(model.token_grids(grids).prod(-1).tolist())
        for processed, own in zip(waiting, embeds, strict=True):
            processed["video_embeds"] = own
    groups = defaultdict(list)
    for step in steps:
        if step.windows and "video_encoder_features" not in step.processed:
            groups[len(step.windows), tuple(step.processed["video_grid_thw"].tolist())].append(step)
    for group in groups.values():
        windows = torch.stack([torch.cat(step.windows) for step in group]).to(model.device)
        features = model.encode_last_step(windows, group[0].processed["video_grid_thw"])
        for step, own in zip(group, features, strict=True):
            step.processed["video_encoder_features"] = own


def place_steps(processor, context: Context, steps: Sequence[Step]) -> list[PlacedStep]:
    """Return steps as the next tokens of a context, one after the other."""
    placed, place = [], context.place
    for step in steps:
        processed = step.processed
        kept = processor.kept_tokens(processed, step.scanpath)
        ids = processor.tokenizer.encode(
            processor.video_text(processed, kept), add_special_tokens=False, return_tensors="pt"
        )
        grid, seconds = processed["video_grid_thw"], float(processed["second_per_grid_ts"])
        height, width = _token_grid(context, step)
        scanpath = None if step.scanpath is None else torch.from_numpy(step.scanpath.table)
        ranks = fixation_ranks(scanpath, processed["step_spans_s"], height, width)[0].reshape(height, width)
        tokens, end = context.step_tokens(place, ids[0], grid, seconds, step.number, ranks, kept)
        placed.append(PlacedStep(step, tokens, place, end))
        place = end
    return placed


def append_steps(processor, rows: Sequence[tuple[Context, Sequence[PlacedStep]]]) -> None:
    """Put encoded steps on the ends of several contexts, at once for those that take equally many tokens."""
    groups = defaultdict(list)
    for context, placed in rows:
        tokens = sum(len(each.tokens) for each in placed)
        groups[placed[0].step.scanpath is None, tokens].append((context, placed))
    for group in groups.values():
        _append_group(processor, group)


def _append_group(processor, rows: list[tuple[Context, Sequence[PlacedStep]]]) -> None:
    """Put steps on the ends of contexts, of equally many tokens for each, all with gaze or all without."""
    contexts, steps = [context for context, _ in rows], [each.step for _, placed in rows for each in placed]
    model, has_gaze = contexts[0].model, steps[0].scanpath is not None
    inputs = processor.collate(
        [processor.video_token * len(placed) for _, placed in rows],
        [step.processed for step in steps],
        [step.scanpath for step in steps] if has_gaze else None,
    )
    length = inputs["input_ids"].shape[1]
    cache, mask = merged(contexts)
    del inputs["mm_token_type_ids"]
    if len(rows) == 1:
        del inputs["attention_mask"]
    else:
        inputs["attention_mask"] = torch.cat([mask, inputs["attention_mask"]], dim=1)
    positions = [torch.cat([each.tokens.positions for each in placed], dim=1) for _, placed in rows]
    inputs["position_ids"] = torch.stack(positions, dim=1)
    if model.has_lora:
        inputs["has_gaze"] = torch.full((len(rows),), has_gaze)
    model(**inputs.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    split_last(cache, contexts, length)
    for context, placed in rows:
        for each in placed:
            context.extend(each.tokens, each.end)


def note_fixated_places(context: Context, placed: Sequence[PlacedStep]) -> None:
    """Note which places of a context's visual tokens are looked at in steps that have entered it."""
    for step in (each.step for each in placed if each.step.scanpath is not None):
        seen = step.scanpath.clip(step.begin_s, step.end_s).table
        context.look_again(step.number, torch.from_numpy(seen[:, :2]), *_token_grid(context, step))


def _token_grid(context: Context, step: Step) -> list[int]:
    """Return the height and width of a step's visual tokens."""
    return context.model.token_grids(step.processed["video_grid_thw"][None])[0, 1:].tolist()


__all__ = ["PlacedStep", "Step", "append_steps", "encode_steps", "note_fixated_places", "place_steps"]
