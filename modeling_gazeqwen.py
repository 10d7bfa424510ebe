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
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, Qwen2_5_VLForConditionalGeneration
from transformers.utils import cached_file, logging

from .configuration_gazeqwen import GazeQwenConfig, check_for_hub
from .injection_gazeqwen import (
    GAZE_INPUTS,
    GazeInjection,
    check_frames,
    check_gaze_inputs,
    prompts_with_gaze,
    rows_of_tokens,
)
from .resampler_gazeqwen import GazeResampler, HeatmapVector, align_video_features, build_resampler
from .video_encoders_gazeqwen import build_video_encoder, load_video_encoder

try:
    from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
except ImportError:  # only models with LoRA need it
    LoraConfig = None

logger = logging.get_logger(__name__)

# The Qwen-VL families that can be wrapped, by model_type. All have `model.language_model.layers` and `video_token_id`.
BACKBONES = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}

LORA_FOLDER = "lora"
LORA_TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
AUTO_CLASSES = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")

# Arguments that Auto classes add to every `from_pretrained` and that mean nothing here.
_AUTO_KEYWORDS = ("_from_auto", "_commit_hash", "adapter_kwargs", "trust_remote_code", "code_revision")
# Arguments by which pickles could be allowed: they never are.
_PICKLE_KEYWORDS = ("weights_only", "use_safetensors")
# Arguments of `save_pretrained` that are for `push_to_hub`.
_PUSH_KEYWORDS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr", "tags")


