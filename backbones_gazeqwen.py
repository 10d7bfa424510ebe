"""The families of base models that can be wrapped: everything that one of them does in its own way, in one table."""

import os
from collections.abc import Mapping
from contextlib import contextmanager
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

from .positions_gazeqwen import IMAGE, VIDEO, next_positions, rope_index

# Inputs of a model that tell the positions of images and videos.
VISUAL_INPUTS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "kept_tokens")


@dataclass(frozen=True)
class Report:
    """Hold how the report on a family is cited: `eprint` is its number on arXiv, `author` the first of several."""

    key: str
    title: str
    author: str
    year: int
    eprint: str


@dataclass(frozen=True)
class Family:
    """
    What tells a family of base models from the others. All have decoder layers with an attention `self_attn` at
    `model.language_model.layers`, a vision tower at `model.visual`, `video_token_id` and `image_token_id`.

    Args:
        name: as people write it.
        model_class: of transformers.
        ids: on the Hub, of the sizes that there are.
        report: what describes it.
        pixels_per_token: side of the square of pixels that becomes one visual token.
        seconds_in_positions: a video token's rotary position in time counts seconds, not steps.
        seconds_in_text: each temporal step is a block of its own, behind a text that tells its seconds.
        size_of_whole_video: the video processor's `size` counts the pixels of all frames together, not of each.
        has_deepstack: the vision tower gives further maps, which are added to the video tokens' hidden states after
            the first decoder layers.
        has_query_norm: queries and keys are normalised, each head by itself, before attention.
        has_experts: of a feed-forward layer's many experts, each position goes through a few.
    """

    name: str
    model_class: type[PreTrainedModel]
    ids: tuple[str, ...]
    report: Report
    pixels_per_token: int
    seconds_in_positions: bool = False
    seconds_in_text: bool = False
    size_of_whole_video: bool = False
    has_deepstack: bool = False
    has_query_norm: bool = False
    has_experts: bool = False


_QWEN3_VL = Report("bai2025qwen3vl", "Qwen3-VL Technical Report", "Bai, Shuai", 2025, "2511.21631")


def _ids(name: str, *sizes: str) -> tuple[str, ...]:
    return tuple(f"Qwen/{name}-{size}-Instruct" for size in sizes)


