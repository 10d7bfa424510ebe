"""Put questions to a model: the words of a prompt, and the answers that it offers."""

OPTION_LETTERS = "ABCDEFGH"


# `reference`: as the published GazeQwen code asks; `streamgaze`: as the benchmark does (streamgaze.md, 2.2 and 4.1).
PROMPT_STYLES = ("reference", "streamgaze")


def _checked_style(style: str) -> str:
    """Return the style. Raises ValueError for an unknown one."""
    if style not in PROMPT_STYLES:
        raise ValueError(f"prompt style {style!r}, expected one of {PROMPT_STYLES}")
    return style


def format_question(question: str, options, style: str = "reference") -> str:
    """
    Return the user turn of a multiple-choice question. `options` carry no letters: `["box", "knife"]`.

    Raises ValueError for fewer than 2 options, more than there are letters, or an unknown style.
    """
    if not 2 <= len(options) <= len(OPTION_LETTERS):
        raise ValueError(f"got {len(options)} options {list(options)}, expected 2 to {len(OPTION_LETTERS)}")
    lines = [f"{letter}. {option}" for letter, option in zip(OPTION_LETTERS, options, strict=False)]
    if _checked_style(style) == "reference":
        return "\n".join([f"Question: {question}", "Options:", *lines, "The best option is:"])
    if len(options) == 4:
        lines.append("Answer with nothing but the letter (A, B, C, or D) of the best option.")
    return "\n".join(["", f"Question: {question}", "Options:", *lines, "", "The best option is:"])


def format_alert(question: str, style: str = "reference") -> tuple[str, list[str]]:
    """Return the user turn of a proactive question at a test point, and the answers that it offers: yes first."""
    if _checked_style(style) == "reference":
        alert_question = f"{question} Based on the video so far, should the alert be triggered?"
        return format_question(alert_question, ("Yes", "No")), ["A", "B"]
    lines = [
        "You watch a video stream as it comes in.",
        question,
        "If what is asked for has been seen by now, answer Yes; otherwise, answer No.",
        "Answer with Yes or No alone.",
    ]
    return "\n".join(lines), ["Yes", "No"]


def chat_message(prompt: str, with_video: bool = True) -> list[dict]:
    """Return the conversation that asks `prompt` about one video, or, as a control, without it."""
    video = [{"type": "video"}] if with_video else []
    return [{"role": "user", "content": [*video, {"type": "text", "text": prompt}]}]
