"""
The toy world: a 4x4 grid of kitchen nouns, each a coloured shape, that come, move and go, and a camera that shifts;
and its pictures.

All positions are pixels of a 112x112 frame, origin top-left, y down; all times are seconds of the video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar, Self

import av
import numpy as np

FRAME_PX = 112
CELL_PX = 28
GRID = FRAME_PX // CELL_PX
FPS = 4

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
class Camera:
    """Where the view lies on the kitchen's plane: `waypoints` are (time_s, x_px, y_px) of its upper left corner."""

    waypoints: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 0.0),)

    def position_px(self, time_s) -> np.ndarray:
        """Return (x, y) at `time_s`; an array of times gives an array of shape (times, 2)."""
        return between(self.waypoints, time_s)


class PresentAtTimes:
    """What can be seen at the times `present_s`, (begin, end) each."""

    present_s: tuple[tuple[float, float], ...]

    def visible(self, start_s: float, end_s: float | None = None) -> bool:
        """Say whether it is visible at `start_s`, or throughout [start_s, end_s]."""
        end_s = start_s if end_s is None else end_s
        return any(begin <= start_s and end_s < end for begin, end in self.present_s)


@dataclass(frozen=True)
class WorldObject(PresentAtTimes):
    """
    One object. `waypoints` are (time_s, x_px, y_px) on the plane; between them it moves in a straight line.
    `present_s` are the times (begin, end) at which it can be seen in the view.
    """

    color: str
    shape: str
    waypoints: tuple[tuple[float, float, float], ...]
    present_s: tuple[tuple[float, float], ...] = ((0.0, float("inf")),)
    radius_px: int = 10
    camera: Camera = Camera()

    @property
    def noun(self) -> str:
        return NOUN_OF[self.color, self.shape]

    @property
    def size_px(self) -> int:
        """Return its width."""
        return 2 * self.radius_px

    def position_px(self, time_s) -> np.ndarray:
        """Return the centre (x, y) in the frame at `time_s`; an array of times gives an array of shape (times, 2)."""
        return between(self.waypoints, time_s) - self.camera.position_px(time_s)

    def cell(self, time_s: float) -> tuple[int, int]:
        """Return (column, row) of the grid cell that its centre is in."""
        return tuple(int(v) for v in self.position_px(time_s) // CELL_PX)

    def taken(self, time_s: float) -> WorldObject:
        """Return the object as it is if somebody takes it away at `time_s`."""
        return replace(self, present_s=until(self.present_s, time_s))


def until(spans_s: tuple[tuple[float, float], ...], time_s: float) -> tuple[tuple[float, float], ...]:
    """Return what of some spans (begin, end) lies before `time_s`."""
    return tuple((begin, min(end, time_s)) for begin, end in spans_s if begin < time_s)


def between(waypoints, time_s) -> np.ndarray:
    """Return where something is at `time_s` (...) that moves in straight lines between waypoints: (..., 2)."""
    if len(waypoints) == 1:  # most objects and cameras stay where they are
        place = np.array(waypoints[0][1:], dtype=float)
        return place if isinstance(time_s, float) else np.full((*np.shape(time_s), 2), place)
    times, x, y = zip(*waypoints, strict=True)
    places = np.empty((*np.shape(time_s), 2))
    places[..., 0], places[..., 1] = np.interp(time_s, times, x), np.interp(time_s, times, y)
    return places


class SceneOfObjects:
    """A video before it is drawn, of `objects` that can be seen at times and be taken away."""

    objects: tuple

    def visible(self, start_s: float, end_s: float | None = None) -> list[int]:
        """Return the indices of the objects visible at `start_s`, or throughout [start_s, end_s]."""
        return [i for i, thing in enumerate(self.objects) if thing.visible(start_s, end_s)]

    def with_taken(self, index: int, time_s: float) -> Self:
        """Return the scene in which object `index` is taken away at `time_s`."""
        objects = [thing.taken(time_s) if i == index else thing for i, thing in enumerate(self.objects)]
        return replace(self, objects=tuple(objects))


@dataclass(frozen=True)
class Scene(SceneOfObjects):
    """One video of the first world before it is drawn."""

    duration_s: float
    objects: tuple[WorldObject, ...]
    background_rgb: tuple[float, float, float]

    frame_px = FRAME_PX
    cell_px = CELL_PX
    nouns = tuple(NOUN_OF.values())
    attributes: ClassVar = {"color": tuple(COLORS), "shape": SHAPES}  # what objects differ in, and the values
    strictly_fair = False  # see `questions.py`

    def still(self, index: int, times_s) -> bool:
        """Say whether an object is in one grid cell at all these times."""
        cells = self.objects[index].position_px(np.asarray(times_s, dtype=float)) // CELL_PX
        return bool((cells == cells[0]).all())

    def draw(self, time_s: float, ringed: Sequence[int] = ()) -> np.ndarray:
        """Return the picture at `time_s`, uint8 (112, 112, 3), with a ring around some objects (indices)."""
        return draw_frame(self, time_s, [(i, RING) for i in ringed])


@dataclass(frozen=True)
class Highlight:
    """How a marker around an object is drawn (pretraining and the ceiling): a ring, or a halo of brightness."""

    rgb: tuple[int, int, int] = (255, 255, 255)
    radius_px: float = 13.0
    thickness_px: float = 2.0
    opacity: float = 1.0
    halo: bool = False


RING = Highlight()


def _kinds_of_scene(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Draw `count` different (color, shape): four that differ in both, or four look-alikes, then others at random."""
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
    return kinds + [others[i] for i in rng.permutation(len(others))[: count - 4]]


def draw_duration_s(rng: np.random.Generator) -> float:
    """Draw a duration of 10 s to 3 minutes, more often short."""
    low, high = ((10, 20), (20, 60), (60, 180))[int(rng.choice(3, p=[0.55, 0.35, 0.10]))]
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))) * FPS) / FPS


def _camera(rng: np.random.Generator, duration_s: float) -> tuple[Camera, np.ndarray, list[tuple[float, bool]]]:
    """
    A camera that stays, or shifts by one grid cell along one axis, once or twice. Returns it, the axis's unit vector
    (column, row), and when (seconds) the far end (True) or the near end (False) of the plane comes into view.
    """
    axis = np.array([(1, 0), (0, 1)][int(rng.integers(2))])
    if rng.random() < 0.5:
        return Camera(), axis, []
    far = bool(rng.random() < 0.5)  # at the start: does the view lie at the plane's far end?
    turns, waypoints = [], [(0.0, *(float(far) * CELL_PX * axis))]
    shifts = sorted(rng.uniform(0.2, 0.85, size=int(rng.integers(1, 3))) * duration_s)
    if len(shifts) == 2 and shifts[1] - shifts[0] < 1.5:
        shifts = shifts[:1]
    for start_s in shifts:
        far, lasts_s = not far, float(rng.uniform(0.3, 0.7))
        waypoints += [(start_s, *waypoints[-1][1:]), (start_s + lasts_s, *(float(far) * CELL_PX * axis))]
        turns.append((float(start_s + lasts_s / 2), far))
    return Camera(tuple((float(t), float(x), float(y)) for t, x, y in waypoints)), axis, turns


def in_view_s(turns: list[tuple[float, bool]], at_far_end: bool) -> tuple[tuple[float, float], ...]:
    """Return when one end of the plane is in view, for a camera with `turns`: (when, whether the far end is, then)."""
    edges = [0.0, *(time_s for time_s, _ in turns), float("inf")]
    ends = [not turns[0][1], *(far for _, far in turns)]
    return tuple((begin, end) for begin, end, far in zip(edges, edges[1:], ends, strict=False) if far == at_far_end)


def draw_visit_s(rng: np.random.Generator, duration_s: float) -> tuple[tuple[float, float], ...]:
    """Draw when a guest is there: it comes, goes, goes and returns, or visits."""
    first, second = (float(v) for v in np.sort(rng.uniform(0.15, 0.9, size=2)) * duration_s)
    how = str(rng.choice(["comes", "goes", "returns", "visits"], p=[0.4, 0.2, 0.2, 0.2]))
    if how in ("returns", "visits") and second - first < 1.5:
        how = "comes"
    return {
        "comes": ((min(first, 0.6 * duration_s), float("inf")),),
        "goes": ((0.0, max(second, 0.4 * duration_s)),),
        "returns": ((0.0, first), (second, float("inf"))),
        "visits": ((first, second),),
    }[how]


def make_scene(rng: np.random.Generator, duration_s: float | None = None) -> Scene:
    """
    Draw a scene of 10 to 180 s, or of `duration_s`: 5 to 7 objects that stay in view, and 1 to 3 that appear late,
    leave early, or leave and return, by themselves or because the camera shifts. Some objects move to a free cell, and
    some of these back again.
    """
    duration_s = draw_duration_s(rng) if duration_s is None else duration_s
    camera, axis, turns = _camera(rng, duration_s)
    stays, guests = int(rng.choice([5, 6, 7], p=[0.25, 0.4, 0.35])), int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    kinds = _kinds_of_scene(rng, stays + guests)

    plane = np.array([GRID, GRID]) + (axis if turns else 0)
    cells = [(column, row) for column in range(plane[0]) for row in range(plane[1])]
    along = [int(np.dot(cell, axis)) for cell in cells]
    ends = {end: [c for c, a in zip(cells, along, strict=True) if turns and a == end] for end in (0, GRID)}
    always = [c for c in cells if c not in ends[0] and c not in ends[GRID]]
    always = [always[i] for i in rng.permutation(len(always))]
    free = set(always[stays:])

    def centre(cell: tuple[int, int]) -> tuple[float, float]:
        x, y = ((v + 0.5) * CELL_PX + rng.uniform(-3, 3) for v in cell)
        return float(x), float(y)

    objects = []
    for number, (color, shape) in enumerate(kinds):
        present_s = ((0.0, float("inf")),)
        if number < stays:
            cell, pool = always[number], free
        elif turns and rng.random() < 0.6:
            end = (0, GRID)[int(rng.integers(2))]
            cell = ends[end][int(rng.integers(len(ends[end])))]
            ends[end].remove(cell)
            pool = set()
            present_s = in_view_s(turns, at_far_end=end == GRID)
        else:
            cell = sorted(free)[int(rng.integers(len(free)))]
            free.discard(cell)
            pool = free
            present_s = draw_visit_s(rng, duration_s)
        waypoints = [(0.0, *centre(cell))]
        column, row = cell
        steps = [(column + 1, row), (column - 1, row), (column, row + 1), (column, row - 1)]
        neighbours = [step for step in steps if step in pool]
        if neighbours and len(free) > guests and rng.random() < 0.25:
            target = neighbours[int(rng.integers(len(neighbours)))]
            free.discard(target)  # both cells stay reserved, so objects never overlap
            start_s = float(rng.uniform(0.05, 0.8) * duration_s)
            waypoints += [(start_s, *waypoints[0][1:]), (start_s + float(rng.uniform(0.4, 1.2)), *centre(target))]
            if rng.random() < 0.3:  # and back
                back_s = waypoints[-1][0] + float(rng.uniform(0.1, 0.4) * duration_s)
                waypoints += [(back_s, *waypoints[-1][1:]), (back_s + float(rng.uniform(0.4, 1.2)), *waypoints[0][1:])]
        radius_px = int(rng.integers(9, 12))
        objects.append(WorldObject(color, shape, tuple(waypoints), present_s, radius_px, camera))
    grey = rng.uniform(45, 95)
    background = tuple(float(v) for v in grey + rng.uniform(-12, 12, size=3))
    return Scene(duration_s, tuple(objects[i] for i in rng.permutation(len(objects))), background)


@cache
def _shape_mask(shape: str, radius_px: int) -> np.ndarray:
    """Return the coverage in [0, 1] of a shape in its 28x28 square, shape (28, 28, 1)."""
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


def _blend(frame: np.ndarray, mask: np.ndarray, rgb, x_px: int, y_px: int) -> None:
    """Paint `rgb` through a square `mask` centred at (x_px, y_px); clips at the border."""
    size = mask.shape[0]
    left, top = x_px - size // 2, y_px - size // 2
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
    """
    Return the picture at `time_s`, uint8 (112, 112, 3), not to be changed; `highlights` are (object index, style) to
    mark.
    """
    places = {i: tuple(map(round, scene.objects[i].position_px(time_s))) for i in scene.visible(time_s)}
    things = tuple(((thing := scene.objects[i]).shape, thing.radius_px, thing.color, *places[i]) for i in places)
    marks = tuple((style, *places[i]) for i, style in highlights if i in places)
    return _picture(scene.background_rgb, things, marks)


@lru_cache(maxsize=2)  # in most frames things are where they were in the one before
def _picture(background_rgb: tuple, things: tuple[tuple, ...], marks: tuple[tuple, ...]) -> np.ndarray:
    """Return what `draw_frame` does, of (shape, radius, colour, x, y) each and (style, x, y), in whole pixels."""
    frame = np.empty((FRAME_PX, FRAME_PX, 3), dtype=np.float32)
    frame[:] = background_rgb
    for style, x, y in marks:
        if style.halo:
            _blend(frame, _highlight_mask(style.radius_px, style.thickness_px, style.opacity, True), style.rgb, x, y)
    for shape, radius_px, color, x, y in things:
        _blend(frame, _shape_mask(shape, radius_px), COLORS[color], x, y)
    for style, x, y in marks:
        if not style.halo:
            _blend(frame, _highlight_mask(style.radius_px, style.thickness_px, style.opacity, False), style.rgb, x, y)
    picture = frame.round().clip(0, 255).astype(np.uint8)
    picture.setflags(write=False)
    return picture


def frame_times_s(scene: Scene) -> np.ndarray:
    """Return the true times of the frames of the scene's video file: k / FPS."""
    return np.arange(round(scene.duration_s * FPS)) / FPS


def write_video(path: str | Path, frames: list[np.ndarray], times_s=None) -> None:
    """
    Write uint8 (H, W, 3) frames as h264 in mp4, yuv420p, near lossless: frame k at k / FPS s, or at `times_s[k]`, cut
    down to milliseconds. The same frames give the same bytes on the same kind of processor, whatever else runs: each
    step, the conversion to yuv420p too, has one thread.
    """
    if not frames:
        raise ValueError(f"no frames to write to {path}")
    unit_s = Fraction(1, FPS) if times_s is None else Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        alone = "threads=1:lookahead-threads=1:sync-lookahead=0"
        options = {"crf": "10", "preset": "veryfast", "threads": "1", "x264-params": alone}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = unit_s
        for k, picture in enumerate(frames):
            if k == 0 or picture is not frames[k - 1]:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = k if times_s is None else int(times_s[k] / unit_s), unit_s
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