FAMILIES = {
    "qwen2_vl": Family(
        "Qwen2-VL",
        Qwen2VLForConditionalGeneration,
        _ids("Qwen2-VL", "2B", "7B", "72B"),
        Report(
            "wang2024qwen2vl",
            "Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution",
            "Wang, Peng",
            2024,
            "2409.12191",
        ),
        pixels_per_token=28,
    ),
    "qwen2_5_vl": Family(
        "Qwen2.5-VL",
        Qwen2_5_VLForConditionalGeneration,
        _ids("Qwen2.5-VL", "3B", "7B", "32B", "72B"),
        Report("bai2025qwen25vl", "Qwen2.5-VL Technical Report", "Bai, Shuai", 2025, "2502.13923"),
        pixels_per_token=28,
        seconds_in_positions=True,
    ),
    "qwen3_vl": Family(
        "Qwen3-VL",
        Qwen3VLForConditionalGeneration,
        _ids("Qwen3-VL", "2B", "4B", "8B", "32B"),
        _QWEN3_VL,
        pixels_per_token=32,
        seconds_in_text=True,
        size_of_whole_video=True,
        has_deepstack=True,
        has_query_norm=True,
    ),
    "qwen3_vl_moe": Family(
        "Qwen3-VL MoE",
        Qwen3VLMoeForConditionalGeneration,
        _ids("Qwen3-VL", "30B-A3B", "235B-A22B"),
        _QWEN3_VL,
        pixels_per_token=32,
        seconds_in_text=True,
        size_of_whole_video=True,
        has_deepstack=True,
        has_query_norm=True,
        has_experts=True,
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


@contextmanager
def errors_name(source: str | os.PathLike):
    """
    Raise ValueError, or OSError for one, in one line that names `source` for what libraries say of damaged files in a
    block. Errors of the machine (memory, a package that is absent) and of the caller (an unknown argument) stay.
    """
    try:
        yield
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers raises no subclass
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise
        text, kind = " ".join(str(error).split()), OSError if isinstance(error, OSError) else ValueError
        if not isinstance(error, kind):
            text = f"{type(error).__name__}: {text}"
        raise kind(text if str(source) in text else f"{source}: {text}") from error


def refuse_kernels(values: Mapping, source: str | os.PathLike) -> None:
    """
    Raise ValueError where a config, its `values` as they are read from `source`, names attention of a repository on
    the Hub (`user/kernel`): transformers would fetch its code and run it.
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            refuse_kernels(value, source)
        if name in ("attn_implementation", "_attn_implementation"):
            for implementation in value.values() if isinstance(value, Mapping) else (value,):
                if "/" in str(implementation):
                    raise ValueError(
                        f"{source}: {name}: got {implementation!r}, whose code would be fetched from the Hub and run, "
                        "expected one of transformers' own, such as 'sdpa'; as an argument, from_pretrained takes any"
                    )


def unwrap_videos(family: Family, text: str) -> str:
    """
    Return a prompt, or a chat template, as the family was trained: where every temporal step has a wrapper of its own,
    the video has none around them (transformers 4.57; transformers 5 leaves it there).
    """
    wrapped = "<|vision_start|><|video_pad|><|vision_end|>"
    return text.replace(wrapped, "<|video_pad|>") if family.seconds_in_text else text


def decoder_of(backbone: nn.Module) -> nn.Module:
    """Return the decoder of a base model, whose `layers` the hooks sit on."""
    return backbone.model.language_model


def embed_dim(config: PreTrainedConfig) -> int:
    """Return how many values a base model's vision tower gives per visual token: hidden, times 1 + DeepStack maps."""
    maps = len(config.vision_config.deepstack_visual_indexes) if family_of(config).has_deepstack else 0
    return config.get_text_config().hidden_size * (1 + maps)


@dataclass
class VideoDeepstack:
    """Hold `maps`, (video tokens, D) each, for the tokens that `is_video` (B, L) marks, in their order."""

    is_video: torch.Tensor
    maps: list[torch.Tensor]

    def repeated(self, batch_size: int) -> "VideoDeepstack":
        """Return the maps of a batch in which each prompt is repeated to fill `batch_size`, its repeats in a row."""
        repeats = batch_size // len(self.is_video)
        if repeats == 1:
            return self
        counts = self.is_video.sum(-1).tolist()
        maps = [torch.cat([part for own in each.split(counts) for part in [own] * repeats]) for each in self.maps]
        return VideoDeepstack(self.is_video.repeat_interleave(repeats, 0), maps)

    def added_to(self, kwargs: dict) -> dict:
        """
        Return the keyword arguments of a decoder's call with these maps, joined with those of images that the base
        model computed itself. The base model takes embeddings of videos without their maps.
        """
        is_video, maps = self.is_video, self.maps
        is_image = kwargs.get("visual_pos_masks")
        if is_image is not None:
            is_visual = is_video | is_image
            joined = []
            for video_map, image_map in zip(maps, kwargs["deepstack_visual_embeds"], strict=True):
                both = video_map.new_zeros(int(is_visual.sum()), video_map.shape[-1])
                both[is_video[is_visual]], both[is_image[is_visual]] = video_map, image_map.to(video_map)
                joined.append(both)
            is_video, maps = is_visual, joined
        return {**kwargs, "visual_pos_masks": is_video, "deepstack_visual_embeds": maps}


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
    kept_tokens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return positions (3, B, L) and deltas (B, 1), see `rope_index`, of prompts with token types (B, L), as the base
    model with this config was trained; the rest are its processor's outputs.
    """
    family = family_of(config)
    images, videos = (None if grid is None else token_grids(config, grid) for grid in (image_grid_thw, video_grid_thw))
    if videos is not None and family.seconds_in_text:
        steps = videos[:, 0]
        if kept_tokens is not None:  # each step is a video of its own
            is_step = torch.arange(kept_tokens.shape[1], device=steps.device) < steps[:, None]
            kept_tokens = kept_tokens.to(steps.device)[is_step][:, None]
        videos = torch.cat([torch.ones_like(steps)[:, None], videos[:, 1:]], dim=1).repeat_interleave(steps, 0)
    tokens_per_second = config.vision_config.tokens_per_second if family.seconds_in_positions else None
    seconds = second_per_grid_ts if family.seconds_in_positions else None
    return rope_index(types, attention_mask, images, videos, seconds, tokens_per_second, kept_tokens)


def positions_of(config: PreTrainedConfig, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the trained positions (3, B, L) of whole prompts, from a processor's outputs."""
    visual = {name: inputs[name] for name in VISUAL_INPUTS if name in inputs}
    types = token_types(config, inputs["input_ids"])
    return trained_positions(config, types, inputs.get("attention_mask"), **visual)[0]


def positions_after(
    backbone: PreTrainedModel,
    convention: str,
    tokens: torch.Tensor,
    types: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    cache,
    start: int,
    visual: dict[str, torch.Tensor | None],
) -> torch.Tensor:
    """
    Return the (3, B, L) positions of `tokens`, ids (B, L) or embeddings (B, L, D), which come after the first `start`
    positions of a `cache`, under a position `convention`. `types` (B, L): token types, where there are no ids;
    `visual`: the `VISUAL_INPUTS` of the tokens' own images and videos. Raises ValueError where it cannot be known.
    """
    has_vision = visual["image_grid_thw"] is not None or visual["video_grid_thw"] is not None
    if tokens.dim() == 2:
        types = token_types(backbone.config, tokens)
    elif types is None and has_vision:
        raise ValueError("inputs_embeds with images or videos need input_ids, mm_token_type_ids or position_ids")
    elif types is None:
        types = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    if attention_mask is not None:
        attention_mask = attention_mask[:, -types.shape[1] :] if attention_mask.dim() == 2 else None
    if convention == "qwen" or not has_vision:
        positions, _ = trained_positions(backbone.config, types, attention_mask, **visual)
    elif visual.get("kept_tokens") is not None:
        raise ValueError(
            "kept_tokens need position_convention 'qwen', got 'transformers', which does not define the positions of "
            "prompts with a part of a video's tokens"
        )
    elif start:
        raise ValueError(
            "a video or an image in a later chunk needs position_ids: position_convention is 'transformers', which "
            "does not define them"
        )
    else:
        left_out = {"kept_tokens"}
        if not family_of(backbone.config).seconds_in_positions:
            left_out.add("second_per_grid_ts")
        visual = {name: value for name, value in visual.items() if name not in left_out}
        positions, _ = backbone.model.get_rope_index(
            torch.zeros_like(types), mm_token_type_ids=types, attention_mask=attention_mask, **visual
        )
    if start:
        positions = positions + next_positions(cache, start, len(types)).to(positions.device)[:, None]
    return positions


__all__ = [
    "FAMILIES",
    "VISUAL_INPUTS",
    "Family",
    "Report",
    "VideoDeepstack",
    "decoder_of",
    "embed_dim",
    "errors_name",
    "family_of",
    "positions_after",
    "positions_of",
    "refuse_kernels",
    "token_grids",
    "token_types",
    "trained_positions",
    "unwrap_videos",
]
