"""Tell data apart by their content: an evaluation or a run that goes on has to see what it saw before."""

import hashlib
import json
from collections.abc import Sequence

from gazeqwen.questions.question import Question
from gazeqwen.utils.files import digest_of_file


def digest_of_data(questions: Sequence[Question]) -> dict[str, str]:
    """
    Return a count and a digest, as text, of `questions` (in their order, without gaze), `gaze` (the scanpaths of their
    videos) and `videos` (the files' content, see `digest_of_file`); no place where a file lies is among them.
    """
    texts, scanpaths, videos = [], {}, {}
    for question in questions:
        answer = [question.answer, question.answer_text, question.order, question.source]
        texts.append([question.key, question.start_s, *answer])
        if question.video_name in videos:
            continue
        videos[question.video_name] = digest_of_file(question.video)
        if question.scanpath is not None:
            scanpath = question.scanpath
            scanpaths[question.video_name] = [scanpath.table.tolist(), scanpath.ids.tolist()]
    return {
        name: f"{len(content)}, {hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}"
        for name, content in (("questions", texts), ("gaze", scanpaths), ("videos", videos))
    }
