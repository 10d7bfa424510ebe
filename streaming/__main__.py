"""
Watch a video as it arrives, with the wearer's gaze: alerts, and answers to questions at any moment.

    gazeqwen stream --video V.mp4 --gaze G.csv --watch "Alert me when I gaze on the knife." \\
        --ask "t=12: Which object is the user currently gazing at? | box | spices | knife | jar"

`--video` is a file, a camera (/dev/video0) or an address (rtsp://...). `--gaze` is a fixation table, or raw samples in
a CSV that may grow while it is read, which need --time_unit, --coordinates and --origin as in `gazeqwen gaze`; `--lsl`
takes them from a Lab Streaming Layer stream, `--neon` from Pupil Labs' glasses in this network. When the video begins
on the gaze's own clock is measured as its first frame comes, or given by --offset_s, and printed. Prints a line for
each alert that is raised or lowered and for each answer: the time of the video, and how long the answer took.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from typing import TYPE_CHECKING

from gazeqwen.gaze_sources.generic import COORDINATES, ORIGINS, TIME_UNITS, Columns
from gazeqwen.scanpath_gazeqwen import Scanpath, checked_file
from gazeqwen.streaming import FPS, POLICIES, WINDOW
from gazeqwen.streaming.gaze import GazeSource, GrowingTable, LslGaze
from gazeqwen.streaming.neon import NeonGaze
from gazeqwen.streaming.video import VideoSource
from gazeqwen.toyworld.trained import ADAPTER_DIR, TOY_NOTE, is_toy
from gazeqwen.utils.command_line import add_model_flags, one_line_errors
from gazeqwen.video_gazeqwen import video_info

if TYPE_CHECKING:
    from gazeqwen.streaming.play import Moment
    from gazeqwen.streaming.stream import GazeStream


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="gazeqwen stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=ADAPTER_DIR, help="folder or Hub id (default: the toy world's adapter)")
    parser.add_argument("--video", required=True, help="a file, a camera such as /dev/video0, or an address")
    parser.add_argument("--own_pace", action="store_true", help="play a file no faster than it was recorded")
    parser.add_argument("--gaze", help="CSV: a fixation table, or raw samples; without it: the base model")
    parser.add_argument("--lsl", help="name of a Lab Streaming Layer stream of gaze")
    parser.add_argument(
        "--neon", nargs="?", const="", metavar="ADDRESS", help="gaze of Pupil Labs' glasses (default: the first seen)"
    )
    parser.add_argument("--watch", nargs="+", default=[], help="instructions, such as 'Alert me when I see a cup.'")
    parser.add_argument("--every_s", type=float, help="how often they are asked (default: at each temporal step)")
    parser.add_argument("--ask", nargs="+", default=[], help="such as 't=12: What is this? | box | knife'")
    parser.add_argument("--fps", type=float, help=f"frames per second (default: as trained, else {FPS:g})")
    parser.add_argument(
        "--video_encoder_window", type=int, help=f"temporal steps (default: as trained, else {WINDOW})"
    )
    parser.add_argument("--gaze_lag_s", type=float, default=0.5, help="how long a step waits for its gaze")
    parser.add_argument("--budget", type=int, help="most visual tokens that are remembered (default: all)")
    parser.add_argument("--policy", choices=POLICIES, default="recent", help="which of them stay")
    raw = parser.add_argument_group("raw gaze")
    raw.add_argument("--time_unit", choices=TIME_UNITS)
    raw.add_argument("--coordinates", choices=COORDINATES)
    raw.add_argument("--origin", choices=ORIGINS)
    raw.add_argument("--offset_s", type=float, help="the gaze clock's time at which the video begins")
    raw.add_argument("--min_confidence", type=float)
    raw.add_argument("--frame_size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="of a live video, pixels")
    for name in ("time_column", "x_column", "y_column", "confidence_column"):
        raw.add_argument(f"--{name}")
    add_model_flags(parser)
    return parser


def columns_of(args) -> Columns:
    """Return what the columns of raw gaze mean. Raises ValueError for what has to be said and is not."""
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Columns)}
    given = {name: value for name, value in given.items() if value is not None}
    if args.lsl is not None:
        given.setdefault("time_unit", "s")
    missing = [f"--{name}" for name in ("time_unit", "coordinates", "origin") if name not in given]
    if missing:
        raise ValueError(f"raw gaze needs {', '.join(missing)}: a wrong guess gives fixations that look right")
    if given["coordinates"] == "pixels" and "frame_size" not in given:
        if VideoSource(args.video).live:
            raise ValueError("gaze in pixels of a live video needs --frame_size")
        info = video_info(args.video)
        given["frame_size"] = info.width, info.height
    elif "frame_size" in given:
        given["frame_size"] = tuple(given["frame_size"])
    return Columns(**given)


def gaze_of(args) -> GazeSource | Scanpath | None:
    """Return the gaze of the command line: a source of raw samples, or a whole scanpath. Raises ValueError."""
    given = [f"--{name}" for name in ("gaze", "lsl", "neon") if getattr(args, name) is not None]
    if len(given) > 1:
        raise ValueError(f"got {' and '.join(given)}, expected one of them")
    try:
        if args.lsl is not None:
            return LslGaze(columns_of(args), "name", args.lsl, args.offset_s)
        if args.neon is not None:
            return neon_of(args)
    except ImportError as error:
        raise ValueError(error) from None
    if args.gaze is None:
        return None
    with checked_file(args.gaze).open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()  # what follows may be half written
    if "center_x" in header:
        return Scanpath.from_csv(args.gaze)
    return GrowingTable(args.gaze, columns_of(args))


def neon_of(args) -> NeonGaze:
    """Return the gaze of Pupil Labs' glasses. Raises ValueError for options that they do not take, or as they do."""
    unknown = {field.name for field in dataclasses.fields(Columns)} - {"offset_s", "frame_size"}
    typed = sorted(f"--{name}" for name in unknown if getattr(args, name) is not None)
    if typed:
        raise ValueError(f"{', '.join(typed)}: the gaze of --neon is pixels of its scene camera, on its own clock")
    return NeonGaze(args.neon or None, args.offset_s, None if args.frame_size is None else tuple(args.frame_size))


