"""StreamGaze's ten tasks (arXiv 2512.01707): what each is called, and which part of a video it is asked about."""

from dataclasses import dataclass

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """
    `window_s`: how far before the question a clip begins; None: at the video's start (StreamGaze's protocol).
    `asks_about_fixation_at_query`: questions are stamped with the rounded start of the fixation that they ask about,
    so that next to nothing of it lies before the query (`Scanpath.snap`). Test points of gaze-triggered alerts are
    floored to whole seconds: the positive one at the object's first fixation is cut up to 1 s before that fixation
    begins. Object transition prediction is stamped so too, but with the start of the fixation that is the answer: that
    one must stay unseen.
    """

    abbreviation: str
    group: str
    window_s: float | None
    questions: int
    asks_about_fixation_at_query: bool = False


WINDOW_S = 60.0  # of the present tasks


# By file stem: the release's `task_type` field does not tell OI-E from OI-H. `questions`: how many the release holds.
TASKS = {
    "past_gaze_sequence_matching": Task("GSM", "past", None, 186, True),
    "past_non_fixated_object_identification": Task("NFI", "past", None, 650),
    "past_object_transition_prediction": Task("OTP", "past", None, 494),
    "past_scene_recall": Task("SR", "past", None, 211, True),
    "present_future_action_prediction": Task("FAP", "present", WINDOW_S, 921),
    "present_object_attribute_recognition": Task("OAR", "present", WINDOW_S, 1419, True),
    "present_object_identification_easy": Task("OI-E", "present", WINDOW_S, 1487, True),
    "present_object_identification_hard": Task("OI-H", "present", WINDOW_S, 1005, True),
    "proactive_gaze_triggered_alert": Task("GTA", "proactive", None, 283, True),
    "proactive_object_appearance_alert": Task("OAA", "proactive", None, 1865),
}


VIDEOS_IN_RELEASE = 285


def full_name(task: str) -> str:
    """Return the name of StreamGaze's task that has this abbreviation, such as OI-E, or else what was given."""
    return next((name for name, info in TASKS.items() if info.abbreviation == task.upper()), task)


def task_info(name: str) -> Task:
    """Return one of StreamGaze's tasks by name, or a task of people's own data for any other name."""
    return TASKS.get(name) or Task(name, "own", None, 0)


def clip_window(task: str, question_time_s: float) -> tuple[float, float]:
    """Return (begin, end) of the part of the video that a question of a StreamGaze task is about, seconds."""
    window_s = TASKS[task].window_s
    return (0.0 if window_s is None else window_start_s(question_time_s, window_s)), question_time_s


def window_start_s(question_time_s: float, window_s: float = WINDOW_S) -> float:
    """Return where a clip begins that ends with its question and looks back `window_s`, seconds of the video."""
    return max(0.0, question_time_s - window_s)
