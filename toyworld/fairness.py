"""
What can be answered without putting gaze and video together: `python -m gazeqwen.toyworld.fairness --world kitchen`.

Three readers, each a classifier of gradient boosted trees, learn a task's answers from some videos and are tried on
others (cross-validation over videos). All know the text; one knows nothing else, one also statistics of the scanpath
(but no video), one everything about the things of the video (but no gaze). Where a world is fair, none is better than
chance at the tasks that ask about gaze. Alerts are compared with always giving the more frequent answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binomtest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict
from tqdm import tqdm

from gazeqwen.questions.tasks import task_info
from gazeqwen.toyworld.generate import WORLDS, choose, make_video
from gazeqwen.toyworld.questions import GSM, OAR, SCENE_TASKS, TASK_NAMES, ToyQuestion, View, clip_of
from gazeqwen.toyworld.viewer import Recording
from gazeqwen.utils.files import write_json, write_text
from gazeqwen.utils.provenance import provenance
from gazeqwen.utils.tables import Table, fill, percent

Asked = tuple[str, Recording, ToyQuestion]
PAGE = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parent.parent / "results" / "kitchen" / "fairness.json"
LAST = 4  # dwells of which statistics are told one by one
APART = 0.12  # of the frame: fixations farther apart than this are of two dwells
NOT_NAMED = -1


# ------------------------------------------------------------------ what readers know
def nouns_in(text: str, scene) -> list[int]:
    """Return the numbers of a world's nouns in a text, in order."""
    words = "".join(c if c.isalnum() else " " for c in text).split()
    return [scene.nouns.index(word) for word in words if word in scene.nouns]


def text_features(q: ToyQuestion, option: str, scene) -> list[float]:
    """Return what the text tells of an option: its letter, its place in the question, and its words."""
    named, nouns = nouns_in(q.question, scene), nouns_in(option, scene)
    place = named.index(nouns[-1]) if nouns and nouns[-1] in named else NOT_NAMED
    values = next((list(v).index(option) for v in scene.attributes.values() if option in v), NOT_NAMED)
    padded = (nouns + [NOT_NAMED] * 3)[:3]
    return [q.options.index(option) if q.options else 0, place, values, *padded]


def dwells_of(table: np.ndarray) -> np.ndarray:
    """Return the dwells of fixations (n, 4: x, y, time, duration): (m, 3), mean place and time spent."""
    if not len(table):
        return np.zeros((0, 3))
    starts = np.hypot(*np.diff(table[:, :2], axis=0).T) > APART
    number = np.concatenate([[0], np.cumsum(starts)])
    spent = np.bincount(number, table[:, 3])
    x, y = (np.bincount(number, table[:, k] * table[:, 3]) / spent for k in (0, 1))
    return np.stack([x, y, spent], axis=1)


def scanpath_features(recording: Recording, view: View, place: float) -> list[float]:
    """Return statistics of a clip's scanpath; `place`: of the dwells at its end, which the option may stand for."""
    scanpath = recording.scanpath.clip(view.start_s, view.time_s)
    table = np.asarray(scanpath.table, dtype=float).reshape(-1, 4)
    dwells = dwells_of(table)
    if not len(table):
        return [0.0] * (16 + 4 * LAST)
    last = np.zeros((LAST, 3))
    last[-min(LAST, len(dwells)) :] = dwells[-LAST:]
    saccades = np.hypot(*np.diff(table[:, :2], axis=0).T) if len(table) > 1 else np.zeros(1)
    durations, places = table[:, 3], table[:, :2]
    at_place = last[int(place), 2] if 0 <= place < LAST else 0.0
    rank = float((last[:, 2] > at_place).sum()) if 0 <= place < LAST else NOT_NAMED
    again = sum(np.hypot(*(dwells[:i, :2] - dwells[i, :2]).T).min() < APART for i in range(1, len(dwells)))
    whole = [len(table), len(dwells), again, durations.sum(), durations.mean(), durations.max(), durations[-1]]
    spread = [*places.mean(axis=0), *places.std(axis=0), saccades.mean(), saccades.max()]
    span = view.time_s - view.start_s
    longest = np.eye(LAST)[int(last[:, 2].argmax())]
    return [*whole, *spread, span, at_place, rank, *last.ravel(), *longest]


def thing_features(view: View, index: int) -> list[float]:
    """Return everything that the video shows of one thing in a clip."""
    scene = view.scene
    thing, times_s = scene.objects[index], view.frame_times_s
    places = thing.position_px(times_s) / scene.frame_px
    shown = np.array([thing.visible(float(s)) for s in times_s])
    others = [
        scene.objects[i].position_px(view.time_s) / scene.frame_px for i in scene.visible(view.time_s) if i != index
    ]
    nearest = min((float(np.hypot(*(places[-1] - other / scene.frame_px))) for other in others), default=1.0)
    from_centre = np.hypot(*(places - 0.5).T)
    steps = np.hypot(*np.diff(places, axis=0).T)
    first = float(times_s[shown.argmax()] - view.start_s) if shown.any() else -1.0
    when = [shown.mean(), shown[-1], first, float((shown[1:] != shown[:-1]).sum())]
    where = [*places[-1], *places.mean(axis=0), from_centre[-1], from_centre.mean(), nearest, index]
    return [*when, *where, steps.sum(), steps.max(), steps[-1], steps[:-1].max(), thing.radius_px]


