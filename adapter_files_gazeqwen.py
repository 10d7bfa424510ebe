"""How an adapter is built on frozen models, saved, pushed and loaded: files of what was trained, ids of the rest."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig
from transformers.utils import cached_file

from .backbones_gazeqwen import family_of
from .configuration_gazeqwen import GazeQwenConfig, absolute_if_folder, check_for_hub
from .lora_gazeqwen import LORA_FILES, LORA_FOLDER, check_keys
from .video_encoders_gazeqwen import load_video_encoder

AUTO_CLASSES = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")

# Arguments that Auto classes add to every `from_pretrained` and that mean nothing here.
_AUTO_KEYWORDS = ("_from_auto", "_commit_hash", "adapter_kwargs", "trust_remote_code", "code_revision")
# Arguments by which pickles could be allowed: they never are.
_PICKLE_KEYWORDS = ("weights_only", "use_safetensors")
# Arguments of `save_pretrained` that are for `push_to_hub`.
_PUSH_KEYWORDS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr", "tags")


class AdapterFilesMixin:
    """What a model of `backbone`, `video_encoder`, `resampler` and LoRA (`LoraMixin`) does with files and the Hub."""

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
    ) -> "AdapterFilesMixin":
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
    ) -> "AdapterFilesMixin":
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
        super().save_pretrained(save_directory, state_dict=dict(whole), **kwargs)  # which may be emptied there
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


__all__ = ["AUTO_CLASSES", "AdapterFilesMixin"]
