"""
How many videos tell a gain of some points from chance on StreamGaze, by simulation from our own intervals.

    python benchmarks/power.py          # simulates, writes benchmarks/results/power.json, then as --draw
    python benchmarks/power.py --draw   # fills docs/power.md and draws its picture from the result alone

Two rows answer the same questions. Whether a row is right follows from a normal variable below a threshold that gives
each task its published accuracy; the variable is the sum of what is hard about the video, about the question, about
this video for this row, and chance. Both rows share the first two, so that they agree as rows of one backbone do.
Videos have very different numbers of questions (their shares are exponential); a task has as many per video as in
StreamGaze's release (shared/docs/streamgaze.md, 1.2), and each question is asked once.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from gazeqwen.evaluation.results import PUBLISHED
from gazeqwen.evaluation.scoring import GradedAnswer, read_predictions
from gazeqwen.evaluation.statistics import difference_of_counts
from gazeqwen.plots.style import save_png
from gazeqwen.questions.tasks import TASKS
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json, write_text
from gazeqwen.utils.provenance import provenance
from gazeqwen.utils.tables import Table, fill

ROOT = Path(__file__).parent.parent
OUTPUT, DOCUMENT = ROOT / "benchmarks" / "results" / "power.json", ROOT / "docs" / "power.md"
PICTURE = ROOT / "docs" / "images" / "power.png"
PREDICTIONS = ROOT / "results" / "demo.predictions.jsonl"

# Questions of the release by task, of its 285 videos (8,521 together); the test split of GazeQwen has 44 videos.
QUESTIONS = {
    "past_gaze_sequence_matching": 186,
    "past_non_fixated_object_identification": 650,
    "past_object_transition_prediction": 494,
    "past_scene_recall": 211,
    "present_future_action_prediction": 921,
    "present_object_attribute_recognition": 1419,
    "present_object_identification_easy": 1487,
    "present_object_identification_hard": 1005,
    "proactive_gaze_triggered_alert": 283,
    "proactive_object_appearance_alert": 1865,
}
ALL_VIDEOS, TEST_VIDEOS = 285, 44
VIDEOS = (44, 100, 285, 600)
SEEDS = (1, 3)
OF_VIDEO = 0.1  # part of the variable that makes a video hard for both rows
# (shared by both rows, of this video for this row), parts of the variable; the first is assumed where nothing is said.
SCENARIOS = {
    "alike": (0.5, 0.05),
    "alike, independent": (0.5, 0.0),
    "alike, clustered": (0.5, 0.15),
    "very alike": (0.8, 0.05),
}
DEFAULT = "alike"


def simulate(
    draw: np.random.Generator, videos: int, scenario: tuple[float, float], gain: float, seeds: int, seed_sd: float
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """
    Return (right, all) questions of two rows, each (S, V, 10), of which the first is `gain` better in each task. Each
    seed of each row is better or worse by a normal amount of deviation `seed_sd`.
    """
    accuracies = published_accuracies()
    share = draw.exponential(size=videos)
    counts = [max(1, round(count * videos / ALL_VIDEOS)) for count in QUESTIONS.values()]
    task = np.repeat(np.arange(len(counts)), counts)
    video = draw.choice(videos, len(task), p=share / share.sum())
    both, row_by_video = scenario
    common = np.sqrt(OF_VIDEO) * draw.normal(size=videos)[video]
    common += np.sqrt(both - OF_VIDEO) * draw.normal(size=len(task))
    place = video * len(counts) + task
    total = np.bincount(place, minlength=videos * len(counts)).reshape(videos, -1).astype(float)
    rows = []
    for better in (gain, 0.0):
        of_row = np.sqrt(row_by_video) * draw.normal(size=videos)[video]
        right = []
        for shift in seed_sd * draw.normal(size=seeds):
            chance = np.sqrt(1 - both - row_by_video) * draw.normal(size=len(task))
            threshold = stats.norm.ppf(np.clip(accuracies + better + shift, 0.001, 0.999))[task]
            correct = common + of_row + chance < threshold
            right.append(np.bincount(place, correct, videos * len(counts)).reshape(videos, -1))
        rows.append((np.stack(right), np.stack([total] * seeds)))
    return rows[0], rows[1]


def published_accuracies() -> np.ndarray:
    """Return GazeQwen's published accuracies, in the order of `QUESTIONS`."""
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))["table_1"]["rows"]
    accuracy = next(row["accuracy"] for row in rows if row["method"] == "GazeQwen")
    return np.array([accuracy[TASKS[task].abbreviation] for task in QUESTIONS])


