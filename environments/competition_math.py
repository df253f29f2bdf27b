r"""MATH: competition problems with solutions in prose and LaTeX (Hendrycks et al., 2103.03874).

A step is a sentence. Drawings (``[asy]..[/asy]``) in a solution are taken out before it is cut: no
sentence refers to the drawing's code, and a policy rewarded for code would learn to draw. In a
problem they stay, since there the code may hold lengths that the text leaves out. `drawings` sets
another course; either way the trajectory's metadata notes what was done.
"""

from __future__ import annotations

import re
from typing import Literal

from environments.reading import (
    NO_PROBLEM,
    NO_SOLUTION,
    Row,
    UnusableRowError,
    collect,
    read_rows,
    text_of,
)
from environments.splitting import merge_fragments, split_sentences
from environments.types import DataError, LoadReport, Step, Trajectory

# The original training split; MATH-500 is drawn from the test split.
HUB_NAME = "DigitalLearningGmbH/MATH-lighteval"
SOURCE = "competition_math"
HAS_DRAWING = "has a drawing"
DRAWING_REMOVED = "drawing taken out of the solution"
DRAWING_IN_PROBLEM = "drawing kept in the problem"
DRAWING_KEPT = "drawing kept in the solution"

Drawings = Literal["strip", "keep", "drop"]

_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s*")
_BARE = re.compile(r"[^\s${}]+")
_MARK = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{..}`` or ``\fbox{..}``, or None.

    Braces are walked, since answers nest them; escaped ones (``\{``) do not count. ``\boxed 5``
    gives what stands before the next white space or ``$``.
    """
    boxes = list(_BOX.finditer(text))
    closing = _closing_braces(text) if boxes else {}
    for box in reversed(boxes):
        start = box.end()
        if text.startswith("{", start):
            content = text[start + 1 : closing.get(start, start + 1)]
        else:
            bare = _BARE.match(text, start)
            content = bare.group().rstrip(".,;") if bare else ""
        if content.strip():
            return content.strip()
    return None


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace that is closed is closed; in one pass, since a policy may open thousands."""
    closing, opened = {}, []
    for mark in _MARK.finditer(text):
        if mark.group() == "{":
            opened.append(mark.start())
        elif mark.group() == "}" and opened:
            closing[opened.pop()] = mark.start()
    return closing


def load(
    path_or_hub: str | None = None,
    *,
    report: LoadReport,
    limit: int | None = None,
    split: str = "train",
    config: str | None = None,
    drawings: Drawings = "strip",
    min_chars: int = 12,
) -> list[Trajectory]:
    """Trajectories from rows with `problem` and `solution` (`level` and `type` go to metadata).

    Args:
        path_or_hub: a local file or a hub name.
        report: counted into.
        limit: stop after so many trajectories.
        split: the split of a hub data set.
        config: the configuration of a hub data set.
        drawings: "strip" takes drawings out of solutions, "keep" leaves them in, "drop" drops every
            row that has one in its problem or its solution.
        min_chars: sentences shorter than this are joined to a neighbour ("- OR -").

    Raises:
        DataError: the source cannot be read or has other columns, or an option is unknown.
    """
    if drawings not in ("strip", "keep", "drop"):
        raise DataError(f"drawings is {drawings!r}; it can be strip, keep or drop.")
    name = path_or_hub or HUB_NAME

    def build(row: Row) -> Trajectory:
        return _trajectory(row, drawings, min_chars)

    return collect(
        read_rows(name, split=split, config=config),
        build,
        name=name,
        columns=[["problem"], ["solution"]],
        report=report,
        limit=limit,
    )


def _trajectory(row: Row, drawings: Drawings, min_chars: int) -> Trajectory:
    problem = text_of(row, "problem", missing=NO_PROBLEM)
    solution = text_of(row, "solution", missing=NO_SOLUTION)
    notes: list[str] = []
    if _DRAWING.search(problem):
        notes.append(DRAWING_IN_PROBLEM)
    if _DRAWING.search(solution):
        notes.append(DRAWING_REMOVED if drawings == "strip" else DRAWING_KEPT)
    if notes and drawings == "drop":
        raise UnusableRowError(HAS_DRAWING)
    answer = last_boxed(solution)
    if drawings == "strip":
        # The blank line keeps the text before and after apart.
        solution = _DRAWING.sub("\n\n", solution)
    steps = merge_fragments(split_sentences(solution), min_chars)
    metadata: dict[str, object] = {key: row[key] for key in ("level", "type") if row.get(key)}
    if notes:
        metadata["notes"] = tuple(notes)
    return Trajectory(problem, tuple(map(Step, steps)), answer, SOURCE, metadata=metadata)
