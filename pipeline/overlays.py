"""Gaze that can be seen or read: drawn on the frames of a clip, or written into the prompt."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import Clip

DRAWN = frozenset({"overlay", "ring", "cross", "saliency"})


# StreamGaze's overlay, radii in frame widths: a green disc of 8 pixels and a red ring of 100 on a frame of 640.
_DISC, _RING, _LINE = 8 / 640, 0.156, 2 / 640
# The plain white ring and cross, in frame widths: marks of the toy backbones' pretraining (13 and 2 pixels of 112).
_PLAIN_RING, _PLAIN_LINE = 13 / 112, 2 / 112
_SALIENCY_SIGMA, _SALIENCY_OPACITY = 0.06, 0.45  # of the frame's width; of the hottest place


@dataclass(frozen=True)
class Drawing:
    """Gaze on the frames of a clip: a scanpath, by the `channels` in `DRAWN`."""

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
            frame = with_rings(frame, _places_looked_at_px(scanpath, time_s, frame))
        if "cross" in channels:
            frame = with_crosses(frame, _places_looked_at_px(scanpath, time_s, frame))
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


def with_rings(frame: np.ndarray, places_px: np.ndarray, radius_px: float | None = None, rgb=(255, 255, 255)):
    """
    Return the frame with a ring around each place (x, y), with soft edges; the frame itself if there is no place.
    `radius_px` is, if not given, that of the channel `ring`: 13 of 112 pixels.
    """
    width = frame.shape[1]
    radius_px = _PLAIN_RING * width if radius_px is None else radius_px
    for away_px in _distances_px(frame, places_px):
        frame = _painted(frame, _PLAIN_LINE * width / 2 + 0.5 - abs(np.hypot(*away_px) - radius_px), rgb)
    return frame


def with_crosses(frame: np.ndarray, places_px: np.ndarray, radius_px: float | None = None, rgb=(255, 255, 255)):
    """
    Return the frame with a cross over each place (x, y), its arms `radius_px` long, else as for a ring of the channel
    `cross`: 13 of 112 pixels.
    """
    width = frame.shape[1]
    radius_px = _PLAIN_RING * width if radius_px is None else radius_px
    for across, down in _distances_px(frame, places_px):
        off_the_line, along = np.minimum(abs(across), abs(down)), np.maximum(abs(across), abs(down))
        line = _PLAIN_LINE * width / 2 + 0.5 - off_the_line
        frame = _painted(frame, np.minimum(line, radius_px + 0.5 - along), rgb)
    return frame


def _distances_px(frame: np.ndarray, places_px: np.ndarray):
    """Yield, for each place, how far pixels lie from it to the right (1, W) and down (H, 1)."""
    height, width = frame.shape[:2]
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5
    for x, y in places_px:
        yield columns - x, rows - y


def _painted(frame: np.ndarray, coverage: np.ndarray, rgb) -> np.ndarray:
    coverage = np.clip(coverage, 0, 1)[..., None]
    return (frame + coverage * (np.array(rgb, float) - frame)).round().astype(np.uint8)


def _with_heat(frame: np.ndarray, seen: Scanpath) -> np.ndarray:
    """A heat map of the fixations so far, by their durations, over the frame."""
    height, width = frame.shape[:2]
    return with_heat(frame, seen.table[:, :2] * (width, height), seen.table[:, 3])


def with_heat(frame: np.ndarray, places_px: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Return the frame under a heat map, normal around each place (x, y), as hot as its weight; the frame itself if there
    is no place.
    """
    if not len(places_px):
        return frame
    height, width = frame.shape[:2]
    sigma = _SALIENCY_SIGMA * width
    rows = np.exp(-(((np.arange(height) + 0.5)[:, None] - places_px[:, 1]) ** 2) / (2 * sigma**2))
    columns = np.exp(-(((np.arange(width) + 0.5)[:, None] - places_px[:, 0]) ** 2) / (2 * sigma**2))
    heat = (rows * weights) @ columns.T
    heat = (heat / heat.max())[..., None]
    colored = colormaps["jet"](heat[..., 0])[..., :3] * 255
    opacity = _SALIENCY_OPACITY * np.minimum(2 * heat, 1)
    return (frame * (1 - opacity) + colored * opacity).round().astype(np.uint8)
