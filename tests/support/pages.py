"""The code on a page of the documentation: run in order, and held against what the page shows.

A block of ``python`` runs as a cell of a notebook does. A block of ``text`` right behind it is what
it prints, what its last expression is, or the error that it ends in, as doctest compares: ``...``
stands for anything.
"""

import ast
import contextlib
import doctest
import io
import linecache
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`([\w.]+)(?:\.<[^`]*)?`")
COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Cell:
    """A block of code, the line it begins on, and what the page says comes of it, if it does."""

    line: int
    code: str
    shown: str | None


def blocks(text: str) -> list[re.Match[str]]:
    """Every fenced block that names its language, in order."""
    return list(BLOCK.finditer(text))


def cells(text: str) -> list[Cell]:
    """The blocks of Python, each with the block of text that follows it at once."""
    fenced = blocks(text)
    made = []
    for block, behind in zip_longest(fenced, fenced[1:]):
        if block["language"] != "python":
            continue
        next_to = behind and not text[block.end() : behind.start()].strip()
        shown = behind["body"] if behind and next_to and behind["language"] == "text" else None
        made.append(Cell(text[: block.start()].count("\n") + 2, block["body"], shown))
    return made


def outcome(cell: Cell, names: dict[str, Any], where: str) -> str:
    """What a cell prints, its last value, and the error it ends in if the page shows one."""
    # nnsight reads the source of a trace, as Python does for a traceback, from where it is kept.
    linecache.cache[where] = (len(cell.code), None, cell.code.splitlines(keepends=True), where)
    tree = ast.parse(cell.code, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(compile(tree, where, "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), where, "eval"), names)
                if value is not None:
                    print(repr(value))  # noqa: T201 - as a notebook does
    except Exception as error:
        if not (cell.shown or "").startswith(f"{type(error).__name__}: "):
            raise
        return f"{said.getvalue()}{type(error).__name__}: {error}\n"
    return said.getvalue()


def run(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run a page's code with some names known; return all names after it.

    Raises
    ------
    AssertionError
        If something else comes of a cell than the page shows.
    """
    known = dict(names)
    text = page.read_text(encoding="utf-8")
    for cell in cells(text):
        got = outcome(cell, known, f"<{page}:{cell.line}>")
        if cell.shown is not None:
            same = doctest.OutputChecker().check_output(cell.shown, got, COMPARED)
            assert same, f"{page}:{cell.line}: the page shows\n{cell.shown}\nit gives\n{got}"
    return known


def names(page: Path) -> set[str]:
    """What a page names in code: whole, and by each part between dots."""
    found = NAME.findall(page.read_text(encoding="utf-8"))
    return {*found, *(part for name in found for part in name.split("."))}
