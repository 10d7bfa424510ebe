"""Predictions on disk: written while questions are answered, read again to go on or to compare."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from gazeqwen.evaluation.scoring import GradedAnswer
from gazeqwen.utils.files import errors_with_path, write_json, write_text
from gazeqwen.utils.settings import differences

DATA_DIGEST = "data_digest"  # of the settings: `digest_of_data` of the questions that are asked


@dataclass(frozen=True)
class Prediction(GradedAnswer):
    """
    A question with a model's answer to it under `condition`. `scanpath_of`: the video whose gaze the model was given,
    None without gaze; `time_s`: the query time, in seconds of the video.
    """

    condition: str = "gaze"
    scanpath_of: str | None = None
    time_s: float = 0.0


class PredictionFile:
    """
    Keep predictions as JSON lines, one for each (condition, question), that survive any kill.

    While questions are answered each process appends to a part of its own; `merge` puts all into one file. `settings`
    lie beside it: predictions of other settings are refused. `condition`: the name that predictions are written and
    looked up under, None for the name of the condition that is run. `repairs`: one line for each repair of a file.
    """

    def __init__(self, path: str | Path, settings: dict, condition: str | None = None):
        self.path, self.settings, self.condition, self.repairs = Path(path), settings, condition, []

    def for_condition(self, condition: str) -> "PredictionFile":
        """Return the same file for the predictions of one condition, under this name."""
        file = PredictionFile(self.path, self.settings, condition)
        file.repairs = self.repairs
        return file

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.part-*.jsonl"))

    def start(self, restart: bool = False) -> None:
        """
        Make the file ready to be appended to; call it on the main process before any other process uses the file.
        `restart` deletes what an earlier run wrote. Raises ValueError naming the settings that differ from those of
        the predictions in it.
        """
        sidecar = self.path.with_suffix(".settings.json")
        if restart:
            for path in (self.path, sidecar, *self._parts()):
                path.unlink(missing_ok=True)
        if self.path.exists() or self._parts():
            self._check_settings(sidecar)
        write_json(sidecar, self.settings)
        self.merge()

    def _check_settings(self, sidecar: Path) -> None:
        """Raise ValueError unless the predictions that are there are known to be of these settings and data."""
        remedy = "choose another output, or --restart"
        if not sidecar.exists():
            raise ValueError(f"{self.path} holds predictions whose settings, {sidecar}, are not there; {remedy}")
        try:
            before = dict(json.loads(sidecar.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{sidecar}: holds no settings ({error}); {remedy}") from None
        now = json.loads(json.dumps(self.settings))
        if DATA_DIGEST in now and DATA_DIGEST not in before:
            print(f"{sidecar}: of an older version, nobody can tell whether questions, gaze and videos are the same")
            before[DATA_DIGEST] = now[DATA_DIGEST]
        changed = differences(before, now)
        if changed:
            raise ValueError(f"{self.path} holds predictions of other settings; {remedy}:\n  " + "\n  ".join(changed))

    def read(self) -> dict[tuple[str, str], Prediction]:
        """
        Return all predictions by (condition, question's key), the first of each. Raises ValueError naming file and
        line for a line that is no prediction, or that was edited.
        """
        predictions, repeated = {}, 0
        for path in (self.path, *self._parts()):
            if not path.exists():
                continue
            lines = path.read_bytes().split(b"\n")  # the last may end within a character
            torn = lines.pop()  # after the last line's end: empty, unless the writer was killed
            if torn:
                self.repairs.append(f"{path}: dropped a torn last line, its questions are asked again")
            for number, line in enumerate(lines, 1):
                prediction = _prediction(line, f"{path}, line {number}")
                key = prediction.condition, prediction.key
                if key in predictions:
                    repeated += 1
                else:
                    predictions[key] = prediction
        if repeated:
            self.repairs.append(f"{self.path}: {repeated} predictions were there twice, the first ones are kept")
        return predictions

    def read_condition(self, condition: str) -> dict[str, Prediction]:
        """Return the predictions of one condition by the question's key."""
        return {key: prediction for (name, key), prediction in self.read().items() if name == condition}

    def append(self, process_index: int, predictions: list[Prediction]) -> None:
        """Write predictions at the end of the process's own part."""
        part = self.path.with_name(f"{self.path.stem}.part-{process_index}.jsonl")
        with errors_with_path(part), part.open("a", encoding="utf-8") as file:
            file.write("".join(_line(prediction) for prediction in predictions))
            file.flush()
            os.fsync(file.fileno())

    def merge(self) -> None:
        """Put the predictions of all parts into one file, in place of them."""
        if self.path.exists() or self._parts():
            write_text(self.path, "".join(map(_line, self.read().values())))
        for part in self._parts():
            part.unlink()


def _line(prediction: Prediction) -> str:
    """Return a prediction as a line of JSON, with a digest by which an edit is noticed."""
    values = dataclasses.asdict(prediction)
    return json.dumps(values | {"digest": _digest(values)}, ensure_ascii=False) + "\n"


def _prediction(line: bytes, where: str) -> Prediction:
    """
    Return the prediction of a line. Raises ValueError naming the place for what is none, or was edited; lines of older
    versions have no digest.
    """
    try:
        values = json.loads(line)
        digest = values.pop("digest", None)
        prediction = Prediction(**values)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: no prediction ({error})") from None
    if digest not in (None, _digest(values)):
        raise ValueError(
            f"{where}: was edited after it was written; put it back, or choose another output, or --restart"
        )
    return prediction


def _digest(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def save_predictions(path, predictions: list[Prediction]) -> None:
    """Write predictions as JSON lines."""
    write_text(path, "".join(map(_line, predictions)))


def load_predictions(path, conditions: list[str]) -> tuple[str, list[Prediction]]:
    """
    Return the condition of the predictions that `save_predictions` wrote, and the predictions. Raises ValueError
    naming the file if they are of several conditions, or of none of `conditions`, and the line if one was edited.
    """
    lines = Path(path).read_bytes().splitlines()
    saved = [_prediction(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    names = sorted({prediction.condition for prediction in saved})
    if len(names) != 1 or names[0] not in conditions:
        raise ValueError(f"{path}: holds predictions under {names}, expected one of those evaluated: {conditions}")
    return names[0], saved


def largest_logit_difference(path, saved: list[Prediction], predictions: list[Prediction]) -> tuple[float, int]:
    """
    Return the largest absolute difference of a logit between the predictions saved at `path` and those made now, and
    the number of questions. Raises ValueError naming the file if questions or the gaze given for them differ.
    """
    before, now = {p.key: p for p in saved}, {p.key: p for p in predictions}
    if set(before) != set(now):
        left_out, others = len(set(before) - set(now)), len(set(now) - set(before))
        raise ValueError(f"{path}: {left_out} of its questions were not asked, {others} others were")
    if any(before[key].scanpath_of != now[key].scanpath_of for key in before):
        raise ValueError(f"{path}: gaze of other videos was given; the seed has to be that of the recipe")
    differences = [abs(a - b) for key in before for a, b in zip(before[key].logits, now[key].logits, strict=True)]
    return max(differences), len(before)
