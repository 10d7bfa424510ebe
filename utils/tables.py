"""Tables in Markdown, LaTeX and CSV."""

from dataclasses import dataclass

NO_VALUE = "–"


@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def latex(self) -> str:
        header, *rows = (" & ".join(map(_latex, line)) + r" \\" for line in [self.header, *self.rows])
        begin, rule, end = rf"\begin{{tabular}}{{{'l' * len(self.header)}}}", r"\hline", r"\end{tabular}"
        return "\n".join([begin, rule, header, rule, *rows, rule, end])


def _latex(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    signs |= {sign: "\\" + sign for sign in "&%$#_{}"}
    return "".join(signs.get(sign, sign) for sign in text)


def percent(value: float | None, interval: list[float] | None = None) -> str:
    if value is None:
        return ""
    shown = f"{100 * value:.1f}"
    return shown if interval is None else f"{shown} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
