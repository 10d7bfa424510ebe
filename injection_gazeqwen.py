"""What a call hands from the resampler to the decoder's layers: which residual goes to which position."""

from dataclasses import dataclass

import torch
from torch import nn

from .resampler_gazeqwen import ResidualFactors, check_times

# What the model takes beside Qwen2.5-VL's own inputs, one row per video each.
GAZE_INPUTS = (
    "video_encoder_pixel_values",
    "video_encoder_features",
    "scanpaths",
    "scanpath_mask",
    "has_scanpath",
    "step_spans_s",
)


# Attribute of a cache: for which of its prompts, (B,), it was filled with LoRA. It is copied with the cache.
_HAS_GAZE = "gazeqwen_has_gaze"


@dataclass
class PassInjection:
    """
    What the layers of one pass of the decoder add: row `source` (P,) of the residuals (V*T*N rows) to position
    `positions` (P,) of the flattened hidden states (B*L rows). `has_gaze` (B,) says for which samples LoRA is on, None
    without LoRA; `lora_gate` is the same, None where nothing has to be switched off. `starts_cache`: no position comes
    before these.
    """

    positions: torch.Tensor
    source: torch.Tensor
    factors: ResidualFactors | None
    has_gaze: torch.Tensor | None
    lora_gate: torch.Tensor | None
    starts_cache: bool

    def add_to(self, hidden_states: torch.Tensor, index: int) -> torch.Tensor:
        """Return `hidden_states` (B, L, D) plus the residuals of injection layer number `index`, out of place."""
        residual = self.factors.layer(index).flatten(0, 2)[self.source]  # (P, D)
        positions = self.positions.to(hidden_states.device)
        return hidden_states.flatten(0, 1).index_add(0, positions, residual.to(hidden_states)).view_as(hidden_states)

    def mark(self, cache) -> None:
        """Write on the cache that is filled for which prompts LoRA is on, for the calls that go on from it."""
        if cache is not None and self.has_gaze is not None and (self.starts_cache or not hasattr(cache, _HAS_GAZE)):
            setattr(cache, _HAS_GAZE, self.has_gaze)


@dataclass
class GazeInjection:
    """
    What one call adds to the decoder. `rows` (B, L) is the row of the residuals (V*T*N rows, padding included) that
    each position of the call's `input_ids` receives, -1 for none: text, images, and videos without gaze. `has_gaze`
    (B,) bool says for which prompts LoRA is on, None without LoRA. `start` is the position of the first of `input_ids`
    in the cache: 0 unless they are a later chunk of a prompt.
    """

    rows: torch.Tensor
    has_gaze: torch.Tensor | None
    factors: ResidualFactors | None = None
    start: int = 0

    def __post_init__(self):
        self._gated = self.has_gaze is not None and not bool(self.has_gaze.all())

    def at(self, past_length: int, batch_size: int, length: int) -> PassInjection:
        """
        Return what is added to `length` positions after the first `past_length` of the cache, each prompt repeated to
        fill `batch_size` (beams of a prompt are neighbours). Raises ValueError for positions before the call's own.
        """
        if batch_size % len(self.rows):
            raise ValueError(f"got a batch of {batch_size}, expected a multiple of the {len(self.rows)} prompts")
        if past_length < self.start:
            raise ValueError(f"got position {past_length} of the cache, expected the call's own, from {self.start} on")
        repeats, first = batch_size // len(self.rows), past_length - self.start
        rows = self.rows[:, first : first + length]
        rows = nn.functional.pad(rows, (0, length - rows.shape[1]), value=-1).repeat_interleave(repeats, 0).flatten()
        positions = (rows >= 0).nonzero().squeeze(-1)
        has_gaze = None if self.has_gaze is None else self.has_gaze.repeat_interleave(repeats, 0)
        return PassInjection(
            positions,
            rows[positions],
            self.factors if len(positions) else None,
            has_gaze,
            has_gaze if self._gated else None,
            past_length == 0,
        )


