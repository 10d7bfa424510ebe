"""GazeQwenConfig: which base model, which video encoder, and how gaze enters."""

from os import PathLike
from pathlib import Path
from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from .backbones_gazeqwen import errors_name, refuse_kernels
from .positions_gazeqwen import POSITION_CONVENTIONS
from .scanpath_gazeqwen import is_number, is_whole
from .video_encoders_gazeqwen import load_video_encoder_config, video_encoder_config

logger = logging.get_logger(__name__)

GAZE_ENCODINGS = ("foveated", "coord_pe", "heatmap_decay", "heatmap_duration")
RESAMPLER_TYPES = ("attention", "heatmap_vector", "none")
RESAMPLER_FEATURES = ("video_encoder", "base_model")
FIXATION_WEIGHTINGS = ("share", "centre")

# What the sizes of a resampler may be at most: beyond, models are built for hours, or do not fit any memory.
_LARGEST = {"num_latents": 10_000, "latent_dim": 10_000, "num_blocks": 100}


def _check(condition: bool, name: str, got, expected: str) -> None:
    """Raise ValueError naming a setting, its value and what was expected, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}: got {got!r}, expected {expected}")


def _is_positive(value) -> bool:
    """Return whether a value is a positive, finite number."""
    return is_number(value) and value > 0


def check_for_hub(name: str, source: str | None) -> None:
    """Raise ValueError if an adapter that is to be published needs a frozen model from a folder of this machine."""
    if source and Path(source).is_dir():
        raise ValueError(
            f"{name}: got {source}, a folder of this machine, from which nobody else can load it, expected an id: "
            "push it to the Hub first"
        )


def absolute_if_folder(name: str) -> str:
    """Return a folder's absolute path, an id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else str(name)


