"""The toy world: a 4x4 grid of kitchen nouns, each a coloured shape, that appear, move and vanish; and its pictures.

All positions are pixels of a 112x112 frame, origin top-left, y down; all times are seconds of the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np

FRAME_PX = 112
CELL_PX = 28
GRID = FRAME_PX // CELL_PX
FPS = 8

COLORS = {
    "red": (215, 40, 40),
    "yellow": (235, 210, 40),
    "green": (45, 170, 70),
    "blue": (50, 95, 230),
    "purple": (170, 65, 200),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
NOUNS = {
    "red": ("tomato", "ketchup", "strawberry", "apron"),
    "yellow": ("lemon", "cheese", "banana", "sponge"),
    "green": ("lime", "bottle", "broccoli", "cucumber"),
    "blue": ("plate", "towel", "funnel", "tap"),
    "purple": ("plum", "jar", "eggplant", "onion"),
    "white": ("egg", "salt", "napkin", "whisk"),
}
NOUN_OF = {(color, shape): NOUNS[color][i] for color in COLORS for i, shape in enumerate(SHAPES)}
KINDS = tuple(NOUN_OF)  # every (color, shape)


@dataclass(frozen=True)
class WorldObject:
    """One object. `waypoints` are (time_s, x_px, y_px); between them the object moves in a straight line."""

    color: str
    shape: str
    appears_s: float
    vanishes_s: float
    waypoints: tuple[tuple[float, float, float], ...]
    radius_px: int = 10

    @property
    def noun(self) -> str:
        return NOUN_OF[self.color, self.shape]

    def position_px(self, time_s) -> np.ndarray:
        """Centre (x, y) at `time_s`; an array of times gives an array of shape (times, 2)."""
        times, x, y = np.array(self.waypoints).T
        return np.stack([np.interp(time_s, times, x), np.interp(time_s, times, y)], axis=-1)

    def visible(self, start_s: float, end_s: float | None = None) -> bool:
        """Is it visible at `start_s`, or throughout [start_s, end_s]?"""
        end_s = start_s if end_s is None else end_s
        return self.appears_s <= start_s and end_s < self.vanishes_s


@dataclass(frozen=True)
class Scene:
    """One video before it is drawn."""

    duration_s: float
    objects: tuple[WorldObject, ...]
    background_rgb: tuple[float, float, float]

    def visible(self, start_s: float, end_s: float | None = None) -> list[int]:
        """Indices of the objects visible at `start_s`, or throughout [start_s, end_s]."""
        return [i for i, thing in enumerate(self.objects) if thing.visible(start_s, end_s)]


@dataclass(frozen=True)
class Highlight:
    """How a marker around an object is drawn (pretraining only): a ring, or a halo of brightness."""

    rgb: tuple[int, int, int] = (255, 255, 255)
    radius_px: float = 13.0
    thickness_px: float = 2.0
    opacity: float = 1.0
    halo: bool = False


def _kinds_of_scene(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """`count` different (color, shape): four that differ in both, or four look-alikes, then others at random."""
    colors = [str(c) for c in rng.permutation(list(COLORS))]
    shapes = [str(s) for s in rng.permutation(SHAPES)]
    core = str(rng.choice(["all different", "same color", "same shape"], p=[0.5, 0.25, 0.25]))
    if core == "all different":
        kinds = list(zip(colors[:4], shapes, strict=True))
    elif core == "same color":
        kinds = [(colors[0], shape) for shape in shapes]
    else:
        kinds = [(color, shapes[0]) for color in colors[:4]]
    others = [kind for kind in KINDS if kind not in kinds]
    kinds += [others[i] for i in rng.permutation(len(others))[: count - 4]]
    return [kinds[i] for i in rng.permutation(count)]


def make_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: 8 to 14 s, 4 to 7 objects, some of which appear late, leave early, or move to a free cell."""
    duration_s = int(rng.integers(8 * FPS, 14 * FPS + 1)) / FPS
    count = int(rng.choice([4, 5, 6, 7], p=[0.4, 0.2, 0.2, 0.2]))
    kinds = _kinds_of_scene(rng, count)
    stays = 4 if count == 4 or rng.random() < 0.6 else int(rng.integers(4, count + 1))
    cells = [tuple(divmod(int(c), GRID)) for c in rng.permutation(GRID * GRID)]
    homes, free = cells[:count], set(cells[count:])

    def centre(cell: tuple[int, int]) -> tuple[float, float]:
        x, y = (cell[1] + 0.5) * CELL_PX + rng.uniform(-3, 3), (cell[0] + 0.5) * CELL_PX + rng.uniform(-3, 3)
        return float(x), float(y)

    objects = []
    for i, (color, shape) in enumerate(kinds):
        appears_s, vanishes_s = 0.0, float("inf")
        if i >= stays and rng.random() < 0.5:
            appears_s = float(rng.uniform(0.15, 0.6) * duration_s)
        elif i >= stays:
            vanishes_s = float(rng.uniform(0.4, 0.85) * duration_s)
        waypoints = [(0.0, *centre(homes[i]))]
        row, column = homes[i]
        neighbours = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        neighbours = [cell for cell in neighbours if cell in free]
        if neighbours and rng.random() < 0.5:
            target = neighbours[int(rng.integers(len(neighbours)))]
            free.remove(target)  # both cells stay reserved, so objects never overlap
            start_s = float(rng.uniform(0.5, duration_s - 2))
            waypoints += [(start_s, *waypoints[0][1:]), (start_s + float(rng.uniform(0.4, 1.2)), *centre(target))]
            if rng.random() < 0.3:  # and back
                back_s = waypoints[-1][0] + float(rng.uniform(1, 4))
                waypoints += [(back_s, *waypoints[-1][1:]), (back_s + float(rng.uniform(0.4, 1.2)), *waypoints[0][1:])]
        objects.append(
            WorldObject(color, shape, appears_s, vanishes_s, tuple(waypoints), radius_px=int(rng.integers(9, 12)))
        )
    grey = rng.uniform(45, 95)
    background = tuple(float(v) for v in grey + rng.uniform(-12, 12, size=3))
    return Scene(duration_s, tuple(objects), background)


