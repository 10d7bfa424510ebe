"""A picture of a recording: gaze over time with its fixations, and the fixations on a frame of the video."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..figures import save_png
from ..scanpath_gazeqwen import Scanpath
from ..video_gazeqwen import read_frames
from .samples import GazeSamples

_SAMPLE_COLOR, _FIXATION_COLOR = "#5b8def", "#ff2d55"
_NUMBERED = 25  # more numbers than this cover each other


def draw_recording(path, samples: GazeSamples, scanpath: Scanpath, video=None, title: str = "") -> None:
    """
    Write a PNG: x and y of the samples over time, each fixation a bar at its position as long as it lasts, and beside
    them the fixations, larger the longer and coloured by time, on the video's frame in the middle of the longest one.
    """
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(14, 5.2), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1.35, 1))
        x_axis = figure.add_subplot(grid[0, 0])
        y_axis = figure.add_subplot(grid[1, 0], sharex=x_axis)
        shown = np.where(samples.in_frame[:, None], samples.recorded_xy, np.nan)
        for axis, column, name in ((x_axis, 0, "x (left to right)"), (y_axis, 1, "y (top to bottom)")):
            axis.plot(
                samples.times_s, shown[:, column], ".", color=_SAMPLE_COLOR, markersize=2, alpha=0.6, rasterized=True
            )
            position = scanpath.table[:, column]
            axis.hlines(position, scanpath.begin_s, scanpath.end_s, color=_FIXATION_COLOR, linewidth=4, alpha=0.85)
            axis.set_ylim((0, 1) if column == 0 else (1, 0))
            axis.set_ylabel(name)
            axis.grid(alpha=0.25)
        x_axis.tick_params(labelbottom=False)
        y_axis.set_xlabel("seconds of the video")
        x_axis.set_title(f"{int(samples.in_frame.sum())} samples in the frame (blue), {len(scanpath)} fixations (red)")
        _draw_on_frame(figure.add_subplot(grid[:, 1]), samples, scanpath, video, figure)
        figure.suptitle(title)
        save_png(figure, path)


def _draw_on_frame(axis, samples: GazeSamples, scanpath: Scanpath, video, figure: Figure) -> None:
    width, height = samples.frame_size or (1, 1)
    longest = int(np.argmax(scanpath.table[:, 3])) if len(scanpath) else None
    if video is not None:
        time_s = 0.0 if longest is None else float(scanpath.table[longest, 2])
        (frame,), _ = read_frames(video, [time_s])
        axis.imshow(frame, extent=(0, width, height, 0))
        axis.set_title(f"the frame at {time_s:.1f} s")
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(video is None)
    if longest is None:
        axis.text(width / 2, height / 2, "no fixation", ha="center", color=_FIXATION_COLOR)
        return
    x, y = scanpath.table[:, 0] * width, scanpath.table[:, 1] * height
    duration = scanpath.table[:, 3]
    axis.plot(x, y, color="white", linewidth=1, alpha=0.7)
    sizes = 60 + 540 * duration / duration.max()
    discs = axis.scatter(
        x, y, s=sizes, c=scanpath.table[:, 2], cmap="plasma", edgecolors="white", alpha=0.75, zorder=2
    )
    if len(scanpath) <= _NUMBERED:
        for number, place_x, place_y in zip(scanpath.ids, x, y, strict=True):
            text = axis.text(place_x, place_y, str(number), ha="center", va="center", fontsize=8, color="white")
            text.set_path_effects([withStroke(linewidth=2, foreground="black")])
    figure.colorbar(discs, ax=axis, orientation="horizontal", shrink=0.7, label="seconds of the video")
