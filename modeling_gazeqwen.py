"""
GazeQwenForConditionalGeneration: a frozen base model, a frozen video encoder, and a small trained module between them.

The model adds `amplitude_l * R_l` to the hidden states of the video tokens after decoder layer `l` (paper, eq. 6).
All residuals of a call depend on video and gaze alone, so they are computed once, before the decoder runs, and travel
to the layers as a keyword argument of the call: forward hooks on the layers add them. Gradient checkpointing keeps a
layer's keyword arguments for its second run, so a hook sees the same residuals there.
"""

from contextlib import contextmanager
from importlib import import_module

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import can_return_tuple, logging

from .adapter_files_gazeqwen import AUTO_CLASSES, AdapterFilesMixin
from .backbones_gazeqwen import VISUAL_INPUTS, decoder_of, family_of, positions_after
from .configuration_gazeqwen import GazeQwenConfig
from .injection_gazeqwen import (
    GAZE_INPUTS,
    DecoderHooks,
    GazeInjection,
    cache_length,
    check_gaze_from_start,
    check_gaze_inputs,
    prompts_with_gaze,
    resampler_inputs,
    rows_of_prompts,
    videos_with_scanpath,
)
from .lora_gazeqwen import LoraMixin
from .positions_gazeqwen import remember_positions
from .resampler_gazeqwen import GazeResampler, HeatmapVector, build_resampler
from .video_encoders_gazeqwen import FrozenVideoMixin, build_video_encoder

logger = logging.get_logger(__name__)

# In transformers 5.17 a checkpointed layer's hooks run within the checkpoint; in later ones only its forward does.
_HOOKS_ARE_CHECKPOINTED = "__call__" in vars(GradientCheckpointingLayer)


