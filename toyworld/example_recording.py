"""
A short recording of the toy world, with raw gaze as an eye tracker writes it, to try things with.

gazeqwen example    # writes example/recording.mp4 and example/gaze.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from gazeqwen.toyworld.generate import make_video
from gazeqwen.toyworld.kitchen.tracker import raw_gaze
from gazeqwen.toyworld.world import frame_times_s, write_video
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_text

SEED, VIDEO = 17, 1  # that of examples.py's first question
CLOCK_S = 12.5  # what the gaze clock reads when the video begins


def write_recording(folder: str | Path) -> tuple[Path, Path]:
    """
    Write a toy video that the trained adapter never saw as `recording.mp4`, and its viewer's raw gaze as `gaze.csv`:
    milliseconds on a clock that reads 12,500 when the video begins, pixels of the frame, and a confidence, 0 in
    blinks. Return the paths. Raises FileExistsError for other files of these names.
    """
    folder = Path(folder)
    recording, _ = make_video(SEED, "test", VIDEO)
    side = recording.scene.frame_px
    gaze = raw_gaze(recording, np.random.default_rng(SEED))
    lines = ["time,x,y,confidence"]
    for time_s, (x, y) in zip(gaze.times_s, gaze.recorded_xy, strict=True):
        seen = bool(np.isfinite(x))
        place = f"{x * side:.1f},{y * side:.1f}" if seen else ","
        lines.append(f"{1000 * (time_s + CLOCK_S):.0f},{place},{seen:.2f}")
    video, table = folder / "recording.mp4", folder / "gaze.csv"
    text = "\n".join(lines) + "\n"
    if table.exists() and table.read_text() != text:
        raise FileExistsError(f"{table}: exists, with other content; name another folder")
    if video.exists() and not table.exists():
        raise FileExistsError(f"{video}: exists; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(table, text)
    write_video(video, [recording.scene.draw(s) for s in frame_times_s(recording.scene)])
    return video, table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="gazeqwen example", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="example", help="where to write (default: example)")
    video, table = write_recording(parser.parse_args().folder)
    print(f"{video}: a video of the toy world, in which kitchen things are coloured shapes")
    print(f"{table}: its wearer's raw gaze, ms and pixels; the clock reads {CLOCK_S} s when the video begins")


if __name__ == "__main__":
    with one_line_errors():
        main()
