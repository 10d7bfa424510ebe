"""
A raw eye-tracking recording -> a fixation table on the video's clock.

gazeqwen gaze gaze/P01.txt --source egtea --video P01.mp4 -o P01_fixation_filtered.csv --plot P01.png

Without --source it is guessed from the files and their columns, and said.
"""

import argparse
import inspect
import sys

import numpy as np

from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_text
from gazeqwen.video_gazeqwen import video_info

from . import SOURCES
from .conversion import MAX_LISTED, check_in_frame, inside_video, largest_gap_s, median_step_s
from .fixations import (
    DEFAULT_SCENE_THRESHOLD,
    SCENE_THRESHOLDS,
    Dropped,
    checked_scanpath,
    detect_fixations,
    scene_consistent,
    streamgaze_fixations,
)
from .generic import COORDINATES, ORIGINS, TIME_UNITS
from .guess import guess_source
from .samples import GazeSamples, Status

_FRAME_SHARE = 0.5  # warn if more samples than this lie outside the frame


def _parse_size(text: str) -> tuple[int, int]:
    """Return (width, height) of a text such as `1280x720`. Raises ArgumentTypeError."""
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected WIDTHxHEIGHT in pixels, such as 1280x720") from None
    return width, height


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="gazeqwen gaze",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", help="the recording: a file, or a folder where the source has one")
    parser.add_argument("--source", choices=SOURCES, help="default: guessed from the input, and said")
    parser.add_argument("--video", help="the video that the gaze belongs to: its clock, size and end")
    parser.add_argument("-o", "--output", required=True, help="the fixation table to write (CSV)")
    parser.add_argument("--plot", help="a picture to write (PNG)")
    parser.add_argument("--overlay", help="a video to write (MP4): --video with the gaze of its time on every frame")
    parser.add_argument(
        "--algorithm",
        choices=("dispersion", "streamgaze", "export"),
        default="dispersion",
        help="dispersion (default); streamgaze: as StreamGaze does; export: the recording's own fixations",
    )
    parser.add_argument("--scene_filter", action="store_true", help="drop fixations during which the scene changes")
    parser.add_argument(
        "--scene_threshold", type=float, help="lowest correlation of neighbouring frames (0.9; HoloAssist 0.5)"
    )
    detector = parser.add_argument_group("dispersion")
    for name, parameter in _parameters(detect_fixations).items():
        detector.add_argument(f"--{name}", type=float, help=f"default {parameter.default}")
    reader = parser.add_argument_group("reading (each source takes some of these; see its module)")
    reader.add_argument("--frame_size", type=_parse_size, metavar="WIDTHxHEIGHT", help="in place of the video's own")
    reader.add_argument("--time_unit", choices=TIME_UNITS)
    reader.add_argument("--coordinates", choices=COORDINATES)
    reader.add_argument("--origin", choices=ORIGINS)
    reader.add_argument("--offset_s", type=float, help="the gaze clock's time at which the video begins")
    reader.add_argument("--min_confidence", type=float)
    reader.add_argument("--recording", help="which one, where a file holds several")
    reader.add_argument("--vrs", help="Project Aria: the recording's VRS file (default: the one beside it)")
    reader.add_argument(
        "--upright", action=argparse.BooleanOptionalAction, help="Project Aria: the video is turned upright (default)"
    )
    for name in ("time_column", "x_column", "y_column", "confidence_column", "delimiter"):
        reader.add_argument(f"--{name}")
    for name in ("max_pose_gap_s", "max_gaze_gap_s", "gaze_distance_m"):
        reader.add_argument(f"--{name}", type=float)
    return parser