def measure(cell: dict, experiments: int, resamples: int, seed: int) -> dict:
    """
    Return a cell of the result: of so many experiments the share whose interval of the difference is above 0
    (`first_better`) or not around 0 (`different`), the median half-width of that interval, the deviation of one row's
    mean, the shares of experiments whose rows differ by 1.5 or 3 points or more in either direction, and how often two
    rows agree on a question's being right.
    """
    draw = np.random.default_rng(seed)
    low, high, difference, macro, questions = [], [], [], [], 0
    for number in range(experiments):
        first, second = simulate(
            draw, cell["videos"], SCENARIOS[cell["scenario"]], cell["gain"], cell["seeds"], cell["seed_sd"]
        )
        found = difference_of_counts(list(QUESTIONS), first, second, resamples=resamples, seed=number)
        bounds = found["intervals"]["macro"]
        low.append(bounds[0])
        high.append(bounds[1])
        difference.append(found["macro"])
        macro.append((second[0].sum(1) / second[1].sum(1)).mean())
        questions = int(second[1][0].sum())
    low, high, difference = map(np.array, (low, high, difference))
    return cell | {
        "questions": questions,
        "first_better": float((low > 0).mean()),
        "different": float(((low > 0) | (high < 0)).mean()),
        "half_width": float(np.median(high - low) / 2),
        "deviation_of_a_row": float(np.std(macro)),
        "differ_by_1.5": float((abs(difference) >= 0.015).mean()),
        "differ_by_3": float((abs(difference) >= 0.03).mean()),
    }


def cells() -> list[dict]:
    """Return what is simulated: power by videos and scenario, then small gains, then seeds."""
    sizes = (TEST_VIDEOS, ALL_VIDEOS)
    one = {"seeds": 1, "seed_sd": 0.0}
    found = [
        {"scenario": scenario, "videos": videos, "gain": 0.03} | one
        for scenario, videos in itertools.product(SCENARIOS, VIDEOS)
    ]
    found += [
        {"scenario": DEFAULT, "videos": videos, "gain": gain} | one
        for gain, videos in itertools.product((0.0, 0.015), sizes)
    ]
    found += [
        {"scenario": DEFAULT, "videos": videos, "gain": gain, "seeds": seeds, "seed_sd": 0.01}
        for gain, videos, seeds in itertools.product((0.0, 0.03), sizes, SEEDS)
    ]
    return found


# ------------------------------------------------------------------ what the toy world's predictions say
def within_video(items: list[np.ndarray]) -> float:
    """
    Return the correlation of questions of the same video: the mean product of their deviations over the variance.
    `items`: deviations from the task's mean, one array for each video.
    """
    pairs = sum(len(values) * (len(values) - 1) for values in items)
    products = sum(values.sum() ** 2 - (values**2).sum() for values in items)
    return float(products / pairs / np.concatenate(items).var())


