"""A training run's settings, checked."""

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path

from gazeqwen.configuration_gazeqwen import GazeQwenConfig, check_for_hub
from gazeqwen.pipeline.clip_cache import CACHE_KINDS
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.prompts import PROMPT_STYLES
from gazeqwen.token_selection_gazeqwen import check_keep_settings
from gazeqwen.utils.settings import differences
from gazeqwen.video_gazeqwen import check_sampling

_PROCESSOR_DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(GazeQwenProcessor.__init__).parameters.items()
}


@dataclass
class ModelSettings:
    """
    Name the frozen models, and how clips, gaze and questions are put to them: arguments of GazeQwenProcessor, with its
    defaults. `dtype`: of the base model, `auto` as it was saved. `load_in_4bit` needs bitsandbytes: the base model in
    NF4, what is computed in bfloat16. Where the adapter has none (`GazeQwenConfig`), `video_encoder` may be empty.
    """

    base_model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    base_model_revision: str | None = None
    video_encoder: str = ""
    video_encoder_revision: str | None = None
    dtype: str = "bfloat16"
    attn_implementation: str | None = None
    load_in_4bit: bool = False
    video_encoder_size: int = _PROCESSOR_DEFAULTS["video_encoder_size"]
    num_frames: int | None = _PROCESSOR_DEFAULTS["num_frames"]
    fps: float | None = _PROCESSOR_DEFAULTS["fps"]
    max_frames: int = _PROCESSOR_DEFAULTS["max_frames"]
    max_pixels_per_frame: int | None = None
    sampling: str = _PROCESSOR_DEFAULTS["sampling"]
    snap_s: float = _PROCESSOR_DEFAULTS["snap_s"]
    prompt_style: str = _PROCESSOR_DEFAULTS["prompt_style"]
    keep_tokens: float | None = _PROCESSOR_DEFAULTS["keep_tokens"]
    keep_by: str = _PROCESSOR_DEFAULTS["keep_by"]


@dataclass
class AdapterSettings:
    """
    Say what is trained and how gaze enters: the arguments of GazeQwenConfig, with its defaults. `resampler_type:
    none`: LoRA alone, so that only stage 2 can be run.
    """

    resampler_type: str = GazeQwenConfig.resampler_type
    resampler_features: str = GazeQwenConfig.resampler_features
    normalize_features: bool = GazeQwenConfig.normalize_features
    gaze_encoding: str = GazeQwenConfig.gaze_encoding
    fixation_weighting: str | None = GazeQwenConfig.fixation_weighting
    gaze_coordinate_scale: float = GazeQwenConfig.gaze_coordinate_scale
    foveal_sigmas: list = field(default_factory=lambda: list(GazeQwenConfig.foveal_sigmas))
    heatmap_sigma: float = GazeQwenConfig.heatmap_sigma
    injection_layers: list | None = GazeQwenConfig.injection_layers
    share_resampler: bool = GazeQwenConfig.share_resampler
    num_latents: int = GazeQwenConfig.num_latents
    latent_dim: int = GazeQwenConfig.latent_dim
    num_blocks: int = GazeQwenConfig.num_blocks
    video_encoder_window: int | None = GazeQwenConfig.video_encoder_window


@dataclass
class DataSettings:
    """
    Name the data and how they are shown. `dataset`: a folder that `gazeqwen build` wrote, or an id on the Hub;
    `config`: its split scheme; `tasks`: those to train on, None: all. `without_gaze`: see `load_questions`. `gaze`:
    the condition to train and validate under, which says whose gaze is given and how, see pipeline/conditions.py;
    `model` has to be among its channels. What of it is random is drawn once, by the recipe's seed. `cache`: `none`,
    `features` or `embeddings`, see pipeline/clip_cache.py. `balance_tasks`, `scanpath_noise`, `fixation_dropout`,
    `keep_tokens` (several, one drawn for each batch, in place of the model's): see pipeline/batches.py.
    """

    dataset: str = ""
    config: str = "default"
    train_split: str = "train"
    validation_split: str = "validation"
    tasks: list | None = None
    without_gaze: str = "error"
    gaze: str = "gaze"
    cache: str = "features"
    cache_dir: str | None = None
    num_workers: int = 2
    balance_tasks: bool = False
    scanpath_noise: float = 0.0
    fixation_dropout: float = 0.0
    keep_tokens: list | None = None


