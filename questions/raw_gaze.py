"""Find and read the raw gaze recordings of a benchmark's videos, and detect the fixations in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gazeqwen.questions.dataset_folder import Report
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import VideoInfo

if TYPE_CHECKING:
    from gazeqwen.gaze_sources.samples import GazeSamples


def find_raw(folder: Path, source: str, stem: str) -> Path | None:
    """Return where the raw recording of a video lies below the folder of its source, or None."""
    from gazeqwen.gaze_sources import SOURCES

    return SOURCES[source].find(folder / source, stem) if source in SOURCES else None


def read_raw(raw: Path, source: str, video: Path, report: Report) -> GazeSamples:
    """Return the samples of a raw recording; the report gets the reader's notes. Raises as the source's `read`."""
    from gazeqwen.gaze_sources import SOURCES

    samples = SOURCES[source].read(raw, video)
    report.notes += [f"{raw}: {note}" for note in samples.notes]
    return samples


def fixations_in_video(raw: Path, samples: GazeSamples, info: VideoInfo, report: Report) -> Scanpath:
    """
    Return the fixations, by dispersion, of the samples that lie in the video; the report gets notes on samples outside
    and on clocks that may differ.
    """
    from gazeqwen.gaze_sources.conversion import largest_gap_s
    from gazeqwen.gaze_sources.fixations import detect_fixations

    gaze_end_s, video_end_s = samples.times_s[-1], info.end_s
    if abs(gaze_end_s - video_end_s) > 0.02 * video_end_s:
        report.notes.append(
            f"{raw}: gaze ends at {gaze_end_s:.2f} s, the video at {video_end_s:.2f} s: are the clocks the same?"
        )
    inside = samples.within(info.start_s, info.end_s)
    if not inside.all():
        report.notes.append(f"{raw}: {int((~inside).sum())} of {len(samples)} samples lie outside the video")
    samples = samples.keep(inside)
    gap_s = largest_gap_s(samples, lambda note: report.notes.append(f"{raw}: {note}"))
    return detect_fixations(samples, max_gap_s=gap_s)
