"""
Make a dataset that `load_dataset` opens, of StreamGaze's or EgoGazeVQA's release or of your own questions.

    gazeqwen build downloads/StreamGaze data/streamgaze --gaze downloads/raw_gaze
    gazeqwen build downloads/EgoGazeVQA data/egogazevqa --gaze downloads/raw_gaze
    gazeqwen build questions.csv data/mine

A folder is a release: of StreamGaze with qa/, videos/ and metadata/ (questions/release.py), of EgoGazeVQA with
qa_pairs/, narrations/ and videos/ (questions/egogazevqa.py). A CSV file holds own questions, one to a line
(questions/own.py).
"""

import argparse
from pathlib import Path

from gazeqwen.questions import egogazevqa, own, release
from gazeqwen.questions.dataset_folder import push_dataset
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.hub import open_repository

_RELEASE_OPTIONS = ("splits", "gaze", "algorithm", "strict")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="gazeqwen build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a release's folder, or a CSV file of own questions")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--splits", help="JSON file of video names per split (default: the published rule)")
    parser.add_argument(
        "--gaze", help="folder of raw gaze, one folder per source; of StreamGaze: for videos without a table"
    )
    parser.add_argument("--algorithm", choices=["dispersion", "streamgaze"], help="default: dispersion")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset built earlier")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if anything was left out or missing")
    parser.add_argument("--push", metavar="REPO", help="publish the folder as this dataset on the Hub")
    parser.add_argument("--private", action="store_true", help="to a repository that others cannot see")
    arguments = parser.parse_args()
    is_release = not arguments.source.endswith(".csv")
    misplaced = [name for name in _RELEASE_OPTIONS if getattr(arguments, name)]
    if not is_release and misplaced:
        parser.error(f"--{misplaced[0]} is for a release, {arguments.source} is a table of own questions")
    is_egogazevqa = is_release and (Path(arguments.source) / "qa_pairs").is_dir()
    if is_egogazevqa and (arguments.splits or arguments.algorithm):
        name = "splits" if arguments.splits else "algorithm"
        parser.error(f"--{name} is for StreamGaze's release, {arguments.source} is EgoGazeVQA's")
    if arguments.push:
        open_repository(arguments.push, "dataset", arguments.private)  # before the work: the token may be wrong
    if is_egogazevqa:
        report = egogazevqa.build(arguments.source, arguments.out, arguments.gaze, arguments.overwrite)
    elif is_release:
        report = release.build(
            arguments.source,
            arguments.out,
            arguments.splits,
            arguments.gaze,
            arguments.algorithm or "dispersion",
            arguments.overwrite,
        )
    else:
        report = own.build(arguments.source, arguments.out, arguments.overwrite)
    print(report.text())
    if not is_release:
        for split, counts in report.splits["default"].items():
            print(f"{split}: {counts['questions']} questions of {counts['videos']} videos")
    print(f'written to {arguments.out}: load_dataset("{arguments.out}")')
    if arguments.strict and (report.excluded or report.missing_videos or report.without_gaze):
        raise SystemExit("something was left out or missing, see above")
    if arguments.push:
        print(f"published: {push_dataset(Path(arguments.out), arguments.push)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
