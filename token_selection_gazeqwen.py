"""
Which visual tokens of each temporal step stay in the prompt: a share or a number of them, by gaze or by another rule.

Each step's choice depends on that step alone (for `similarity` also on the step before), so that it is causal, and the
same for a clip and for a stream. T steps of H x W visual tokens (N = H * W, raster order), F fixations.
"""

from functools import cache

import numpy as np
import torch

from .resampler_gazeqwen import fixation_shares
from .scanpath_gazeqwen import is_number

KEEP_RULES = ("gaze", "uniform", "random", "centre", "similarity")

_EVEN_SHARE = 0.25  # of what is kept by gaze: spread evenly, so that the periphery is not lost
_GOLDEN = 0.6180339887498949


def check_keep_settings(keep_tokens: float | None, keep_by: str, prefix: str = "") -> None:
    """Raise ValueError naming a setting, with a `prefix` before its name, its value and what was expected."""
    if keep_by not in KEEP_RULES:
        raise ValueError(f"{prefix}keep_by: got {keep_by!r}, expected one of {KEEP_RULES}")
    if keep_tokens is None:
        return
    if not is_number(keep_tokens) or not (
        0 < keep_tokens <= 1 or (keep_tokens > 1 and keep_tokens == int(keep_tokens))
    ):
        raise ValueError(
            f"{prefix}keep_tokens: got {keep_tokens!r}, expected a share of a step's visual tokens, above 0 and up to "
            "1, or a whole number of them above 1"
        )


def count_kept(keep_tokens: float | None, tokens: int) -> int:
    """
    Return how many of a step's visual tokens stay: of a share, up to 1, so many, rounded up; None: all. Raises
    ValueError for a number larger than there are.
    """
    if keep_tokens is None:
        return tokens
    if keep_tokens <= 1:
        return int(np.ceil(keep_tokens * tokens - 1e-9))
    if keep_tokens > tokens:
        raise ValueError(f"keep_tokens: got {keep_tokens}, expected at most {tokens}, the visual tokens of a step")
    return int(keep_tokens)


def choose_tokens(
    keep_tokens: float | None,
    keep_by: str,
    grid: tuple[int, int, int],
    step_spans_s: torch.Tensor,
    scanpath: torch.Tensor | None = None,
    changes: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Return which visual tokens stay, bool (T, N), equally many of each step.

    Args:
        keep_by: `gaze`: those nearest to the step's fixations, to each in turn, and a fourth spread evenly (all, where
            there is no fixation);
            `uniform`: spread evenly, other ones in each step; `random`: drawn, from the step's time; `centre`: those
            in the middle of the frame; `similarity`: those that changed most since the step before.
        grid: T, H, W.
        step_spans_s: (T, 2) seconds of the video.
        scanpath: (F, 4), for `gaze`; without one all tokens stay.
        changes: (T, N), for `similarity` (`token_changes`).
    """
    steps, height, width = grid
    tokens = height * width
    count = count_kept(keep_tokens, tokens)
    if count == tokens or (keep_by == "gaze" and scanpath is None):
        return torch.ones(steps, tokens, dtype=torch.bool)
    begin_ms = (step_spans_s[:, 0].double() * 1000).round().long().numpy()
    even = _even_ranks(height, width, begin_ms)  # (T, N)
    if keep_by == "uniform":
        scores = -even.astype(np.float64)
    elif keep_by == "random":
        scores = _hashed(begin_ms[:, None] * tokens + np.arange(tokens))
    elif keep_by == "centre":
        rows, columns = np.divmod(np.arange(tokens), width)
        away = (rows + 0.5 - height / 2) ** 2 + (columns + 0.5 - width / 2) ** 2
        scores = np.broadcast_to(-away, (steps, tokens))
    elif keep_by == "similarity":
        scores = changes.double().numpy()
    else:
        spread = even < round(_EVEN_SHARE * count)
        scores = np.where(spread, np.inf, -fixation_ranks(scanpath, step_spans_s, height, width).numpy())
    order = np.lexsort((even, -scores), axis=-1)  # of equal scores those that are spread evenly
    kept = np.zeros((steps, tokens), bool)
    np.put_along_axis(kept, order[:, :count], True, axis=-1)
    return torch.from_numpy(kept)


def fixation_ranks(scanpath: torch.Tensor | None, step_spans_s: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Return the rank (T, N) of each step's visual tokens by how near they are to its fixations, 0 the first to stay:
    the nearest token of each fixation, then the second nearest of each, and so on. Of fixations that are equal in this
    the step's latest is first, then those that cover more of it. Tokens that are equal in all of this, as all are in a
    step without a fixation, are ranked so that every beginning is spread evenly.

    Args:
        scanpath: (F, 4), or None. step_spans_s: (T, 2) seconds of the video.
    """
    begin_ms = (step_spans_s[:, 0].double() * 1000).round().long().numpy()
    even = _even_ranks(height, width, begin_ms)
    scores = np.zeros(even.shape) if scanpath is None else _near_fixations(scanpath, step_spans_s, height, width)
    return torch.from_numpy(np.lexsort((even, -scores), axis=-1).argsort(axis=-1))