def observed(first: list[GradedAnswer], second: list[GradedAnswer]) -> dict:
    """Return two runs' agreement, and the correlations within videos of what is right and of what differs."""
    second_by_key = {item.key: item.choice == item.answer for item in second}
    right = np.array([[item.choice == item.answer, second_by_key[item.key]] for item in first], float)
    task = np.array([item.task for item in first])
    video = np.array([item.video_name for item in first])
    deviations = right.copy()
    for name in np.unique(task):
        deviations[task == name] -= right[task == name].mean(0)

    def of_videos(values: np.ndarray) -> float:
        return within_video([values[video == name] for name in np.unique(video)])

    return {
        "questions": len(first),
        "videos": len(np.unique(video)),
        "agreement": float((right[:, 0] == right[:, 1]).mean()),
        "within_video": of_videos(deviations[:, 1]),
        "within_video_of_difference": of_videos(deviations[:, 0] - deviations[:, 1]),
    }


def of_scenario(scenario: str) -> dict:
    """Return the same of a scenario, as `observed` finds it in one large simulated experiment without a gain."""
    draw, videos = np.random.default_rng(0), 3000
    (first, total), (second, _) = simulate(draw, videos, SCENARIOS[scenario], 0.0, 1, 0.0)
    counts, agreement = total[0].sum(1), agreement_of(SCENARIOS[scenario])
    result = {"agreement": agreement}
    for name, right in (("within_video", second[0]), ("within_video_of_difference", first[0] - second[0])):
        mean = right.sum(0) / total[0].sum(0)
        sums = (right - mean * total[0]).sum(1)
        if name == "within_video":
            squares = (mean * (1 - mean) * total[0].sum(0)).sum()
        else:
            squares = (1 - agreement) * counts.sum()
        result[name] = (
            float((sums**2).sum() - squares) / float((counts * (counts - 1)).sum()) / (squares / counts.sum())
        )
    return result


def agreement_of(scenario: tuple[float, float]) -> float:
    """Return how often both rows are right or both wrong, over the tasks by their questions."""
    both, _ = scenario
    weights = np.array(list(QUESTIONS.values())) / sum(QUESTIONS.values())
    thresholds = stats.norm.ppf(published_accuracies())
    joint = stats.multivariate_normal([0, 0], [[1, both], [both, 1]]).cdf(np.column_stack([thresholds, thresholds]))
    return float(weights @ (1 - 2 * (published_accuracies() - joint)))


# ------------------------------------------------------------------ document and picture
def select(result: dict, **wanted) -> list[dict]:
    """Return the rows with these values."""
    return [row for row in result["rows"] if all(row[name] == value for name, value in wanted.items())]


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def tables(result: dict) -> dict[str, Table]:
    """Return the tables of docs/power.md by name."""
    power = [
        [
            str(videos),
            f"{select(result, videos=videos)[0]['questions']:,}",
            *(
                f"{100 * row['first_better']:.0f} % (± {_points(row['half_width'])})"
                for scenario in SCENARIOS
                for row in select(result, scenario=scenario, videos=videos, gain=0.03, seeds=1, seed_sd=0.0)
            ),
        ]
        for videos in VIDEOS
    ]
    small = [
        [
            f"{100 * row['gain']:.1f}",
            str(row["videos"]),
            _points(row["half_width"]),
            _points(row["deviation_of_a_row"]),
        ]
        + [f"{100 * row[name]:.0f} %" for name in ("differ_by_1.5", "differ_by_3", "different")]
        for videos in (TEST_VIDEOS, ALL_VIDEOS)
        for gain in (0.0, 0.015, 0.03)
        for row in select(result, scenario=DEFAULT, videos=videos, gain=gain, seeds=1, seed_sd=0.0)
    ]
    seeds = [
        [str(videos), str(count)]
        + [
            f"{100 * select(result, videos=videos, gain=gain, seeds=count, seed_sd=0.01)[0][name]:.0f} %"
            for gain, name in ((0.0, "different"), (0.03, "first_better"))
        ]
        for videos in (TEST_VIDEOS, ALL_VIDEOS)
        for count in SEEDS
    ]
    names = {name: name for name in SCENARIOS} | {name: f"toy world: {name}" for name in result["toy_world"]}
    alike = [
        [names[name], f"{100 * values['agreement']:.0f} %"]
        + [f"{values[key]:.2f}" for key in ("within_video", "within_video_of_difference")]
        for name, values in (result["scenarios"] | result["toy_world"]).items()
    ]
    told = "told from chance"
    return {
        "power": Table(["videos", "questions", *SCENARIOS], power),
        "small": Table(
            ["true gain", "videos", "interval ±", "one row moves by", "differ by 1.5 or more", "by 3 or more", told],
            small,
        ),
        "seeds": Table(["videos", "seeds of each row", f"no gain, yet {told}", f"gain of 3 points {told}"], seeds),
        "alike": Table(["rows", "agree on", "correlation within videos", "of the difference"], alike),
    }