def run(args) -> None:
    """Stream a video with its gaze, and print what happens."""
    # Seconds, which --help and mistakes in the arguments need not wait for.
    from gazeqwen.streaming.alerts import Alert, Watcher
    from gazeqwen.streaming.play import TimedQuestion, play, stream_settings
    from gazeqwen.streaming.stream import GazeStream
    from gazeqwen.utils.adapters import is_in_4bit, load_model_by_flags, load_processor

    questions = [TimedQuestion.parse(text) for text in args.ask]
    alerts = [Alert(text, args.every_s) for text in args.watch]
    gaze = gaze_of(args)
    video = VideoSource(args.video, args.own_pace)
    if not video.live:
        end_s = video_info(args.video).end_s
        for question in questions:
            if question.time_s > end_s:
                raise ValueError(f"{args.video}: ends at {end_s:.3f} s, before the question at {question.time_s:g} s")
    processor = load_processor(args.model, trust_remote_code=args.trust_remote_code)
    model = load_model_by_flags(args)
    if is_in_4bit(model):
        print("base model: in 4 bits")
    if is_toy(model):
        print(f"warning: {TOY_NOTE}")
    settings, note = stream_settings(model, processor, args.fps, args.video_encoder_window)
    if note:
        print(f"note: {note}")
    settings |= {"gaze_lag_s": args.gaze_lag_s, "budget": args.budget, "policy": args.policy}
    with GazeStream(model, processor, has_gaze=gaze is not None, **settings) as stream:
        if isinstance(gaze, Scanpath):
            stream.push_fixation(gaze, until_s=math.inf)
        watcher, took, began = Watcher(stream), [], time.perf_counter()
        watcher.alerts += alerts
        source, clock = gaze if isinstance(gaze, GazeSource) else None, ""
        try:
            for moment in play(stream, video, source, watcher, questions):
                if source is not None and source.clock != clock:
                    clock = source.clock
                    print(f"clock of the gaze: {clock}", flush=True)
                if moment.steps:
                    took.append(moment.seconds / moment.steps)
                for line in lines_of(moment):
                    print(line, flush=True)
        except KeyboardInterrupt:
            pass
        finally:
            if source is not None:
                source.close()
        print(summary(stream, video, took, time.perf_counter() - began))


def lines_of(moment: Moment) -> list[str]:
    """Return what is to be said about a moment: answers, and alerts that were raised or lowered."""
    lines = [
        f"{answer.time_s:8.2f} s  {question}  {answer}  [{1000 * answer.seconds:.0f} ms]"
        for question, answer in moment.answers
    ]
    for alert in moment.alerts:
        if alert.changed_s == alert.answer.time_s:
            state = "ALERT" if alert.raised else "over"
            yes, ms = f"Yes {100 * alert.probability:.1f} %", f"[{1000 * alert.answer.seconds:.0f} ms]"
            lines.append(f"{alert.changed_s:8.2f} s  {state}: {alert.instruction}  {yes}  {ms}")
    return lines


def summary(stream: GazeStream, video: VideoSource, took: list[float], seconds: float) -> str:
    """Return what a stream did, in a sentence; `took`: seconds of its temporal steps."""
    report = stream.report
    text = f"{0 if stream.now_s is None else stream.now_s:.2f} s of video in {seconds:.2f} s: {report.steps} steps"
    if took:
        text += f" (median {1000 * statistics.median(took):.0f} ms)"
    text += f", {report.questions} questions"
    counts = {
        "gaze samples or fixations came too late for their step": report.late_gaze,
        "steps did not wait for their gaze any longer": report.steps_without_gaze,
        "visual tokens were forgotten": report.forgotten,
        "damaged frames were left out": video.damaged,
    }
    return "; ".join([text, *(f"{count} {what}" for what, count in counts.items() if count)])


def main() -> None:
    run(arguments().parse_args())


if __name__ == "__main__":
    with one_line_errors():
        main()
