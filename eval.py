"""
Evaluate a trained GazeQwen, with controls that show whether gaze made the difference.

    accelerate launch eval.py --model runs/demo/best --data runs/demo/data --output runs/demo/results.json

Conditions: `gaze`, each question with its own scanpath; `none`, without gaze, which is the base model; `shuffled`,
each question with another video's scanpath.
"""

import argparse
import time

from accelerate import Accelerator
from transformers import AutoModel, AutoProcessor

from gazeqwen.clip_cache import CACHE_KINDS, ClipCache
from gazeqwen.evaluation import (
    CONDITIONS,
    accuracy,
    accuracy_table,
    largest_logit_difference,
    predict,
)
from gazeqwen.runs import clear_errors, provenance, write_json
from gazeqwen.streamgaze import load_questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a trained adapter")
    parser.add_argument("--data", required=True, help="dataset: a folder built by gazeqwen.streamgaze, or a Hub id")
    parser.add_argument("--config", default="default", help="split scheme: default, participants")
    parser.add_argument("--split", default="test")
    parser.add_argument("--tasks", nargs="+", help="default: all tasks of the folder")
    parser.add_argument(
        "--without_gaze", default="error", choices=["error", "keep", "drop"], help="videos without gaze"
    )
    parser.add_argument("--snap_s", type=float, help="default: as the model was trained, see Scanpath.snap")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode ahead")
    parser.add_argument("--cache", choices=CACHE_KINDS, default="features", help="what is kept of the frozen networks")
    parser.add_argument(
        "--no_cache", dest="cache", action="store_const", const="none", help="the same as --cache none"
    )
    parser.add_argument("--cache_dir", help="where it is kept (default: ~/.cache/gazeqwen)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffling")
    parser.add_argument("--output", help="write the scores and every setting as JSON")
    parser.add_argument("--compare", help="predictions (.jsonl) of train.py: fail unless `gaze` gives the same logits")
    arguments = parser.parse_args()

    accelerator = Accelerator()
    questions = load_questions(
        arguments.data, arguments.split, arguments.tasks, arguments.config, arguments.without_gaze
    )
    model = AutoModel.from_pretrained(arguments.model, trust_remote_code=True, dtype=arguments.dtype)
    model = model.to(accelerator.device).eval()
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    if arguments.snap_s is not None:
        processor.snap_s = arguments.snap_s
    workers = arguments.num_workers
    cache = ClipCache.of(model, processor, arguments.cache, arguments.cache_dir)
    scores, started = {}, time.time()
    cache.fill(accelerator, model, questions, arguments.batch_size, workers)
    for condition in arguments.conditions:
        predictions = predict(
            accelerator, model, cache, questions, condition, arguments.batch_size, arguments.seed, workers
        )
        scores[condition] = accuracy(predictions)
        if condition == "gaze" and arguments.compare:
            difference, count = largest_logit_difference(arguments.compare, predictions)
            accelerator.print(
                f"largest difference of a logit to {arguments.compare}: {difference:.1e} ({count} questions)"
            )
            if not difference <= 1e-5:
                raise SystemExit("the loaded adapter does not give the logits it was saved with")
    accelerator.print(accuracy_table(scores))
    if arguments.output and accelerator.is_main_process:
        settings = {
            "model": arguments.model,
            "data": arguments.data,
            "config": arguments.config,
            "split": arguments.split,
            "without_gaze": arguments.without_gaze,
            "seed": arguments.seed,
            "batch_size": arguments.batch_size,
            "dtype": str(model.dtype),
            "num_frames": processor.num_frames,
            "fps": processor.fps,
            "max_frames": processor.max_frames,
            "frame_size": processor.video_processor.to_dict()["size"],
            "video_encoder_size": processor.video_encoder_size,
            "snap_s": processor.snap_s,
            "prompt_style": processor.prompt_style,
            "prompt": questions[0].prompt(processor.prompt_style)[0],
            "adapter": model.config.to_dict(),
            "lora": model.has_lora,
        }
        result = {
            "scores": scores,
            "settings": settings,
            "seconds": round(time.time() - started, 1),
            "provenance": provenance(),
        }
        write_json(arguments.output, result)
        accelerator.print(f"written to {arguments.output}")


if __name__ == "__main__":
    with clear_errors():
        main()
