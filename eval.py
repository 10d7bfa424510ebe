"""
Evaluate a trained GazeQwen, or any video-text model, with controls that show whether gaze made the difference.

    gazeqwen eval --model runs/demo/best --data runs/demo/data --output runs/demo/results.json
    accelerate launch eval.py --model Qwen/Qwen2.5-VL-7B-Instruct --data data/streamgaze --gaze none overlay text ...

Conditions (`--gaze`, words joined by +, see pipeline/conditions.py): `gaze`, each question with its own scanpath;
`none`, without gaze, which is the base model; `zero`, `shuffled`, `shifted`, `centre`, `random_place`,
`permuted_times`; `noise5` and other percents; `text`, `overlay`, `ring`, `cross`, `saliency`; `text_only`. All see the
same snapped gaze (`--snap_s`), other models too. An adapter is asked with gaze, none, shuffled and centre unless told
otherwise; evidence also wants `random_place` and `permuted_times`, each of which takes as long as `gaze` again.

`--stream` answers all questions of a video in one pass over it, as if it arrived live: the same answers where the
adapter was trained on `sampling: grid` and a `video_encoder_window`, in less time where a video has many questions.

A run that was stopped goes on when the same command is given again; each question is asked exactly once. What is
answered is kept condition by condition: in `<output>.partial.json` until the last one is done.

Settings may also stand in a YAML file (evaluation/settings.py), and be changed as in train.py:

    accelerate launch eval.py my_evaluation.yaml batch_size=16 --seed 1
"""

import argparse
import time
from contextlib import nullcontext
from pathlib import Path

from gazeqwen.utils.command_line import end_with_launcher, named_extra, one_line_errors

with named_extra():
    from accelerate import Accelerator

    from gazeqwen.evaluation.evaluators import check_conditions, evaluate_condition, evaluator_class
    from gazeqwen.evaluation.prediction_file import PredictionFile, largest_logit_difference, load_predictions
    from gazeqwen.evaluation.predictions import accuracy_table
    from gazeqwen.evaluation.settings import EvaluationSettings
    from gazeqwen.questions.centrality import centrality_of_questions
    from gazeqwen.questions.dataset import load_questions
    from gazeqwen.utils.files import remove_leftovers, write_json
    from gazeqwen.utils.locks import lock
    from gazeqwen.utils.provenance import provenance
    from gazeqwen.utils.settings import add_flags, read_recipe

BESIDE_OUTPUT = (".partial.json", ".predictions.jsonl", ".predictions.settings.json")


def read_settings() -> EvaluationSettings:
    """Return the settings of the command line: a file's, changed by `name=value`, changed by flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="a YAML file of settings, and name=value in place of its values")
    add_flags(parser, EvaluationSettings)
    parser.add_argument(
        "--no_cache", dest="cache", action="store_const", const="none", default=argparse.SUPPRESS, help="--cache none"
    )
    flags = vars(parser.parse_intermixed_args())
    files = [text for text in flags["settings"] if "=" not in text]
    overrides = [text for text in flags.pop("settings") if "=" in text]
    if len(files) > 1:
        raise ValueError(f"got {files}, expected one file of settings, and overrides such as batch_size=16")
    return read_recipe(EvaluationSettings, files[0] if files else None, overrides, flags)


def main() -> None:
    settings, accelerator = read_settings(), Accelerator()
    end_with_launcher()
    alone = settings.output and accelerator.is_main_process  # it holds the output for all
    with lock(settings.output) if alone else nullcontext():
        evaluate(settings, accelerator)


def evaluate(settings: EvaluationSettings, accelerator: Accelerator) -> None:
    """Ask the questions under each condition, print the scores, and write them to the output if there is one."""
    started = time.time()
    if settings.output and accelerator.is_main_process:
        output = Path(settings.output)
        for path in (output, *map(output.with_suffix, BESIDE_OUTPUT)):
            remove_leftovers(output.parent, path.name)
    data = load_questions(settings.data, settings.split, settings.tasks, settings.config, settings.without_gaze)
    questions = [question for question in data if question.answer_text is None]
    if len(questions) < len(data):
        accelerator.print(f"left out {len(data) - len(questions)} open-ended questions: they are not scored")
    if not questions:
        raise ValueError("no question with options to evaluate")
    kind = evaluator_class(settings)
    names = list(settings.gaze or kind.default_conditions)
    conditions = check_conditions(kind, settings, names, questions)
    if settings.compare:
        compared, saved = load_predictions(settings.compare, names)

    evaluator = kind(settings, accelerator)
    result = {
        "name": settings.name or settings.model,
        "scorer": settings.scorer,
        "scores": {},
        "settings": evaluator.recorded_settings(questions),
        "gaze_centrality": centrality_of_questions(questions),
    }
    file = None
    if settings.output:
        file = PredictionFile(Path(settings.output).with_suffix(".predictions.jsonl"), result["settings"])
        result["predictions"] = file.path.name
        if accelerator.is_main_process:
            file.start(settings.restart)
        accelerator.wait_for_everyone()
    evaluator.prepare(conditions, questions)
    for condition in conditions:
        result["scores"][condition.name], predictions = evaluate_condition(evaluator, condition, questions, file)
        if settings.compare and condition.name == compared:
            difference, count = largest_logit_difference(settings.compare, saved, predictions)
            text = f"largest difference of a logit to {settings.compare}: {difference:.1e} ({count} questions)"
            accelerator.print(text)
            if not difference <= 1e-5:
                raise SystemExit("the loaded adapter does not give the logits it was saved with")
        if settings.output and accelerator.is_main_process:
            result |= {"seconds": round(time.time() - started, 1), "provenance": provenance()}
            write_result(Path(settings.output), result, complete=condition is conditions[-1])
    accelerator.print(accuracy_table(result["scores"]))
    if file is not None:
        for repair in file.repairs:
            accelerator.print(f"repaired: {repair}")
        accelerator.print(f"written to {settings.output}")


def write_result(path: Path, result: dict, complete: bool) -> None:
    """Write a result file: beside `path` as `.partial.json` while conditions are still to be answered."""
    partial = path.with_suffix(".partial.json")
    write_json(path if complete else partial, result)
    if complete:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
