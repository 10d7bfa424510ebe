"""
GazeQwenForConditionalGeneration: a frozen Qwen2.5-VL, a frozen video encoder, and a small trained module between them.

The model adds `amplitude_l * R_l` to the hidden states of the video tokens after decoder layer `l` (paper, eq. 6).
All residuals of a call depend on video and gaze alone, so they are computed once, before the decoder runs, and travel
to the layers as a keyword argument of the call: forward hooks on the layers add them. Gradient checkpointing keeps a
layer's keyword arguments for its second run, so a hook sees the same residuals there.
"""

import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.utils import cached_file, logging

from .backbones_gazeqwen import decoder_of, family_of, token_types, trained_positions
from .configuration_gazeqwen import GazeQwenConfig, absolute_if_folder, check_for_hub
from .injection_gazeqwen import (
    GAZE_INPUTS,
    DecoderHooks,
    GazeInjection,
    cache_length,
    check_gaze_inputs,
    next_positions,
    prompts_with_gaze,
    remember_positions,
    resampler_inputs,
    rows_of_prompts,
    videos_with_scanpath,
)
from .lora_gazeqwen import LORA_FILES, LORA_FOLDER, LoraMixin, check_keys
from .resampler_gazeqwen import GazeResampler, HeatmapVector, build_resampler
from .video_encoders_gazeqwen import FrozenVideoMixin, build_video_encoder, load_video_encoder

logger = logging.get_logger(__name__)

# What tells the positions of images and videos.
VISUAL_INPUTS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")

AUTO_CLASSES = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")

# Arguments that Auto classes add to every `from_pretrained` and that mean nothing here.
_AUTO_KEYWORDS = ("_from_auto", "_commit_hash", "adapter_kwargs", "trust_remote_code", "code_revision")
# Arguments by which pickles could be allowed: they never are.
_PICKLE_KEYWORDS = ("weights_only", "use_safetensors")
# Arguments of `save_pretrained` that are for `push_to_hub`.
_PUSH_KEYWORDS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr", "tags")


