"""
GazeQwen as a model of StreamGaze's own harness, which asks with `Run` and `name`.

In StreamGaze's `src/eval.py`, beside the other models:

    elif args.model_name == "GazeQwen":
        from gazeqwen.suites.streamgaze import GazeQwen; model = GazeQwen(args.data_file)

docs/guides/lmms-eval.md says how it is run.
"""

import os
import re
import time
from pathlib import Path

from gazeqwen.questions.dataset_folder import Report
from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.question import Question
from gazeqwen.questions.release import Footage, read_footage
from gazeqwen.questions.sources import source_of
from gazeqwen.questions.tasks import TASKS
from gazeqwen.suites.asking import Asker
from gazeqwen.video_gazeqwen import QUESTION_ROUNDING_S

_OPTION = re.compile(rf"^([{OPTION_LETTERS}])\. (.*)$", re.MULTILINE)


class GazeQwen:
    """
    Answer the questions of one file of StreamGaze's release, `dataset/qa/<task>.json`, with the gaze that
    `dataset/metadata/` holds. Videos, clock and clips are those of `gazeqwen build`, the prompt is the adapter's own.

    Args:
        data_file: the file of questions.
        adapter: folder or Hub id, default: the environment's GAZEQWEN_ADAPTER.
        raw_gaze: raw recordings for videos without a fixation table, as `gazeqwen build --gaze` takes them, default:
            the environment's GAZEQWEN_RAW_GAZE, if it is set.
        gaze, settings: see `Asker`.

    Raises ValueError naming the file or the argument.
    """

    def __init__(
        self,
        data_file: str,
        adapter: str | None = None,
        raw_gaze: str | None = None,
        gaze: str = "gaze",
        **settings,
    ):
        self.task, self.release = Path(data_file).stem, Path(data_file).absolute().parent.parent
        if self.task not in TASKS:
            raise ValueError(f"{data_file}: no task of StreamGaze, expected one of {', '.join(TASKS)}")
        adapter = adapter or os.environ.get("GAZEQWEN_ADAPTER")
        if not adapter:
            raise ValueError("GAZEQWEN_ADAPTER is not set, expected the folder or the Hub id of an adapter")
        self.raw_gaze = raw_gaze or os.environ.get("GAZEQWEN_RAW_GAZE")
        self.asker = Asker(adapter, gaze, **{"batch_size": 1, "num_workers": 0, "cache": "none"} | settings)
        self.footage: dict[str, Footage] = {}

    def name(self) -> str:
        """Return what results call the model."""
        return "GazeQwen"

    def Run(
        self,
        file: str,
        inp: str,
        start_time: float,
        end_time: float,
        question_time: float | None = None,
        omni: bool = False,
        proactive: bool = False,
        salience_map_path: str | None = None,
    ) -> tuple[str, float]:
        """
        Return the answer, a letter or Yes or No, and how long it took in seconds. `file`: of the video; `inp`: the
        harness's prompt; `start_time`, `end_time`: the clip, in seconds of the release. The others say nothing more.

        Raises ValueError for a video without gaze, a question beyond its video, and for `--use_gaze_instruction`.
        """
        began = time.monotonic()
        if "green dot" in inp:
            raise ValueError("the adapter gets the gaze itself, not drawn: leave out --use_gaze_instruction")
        text, options = _read_prompt(inp, TASKS[self.task].group == "proactive")
        footage = self._footage(Path(file).name)
        end_s = float(footage.clock.to_file_s(end_time))
        if end_s > footage.info.end_s + QUESTION_ROUNDING_S:
            raise ValueError(f"{file}: asked at {end_s:.3f} s, the video ends at {footage.info.end_s:.3f} s")
        question = Question(
            footage.path,
            Path(file).name,
            footage.scanpath,
            self.task,
            text,
            options,
            answer=0,  # not known here
            start_s=footage.begin_s(start_time),
            end_s=min(end_s, footage.info.end_s),
        )
        (response,) = self.asker.responses([question])
        return response, time.monotonic() - began

    def _footage(self, name: str) -> Footage:
        """Return a video of the release with its gaze. Raises ValueError naming what is missing."""
        if name not in self.footage:
            report = Report()
            self.footage |= read_footage(self.release, [name], {name: source_of(name)}, report, self.raw_gaze)
            missing = [f"{item['where']}: {item['reason']}" for item in report.excluded] + report.notes
            missing += [f"{name}: no such video below {self.release / 'videos'}" for name in report.missing_videos]
            if name not in self.footage:
                raise ValueError("; ".join(missing))
            if self.footage[name].scanpath is None:
                no_gaze = f"{name}: no fixations below {self.release / 'metadata'}, nor in raw gaze ({self.raw_gaze})"
                raise ValueError("; ".join([no_gaze, *missing]))
        return self.footage[name]


def _read_prompt(inp: str, proactive: bool) -> tuple[str, tuple[str, ...]]:
    """Return question and options of the harness's prompt, which lists none for proactive tasks. Raises ValueError."""
    match = re.search("Question: (.*?)\n" + ("\n" if proactive else "Options:\n"), inp, re.DOTALL)
    if match is None:
        raise ValueError(f"the prompt is {inp!r}, expected 'Question: ...' as StreamGaze's harness asks it")
    options = ["Yes", "No"]
    if not proactive:
        lettered = _OPTION.findall(inp, match.end())
        options = [text.strip() for _, text in sorted(lettered)]  # the answer is a letter, wherever it stands
    return match[1].strip(), tuple(options)
