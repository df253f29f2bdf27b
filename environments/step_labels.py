"""Reads solutions with steps labelled right or wrong; keeps those before the first wrong one."""

from __future__ import annotations

from collections.abc import Mapping

from environments.chats import question_of
from environments.gsm8k import without_marks
from environments.reading import (
    NO_PROBLEM,
    ExpertRow,
    Row,
    UnusableRowError,
    text_of,
)
from environments.step_lists import right_steps, steps_of
from environments.types import Step

NO_INDEX = "label is not the index of a step and not -1"
BAD_PROBLEM = "labelled as a bad problem"

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
    good = right_steps(labels)
    return ExpertRow(problem, tuple(map(Step, steps[:good])), complete=good == len(steps))


def process_bench(row: Row) -> ExpertRow:
    """Reads ProcessBench's rows, whose `label` is the index of the first wrong step, or -1."""
    problem, steps = text_of(row, "problem", missing=NO_PROBLEM), steps_of(row, "steps")
    label = row.get("label")
    if not isinstance(label, int | float | str) or isinstance(label, bool):
        raise UnusableRowError(NO_INDEX)
    try:
        first_wrong = float(label)  # tables have 2.0 or "2" for 2
    except ValueError:
        raise UnusableRowError(NO_INDEX) from None
    if first_wrong not in range(-1, len(steps)):
        raise UnusableRowError(NO_INDEX)
    if first_wrong >= 0:
        return ExpertRow(problem, steps[: int(first_wrong)], complete=False)
    ends_right = str(row.get("final_answer_correct")).lower() == "true"
    return ExpertRow(problem, steps, complete=ends_right)


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
    if label.get("finish_reason") == "bad_problem":
        raise UnusableRowError(BAD_PROBLEM)
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
    *pieces, rest = given.split(SHEPHERD_MARK)
    begins = pieces[0].rfind("Step 1:") if pieces else -1
    if begins < 0:
        raise UnusableRowError("input without `Step 1:`")
    steps: list[Step] = []
    at = 0
    for number, piece in enumerate(pieces, start=1):
        sign = labelled[at + len(piece) : at + len(piece) + 1]
        if labelled[at : at + len(piece)] != piece or sign not in ("+", "-"):
            raise UnusableRowError("label is not input with + or - for each mark")
        if sign == "-":
            break
        text = piece[begins:] if number == 1 else piece
        text = without_marks(text).strip().removeprefix(f"Step {number}:").strip()
        steps.append(Step(text))
        at += len(piece) + 1
    complete = len(steps) == len(pieces) and not rest.strip()
    return ExpertRow(given[:begins].strip(), tuple(steps), complete=complete)
