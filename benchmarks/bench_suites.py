"""
The toy adapter in other people's suites, beside `gazeqwen eval`: every answer and every score has to be the same.

    git clone https://github.com/daeunni/StreamGaze
    python benchmarks/bench_suites.py --streamgaze StreamGaze --output benchmarks/results/suites_cpu.json

lmms-eval runs by its own command line (docs/guides/lmms-eval.md says how it is installed), StreamGaze's harness by its
`src/eval.py`, with the lines of `gazeqwen.suites.streamgaze` added, and its `evaluate_results.py` scores. The toy
world is made anew. The first answer or score that differs ends the run with an error.
"""

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from gazeqwen.evaluation.scoring import GradedAnswer, read_predictions, score
from gazeqwen.questions.release import build
from gazeqwen.questions.release_questions import parse_time
from gazeqwen.questions.tasks import TASKS
from gazeqwen.suites import asking, documents, streamgaze
from gazeqwen.toyworld.generate import generate
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance

RUNS = (("gaze", 1), ("none", 1), ("shuffled", 1), ("shuffled", 2))  # conditions, processes
BATCH_SIZE = "8"
TASK_FOLDER = Path(documents.__file__).parent / "lmms_tasks"
BENCHMARKS = {
    "past": "StreamingBenchGaze_Past_StreamGaze",
    "present": "StreamingBenchGaze_StreamGaze",
    "proactive": "StreamingBenchRemind_StreamGaze",
}


def run(command: list, folder: Path, **environment: str) -> None:
    """Run a command in a folder, offline. Raises ValueError with the end of what it printed where it fails."""
    environment = (
        os.environ
        | {"HF_HUB_OFFLINE": "1", "GAZEQWEN_CACHE": str(folder / "cache"), "ACCELERATE_USE_CPU": "true"}
        | environment
    )
    command = [str(part) for part in command]
    print(" ".join(command), flush=True)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{command[0]} failed: {(done.stdout + done.stderr)[-3000:]}")


def check_equal(what: str, got: dict, expected: dict) -> None:
    """Raise ValueError naming the first key under which two dicts differ."""
    for key in sorted(got.keys() | expected.keys(), key=str):
        if got.get(key) != expected.get(key):
            raise ValueError(f"{what}, {key}: got {got.get(key)!r}, gazeqwen eval has {expected.get(key)!r}")


def responses(answers: list[GradedAnswer]) -> dict[str, str]:
    """Return what `gazeqwen eval` answered, by the question's key."""
    return {answer.key: asking.response_of(answer.task, answer.choice) for answer in answers}


def measures(answers: list[GradedAnswer]) -> dict[str, float]:
    """Return the scores of `gazeqwen eval` by the names that they have in lmms-eval."""
    scores = score(answers)
    found = {"macro": scores["macro"], "micro": scores["micro"]} | scores["groups"]
    for name, values in scores["tasks"].items():
        found[TASKS[name].abbreviation] = values["accuracy"]
        if "balanced_accuracy" in values:
            found[f"{TASKS[name].abbreviation}_balanced"] = values["balanced_accuracy"]
    return found


def lmms_eval(folder: Path, condition: str, processes: int) -> tuple[dict[str, str], dict[str, float]]:
    """Return lmms-eval's answers by the question's key, and its scores, on the data in `folder / "data"`."""
    out = folder / "lmms" / f"{condition}-{processes}"
    command = [Path(sys.executable).with_name("lmms-eval")]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "-m", "lmms_eval"]
    command += ["--model", "gazeqwen", "--batch_size", BATCH_SIZE]
    arguments = f"pretrained={ADAPTER_DIR},gaze={condition}"
    command += ["--model_args", arguments, "--tasks", "streamgaze", "--include_path", TASK_FOLDER]
    run([*command, "--output_path", out, "--log_samples"], folder)
    (samples,), (results,) = out.rglob("*_samples_streamgaze.jsonl"), out.rglob("*_results.json")
    lines = map(json.loads, samples.read_text().splitlines())
    answers = {line["micro"]["key"]: line["micro"]["response"] for line in lines}
    values = json.loads(results.read_text())["results"]["streamgaze"]
    scores = {name.removesuffix(",none"): value for name, value in values.items() if name.endswith(",none")}
    return answers, {name: value for name, value in scores.items() if "_stderr" not in name}


def add_lines(path: Path) -> None:
    """Put the lines of `gazeqwen.suites.streamgaze` into StreamGaze's `eval.py`, before it refuses a model's name."""
    lines = [line for line in streamgaze.__doc__.splitlines() if line.startswith("    ")]
    code, end = path.read_text(), '    else:\n        raise ValueError(f"Unsupported model'
    if code.count(end) != 1:
        raise ValueError(f"{path}: expected {end!r} once")
    path.write_text(code.replace(end, "\n".join([*lines, end])))


