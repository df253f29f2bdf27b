r"""Loads MATH: competition problems, solved in prose and LaTeX (Hendrycks et al., 2103.03874).

A step is a sentence. By default, drawings (``[asy]..[/asy]``) in a solution are removed before it
is cut: no sentence refers to the drawing's code, and a policy rewarded for code would learn to
draw. In a problem they stay, because the code may hold lengths that the text leaves out. The option
`drawings` changes this. The trajectory's metadata always note what was done.
"""

from __future__ import annotations

import re
from typing import Literal

from environments.answers import answer_in_words, boxed_answer
from environments.boxes import boxes_in
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

_DRAWING = re.compile(r"\[asy\](?:[^\[]|\[(?!asy\]|/asy\]))*+\[/asy\]")
_ALSO_ACCEPTED = re.compile(
    r"\balso (?:be )?(?:an? )?accept|\bEither \w+ is an? (?:accept|correct)", re.IGNORECASE
)
# Found in a problem that gives boxes its own meaning: "Let \boxed{N} mean ..."
_NOTATION = re.compile(r"\\boxed\s*\{\s*[^\s\\{}]")


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
    """Loads trajectories from rows with `problem` and `solution`; `level` and `type` are metadata.

    Args:
        path_or_hub: a local file or a hub name.
        report: the rows are counted in it.
        limit: stop after this many trajectories.
        split: the split of a hub data set.
        config: the configuration of a hub data set.
        drawings: "strip" removes drawings from solutions, "keep" leaves them in, "drop" drops every
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
    answer = gold_of(problem, solution)
    if drawings == "strip":
        # The blank line separates the text before the drawing from the text after it.
        solution = _DRAWING.sub("\n\n", solution)
    steps = merge_fragments(split_sentences(solution), min_chars)
    metadata: dict[str, object] = {key: row[key] for key in ("level", "type") if row.get(key)}
    if notes:
        metadata["notes"] = tuple(notes)
    return Trajectory(problem, tuple(map(Step, steps)), answer, SOURCE, metadata=metadata)


def gold_of(problem: str, solution: str) -> str | None:
    """Returns the answer that the solution states; if it accepts several, the first of them."""
    if _NOTATION.search(problem):
        stated = answer_in_words(solution)
        if stated is not None and not boxes_in(stated):
            return stated
    boxes = boxes_in(solution)
    if len(boxes) > 1 and _ALSO_ACCEPTED.search(solution, boxes[0].end):
        return boxes[0].content
    return boxed_answer(solution, problem)
