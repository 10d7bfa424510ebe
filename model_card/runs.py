"""What a run of `train.py` left beside the adapter that it saved."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from gazeqwen.evaluation.results import is_toy_world
from gazeqwen.evaluation.scoring import read_predictions
from gazeqwen.questions.dataset_folder import VIDEO_SOURCES
from gazeqwen.questions.release import source_of

STREAMGAZE_ID = "danaleee/StreamGaze"  # of the dataset on the Hub


@dataclass(frozen=True)
class Run:
    """
    One run of `train.py`: its recipe (None: no run is known), whether `dataset` is an id on the Hub, the scores of the
    kept epoch in validation, and the names of the videos of the validation.
    """

    recipe: dict | None = None
    dataset_from_hub: bool = False
    validation: dict | None = None
    videos: frozenset[str] = frozenset()

    @property
    def dataset(self) -> str:
        """Id or folder of what it was trained on; empty where that is not known."""
        return self.recipe["data"]["dataset"] if self.recipe else ""

    @property
    def on_toy_world(self) -> bool:
        return any(map(is_toy_world, {self.dataset, *self.videos}))

    @property
    def on_streamgaze(self) -> bool:
        return bool(self.videos) and {source_of(name)[0] for name in self.videos} <= VIDEO_SOURCES.keys()

    @property
    def dataset_ids(self) -> list[str]:
        """Ids on the Hub of what it was trained on; what was built from StreamGaze is StreamGaze's, too."""
        ids = [self.dataset] if self.dataset_from_hub else []
        if self.on_streamgaze and STREAMGAZE_ID not in ids:
            ids.append(STREAMGAZE_ID)
        return ids


def read_run(adapter: Path) -> Run:
    """Read the run of `train.py` that saved an adapter: the files in the folder around the adapter's."""
    folder = adapter.resolve().parent
    if not (folder / "recipe.yaml").is_file():
        return Run()
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    provenance, validation = (_read_if_there(folder / name) for name in ("provenance.json", "validation.json"))
    from_hub = bool((provenance or {}).get("dataset_from_hub"))
    if validation is None:
        return Run(recipe, from_hub)
    predictions = read_predictions(folder / "validation_predictions.jsonl").values()
    videos = frozenset(item.video_name for items in predictions for item in items)
    return Run(recipe, from_hub, validation, videos)


def _read_if_there(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
