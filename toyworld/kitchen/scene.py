"""
Scenes of the kitchen: pictures of things on a textured ground, that come, move and go, seen from a head that drifts,
bobs, tilts and turns; so a thing's place in the frame changes while gaze follows it.

Places on the plane are pixels as the frame shows them while the head rests. Frames are 224x224, origin top-left, y
down: 8x8 visual tokens of 28x28 pixels, as Qwen2.5-VL sees them. All times are seconds of the video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
from PIL import Image

from gazeqwen.pipeline.overlays import with_rings
from gazeqwen.toyworld.kitchen.things import CATEGORIES, COLORS, NOUNS, THINGS, sprite
from gazeqwen.toyworld.world import (
    PresentAtTimes,
    SceneOfObjects,
    between,
    draw_duration_s,
    draw_visit_s,
    in_view_s,
    until,
)

FRAME_PX = 224
TOKEN_PX = 28
TURN_PX = 76  # how far the view moves when the head turns
SWAY_PX = 6  # how far it drifts in between, along each axis
TILT_DEG = 4.0
MARGIN_PX = 18  # the most that sway and tilt together move a thing near the frame's border
BORDER_PX = 56  # of the ground beyond the frame at rest
TEXTURES = ("planks", "tiles", "marble", "cloth", "granite")


@dataclass(frozen=True)
class Head:
    """
    Where the view's centre lies on the plane, `waypoints` (time_s, x_px, y_px), and how it is tilted, `tilts`
    (time_s, degrees); in between both are interpolated.
    """

    waypoints: tuple[tuple[float, float, float], ...] = ((0.0, FRAME_PX / 2, FRAME_PX / 2),)
    tilts: tuple[tuple[float, float], ...] = ((0.0, 0.0),)

    def pose(self, time_s) -> tuple[np.ndarray, np.ndarray]:
        """Return the view's centre (..., 2) on the plane and its tilt (...,) in radians."""
        times, degrees = zip(*self.tilts, strict=True)
        return between(self.waypoints, time_s), np.radians(np.interp(time_s, times, degrees))

    def in_frame_px(self, places_px: np.ndarray, time_s) -> np.ndarray:
        """Return places (..., 2) of the plane as places in the frame at `time_s` (...)."""
        centre, tilt = self.pose(time_s)
        places = places_px - centre
        x, y = places[..., 0], places[..., 1]
        cos, sin = np.cos(tilt), np.sin(tilt)
        turned = np.empty(places.shape)
        turned[..., 0], turned[..., 1] = cos * x - sin * y, sin * x + cos * y
        return turned + FRAME_PX / 2


@dataclass(frozen=True)
class KitchenObject(PresentAtTimes):
    """
    A thing in a scene: `number` in `THINGS`, drawn `size_px` wide and turned by `turn_deg`. `waypoints` are
    (time_s, x_px, y_px) on the plane, `present_s` the times (begin, end) at which it can be seen in the view.
    """

    number: int
    size_px: int
    turn_deg: float
    waypoints: tuple[tuple[float, float, float], ...]
    present_s: tuple[tuple[float, float], ...] = ((0.0, float("inf")),)
    on_plane_s: tuple[tuple[float, float], ...] = ((0.0, float("inf")),)
    head: Head = Head()

    @property
    def noun(self) -> str:
        return THINGS[self.number].noun

    @property
    def color(self) -> str:
        return THINGS[self.number].color

    @property
    def category(self) -> str:
        return THINGS[self.number].category

    @property
    def radius_px(self) -> float:
        return self.size_px / 2

    def on_plane_px(self, time_s) -> np.ndarray:
        """Return the centre (x, y) on the plane at `time_s` (...): (..., 2)."""
        return between(self.waypoints, time_s)

    def position_px(self, time_s) -> np.ndarray:
        """Return the centre (x, y) in the frame at `time_s`; an array of times gives an array of shape (times, 2)."""
        return self.head.in_frame_px(self.on_plane_px(time_s), time_s)

    def drawn(self, time_s: float) -> bool:
        """Say whether it lies on the plane, in view or not."""
        return any(begin <= time_s < end for begin, end in self.on_plane_s)

    def taken(self, time_s: float) -> KitchenObject:
        """Return the object as it is if somebody takes it away at `time_s`."""
        spans = {"present_s": until(self.present_s, time_s), "on_plane_s": until(self.on_plane_s, time_s)}
        return replace(self, **spans)


@dataclass(frozen=True)
class Ground:
    """What things lie on: a texture, drawn from `seed`, of mean colour `rgb`; `contrast` is its standard deviation."""

    texture: str
    seed: int
    rgb: tuple[float, float, float]
    contrast: float


