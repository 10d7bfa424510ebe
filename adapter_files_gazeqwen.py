"""How an adapter is built on frozen models, saved, pushed and loaded: files of what was trained, ids of the rest."""

import errno
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import cached_file

from .backbones_gazeqwen import errors_name, family_of
from .configuration_gazeqwen import GazeQwenConfig, absolute_if_folder, check_for_hub
from .lora_gazeqwen import LORA_FILES, LORA_FOLDER, LoraMixin, check_finite, check_tensors, read_lora, read_tensors
from .video_encoders_gazeqwen import load_video_encoder

_WEIGHTS = "model.safetensors"  # of the resampler
AUTO_CLASSES = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")

# Arguments that Auto classes add to every `from_pretrained` and that mean nothing here.
_AUTO_KEYWORDS = ("_from_auto", "_commit_hash", "adapter_kwargs", "trust_remote_code", "code_revision")
# Arguments by which pickles could be allowed: they never are.
_PICKLE_KEYWORDS = ("weights_only", "use_safetensors")
# Arguments of `save_pretrained` that are for `push_to_hub`.
_PUSH_KEYWORDS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr", "tags")


if TYPE_CHECKING:  # what the mixin stands on

    class _Model(LoraMixin, PreTrainedModel):
        resampler: torch.nn.Module
else:
    _Model = object


