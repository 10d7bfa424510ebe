"""
Cut the power of a disk at random moments of short runs, and let each go on: how many end as one that never stopped?

    python benchmarks/bench_power_cut.py --cuts 40 --output benchmarks/results/power_cut.json    # as root, on Linux

Each run writes its folder and its cache to an ext4 image. The cut is ext4's own (EXT4_IOC_SHUTDOWN without flushing
the journal, as xfstests uses it): from then on nothing reaches the image, as when the plug is pulled; the process is
killed, the image is mounted again, and the same command goes on. Half of the cuts are on ext4 as it is mounted by
default, the other half on one that writes names early and data late (`commit=1,noauto_da_alloc`). What a disk loses
although it was told to flush its own cache is not among them.
"""

import argparse
import collections
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import torch
from tqdm import tqdm

from gazeqwen.questions.release import build
from gazeqwen.toyworld.generate import generate
from gazeqwen.training.recipe import Recipe
from gazeqwen.training.trainer import Trainer
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance
from gazeqwen.utils.settings import read_recipe

ROOT = Path(__file__).parent.parent
OPTIONS = ("defaults", "commit=1,noauto_da_alloc")
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
TASKS = ("past_gaze_sequence_matching", "present_object_identification_easy")


def recipe_file(work: Path, disk: Path) -> Path:
    """Write the recipe of a run of a few seconds on the toy world, with a checkpoint after each step."""
    model = {"base_model": str(ROOT / "toyworld/backbone"), "video_encoder": str(ROOT / "toyworld/video_encoder")}
    data = {"dataset": str(work / "data"), "cache": "embeddings", "cache_dir": str(disk / "cache"), "num_workers": 0}
    values = {
        "output_dir": str(disk / "run"),
        "model": {**model, "dtype": "float32", "video_encoder_size": 64, "num_frames": 4},
        "adapter": {"latent_dim": 16, "num_latents": 8},
        "data": {**data, "tasks": list(TASKS)},
        "stage1": {"epochs": 2, "learning_rate": 1e-2},
        "stage2": {"epochs": 2, "learning_rate": 1e-2, "lora_learning_rate": 1e-2},
        "batch_size": 3,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 2,
        "checkpoint_every": 1,
        "tracker": None,
    }
    write_json(work / "recipe.yaml", values)  # JSON is YAML
    return work / "recipe.yaml"


def start(recipe: Path, log: Path) -> int:
    """Start a run in a process that need not import anything anew. Return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        tqdm.set_lock(threading.RLock())  # the bars' own is shared by all forks, and one that was killed may hold it
        Trainer(read_recipe(Recipe, recipe)).run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


class Disk:
    """An ext4 file system in a file, whose power can be cut."""

    def __init__(self, work: Path):
        self.image, self.folder = work / "image", work / "disk"
        self.folder.mkdir()

    def make(self) -> None:
        """Make an empty file system."""
        self.image.unlink(missing_ok=True)
        subprocess.run(["truncate", "-s", "256M", self.image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)

    @contextlib.contextmanager
    def mounted(self, options: str):
        """Mount the file system while the block runs. No process may use it when the block ends."""
        subprocess.run(["mount", "-o", f"loop,{options}", self.image, self.folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", self.folder], check=True)

    def cut_power(self) -> None:
        """Let nothing reach the image any more."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


def outcome(run: Path) -> dict[str, bytes]:
    """Return what a finished run is compared by: weights and log of its last checkpoint, and its best adapter."""
    last = sorted((run / "checkpoints").glob("stage*"))[-1]
    files = [last / "trained.safetensors", last / "log.jsonl", run / "log.jsonl", run / "validation.json"]
    files += [run / "best" / name for name in ("model.safetensors", "lora/adapter_model.safetensors")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if file.exists()}


def whole_run(recipe: Path, disk: Disk, log: Path) -> tuple[dict[str, bytes], float]:
    """Return the outcome of a run that never stops, and how many seconds it took."""
    disk.make()
    with disk.mounted(OPTIONS[0]):
        started = time.monotonic()
        code = os.waitstatus_to_exitcode(os.waitpid(start(recipe, log), 0)[1])
        if code:
            raise ValueError(f"the run that never stops ended with {code}: {log.read_text()[-2000:]}")
        return outcome(disk.folder / "run"), time.monotonic() - started


def one_cut(recipe: Path, disk: Disk, log: Path, options: str, after_s: float, whole: dict[str, bytes]) -> dict:
    """Return when a cut came, what it left, and how the run ended that went on from there."""
    disk.make()
    run = disk.folder / "run"
    with disk.mounted(options):
        process = start(recipe, log)
        time.sleep(after_s)
        disk.cut_power()
        os.kill(process, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    with disk.mounted(options):
        left = sorted(path.name for path in (run / "checkpoints").glob("stage*"))
        files = [path for path in run.rglob("*") if path.is_file()]
        empty = sum(path.stat().st_size == 0 for path in files)
        code = os.waitstatus_to_exitcode(os.waitpid(start(recipe, log), 0)[1])
        if code:
            end = "died: " + log.read_text().strip().splitlines()[-1].replace(str(disk.folder), "")
        else:
            end = "bit-equal" if outcome(run) == whole else "other weights"
        leftovers = [path.name for path in run.rglob(".*")]
    about = {"options": options, "after_s": round(after_s, 2), "ended_before": ended}
    left_there = {"last_checkpoint": left[-1] if left else None, "files": len(files), "empty_files": empty}
    return about | left_there | {"end": end, "leftovers": leftovers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work, rng = Path(tempfile.mkdtemp(prefix="gazeqwen-power-")), random.Random(arguments.seed)
    try:
        generate(work / "world", train=8, val=4, test=1, seed=3, per_task=1)
        build(work / "world", work / "data", progress=False)
        disk = Disk(work)
        recipe, log = recipe_file(work, disk.folder), work / "log.txt"
        whole, seconds = whole_run(recipe, disk, log)
        cuts = []
        for number in range(arguments.cuts):
            cuts.append(one_cut(recipe, disk, log, OPTIONS[number % 2], seconds * rng.random(), whole))
            print(json.dumps(cuts[-1]), flush=True)
    finally:
        shutil.rmtree(work)
    ends = dict(collections.Counter(cut["end"] for cut in cuts))
    print(ends)
    if arguments.output:
        write_json(
            arguments.output, {"ends": ends, "seconds": round(seconds, 1), "cuts": cuts, "provenance": provenance()}
        )


if __name__ == "__main__":
    with one_line_errors():
        main()
