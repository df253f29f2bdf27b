"""Finds the final answer that a text states, and decides whether two answers are the same.

This uses plain text and exact numbers only. That is enough for word problems and GSM8K. Elsewhere
it is cautious: ``1/2`` and ``\\frac{1}{2}`` are the same, but two answers that only mathematics
could prove equal (``x(x+1)`` and ``x^2+x``) count as different. Case matters in formulas only.
"""

from __future__ import annotations

import re
from fractions import Fraction

from environments.boxes import Box, boxes_in, name_of, together

LONGEST_ANSWER = 200
"""The most characters of a checked answer, unless the gold has more; MATH's longest has 77."""
# Possessive, so that the cost of a long run of blanks is linear in its length.
_STATED = re.compile(
    r"(?:\b(?:answers?+[*_]*+\s*+(?:(?:is|are|equals)\b\s*+:?|:)|ans[.:])[\s*_]*+"
    r"(?:(?:therefore|thus|then|simply|just|hence)\b,?\s*+)?+|(?-i:\bAnswer)[*_]*+\s*+(?=\$|\\[(\[]))"
    r"(?=\S)(?!$)",
    re.IGNORECASE,
)
_TAGGED = ("<answer>", "</answer>")
_AROUND = ' $*_`"“”'
_CALLED_ANSWER = re.compile(
    r"(?:\$([^$\n]{1,200})\$|\\\(([^\n]{1,200}?)\\\)|(?<![\w.\\])(-?\d[\d,.]{0,40}(?<=\d)))"
    r"[,*]* (?:is|are)(?: therefore| thus)? (?:our|the)(?: final| correct| desired)? answer\b"
)
_REGION = {r"\[": r"\]", r"\(": r"\)", "$$": "$$", "$": "$"}
_ASIDE = re.compile(
    r",?\s+\(?(?:as|which|since|because|so|where|when|assuming|meaning|hence|thus|i\.e\.)(?=[\s,])|"
    r"\.(?=\s+[^a-z\d\s]|\s*$)|<\|"
)
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mrs?|Ms|Dr|St|Prof|Jr|No)$")
_LONGEST_STATEMENT = 2000
_FRACTION = re.compile(r"^(-?)\\[dt]?frac\{(-?\d{1,50})\}\{(\d{1,50})\}$")
_NUMBER = re.compile(r"^[-+]?(?:\d{1,50}(?:\.\d{1,50})?|\.\d{1,50})(?:/\d{1,50})?$")
# Signs of operations; a hyphen between words is none.
_IN_FORMULA = re.compile(r"[+*/^=_<>|]|\\[A-Za-z]|(?<![^\W\d_]{2})-|-(?![^\W\d_]{2})")
_TERM = re.compile(r"[+-]?[^+-]+")


def stated_answer(text: str, problem: str = "") -> str | None:
    r"""Returns the final answer that `text` states last, or None if it states none.

    The forms are tried in this order: ``\boxed{...}``, a last line ``#### ...`` (elsewhere it is a
    heading), ``<answer>...</answer>``, and the words "answer is" or "is our answer". A number is
    no answer just because it stands last. Boxes that belong together are one answer, with commas
    between them; the `problem` may ask for several answers (`environments.boxes.together`).
    """
    if (boxed := boxed_answer(text, problem)) is not None:
        return boxed
    last_line = text.rstrip().rpartition("\n")[2]
    if (
        last_line.startswith("####")
        and (answer := last_line.strip("# *_"))
        and not _STATED.search(answer)
    ):
        return answer
    end = text.rfind(_TAGGED[1])
    start = text.rfind(_TAGGED[0], 0, max(end, 0))
    if start >= 0 and (tagged := text[start + len(_TAGGED[0]) : end].strip()):
        return answer_in_words(tagged) or tagged
    return answer_in_words(text)


def boxed_answer(text: str, problem: str = "") -> str | None:
    r"""Returns the final answer in the boxes of `text`, or None if no box holds one."""
    boxes = boxes_in(text)
    if not boxes:
        return None
    chosen: list[Box] = []
    for box in together(text, boxes, problem):
        if not any(_same_terms(box.content, other.content) for other in chosen):
            chosen.append(box)
    names = [name_of(text, box) for box in chosen]
    if len(chosen) > 1 and all(names) and len(set(names)) == len(names):
        return ", ".join(f"{name} = {box.content}" for name, box in zip(names, chosen, strict=True))
    return ", ".join(box.content for box in chosen)