class GazeQwenConfig(PreTrainedConfig):
    """
    Hold ids and revisions, never a backbone's constants: hidden sizes and layer counts are read from the base model's
    and the video encoder's own configs (`load_backbone_config`, `load_video_encoder_config`).
    Raises ValueError naming the setting, its value and what was expected.

    Args:
        base_model_name_or_path: Hub id or folder of a base model (`FAMILIES`), with its `base_model_revision`. In an
            adapter's folder, a path that begins with a dot is relative to that folder; also for the video encoder.
        video_encoder_name_or_path: Hub id or folder of a V-JEPA 2.1 encoder (see `convert.py`), or of a DINOv2 as timm
            publishes it (`timm/vit_base_patch14_dinov2.lvd142m`), with its `video_encoder_revision`.
        resampler_type: `"attention"`, the resampler, or `"heatmap_vector"`, the baseline without one: a heatmap times
            one learned vector per layer, which sees no features, so that there is no video encoder; or `"none"`: no
            residuals and no video encoder. With LoRA this is the control of which gaze only switches LoRA on, whatever
            the scanpath holds; without, the base model.
        resampler_features: what the resampler sees of the video: `"video_encoder"`, features of a second network
            (paper), or `"base_model"`, the embeddings that the base model's own vision tower makes of the video. Then
            there is no video encoder to load or to run.
        normalize_features: whether each token's features are brought to mean 0 and variance 1 before the resampler
            (LayerNorm without weights), so that their size, which differs a hundredfold between networks, says
            nothing. The paper does not.
        gaze_encoding: `"foveated"`, position-aware, or `"coord_pe"`, the paper's equation 2, or its Table 2's
            `"heatmap_decay"` and `"heatmap_duration"`. Foveated is the default because equation 2 adds the same
            vector to every visual key, so that gaze cannot favour the tokens near the fixation.
        fixation_weighting: `"share"`: a fixation counts in a temporal step by the share of its span that it covers;
            `"centre"`: only if active at the span's centre. Default: share, for `coord_pe` centre as in the paper.
        gaze_coordinate_scale: what `coord_pe` multiplies normalised coordinates by before the sinusoid: 1.0 as in the
            reference's checkpoints, 2 * pi as in DETR.
        foveal_sigmas, heatmap_sigma: widths of the Gaussians of `foveated` and of the single heatmaps, in cells of the
            visual token grid.
        injection_layers: decoder layers whose output receives a residual. Default: `floor(i * depth / 4)`, four evenly
            spaced layers from the first on that can all reach the answer (28 layers: 0, 7, 14, 21). The paper's 6, 13,
            20, 27 end on the last layer, after which no attention carries a video token's state to the answer.
        share_resampler: one resampler for all injection layers instead of one each (paper, Table 2).
        num_latents, latent_dim, num_blocks: size of the resampler (paper section 2.2).
        video_encoder_window: how many temporal steps, up to and with a step, the video encoder sees for its features:
            nothing after it, so that they stay what they are as the video goes on. Default: the whole clip, as in the
            paper.
        position_convention: which rotary positions the base model gets: `"qwen"`, those that its weights were trained
            with, or `"transformers"`, those of the installed library, which since transformers 5.3 puts text after a
            video elsewhere. Default: what the base model's config says under this name, else `"qwen"`; adapters saved
            before there was a choice were trained with the library's, and keep them.
        has_lora: whether the saved adapter has LoRA in `lora/`; written by `save_pretrained`, so that files which do
            not arrive are noticed, and those of an earlier push are not loaded.
        load_in_4bit: whether the base model was in 4 bits in training. `gazeqwen` then asks it so; `from_pretrained`
            does with a `quantization_config` alone.
        backbone_config, video_encoder_config: the configs themselves, for models built without a Hub id or folder.
    """

    model_type = "gazeqwen"
    sub_configs: ClassVar[dict] = {"backbone_config": AutoConfig}  # gets what is set of attention here

    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    video_encoder_name_or_path: str | None = None
    video_encoder_revision: str | None = None
    resampler_type: str = "attention"
    resampler_features: str = "video_encoder"
    normalize_features: bool = False
    gaze_encoding: str = "foveated"
    fixation_weighting: str | None = None
    gaze_coordinate_scale: float = 1.0
    foveal_sigmas: list[float] | tuple[float, ...] = (0.5, 1.0, 2.0)
    heatmap_sigma: float = 1.0
    injection_layers: list[int] | None = None
    share_resampler: bool = False
    num_latents: int = 32
    latent_dim: int = 256
    num_blocks: int = 2
    video_encoder_window: int | None = None
    position_convention: str | None = None
    has_lora: bool | None = None
    load_in_4bit: bool = False
    backbone_config: dict | PreTrainedConfig | None = None
    video_encoder_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        for name in ("backbone_config", "video_encoder_config"):
            value = getattr(self, name)
            _check(value is None or isinstance(value, (dict, PreTrainedConfig)), name, value, "a config or None")
        if isinstance(self.backbone_config, dict):
            with errors_name("backbone_config"):
                self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        super().__post_init__(**kwargs)
        if isinstance(self.video_encoder_config, dict):
            with errors_name("video_encoder_config"):
                self.video_encoder_config = video_encoder_config(self.video_encoder_config)
        self._check_names()
        self._check_numbers()
        self.foveal_sigmas = list(self.foveal_sigmas)
        if self.injection_layers is not None:
            self.injection_layers = list(self.injection_layers)

    def _check_names(self) -> None:
        """Raise ValueError for a name that is none of those that there are, or no text, or no bool where one is."""
        for name, expected in (
            ("gaze_encoding", GAZE_ENCODINGS),
            ("resampler_type", RESAMPLER_TYPES),
            ("resampler_features", RESAMPLER_FEATURES),
        ):
            _check(getattr(self, name) in expected, name, getattr(self, name), f"one of {expected}")
        for name, expected in (
            ("fixation_weighting", FIXATION_WEIGHTINGS),
            ("position_convention", POSITION_CONVENTIONS),
        ):
            _check(getattr(self, name) in (None, *expected), name, getattr(self, name), f"one of {expected} or None")
        for model in ("base_model", "video_encoder"):
            for name in (f"{model}_name_or_path", f"{model}_revision"):
                value = getattr(self, name)
                _check(value is None or isinstance(value, (str, PathLike)), name, value, "a text or None")
        for name in ("normalize_features", "share_resampler", "load_in_4bit"):
            _check(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        _check(self.has_lora in (None, True, False), "has_lora", self.has_lora, "True, False or None")

    def _check_numbers(self) -> None:
        """Raise ValueError for a number that is out of its range, or none."""
        for name in ("heatmap_sigma", "gaze_coordinate_scale"):
            _check(_is_positive(getattr(self, name)), name, getattr(self, name), "a positive number")
        sigmas, layers, window = self.foveal_sigmas, self.injection_layers, self.video_encoder_window
        _check(
            isinstance(sigmas, (list, tuple)) and len(sigmas) > 0 and all(map(_is_positive, sigmas)),
            "foveal_sigmas",
            sigmas,
            "at least one positive width in token-grid cells",
        )
        for name, most in _LARGEST.items():
            value = getattr(self, name)
            _check(is_whole(value, 1, most), name, value, f"a positive integer, at most {most:,}")
        _check(
            window is None or is_whole(window, 1),
            "video_encoder_window",
            window,
            "a positive number of temporal steps, or None",
        )
        _check(
            window is None or self.resampler_features == "video_encoder",
            "video_encoder_window",
            window,
            "None: there is no video encoder, resampler_features is 'base_model'",
        )
        _check(
            self.gaze_encoding != "coord_pe" or self.latent_dim % 4 == 0,
            "latent_dim",
            self.latent_dim,
            "a multiple of 4 for coord_pe (a sine and a cosine for x and for y)",
        )
        if layers is not None:
            indices = isinstance(layers, (list, tuple)) and all(is_whole(layer, 0) for layer in layers)
            _check(
                indices and len(layers) > 0 and list(layers) == sorted(set(layers)),
                "injection_layers",
                layers,
                "increasing layer indices from 0, without repeats",
            )

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """
        As in transformers; an adapter saved before `position_convention` was there has the library's. Raises
        ValueError for attention that is code of a repository.
        """
        refuse_kernels(config_dict, kwargs.get("name_or_path", "config.json"))
        if "position_convention" not in config_dict:
            logger.warning(
                "this adapter was saved before its config named a position_convention: it was trained with the "
                "positions of transformers 5, and keeps those of the installed version"
            )
            config_dict = {**config_dict, "position_convention": "transformers"}
        loaded = super().from_dict(config_dict, **kwargs)
        if "name_or_path" in kwargs:  # the Auto classes come this way
            config = loaded[0] if isinstance(loaded, tuple) else loaded
            config._resolve_sources(Path(kwargs["name_or_path"]))
        return loaded

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Return the config as transformers does; folders that it names relative to its own become absolute paths."""
        with errors_name(pretrained_model_name_or_path):
            loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded  # with `return_unused_kwargs`
        config._resolve_sources(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        return loaded

    def _resolve_sources(self, folder: Path) -> None:
        """Make absolute the paths that are relative to the config's own folder; without such a folder nothing."""
        for name, source in self.sources().items():
            if source and source.startswith(".") and folder.is_dir():
                setattr(self, name, str((folder / source).resolve()))

    @property
    def has_resampler(self) -> bool:
        """Return whether there are residuals."""
        return self.resampler_type != "none"

    @property
    def has_video_encoder(self) -> bool:
        """Return whether residuals are made from features of a second network."""
        return self.resampler_type == "attention" and self.resampler_features == "video_encoder"

    def sources(self) -> dict[str, str | None]:
        """Return where the frozen models come from, ids or folders, by the name of the setting."""
        names = ["base_model_name_or_path"]
        if self.has_video_encoder:
            names.append("video_encoder_name_or_path")
        return {name: getattr(self, name) for name in names}

    def check_ids(self, repository: str) -> None:
        """Raise ValueError where the config of a repository names folders of the machine that loads it."""
        for name, source in self.sources().items():
            if source is not None and (Path(source).is_absolute() or ".." in Path(source).parts):
                raise ValueError(f"{repository}: {name} is {source!r} in its config, expected an id on the Hub")

    def load_backbone_config(self, **hub_kwargs) -> PreTrainedConfig:
        """Return the base model's config, read by id and revision the first time. Raises ValueError without an id."""
        if self.backbone_config is None:
            _check(self.base_model_name_or_path is not None, "base_model_name_or_path", None, "an id or a folder")
            source = self.base_model_name_or_path
            hub_kwargs["revision"] = self.base_model_revision or "main"
            with errors_name(source):
                refuse_kernels(PreTrainedConfig.get_config_dict(source, **hub_kwargs)[0], source)
                # Base models are classes of transformers.
                self.backbone_config = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub_kwargs)
        return self.backbone_config

    def load_video_encoder_config(self, **hub_kwargs) -> PreTrainedConfig:
        """
        Return the video encoder's config, read by id and revision the first time. Raises ValueError without an id.
        """
        if self.video_encoder_config is None:
            _check(
                self.video_encoder_name_or_path is not None,
                "video_encoder_name_or_path",
                None,
                "an id or a folder, or resampler_features 'base_model'",
            )
            source, revision = self.video_encoder_name_or_path, self.video_encoder_revision or "main"
            with errors_name(source):
                self.video_encoder_config = load_video_encoder_config(source, revision=revision, **hub_kwargs)
        return self.video_encoder_config

    def feature_dim(self) -> int:
        """Return the width of what the resampler sees of a visual token."""
        if self.has_video_encoder:
            return self.load_video_encoder_config().hidden_size
        return self.get_text_config().hidden_size

    def resolved_position_convention(self) -> str:
        """`position_convention`, or that of the base model's config, or "qwen"."""
        if self.position_convention is not None:
            return self.position_convention
        return getattr(self.load_backbone_config(), "position_convention", "qwen")

    def resolved_injection_layers(self) -> list[int]:
        """
        Return `injection_layers`, or the default four for the base model's depth; none without a resampler. Raises
        ValueError for layers that the base model does not have.
        """
        if not self.has_resampler:
            return []
        depth = self.load_backbone_config().get_text_config().num_hidden_layers
        layers = self.injection_layers
        if layers is None:
            layers = sorted({min(i * depth // 4, max(depth - 2, 0)) for i in range(4)})
        _check(layers[-1] < depth, "injection_layers", layers, f"indices below the base model's {depth} layers")
        return layers

    def dead_injection_layers(self) -> list[int]:
        """Return the injection layers whose residual cannot reach the answer: after the last no attention reads it."""
        depth = self.load_backbone_config().get_text_config().num_hidden_layers
        return [layer for layer in self.resolved_injection_layers() if layer == depth - 1]

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """Return the config of the base model's language model."""
        return self.load_backbone_config().get_text_config(*args, **kwargs)

    @property
    def text_config(self) -> PreTrainedConfig:
        """Return the config of the base model's language model."""
        return self.get_text_config()

    def to_diff_dict(self) -> dict:
        """As in transformers; `position_convention` is written always: where it is absent, it is the library's."""
        return {**super().to_diff_dict(), "position_convention": self.position_convention}

    def to_dict(self) -> dict:
        """Return the config as saved: configs that can be read by id and revision are left out."""
        output = super().to_dict()
        for part, source in (
            ("backbone_config", "base_model_name_or_path"),
            ("video_encoder_config", "video_encoder_name_or_path"),
        ):
            if output.get(source) is not None:
                output.pop(part, None)
        return output


GazeQwenConfig.register_for_auto_class()

__all__ = ["GAZE_ENCODINGS", "GazeQwenConfig", "absolute_if_folder", "check_for_hub"]