@cache
def _shape_mask(shape: str, radius_px: int) -> np.ndarray:
    """Coverage in [0, 1] of a shape in its 28x28 square, shape (28, 28, 1)."""
    fine = (np.arange(CELL_PX * 4) + 0.5) / 4 - CELL_PX / 2
    y, x = np.meshgrid(fine, fine, indexing="ij")
    if shape == "circle":
        inside = x**2 + y**2 <= radius_px**2
    elif shape == "square":
        inside = np.maximum(abs(x), abs(y)) <= 0.88 * radius_px
    elif shape == "triangle":
        inside = (y <= 0.9 * radius_px) & (y >= -radius_px + 1.75 * abs(x))
    elif shape == "cross":
        inside = (np.minimum(abs(x), abs(y)) <= 0.33 * radius_px) & (np.maximum(abs(x), abs(y)) <= radius_px)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    return inside.reshape(CELL_PX, 4, CELL_PX, 4).mean(axis=(1, 3))[..., None].astype(np.float32)


def _blend(frame: np.ndarray, mask: np.ndarray, rgb, x_px: float, y_px: float) -> None:
    """Paint `rgb` through a square `mask` centred at (x_px, y_px), rounded to whole pixels; clips at the border."""
    size = mask.shape[0]
    left, top = round(x_px) - size // 2, round(y_px) - size // 2
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, FRAME_PX), min(top + size, FRAME_PX)
    if x0 >= x1 or y0 >= y1:
        return
    part = mask[y0 - top : y1 - top, x0 - left : x1 - left]
    region = frame[y0:y1, x0:x1]
    region += part * (np.asarray(rgb, dtype=np.float32) - region)


@cache
def _highlight_mask(radius_px: float, thickness_px: float, opacity: float, halo: bool) -> np.ndarray:
    side = np.arange(48) - 23.5
    distance = np.sqrt(side[:, None] ** 2 + side[None, :] ** 2)
    if halo:
        mask = 0.7 * np.exp(-((distance / radius_px) ** 4))
    else:
        mask = np.clip(thickness_px / 2 + 0.5 - abs(distance - radius_px), 0, 1)
    return (opacity * mask)[..., None].astype(np.float32)


def draw_frame(scene: Scene, time_s: float, highlights: list[tuple[int, Highlight]] = ()) -> np.ndarray:
    """The picture at `time_s`, uint8 (112, 112, 3); `highlights` are (object index, style) to mark."""
    frame = np.empty((FRAME_PX, FRAME_PX, 3), dtype=np.float32)
    frame[:] = scene.background_rgb
    places = {i: scene.objects[i].position_px(time_s) for i in scene.visible(time_s)}
    for i, style in highlights:
        if style.halo and i in places:
            mask = _highlight_mask(style.radius_px, style.thickness_px, style.opacity, True)
            _blend(frame, mask, style.rgb, *places[i])
    for i, place in places.items():
        thing = scene.objects[i]
        _blend(frame, _shape_mask(thing.shape, thing.radius_px), COLORS[thing.color], *place)
    for i, style in highlights:
        if not style.halo and i in places:
            mask = _highlight_mask(style.radius_px, style.thickness_px, style.opacity, False)
            _blend(frame, mask, style.rgb, *places[i])
    return frame.round().clip(0, 255).astype(np.uint8)


def frame_times_s(scene: Scene) -> np.ndarray:
    """True times of the frames of the scene's video file: k / FPS."""
    return np.arange(round(scene.duration_s * FPS)) / FPS


def write_video(path: str | Path, frames: list[np.ndarray], fps: int = FPS) -> None:
    """Write uint8 (H, W, 3) frames as h264 in mp4: constant rate, frame k at k / fps s, yuv420p, near lossless."""
    if not frames:
        raise ValueError(f"no frames to write to {path}")
    with av.open(str(path), "w") as container:
        options = {"crf": "10", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
