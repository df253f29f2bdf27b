"""Loads GSM8K: grade-school word problems, one line per step (Cobbe et al., arXiv 2110.14168).

The calculator marks ``<<48/2=24>>`` are removed: they were written for a tool that the policy does
not have. The last line, ``#### 24``, is the answer and not a step. A policy that is to *solve*
problems step by step has to state an answer, so `answer_step` adds ``The answer is 24.`` as a step.
"""

from __future__ import annotations

import re
from functools import partial

from environments.reading import (
    NO_PROBLEM,
    NO_SOLUTION,
    Row,
    UnusableRowError,
    collect,
    read_rows,
    text_of,
)
from environments.splitting import split_lines
from environments.types import LoadReport, Step, Trajectory

HUB_NAME = "openai/gsm8k"
SOURCE = "gsm8k"
NO_ANSWER = "no #### answer"

_MARK = re.compile(r"<<[^<>\n]*>>")
_ANSWER = re.compile(r"^####(?!.*^####)(.*)\Z", re.MULTILINE | re.DOTALL)  # the last ones


def load(
    path_or_hub: str | None = None,
    *,
    report: LoadReport,
    limit: int | None = None,
    split: str = "train",
    config: str = "main",
    answer_step: bool = False,
) -> list[Trajectory]:
    """Loads trajectories from rows with `question` and `answer`.

    With `answer_step`, every solution ends with a step that states its answer. The answer is
    written without thousands separators, as GSM8K's own checker reads it.

    Raises:
        DataError: the source cannot be read or has other columns.
    """
    name = path_or_hub or HUB_NAME
    return collect(
        read_rows(name, split=split, config=config),
        partial(_trajectory, answer_step=answer_step),
        name=name,
        columns=[["question"], ["answer"]],
        report=report,
        limit=limit,
    )


def without_marks(text: str) -> str:
    """Returns the text without GSM8K's calculator marks, such as `<<2+2=4>>`."""
    return _MARK.sub("", text)


def cleaned(solution: str) -> str:
    """Returns a solution in GSM8K's form in plain words; any other one as it is.

    Calculator marks are taken out, and a last `#### 24` becomes `The answer is 24.`
    """
    stated = _ANSWER.search(solution)
    if stated is None or not stated[1].strip() or "\n" in stated[1].strip():
        return solution
    return (
        f"{without_marks(solution[: stated.start()]).rstrip()}\nThe answer is {stated[1].strip()}."
    )


def _trajectory(row: Row, *, answer_step: bool) -> Trajectory:
    problem = text_of(row, "question", missing=NO_PROBLEM)
    solution = text_of(row, "answer", missing=NO_SOLUTION)
    stated = _ANSWER.search(solution)
    if stated is None or not stated[1].strip():
        raise UnusableRowError(NO_ANSWER)
    steps = split_lines(without_marks(solution[: stated.start()]))
    answer = re.sub(r"(?<=\d),(?=\d)", "", stated[1].strip())
    if answer_step:
        steps = [*steps, f"The answer is {answer}."]
    return Trajectory(problem, tuple(map(Step, steps)), answer, SOURCE)