def answer_in_words(text: str) -> str | None:
    """Returns the text after the last "answer is", or else before the last "is our answer"."""
    start = -1
    for stated in _STATED.finditer(text):
        start = stated.end()
    if start >= 0:
        return _statement(text[start : start + _LONGEST_STATEMENT])
    called = [next(filter(None, match.groups())) for match in _CALLED_ANSWER.finditer(text)]
    return (called[-1].strip() or None) if called else None


def _statement(text: str) -> str | None:
    """Returns the beginning of `text` up to the end of its sentence or line, without markup."""
    opener = next((mark for mark in _REGION if text.startswith(mark)), None)
    if opener is not None:
        closing = text.find(_REGION[opener], len(opener))
        inside = text[len(opener) : closing]
        if closing > 0 and "\n\n" not in inside and (opener in (r"\[", "$$") or "\n" not in inside):
            rest = text[closing + len(_REGION[opener]) :]
            if not rest.strip(" .*_") or rest.lstrip(" *_").startswith(("\n", ". ", ".\n")):
                return inside.strip() or None
    line = text.partition("\n")[0]
    end = len(line)
    for match in _ASIDE.finditer(line):
        before = line[: match.start()]
        in_math = before.count("$") % 2 or before.count("{") > before.count("}")
        if not in_math and not (match[0] == "." and _ends_in_abbreviation(before)):
            end = match.start()
            break
    return line[:end].strip().rstrip(".").strip(_AROUND) or None


def _ends_in_abbreviation(before: str) -> bool:
    # A single letter is a choice: "The answer is B. I hope ..."
    return len(before.strip(" $*_")) > 1 and _ABBREVIATION.search(before) is not None


def same_answer(answer: str | None, gold: str | None) -> bool:
    """Returns whether two final answers are the same number, or else the same text.

    Numbers are compared exactly, as fractions: 0.5, 1/2 and \\frac{1}{2} are equal. Thousands
    commas, a dollar or percent sign and a ``\\text{...}`` wrapper do not matter. Case matters in
    formulas only. None equals nothing, not even None.
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
    """Returns whether `same_answer` can decide if the answer equals another number.

    It cannot for a percentage: 50% may mean 50 or 1/2.
    """
    return "%" not in answer and _number(_plain(answer)) is not None


def may_be_rounded(answer: str, other: str) -> bool:
    """Returns whether one of two numbers is the other, rounded to one or more decimals."""
    numbers = [_number(_plain(text)) for text in (answer, other)]
    if None in numbers:
        return False
    decimals = [
        len(text.partition(".")[2]) if "/" not in text and "\\" not in text else 0
        for text in map(_plain, (answer, other))
    ]
    left, right = numbers
    distance = abs(left - right)  # type: ignore[operator]
    return any(d > 0 and distance <= Fraction(1, 2 * 10**d) for d in decimals)


def _same_terms(left: str, right: str) -> bool:
    """Returns whether two boxes hold the same answer; ``x+11`` and ``11+x`` are the same."""
    if same_answer(left, right):
        return True
    sides = []
    for side in (left, right):
        terms = _TERM.findall("".join(side.split())[:_LONGEST_STATEMENT])
        sides.append(sorted(term if term[0] in "+-" else f"+{term}" for term in terms))
    return sides[0] == sides[1] and not set("()[],{}") & set(left)


def _plain(answer: str) -> str:
    answer = re.sub(r"\\text\{([^{}]*)\}", r"\1", answer.strip())
    answer = answer.replace("\\!", "").replace("\\$", "").replace("\\%", "%")
    answer = answer.strip("$ ").rstrip("$ .")  # a last full stop; a first one is a decimal point
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    # A space between digits is kept: 1 1/2 is not 11/2.
    answer = re.sub(r"(?<!\d) | (?!\d)", "", " ".join(answer.split()))
    answer = answer.removesuffix("%")
    # In a formula R and r are two variables; in words, and in a choice, case does not matter.
    return answer if _IN_FORMULA.search(answer) else answer.lower()


def _number(text: str) -> Fraction | None:
    if match := _FRACTION.match(text):
        sign, top, bottom = match.groups()
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