def _parameters(function) -> dict[str, inspect.Parameter]:
    """Return the options of a function: its parameters without samples, path and video."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in parameters.items() if name not in ("samples", "path", "video")}


def _options_for(args, function, what: str, others) -> dict:
    """
    Return the options of the command line that `function` takes. `others`: names of options that it may not take.
    Raises ValueError for those of them that were typed, and for options that it needs and does not get.
    """
    parameters = _parameters(function)
    options = {name: getattr(args, name) for name in (*parameters, *others) if getattr(args, name, None) is not None}
    unknown = [f"--{name}" for name in options if name not in parameters]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no option of {what}, which takes {_flags(parameters) or 'none'}")
    missing = [name for name, value in parameters.items() if value.default is value.empty and name not in options]
    if missing:
        raise ValueError(f"{what} needs {_flags(missing)}")
    return options


def _flags(names) -> str:
    """Return names of options as they are typed."""
    return ", ".join(f"--{name}" for name in names)


def run(args) -> None:
    """Read a recording, detect or read its fixations, print what there is, write the table and the pictures."""
    if args.source is None:
        args.source, sign = guess_source(args.input)
        print(f"source: {args.source}, guessed from {sign} (--source says another)")
    source = SOURCES[args.source]
    reader_options = {name for module in SOURCES.values() for name in _parameters(module.read)}
    options = _options_for(args, source.read, f"source {args.source}", reader_options)
    detector_options = _options_for(args, detect_fixations, "dispersion", ())
    if detector_options and args.algorithm != "dispersion":
        raise ValueError(f"{_flags(detector_options)}: options of --algorithm dispersion, not of {args.algorithm}")
    if (args.scene_filter or args.scene_threshold is not None) and not (args.scene_filter and args.video):
        raise ValueError("--scene_filter needs --video, and --scene_threshold needs --scene_filter")
    if args.overlay and not (args.video and args.overlay.lower().endswith(".mp4")):
        raise ValueError(f"--overlay {args.overlay}: expected the name of an .mp4 to write, and --video")
    info = None if args.video is None else video_info(args.video)

    samples = source.read(args.input, args.video, **options)
    _print_samples(samples)
    dropped = []
    if info is not None:
        samples = inside_video(samples, info.start_s, info.end_s, args.video, print, _warn)
    if args.algorithm == "dispersion":
        if "max_gap_s" not in detector_options:
            detector_options["max_gap_s"] = largest_gap_s(samples, print)
        scanpath = detect_fixations(samples, **detector_options)
    elif args.algorithm == "streamgaze":
        scanpath, dropped = streamgaze_fixations(samples, args.source)
        print("clock: StreamGaze's, frame number / its assumed frame rate; the video's only where the rates agree")
    else:
        if not hasattr(source, "read_fixations"):
            raise ValueError(f"source {args.source} has no fixations of its own, expected another --algorithm")
        scanpath, dropped = source.read_fixations(args.input, args.video, **options)
    if info is not None:
        ids = scanpath.ids
        scanpath, outside = checked_scanpath(
            scanpath.begin_s, scanpath.end_s, scanpath.table[:, :2], args.input, info.start_s, info.end_s
        )
        scanpath = Scanpath(scanpath.table, ids[scanpath.ids])
        dropped += outside
    if args.scene_filter:
        threshold = args.scene_threshold
        if threshold is None:
            threshold = SCENE_THRESHOLDS.get(args.source, DEFAULT_SCENE_THRESHOLD)
        scanpath, changing = scene_consistent(scanpath, args.video, threshold)
        dropped += changing
    if not len(scanpath):
        check_in_frame(samples)
    span = (samples.times_s[0], samples.times_s[-1]) if info is None else (info.start_s, info.end_s)
    _print_fixations(samples, scanpath, dropped, span, "recording" if info is None else "video")

    write_text(args.output, scanpath.to_csv())
    print(f"written: {args.output}")
    if args.plot:
        from gazeqwen.plots.recording import draw_recording

        draw_recording(args.plot, samples, scanpath, args.video, args.input)
        print(f"written: {args.plot}")
    if args.overlay:
        from gazeqwen.plots.overlay import write_overlay

        write_overlay(args.overlay, args.video, samples, scanpath)
        print(f"written: {args.overlay}")


def _print_samples(samples: GazeSamples) -> None:
    """Print number, rate, gaps, states and notes of samples; warn where most lie outside the frame."""
    times, count = samples.times_s, len(samples)
    print(f"{samples.source}")
    print(f"samples: {count} from {times[0]:.3f} to {times[-1]:.3f} s, {samples.repeated_times} repeat a time")
    step_s = median_step_s(samples)
    if step_s:
        steps = np.diff(times)
        gaps = steps[steps > 2.5 * step_s]
        print(
            f"rate: {1 / step_s:.1f} Hz (median); {len(gaps)} gaps of more than 2.5 steps, {gaps.sum():.1f} s in all"
        )
    shares = (f"{samples.count(status)} {status.name.lower().replace('_', ' ')}" for status in Status)
    print(f"in the frame: {100 * samples.in_frame.mean():.1f} % ({', '.join(shares)})")
    for note in samples.notes:
        print(f"note: {note}")
    tracked = count - samples.count(Status.UNTRACKED)
    if tracked and samples.count(Status.OUT_OF_FRAME) > _FRAME_SHARE * tracked:
        share = 100 * samples.count(Status.OUT_OF_FRAME) / tracked
        _warn(f"{share:.1f} % of the tracked samples lie outside the frame: are units, origin and frame size right?")


def _print_fixations(
    samples: GazeSamples, scanpath: Scanpath, dropped: list[Dropped], span: tuple[float, float], whole: str
) -> None:
    """
    Print number and durations of fixations, their share of `span` (begin and end of the `whole`), those left out.
    """
    print(f"fixations: {len(scanpath)}")
    if len(scanpath):
        duration = scanpath.table[:, 3]
        share = 100 * duration.sum() / max(span[1] - span[0], duration.sum())
        total = f"{duration.sum():.1f} s, {share:.1f} % of the {whole}"
        print(f"duration: median {np.median(duration):.3f} s; together {total}")
        first, last = (
            np.searchsorted(samples.times_s, times) for times in (scanpath.begin_s - 1e-6, scanpath.end_s + 1e-6)
        )
        in_frame_before = np.concatenate([[0], np.cumsum(samples.in_frame)])
        unsupported = int((in_frame_before[last] == in_frame_before[first]).sum())
        if unsupported:
            _warn(f"{unsupported} fixations have no sample in the frame")
    if dropped:
        print(f"left out: {len(dropped)} fixations or parts of them")
        for entry in dropped[:MAX_LISTED]:
            print(f"  {entry}")
        if len(dropped) > MAX_LISTED:
            print(f"  and {len(dropped) - MAX_LISTED} more")


def _warn(text: str) -> None:
    print(f"WARNING: {text}", file=sys.stderr)


def main() -> None:
    args = arguments().parse_args()
    sys.argv[0] = "gazeqwen gaze"
    with one_line_errors():
        try:
            run(args)
        except ModuleNotFoundError:  # an extra of this package
            raise
        except ImportError as error:
            raise ValueError(error) from None


if __name__ == "__main__":
    main()