def prompts_with_gaze(has_scanpath: torch.Tensor, stated: torch.Tensor | None, cache, past_length: int):
    """
    Return for which prompts LoRA is on, (B,) bool: it is on for all positions of a prompt whose video has a scanpath.
    A call that holds the whole prompt says so itself, `has_scanpath` (B,). A chunk goes on as the first
    `past_length` positions of its `cache` were computed, which the cache remembers; where the chunk with the scanpath
    is not the first, the first must be told: `stated` (B,), the argument `has_gaze` of `forward`.

    Raises ValueError where these contradict each other, or a cache that this model did not fill tells nothing.
    """
    if stated is not None:
        if stated.shape != has_scanpath.shape:
            raise ValueError(f"has_gaze is {tuple(stated.shape)}, expected {tuple(has_scanpath.shape)}, one a prompt")
        stated = stated.to(has_scanpath.device).bool()
    cached = getattr(cache, _HAS_GAZE, None) if past_length else None
    if cached is not None:
        if len(cached) != len(has_scanpath):
            raise ValueError(f"the cache holds {len(cached)} prompts, expected {len(has_scanpath)} as in input_ids")
        cached = cached.to(has_scanpath.device)
        if stated is not None and not torch.equal(stated, cached):
            raise ValueError(f"has_gaze is {stated.tolist()}, expected {cached.tolist()}: so was the cache filled")
    known = stated if stated is not None else cached
    if known is None and past_length:
        raise ValueError(
            f"LoRA is on for prompts with gaze alone, and the cache of {past_length} positions was not filled by this "
            "model's forward or generate: state has_gaze (B,)"
        )
    if known is None:
        return has_scanpath
    if contradictions := (has_scanpath & ~known).nonzero().flatten().tolist():
        raise ValueError(
            f"prompt {contradictions[0]} has a scanpath, expected none: its earlier positions are computed without "
            "gaze, LoRA off; state has_gaze from the first chunk on"
        )
    return known


def rows_of_tokens(grids: torch.Tensor, has_scanpath: torch.Tensor) -> torch.Tensor:
    """
    For each video token of the prompts, in their order, its row among the residuals of the videos with gaze, padded to
    (V', T, N); -1 for tokens of videos without gaze. `grids` (V, 3) = T, H, W, `has_scanpath` (V,) -> (tokens,).
    """
    gazed = grids[has_scanpath]
    step = torch.arange(int(gazed[:, 0].max()), device=grids.device)
    token = torch.arange(int(gazed[:, 1:].prod(-1).max()), device=grids.device)
    is_token = (step < gazed[:, :1])[:, :, None] & (token < gazed[:, 1:].prod(-1, keepdim=True))[:, None]
    with_gaze = torch.repeat_interleave(has_scanpath, grids.prod(-1))  # (tokens,)
    rows = torch.full_like(with_gaze, -1, dtype=torch.long)
    rows[with_gaze] = is_token.flatten().nonzero().squeeze(-1)
    return rows


def check_frames(pixel_values: torch.Tensor, grids: torch.Tensor, frames_per_step: int) -> None:
    """Raise ValueError unless the encoder's frames are as many as the longest of the (V, 3) token grids needs."""
    expected = int(grids[:, 0].max()) * frames_per_step
    if pixel_values.dim() != 5 or pixel_values.shape[1] != expected:
        raise ValueError(
            f"video_encoder_pixel_values are {tuple(pixel_values.shape)}, expected (videos, {expected}, 3, S, S): "
            f"{frames_per_step} frames for each temporal step of the longest video"
        )


def check_gaze_inputs(
    grids: torch.Tensor, feature_dim: int | None, frames_per_step: int, given: dict[str, torch.Tensor | None]
) -> None:
    """
    Raise ValueError unless the gaze inputs fit the (V, 3) token grids, naming what is there and expected. A model
    without a video encoder, `feature_dim` None, needs no features of it.
    """
    videos, steps, tokens = len(grids), int(grids[:, 0].max()), int(grids[:, 1:].prod(-1).max())
    scanpaths, spans = given["scanpaths"], given["step_spans_s"]
    pixels, features = given["video_encoder_pixel_values"], given["video_encoder_features"]
    if spans is None:
        raise ValueError("scanpaths need step_spans_s (videos, T, 2), the seconds that each temporal step spans")
    if features is None and pixels is None and feature_dim is not None:
        raise ValueError("scanpaths need video_encoder_pixel_values or video_encoder_features")
    for name, value in given.items():
        if value is not None and len(value) != videos:
            raise ValueError(f"{name} has {len(value)} rows, expected one for each of the {videos} videos")
    expected = {"scanpaths": (videos, "F", 4), "step_spans_s": (videos, steps, 2)}
    if features is not None and feature_dim is not None:
        expected["video_encoder_features"] = (videos, steps, tokens, feature_dim)
    for name, shape in expected.items():
        got = tuple(given[name].shape)
        if len(got) != len(shape) or any(size not in ("F", found) for size, found in zip(shape, got, strict=True)):
            raise ValueError(f"{name} is {got}, expected {shape} for the token grids {grids.tolist()}")
    if features is None and pixels is not None:
        check_frames(pixels, grids, frames_per_step)
    for name in ("scanpaths", "step_spans_s"):
        if given[name].dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {given[name].dtype}, expected float32: halves cannot hold times")
    is_step = torch.arange(spans.shape[1], device=spans.device) < grids[:, :1].to(spans.device)  # (V, T)
    check_times(scanpaths, spans, is_step)


__all__ = [
    "GAZE_INPUTS",
    "GazeInjection",
    "PassInjection",
    "check_frames",
    "check_gaze_inputs",
    "prompts_with_gaze",
    "rows_of_tokens",
]
