"""An evaluation's settings, checked: what is asked of which model, under which conditions, and how."""

from dataclasses import dataclass, field

from gazeqwen.evaluation.scoring import SCORERS
from gazeqwen.pipeline.clip_cache import CACHE_KINDS
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.questions.prompts import PROMPT_STYLES
from gazeqwen.token_selection_gazeqwen import KEEP_RULES, check_keep_settings
from gazeqwen.utils.command_line import LOAD_IN_4BIT_HELP, TRUST_REMOTE_CODE_HELP
from gazeqwen.video_gazeqwen import SAMPLINGS

WITHOUT_GAZE = ("error", "keep", "drop")
SCORING = ("logits", "generate")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def _about(text: str, choices: tuple[str, ...] = (), aliases: tuple[str, ...] = ()) -> dict:
    """Return a field's metadata, as `add_flags` reads them."""
    return {"help": f"{text}: one of {', '.join(choices)}" if choices else text, "aliases": aliases}


@dataclass(frozen=True)
class EvaluationSettings:
    """
    Hold what `eval.py` is told. Fields that are None follow the model: `snap_s`, `prompt_style`, `num_frames`, `fps`,
    `max_frames`, `sampling`, `keep_tokens` and `keep_by` as the adapter was trained, `gaze` the conditions that suit
    the model. Raises ValueError naming the field, its value and what was expected.
    """

    model: str = field(default="", metadata=_about("folder or Hub id of an adapter, or of any video-text model"))
    revision: str | None = field(default=None, metadata=_about("of the model"))
    data: str = field(default="", metadata=_about("dataset: a folder built by gazeqwen build, or a Hub id"))
    config: str = field(default="default", metadata=_about("split scheme", ("default", "participants")))
    split: str = field(default="test", metadata=_about("split of the dataset that is asked"))
    tasks: list | None = field(default=None, metadata=_about("default: all tasks of the split"))
    without_gaze: str = field(default="error", metadata=_about("videos without gaze", WITHOUT_GAZE))
    gaze: list | None = field(
        default=None,
        metadata=_about(
            "conditions (default: gaze none shuffled centre; models that are no adapter: none)", (), ("--conditions",)
        ),
    )
    permute_options: int = field(default=1, metadata=_about("ask with so many orders of the options"))
    scorer: str = field(default="strict", metadata=_about("how answers are read", SCORERS))
    scoring: str = field(default="logits", metadata=_about("how models that are no adapter answer", SCORING))
    snap_s: float | None = field(default=None, metadata=_about("see Scanpath.snap (default: as trained)"))
    prompt_style: str | None = field(default=None, metadata=_about("wording, default as trained", PROMPT_STYLES))
    num_frames: int | None = field(default=None, metadata=_about("frames of a clip (default: as trained)"))
    fps: float | None = field(default=None, metadata=_about("frames per second (default: as trained)"))
    max_frames: int | None = field(default=None, metadata=_about("most frames of a clip (default: as trained)"))
    sampling: str | None = field(
        default=None, metadata=_about("where frames are taken (default: as trained)", SAMPLINGS)
    )
    video_encoder_window: int | None = field(
        default=None, metadata=_about("temporal steps, see GazeQwenConfig (default: as trained)")
    )
    keep_tokens: float | None = field(
        default=None,
        metadata=_about("visual tokens of a step that stay, a share or, above 1, a number (default: as trained)"),
    )
    keep_by: str | None = field(default=None, metadata=_about("which of them stay (default: as trained)", KEEP_RULES))
    stream: bool = field(
        default=False,
        metadata=_about(
            "answer all questions of a video in one pass over it, as a stream; needs sampling grid, and shows all "
            "frames since a clip's start, whatever max_frames is"
        ),
    )
    batch_size: int = field(default=8, metadata=_about("questions that go through the model together"))
    num_workers: int = field(default=2, metadata=_about("processes that decode ahead"))
    cache: str = field(default="features", metadata=_about("what is kept of the frozen networks", CACHE_KINDS))
    cache_dir: str | None = field(default=None, metadata=_about("where it is kept (default: ~/.cache/gazeqwen)"))
    dtype: str = field(default="auto", metadata=_about("of the model", DTYPES))
    load_in_4bit: bool | None = field(default=None, metadata=_about(LOAD_IN_4BIT_HELP))
    seed: int = field(default=0, metadata=_about("of the shuffling, the noise and the bootstrap"))
    trust_remote_code: bool = field(default=False, metadata=_about(TRUST_REMOTE_CODE_HELP))
    name: str | None = field(default=None, metadata=_about("what reports call the run (default: the model)"))
    output: str | None = field(
        default=None, metadata=_about("write scores and every setting as JSON, and predictions beside it")
    )
    restart: bool = field(
        default=False, metadata=_about("delete what an earlier run to this output answered, and ask everything again")
    )
    compare: str | None = field(
        default=None,
        metadata=_about("predictions (.jsonl) of train.py: fail unless the logits are the same (its seed is needed)"),
    )

    def __post_init__(self):
        for name in ("model", "data"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty, expected an id or a folder")
        for name, expected in (
            ("without_gaze", WITHOUT_GAZE),
            ("scorer", SCORERS),
            ("scoring", SCORING),
            ("prompt_style", (None, *PROMPT_STYLES)),
            ("sampling", (None, *SAMPLINGS)),
            ("keep_by", (None, *KEEP_RULES)),
            ("cache", CACHE_KINDS),
            ("dtype", DTYPES),
        ):
            self._check(name, getattr(self, name) in expected, f"one of {expected}")
        for name, least in (("permute_options", 1), ("batch_size", 1), ("num_workers", 0), ("seed", 0)):
            self._check(name, getattr(self, name) >= least, f"at least {least}")
        for name, least in (("num_frames", 1), ("max_frames", 2), ("video_encoder_window", 1)):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= least, f"at least {least}")
        check_keep_settings(self.keep_tokens, self.keep_by or "gaze")
        self._check("snap_s", self.snap_s is None or self.snap_s >= 0, "0 or more seconds")
        self._check("fps", self.fps is None or self.fps > 0, "a positive number")
        self._check("fps", self.fps is None or self.num_frames is None, f"none beside num_frames={self.num_frames}")
        if self.gaze is not None:
            self._check_conditions()

    def _check(self, name: str, valid: bool, expected: str) -> None:
        """Raise ValueError naming a field, its value and what was expected, unless it is `valid`."""
        if not valid:
            raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {expected}")

    def _check_conditions(self) -> None:
        """Raise ValueError for conditions that are none, unknown or repeated."""
        self._check("gaze", len(self.gaze) > 0, "at least one condition")
        for name in self.gaze:
            try:
                Condition.parse(name)
            except (AttributeError, ValueError) as error:  # YAML may hold what is no text
                raise ValueError(f"gaze: {error}") from None
        self._check("gaze", len(set(self.gaze)) == len(self.gaze), "each condition once")