@dataclass
class StageSettings:
    """
    Hold one stage's settings. `epochs: 0` leaves the stage out; `learning_rate` is the resampler's; `patience`: so
    many epochs without a better validation score end it (0: none do).
    """

    epochs: int = 0
    learning_rate: float = 3e-4
    lora_learning_rate: float = 3e-4
    patience: int = 0


# What the numbers may be: in words, as a test, and of which settings (None: not set).
_RANGES: tuple[tuple[str, Callable, tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        (
            *("batch_size", "evaluation_batch_size", "gradient_accumulation_steps", "checkpoint_every"),
            *(
                "keep_checkpoints",
                "lora_rank",
                "model.video_encoder_size",
                "model.num_frames",
                "model.max_pixels_per_frame",
            ),
        ),
    ),
    ("at least 2", lambda value: value >= 2, ("model.max_frames",)),
    ("at most 1,000", lambda value: value <= 1000, ("lora_rank",)),
    ("0 to 2**32 - 1", lambda value: 0 <= value < 2**32, ("seed",)),
    (
        "0 or more",
        lambda value: 0 <= value < math.inf,
        (
            *("weight_decay", "warmup_steps", "data.num_workers", "data.scanpath_noise"),
            *(f"{stage}.{name}" for stage in ("stage1", "stage2") for name in ("epochs", "patience")),
            *(f"{stage}.{prefix}learning_rate" for stage in ("stage1", "stage2") for prefix in ("", "lora_")),
        ),
    ),
    ("0 or more seconds", lambda value: 0 <= value < math.inf, ("model.snap_s",)),
    ("a positive number", lambda value: 0 < value < math.inf, ("max_grad_norm", "lora_alpha", "model.fps")),
    ("0 or more, and less than 1", lambda value: 0 <= value < 1, ("label_smoothing", "data.fixation_dropout")),
)


