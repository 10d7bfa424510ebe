"""What a run of `train.py` left beside the adapter that it saved."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.questions.sources import VIDEO_SOURCES

STREAMGAZE_ID = "danaleee/StreamGaze"  # of the dataset on the Hub


@dataclass(frozen=True)
class Run:
    """
    One run of `train.py`: its recipe (None: no run is known), whether `dataset` is an id on the Hub, the scores of the
    kept epoch in validation, and the `sources` of the videos that it was trained on (see `Question`).
    """

    recipe: dict | None = None
    dataset_from_hub: bool = False
    validation: dict | None = None
    sources: tuple[str, ...] = ()

    @property
    def dataset(self) -> str:
        """Id or folder of what it was trained on; empty where that is not known."""
        return self.recipe["data"]["dataset"] if self.recipe else ""

    @property
    def on_toy_world(self) -> bool:
        return self.sources == (TOY_SOURCE,)

    @property
    def on_streamgaze(self) -> bool:
        return bool(self.sources) and set(self.sources) <= VIDEO_SOURCES.keys()

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
    origin = provenance or {}
    from_hub, sources = bool(origin.get("dataset_from_hub")), tuple(origin.get("sources", ()))
    return Run(recipe, from_hub, validation, sources)


def _read_if_there(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