def streamgaze_harness(clone: Path, folder: Path, task: str, videos: set[str]) -> tuple[dict, float]:
    """
    Return the answers of StreamGaze's harness by (video, seconds, question), and the accuracy that it computes, on the
    questions of one task about `videos` in `folder / "dataset"`.
    """
    data_file, output = folder / "dataset" / "qa" / f"{task}.json", folder / f"{task}_output.json"
    command = [sys.executable, clone / "src" / "eval.py", "--model_name", "GazeQwen", "--data_file", data_file]
    command += ["--benchmark_name", BENCHMARKS[TASKS[task].group], "--output_file", output]
    command += ["--video_root", folder / "dataset" / "videos" / "original_video"]
    run(
        command,
        folder,
        PYTHONPATH=f"{clone / 'src'}:{os.environ.get('PYTHONPATH', '')}",
        GAZEQWEN_ADAPTER=str(ADAPTER_DIR),
    )
    entries = [entry for entry in json.loads(output.read_text()) if entry["video_path"] in videos]
    answers = {}
    for entry in entries:
        for number, item in enumerate(entry["questions"]):
            points = [(point["realtime"], point["response"]) for point in item.get("test_info", [])]
            if not points:
                points = [(item["time_stamp"], entry["model_predictions"][number]["model_prediction"])]
            for time, response in points:
                answers[entry["video_path"], parse_time(time), item["question"]] = response
    write_json(output, entries)
    (clone / "results").mkdir(exist_ok=True)  # evaluate_results.py writes tables there when it is loaded
    accuracy, _, _ = runpy.run_path(str(clone / "evaluate_results.py"))["calculate_accuracy"](str(output))
    return answers, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=12, help="of the test split")
    parser.add_argument("--streamgaze", type=Path, help="a clone of StreamGaze, which is copied (default: not run)")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    names = ("lmms_eval", "datasets", "filelock", "evaluate")
    record = {"versions": {name: metadata.version(name) for name in names}, "lmms_eval": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "dataset", train=1, val=1, test=arguments.videos, per_task=1, progress=False)
        build(folder / "dataset", folder / "data" / "streamgaze", progress=False)
        command = [Path(sys.executable).with_name("gazeqwen"), "eval", "--model", ADAPTER_DIR]
        command += ["--data", "data/streamgaze", "--batch_size", BATCH_SIZE, "--output", "eval.json"]
        run([*command, "--gaze", *dict(RUNS)], folder)
        expected = read_predictions(folder / "eval.predictions.jsonl")
        for condition, processes in RUNS:
            what = f"{condition}, {processes} process{'es' if processes > 1 else ''}"
            answers, scores = lmms_eval(folder, condition, processes)
            check_equal(f"lmms-eval, {what}", answers, responses(expected[condition]))
            check_equal(f"lmms-eval, {what}", scores, measures(expected[condition]))
            record["lmms_eval"][what] = {"equal_answers": len(answers), "scores": scores}
        if arguments.streamgaze:
            clone = shutil.copytree(arguments.streamgaze, folder / "StreamGaze")
            add_lines(clone / "src" / "eval.py")
            record["streamgaze"] = in_streamgaze(clone, folder, expected["gaze"])
            git = ["git", "-C", str(arguments.streamgaze), "rev-parse", "HEAD"]
            record["versions"]["StreamGaze"] = subprocess.check_output(git, text=True).strip()
    write_json(Path(arguments.output), record | {"provenance": provenance()})
    print(json.dumps(record, indent=1))


def in_streamgaze(clone: Path, folder: Path, answers: list[GradedAnswer]) -> dict:
    """Return how many answers of StreamGaze's harness are those of `gazeqwen eval`, and its scores: all must be."""
    accuracies, count = {}, 0
    for task in TASKS:
        expected = {}
        for answer in (answer for answer in answers if answer.task == task):
            video, _, time_s, question, _ = json.loads(answer.key)
            expected[video, time_s, question] = asking.response_of(task, answer.choice)
        videos = {video for video, _, _ in expected}
        found, accuracies[task] = streamgaze_harness(clone, folder, task, videos)
        check_equal(f"StreamGaze's harness, {task}", found, expected)
        count += len(found)
    scores = score(answers, "streamgaze")["tasks"]
    check_equal("StreamGaze's scores", accuracies, {task: 100 * values["accuracy"] for task, values in scores.items()})
    return {"equal_answers": count, "accuracy_in_percent": accuracies}


if __name__ == "__main__":
    with one_line_errors():
        main()