@dataclass
class Recipe:
    """
    Hold all settings of a training run. Defaults are the paper's where it gives them (section 3.1). `checkpoint_every`
    counts optimizer steps; the last `keep_checkpoints` are kept. `compile` names a backend of torch.compile for the
    resampler, such as `inductor`, which needs a C++ compiler; on a CPU it gains nothing
    (benchmarks/results/resampler_cpu.json). `start_from`: a trained adapter, a folder or an id on the Hub (with its
    revision), which training begins with in place of a new one; its settings, and the models that it was trained on,
    have to be the recipe's. `tracker` names one of Accelerate's; `push_to_hub` a repository for the
    best adapter. Raises ValueError naming the field, its value and what was expected.
    """

    output_dir: str = "runs/gazeqwen"
    seed: int = 0
    start_from: str | None = None
    start_from_revision: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    data: DataSettings = field(default_factory=DataSettings)
    stage1: StageSettings = field(default_factory=StageSettings)
    stage2: StageSettings = field(default_factory=StageSettings)
    batch_size: int = 1
    evaluation_batch_size: int = 8
    gradient_accumulation_steps: int = 8
    weight_decay: float = 1e-2
    warmup_steps: int = 20
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    lora_rank: int = 8
    lora_alpha: float = 16.0
    gradient_checkpointing: bool = False
    compile: str | None = None
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    tracker: str | None = "tensorboard"
    push_to_hub: str | None = None

    def __post_init__(self):
        for expected, is_legal, names in _RANGES:
            for name in names:
                value = attrgetter(name)(self)
                if value is not None and not is_legal(value):
                    raise ValueError(f"{name}: got {value}, expected {expected}")
        for name, value, expected in (
            ("model.prompt_style", self.model.prompt_style, PROMPT_STYLES),
            ("data.cache", self.data.cache, CACHE_KINDS),
        ):
            if value not in expected:
                raise ValueError(f"{name}: got {value!r}, expected one of {expected}")
        check_sampling(self.model.sampling, self.model.num_frames, self.model.fps)
        check_keep_settings(self.model.keep_tokens, self.model.keep_by, "model.")
        for share in self.data.keep_tokens or ():
            check_keep_settings(share, self.model.keep_by, "data.")
        try:
            has_video_encoder = GazeQwenConfig(**asdict(self.adapter)).has_video_encoder
        except ValueError as error:
            raise ValueError(f"adapter.{error}") from None
        if self.stage1.epochs + self.stage2.epochs < 1:
            raise ValueError("stage1.epochs and stage2.epochs are both 0: nothing to train")
        self._check_gaze()
        if self.adapter.resampler_type == "none":
            if self.stage1.epochs:
                raise ValueError(
                    f"stage1.epochs: got {self.stage1.epochs}, expected 0: with adapter.resampler_type 'none' stage 1 "
                    "has nothing to train; stage 2 trains LoRA"
                )
            if self.compile:
                raise ValueError("compile: there is no resampler to compile, adapter.resampler_type is 'none'")
        elif self.adapter.resampler_features == "base_model":
            if self.model.video_encoder:
                raise ValueError(
                    f"model.video_encoder: got {self.model.video_encoder!r}, expected it empty: with "
                    "adapter.resampler_features 'base_model' there is no video encoder"
                )
        elif has_video_encoder and not self.model.video_encoder:
            raise ValueError(
                "model.video_encoder is empty, expected an id or a folder, or adapter.resampler_features 'base_model'"
            )
        if self.start_from and Path(self.start_from).resolve().is_relative_to(Path(self.output_dir).resolve()):
            raise ValueError(f"start_from: {self.start_from} is in output_dir, expected another run's adapter")
        if not self.data.dataset:
            raise ValueError("data.dataset is empty, expected an id or a folder")
        if self.push_to_hub:
            check_for_hub("push_to_hub: model.base_model", self.model.base_model)
            check_for_hub("push_to_hub: model.video_encoder", self.model.video_encoder)

    def _check_gaze(self) -> None:
        """Raise ValueError for a condition that gives the adapter no gaze, or that no clip can be kept under."""
        data = self.data
        try:
            condition = Condition.parse(data.gaze)
        except ValueError as error:
            raise ValueError(f"data.gaze: {error}") from None
        if "model" not in condition.channels:
            instead = f"{data.gaze}+model" if condition.channels else "gaze"
            raise ValueError(
                f"data.gaze: {data.gaze!r} gives the adapter no gaze, so that it is off and nothing can be trained: "
                f"write {instead!r}"
            )
        if condition.draws and data.cache != "none" and (data.scanpath_noise or data.fixation_dropout):
            raise ValueError(
                f"data.gaze: {data.gaze!r} draws scanpaths, and data.scanpath_noise and data.fixation_dropout change "
                "them in each epoch, so that no clip can be kept: leave these out, or set data.cache to 'none'"
            )


# Settings that may differ when a run goes on: none of them changes what is computed.
_FREE_TO_CHANGE = {
    "output_dir",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluation_batch_size",
    "tracker",
    "push_to_hub",
    "compile",
    "data.cache",
    "data.cache_dir",
    "data.num_workers",
}


def changed_settings(before: dict, now: dict) -> list[str]:
    """Return the differences between two recipes, as dictionaries, in words, but for `_FREE_TO_CHANGE`."""
    return differences(before, now, _FREE_TO_CHANGE)
