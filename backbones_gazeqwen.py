"""The families of base models that can be wrapped: everything that one of them does in its own way, in one table."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)

from .positions_gazeqwen import IMAGE, VIDEO, rope_index


@dataclass(frozen=True)
class Family:
    """
    What tells a family of base models from the others. All have decoder layers with an attention `self_attn` at
    `model.language_model.layers`, a vision tower at `model.visual`, `video_token_id` and `image_token_id`.

    Args:
        name: as people write it.
        model_class: of transformers.
        ids: on the Hub, of the sizes that there are.
        pixels_per_token: side of the square of pixels that becomes one visual token.
        seconds_in_positions: a video token's rotary position in time counts seconds, not steps.
        seconds_in_text: each temporal step is a block of its own, behind a text that tells its seconds.
        has_deepstack: the vision tower gives further maps, which are added to the video tokens' hidden states after
            the first decoder layers.
    """

    name: str
    model_class: type[PreTrainedModel]
    ids: tuple[str, ...]
    pixels_per_token: int
    seconds_in_positions: bool = False
    seconds_in_text: bool = False
    has_deepstack: bool = False


def _ids(name: str, *sizes: str) -> tuple[str, ...]:
    return tuple(f"Qwen/{name}-{size}-Instruct" for size in sizes)


FAMILIES = {
    "qwen2_vl": Family(
        "Qwen2-VL", Qwen2VLForConditionalGeneration, _ids("Qwen2-VL", "2B", "7B", "72B"), pixels_per_token=28
    ),
    "qwen2_5_vl": Family(
        "Qwen2.5-VL",
        Qwen2_5_VLForConditionalGeneration,
        _ids("Qwen2.5-VL", "3B", "7B", "32B", "72B"),
        pixels_per_token=28,
        seconds_in_positions=True,
    ),
    "qwen3_vl": Family(
        "Qwen3-VL",
        Qwen3VLForConditionalGeneration,
        _ids("Qwen3-VL", "2B", "4B", "8B", "32B"),
        pixels_per_token=32,
        seconds_in_text=True,
        has_deepstack=True,
    ),
    "qwen3_vl_moe": Family(
        "Qwen3-VL MoE",
        Qwen3VLMoeForConditionalGeneration,
        _ids("Qwen3-VL", "30B-A3B", "235B-A22B"),
        pixels_per_token=32,
        seconds_in_text=True,
        has_deepstack=True,
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a base model's config. Raises ValueError for a model that cannot be wrapped, saying why."""
    family = FAMILIES.get(config.model_type)
    if family is not None:
        return family
    expected = f"expected one of {sorted(FAMILIES)}"
    layers = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if linear := sorted(kind for kind in layers if "linear" in kind):
        raise ValueError(
            f"base model: got model_type {config.model_type!r} with layers of {linear[0]}, {expected}: such a layer "
            "keeps one state instead of its tokens' keys and values, so that a cache cannot be cropped after a "
            "question, and continuing one does not equal the whole prompt"
        )
    raise ValueError(f"base model: got model_type {config.model_type!r}, {expected}")


def decoder_of(backbone: nn.Module) -> nn.Module:
    """Return the decoder of a base model, whose `layers` the hooks sit on."""
    return backbone.model.language_model


def token_grids(config: PreTrainedConfig, grid_thw: torch.Tensor) -> torch.Tensor:
    """Return (V, 3) T, H, W of visual tokens from a base model's (V, 3) grids of patches."""
    merge = config.vision_config.spatial_merge_size
    return grid_thw // torch.tensor([1, merge, merge], device=grid_thw.device)


def token_types(config: PreTrainedConfig, input_ids: torch.Tensor) -> torch.Tensor:
    """Return (B, L) which of the prompts' tokens are of text (0), images (1) and videos (2)."""
    return IMAGE * (input_ids == config.image_token_id) + VIDEO * (input_ids == config.video_token_id)


def trained_positions(
    config: PreTrainedConfig,
    types: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
    second_per_grid_ts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return positions (3, B, L) and deltas (B, 1), see `rope_index`, of prompts with token types (B, L), as the base
    model with this config was trained; the rest are its processor's outputs.
    """
    family = family_of(config)
    images, videos = (None if grid is None else token_grids(config, grid) for grid in (image_grid_thw, video_grid_thw))
    if videos is not None and family.seconds_in_text:
        steps = videos[:, 0]
        videos = torch.cat([torch.ones_like(steps)[:, None], videos[:, 1:]], dim=1).repeat_interleave(steps, 0)
    tokens_per_second = config.vision_config.tokens_per_second if family.seconds_in_positions else None
    seconds = second_per_grid_ts if family.seconds_in_positions else None
    return rope_index(types, attention_mask, images, videos, seconds, tokens_per_second)


__all__ = [
    "FAMILIES",
    "Family",
    "decoder_of",
    "family_of",
    "token_grids",
    "token_types",
    "trained_positions",
]
