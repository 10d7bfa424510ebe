"""Write tables in Markdown and LaTeX."""

import re
from dataclasses import dataclass

NO_VALUE = "–"


@dataclass(frozen=True)
class Table:
    """A table of texts: each row has as many cells as the header."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def latex(self) -> str:
        """Return the table as LaTeX's `tabular`."""
        header, *rows = (" & ".join(map(_latex, line)) + r" \\" for line in [self.header, *self.rows])
        begin, rule, end = rf"\begin{{tabular}}{{{'l' * len(self.header)}}}", r"\hline", r"\end{tabular}"
        return "\n".join([begin, rule, header, rule, *rows, rule, end])


def _latex(text: str) -> str:
    """Return a text with the signs escaped that mean something in LaTeX."""
    signs = {"\\": r"\textbackslash{}", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    signs |= {sign: "\\" + sign for sign in "&%$#_{}"}
    return "".join(signs.get(sign, sign) for sign in text)


def percent(value: float | None, interval: list[float] | None = None) -> str:
    """Return a share from 0 to 1 in percent, with its interval (low, high) if there is one; empty for None."""
    if value is None:
        return ""
    text = f"{100 * value:.1f}"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def fill(document: str, tables: dict[str, Table]) -> str:
    """Return the document with each table between `<!-- name -->` and `<!-- /name -->`."""
    for name, table in tables.items():
        place = re.search(rf"<!-- {name} -->\n.*?<!-- /{name} -->", document, re.DOTALL)
        if place is None:
            raise ValueError(f"no place for the table {name!r}, expected <!-- {name} --> <!-- /{name} -->")
        filled = f"<!-- {name} -->\n{table.markdown()}\n<!-- /{name} -->"
        document = document.replace(place[0], filled)
    return document