def draw_power(path: Path, result: dict) -> None:
    """Draw power and the interval's half-width against the number of videos."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    power, width = figure.subplots(1, 2)
    colors = ("#1a73e8", "#188038", "#e8710a", "#5f6368")
    for scenario, color in zip(SCENARIOS, colors, strict=True):
        rows = select(result, scenario=scenario, gain=0.03, seeds=1, seed_sd=0.0)
        videos = [row["videos"] for row in rows]
        style = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1.6, "label": scenario}
        power.plot(videos, [100 * row["first_better"] for row in rows], **style)
        width.plot(videos, [100 * row["half_width"] for row in rows], **style)
    power.axhline(80, color="black", linestyle=":", linewidth=1)
    power.set_ylabel("a true gain of 3 points is told from chance, %")
    power.set_ylim(0, 102)
    width.axhline(1.5, color="black", linestyle=":", linewidth=1)
    width.text(60, 1.4, "63.9 - 62.4", va="top", fontsize=8)
    width.set_ylabel("95 % interval of the difference, ± points")
    width.set_ylim(0, None)
    for axis in (power, width):
        for videos, name in ((TEST_VIDEOS, "test split"), (ALL_VIDEOS, "all of StreamGaze")):
            axis.axvline(videos, color="#dadce0", linewidth=1, zorder=0)
            axis.text(videos, axis.get_ylim()[0], f" {name}", rotation=90, va="bottom", fontsize=7, color="#5f6368")
        axis.set_xscale("log")
        axis.set_xticks(VIDEOS, [str(videos) for videos in VIDEOS])
        axis.minorticks_off()
        axis.set_xlabel("videos")
        axis.spines[["top", "right"]].set_visible(False)
    width.legend(frameon=False, fontsize=8, title="the two rows are", title_fontsize=8)
    save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="simulate nothing")
    parser.add_argument("--experiments", type=int, default=150)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if not arguments.draw:
        started, rows = time.time(), []
        for number, cell in enumerate(cells()):
            rows.append(measure(cell, arguments.experiments, arguments.resamples, arguments.seed + number))
            print(rows[-1], flush=True)
        runs = read_predictions(PREDICTIONS)
        settings = {name: getattr(arguments, name) for name in ("experiments", "resamples", "seed")}
        settings |= {"questions": QUESTIONS, "of_video": OF_VIDEO, "scenarios": SCENARIOS}
        result = {
            "settings": settings,
            "rows": rows,
            "scenarios": {scenario: of_scenario(scenario) for scenario in SCENARIOS},
            "toy_world": {
                f"{first} and {second}": observed(runs[first], runs[second])
                for first, second in (("gaze", "none"), ("shuffled", "none"))
            },
            "seconds": round(time.time() - started, 1),
            "provenance": provenance(),
        }
        write_json(arguments.output, result)
        print(f"written to {arguments.output}")
    if arguments.output == OUTPUT:
        result = json.loads(OUTPUT.read_text())
        write_text(DOCUMENT, fill(DOCUMENT.read_text(), tables(result)))
        draw_power(PICTURE, result)


if __name__ == "__main__":
    with one_line_errors():
        main()
