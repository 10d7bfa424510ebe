"""Gaze that can be seen or read: drawn on the frames of a clip, or written into the prompt."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import Clip

DRAWN = frozenset({"overlay", "ring", "saliency"})


# StreamGaze's overlay, radii in frame widths: a green disc of 8 pixels and a red ring of 100 on a frame of 640.
_DISC, _RING, _LINE = 8 / 640, 0.156, 2 / 640
# The plain white ring, in frame widths: the mark that the toy backbone was pretrained on (13 and 2 pixels of 112).
_PLAIN_RING, _PLAIN_LINE = 13 / 112, 2 / 112
_SALIENCY_SIGMA, _SALIENCY_OPACITY = 0.06, 0.45  # of the frame's width; of the hottest place


@dataclass(frozen=True)
class Drawing:
    """Gaze on the frames of a clip: a scanpath, by the `channels` `overlay`, `ring` and `saliency`."""

    channels: frozenset
    scanpath: Scanpath

    @property
    def digest(self) -> str:
        """Of all that the drawn pixels depend on beside the clip."""
        sizes = (_DISC, _RING, _LINE, _PLAIN_RING, _PLAIN_LINE, _SALIENCY_SIGMA, _SALIENCY_OPACITY)
        looks = repr((sorted(self.channels), *sizes))
        return hashlib.sha256(looks.encode() + np.ascontiguousarray(self.scanpath.table).tobytes()).hexdigest()


def gaze_in_words(scanpath: Scanpath, start_s: float, end_s: float) -> str:
    """The clip's fixations as a sentence: times from the clip's beginning, x and y from 0 to 1."""
    inside = scanpath.clip(start_s, end_s)
    if not len(inside):
        return "The wearer's gaze was recorded; there was no fixation."
    spans = zip(inside.begin_s - start_s, inside.end_s - start_s, inside.table[:, 0], inside.table[:, 1], strict=True)
    listed = "; ".join(f"{begin:.1f} to {end:.1f} s at ({x:.2f}, {y:.2f})" for begin, end, x, y in spans)
    return f"The wearer looked at these places (x, y from 0 to 1, from the upper left corner): {listed}."


def draw_gaze(clip: Clip, scanpath: Scanpath, channels) -> Clip:
    """The clip with the gaze drawn on its frames, each as it was at its time; the clip itself stays as it is."""
    frames = clip.frames.copy()
    for index, (frame, time_s) in enumerate(zip(clip.frames, clip.timestamps_s, strict=True)):
        if "saliency" in channels:
            frame = _with_heat(frame, scanpath.clip(clip.start_s, max(time_s, clip.start_s)))
        if "overlay" in channels:
            frame = _with_disc_and_ring(frame, scanpath, time_s)
        if "ring" in channels:
            frame = _with_plain_ring(frame, scanpath, time_s)
        frames[index] = frame
    return replace(clip, frames=frames)


def _places_looked_at_px(scanpath: Scanpath, time_s: float, frame: np.ndarray) -> np.ndarray:
    """Return the (x, y) of each fixation under way at `time_s` in pixels of the frame, shape (fixations, 2)."""
    height, width = frame.shape[:2]
    under_way = (scanpath.begin_s <= time_s) & (time_s < scanpath.end_s)
    return scanpath.table[under_way, :2] * (width, height)


def _with_disc_and_ring(frame: np.ndarray, scanpath: Scanpath, time_s: float) -> np.ndarray:
    """Disc and ring at the fixation under way, none between fixations."""
    places_px, width = _places_looked_at_px(scanpath, time_s, frame), frame.shape[1]
    if not len(places_px):
        return frame
    image = Image.fromarray(frame)
    draw, line = ImageDraw.Draw(image), max(1, round(_LINE * width))
    for x, y in places_px:
        for radius, fill, edge in ((_RING, None, (255, 0, 0)), (max(_DISC, 1.5 / width), (0, 255, 0), (0, 0, 0))):
            r = radius * width
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=edge, width=line)
    return np.asarray(image)


def _with_plain_ring(frame: np.ndarray, scanpath: Scanpath, time_s: float) -> np.ndarray:
    """Draw a white ring around the fixation under way, with soft edges; return the frame itself between fixations."""
    height, width = frame.shape[:2]
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5
    for x, y in _places_looked_at_px(scanpath, time_s, frame):
        off_the_line = abs(np.hypot(columns - x, rows - y) - _PLAIN_RING * width)
        coverage = np.clip(_PLAIN_LINE * width / 2 + 0.5 - off_the_line, 0, 1)[..., None]
        frame = (frame + coverage * (255.0 - frame)).round().astype(np.uint8)
    return frame


def _with_heat(frame: np.ndarray, seen: Scanpath) -> np.ndarray:
    """A heat map of the fixations so far, by their durations, over the frame."""
    if not len(seen):
        return frame
    height, width = frame.shape[:2]
    sigma = _SALIENCY_SIGMA * width
    rows = np.exp(-(((np.arange(height) + 0.5)[:, None] - seen.table[:, 1] * height) ** 2) / (2 * sigma**2))
    columns = np.exp(-(((np.arange(width) + 0.5)[:, None] - seen.table[:, 0] * width) ** 2) / (2 * sigma**2))
    heat = (rows * seen.table[:, 3]) @ columns.T
    heat = (heat / heat.max())[..., None]
    colored = colormaps["jet"](heat[..., 0])[..., :3] * 255
    opacity = _SALIENCY_OPACITY * np.minimum(2 * heat, 1)
    return (frame * (1 - opacity) + colored * opacity).round().astype(np.uint8)
