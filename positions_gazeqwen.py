"""Rotary positions of prompts with images and videos, as the Qwen-VL families were trained."""

import torch

# "qwen": as the published weights were trained; "transformers": whatever the installed library computes.
POSITION_CONVENTIONS = ("qwen", "transformers")

TEXT, IMAGE, VIDEO = 0, 1, 2  # token types

# Attribute of a cache: the position that follows each of its tokens, (B, L). It is copied with the cache.
_NEXT_POSITIONS = "gazeqwen_next_positions"


def rope_index(
    token_types: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_grids: torch.Tensor | None = None,
    video_grids: torch.Tensor | None = None,
    seconds_per_step: torch.Tensor | None = None,
    tokens_per_second: float | None = None,
    kept_tokens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the positions of all tokens on the axes time, row and column, (3, B, L), and each prompt's delta (B, 1): by
    how much the first position after a prompt exceeds its length, padding included.

    A text token takes the next position p on all axes. A token of step i of a video takes p + floor(i *
    seconds_per_step * tokens_per_second), p + row and p + column; in images, and without `tokens_per_second`
    (Qwen2-VL), steps are one apart. After each block the next position is the largest one so far, over all axes, plus
    one (`rope2d.py` of Qwen's fine-tuning code, transformers up to 5.2).

    Args:
        token_types: (B, L): 0 for text, 1 for images, 2 for videos.
        attention_mask: (B, L), 0 for padding, whose position is 0; None: there is none.
        image_grids, video_grids: (images, 3) and (V, 3) sizes T, H, W in visual tokens, in the order of the prompts.
        seconds_per_step: (V,), default 1.
        kept_tokens: (V, T, N) bool, the tokens of the videos that the prompts hold, at least one of each video;
            default all. They have the positions that they have among all, and so has what comes after a video.

    Raises ValueError where the vision tokens of the prompts are not those of the grids.
    """
    device = token_types.device
    mask = torch.ones_like(token_types, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    types = token_types[mask].long()  # (N,), prompt after prompt, without padding
    prompts = mask.nonzero()[:, 0]
    no_grids = types.new_zeros(0, 3)
    images, videos = (no_grids if part is None else part.to(device, torch.long) for part in (image_grids, video_grids))
    # The last row stands for text, whose grid is -1.
    grids = torch.cat([images, videos, torch.ones(1, 3, dtype=torch.long, device=device)])
    grid_of_token = torch.full_like(types, -1)
    counts = grids.prod(-1)  # of tokens in the prompts
    if kept_tokens is not None:
        kept_tokens = kept_tokens.to(device) & tokens_of_grids(videos, kept_tokens.shape)
        counts[len(images) : -1] = kept_tokens.flatten(1).sum(-1)
    grid_of_token[types == IMAGE] = _grid_of_tokens(types == IMAGE, counts[: len(images)], "image")
    grid_of_token[types == VIDEO] = _grid_of_tokens(types == VIDEO, counts[len(images) : -1], "video") + len(images)

    # Blocks: text between images and videos, and each of these.
    changes = (grid_of_token.diff() != 0) | (prompts.diff() != 0)
    block_of_token = torch.cat([changes.new_zeros(1), changes]).cumsum(0)[: len(types)]
    sizes = block_of_token.bincount()
    first = sizes.cumsum(0) - sizes  # token of each block
    grid_of_block, prompt_of_block = grid_of_token[first], prompts[first]
    is_vision = grid_of_block >= 0
    if is_vision.sum() < len(grids) - 1 or (sizes != counts[grid_of_block])[is_vision].any():
        raise ValueError(
            f"the tokens of an image or video are not in a row in one prompt, grids {grids[:-1].tolist()}"
        )

    within = torch.arange(len(types), device=device) - first[block_of_token]
    is_video = types == VIDEO
    if kept_tokens is not None:  # the token's number among all of its video
        video, step, token = kept_tokens.nonzero().unbind(-1)
        within = within.masked_scatter(is_video, step * videos[video, 1:].prod(-1) + token)
    _, height, width = grids[grid_of_token].unbind(-1)  # of text: of any grid
    step, in_step = within // (height * width), within % (height * width)
    time, last_times = step, grids[:, 0] - 1
    if tokens_per_second is not None:
        seconds = torch.ones(len(videos)) if seconds_per_step is None else seconds_per_step
        seconds = seconds.to(device)
        seconds_of_token = seconds[grid_of_token[is_video] - len(images)]
        time = step.masked_scatter(is_video, time_offsets(step[is_video], seconds_of_token, tokens_per_second))
        last_times = last_times.clone()
        last_times[len(images) : -1] = time_offsets(videos[:, 0] - 1, seconds, tokens_per_second)
    vision = torch.stack([time, in_step // width, in_step % width])
    offsets = torch.where(types == TEXT, within, vision)  # (3, N)

    of_grids = torch.stack([last_times, *(grids[:, 1:] - 1).unbind(-1)]).amax(0) + 1
    extents = torch.where(is_vision, of_grids[grid_of_block], sizes)
    starts = extents.cumsum(0) - extents
    first_block = torch.full((len(token_types),), len(starts), device=device)
    first_block = first_block.scatter_reduce(0, prompt_of_block, torch.arange(len(starts), device=device), "amin")
    starts = starts - starts[first_block[prompt_of_block]]
    positions = torch.zeros(3, *token_types.shape, dtype=torch.long, device=device)
    positions[:, mask] = offsets + starts[block_of_token]
    deltas = torch.zeros(len(token_types), dtype=torch.long, device=device)
    deltas = deltas.index_add(0, prompt_of_block, extents) - token_types.shape[1]
    return positions, deltas[:, None]


def time_offsets(steps: torch.Tensor, seconds_per_step: torch.Tensor, tokens_per_second: float) -> torch.Tensor:
    """
    Return by how much the positions in time of a video's temporal steps, by number, exceed that of its first: products
    of float32, as trained, whose floor is not that of float64.
    """
    return (steps.float() * seconds_per_step.float() * tokens_per_second).long()


def padded_shape(grids: torch.Tensor) -> tuple[int, int, int]:
    """Return V, T, N of tensors of the (V, 3) grids T, H, W: the most temporal steps, the most tokens of a step."""
    return len(grids), int(grids[:, 0].max()), int(grids[:, 1:].prod(-1).max())


def tokens_of_grids(grids: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return which rows of a padded `shape` (V, T, N) are tokens of the (V, 3) grids T, H, W, bool."""
    step = torch.arange(shape[1], device=grids.device)
    token = torch.arange(shape[2], device=grids.device)
    return (step < grids[:, :1])[:, :, None] & (token < grids[:, 1:].prod(-1, keepdim=True))[:, None]


def _grid_of_tokens(is_kind: torch.Tensor, counts: torch.Tensor, kind: str) -> torch.Tensor:
    """
    Return the index of the grid that each token of a kind belongs to, of which there are `counts`. Raises ValueError
    for another number.
    """
    if int(is_kind.sum()) != int(counts.sum()):
        raise ValueError(
            f"the prompts hold {int(is_kind.sum())} {kind} tokens, the grids stand for {int(counts.sum())}"
        )
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def remember_positions(cache, position_ids: torch.Tensor, start: int) -> None:
    """
    Write on a cache, if there is one, which position follows each of its tokens (B, L): the largest up to it, over all
    axes, plus one. `position_ids` (B, L) or (axes, B, L) are those of the tokens from `start` on.
    """
    if cache is None:
        return
    if position_ids.dim() == 3:
        position_ids = position_ids[-3:].amax(0)  # without the row of text positions that transformers may add
    following = position_ids.cummax(-1).values + 1
    if start:
        earlier = getattr(cache, _NEXT_POSITIONS, None)
        if earlier is None:
            return
        following = torch.cat([_extended(earlier, start).to(following), following], dim=1)
    setattr(cache, _NEXT_POSITIONS, following)


def next_positions(cache, length: int, batch_size: int) -> torch.Tensor:
    """
    Return the position (B,) that follows the first `length` tokens of a cache. Raises ValueError where this model did
    not fill the cache, or for another number of prompts.
    """
    following = getattr(cache, _NEXT_POSITIONS, None)
    if following is None:
        raise ValueError(
            f"the cache of {length} positions was not filled by this model's forward or generate: state position_ids"
        )
    if batch_size % len(following):
        raise ValueError(
            f"got a batch of {batch_size}, expected a multiple of the {len(following)} prompts in the cache"
        )
    return _extended(following, length)[:, -1].repeat_interleave(batch_size // len(following))


def _extended(following: torch.Tensor, length: int) -> torch.Tensor:
    """Return the first `length` columns of (B, L); those that lack are of generated text, one more each."""
    lacking = torch.arange(1, max(0, length - following.shape[1]) + 1, device=following.device)
    return torch.cat([following[:, :length], following[:, -1:] + lacking], dim=1)


__all__ = [
    "IMAGE",
    "POSITION_CONVENTIONS",
    "TEXT",
    "VIDEO",
    "next_positions",
    "padded_shape",
    "remember_positions",
    "rope_index",
    "time_offsets",
    "tokens_of_grids",
]