class GazeQwenForConditionalGeneration(LoraMixin, FrozenVideoMixin, PreTrainedModel, GenerationMixin):
    """
    `backbone` (an untouched Qwen2.5-VL), `video_encoder` and `resampler`. The first two are frozen and never saved.
    With `resampler_type` `none` there is no `video_encoder` (None), and `resampler` is empty.

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
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self, config: GazeQwenConfig, backbone: nn.Module | None = None, video_encoder: nn.Module | None = None
    ):
        config.position_convention = config.resolved_position_convention()
        super().__init__(config)
        self.resampler = build_resampler(config)
        self.post_init()
        self.backbone = (
            backbone
            if backbone is not None
            else family_of(config.load_backbone_config()).model_class(config.load_backbone_config())
        )
        self.backbone.requires_grad_(False)
        self.video_encoder = None
        if config.has_resampler:
            self.video_encoder = video_encoder or build_video_encoder(config.load_video_encoder_config())
            self.video_encoder.requires_grad_(False).eval()
        self.generation_config = self.backbone.generation_config
        self._gaze_enabled = True
        self._hooks = DecoderHooks()
        self.attach_gaze()
        for layer in config.dead_injection_layers():
            logger.warning(
                f"injection layer {layer} is the base model's last: no attention follows that could carry a video "
                "token's state to the answer, so its residual has no effect and its resampler no gradient"
            )

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (GazeResampler, HeatmapVector)):
            module.reset_parameters()

    # ---------------------------------------------------------------- building, loading, saving
    @classmethod
    def from_base(
        cls,
        base_model: str,
        video_encoder: str | None = None,
        base_model_revision: str | None = None,
        video_encoder_revision: str | None = None,
        dtype: torch.dtype | str = "auto",
        base_kwargs: dict | None = None,
        **config_kwargs,
    ) -> "GazeQwenForConditionalGeneration":
        """
        A new adapter on a base model and a video encoder, each a Hub id or a folder; the rest configures gaze. With
        `resampler_type="none"` no video encoder is needed.
        """
        config = GazeQwenConfig(
            base_model_name_or_path=absolute_if_folder(base_model),
            base_model_revision=base_model_revision,
            video_encoder_name_or_path=absolute_if_folder(video_encoder) if video_encoder else None,
            video_encoder_revision=video_encoder_revision,
            **config_kwargs,
        )
        return cls._with_pretrained_parts(config, dtype, {}, base_kwargs or {})

    @classmethod
    def _with_pretrained_parts(cls, config, dtype, hub_kwargs: dict, base_kwargs: dict):
        model_class = family_of(config.load_backbone_config(**hub_kwargs)).model_class
        backbone = model_class.from_pretrained(
            config.base_model_name_or_path,
            revision=config.base_model_revision or "main",
            dtype=dtype,
            use_safetensors=True,  # no pickles, whatever a repository offers
            **hub_kwargs,
            **base_kwargs,
        )
        video_encoder = None
        if config.has_resampler:
            video_encoder = load_video_encoder(
                config.video_encoder_name_or_path,
                config.load_video_encoder_config(**hub_kwargs),
                config.video_encoder_revision or "main",
                dtype,
                **hub_kwargs,
            ).to(backbone.device)
        model = cls(config, backbone=backbone, video_encoder=video_encoder)
        model.resampler.to(backbone.device)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        config: GazeQwenConfig | None = None,
        dtype: torch.dtype | str = "auto",
        revision: str = "main",
        cache_dir: str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **base_kwargs,
    ) -> "GazeQwenForConditionalGeneration":
        """
        Load a trained adapter, and its base model and video encoder by the ids and revisions in its config.

        `dtype` and everything not named (`device_map`, `attn_implementation`, `quantization_config`, ...) go to the
        base model; the resampler stays float32. Raises ValueError that lists every missing or unexpected key of the
        resampler or LoRA.
        """
        for name in _AUTO_KEYWORDS + _PICKLE_KEYWORDS:
            base_kwargs.pop(name, None)
        if "torch_dtype" in base_kwargs:
            dtype = base_kwargs.pop("torch_dtype")
        hub_kwargs = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
        }
        here = {**hub_kwargs, "revision": revision}
        source = pretrained_model_name_or_path
        if config is None:
            config = cls.config_class.from_pretrained(source, **here)
        if not Path(source).is_dir():
            config.check_ids(str(source))
        model = cls._with_pretrained_parts(config, dtype or "auto", hub_kwargs, base_kwargs)

        weights = load_file(cached_file(source, "model.safetensors", **here))
        own = {f"resampler.{name}" for name in model.resampler.state_dict()}
        check_keys(f"{source}/model.safetensors", own, set(weights))
        model.resampler.load_state_dict({name.removeprefix("resampler."): value for name, value in weights.items()})

        with_lora = config.has_lora
        if with_lora is None:  # saved before configs said it
            with_lora = (
                cached_file(source, LORA_FILES[0], _raise_exceptions_for_missing_entries=False, **here) is not None
            )
        if with_lora:
            model._load_lora(*(Path(cached_file(source, file, **here)) for file in LORA_FILES))
        model.generation_config = GenerationConfig.from_pretrained(source, **here)
        model.backbone.generation_config = model.generation_config
        model.name_or_path = str(source)
        return model

    def save_pretrained(
        self,
        save_directory,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """
        Save what was trained and how to find the rest: `config.json`, `model.safetensors` (keys `resampler.*`),
        `lora/` where LoRA was added, and the code files that `trust_remote_code` runs. No base weights. `state_dict`:
        the tensors of `trained_parameters`, whole, where this process holds only shards of them.
        """
        if self._lora_merged:
            raise ValueError("LoRA was merged into the base weights, which are not saved: save before merge_lora()")
        for name, source in self.config.sources().items():
            if source is None:
                raise ValueError(
                    f"config.{name} is None: base weights are not saved, so give the id or folder to load them from"
                )
        self.config.has_lora = self.has_lora
        if self.is_remote_code():
            module = type(self).__module__.split(".")[-1]
            self.config.auto_map = {name: f"{module}.{type(self).__name__}" for name in AUTO_CLASSES}
        hub = {name: kwargs.pop(name) for name in _PUSH_KEYWORDS if name in kwargs}
        whole = {f"resampler.{name}": value for name, value in self.resampler.state_dict().items()}
        whole.update({name: value for name, value in (state_dict or {}).items() if name in whole})
        super().save_pretrained(save_directory, state_dict=whole, **kwargs)
        if not whole:  # LoRA alone: transformers writes no file of no tensors, and loading is to find one
            save_file({}, Path(save_directory) / "model.safetensors", metadata={"format": "pt"})
        folder = Path(save_directory) / LORA_FOLDER
        shutil.rmtree(folder, ignore_errors=True)  # LoRA of an earlier save here would be loaded with these weights
        if self.has_lora:
            tensors = {name.removeprefix("backbone."): value for name, value in (state_dict or {}).items()}
            self._save_lora(folder, tensors)
        if push_to_hub:  # not by transformers, which would upload before LoRA is there
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """
        As in transformers. Others load the adapter by the ids in its config: base model and video encoder that are
        folders of this machine are refused.
        """
        for name, source in self.config.sources().items():
            check_for_hub(f"config.{name}", source)
        return super().push_to_hub(repo_id, **kwargs)

    # ---------------------------------------------------------------- what is trained
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """By name, what training changes: the resampler, and LoRA where it was added."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def no_weight_decay(self) -> set[str]:
        """Return the names of trained parameters that do not decay: LoRA's, and those that the resampler names."""
        own = self.resampler.no_weight_decay() if self.config.has_resampler else set()
        return {f"resampler.{name}" for name in own} | {n for n in self.trained_parameters() if "lora_" in n}

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
        """Within this context the model is exactly its base model, whatever scanpaths it is given."""
        before, self._gaze_enabled = self._gaze_enabled, False
        try:
            yield self
        finally:
            self._gaze_enabled = before

    # ---------------------------------------------------------------- gaze of a call
    def _prepare_injection(
        self,
        input_ids,
        video_grid_thw,
        gaze: dict[str, torch.Tensor | None],
        has_gaze=None,
        cache=None,
        start: int = 0,
    ) -> GazeInjection | None:
        """
        Return what the call adds, from its `GAZE_INPUTS`; None where nothing has to be added or switched off.
        `has_gaze` (B,) is what the caller says of the prompts, `start` the position of `input_ids` in the `cache`.
        """
        with_scanpaths = gaze["scanpaths"] is not None and self._gaze_enabled
        if not with_scanpaths and not self.has_lora:
            return None
        if input_ids is None and not with_scanpaths:
            raise ValueError("without scanpaths LoRA is switched off per sample, which needs input_ids")
        if input_ids is None or (with_scanpaths and video_grid_thw is None):
            raise ValueError("scanpaths need input_ids and video_grid_thw, to find the video tokens")
        rows, factors = torch.full_like(input_ids, -1), None
        if with_scanpaths:
            grids = self.token_grids(video_grid_thw).to(input_ids.device)  # (V, 3)
            is_video = input_ids == self.backbone.config.video_token_id  # (B, L)
            check_gaze_inputs(is_video, grids, self._feature_dim, self._frames_per_step, gaze)
            has_scanpath = videos_with_scanpath(gaze, grids)
            rows = rows_of_prompts(is_video, grids, has_scanpath)
            if has_scanpath.any() and self.config.has_resampler:
                factors = self.resampler.factors(*self._resampler_inputs(gaze, has_scanpath, grids))
        if not self.has_lora:
            return GazeInjection(rows, None, factors, start)
        with_gaze = (rows >= 0).any(-1)
        if self._gaze_enabled:
            with_gaze = prompts_with_gaze(with_gaze, has_gaze, cache, cache_length(cache))
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
        check_gaze_inputs(None, grids, self._feature_dim, self._frames_per_step, gaze)
        every = torch.ones(len(grids), dtype=torch.bool)
        return self.resampler.factors(*self._resampler_inputs(gaze, every, grids), **kwargs)

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
        **kwargs,
    ):
        """
        Run Qwen2.5-VL's forward, plus gaze. V is the number of videos in the batch, in the order of `video_grid_thw`.

        Args:
            video_embeds: (video tokens, hidden) in place of `pixel_values_videos` (`embed_video`).
            video_encoder_pixel_values: (V, F, 3, S, S) frames for the video encoder, padded to the longest video; or
            video_encoder_features: (V, T, N, D_v) its features on the visual token grid (`encode_video`).
            scanpaths: (V, F, 4) `x_norm, y_norm, t_mid_s, duration_s`; `None`: no gaze, exactly the base model.
            scanpath_mask: (V, F), False for padding rows. A video with no True row has an empty scanpath.
            has_scanpath: (V,), False for videos without gaze; default all True.
            step_spans_s: (V, T, 2) begin and end of each temporal step, seconds of the source video.
            has_gaze: (B,), for prompts given in chunks on one `past_key_values`: True where a chunk, this one or a
                later one, has a scanpath. Needed with LoRA from the first chunk on if the scanpath comes with a later
                one; else the cache remembers it. A chunk takes the gaze inputs of its own videos, each video whole.

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
        if video_embeds is not None:
            if input_ids is None or pixel_values_videos is not None:
                raise ValueError("video_embeds need input_ids, and come in place of pixel_values_videos")
            inputs_embeds = self._input_embeds(input_ids, video_embeds)
        start = cache_length(past_key_values)
        injection = self._prepare_injection(input_ids, video_grid_thw, gaze, has_gaze, past_key_values, start)
        if position_ids is None:
            visual = dict(zip(VISUAL_INPUTS, (image_grid_thw, video_grid_thw, second_per_grid_ts), strict=True))
            tokens = input_ids if input_ids is not None else inputs_embeds
            position_ids = self._position_ids(
                tokens, mm_token_type_ids, attention_mask, past_key_values, start, visual
            )
        with self._hooks.during(injection):
            output = self.backbone(
                input_ids=input_ids,
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
                second_per_grid_ts=second_per_grid_ts,
                mm_token_type_ids=mm_token_type_ids,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        remember_positions(output.past_key_values, position_ids, start)
        return output

    @torch.no_grad()
    def generate(self, inputs: torch.LongTensor | None = None, generation_config=None, **kwargs):
        """
        Run the base model's `generate` with the residuals added to the prompt's video tokens. Takes the gaze inputs of
        `forward` beside everything that Qwen2.5-VL's `generate` takes. On a filled `past_key_values`, `input_ids` are
        the whole prompt or, with an `attention_mask` that is longer, what comes after the cache.
        """
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        gaze = {name: kwargs.pop(name, None) for name in GAZE_INPUTS}
        cache, mask, start = kwargs.get("past_key_values"), kwargs.get("attention_mask"), 0
        if input_ids is not None and mask is not None and mask.shape[1] > input_ids.shape[1]:
            start = cache_length(cache)
        has_gaze = kwargs.pop("has_gaze", None)
        injection = self._prepare_injection(input_ids, kwargs.get("video_grid_thw"), gaze, has_gaze, cache, start)
        if kwargs.get("position_ids") is None:
            visual = {name: kwargs.get(name) for name in VISUAL_INPUTS}
            tokens = input_ids if input_ids is not None else kwargs["inputs_embeds"]
            types, past = kwargs.get("mm_token_type_ids"), cache_length(cache)
            if past > start and all(value is None for value in visual.values()):  # the cache holds the video
                tokens, types, start = tokens[:, past:], None, past
            positions = self._position_ids(tokens, types, mask, cache, start, visual)
            remember_positions(cache, positions, start)
            kwargs["position_ids"] = nn.functional.pad(positions, (start, 0))  # `generate` takes the last of them
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        with self._hooks.during(injection):
            return self.backbone.generate(inputs, **kwargs)

    def _position_ids(
        self,
        tokens: torch.Tensor,
        types: torch.Tensor | None,
        mask: torch.Tensor | None,
        cache,
        start: int,
        visual: dict,
    ) -> torch.Tensor:
        """
        Return the (3, B, L) rotary positions of `tokens`, ids (B, L) or embeddings (B, L, D), which come after `start`
        positions of the `cache`. `types` (B, L): their token types; `visual`: grids and seconds of the processor.
        Raises ValueError where they cannot be known.
        """
        config = self.backbone.config
        has_vision = visual["image_grid_thw"] is not None or visual["video_grid_thw"] is not None
        if tokens.dim() == 2:
            types = token_types(config, tokens)
        elif types is None and has_vision:
            raise ValueError("inputs_embeds with images or videos need input_ids, mm_token_type_ids or position_ids")
        elif types is None:
            types = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        if mask is not None:
            mask = mask[:, -types.shape[1] :] if mask.dim() == 2 else None
        if self.config.position_convention == "qwen" or not has_vision:
            positions, _ = trained_positions(config, types, mask, **visual)
        elif start:
            raise ValueError(
                "a video or an image in a later chunk needs position_ids, which position_convention 'transformers' "
                "does not tell"
            )
        else:
            positions, _ = self.backbone.model.get_rope_index(
                torch.zeros_like(types), mm_token_type_ids=types, attention_mask=mask, **visual
            )
        if start:
            positions = positions + next_positions(cache, start, len(types)).to(positions.device)[:, None]
        return positions

    # ---------------------------------------------------------------- what callers expect of a transformers model
    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def train(self, mode: bool = True) -> "GazeQwenForConditionalGeneration":
        super().train(mode)
        if "video_encoder" in self._modules:
            self.video_encoder.eval()
        return self


GazeQwenForConditionalGeneration.register_for_auto_class("AutoModel")

__all__ = ["GazeQwenForConditionalGeneration"]
