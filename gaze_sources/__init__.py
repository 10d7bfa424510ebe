"""
Read raw eye-tracking recordings as gaze samples and detect fixations in them, on the video's clock and in its frame.

Each source is a module with `read(path, video=None, **options) -> GazeSamples` and `find(root, stem) -> Path | None`,
where the recording of the video `<stem>.mp4` lies below a folder of that source. Its docstring says what is read.
"""

from . import aria, ego4d, egoexo4d, egoexolearn, egtea, generic, holoassist, pupil_core, pupil_labs, tobii
from .conversion import guessed_scanpath
from .fixations import Dropped, checked_scanpath, detect_fixations, scene_consistent, streamgaze_fixations
from .guess import guess_source
from .samples import GazeSamples, Status

SOURCES = {
    "egtea": egtea,
    "egoexolearn": egoexolearn,
    "holoassist": holoassist,
    "ego4d": ego4d,
    "egoexo4d": egoexo4d,
    "aria": aria,
    "pupil_labs": pupil_labs,
    "pupil_core": pupil_core,
    "tobii": tobii,
    "generic": generic,
}

__all__ = [
    "SOURCES",
    "Dropped",
    "GazeSamples",
    "Status",
    "checked_scanpath",
    "detect_fixations",
    "guess_source",
    "guessed_scanpath",
    "scene_consistent",
    "streamgaze_fixations",
]
