"""Reads solutions with steps labelled right or wrong; keeps those before the first wrong one."""

from __future__ import annotations

from collections.abc import Mapping

from environments.chats import question_of
from environments.reading import (
    NO_PROBLEM,
    ExpertRow,
    Row,
    UnusableRowError,
    steps_of,
    text_of,
)
from environments.types import Step

SHEPHERD_MARK = "ки"
"""Stands after each step of Math-Shepherd's `input`; `label` has `+` or `-` in its place."""


def stepwise(row: Row) -> ExpertRow:
    """Reads TRL's stepwise supervision: `prompt`, `completions`, and a label for each of them."""
    problem = question_of(row, "prompt")
    steps, labels = row.get("completions"), row.get("labels")
    if not isinstance(steps, list | tuple) or not all(isinstance(step, str) for step in steps):
        raise UnusableRowError("completions is not a list of texts")
    if not isinstance(labels, list | tuple) or len(labels) != len(steps):
        raise UnusableRowError("not as many labels as completions")
    good = next((i for i, label in enumerate(labels) if not _is_right(label)), len(labels))
    return ExpertRow(problem, tuple(map(Step, steps[:good])), complete=good == len(steps))


def _is_right(label: object) -> bool:
    """Returns whether a label, a boolean or a score from 0 to 1, calls a step right."""
    if not isinstance(label, bool | int | float):
        raise UnusableRowError("a label that is no boolean and no number")
    return label >= 0.5


def process_bench(row: Row) -> ExpertRow:
    """Reads ProcessBench's rows, whose `label` is the index of the first wrong step, or -1."""
    problem, steps = text_of(row, "problem", missing=NO_PROBLEM), steps_of(row, "steps")
    label = row.get("label")
    if type(label) is not int or not -1 <= label < len(steps):
        raise UnusableRowError("label is not the index of a step and not -1")
    right = steps if label == -1 else steps[:label]
    return ExpertRow(problem, right, complete=label == -1 and row["final_answer_correct"] is True)


def prm800k(row: Row) -> ExpertRow:
    """Reads PRM800K's rows: of each step, the completion that the labeller went on with.

    The solution ends before a step for which none was chosen or the chosen one is rated -1.
    """
    question, label = row.get("question"), row.get("label")
    if not isinstance(question, Mapping) or not isinstance(label, Mapping):
        raise UnusableRowError("question and label are not objects")
    offered, answer = label.get("steps"), question.get("ground_truth_answer")
    if not isinstance(offered, list | tuple):
        raise UnusableRowError("label.steps is not a list")
    chosen = [_chosen(step) for step in offered]
    good = chosen.index(None) if None in chosen else len(chosen)
    return ExpertRow(
        text_of(question, "problem", missing=NO_PROBLEM),
        tuple(Step(text) for text in chosen[:good] if text is not None),
        answer=answer if isinstance(answer, str) else None,
        complete=good == len(chosen) and label.get("finish_reason") == "solution",
    )


def _chosen(step: object) -> str | None:
    """Returns the text that a labeller of PRM800K chose for a step; None if no right one."""
    if not isinstance(step, Mapping):
        raise UnusableRowError("an entry of label.steps is not an object")
    own, offered, at = (
        step.get(k) for k in ("human_completion", "completions", "chosen_completion")
    )
    if isinstance(own, Mapping):
        own = own.get("text")
    if isinstance(own, str):
        return own
    if not isinstance(offered, list | tuple) or type(at) is not int or not 0 <= at < len(offered):
        return None
    completion = offered[at] if isinstance(offered[at], Mapping) else {}
    rating, text = completion.get("rating"), completion.get("text")
    if not isinstance(text, str) or not isinstance(rating, int | float) or rating < 0:
        return None
    return text


def shepherd(row: Row) -> ExpertRow:
    """Reads Math-Shepherd's rows: the problem and its steps in one text, the labels in another."""
    given = text_of(row, "input", missing=NO_PROBLEM)
    labelled = text_of(row, "label", missing="no labels")
    begins = given.find("Step 1:")
    if begins < 0:
        raise UnusableRowError("input without `Step 1:`")
    *pieces, _ = given.split(SHEPHERD_MARK)
    steps: list[Step] = []
    at = 0
    for number, piece in enumerate(pieces, start=1):
        sign = labelled[at + len(piece) : at + len(piece) + 1]
        if labelled[at : at + len(piece)] != piece or sign not in ("+", "-"):
            raise UnusableRowError("label is not input with + or - for each mark")
        if sign == "-":
            break
        text = piece[begins:] if number == 1 else piece
        steps.append(Step(text.strip().removeprefix(f"Step {number}:").strip()))
        at += len(piece) + 1
    return ExpertRow(given[:begins].strip(), tuple(steps), complete=len(steps) == len(pieces))
