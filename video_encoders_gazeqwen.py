"""
The frozen video encoders: V-JEPA 2.1, and DINOv2 through timm (paper, Table 2), by Hub id or folder.

All have `config.hidden_size`, `dtype`, `token_grid(frames, height, width) -> (t, h, w)`, and a forward that takes
(B, F, 3, H, W) to `last_hidden_state` (B, t*h*w, D).
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, TimmWrapperConfig, TimmWrapperModel
from transformers.modeling_outputs import BaseModelOutput

from .modeling_vjepa2_1 import VJEPA21Config, VJEPA21Model

try:
    import timm
except ImportError:  # only DINOv2 needs it
    timm = None


# Arguments of `timm.create_model` that make it load something.
_TIMM_SOURCES = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


class TimmFrameEncoder(nn.Module):
    """A vision transformer of timm, such as DINOv2, on each frame by itself: t = F. Prefix tokens are left out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.config = model.config

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def token_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Tokens along time, height and width. Raises ValueError for sizes that are not a multiple of the patch."""
        patch_height, patch_width = self.model.timm_model.patch_embed.patch_size
        if height % patch_height or width % patch_width:
            raise ValueError(f"frames are {height}x{width} pixels, expected multiples of {patch_height}x{patch_width}")
        return num_frames, height // patch_height, width // patch_width

    def forward(self, pixel_values_videos: torch.Tensor) -> BaseModelOutput:
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        _, h, w = self.token_grid(num_frames, height, width)
        tokens = self.model(pixel_values_videos.flatten(0, 1), do_pooling=False).last_hidden_state
        tokens = tokens[:, self.model.timm_model.num_prefix_tokens :]  # (B*F, h*w, D)
        return BaseModelOutput(last_hidden_state=tokens.reshape(batch_size, num_frames * h * w, -1))


def video_encoder_config(values: dict, source: str = "video encoder") -> PreTrainedConfig:
    """The config in `values`: a V-JEPA 2.1's, or that of a timm model as timm publishes it. Has `hidden_size`."""
    if values.get("model_type") == VJEPA21Config.model_type:
        return VJEPA21Config(**values)
    if "architecture" in values:
        if timm is None:
            raise ImportError("DINOv2 features need timm: pip install timm")
        _check_timm_opens_nothing(values, source)
        config = TimmWrapperConfig.from_dict({"num_classes": 0, **values})
        # Positions are interpolated to the frames' size; without it only the pretraining size would be taken.
        config.model_args = {"dynamic_img_size": True, **(config.model_args or {})}
        config.hidden_size = _timm_width(config)
        return config
    raise ValueError(
        f"{source}: got model_type {values.get('model_type')!r}, expected {VJEPA21Config.model_type!r} (convert.py "
        "makes one from an official checkpoint) or a timm model's config"
    )


def load_video_encoder_config(name_or_path: str, revision: str = "main", **hub_kwargs) -> PreTrainedConfig:
    """The config of the video encoder at a Hub id or folder."""
    values, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, **hub_kwargs)
    return video_encoder_config(values, str(name_or_path))


def build_video_encoder(config: PreTrainedConfig) -> nn.Module:
    """A video encoder with random weights."""
    if config.model_type == VJEPA21Config.model_type:
        return VJEPA21Model(config)
    return TimmFrameEncoder(TimmWrapperModel(config))


def load_video_encoder(
    name_or_path: str, config: PreTrainedConfig, revision: str = "main", dtype="auto", **hub_kwargs
) -> nn.Module:
    """The pretrained video encoder at a Hub id or folder; from safetensors alone, no pickles."""
    loading = {"revision": revision, "dtype": dtype, "use_safetensors": True, **hub_kwargs}
    if config.model_type == VJEPA21Config.model_type:
        return VJEPA21Model.from_pretrained(name_or_path, **loading)
    return TimmFrameEncoder(TimmWrapperModel.from_pretrained(name_or_path, config=config, **loading))


def _check_timm_opens_nothing(values: dict, source: str) -> None:
    """A repository's config may name a model of timm, not files or repositories that timm would open for it."""
    opened = sorted(_TIMM_SOURCES & set(values.get("model_args") or {}))
    if ":" in values["architecture"] or opened:
        raise ValueError(
            f"{source}: got architecture {values['architecture']!r} and model_args {opened}, expected the name of a "
            "model of timm, and no files to load"
        )


def _timm_width(config: TimmWrapperConfig) -> int:
    with torch.device("meta"):
        return timm.create_model(config.architecture, num_classes=0, **config.model_args).num_features


__all__ = ["build_video_encoder", "load_video_encoder", "load_video_encoder_config", "video_encoder_config"]
