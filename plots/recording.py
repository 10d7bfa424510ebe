"""Draw a recording: gaze over time with its fixations, and the fixations on a frame of the video."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from gazeqwen.plots.labels import Label, write_labels
from gazeqwen.plots.style import save_png
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import read_frames

if TYPE_CHECKING:
    from gazeqwen.gaze_sources.samples import GazeSamples


_EXCERPT_S = 20.0  # what is longer cannot be read, and the scene moves on
_MAX_NUMBERS = 25  # more numbers than this cover each other


def draw_recording(path, samples: GazeSamples, scanpath: Scanpath, video=None, title: str = "") -> None:
    """
    Write a PNG: x and y of the samples over time, each fixation a bar at its position as long as it lasts, and beside
    them the fixations, larger the longer, on the video's frame in the middle of the longest one. That one is filled;
    the others are rings, as they belong to other moments. Colour is time. Of a longer recording, the 20 seconds around
    its longest fixation are shown.
    """
    whole_s = float(samples.times_s[-1] - samples.times_s[0])
    begin, end = _excerpt(samples, scanpath)
    samples, scanpath = samples.keep(samples.within(begin, end)), scanpath.clip(begin, end)
    colors = matplotlib.colormaps["plasma"](np.interp(scanpath.table[:, 2], (begin, end), (0.05, 0.95)))
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(14, 5.2), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1))
        x_axis = figure.add_subplot(grid[0, 0])
        y_axis = figure.add_subplot(grid[1, 0], sharex=x_axis)
        gaze = np.where(samples.in_frame[:, None], samples.recorded_xy, np.nan)
        for axis, column, name in ((x_axis, 0, "x (left to right)"), (y_axis, 1, "y (top to bottom)")):
            positions = scanpath.table[:, column]
            axis.hlines(positions, scanpath.begin_s, scanpath.end_s, colors=colors, linewidth=9, alpha=0.55)
            axis.plot(samples.times_s, gaze[:, column], ".", color="black", markersize=1.5, rasterized=True)
            axis.set_ylim((0, 1) if column == 0 else (1, 0))
            axis.set_ylabel(name)
            axis.grid(alpha=0.25)
        x_axis.tick_params(labelbottom=False)
        y_axis.set_xlabel("seconds of the video")
        counts = f"{samples.in_frame.sum()} samples in the frame (dots), {len(scanpath)} fixations (bars)"
        x_axis.set_title(f"{end - begin:.0f} of {whole_s:.0f} s: {counts}")
        _draw_on_frame(figure.add_subplot(grid[:, 1]), samples, scanpath, video, colors)
        figure.suptitle(title)
        save_png(figure, path)


def _excerpt(samples: GazeSamples, scanpath: Scanpath) -> tuple[float, float]:
    """Return (begin, end) of the part to show, seconds."""
    first, last = float(samples.times_s[0]), float(samples.times_s[-1])
    if last - first <= _EXCERPT_S:
        return first, last
    middle = scanpath.table[np.argmax(scanpath.table[:, 3]), 2] if len(scanpath) else first
    begin = float(np.clip(middle - _EXCERPT_S / 2, first, last - _EXCERPT_S))
    return begin, begin + _EXCERPT_S


def _draw_on_frame(axis, samples: GazeSamples, scanpath: Scanpath, video, colors: np.ndarray) -> None:
    """Draw fixations, each of its colour (N, 4), on the video's frame at the longest; without a video on nothing."""
    width, height = samples.frame_size or (1, 1)
    longest = int(np.argmax(scanpath.table[:, 3])) if len(scanpath) else None
    if video is not None:
        time_s = 0.0 if longest is None else float(scanpath.table[longest, 2])
        (frame,), _ = read_frames(video, [time_s])
        axis.imshow(frame, extent=(0, width, height, 0))
        axis.set_title(f"the frame at {time_s:.1f} s and its fixation; rings: fixations of other moments")
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(video is None)
    if longest is None:
        axis.text(width / 2, height / 2, "no fixation", ha="center")
        return
    x, y = scanpath.table[:, 0] * width, scanpath.table[:, 1] * height
    duration = scanpath.table[:, 3]
    line = axis.plot(x, y, color="white", linewidth=0.8, alpha=0.5)[0]
    line.set_path_effects([withStroke(linewidth=1.6, foreground="black", alpha=0.3)])
    sizes = 60 + 540 * duration / duration.max()
    others = np.arange(len(scanpath)) != longest
    rings = axis.scatter(x[others], y[others], sizes[others], facecolors="none", edgecolors=colors[others], zorder=2)
    rings.set(linewidth=2, path_effects=[withStroke(linewidth=3.5, foreground="white")])
    axis.scatter(
        x[longest], y[longest], sizes[longest], color=colors[longest], edgecolors="white", alpha=0.8, zorder=2
    )
    if len(scanpath) <= _MAX_NUMBERS:
        longest_first = np.argsort(-duration, kind="stable")
        write_labels(axis, [Label(x[index], y[index], str(scanpath.ids[index]), 8) for index in longest_first])
