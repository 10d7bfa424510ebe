"""
The frozen video encoders: V-JEPA 2.1, and DINOv2 through timm (paper, Table 2), by Hub id or folder.

All have `config.hidden_size`, `dtype`, `token_grid(frames, height, width) -> (t, h, w)`, and a forward that takes
(B, F, 3, H, W) to `last_hidden_state` (B, t*h*w, D).
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig, TimmWrapperConfig, TimmWrapperModel
from transformers.modeling_outputs import BaseModelOutput

from .backbones_gazeqwen import VideoDeepstack, embed_dim, family_of, refuse_kernels, token_grids
from .modeling_vjepa2_1 import VJEPA21Config, VJEPA21Model
from .positions_gazeqwen import padded_shape, tokens_of_grids
from .resampler_gazeqwen import align_video_features

try:
    import timm
except ImportError:  # only DINOv2 needs it
    timm = None


# Arguments of `timm.create_model` that make it load something.
_TIMM_SOURCES = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


# Windows of the video encoder that are run together, in temporal steps of all of them.
_WINDOW_STEPS_AT_ONCE = 64


class TimmFrameEncoder(nn.Module):
    """Run a vision transformer of timm, such as DINOv2, on each frame by itself: t = F. Prefix tokens are left out."""

    attends_within_frames = True

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.config = model.config

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def token_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """
        Return the tokens (t, h, w) along time, height and width of frames of `height` x `width` pixels. Raises
        ValueError for sizes that are not a multiple of the patch.
        """
        patch_height, patch_width = self.model.timm_model.patch_embed.patch_size
        if height % patch_height or width % patch_width:
            raise ValueError(f"frames are {height}x{width} pixels, expected multiples of {patch_height}x{patch_width}")
        return num_frames, height // patch_height, width // patch_width

    def forward(self, pixel_values_videos: torch.Tensor) -> BaseModelOutput:
        """Return the tokens (B, F*h*w, D) of `pixel_values_videos` (B, F, 3, H, W) as `last_hidden_state`."""
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        _, h, w = self.token_grid(num_frames, height, width)
        tokens = self.model(pixel_values_videos.flatten(0, 1), do_pooling=False).last_hidden_state
        tokens = tokens[:, self.model.timm_model.num_prefix_tokens :]  # (B*F, h*w, D)
        return BaseModelOutput(last_hidden_state=tokens.reshape(batch_size, num_frames * h * w, -1))


class FrozenVideoMixin:
    """Give a model methods that run its frozen networks, `backbone` and `video_encoder`, on videos."""

    backbone: nn.Module
    video_encoder: nn.Module | None
    config: PreTrainedConfig
    get_input_embeddings: Callable[[], nn.Module]

    @property
    def _frames_per_step(self) -> int:
        return self.backbone.config.vision_config.temporal_patch_size

    @property
    def _feature_dim(self) -> int | None:
        return self.config.feature_dim() if self.config.has_resampler else None

    def _encode_video(self, pixel_values: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """
        Return features on the visual token grids. `pixel_values` (V, F, 3, S, S), `grids` (V, 3) = T, H, W of visual
        tokens -> (V, T_max, N_max, D_v), zero-padded. Videos of equal grid are encoded together.
        """
        encoder, window = self.video_encoder, self.config.video_encoder_window
        shape = (*padded_shape(grids), encoder.config.hidden_size)
        features = torch.zeros(shape, dtype=encoder.dtype, device=pixel_values.device)
        for grid in grids.unique(dim=0):
            same = (grids == grid).all(-1)
            steps, height, width = grid.tolist()
            frames = pixel_values[same, : steps * self._frames_per_step]
            if window is None:
                aligned = self._encode_frames(frames, height, width)
            else:
                aligned = self._encode_windows(frames, height, width, window)
            features[same, :steps, : height * width] = aligned
        return features

    def _encode_frames(self, frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the features (V, T, height * width, D_v) of frames (V, F, 3, S, S), seen as a whole."""
        encoder = self.video_encoder
        frames = frames.to(encoder.dtype)
        tokens = encoder(frames).last_hidden_state
        tokens = tokens.unflatten(1, encoder.token_grid(frames.shape[1], *frames.shape[-2:]))
        return align_video_features(tokens, (frames.shape[1] // self._frames_per_step, height, width))

    @torch.no_grad()
    def encode_last_step(self, video_encoder_pixel_values: torch.Tensor, video_grid_thw: torch.Tensor) -> torch.Tensor:
        """
        Return the features (V, 1, H*W, D_v) of the last temporal step of windows (V, F, 3, S, S) of equal grid, Qwen's
        grid of patches `video_grid_thw` (3,): what `encode_video` gives for that step with a `video_encoder_window`.
        """
        height, width = self.token_grids(video_grid_thw[None])[0, 1:].tolist()
        steps = video_encoder_pixel_values.shape[1] // self._frames_per_step
        chunks = video_encoder_pixel_values.split(max(_WINDOW_STEPS_AT_ONCE // steps, 1))
        return torch.cat([self._encode_frames(chunk, height, width)[:, -1:] for chunk in chunks])

    def _encode_windows(self, frames: torch.Tensor, height: int, width: int, window: int) -> torch.Tensor:
        """
        Return the features (V, T, height * width, D_v) of frames (V, F, 3, S, S), each step's as the last of the
        `window` steps up to it, fewer at the video's begin.
        """
        by_step = frames.unflatten(1, (-1, self._frames_per_step))  # (V, T, frames per step, 3, S, S)
        steps = by_step.shape[1]
        window = min(window, steps)
        features = [
            self._encode_frames(frames[:, : end * self._frames_per_step], height, width)[:, -1:]
            for end in range(1, window)
        ]
        for chunk in torch.arange(window, steps + 1).split(max(_WINDOW_STEPS_AT_ONCE // (window * len(frames)), 1)):
            windows = torch.stack([by_step[:, end - window : end] for end in chunk.tolist()], dim=1)
            encoded = self._encode_frames(windows.flatten(0, 1).flatten(1, 2), height, width)[:, -1]
            features.append(encoded.unflatten(0, windows.shape[:2]))
        return torch.cat(features, dim=1)

    def token_grids(self, video_grid_thw: torch.Tensor) -> torch.Tensor:
        """Return (V, 3) T, H, W in visual tokens, from Qwen's grids of patches, `video_grid_thw` (V, 3)."""
        return token_grids(self.backbone.config, video_grid_thw)

    @torch.no_grad()
    def encode_video(self, video_encoder_pixel_values: torch.Tensor, video_grid_thw: torch.Tensor) -> torch.Tensor:
        """
        Return the frozen `video_encoder_features` (V, T, H*W, D_v) of `video_encoder_pixel_values` (V, F, 3, S, S), to
        be computed once and given to `forward` instead of the pixels. `video_grid_thw` (V, 3): Qwen's grids of
        patches. Raises ValueError without a video encoder, or for another number of frames than the grids need.
        """
        if self.video_encoder is None:
            config = self.config
            raise ValueError(
                f"this model has no video encoder: its resampler_type is {config.resampler_type!r}, its "
                f"resampler_features {config.resampler_features!r}"
            )
        grids = self.token_grids(video_grid_thw)
        check_frames(video_encoder_pixel_values, grids, self._frames_per_step)
        return self._encode_video(video_encoder_pixel_values, grids)

    @torch.no_grad()
    def embed_video(self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor) -> torch.Tensor:
        """
        Return what the frozen vision tower makes of `pixel_values_videos`, (video tokens of all videos, D'), to be
        computed once and given to `forward` as `video_embeds` instead of the pixels: the embeddings, D' = hidden, and
        behind them along D' the DeepStack maps of a family that has them, D' = hidden * (1 + maps). `video_grid_thw`
        (V, 3): Qwen's grids of patches.
        """
        features = self.backbone.model.get_video_features(pixel_values_videos, video_grid_thw, return_dict=True)
        parts = [features.pooler_output]
        if family_of(self.backbone.config).has_deepstack:
            parts += features.deepstack_features
        # One tensor per video, or, as DeepStack maps in transformers 5.17, of all videos.
        parts = [part if isinstance(part, torch.Tensor) else torch.cat(list(part)) for part in parts]
        return torch.cat(parts, dim=-1)

    def _see_own_embeddings(
        self,
        gaze: dict[str, torch.Tensor | None],
        video_grid_thw: torch.Tensor | None,
        video_embeds: torch.Tensor | None,
        pixel_values_videos: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """
        Put the embeddings of the videos into the `GAZE_INPUTS` as their features, if the resampler sees these and
        there is a scanpath; features that are there already stay. Return the embeddings (`embed_video`), or
        `video_embeds` where nothing is put. Raises ValueError for a scanpath without its video.
        """
        own = self.config.has_resampler and not self.config.has_video_encoder
        if not own or gaze["scanpaths"] is None or gaze["video_encoder_features"] is not None:
            return video_embeds
        if video_grid_thw is None or (video_embeds is None and pixel_values_videos is None):
            raise ValueError(
                "scanpaths need video_grid_thw, and video_embeds or pixel_values_videos: resampler_features is "
                f"{self.config.resampler_features!r}"
            )
        if video_embeds is None:
            video_embeds = self.embed_video(pixel_values_videos, video_grid_thw)
        hidden, grids = self.config.feature_dim(), self.token_grids(video_grid_thw).to(video_embeds.device)
        is_token = tokens_of_grids(grids, padded_shape(grids))
        features = video_embeds.new_zeros(*is_token.shape, hidden)
        features[is_token] = video_embeds[:, :hidden]
        gaze["video_encoder_features"] = features
        return video_embeds

    def _input_embeds(
        self,
        input_ids: torch.Tensor,
        video_embeds: torch.Tensor,
        video_grid_thw: torch.Tensor | None = None,
        kept_tokens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, VideoDeepstack | None]:
        """
        Return the embeddings (B, L, D) of the prompts with `video_embeds` (video tokens, D') in the places of the
        video tokens, and the DeepStack maps in them; of `kept_tokens` (V, T, N) of the grids, where the prompts hold
        no others. Raises ValueError for another number of tokens or maps.
        """
        embeds = self.get_input_embeddings()(input_ids)
        is_video = input_ids == self.backbone.config.video_token_id
        if kept_tokens is not None:
            if video_grid_thw is None:
                raise ValueError("kept_tokens need video_grid_thw")
            grids = self.token_grids(video_grid_thw)
            shape = padded_shape(grids)
            if tuple(kept_tokens.shape) != shape or len(video_embeds) != int(grids.prod(-1).sum()):
                raise ValueError(
                    f"kept_tokens are {tuple(kept_tokens.shape)} with {len(video_embeds)} video_embeds, expected "
                    f"{shape} and {int(grids.prod(-1).sum())}, the tokens of the whole videos"
                )
            is_token = tokens_of_grids(grids, kept_tokens.shape)
            video_embeds = video_embeds[kept_tokens.to(grids.device)[is_token].to(video_embeds.device)]
        expected = int(is_video.sum()), embed_dim(self.backbone.config)
        if video_embeds.shape != expected:
            raise ValueError(
                f"video_embeds are {tuple(video_embeds.shape)}, expected {expected}: video tokens of the prompts, "
                "values of each (`embed_video`)"
            )
        pooled, *maps = video_embeds.to(embeds).split(embeds.shape[-1], dim=-1)
        deepstack = VideoDeepstack(is_video, maps) if maps else None
        return embeds.masked_scatter(is_video[..., None], pooled), deepstack


def check_frames(pixel_values: torch.Tensor, grids: torch.Tensor, frames_per_step: int) -> None:
    """Raise ValueError unless the encoder's frames are as many as the longest of the (V, 3) token grids needs."""
    expected = int(grids[:, 0].max()) * frames_per_step
    if pixel_values.dim() != 5 or pixel_values.shape[1] != expected:
        raise ValueError(
            f"video_encoder_pixel_values are {tuple(pixel_values.shape)}, expected (videos, {expected}, 3, S, S): "
            f"{frames_per_step} frames for each temporal step of the longest video"
        )


def video_encoder_config(values: dict, source: str = "video encoder") -> PreTrainedConfig:
    """
    Return the config in `values`, with `hidden_size`: a V-JEPA 2.1's, or that of a timm model as timm publishes it.
    Raises ValueError naming `source` for any other, ImportError where a timm model is asked for and timm is absent.
    """
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
    """Return the config of the video encoder at a Hub id or folder. Raises as `video_encoder_config`."""
    values, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, **hub_kwargs)
    refuse_kernels(values, name_or_path)
    return video_encoder_config(values, str(name_or_path))


def build_video_encoder(config: PreTrainedConfig) -> nn.Module:
    """Return a video encoder with random weights."""
    if config.model_type == VJEPA21Config.model_type:
        return VJEPA21Model(config)
    return TimmFrameEncoder(TimmWrapperModel(config))


def load_video_encoder(
    name_or_path: str, config: PreTrainedConfig, revision: str = "main", dtype="auto", **hub_kwargs
) -> nn.Module:
    """Return the pretrained video encoder at a Hub id or folder; from safetensors alone, no pickles."""
    loading = {"revision": revision, "dtype": dtype, "use_safetensors": True, **hub_kwargs}
    loading["adapter_kwargs"] = {"revision": revision}  # transformers 5.17 would look for its LoRA in main
    if config.model_type == VJEPA21Config.model_type:
        return VJEPA21Model.from_pretrained(name_or_path, **loading)
    return TimmFrameEncoder(TimmWrapperModel.from_pretrained(name_or_path, config=config, **loading))


def _check_timm_opens_nothing(values: dict, source: str) -> None:
    """Raise ValueError for a config that names files or repositories which timm would open, beside a model of timm."""
    opened = sorted(_TIMM_SOURCES & set(values.get("model_args") or {}))
    if ":" in values["architecture"] or opened:
        raise ValueError(
            f"{source}: got architecture {values['architecture']!r} and model_args {opened}, expected the name of a "
            "model of timm, and no files to load"
        )


def _timm_width(config: TimmWrapperConfig) -> int:
    """Return the width of a timm model's features."""
    with torch.device("meta"):
        return timm.create_model(config.architecture, num_classes=0, **config.model_args).num_features


__all__ = [
    "FrozenVideoMixin",
    "build_video_encoder",
    "check_frames",
    "load_video_encoder",
    "load_video_encoder_config",
    "video_encoder_config",
]
