"""The StreamGaze benchmark (arXiv 2512.01707): tasks, clip windows, prompts, release -> samples, split, scores."""

OPTION_LETTERS = "ABCDEFGH"


def format_question(question: str, options: list[str]) -> str:
    """The user turn of a multiple-choice question. `options` carry no letters: `["box", "knife"]`."""
    lines = [f"{letter}. {option}" for letter, option in zip(OPTION_LETTERS, options, strict=False)]
    return "\n".join([f"Question: {question}", "Options:", *lines, "The best option is:"])