class GazeQwenForConditionalGeneration(PreTrainedModel, GenerationMixin):
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
        super().__init__(config)
        self.resampler = build_resampler(config)
        self.post_init()
        self.backbone = backbone if backbone is not None else _backbone_class(config)(config.load_backbone_config())
        self.backbone.requires_grad_(False)
        self.video_encoder = None
        if config.has_resampler:
            self.video_encoder = video_encoder or build_video_encoder(config.load_video_encoder_config())
            self.video_encoder.requires_grad_(False).eval()
        self.generation_config = self.backbone.generation_config
        self._gaze_enabled = True
        self._lora_merged = False
        self._call: GazeInjection | None = None  # of the running forward or generate, and only then
        self._lora_gate: torch.Tensor | None = None  # of the running attention layer, and only then
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
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
        config.load_backbone_config(**hub_kwargs)
        backbone = _backbone_class(config).from_pretrained(
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
            _check_ids(str(source), config)
        model = cls._with_pretrained_parts(config, dtype or "auto", hub_kwargs, base_kwargs)

        weights = load_file(cached_file(source, "model.safetensors", **here))
        own = {f"resampler.{name}" for name in model.resampler.state_dict()}
        _check_keys(f"{source}/model.safetensors", own, set(weights))
        model.resampler.load_state_dict({name.removeprefix("resampler."): value for name, value in weights.items()})

        has_lora = config.has_lora
        if has_lora is None:  # saved before configs said it
            optional = {**here, "_raise_exceptions_for_missing_entries": False}
            has_lora = cached_file(source, f"{LORA_FOLDER}/adapter_config.json", **optional) is not None
        if has_lora:
            files = [f"{LORA_FOLDER}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")]
            model._load_lora(*(Path(cached_file(source, file, **here)) for file in files))
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
            config = self.backbone.peft_config["default"]
            config.base_model_name_or_path = self.config.base_model_name_or_path
            config.revision = self.config.base_model_revision
            config.save_pretrained(folder)
            held = {name.removeprefix("backbone."): value for name, value in (state_dict or {}).items()}
            weights = {f"base_model.model.{name}": value.contiguous() for name, value in self.lora_state(held).items()}
            save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
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

    # ---------------------------------------------------------------- LoRA (paper, stage 2)
    @property
    def has_lora(self) -> bool:
        return getattr(self.backbone, "_hf_peft_config_loaded", False)

    def add_lora(self, rank: int = 8, alpha: float = 16, dropout: float = 0.0) -> None:
        """Give the language model's query and value projections a new LoRA (PEFT), trainable, zero at first."""
        if LoraConfig is None:
            raise ImportError("LoRA needs PEFT: pip install peft")
        if self.has_lora:
            raise ValueError("this model has LoRA already")
        self._inject_lora(
            LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS, bias="none")
        )

    def _inject_lora(self, config) -> None:
        self.backbone.add_adapter(config)
        for name, value in self.backbone.named_parameters():
            if "lora_" in name:
                value.data = value.data.float()  # what is trained is float32: a half loses small steps
        self.detach_gaze()
        self.attach_gaze()  # hooks on the new modules too

    def lora_state(self, held: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """LoRA's tensors by PEFT's names; `held`: the backbone's tensors, where they are not its own."""
        # Embeddings are not trained; PEFT would ask the Hub for the base model's vocabulary to find that out.
        return get_peft_model_state_dict(
            self.backbone, state_dict=held or None, adapter_name="default", save_embedding_layers=False
        )

    def _load_lora(self, config_file: Path, weights_file: Path) -> None:
        if LoraConfig is None:
            raise ImportError(f"{config_file}: this adapter has LoRA, which needs PEFT: pip install peft")
        config = PeftConfig.from_pretrained(str(config_file.parent))
        config.inference_mode = False
        self._inject_lora(config)
        weights = load_file(weights_file)
        weights = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
        _check_keys(str(weights_file), set(self.lora_state()), set(weights))
        set_peft_model_state_dict(self.backbone, weights, adapter_name="default")

    def merge_lora(self) -> None:
        """
        Add LoRA to the base weights and remove its modules: no cost per token, but the base model is then changed, so
        that answers without gaze are no longer the base model's, and the model can no longer be saved.
        """
        if not self.has_lora:
            raise ValueError("this model has no LoRA to merge")
        self.detach_gaze()
        self.backbone.enable_adapters()
        for name, module in list(self.backbone.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
                parent, _, child = name.rpartition(".")
                setattr(self.backbone.get_submodule(parent), child, module.get_base_layer())
        del self.backbone.peft_config
        self.backbone._hf_peft_config_loaded = False
        self._lora_merged = True
        self.attach_gaze()

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """By name, what training changes: the resampler, and LoRA where it was added."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def no_weight_decay(self) -> set[str]:
        """Return the names of trained parameters that do not decay: LoRA's, and those that the resampler names."""
        own = self.resampler.no_weight_decay() if self.config.has_resampler else set()
        return {f"resampler.{name}" for name in own} | {n for n in self.trained_parameters() if "lora_" in n}

    # ---------------------------------------------------------------- hooks
    @property
    def _decoder(self) -> nn.Module:
        return self.backbone.model.language_model

    def attach_gaze(self) -> None:
        """Register the hooks. They stay until `detach_gaze`, through backward."""
        if self._hooks:
            return
        register = self._hooks.append
        register(self._decoder.register_forward_pre_hook(self._hand_to_layers, with_kwargs=True))
        for layer in self._decoder.layers:
            register(layer.self_attn.register_forward_pre_hook(self._take_from_attention, with_kwargs=True))
        for index, layer_index in enumerate(self.config.resolved_injection_layers()):
            layer = self._decoder.layers[layer_index]
            register(layer.register_forward_hook(self._make_layer_hook(index), with_kwargs=True))
        if self.has_lora:
            for module in self.backbone.modules():
                if isinstance(module, BaseTunerLayer):
                    register(module.lora_B["default"].register_forward_hook(self._gate_lora))
            self.backbone.enable_adapters()

    def detach_gaze(self) -> None:
        """Remove the hooks and switch LoRA off: `backbone` is the base model again. `attach_gaze` undoes it."""
        while self._hooks:
            self._hooks.pop().remove()
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

    def _hand_to_layers(self, decoder, args, kwargs):
        if self._call is None:
            return None
        batch_size, length = kwargs["inputs_embeds"].shape[:2]
        past_length = _cache_length(kwargs.get("past_key_values"))
        return args, {**kwargs, "gaze_injection": self._call.at(past_length, batch_size, length)}

    def _take_from_attention(self, attention, args, kwargs):
        injection = kwargs.pop("gaze_injection", None)  # attention kernels know nothing of it
        self._lora_gate = None if injection is None else injection.lora_gate
        if injection is not None:
            injection.mark(kwargs.get("past_key_values"))  # also one that the decoder made itself
        return args, kwargs

    def _gate_lora(self, module, args, output):
        return None if self._lora_gate is None else output * self._lora_gate.to(output)[:, None, None]

    @staticmethod
    def _make_layer_hook(index: int):
        def add_residual(layer, args, kwargs, output):
            injection = kwargs.get("gaze_injection")
            return None if injection is None or injection.factors is None else injection.add_to(output, index)

        return add_residual

    # ---------------------------------------------------------------- gaze of a call
    @property
    def _frames_per_step(self) -> int:
        return self.backbone.config.vision_config.temporal_patch_size

    def _encode_video(self, pixel_values: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """
        Frozen features on the visual token grids. `pixel_values` (V, F, 3, S, S), `grids` (V, 3) = T, H, W of visual
        tokens -> (V, T_max, N_max, D_v), zero-padded. Videos of equal grid are encoded together.
        """
        frames_per_step = self._frames_per_step
        max_steps, max_tokens = int(grids[:, 0].max()), int(grids[:, 1:].prod(-1).max())
        shape = (len(grids), max_steps, max_tokens, self.video_encoder.config.hidden_size)
        features = torch.zeros(shape, dtype=self.video_encoder.dtype, device=pixel_values.device)
        for grid in grids.unique(dim=0):
            same = (grids == grid).all(-1)
            steps, height, width = grid.tolist()
            frames = pixel_values[same, : steps * frames_per_step].to(self.video_encoder.dtype)
            tokens = self.video_encoder(frames).last_hidden_state
            tokens = tokens.unflatten(1, self.video_encoder.token_grid(frames.shape[1], *frames.shape[-2:]))
            aligned = align_video_features(tokens, (steps, height, width)).to(features.dtype)
            features[same, :steps, : height * width] = aligned
        return features

    def token_grids(self, video_grid_thw: torch.Tensor) -> torch.Tensor:
        """(V, 3) T, H, W of visual tokens from Qwen's (V, 3) grid of patches."""
        merge = self.backbone.config.vision_config.spatial_merge_size
        return video_grid_thw // torch.tensor([1, merge, merge], device=video_grid_thw.device)

    @torch.no_grad()
    def encode_video(self, video_encoder_pixel_values: torch.Tensor, video_grid_thw: torch.Tensor) -> torch.Tensor:
        """
        The frozen `video_encoder_features` (V, T, H*W, D_v) of `video_encoder_pixel_values` (V, F, 3, S, S), to be
        computed once and given instead of the pixels.
        """
        if self.video_encoder is None:
            raise ValueError("this model has no video encoder: its resampler_type is 'none'")
        grids = self.token_grids(video_grid_thw)
        check_frames(video_encoder_pixel_values, grids, self._frames_per_step)
        return self._encode_video(video_encoder_pixel_values, grids)

    @torch.no_grad()
    def embed_video(self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor) -> torch.Tensor:
        """
        The base model's frozen embeddings (video tokens of all videos, hidden) of `pixel_values_videos`, to be
        computed once and given to `forward` as `video_embeds` instead of the pixels.
        """
        features = self.backbone.model.get_video_features(pixel_values_videos, video_grid_thw, return_dict=True)
        return torch.cat(list(features.pooler_output))

    def _input_embeds(self, input_ids: torch.Tensor, video_embeds: torch.Tensor) -> torch.Tensor:
        """(B, L, D) embeddings of the prompts with `video_embeds` in the places of the video tokens."""
        embeds = self.get_input_embeddings()(input_ids)
        is_video = input_ids == self.backbone.config.video_token_id
        if video_embeds.shape != (int(is_video.sum()), embeds.shape[-1]):
            raise ValueError(
                f"video_embeds are {tuple(video_embeds.shape)}, expected {(int(is_video.sum()), embeds.shape[-1])}: "
                "video tokens of the prompts, hidden size"
            )
        return embeds.masked_scatter(is_video[..., None], video_embeds.to(embeds))

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
            factors = self._fill_rows(rows, input_ids, video_grid_thw, gaze)
        if not self.has_lora:
            return GazeInjection(rows, None, factors, start)
        has_scanpath = (rows >= 0).any(-1)
        if self._gaze_enabled:
            has_scanpath = prompts_with_gaze(has_scanpath, has_gaze, cache, _cache_length(cache))
        return GazeInjection(rows, has_scanpath, factors, start)

    def _fill_rows(self, rows, input_ids, video_grid_thw, gaze: dict[str, torch.Tensor | None]):
        """Write into `rows` (B, L) which row of the residuals each position receives; return the residuals."""
        grids = self.token_grids(video_grid_thw).to(input_ids.device)  # (V, 3)
        is_video = input_ids == self.backbone.config.video_token_id  # (B, L)
        sizes = grids.prod(-1)
        if int(is_video.sum()) != int(sizes.sum()):
            raise ValueError(
                f"the prompts hold {int(is_video.sum())} video tokens, video_grid_thw stands for {int(sizes.sum())}"
            )
        feature_dim = None if self.video_encoder is None else self.video_encoder.config.hidden_size
        check_gaze_inputs(grids, feature_dim, self._frames_per_step, gaze)
        has = gaze["has_scanpath"]
        has = torch.ones(len(grids), dtype=torch.bool) if has is None else has
        has = has.to(input_ids.device).bool()
        if not has.any():
            return None
        rows[is_video] = rows_of_tokens(grids, has)
        return self.resampler.factors(*self._seen(gaze, has, grids[has])) if self.config.has_resampler else None

    def _seen(self, gaze: dict[str, torch.Tensor | None], has: torch.Tensor, gazed: torch.Tensor) -> tuple:
        """What the resampler is given of the videos with a scanpath, `has` (V,), whose grids are `gazed` (V', 3)."""
        scanpaths, features, present = (gaze[x] for x in ("scanpaths", "video_encoder_features", "scanpath_mask"))
        device = self.resampler.amplitude.device
        if features is None:
            with torch.no_grad():
                features = self._encode_video(gaze["video_encoder_pixel_values"][has].to(device), gazed)
        else:
            features = features[has].to(device)
        steps, tokens = int(gazed[:, 0].max()), int(gazed[:, 1:].prod(-1).max())
        present = torch.ones(scanpaths.shape[:2], dtype=torch.bool) if present is None else present
        return (
            features[:, :steps, :tokens],
            scanpaths[has].to(device),
            present[has].to(device).bool(),
            gaze["step_spans_s"][has].to(device)[:, :steps],
            gazed[:, 1:].to(device),
        )

    @torch.no_grad()
    def latent_attention(self, video_grid_thw: torch.Tensor, **inputs) -> torch.Tensor:
        """
        How much each latent attends to each visual token in the resampler's last block: (layers, V, T, K, H*W), layers
        being the injection layers, or 1 if they share a resampler. Takes the inputs of `forward`, of videos that all
        have a scanpath. With the foveated encoding the first half of the latents is foveal from the start.
        """
        if self.config.resampler_type != "attention":
            raise ValueError(f"no latents: resampler_type is {self.config.resampler_type!r}, expected 'attention'")
        attention = []
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
        check_gaze_inputs(grids, self.video_encoder.config.hidden_size, self._frames_per_step, gaze)
        return self.resampler.factors(*self._seen(gaze, torch.ones(len(grids), dtype=torch.bool), grids), **kwargs)

    @contextmanager
    def _during_call(self, injection: GazeInjection | None):
        if injection is not None and not self._hooks:
            injection = None  # detached: the base model
        self._call = injection
        try:
            yield
        finally:
            self._call = self._lora_gate = None

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
        start = _cache_length(past_key_values)
        if start and position_ids is None and video_grid_thw is not None and scanpaths is not None:
            raise ValueError("a video in a later chunk needs position_ids: the base model would count it as text")
        injection = self._prepare_injection(input_ids, video_grid_thw, gaze, has_gaze, past_key_values, start)
        with self._during_call(injection):
            return self.backbone(
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
            start = _cache_length(cache)
        has_gaze = kwargs.pop("has_gaze", None)
        injection = self._prepare_injection(input_ids, kwargs.get("video_grid_thw"), gaze, has_gaze, cache, start)
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        with self._during_call(injection):
            return self.backbone.generate(inputs, **kwargs)

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


def _backbone_class(config) -> type:
    model_type = config.load_backbone_config().model_type
    if model_type not in BACKBONES:
        raise ValueError(f"base model: got model_type {model_type!r}, expected one of {sorted(BACKBONES)}")
    return BACKBONES[model_type]


def _cache_length(cache) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def absolute_if_folder(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else str(name)


def _check_ids(source: str, config: GazeQwenConfig) -> None:
    """The config of a repository names other repositories, not folders of the machine that loads it."""
    for name, value in config.sources().items():
        if value is not None and (Path(value).is_absolute() or ".." in Path(value).parts):
            raise ValueError(f"{source}: {name} is {value!r} in its config, expected an id on the Hub")


def _check_keys(source: str, expected: set[str], found: set[str]) -> None:
    if expected != found:
        missing, unexpected = sorted(expected - found), sorted(found - expected)
        raise ValueError(f"{source} does not fit this model: missing {missing}, unexpected {unexpected}")


GazeQwenForConditionalGeneration.register_for_auto_class("AutoModel")

__all__ = ["GazeQwenForConditionalGeneration"]
