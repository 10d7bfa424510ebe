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


@dataclass
class PassInjection:
    """
    What the layers of one pass of the decoder add: row `source` (P,) of the residuals (V*T*N rows) to position
    `positions` (P,) of the flattened hidden states (B*L rows). `lora_gate` (B,) is 1 for samples with gaze, None if
    all have it.
    """

    positions: torch.Tensor
    source: torch.Tensor
    factors: ResidualFactors | None
    lora_gate: torch.Tensor | None

    def add_to(self, hidden_states: torch.Tensor, index: int) -> torch.Tensor:
        """`hidden_states` (B, L, D) with the residuals of injection layer number `index` added, out of place."""
        residual = self.factors.layer(index).flatten(0, 2)[self.source]  # (P, D)
        positions = self.positions.to(hidden_states.device)
        return hidden_states.flatten(0, 1).index_add(0, positions, residual.to(hidden_states)).view_as(hidden_states)


@dataclass
class GazeInjection:
    """
    What one call adds to the decoder. `rows` (B, L) is the row of the residuals (V*T*N rows, padding included) that
    each position of the prompt receives, -1 for none: text, images, and videos without gaze.
    """

    rows: torch.Tensor
    lora_gate: torch.Tensor | None
    factors: ResidualFactors | None = None

    def at(self, past_length: int, batch_size: int, length: int) -> PassInjection:
        """For `length` positions after the first `past_length`, each sample repeated to fill `batch_size`."""
        if batch_size % len(self.rows):
            raise ValueError(f"got a batch of {batch_size}, expected a multiple of the {len(self.rows)} prompts")
        repeats = batch_size // len(self.rows)
        rows = self.rows[:, past_length : past_length + length]
        rows = nn.functional.pad(rows, (0, length - rows.shape[1]), value=-1).repeat_interleave(repeats, 0).flatten()
        positions = (rows >= 0).nonzero().squeeze(-1)
        gate = None if self.lora_gate is None else self.lora_gate.repeat_interleave(repeats, 0)
        return PassInjection(positions, rows[positions], self.factors if len(positions) else None, gate)


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


__all__ = ["GAZE_INPUTS", "GazeInjection", "PassInjection", "check_frames", "check_gaze_inputs", "rows_of_tokens"]