def token_changes(pixel_values: torch.Tensor, steps: int, tokens: int) -> torch.Tensor:
    """
    Return how much the pixels of each visual token differ from those of the step before, (T, N): means of absolute
    differences, infinite in the first step. `pixel_values` (patches, values): as a video processor makes them, step
    after step, and in a step token after token.
    """
    by_token = pixel_values.reshape(steps, tokens, -1)
    changes = torch.full((steps, tokens), torch.inf)
    changes[1:] = by_token.diff(dim=0).abs().mean(-1)
    return changes


def _near_fixations(scanpath: torch.Tensor, step_spans_s: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Return scores (T, N), the highest of what is first in `fixation_ranks`; equal, where a step has no fixation."""
    shares = fixation_shares(scanpath.double(), step_spans_s.double()).numpy()  # (T, F)
    count = shares.shape[1]
    if not count:
        return np.zeros((len(shares), height * width))
    rows, columns = np.divmod(np.arange(height * width), width)
    x, y, middle_s, duration_s = scanpath.double().numpy().T[:, :, None]
    away = (columns + 0.5 - x * width) ** 2 + (rows + 0.5 - y * height) ** 2  # (F, N)
    nearness = away.argsort(axis=1, kind="stable").argsort(axis=1)  # 0: the fixation's nearest token
    active = shares > 0
    ends = np.where(active, (middle_s + duration_s / 2)[:, 0], -np.inf)
    latest = np.arange(count) == ends.argmax(axis=1)[:, None]
    turn = np.lexsort((-shares, ~latest), axis=-1).argsort(axis=-1)  # (T, F)
    places = nearness * count + turn[:, :, None]  # (T, F, N)
    return -np.where(active[:, :, None], places, places.max() + 1).min(axis=1).astype(np.float64)


def _even_ranks(height: int, width: int, begin_ms: np.ndarray) -> np.ndarray:
    """
    Return ranks (T, N) of which every beginning is spread evenly over the grid; with each step the pattern moves on,
    around the grid, so that in time every place has its turn.
    """
    order = _spread_ranks(height, width)
    turn = begin_ms / 1000 * _GOLDEN
    down, across = ((turn * factor % 1 * size).astype(int) for factor, size in ((1, height), (np.sqrt(2), width)))
    rows, columns = np.divmod(np.arange(height * width), width)
    moved = (rows + down[:, None]) % height * width + (columns + across[:, None]) % width
    return order[moved]


@cache
def _spread_ranks(height: int, width: int) -> np.ndarray:
    """Return the rank (N,) of each cell where each next one is farthest from those before, around the grid's edges."""
    rows, columns = np.divmod(np.arange(height * width), width)
    nearest, ranks, cell = np.full(height * width, np.inf), np.zeros(height * width, int), 0
    for rank in range(height * width):
        ranks[cell] = rank
        down, across = abs(rows - rows[cell]), abs(columns - columns[cell])
        away = np.minimum(down, height - down) ** 2 + np.minimum(across, width - across) ** 2
        nearest = np.minimum(nearest, away)
        nearest[cell] = -1
        cell = int(nearest.argmax())
    return ranks


def _hashed(numbers: np.ndarray) -> np.ndarray:
    """Return a pseudo-random value from 0 to 1 for each whole number (splitmix64)."""
    with np.errstate(over="ignore"):
        x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x.astype(np.float64) / 2.0**64


__all__ = ["KEEP_RULES", "check_keep_settings", "choose_tokens", "count_kept", "fixation_ranks", "token_changes"]
