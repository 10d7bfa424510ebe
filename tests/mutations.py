"""
Change bytes of every kind of file that people hand in, and read it: a file is read, or an error of our own names it.

    python tests/mutations.py --seconds 600 --seed 1     # a longer run; prints counts, and what was not of our own

`tests/test_mutations.py` does a small, fixed part of it.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
from support import ROOT, index_frames, write_fixations, write_video

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.evaluation.prediction_file import Prediction, PredictionFile
from gazeqwen.gaze_sources import SOURCES
from gazeqwen.lora_gazeqwen import read_lora, read_tensors
from gazeqwen.questions import own
from gazeqwen.questions.dataset_folder import Report
from gazeqwen.questions.release_questions import read_questions
from gazeqwen.questions.splits import read_splits
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.training.recipe import Recipe
from gazeqwen.utils.adapters import load_processor
from gazeqwen.utils.settings import read_recipe
from gazeqwen.video_gazeqwen import each_frame, frame_times_s, read_clip, video_info

OWN_ERRORS = (ValueError, FileNotFoundError, FileExistsError, OSError)  # OSError: as transformers says of configs
PIECES = [
    b",",
    b'"',
    b"\n",
    b"\r",
    b"\0",
    b"-",
    b".",
    b"e",
    b"9",
    b"nan",
    b"[",
    b"{",
    b"}",
    b":",
    b"\xff",
    b"null",
    b"1e999",
]


PARTS = ("config.json", "processor_config.json")  # of an adapter: errors name its folder


@dataclass(frozen=True)
class Kind:
    """A kind of file: one that is whole, and what reads it. Errors name the file, or its folder where it is a part."""

    file: Path
    read: Callable[[Path], object]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return the bytes with one to four places replaced, put in, taken out, doubled, or with the end cut off."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        begin = draw.randint(0, len(changed))
        end = min(begin + draw.choice([0, 1, 1, 4, 40]), len(changed))
        piece = draw.choice([draw.choice(PIECES), draw.randbytes(draw.randint(0, 4)), bytes(changed[begin:end]) * 2])
        changed[begin:end] = bytes(changed[begin:end])[::-1] if draw.random() < 0.1 else piece
    return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.05 and changed else changed)


def outcome(kind: Kind, data: bytes, folder: Path) -> str:
    """
    Read a file with other bytes. Return `read`, `named`, or what went wrong: an error of another kind, or one that
    does not say which file it is about.
    """
    path = folder / kind.file.name
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path)
    except Exception as error:
        if type(error) not in OWN_ERRORS:
            return f"{type(error).__module__}.{type(error).__name__}: {error}"
        named = path.parent if path.name in PARTS else path
        return "named" if str(named) in str(error) else f"not named: {error}"
    return "read"


def kinds(folder: Path) -> dict[str, Kind]:
    """Write whole files of all kinds in a folder, and return them."""
    made: dict[str, Kind] = {}

    def add(name: str, file: str, content: bytes | str | Path, read: Callable[[Path], object]) -> None:
        path = folder / name.replace(" ", "_") / file
        path.parent.mkdir()
        data = content.read_bytes() if isinstance(content, Path) else content
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        made[name] = Kind(path, read)

    fixations = write_fixations(folder / "f.csv", [(1, 3, 0.25, 0.75), (4, 5, 0.5, 0.5), (6, 7, 0.1, 0.9)])
    add("fixation table", "fixations.csv", fixations, Scanpath.from_csv)
    samples = "time,x,y,confidence\n" + "".join(f"{k / 10},0.{k},0.5,1\n" for k in range(9))
    units = {"time_unit": "s", "coordinates": "normalised", "origin": "top-left"}
    add("generic gaze", "gaze.csv", samples, lambda path: SOURCES["generic"].read(path, **units))
    header = ["## header"] * 34
    header[9] = "## Number of Samples:\t4"
    begaze = "\n".join([*header, *(f"{5 * f}\tSMP\t1\t{f}\t2\t{f}\tFixation" for f in range(4))]) + "\n"
    add("EGTEA gaze", "v.txt", begaze, SOURCES["egtea"].read)
    glasses = [{"type": "gaze", "timestamp": k / 10, "data": {"gaze2d": [0.1, 0.2]}} for k in range(5)]
    add("Tobii gaze", "gazedata", "".join(json.dumps(line) + "\n" for line in glasses), SOURCES["tobii"].read)

    film = index_frames(20, 32, 32)
    for name, file, arguments in (
        ("MP4", "v.mp4", {}),
        ("Matroska", "v.mkv", {}),
        ("AVI", "v.avi", {"codec": "mpeg4", "options": {}}),
        ("transport stream", "v.ts", {}),
        ("WebM", "v.webm", {"codec": "libvpx", "options": {"deadline": "realtime"}}),
    ):
        add(name, file, write_video(folder / file, film, **arguments), read_video)

    item = {"question": "Which?", "time_stamp": "00:08", "answer": "B", "options": ["A. box", "B. knife", "C. jar"]}
    points = [{"realtime": "00:03", "type": 0}, {"realtime": "00:07", "type": 1}]
    alert = {"question": "Alert me.", "time_stamp": "00:01", "test_info": points}
    for task, content in (("present_object_identification_easy", item), ("proactive_gaze_triggered_alert", alert)):
        entries = [{"video_path": "v.mp4", "questions": [content], "video_categories": "toys"}] * 2
        add(f"questions {task}", f"{task}.json", json.dumps(entries), lambda path: read_questions([path], Report()))
    add("splits", "splits.json", json.dumps({"train": ["a.mp4"], "test": ["b.mp4"]}), read_splits)
    table = "video,time_s,question,options,answer,split\nv.mp4,1,What?,jar | lid,lid,train\nv.mp4,1.5,Why?,,So,train\n"
    add("own questions", "questions.csv", table, lambda path: own.read_questions(path, progress=False))
    shutil.copy(folder / "v.mp4", folder / "own_questions")
    add("recipe", "recipe.yaml", ROOT / "recipes" / "demo.yaml", lambda path: read_recipe(Recipe, path))

    adapter = folder / "adapter"
    shutil.copytree(ADAPTER_DIR, adapter, ignore=shutil.ignore_patterns("model.safetensors"))
    parts = {name: ROOT / ADAPTER_DIR / name for name in ("config.json", "processor_config.json", "model.safetensors")}
    add(
        "adapter's config",
        "config.json",
        parts["config.json"],
        lambda path: GazeQwenConfig.from_pretrained(path.parent),
    )
    add("adapter's tensors", "model.safetensors", head(parts["model.safetensors"]), read_tensors)
    lora = ROOT / ADAPTER_DIR / "lora"
    weights = lora / "adapter_model.safetensors"
    add(
        "LoRA's config",
        "adapter_config.json",
        lora / "adapter_config.json",
        lambda path: read_lora(path, weights, None),
    )
    add("LoRA's tensors", weights.name, weights, lambda path: read_lora(lora / "adapter_config.json", path, None))
    add("processor's config", "processor_config.json", parts["processor_config.json"], read_processor)
    for file in (*Path(ADAPTER_DIR).glob("*.json"), *Path(ADAPTER_DIR).glob("*.jinja")):
        if file.name != "processor_config.json":
            shutil.copy(file, made["processor's config"].file.parent)

    predictions = PredictionFile(folder / "predictions.jsonl", {})
    predictions.append(0, [prediction(k) for k in range(3)])
    predictions.merge()
    add("predictions", "p.jsonl", predictions.path, lambda path: PredictionFile(path, {}).read())
    return made


def head(file: Path) -> bytes:
    """Return a safetensors file of the first tensors alone: most of a long one is numbers, where any byte is legal."""
    from safetensors.torch import load_file, save

    tensors = load_file(file)
    return save({name: tensors[name][..., :2].contiguous() for name in sorted(tensors)[:8]})


def prediction(number: int) -> Prediction:
    """Return a prediction."""
    return Prediction(str(number), "v.mp4", "own", 1, ("jar", "lid"), logits=[0.5, 1.5])


def read_video(path: Path) -> None:
    """Read a video as everything here does."""
    video_info(path), frame_times_s(path), read_clip(path, num_frames=2), list(each_frame(path))


def read_processor(path: Path) -> None:
    """Load the processor of an adapter's folder."""
    load_processor(path.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    av.logging.set_level(None)
    draw, counts, examples = random.Random(arguments.seed), Counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        files = kinds(Path(folder))
        end_s, names = time.monotonic() + arguments.seconds, list(files)
        while time.monotonic() < end_s:
            name = draw.choice(names)
            whole = files[name].file
            data = whole.read_bytes()
            changed = mutated(data, draw)
            text = outcome(files[name], changed, whole.parent)
            whole.write_bytes(data)
            kind_of = text if text in ("read", "named") else "else"
            counts[name, kind_of] += 1
            if kind_of == "else":
                examples.setdefault((name, text[:60]), text[:300])
    for name in files:
        print(f"{name}: " + ", ".join(f"{counts[name, each]} {each}" for each in ("read", "named", "else")))
    print(
        "all: "
        + ", ".join(
            f"{sum(n for (_, k), n in counts.items() if k == each)} {each}" for each in ("read", "named", "else")
        )
    )
    for (name, _), text in examples.items():
        print(f"{name}: {text}")
    sys.exit(bool(examples))


if __name__ == "__main__":
    main()
