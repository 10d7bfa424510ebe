"""
Evaluate a trained GazeQwen, or any video-text model, with controls that show whether gaze made the difference.

    gazeqwen eval --model runs/demo/best --data runs/demo/data --output runs/demo/results.json
    accelerate launch eval.py --model Qwen/Qwen2.5-VL-7B-Instruct --data data/streamgaze --gaze none overlay text ...

Conditions (`--gaze`, words joined by +, see pipeline/conditions.py): `gaze`, each question with its own scanpath;
`none`, without gaze, which is the base model; `zero`, `shuffled`, `shifted`; `noise5` and other percents; `text`,
`overlay`, `ring`, `saliency`; `text_only`. All see the same snapped gaze (`--snap_s`), other models too.

A run that was stopped goes on when the same command is given again; each question is asked exactly once.
"""

import argparse
import time
from pathlib import Path

from gazeqwen.utils.command_line import named_extra, one_line_errors

with named_extra():
    from accelerate import Accelerator

    from gazeqwen.evaluation.evaluators import evaluate, load_evaluated
    from gazeqwen.evaluation.predictions import (
        CONDITIONS,
        PredictionFile,
        accuracy_table,
        largest_logit_difference,
        load_predictions,
    )
    from gazeqwen.evaluation.scoring import SCORERS
    from gazeqwen.pipeline.clip_cache import CACHE_KINDS
    from gazeqwen.questions.dataset import load_questions
    from gazeqwen.questions.prompts import PROMPT_STYLES
    from gazeqwen.utils.files import write_json
    from gazeqwen.utils.provenance import provenance


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of an adapter, or of any video-text model")
    parser.add_argument("--revision", help="of the model")
    parser.add_argument("--data", required=True, help="dataset: a folder built by gazeqwen build, or a Hub id")
    parser.add_argument("--config", default="default", help="split scheme: default, participants")
    parser.add_argument("--split", default="test")
    parser.add_argument("--tasks", nargs="+", help="default: all tasks of the split")
    parser.add_argument(
        "--without_gaze", default="error", choices=["error", "keep", "drop"], help="videos without gaze"
    )
    parser.add_argument("--gaze", "--conditions", nargs="+", help=f"default: {' '.join(CONDITIONS)}; others: none")
    parser.add_argument("--permute_options", type=int, default=1, help="ask with so many orders of the options")
    parser.add_argument("--scorer", choices=SCORERS, default="strict")
    parser.add_argument("--scoring", choices=["logits", "generate"], default="logits", help="how other models answer")
    asked = parser.add_argument_group("how questions are put (default: as an adapter was trained)")
    asked.add_argument("--snap_s", type=float, help="see Scanpath.snap")
    asked.add_argument("--prompt_style", choices=PROMPT_STYLES)
    asked.add_argument("--num_frames", type=int)
    asked.add_argument("--fps", type=float)
    asked.add_argument("--max_frames", type=int)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode ahead")
    parser.add_argument("--cache", choices=CACHE_KINDS, default="features", help="what is kept of the frozen networks")
    parser.add_argument(
        "--no_cache", dest="cache", action="store_const", const="none", help="the same as --cache none"
    )
    parser.add_argument("--cache_dir", help="where it is kept (default: ~/.cache/gazeqwen)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffling, the noise and the bootstrap")
    parser.add_argument("--name", help="what the run is called in reports (default: the model)")
    parser.add_argument("--output", help="write scores and every setting as JSON, and predictions beside it")
    parser.add_argument("--restart", action="store_true", help="leave what an earlier run answered")
    parser.add_argument(
        "--compare", help="predictions (.jsonl) of train.py: fail unless it gives the same logits (--seed: its)"
    )
    return parser.parse_args()


def main() -> None:
    args, accelerator, started = arguments(), Accelerator(), time.time()
    questions = load_questions(args.data, args.split, args.tasks, args.config, args.without_gaze)
    evaluated = load_evaluated(args, accelerator)
    args.gaze = list(args.gaze or evaluated.default_conditions)
    if args.compare:
        compared, saved = load_predictions(args.compare, args.gaze)
    settings = evaluated.settings(args, questions)
    file = None
    if args.output:
        file = PredictionFile(Path(args.output).with_suffix(".predictions.jsonl"), settings)
        if accelerator.is_main_process:
            file.start(args.restart)
        accelerator.wait_for_everyone()
    scores, predictions = evaluate(accelerator, evaluated, questions, args, file)
    if args.compare:
        difference, count = largest_logit_difference(args.compare, saved, predictions[compared])
        accelerator.print(f"largest difference of a logit to {args.compare}: {difference:.1e} ({count} questions)")
        if not difference <= 1e-5:
            raise SystemExit("the loaded adapter does not give the logits it was saved with")
    accelerator.print(accuracy_table(scores))
    for repair in file.repairs if file is not None else []:
        accelerator.print(f"repaired: {repair}")
    if args.output and accelerator.is_main_process:
        result = {
            "name": args.name or args.model,
            "scorer": args.scorer,
            "scores": scores,
            "predictions": file.path.name,
            "settings": settings,
            "seconds": round(time.time() - started, 1),
            "provenance": provenance(),
        }
        write_json(args.output, result)
        accelerator.print(f"written to {args.output}")


if __name__ == "__main__":
    with one_line_errors():
        main()
