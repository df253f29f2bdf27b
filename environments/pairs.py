"""Reads rows with a problem in one column, and its solution or steps in another.

Different tools call these columns differently. The first row decides which column is the problem.
Each row then uses the first of its columns that holds steps or a solution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from environments.chats import Turn, conversation, question_of, thought_beside, turns_of
from environments.reading import NO_SOLUTION, ExpertRow, Row, UnusableRowError, answer_of, text_of
from environments.step_lists import with_steps

ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth")
"""Columns that may hold the final answer beside a solution; the first one with a value wins."""

GIVEN_AWAY = "the problem contains the solution"

_PROBLEM = ("problem", "question", "query", "instruction", "prompt", "input")
_BESIDE = ("input", "context")  # more of the problem
_OPTIONS = ("options", "choices")
_STEPS = ("steps", "reasoning_steps", "solution_steps", "trajectory")
_SOLUTION = (
    "solution", "generated_solution", "response", "output", "completion", "rationale",
)  # fmt: skip
# A solution, if the answer is a final answer only. Beside a longer answer they are remarks on it.
_REMARKS = ("explanation", "reasoning", "cot")
_SHORTEST_COPY = 40  # a shorter solution may stand in its problem by chance


class Pair(NamedTuple):
    """The columns of a file's first row that hold the problem and its steps or solution.

    Attributes:
        problem: the column with the problem.
        beside: columns with more of the problem.
        solution: the column with the steps or the solution.
    """

    problem: str
    beside: tuple[str, ...]
    solution: str

    @property
    def reading(self) -> str:
        """Returns how these columns are read, in a few words."""
        what = "steps are" if self.solution in _STEPS else "solution"
        added = "".join(f" with `{column}`" for column in self.beside[:1])
        return f"the problem is `{self.problem}`{added}, the {what} `{self.solution}`"

    @property
    def columns(self) -> list[str]:
        """Returns all columns that a row of the file may use."""
        return [self.problem, *self.beside, *_STEPS, *_SOLUTION, self.solution, "history"]

    def read(self, row: Row) -> ExpertRow:
        """Returns the solution in a row; raises UnusableRowError if there is none."""
        solution = _held_by(row)
        if solution is None:
            raise UnusableRowError(NO_SOLUTION)
        prompt, given = row.get(self.problem), row.get(solution)
        if solution in _STEPS or _is_texts(given):
            return with_steps(row, self._problem(row), solution)
        if isinstance(prompt, list | tuple):
            turns = turns_of(prompt, self.problem)
        else:
            turns = [*_earlier(row.get("history")), Turn("user", self._problem(row))]
        if isinstance(given, list | tuple):
            return conversation([*turns, *turns_of(given, solution)])
        text = text_of(row, solution, missing=NO_SOLUTION)
        expert_row = conversation([*turns, Turn("assistant", text, thought_beside(row, solution))])
        if len(text.strip()) >= _SHORTEST_COPY and text.strip() in expert_row.problem:
            raise UnusableRowError(GIVEN_AWAY)
        return expert_row

    def _problem(self, row: Row) -> str:
        """Returns the problem's text, with its input or context, and its options."""
        problem = question_of(row, self.problem)
        more = [str(row[column]) for column in self.beside if _is_text(row.get(column))]
        options = [option for option in _options(row) if option not in problem]
        return "\n".join([problem, *more, *options])


def pair_of(row: Row) -> Pair | None:
    """Returns the columns of a file's first row; None if it has no problem with a solution."""
    solution = _held_by(row)
    problem = next((column for column in _PROBLEM if column in row), None)
    if problem is None and solution in _STEPS and "task" in row:
        problem = "task"
    if problem is None or solution is None:
        return None
    beside = tuple(column for column in _BESIDE if column in row and column != problem)
    return Pair(problem, beside, solution)


def final_answer(row: Row, columns: Sequence[str]) -> str | None:
    """Returns the first final answer in these columns; a text of several sentences is none."""
    for column in columns:
        if not _explains(row.get(column)) and (answer := answer_of(row, column)) is not None:
            return answer
    return None


def is_gsm8k(row: Row) -> bool:
    """Returns whether a row is one of GSM8K's own, whose solution ends in `#### 18`."""
    answer = row.get("answer")
    return "question" in row and isinstance(answer, str) and "\n#### " in answer


def _held_by(row: Row) -> str | None:
    """Returns the column of a row that holds steps or a solution; None if none does."""
    for column in (*_STEPS, *_SOLUTION):
        value = row.get(column)
        if (isinstance(value, list | tuple) and value) or _is_text(value):
            return column
    if _explains(row.get("answer")):
        return None if is_gsm8k(row) else "answer"
    remarks = (
        column for column in _REMARKS if _explains(row.get(column)) or _is_texts(row.get(column))
    )
    remark = next(remarks, None)
    if remark is None and thought_beside(row, "content") and _is_text(row.get("content")):
        return "content"
    return remark


def _is_texts(value: object) -> bool:
    """Returns whether a value is a list of texts; in a solution's place it holds the steps."""
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_text, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _explains(answer: object) -> bool:
    """Returns whether an answer is more than a final answer: of several lines or sentences."""
    return isinstance(answer, str) and any(mark in answer.strip() for mark in ("\n", ". "))


def _options(row: Row) -> list[str]:
    """Returns the options of a question with several, as lines such as "A) 5"."""
    given = next((row[column] for column in _OPTIONS if row.get(column)), None)
    if isinstance(given, Mapping) and {"text", "label"} <= given.keys():  # ARC's columns
        given = dict(zip(given["label"], given["text"], strict=False))
    if given is None and {"A", "B"} <= row.keys():  # MMLU's columns
        given = {letter: row[letter] for letter in "ABCDEFGH" if row.get(letter) is not None}
    if isinstance(given, Mapping):
        return [f"{name}) {text}" for name, text in given.items()]
    if not isinstance(given, list | tuple):
        return []
    lettered = any(str(option).strip()[1:3].strip()[:1] in (")", ".", ":") for option in given)
    if lettered:
        return [str(option) for option in given]
    return [f"{chr(ord('A') + i)}) {option}" for i, option in enumerate(given)]


def _earlier(value: object) -> list[Turn]:
    """Returns LLaMA-Factory's `history`: earlier questions with their answers."""
    if not isinstance(value, list | tuple):
        return []
    turns = []
    for pair in value:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            turns += [Turn("user", str(pair[0])), Turn("assistant", str(pair[1]))]
    return turns
