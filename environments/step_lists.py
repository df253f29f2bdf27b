"""Reads the steps that a column holds: a list of texts, of objects or of messages, or one text.

Steps that are labelled wrong, and all steps after them, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from environments.chats import Turn, conversation, turns_of
from environments.reading import NO_STEPS, NOT_TEXT, ExpertRow, Row, UnusableRowError, text_of
from environments.types import Step

_TEXTS = ("action", "text", "content", "step")
_RATINGS = ("rating", "label", "correct", "is_correct")
_WRONG = ("-", "wrong", "incorrect", "false", "bad", "negative")
_RIGHT = ("+", "right", "correct", "true", "good", "positive", "neutral")


def with_steps(row: Row, problem: str, column: str) -> ExpertRow:
    """Returns a row's solution from the steps in a column; steps that are one text are to be cut.

    Messages are read as a conversation about the problem. The labels of steps are in the steps, or
    in a list `labels` beside them.

    Raises UnusableRowError if the column holds no steps.
    """
    value = row.get(column)
    if isinstance(value, str):
        return ExpertRow(problem, (Step(text_of(row, column, missing=NO_STEPS)),), whole=True)
    steps = _list_of(row, column)
    if steps and all(map(_is_message, steps)):
        return conversation([Turn("user", problem), *turns_of(steps, column)])
    labels = row.get("labels")
    if not isinstance(labels, list | tuple):
        labels = [_label_of(step) for step in steps]
    if len(labels) != len(steps):
        raise UnusableRowError("not as many labels as steps")
    right = right_steps(labels)
    return ExpertRow(problem, tuple(map(_step_of, steps[:right])), complete=right == len(steps))


def steps_of(row: Row, column: str) -> tuple[Step, ...]:
    """Returns the list of steps in a column.

    A step is a text, or an object with its text in `action`, `text`, `content` or `step`, and
    possibly a `thought` and an `observation`.

    Raises UnusableRowError if the column holds no such list.
    """
    return tuple(map(_step_of, _list_of(row, column)))


def right_steps(labels: Sequence[object]) -> int:
    """Returns how many steps come before the first one that is labelled wrong.

    A label is a boolean, a score from 0 to 1 (wrong below .5; PRM800K's -1 too), a word such as
    "correct" or "-", or None for a step without a label.
    """
    return next((i for i, label in enumerate(labels) if _is_wrong(label)), len(labels))


def _is_wrong(label: object) -> bool:
    if label is None:
        return False
    if isinstance(label, bool | int | float):
        return label < 0.5
    word = str(label).strip().lower()
    if word not in (*_WRONG, *_RIGHT):
        raise UnusableRowError(f"a step's label that is not understood ({word[:20]})")
    return word in _WRONG


def _label_of(step: object) -> object:
    """Returns the label that a step's object holds; None if it has none."""
    if not isinstance(step, Mapping):
        return None
    rating = step.get("rating")
    if isinstance(rating, int | float):
        return rating >= 0  # 0 is PRM800K's "neutral"
    return next((step[key] for key in _RATINGS if step.get(key) is not None), None)


def _is_message(step: object) -> bool:
    return isinstance(step, Mapping) and bool(step.keys() & {"role", "from"})


def _list_of(row: Row, column: str) -> Sequence[object]:
    value = row.get(column)
    if value is None:
        raise UnusableRowError(NO_STEPS)
    if not isinstance(value, list | tuple):
        raise UnusableRowError(f"{column} is not a list")
    return value


def _step_of(value: object) -> Step:
    if not isinstance(value, Mapping):
        return Step(_text(value))
    beside = [_text(value.get(key) or "") for key in ("thought", "observation")]
    if value.get("action_input") is not None:  # a call of a tool: one line of JSON, as in chats
        call = {key: value.get(key) for key in ("action", "action_input")}
        return Step(json.dumps(call, ensure_ascii=False, default=str), *beside)
    texts = [value[key] for key in _TEXTS if isinstance(value.get(key), str)]
    return Step(_text(texts[0] if texts else None), *beside)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UnusableRowError(f"a step is {NOT_TEXT}")
    return value