@dataclass(frozen=True)
class KitchenScene(SceneOfObjects):
    """One video of the kitchen before it is drawn."""

    duration_s: float
    objects: tuple[KitchenObject, ...]
    ground: Ground
    head: Head

    frame_px = FRAME_PX
    cell_px = TOKEN_PX
    nouns = NOUNS
    attributes: ClassVar = {"color": COLORS, "category": CATEGORIES}
    strictly_fair = True

    def still(self, index: int, times_s) -> bool:
        """Say whether an object stays within half a visual token over `times_s`."""
        places = self.objects[index].position_px(np.asarray(times_s, dtype=float))
        return bool(np.ptp(places, axis=0).max() <= TOKEN_PX / 2)

    def draw(self, time_s: float, ringed: Sequence[int] = ()) -> np.ndarray:
        """Return the picture at `time_s`, uint8 (224, 224, 3), with a ring around some objects (indices)."""
        places_px = [self.objects[i].position_px(time_s) for i in ringed]
        return with_rings(self._picture(time_s), np.array(places_px).reshape(-1, 2))

    def _picture(self, time_s: float) -> np.ndarray:
        placed = []
        for thing in self.objects:
            if thing.drawn(time_s):
                look = (thing.number, thing.size_px, round(thing.turn_deg))
                x, y = thing.on_plane_px(time_s) + BORDER_PX + TURN_PX - np.array(_turned(*look).size) / 2
                placed.append((look, round(float(x)), round(float(y))))
        plane = _plane_picture(self.ground, tuple(placed))
        (x, y), tilt = self.head.pose(time_s)
        cos, sin = float(np.cos(tilt)), float(np.sin(tilt))
        half, origin = FRAME_PX / 2, BORDER_PX + TURN_PX
        matrix = (
            (cos, sin, x + origin - half * (cos + sin)),
            (-sin, cos, y + origin - half * (cos - sin)),
        )
        size, coefficients = (FRAME_PX, FRAME_PX), tuple(float(v) for row in matrix for v in row)
        frame = plane.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
        return np.asarray(frame)


@lru_cache(maxsize=2)  # in most frames things lie where they lay in the one before
def _plane_picture(ground: Ground, placed: tuple[tuple[tuple[int, int, int], int, int], ...]) -> Image.Image:
    """Return the ground with things on it: of each what `_turned` takes, and where it begins, left and top."""
    plane = _ground_picture(ground).copy()
    for look, left, top in placed:
        _paste(plane, _turned(*look), left, top)
    return plane


def _paste(plane: Image.Image, picture: Image.Image, left: int, top: int) -> None:
    """Blend a picture (premultiplied alpha) onto the plane."""
    box = (left, top, left + picture.width, top + picture.height)
    under = np.asarray(plane.crop(box), dtype=np.float32)
    over = np.asarray(picture, dtype=np.float32)
    mixed = over[..., :3] + under * (1 - over[..., 3:] / 255)
    plane.paste(Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)), (left, top))