def video_features(q: ToyQuestion, option: str, view: View) -> list[float]:
    """Return everything that the video shows of the things that an option names (or that have its colour, say)."""
    scene = view.scene
    if q.task == OAR:
        name = q.extra["attribute_type"]
        things = [i for i in scene.visible(view.time_s) if getattr(scene.objects[i], name) == option]
        of_things = np.array([thing_features(view, i) for i in things])
        features = [*of_things.mean(axis=0), *of_things.max(axis=0), len(things)]
    else:
        index_of = {thing.noun: i for i, thing in enumerate(scene.objects)}
        target = option or q.extra["target_object"]
        things = [index_of[scene.nouns[number]] for number in nouns_in(target, scene)]
        of_things = [np.array(thing_features(view, i)) for i in things]
        features = list(of_things[0])
        if q.task == GSM:
            features = [*(of_things[1] - of_things[0]), *(of_things[2] - of_things[1])]
    return [*features, view.time_s - view.start_s, len(scene.visible(view.time_s)), view.time_s]


def features_of(asked: list[Asked], task: str, reader: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return what a reader ("text", "scanpath" or "video") knows of each option or test point (rows, features), whether
    it is right (rows,), and from which video each row is (rows,). Features of an option come with how many of the
    question's other options have less of each.
    """
    rows, right, videos = [], [], []
    for name, recording, q in asked:
        for time_s, due in q.points or [(q.time_s, None)]:
            view = clip_of(recording, task, time_s)
            options = q.options or [""]
            known = [text_features(q, option or q.extra["target_object"], view.scene) for option in options]
            if reader == "scanpath":
                known = [k + scanpath_features(recording, view, k[1]) for k in known]
            elif reader == "video":
                known = [k + video_features(q, option, view) for k, option in zip(known, options, strict=True)]
            elif q.points:
                known = [[*k, time_s] for k in known]
            table = np.array(known, dtype=float)
            less = (table[None] < table[:, None]).sum(axis=1) if len(table) > 1 else np.zeros_like(table)
            rows += list(np.concatenate([table, less], axis=1))
            right += [option == q.answer for option in options] if due is None else [due]
            videos += [name] * len(options)
    return np.array(rows), np.array(right), np.array(videos)


# ------------------------------------------------------------------ how well they answer
def accuracy(asked: list[Asked], task: str, reader: str, folds: int = 5) -> dict:
    """
    Return a reader's accuracy at a task, on videos that it did not learn from: `right` of `asked`, its interval (95 %,
    Wilson), and `chance`: a quarter, or for alerts the share of the more frequent answer.
    """
    rows, right, videos = features_of(asked, task, reader)
    learner = HistGradientBoostingClassifier(max_iter=80, learning_rate=0.08, max_leaf_nodes=12, random_state=0)
    split = GroupKFold(folds, shuffle=True, random_state=0)
    scores = cross_val_predict(learner, rows, right, groups=videos, cv=split, method="predict_proba")[:, 1]
    if asked[0][2].points:
        hits, chance = (scores > 0.5) == right, max(right.mean(), 1 - right.mean())
    else:
        hits, chance = right.reshape(-1, 4)[np.arange(len(asked)), scores.reshape(-1, 4).argmax(axis=1)], 0.25
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return {
        "right": int(hits.sum()),
        "asked": len(hits),
        "accuracy": round(float(hits.mean()), 4),
        "interval": [round(float(end), 4) for end in interval],
        "chance": round(float(chance), 4),
    }


def make_questions(kind: str, seed: int, videos: int, per_task: int = 2) -> dict[str, list[Asked]]:
    """Return each task's questions about so many videos of a world, chosen as those of its training split are."""
    made = {f"{i}": make_video(seed, "train", i, kind) for i in tqdm(range(videos), desc="videos", mininterval=5)}
    chosen = choose(seed, "train", made, per_task)
    return {task: [(name, made[name][0], q) for name, q in pairs] for task, pairs in chosen.items()}


def measure(questions: dict[str, list[Asked]], report: Callable[[str], None] = print) -> dict[str, dict]:
    """Return every reader's accuracy at every task."""
    results: dict[str, dict] = {}
    for task in TASK_NAMES:
        results[task] = {"about_the_scene": task in SCENE_TASKS}
        for reader in ("text", "scanpath", "video"):
            results[task][reader] = accuracy(questions[task], task, reader)
            of = results[task][reader]
            report(f"{task} {reader}: {of['accuracy']:.3f} {of['interval']} of {of['asked']}, chance {of['chance']}")
    return results


def table(results: dict[str, dict]) -> Table:
    """Return the table of the page: percent right with its interval."""
    rows = []
    for task, of in results.items():
        cells = [percent(of[reader]["accuracy"], of[reader]["interval"]) for reader in ("text", "scanpath", "video")]
        rows.append([task_info(task).abbreviation, *cells, f"{of['text']['asked']:,}"])
    return Table(["task", "text", "text and scanpath", "text and video", "answers"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(WORLDS), default="kitchen")
    parser.add_argument("--videos", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    parser.add_argument("--page", action="store_true", help="fill toyworld/README.md from the output, measure nothing")
    args = parser.parse_args()
    if args.page:
        results = json.loads(RESULTS.read_text())["tasks"]
        return write_text(PAGE, fill(PAGE.read_text(), {"fairness": table(results)}))
    results = measure(make_questions(args.world, args.seed, args.videos))
    if args.output:
        settings = {"world": args.world, "videos": args.videos, "seed": args.seed}
        write_json(args.output, {"settings": settings, "tasks": results, "provenance": provenance()})


if __name__ == "__main__":
    main()
