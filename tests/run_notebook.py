"""
Run a notebook as Jupyter does, without it: `python run_notebook.py NOTEBOOK OUT`. OUT gets, as JSON, the CPU seconds,
and for each code cell what it `printed`, and the `size` in pixels of the picture that it shows, where it shows one.
"""

import ast
import io
import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path


def run_cell(source: str, name: str, namespace: dict) -> dict:
    """Run a cell's code; its last line, where that is an expression, is what it shows."""
    body = ast.parse(source).body
    shown = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), name, "exec"), namespace)
        value = eval(compile(shown, name, "eval"), namespace) if shown else None
    return {"printed": printed.getvalue(), "size": getattr(value, "size", None)}


def main(notebook: str, out: str) -> None:
    begin_s, namespace = time.process_time(), {"__name__": "__main__"}
    cells = [cell for cell in json.loads(Path(notebook).read_text())["cells"] if cell["cell_type"] == "code"]
    results = [
        run_cell("".join(cell["source"]), f"{Path(notebook).name}, code cell {number}", namespace)
        for number, cell in enumerate(cells, 1)
    ]
    Path(out).write_text(json.dumps({"cpu_s": time.process_time() - begin_s, "cells": results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
