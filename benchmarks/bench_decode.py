"""
Reading a window of an hour-long video: time against that of a shorter file and of decoding everything, and memory.

    python benchmarks/bench_decode.py [--output benchmarks/results/decode_cpu.json]

Writes a one-hour and a six-minute h264 video (24 frames a second, a keyframe every 10 s) to a temporary folder. Each
reading runs in a process of its own: the median time of several readings, and by how much that process's peak memory
exceeds what it held before (Linux).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance

FPS, KEYFRAME_S = 24, 10

READ = """
import json, re, sys, time
import av
from gazeqwen.video_gazeqwen import read_clip

path, start_s, end_s, frames, repeats = sys.argv[1], *map(float, sys.argv[2:4]), *map(int, sys.argv[4:6])


def memory_kb(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))


open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before, times = memory_kb("VmRSS"), []
for _ in range(repeats + 1):
    began = time.perf_counter()
    if frames:
        read_clip(path, start_s, end_s, num_frames=frames)
    else:  # every frame up to the end of the window, as a reader without seeking decodes them
        with av.open(path) as container:
            for frame in container.decode(video=0):
                if frame.time > end_s:
                    break
    times.append(time.perf_counter() - began)
print(json.dumps([times[1:], (memory_kb("VmHWM") - before) / 1024]))  # the first reading warms up
"""


def write(path: Path, seconds: int, width: int, height: int) -> None:
    """A picture that drifts under a moving square: cheap to make, not trivial to encode."""
    picture = np.random.default_rng(0).integers(0, 255, (height // 8, 2 * width // 8, 3), dtype=np.uint8)
    picture = picture.repeat(8, axis=0).repeat(8, axis=1)
    options = {"preset": "ultrafast", "g": str(FPS * KEYFRAME_S), "sc_threshold": "0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in tqdm(range(seconds * FPS), desc=path.name, unit="frame"):
            array = np.ascontiguousarray(picture[:, index // 4 % width :][:, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    hour_s, short_s = 3600, 360

    with tempfile.TemporaryDirectory() as folder:
        hour, short = Path(folder) / "hour.mp4", Path(folder) / "six_minutes.mp4"
        for path, seconds in ((hour, hour_s), (short, short_s)):
            write(path, seconds, arguments.width, arguments.height)
        readings = {
            "60 s at the start of the hour, 30 frames": (hour, 0, 60, 30),
            "60 s in the middle of the hour, 30 frames": (hour, 1800, 1860, 30),
            "60 s at the end of the hour, 30 frames": (hour, 3540, 3600, 30),
            "60 s at the end of six minutes, 30 frames": (short, 300, 360, 30),
            "120 s at the end of the hour, 60 frames": (hour, 3480, 3600, 60),
            "the whole hour, 64 frames": (hour, 0, 3600, 64),
            "the whole hour, every frame decoded": (hour, 0, 3600, 0),
        }
        measured = {}
        for name, (path, start_s, end_s, frames) in readings.items():
            repeats = arguments.repeats if frames else 1
            command = [sys.executable, "-c", READ, *map(str, (path, start_s, end_s, frames, repeats))]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            times, peak = json.loads(output)
            measured[name] = {"seconds": statistics.median(times), "added_peak_memory_mb": round(peak, 1)}
            print(f"{name}: {measured[name]['seconds']:.3f} s, {peak:.0f} MB more than the process had")

    seconds = {name: reading["seconds"] for name, reading in measured.items()}
    end = seconds["60 s at the end of the hour, 30 frames"]
    ratios = {
        "end of the hour / start of it": end / seconds["60 s at the start of the hour, 30 frames"],
        "end of the hour / end of six minutes": end / seconds["60 s at the end of six minutes, 30 frames"],
        "120 s / 60 s": seconds["120 s at the end of the hour, 60 frames"] / end,
        "every frame / 64 frames of the whole hour": seconds["the whole hour, every frame decoded"]
        / seconds["the whole hour, 64 frames"],
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    if arguments.output:
        settings = {**vars(arguments), "fps": FPS, "keyframe_s": KEYFRAME_S}
        write_json(
            arguments.output,
            {"settings": settings, "measured": measured, "ratios": ratios, "provenance": provenance()},
        )


if __name__ == "__main__":
    with one_line_errors():
        main()
