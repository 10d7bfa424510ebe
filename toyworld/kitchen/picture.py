"""Draw what the kitchen is: `python -m gazeqwen.toyworld.kitchen.picture` writes `docs/images/kitchen.png`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Circle

from gazeqwen.plots.style import FONT, GAZE_COLOR, save_png
from gazeqwen.toyworld.generate import make_video
from gazeqwen.toyworld.questions import EASY, FAP, GSM, NFI, ToyQuestion, View, clip_of

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "kitchen.png"
SHOWN = {EASY: 1, GSM: 24, NFI: 60, FAP: 66}  # task: the video from which on one is looked for


def first_question(task: str, start: int, seed: int = 0) -> tuple[View, ToyQuestion]:
    """Return the clip and the question that come first of a task, from a video on."""
    for index in range(start, start + 10_000):
        recording, questions = make_video(seed, "train", index, "kitchen")
        for q in questions:
            if q.task == task:
                return clip_of(recording, task, q.time_s), q
    raise ValueError(f"no question of {task} in 10,000 videos")


def draw() -> Figure:
    """Return one row for each task in SHOWN: every second frame of a clip, with its moment's gaze as a red ring."""
    figure = Figure(figsize=(8.8, 7.2), layout="constrained")
    rows = figure.subfigures(len(SHOWN), 1)
    for row, (task, start) in zip(rows, SHOWN.items(), strict=True):
        view, q = first_question(task, start)
        row.suptitle(f"{q.question}\nRight: {q.answer}", fontsize=9, x=0.01, ha="left", weight="bold", **FONT)
        for axis, k in zip(row.subplots(1, len(view.frame_times_s) // 2), range(1, 12, 2), strict=True):
            time_s = float(view.frame_times_s[k])
            axis.imshow(view.scene.draw(time_s))
            axis.set_axis_off()
            axis.set_title(f"{time_s - view.start_s:.1f} s", fontsize=7, **FONT)
            for thing in view.marked[k]:
                x, y = view.scene.objects[thing].position_px(time_s)
                axis.add_patch(Circle((x, y), 24, fill=False, color=GAZE_COLOR, linewidth=2))
    return figure


if __name__ == "__main__":
    save_png(draw(), PICTURE)
