"""Answers to all questions of a video in one pass over it, on streams that see it arrive."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from gazeqwen.evaluation.prediction_file import Prediction, PredictionFile
from gazeqwen.evaluation.predictions import run_predictions
from gazeqwen.pipeline.conditions import Condition, assign_scanpaths
from gazeqwen.questions.question import Question
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.streaming.stream import GazeStream, run_due
from gazeqwen.video_gazeqwen import (
    FRAMES_PER_STEP,
    checked_end,
    grid_edges_s,
    grid_frame_at,
    grid_step_at,
    grid_times_s,
    read_frames,
    video_info,
)

_FRAMES_AT_ONCE = 32  # read from a file
_STEPS_AT_ONCE = 16  # in one call of the model


@dataclass
class VideoQuestions:
    """All questions of a video, whose places in the dataset are `indices`, and the gaze that each is given."""

    indices: list[int]
    questions: list[Question]
    scanpaths: list[Scanpath | None]


class StreamedData(torch.utils.data.Dataset):
    """Give (index, question, scanpath) under a condition. `batches`: the indices of each video's questions."""

    def __init__(self, questions: list[Question], condition: Condition, seed: int, snap_s: float):
        assigned = assign_scanpaths(condition, questions, seed, snap_s)
        self.questions = questions
        self.scanpaths_of, self.scanpaths = [video for video, _ in assigned], [scanpath for _, scanpath in assigned]
        by_video = defaultdict(list)
        for index, question in enumerate(questions):
            by_video[question.video].append(index)
        self.batches = list(by_video.values())

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[int, Question, Scanpath | None]:
        return index, self.questions[index], self.scanpaths[index]

    def collate(self, samples: list[tuple]) -> VideoQuestions:
        return VideoQuestions(*(list(column) for column in zip(*samples, strict=True)))


def predict_streamed(
    accelerator: Accelerator,
    model,
    processor,
    questions: list[Question],
    condition: Condition,
    seed: int = 0,
    file: PredictionFile | None = None,
) -> list[Prediction]:
    """
    Return predictions as `predict` does, each video decoded once. Questions of a video share a stream where their
    clips begin at the same time and they are given the same gaze: all test points of a proactive video do, with its
    own gaze or without. Clips hold all frames of the grid since their start, whatever `max_frames` is.
    """
    data = StreamedData(questions, condition, seed, processor.snap_s)

    def answers(batch: VideoQuestions) -> list[dict]:
        return [{"logits": row} for row in stream_video(model, processor, batch)]

    return run_predictions(accelerator, data, answers, condition.name, 1, file=file, batches=data.batches)


@dataclass
class _Asked:
    """A question and its place among its video's, when its clip ends, and the last frame of the grid in it."""

    place: int
    question: Question
    end_s: float
    last_frame: int


def stream_video(model, processor, batch: VideoQuestions) -> list[list[float]]:
    """Return the logits of each question's answers. Raises ValueError as `read_clip` and `GazeStream` do."""
    video, fps = batch.questions[0].video, processor.fps
    video_end_s = video_info(video).end_s
    groups: dict[tuple, list[_Asked]] = defaultdict(list)
    gaze = {}
    for place, (question, scanpath) in enumerate(zip(batch.questions, batch.scanpaths, strict=True)):
        end_s = checked_end(video, question.start_s, question.end_s, video_end_s)
        last_frame = grid_frame_at(end_s, fps)
        first_step = min(grid_step_at(question.start_s, fps), max(last_frame, 0) // FRAMES_PER_STEP)
        key = first_step, None if scanpath is None else scanpath.table.tobytes()
        groups[key].append(_Asked(place, question, end_s, last_frame))
        gaze[key] = scanpath

    logits: list[list[float]] = [[] for _ in batch.questions]
    streams: dict[tuple, GazeStream] = {}
    for (first_step, content), asked in groups.items():
        scanpath, start_s = gaze[first_step, content], grid_edges_s(first_step, fps)
        stream = GazeStream(
            model,
            processor,
            start_s=start_s,
            has_gaze=scanpath is not None,
            max_gap_s=video_end_s + 1.0,
            runs_steps=False,
        )
        if scanpath is not None:
            stream.push_fixation(scanpath, until_s=math.inf)
        streams[first_step, content] = stream
        asked.sort(key=lambda each: each.end_s)

    first = min(step for step, _ in groups) * FRAMES_PER_STEP
    last = max(asked[-1].last_frame for asked in groups.values())
    for begin in range(first, max(last, first) + 1, _FRAMES_AT_ONCE):
        numbers = np.arange(begin, min(begin + _FRAMES_AT_ONCE, max(last, first) + 1))
        frames, times = read_frames(video, grid_times_s(numbers, fps))
        for (first_step, content), asked in groups.items():
            own = numbers >= first_step * FRAMES_PER_STEP
            if asked and own.any():
                stream = streams[first_step, content]
                for place, answer in _answers(stream, asked, numbers[own], frames[own], times[own]):
                    logits[place] = answer
                if not asked:
                    stream.close()
    return logits


def _answers(
    stream: GazeStream, asked: list[_Asked], numbers: np.ndarray, frames: np.ndarray, times: np.ndarray
) -> Iterator[tuple[int, list[float]]]:
    """
    Push the frames on screen at a grid's times, whose `numbers` (F,) follow those before, and yield place and logits
    of each question whose clip ends with one of them; it is taken from `asked`. Steps run together, when a question
    comes or enough of them wait.
    """
    begin = 0
    while asked and begin < len(numbers):
        end = max(int(np.searchsorted(numbers, asked[0].last_frame, side="right")), begin + 1)
        is_new = np.diff(times[begin:end], prepend=-math.inf if stream.now_s is None else stream.now_s) > 0
        stream.push(frames[begin:end][is_new], times[begin:end][is_new])
        while asked and asked[0].last_frame <= numbers[end - 1]:
            each = asked.pop(0)
            yield each.place, _logits(stream, each)
        begin = end
    while stream.due >= _STEPS_AT_ONCE:
        run_due([stream], _STEPS_AT_ONCE)


def _logits(stream: GazeStream, asked: _Asked) -> list[float]:
    """Return the logits of a question's answers as of the end of its clip."""
    question, processor = asked.question, stream.processor
    prompt, answers = question.prompt(processor.prompt_style)
    snap_s = processor.snap_s if stream.has_gaze and question.snapped else 0.0
    stream.wait(asked.end_s)
    while run_due([stream], _STEPS_AT_ONCE):
        pass
    answer = stream.ask_prompt(prompt, {each: each for each in answers}, time_s=asked.end_s, snap_s=snap_s)
    return [answer.logits[each] for each in answers]
