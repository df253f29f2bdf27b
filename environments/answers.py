"""Final answers: where a solution states one, and when two are the same.

This is plain text and exact numbers, enough for word problems and GSM8K and cautious elsewhere:
two answers that only mathematics could tell equal (``1/2`` and ``\\frac{1}{2}`` are told equal,
``x(x+1)`` and ``x^2+x`` are not) count as different, never the other way round.
"""

from __future__ import annotations

import re
from fractions import Fraction

from environments.competition_math import last_boxed

# Possessive, so that a flood of blanks costs no more than its length.
_STATED = re.compile(r"answer\s*+(?:is\b\s*+:?|:)\s*+(?=\S)", re.IGNORECASE)
_FRACTION = re.compile(r"^(-?)\\[dt]?frac\{(-?\d{1,50})\}\{(\d{1,50})\}$")
_NUMBER = re.compile(r"^[-+]?(?:\d{1,50}(?:\.\d{1,50})?|\.\d{1,50})(?:/\d{1,50})?$")


def stated_answer(text: str) -> str | None:
    """The final answer that `text` states last, or None if it states none.

    Looked for, in this order: ``\\boxed{...}``, a last line ``#### ...`` (anywhere else that is a
    heading), and the words "answer is". A number is not an answer merely for standing last.
    """
    if (boxed := last_boxed(text)) is not None:
        return boxed.strip() or None
    last_line = text.rstrip().rpartition("\n")[2]
    if last_line.startswith("####") and (answer := last_line[4:].strip()):
        return answer
    if stated := list(_STATED.finditer(text)):
        rest = text[stated[-1].end() :].partition("\n")[0]
        return rest.strip().rstrip(".").strip(" $*") or None
    return None


def same_answer(answer: str | None, gold: str | None) -> bool:
    """Whether two final answers are the same number, or else the same text.

    Numbers are compared exactly, as fractions: 0.5, 1/2 and \\frac{1}{2} are equal. Thousands
    commas, a currency or percent sign and a unit-free ``\\text{...}`` wrapper do not matter. None
    equals nothing, not even None.
    """
    if answer is None or gold is None:
        return False
    left, right = _plain(answer), _plain(gold)
    if not left or not right:
        return False
    if left == right:
        return True
    left_number, right_number = _number(left), _number(right)
    return left_number is not None and left_number == right_number


def is_number(answer: str) -> bool:
    """Whether `same_answer` takes it for a number: then it settles whether it equals another."""
    return _number(_plain(answer)) is not None


def _plain(answer: str) -> str:
    answer = re.sub(r"\\text\{([^{}]*)\}", r"\1", answer.strip())
    answer = answer.replace("\\!", "").replace("\\$", "").replace("\\%", "%")
    answer = answer.strip("$ ").rstrip("$ .")  # a full stop behind; one in front is a decimal point
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    # Between digits a space counts: 1 1/2 is not 11/2.
    answer = re.sub(r"(?<!\d) | (?!\d)", "", " ".join(answer.split()))
    return answer.removesuffix("%").lower()


def _number(text: str) -> Fraction | None:
    if found := _FRACTION.match(text):
        sign, top, bottom = found.groups()
        text = (
            f"{sign}{top}/{bottom}" if not (sign and top.startswith("-")) else f"{top[1:]}/{bottom}"
        )
    if not _NUMBER.match(text):
        return None
    try:
        top, _, bottom = text.partition("/")
        return Fraction(top) / (Fraction(bottom) if bottom else 1)
    except ZeroDivisionError:
        return None
