"""Tell where StreamGaze's videos come from by their names."""

import re
from dataclasses import dataclass
from pathlib import Path

from gazeqwen.gaze_sources.fixations import ASSUMED_FPS


@dataclass(frozen=True)
class VideoSource:
    """
    A data set whose videos StreamGaze uses. `names`: what its files are called, without the ending; a group is the
    participant. `assumed_fps`: by which the benchmark turned frame numbers into seconds; None: its seconds are those
    of the gaze recording.
    """

    title: str
    names: re.Pattern
    assumed_fps: float | None


VIDEO_SOURCES = {
    "egtea": VideoSource("EGTEA Gaze+", re.compile(r"(O?P\d{2})-R\d{2}-.+"), ASSUMED_FPS["egtea"]),
    "holoassist": VideoSource("HoloAssist", re.compile(r"([Rz]\d{3})-.+"), ASSUMED_FPS["holoassist"]),
    "egoexolearn": VideoSource("EgoExoLearn", re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"), None),
}


def source_of(video_name: str, category: str = "other") -> tuple[str, str | None]:
    """Return (source, participant) by a video's name; (`category`, None) where no source has such names."""
    for name, source in VIDEO_SOURCES.items():
        if match := source.names.fullmatch(Path(video_name).stem):
            return name, match.group(1) if match.groups() else None
    return category, None
