"""
Marks that people put on pictures, each meaning "this one": rings, crosses, arrows, heat maps, and places in words. The
kitchen's backbone is pretrained on them, on whatever a simulated attention wanders over; no scanpath enters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from gazeqwen.pipeline.overlays import with_crosses, with_heat, with_rings
from gazeqwen.toyworld.questions import View
from gazeqwen.toyworld.viewer import NOTHING

KINDS = {"ring": 0.3, "cross": 0.2, "arrow": 0.15, "heat": 0.2, "words": 0.15}
WHITE = (255, 255, 255)
COLORS = ((255, 40, 40), (255, 230, 40), (60, 255, 60), (60, 220, 255), (255, 80, 220), (20, 20, 20))
OFF_CENTRE = 0.1  # standard deviation of a mark's place, of the thing's width
MOST_PLACES = 14  # in words


@dataclass(frozen=True)
class Mark:
    """
    How things of a clip are marked: `kind` in KINDS; `fitted`: as large as the thing asks for, else as the package
    draws gaze; `offset`: where it lies, in widths of the thing from its centre; `angle` of an arrow, in radians.
    """

    kind: str
    rgb: tuple[int, int, int] = WHITE
    fitted: bool = False
    offset: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0


def draw_mark(rng: np.random.Generator) -> Mark:
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    rgb = WHITE if rng.random() < 0.5 else COLORS[int(rng.integers(len(COLORS)))]
    x, y = (float(v) for v in rng.normal(0, OFF_CENTRE, size=2))
    return Mark(kind, rgb, bool(rng.random() < 0.5), (x, y), float(rng.uniform(0, 2 * np.pi)))


def marked_frame(view: View, mark: Mark, frame_index: int) -> np.ndarray:
    """Return a frame of a clip, uint8 (H, W, 3), with the things marked that attention is on at its time."""
    scene, time_s = view.scene, float(view.frame_times_s[frame_index])
    frame = scene.draw(time_s)
    if mark.kind == "heat":
        begun = [(begin_s, min(end_s, time_s), thing) for begin_s, end_s, thing in view.path if begin_s < time_s]
        places_px = [_place_px(view, mark, (begin_s + end_s) / 2, thing) for begin_s, end_s, thing in begun]
        kept = [k for k, (_, _, thing) in enumerate(begun) if thing != NOTHING]
        weights = np.array([begun[k][1] - begun[k][0] for k in kept])
        return with_heat(frame, np.array([places_px[k] for k in kept]).reshape(-1, 2), weights)
    for thing in view.marked[frame_index]:
        frame = with_mark(frame, _place_px(view, mark, time_s, thing), scene.objects[thing].size_px, mark)
    return frame


def with_mark(frame: np.ndarray, place_px: np.ndarray, size_px: int, mark: Mark) -> np.ndarray:
    """Return the frame with a ring, cross or arrow at a place, on a thing of that size; other marks draw nothing."""
    if mark.kind == "ring":
        return with_rings(frame, place_px[None], size_px / 2 + 5 if mark.fitted else None, mark.rgb)
    if mark.kind == "cross":
        return with_crosses(frame, place_px[None], size_px / 3 if mark.fitted else None, mark.rgb)
    if mark.kind == "arrow":
        return _with_arrow(frame, place_px, mark)
    return frame


def words(view: View, mark: Mark) -> str:
    """Return what is said of a clip that is marked in words, "" for other marks: where attention was, and when."""
    if mark.kind != "words":
        return ""
    spans: list[list] = []
    for begin_s, end_s, thing in view.path:
        if thing == NOTHING:
            continue
        if mark.fitted and spans and spans[-1][2] == thing:
            spans[-1][1] = end_s
        else:
            spans.append([begin_s, end_s, thing])
    side, said = view.scene.frame_px, []
    for begin_s, end_s, thing in spans[-MOST_PLACES:]:
        x, y = np.clip(_place_px(view, mark, (begin_s + end_s) / 2, thing) / side, 0, 0.99)
        said.append(f"{begin_s - view.start_s:.1f} to {end_s - view.start_s:.1f} s at ({x:.2f}, {y:.2f})")
    return f"These places are marked (x, y from 0 to 1, from the upper left corner): {'; '.join(said)}.\n"


def _place_px(view: View, mark: Mark, time_s: float, thing: int) -> np.ndarray:
    if thing == NOTHING:
        return np.zeros(2)
    return view.scene.objects[thing].position_px(time_s) + np.array(mark.offset) * view.scene.objects[thing].size_px


def _with_arrow(frame: np.ndarray, tip_px: np.ndarray, mark: Mark) -> np.ndarray:
    """Return the frame with an arrow of 45 pixels whose tip is at a place."""
    along = np.array([np.cos(mark.angle), np.sin(mark.angle)])
    across = np.array([-along[1], along[0]])
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    neck, end = tip_px + 14 * along, tip_px + 45 * along
    draw.line([tuple(end), tuple(neck)], fill=mark.rgb, width=5)
    draw.polygon([tuple(tip_px), tuple(neck + 8 * across), tuple(neck - 8 * across)], fill=mark.rgb)
    return np.asarray(image)