class AdapterFilesMixin(_Model):
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
        A new adapter on a base model and a video encoder, each a Hub id or a folder; the rest configures gaze. Without
        the resampler, or with `resampler_features="base_model"`, no video encoder is needed.
        """
        config = GazeQwenConfig(
            base_model_name_or_path=absolute_if_folder(base_model),
            base_model_revision=base_model_revision,
            video_encoder_name_or_path=absolute_if_folder(video_encoder) if video_encoder else None,
            video_encoder_revision=video_encoder_revision,
            **config_kwargs,
        )
        return cls._with_pretrained_parts(config, dtype, {}, base_kwargs or {})[0]

    @classmethod
    def _with_pretrained_parts(cls, config, dtype, hub_kwargs: dict, base_kwargs: dict) -> tuple:
        """Return a new adapter on pretrained parts, and transformers' `loading_info` of the base model."""
        if config._attn_implementation is not None:
            base_kwargs = {"attn_implementation": config._attn_implementation, **base_kwargs}
        model_class = family_of(config.load_backbone_config(**hub_kwargs)).model_class
        revision = config.base_model_revision or "main"
        source = config.base_model_name_or_path
        with errors_name(source):
            backbone, loading_info = model_class.from_pretrained(
                source,
                revision=revision,
                adapter_kwargs={"revision": revision},  # 5.17 would look for LoRA of the base model in main
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=True,  # no pickles, whatever a repository offers
                **hub_kwargs,
                **base_kwargs,
            )
        if missing := sorted(loading_info["missing_keys"]):
            raise ValueError(f"{source}: {len(missing)} tensors of the base model are not there, such as {missing[0]}")
        check_finite(source, backbone.named_parameters())
        video_encoder = None
        if config.has_video_encoder:
            source = config.video_encoder_name_or_path
            with errors_name(source):
                video_encoder = load_video_encoder(
                    source,
                    config.load_video_encoder_config(**hub_kwargs),
                    config.video_encoder_revision or "main",
                    dtype,
                    **hub_kwargs,
                ).to(backbone.device)
            check_finite(source, video_encoder.named_parameters())
        config.backbone_config = backbone.config
        config._attn_implementation = backbone.config._attn_implementation
        model = cls(config, backbone=backbone, video_encoder=video_encoder)
        model.resampler.to(backbone.device)
        return model.eval(), loading_info

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
        subfolder: str = "",
        variant: str | None = None,
        output_loading_info: bool = False,
        **base_kwargs,
    ) -> "AdapterFilesMixin | tuple[AdapterFilesMixin, dict]":
        """
        Load a trained adapter, and its base model and video encoder by the ids and revisions in its config.
        `subfolder` and `variant` are the adapter's; `output_loading_info` returns what transformers says of the base
        model beside the model: nothing of the adapter can be missing.

        `dtype` and everything not named (`device_map`, `attn_implementation`, `quantization_config`, ...) go to the
        base model; the resampler stays float32. Raises ValueError that lists every missing or unexpected key of the
        resampler or LoRA, for a tensor that is not finite, and for tensors (`state_dict`) in place of files.
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
        here = {**hub_kwargs, "revision": revision, "subfolder": subfolder}
        source = pretrained_model_name_or_path
        if source is None or base_kwargs.get("state_dict") is not None:
            raise ValueError(
                f"from_pretrained: got {source}, expected the folder or id of an adapter and no state_dict: the base "
                "model is loaded by its id, and from_base begins a new adapter on it"
            )
        is_config_stored = config is None
        if config is None:
            config = cls.config_class.from_pretrained(source, **here)
        if not Path(source).is_dir():
            config.check_ids(str(source))
        # What was trained comes first: a mistake in it should not cost the loading of a large model.
        weights_file = with_variant(_WEIGHTS, variant)
        weights = read_tensors(cached_file(source, weights_file, **here))
        with_lora, lora = config.has_lora, None
        if with_lora is None:  # saved before configs said it
            with_lora = (
                cached_file(source, LORA_FILES[0], _raise_exceptions_for_missing_entries=False, **here) is not None
            )
        if with_lora:
            settings, weights_name = LORA_FILES[0], with_variant(LORA_FILES[1], variant)
            paths = Path(cached_file(source, settings, **here)), Path(cached_file(source, weights_name, **here))
            lora = read_lora(*paths, config.base_model_name_or_path if is_config_stored else None)
        with errors_name(source):
            generation_config = GenerationConfig.from_pretrained(source, **here)
            model, loading_info = cls._with_pretrained_parts(config, dtype or "auto", hub_kwargs, base_kwargs)
        own = {f"resampler.{name}": value for name, value in model.resampler.state_dict().items()}
        check_tensors(f"{source}/{weights_file}", own, weights)
        model.resampler.load_state_dict({name.removeprefix("resampler."): value for name, value in weights.items()})
        if lora is not None:
            model._add_stored_lora(lora)
        model.generation_config = generation_config
        model.name_or_path = str(source)
        return (model, loading_info) if output_loading_info else model

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """
        As in torch. Raises ValueError for the resampler's tensors alone where the model has LoRA: transformers'
        `Trainer` loads `model.safetensors` of a checkpoint and nothing else, and LoRA would stay as it is.
        """
        if not strict and self.has_lora and not any("lora_" in name for name in state_dict):
            raise ValueError(
                "these tensors lack LoRA's, which this model has and which are in lora/ of a checkpoint: load both by "
                "from_pretrained(checkpoint); Trainer's resume_from_checkpoint and load_best_model_at_end cannot"
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        variant: str | None = None,
        **kwargs,
    ) -> None:
        """
        Save what was trained and how to find the rest: `config.json`, `model.safetensors` (keys `resampler.*`),
        `lora/` where LoRA was added, and the code files that `trust_remote_code` runs. No base weights. `state_dict`:
        the model's tensors, in place of its own. A file of tensors replaces an earlier one when it is whole.
        Processes other than the main one write nothing.
        """
        if not is_main_process:
            return
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
        own = {f"resampler.{name}": value for name, value in self.resampler.state_dict().items()}
        state_dict = state_dict or {}
        tensors = {name: state_dict.get(name, value) for name, value in own.items()}
        lora = self._lora_file(state_dict) if self.has_lora else {}
        _check_in_memory(tensors | lora)
        super().save_pretrained(save_directory, state_dict={}, **kwargs)  # config and code; it empties a dictionary
        write_tensors(Path(save_directory) / with_variant(_WEIGHTS, variant), tensors)
        if self.has_lora:
            self._save_lora_config(Path(save_directory) / LORA_FOLDER)
            write_tensors(Path(save_directory) / with_variant(LORA_FILES[1], variant), lora)
        else:  # LoRA of an earlier save here would be loaded with these weights
            shutil.rmtree(Path(save_directory) / LORA_FOLDER, ignore_errors=True)
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


def with_variant(file: str, variant: str | None) -> str:
    """Return the name of a file of tensors in a `variant`: `model.fp16.safetensors`, or `file` itself for None."""
    return file if variant is None else file.replace(".safetensors", f".{variant}.safetensors")


def write_tensors(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """
    Write a safetensors file, with a text in its header (`metadata`, one alone: safetensors writes several in any
    order), and put it in the place of an earlier one when its header lists all names and shapes.
    Raises OSError, naming the file, where it does not, or cannot be written, as on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        save_file(contiguous, new, metadata=metadata or {"format": "pt"})
        with safe_open(new, framework="pt") as file:
            written = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    else:
        expected = {name: tuple(value.shape) for name, value in tensors.items()}
        if written != expected:
            raise OSError(f"{path}: got {len(written)} tensors, expected {len(expected)}: {sorted(expected)}")
        _sync(new)
        new.replace(path)
        _sync(path.parent)
    finally:
        new.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk, so that a power cut leaves the old or the new one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _check_in_memory(tensors: dict[str, torch.Tensor]) -> None:
    absent = sorted(name for name, value in tensors.items() if value.is_meta)
    if absent:
        raise ValueError(f"{absent[0]} is on the meta device, expected its values: load what was offloaded, then save")


__all__ = ["AUTO_CLASSES", "AdapterFilesMixin", "with_variant", "write_tensors"]