class GazeQwenForConditionalGeneration(
    AdapterFilesMixin, LoraMixin, FrozenVideoMixin, PreTrainedModel, GenerationMixin
):
    """
    `backbone` (an untouched base model of one of `FAMILIES`), `video_encoder` and `resampler`. The first two are
    frozen and never saved. There is no `video_encoder` (None) where the resampler sees the base model's own embeddings
    (`resampler_features` `base_model`), nor with `resampler_type` `none`, where `resampler` is empty.

    Built from a bare config, backbone and encoder have random weights; `from_pretrained` loads a trained adapter and
    both by id and revision; `from_base` starts a new adapter on them. Without gaze (`scanpaths=None`) the model is
    exactly its base model, also where LoRA was trained.
    """

    config_class = GazeQwenConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(
        self, config: GazeQwenConfig, backbone: nn.Module | None = None, video_encoder: nn.Module | None = None
    ):
        config.position_convention = config.resolved_position_convention()
        super().__init__(config)
        self.resampler = build_resampler(config)
        self.post_init()
        if backbone is None:
            backbone_config = config.load_backbone_config()
            backbone = family_of(backbone_config).model_class(backbone_config)
        self.backbone = backbone
        self.backbone.requires_grad_(False)
        self._hooks = DecoderHooks()
        decoder_of(self.backbone).register_forward_pre_hook(self._hooks.add_deepstack, with_kwargs=True)
        self.video_encoder = None
        if config.has_video_encoder:
            self.video_encoder = video_encoder or build_video_encoder(config.load_video_encoder_config())
            self.video_encoder.requires_grad_(False).eval()
        self.attach_gaze()
        for layer in config.dead_injection_layers():
            logger.warning(
                f"injection layer {layer} is the base model's last: no attention follows that could carry a video "
                "token's state to the answer, so its residual has no effect and its resampler no gradient"
            )
        self._backward_compatibility_gradient_checkpointing()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (GazeResampler, HeatmapVector)):
            module.reset_parameters()

    # ---------------------------------------------------------------- what is trained
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """By name, what training changes: the resampler, and LoRA where it was added."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def no_weight_decay(self) -> set[str]:
        """Return the names of trained parameters that do not decay: LoRA's, and those that the resampler names."""
        own = self.resampler.no_weight_decay() if self.config.has_resampler else set()
        return {f"resampler.{name}" for name in own} | {n for n in self.trained_parameters() if "lora_" in n}

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func=checkpoint, **kwargs):
        """
        As in transformers. Raises ValueError for reentrant checkpointing where hooks are checkpointed with their
        layer: each layer's backward would walk the resampler's graph again.
        """
        is_reentrant = getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant", False)
        if enable and is_reentrant and _HOOKS_ARE_CHECKPOINTED:
            raise ValueError("use_reentrant is True, expected False, or a newer transformers")
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def _backward_compatibility_gradient_checkpointing(self) -> None:
        """As in transformers, for `config.gradient_checkpointing`, once the base model's layers are there."""
        if "backbone" in self._modules:
            super()._backward_compatibility_gradient_checkpointing()

    # ---------------------------------------------------------------- hooks
    def attach_gaze(self) -> None:
        """Register the hooks. They stay until `detach_gaze`, through backward."""
        if self._hooks.attached:
            return
        layers = self.config.resolved_injection_layers()
        self._hooks.attach(decoder_of(self.backbone), layers, self.lora_outputs())
        if self.has_lora:
            self.backbone.enable_adapters()

    def detach_gaze(self) -> None:
        """Remove the hooks and switch LoRA off: `backbone` is the base model again. `attach_gaze` undoes it."""
        self._hooks.detach()
        if self.has_lora:
            self.backbone.disable_adapters()

    @contextmanager
    def gaze_disabled(self):
        """Within this context, in this thread, the model is exactly its base model, whatever scanpaths it is given."""
        with self._hooks.gaze_disabled():
            yield self

    # ---------------------------------------------------------------- gaze of a call
    def _prepare_injection(
        self,
        input_ids,
        inputs_embeds,
        video_grid_thw,
        gaze: dict[str, torch.Tensor | None],
        has_gaze=None,
        cache=None,
        start: int = 0,
        kept_tokens: torch.Tensor | None = None,
    ) -> GazeInjection | None:
        """
        Return what the call adds, from its `GAZE_INPUTS`; None where nothing has to be added or switched off.
        `has_gaze` (B,) is what the caller says of the prompts, `start` the position in the `cache` of `input_ids`,
        or of `inputs_embeds` where there is no gaze.
        """
        with_scanpaths = gaze["scanpaths"] is not None and self._hooks.gaze_enabled
        if not with_scanpaths and not self.has_lora:
            return None
        if with_scanpaths and (input_ids is None or video_grid_thw is None):
            raise ValueError("scanpaths need input_ids and video_grid_thw, to find the video tokens")
        tokens = input_ids if input_ids is not None else inputs_embeds
        rows, factors, with_gaze = None, None, torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        if with_scanpaths:
            grids = self.token_grids(video_grid_thw).to(input_ids.device)  # (V, 3)
            is_video = input_ids == self.backbone.config.video_token_id  # (B, L)
            check_gaze_inputs(is_video, grids, self._feature_dim, self._frames_per_step, gaze, kept_tokens)
            has_scanpath = videos_with_scanpath(gaze, grids)
            rows = rows_of_prompts(is_video, grids, has_scanpath, kept_tokens)
            with_gaze = (rows >= 0).any(-1)
            if has_scanpath.any() and self.config.has_resampler:
                factors = self.resampler.factors(*self._resampler_inputs(gaze, has_scanpath, grids))
        if not self.has_lora:
            return GazeInjection(rows, None, factors, start)
        if self._hooks.gaze_enabled:
            has_scanpaths = with_gaze
            with_gaze = prompts_with_gaze(has_scanpaths, has_gaze, cache, cache_length(cache))
            if with_scanpaths:
                check_gaze_from_start(has_scanpaths, with_gaze)
        return GazeInjection(rows, with_gaze, factors, start)

    def _resampler_inputs(self, gaze: dict[str, torch.Tensor | None], has_scanpath, grids) -> tuple:
        """Return the arguments of the resampler's `factors` for the videos with a scanpath, `has_scanpath` (V,)."""
        device, features = self.resampler.amplitude.device, gaze["video_encoder_features"]
        if features is None:
            frames = gaze["video_encoder_pixel_values"][has_scanpath].to(device)
            with torch.no_grad():
                features = self._encode_video(frames, grids[has_scanpath])
        else:
            features = features[has_scanpath].to(device)
        return resampler_inputs(gaze, features, has_scanpath, grids)

    @torch.no_grad()
    def latent_attention(self, video_grid_thw: torch.Tensor, **inputs) -> torch.Tensor:
        """
        How much each latent attends to each visual token in the resampler's last block: (layers, V, T, K, H*W), layers
        being the injection layers, or 1 if they share a resampler. Takes the inputs of `forward`, of videos that all
        have a scanpath. With the foveated encoding the first half of the latents is foveal from the start.
        """
        if self.config.resampler_type != "attention":
            raise ValueError(f"no latents: resampler_type is {self.config.resampler_type!r}, expected 'attention'")
        attention: list[torch.Tensor] = []
        self._factors(video_grid_thw, inputs, attention=attention)
        return attention[-1]

    @torch.no_grad()
    def gaze_residuals(self, video_grid_thw: torch.Tensor, **inputs) -> torch.Tensor:
        """
        What is added to the hidden states of the video tokens: (injection layers, V, T, H*W, hidden size), float32;
        rows beyond a video's own tokens mean nothing. Takes the inputs of `forward`, of videos that all have a
        scanpath.
        """
        if not self.config.has_resampler:
            raise ValueError("nothing is added: resampler_type is 'none'")
        factors = self._factors(video_grid_thw, inputs)
        return torch.stack([factors.layer(index) for index in range(len(factors))])

    def _factors(self, video_grid_thw: torch.Tensor, inputs: dict, **kwargs):
        gaze, grids = {name: inputs.get(name) for name in GAZE_INPUTS}, self.token_grids(video_grid_thw)
        self._see_own_embeddings(gaze, video_grid_thw, inputs.get("video_embeds"), inputs.get("pixel_values_videos"))
        check_gaze_inputs(None, grids, self._feature_dim, self._frames_per_step, gaze)
        every = torch.ones(len(grids), dtype=torch.bool)
        return self.resampler.factors(*self._resampler_inputs(gaze, every, grids), **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        video_embeds: torch.FloatTensor | None = None,
        video_encoder_pixel_values: torch.FloatTensor | None = None,
        video_encoder_features: torch.FloatTensor | None = None,
        scanpaths: torch.FloatTensor | None = None,
        scanpath_mask: torch.BoolTensor | None = None,
        has_scanpath: torch.BoolTensor | None = None,
        step_spans_s: torch.FloatTensor | None = None,
        has_gaze: torch.BoolTensor | None = None,
        kept_tokens: torch.BoolTensor | None = None,
        **kwargs,
    ):
        """
        Run the base model's forward, plus gaze. V is the number of videos in the batch, in the order of
        `video_grid_thw`.

        Args:
            video_embeds: (video tokens, D') in place of `pixel_values_videos` (`embed_video`).
            video_encoder_pixel_values: (V, F, 3, S, S) frames for the video encoder, padded to the longest video; or
            video_encoder_features: (V, T, N, D_v) its features on the visual token grid (`encode_video`).
            scanpaths: (V, F, 4) `x_norm, y_norm, t_mid_s, duration_s`; `None`: no gaze, exactly the base model.
            scanpath_mask: (V, F), False for padding rows. A video with no True row has an empty scanpath.
            has_scanpath: (V,), False for videos without gaze; default all True.
            step_spans_s: (V, T, 2) begin and end of each temporal step, seconds of the source video.
            has_gaze: (B,), for prompts given in chunks on one `past_key_values`: True where a chunk, this one or a
                later one, has a scanpath. Needed with LoRA from the first chunk on if the scanpath comes with a later
                one; else the cache remembers it. A chunk takes the gaze inputs of its own videos, each video whole.
            kept_tokens: (V, T, N), which visual tokens `input_ids` hold (`choose_tokens`); default all. Of the others
                the decoder knows nothing. All other inputs are those of the whole videos, `video_embeds` too.

        Raises ValueError, with both numbers, for shapes and counts that do not fit each other.
        """
        gaze = {
            "video_encoder_pixel_values": video_encoder_pixel_values,
            "video_encoder_features": video_encoder_features,
            "scanpaths": scanpaths,
            "scanpath_mask": scanpath_mask,
            "has_scanpath": has_scanpath,
            "step_spans_s": step_spans_s,
        }
        if video_embeds is not None and (input_ids is None or pixel_values_videos is not None):
            raise ValueError("video_embeds need input_ids, and come in place of pixel_values_videos")
        video_embeds = self._see_own_embeddings(gaze, video_grid_thw, video_embeds, pixel_values_videos)
        if kept_tokens is not None and video_embeds is None and pixel_values_videos is not None:
            video_embeds = self.embed_video(pixel_values_videos, video_grid_thw)
        deepstack = None
        if video_embeds is not None and input_ids is not None:
            pixel_values_videos = None
            inputs_embeds, deepstack = self._input_embeds(input_ids, video_embeds, video_grid_thw, kept_tokens)
        start = cache_length(past_key_values)
        injection = self._prepare_injection(
            input_ids, inputs_embeds, video_grid_thw, gaze, has_gaze, past_key_values, start, kept_tokens
        )
        if position_ids is None:
            values = (image_grid_thw, video_grid_thw, second_per_grid_ts, kept_tokens)
            visual = dict(zip(VISUAL_INPUTS, values, strict=True))
            tokens = input_ids if input_ids is not None else inputs_embeds
            position_ids = positions_after(
                self.backbone,
                self.config.position_convention,
                tokens,
                mm_token_type_ids,
                attention_mask,
                past_key_values,
                start,
                visual,
            )
        if family_of(self.backbone.config).seconds_in_positions:
            kwargs["second_per_grid_ts"] = second_per_grid_ts
        with self._hooks.during(injection, deepstack):
            output = self.backbone(
                input_ids=input_ids if inputs_embeds is None else None,  # Qwen3-VL refuses both
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                pixel_values=pixel_values,
                pixel_values_videos=pixel_values_videos,
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                mm_token_type_ids=mm_token_type_ids,
                logits_to_keep=logits_to_keep,
                return_dict=True,
                **kwargs,
            )
        remember_positions(output.past_key_values, position_ids, start)
        if output.loss is not None and self.training and (injection is None or injection.factors is None):
            # DDP waits for a gradient of everything that is trained: without gaze it is zero.
            output.loss = output.loss + 0.0 * sum(
                value.sum().to(output.loss) for value in self.trained_parameters().values()
            )
        return output

    @torch.no_grad()
    def generate(self, inputs: torch.LongTensor | None = None, generation_config=None, **kwargs):
        """
        Run the base model's `generate` with the residuals added to the prompt's video tokens. Takes the gaze inputs of
        `forward` beside everything that the base model's `generate` takes. On a filled `past_key_values`, `input_ids`
        are the whole prompt or, with an `attention_mask` that is longer, what comes after the cache. Where the
        resampler sees the base model's own embeddings, the vision tower runs twice: transformers takes pixels alone.
        """
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        gaze = {name: kwargs.pop(name, None) for name in GAZE_INPUTS}
        cache, mask, start = kwargs.get("past_key_values"), kwargs.get("attention_mask"), 0
        if input_ids is not None and mask is not None and mask.shape[1] > input_ids.shape[1]:
            start = cache_length(cache)
        grids, pixels = kwargs.get("video_grid_thw"), kwargs.get("pixel_values_videos")
        video_embeds = self._see_own_embeddings(gaze, grids, None, pixels)
        kept_tokens, deepstack = kwargs.get("kept_tokens"), None
        has_gaze = kwargs.pop("has_gaze", None)
        injection = self._prepare_injection(
            input_ids, kwargs.get("inputs_embeds"), grids, gaze, has_gaze, cache, start, kept_tokens
        )
        if kwargs.get("position_ids") is None:
            visual = {name: kwargs.get(name) for name in VISUAL_INPUTS}
            tokens = input_ids if input_ids is not None else kwargs["inputs_embeds"]
            types, past = kwargs.get("mm_token_type_ids"), cache_length(cache)
            if past > start and all(value is None for value in visual.values()):  # the cache holds the video
                tokens, types, start = tokens[:, past:], None, past
            positions = positions_after(
                self.backbone, self.config.position_convention, tokens, types, mask, cache, start, visual
            )
            remember_positions(cache, positions, start)
            kwargs["position_ids"] = nn.functional.pad(positions, (start, 0))  # `generate` takes the last of them
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        if kwargs.pop("kept_tokens", None) is not None:
            if cache_length(cache) or pixels is None or grids is None:
                raise ValueError("kept_tokens in generate need pixel_values_videos, video_grid_thw and an empty cache")
            if video_embeds is None:
                video_embeds = self.embed_video(pixels, grids)
            kwargs["inputs_embeds"], deepstack = self._input_embeds(input_ids, video_embeds, grids, kept_tokens)
            kwargs.pop("pixel_values_videos")
        with self._hooks.during(injection, deepstack):
            output = self.backbone.generate(inputs, **kwargs)
        if cache is None:  # a cache that `generate` made and returns
            remember_positions(getattr(output, "past_key_values", None), kwargs["position_ids"], 0)
        return output

    def open_stream(self, processor, **settings):
        """
        Return a `GazeStream`, which takes video and gaze as they arrive and is asked at any moment; `settings`: its
        arguments. It is part of the package, not of the files that go to the Hub: raises ImportError without it.
        """
        return import_module("gazeqwen.streaming.stream").GazeStream(self, processor, **settings)

    # ---------------------------------------------------------------- what callers expect of a transformers model
    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def generation_config(self):
        """The base model's: `generate` uses and `save_pretrained` writes what is assigned here or there."""
        return self.backbone.generation_config

    @generation_config.setter
    def generation_config(self, value) -> None:
        if "backbone" in self._modules:  # else transformers' first, from a config without the base model's
            self.backbone.generation_config = value

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        return decoder_of(self.backbone)

    def train(self, mode: bool = True) -> "GazeQwenForConditionalGeneration":
        super().train(mode)
        if "video_encoder" in self._modules:
            self.video_encoder.eval()
        return self


GazeQwenForConditionalGeneration.register_for_auto_class("AutoModel")

__all__ = ["AUTO_CLASSES", "GazeQwenForConditionalGeneration"]