@lru_cache(maxsize=2048)
def _turned(number: int, size_px: int, turn_deg: int) -> Image.Image:
    small = sprite(number).resize((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=2)
    return small.rotate(turn_deg, Image.Resampling.BICUBIC, expand=True)


def _noise(rng: np.random.Generator, side: int, cells: tuple[int, int]) -> np.ndarray:
    """Return smooth noise (side, side) of so many random values along y and x."""
    rough = Image.fromarray(rng.normal(size=cells).astype(np.float32))
    return np.asarray(rough.resize((side, side), Image.Resampling.BICUBIC))


@lru_cache(maxsize=4)  # a scene's frames are drawn in a row
def _ground_picture(ground: Ground) -> Image.Image:
    """Return the ground, as large as head and turns may show: RGB."""
    rng, side = np.random.default_rng(ground.seed), FRAME_PX + 2 * (BORDER_PX + TURN_PX)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    fine = _noise(rng, side, (side // 3, side // 3))
    if ground.texture == "planks":
        width = int(rng.integers(34, 60))
        plank = (y // width).astype(int)
        tone = rng.normal(size=side // width + 2)[plank]
        grain = _noise(rng, side, (side // 2, 10)) + 0.5 * _noise(rng, side, (side // 5, 5))
        values = 0.8 * tone + 0.7 * grain - 2.5 * (y % width < 2)
    elif ground.texture == "tiles":
        width, joint = int(rng.integers(44, 80)), 3
        row, column = (y // width).astype(int), (x // width).astype(int)
        tone = rng.normal(size=(side // width + 2, side // width + 2))[row, column]
        values = 0.5 * tone + 0.3 * _noise(rng, side, (12, 12)) + 0.2 * fine
        values = values + float(rng.choice([-2.5, 2.5])) * ((y % width < joint) | (x % width < joint))
    elif ground.texture == "marble":
        warp = sum(_noise(rng, side, (n, n)) * 8 / n for n in (4, 8, 16))
        values = np.sin((x + y) / float(rng.uniform(18, 40)) + 2.5 * warp) + 0.2 * fine
    elif ground.texture == "cloth":
        width = float(rng.uniform(12, 36))
        values = 0.7 * sum(np.sign(np.sin(2 * np.pi * v / width)) for v in (x, y)) + 0.3 * fine
    elif ground.texture == "granite":
        values = fine + 0.7 * _noise(rng, side, (side // 7, side // 7)) + 0.4 * _noise(rng, side, (9, 9))
    else:
        raise ValueError(f"unknown texture {ground.texture!r}; known: {', '.join(TEXTURES)}")
    values = (values - values.mean()) / values.std()
    light = 1 + 0.10 * _noise(rng, side, (3, 3))[..., None]
    picture = (np.array(ground.rgb, np.float32) + ground.contrast * values[..., None]) * light
    return Image.fromarray(picture.clip(0, 255).round().astype(np.uint8))


def _head(rng: np.random.Generator, duration_s: float) -> tuple[Head, np.ndarray, list[tuple[float, bool]]]:
    """
    Draw how a head moves: it sways, tilts, and in half of the videos turns to one side (by `TURN_PX` along one axis)
    and back, once or twice. Returns it, the axis's unit vector, and when the far side (True) or the near one (False)
    comes into view.
    """
    axis = np.array([(1, 0), (0, 1)][int(rng.integers(2))]) * int(rng.choice([-1, 1]))
    far, turns = False, []
    if rng.random() < 0.5:
        far = bool(rng.random() < 0.5)
        starts = sorted(rng.uniform(0.2, 0.85, size=int(rng.integers(1, 3))) * duration_s)
        turns = [float(s) for s in starts[:1] + [s for s in starts[1:] if s - starts[0] >= 1.5]]
    aims = [0.0]  # when the head settles anew
    while aims[-1] < duration_s:
        aims.append(aims[-1] + float(rng.uniform(1.5, 6)))
    events = sorted([(s, False) for s in aims[1:]] + [(s, True) for s in turns])
    sway = rng.uniform(-SWAY_PX, SWAY_PX, size=2)
    place = FRAME_PX / 2 + far * TURN_PX * axis + sway
    waypoints, comes = [(0.0, *place)], []
    for number, (start_s, turns_now) in enumerate(events):
        lasts_s = float(rng.uniform(0.3, 0.7) if turns_now else rng.uniform(0.4, 1.5))
        if number + 1 < len(events):
            lasts_s = min(lasts_s, 0.9 * (events[number + 1][0] - start_s))
        if turns_now:
            far = not far
            comes.append((start_s + lasts_s / 2, far))
        sway = rng.uniform(-SWAY_PX, SWAY_PX, size=2)
        waypoints.append((start_s, *waypoints[-1][1:]))
        waypoints.append((start_s + max(lasts_s, 1e-3), *(FRAME_PX / 2 + far * TURN_PX * axis + sway)))
    tilts = [(s, float(rng.uniform(-TILT_DEG, TILT_DEG))) for s in np.arange(0, duration_s + 6, 5.0).tolist()]
    waypoints = [tuple(float(v) for v in point) for point in waypoints]
    return Head(tuple(waypoints), tuple(tilts)), axis, comes


def _things_of_scene(rng: np.random.Generator, count: int) -> list[int]:
    """Draw `count` different things: four that differ in colour and category, or four alike in one, then others."""
    everything = [int(i) for i in rng.permutation(len(THINGS))]
    core = str(rng.choice(["all different", "same color", "same category"], p=[0.5, 0.25, 0.25]))
    if core == "all different":
        chosen: list[int] = []
        for number in everything:
            thing = THINGS[number]
            if all(thing.color != THINGS[i].color and thing.category != THINGS[i].category for i in chosen):
                chosen.append(number)
    else:
        name, values = ("color", COLORS) if core == "same color" else ("category", CATEGORIES)
        values = [v for v in values if sum(getattr(thing, name) == v for thing in THINGS) >= 4]
        value = values[int(rng.integers(len(values)))]
        chosen = [i for i in everything if getattr(THINGS[i], name) == value]
    chosen = chosen[:4]
    return chosen + [i for i in everything if i not in chosen][: count - len(chosen)]


def draw_size_px(rng: np.random.Generator) -> int:
    """Draw a diameter: one in four things is small."""
    return int(rng.integers(16, 23) if rng.random() < 0.25 else rng.integers(24, 49))


class Places:
    """Draws places on the plane that leave most of every thing uncovered."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.taken = rng, []

    def draw(self, size_px: int, low, high) -> tuple[float, float] | None:
        """Return a free place for a thing in [low, high] (x, y each), None if none was found."""
        for _ in range(60):
            x, y = (float(v) for v in self.rng.uniform(low, high))
            apart = [np.hypot(x - u, y - v) - 0.42 * (size_px + size) for u, v, size in self.taken]
            if min(apart, default=1.0) > 0:
                self.taken.append((x, y, size_px))
                return x, y
        return None


def draw_ground(rng: np.random.Generator) -> Ground:
    grey = rng.uniform(70, 190)
    rgb = tuple(float(v) for v in (grey + rng.normal(0, 18, size=3)).clip(20, 235))
    texture, seed = TEXTURES[int(rng.integers(len(TEXTURES)))], int(rng.integers(2**31))
    return Ground(texture, seed, rgb, contrast=float(rng.uniform(5, 22)))


def make_scene(rng: np.random.Generator) -> KitchenScene:
    """
    Draw a scene of 10 to 180 s: 5 to 7 things that stay in view, and 1 to 3 that appear late, leave early, or leave
    and return, by themselves or because the head turns. Some are moved to a free place, some of them back again.
    """
    while True:
        scene = _try_scene(rng)
        if scene is not None:
            return scene


def _try_scene(rng: np.random.Generator) -> KitchenScene | None:
    duration_s = draw_duration_s(rng)
    head, axis, turns = _head(rng, duration_s)
    stays, guests = int(rng.choice([5, 6, 7], p=[0.25, 0.4, 0.35])), int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    numbers = _things_of_scene(rng, stays + guests)
    places = Places(rng)
    inside = MARGIN_PX + 8
    low, high = np.full(2, inside, float), np.full(2, FRAME_PX - inside, float)
    if turns:  # what stays in view lies where both views overlap
        low, high = low + np.maximum(axis, 0) * TURN_PX, high + np.minimum(axis, 0) * TURN_PX
    objects = []
    for order, number in enumerate(numbers):
        size_px = draw_size_px(rng)
        present_s = on_plane_s = ((0.0, float("inf")),)
        moves = rng.random() < 0.25
        if order >= stays and turns and rng.random() < 0.6:
            far = bool(rng.random() < 0.5)
            place = _place_at_side(places, size_px, axis, far)
            present_s, moves = in_view_s(turns, far), False
        else:
            place = places.draw(size_px, low, high)
            if order >= stays:
                present_s = on_plane_s = draw_visit_s(rng, duration_s)
        if place is None:
            return None
        waypoints = [(0.0, *place)]
        target = places.draw(size_px, low, high) if moves else None
        if target is not None:  # both places stay reserved
            start_s = float(rng.uniform(0.05, 0.8) * duration_s)
            waypoints += [(start_s, *place), (start_s + float(rng.uniform(0.4, 1.2)), *target)]
            if rng.random() < 0.3:  # and back
                back_s = waypoints[-1][0] + float(rng.uniform(0.1, 0.4) * duration_s)
                waypoints += [(back_s, *target), (back_s + float(rng.uniform(0.4, 1.2)), *place)]
        turn_deg = float(rng.uniform(-25, 25))
        objects.append(KitchenObject(number, size_px, turn_deg, tuple(waypoints), present_s, on_plane_s, head))
    ground = draw_ground(rng)
    return KitchenScene(duration_s, tuple(objects[i] for i in rng.permutation(len(objects))), ground, head)


def _place_at_side(places: Places, size_px: int, axis: np.ndarray, far: bool) -> tuple[float, float] | None:
    """Draw a place that is well in view from one side of the head's turn, and wholly out of view from the other."""
    centre = FRAME_PX / 2
    shown, hidden = (TURN_PX, 0) if far else (0, TURN_PX)  # where the view's centre lies, along the axis
    outward = 1 if far else -1
    # along the axis, from the centre at rest: inside the shown view by 8 px, outside the hidden one with its radius
    nearest = hidden + outward * (centre + MARGIN_PX + size_px * 0.6)
    farthest = shown + outward * (centre - MARGIN_PX - 8)
    if outward * (farthest - nearest) < 0:
        return None
    along = sorted((nearest, farthest))
    across = (-centre + MARGIN_PX + 8, centre - MARGIN_PX - 8)
    sign = int(axis.sum())
    spans = [sorted((sign * along[0], sign * along[1])) if axis[i] else across for i in range(2)]
    low, high = (np.array([span[k] for span in spans]) + centre for k in (0, 1))
    return places.draw(size_px, low, high)
