r"""Splits relations: finds those that only name a value, turns inequalities into intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence

_OPENERS, _CLOSERS = frozenset(["(", "[", "{", "\\{"]), frozenset([")", "]", "}", "\\}"])
_MARK = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}
RELATIONS = frozenset([*FLIPPED, "\\in"])
_INDEX = r"(?:_(?:\w|\{\w+\}))?"
_NAME = re.compile(
    rf"(?:[A-Za-z]{{1,10}}|\\[a-z]+){_INDEX}'{{0,2}}(?:\^\{{-1\}})? ?"
    r"(?:\((?:[A-Za-z]|-?\d+(?:\.\d+)?)(?:,[A-Za-z])*\))?"
)
"""x, x_1, f(x), f(2), f'(2), f^{-1}(3)"""
_FIGURE = re.compile(
    r"\| ?(?:[zw]|[A-Z]{2}|\\over[a-z]+\{[A-Z]{2}\}) ?\||\\over[a-z]+\{[A-Z]{2}\}|\[[A-Z]{3,6}\]|"
    r"m? ?\\(?:measured)?(?:angle|triangle) ?[A-Z]{1,3}|\\det ?[A-Z]|\\\|.{1,20}\\\||"
    r"\\text ?\{(?!.*\b(?:not?|than|least|most|about)\b)[A-Za-z ]{1,30}\}|"
    r"\\(?:sin|cos|tan) ?(?:[A-Za-z]|\\[a-z]+|\(?[A-Z]{1,3}\)?)"
)
r"""|AB|, \overline{AB}, [ABC], \angle ABC, \triangle ABC, \text{Area}, and the like"""
_APPLIED = re.compile(
    r"(?:[fghFGHPEdpq]|\\mathbb\{[PE]\}|\\text ?\{[A-Za-z]{2,10}\}|"
    r"\\(?:Pr|gcd|lcm|det|deg|max|min)|[A-Za-z]{3,10})"
    rf"{_INDEX}'{{0,2}}(?:\^\{{-1\}})? ?(?=[(\[])"
)
"""Names after which a bracket is an argument: f(2), P(X=2); but x(x+1) is a product"""
_SUM = re.compile(r"[A-Za-z](?: ?[-+] ?[A-Za-z])+")
_SIDE = r"([A-Za-z]\w{0,9}(?:_\{\w{1,9}\})?)"
_QUOTIENT = re.compile(rf"\\frac\{{{_SIDE}\}}\{{{_SIDE}\}}|{_SIDE} ?[:/] ?{_SIDE}")
_NAMES = re.compile(r"\([A-Za-z](?:, ?[A-Za-z])+\)")
_SUCH_THAT = re.compile(r"([A-Za-z])(?: ?\\in ?\\mathbb\{R\})? ?[|:] ?(.+)")
_ARROWS = {"<": (0, "()"), "\\le": (0, "[]"), ">": (1, "()"), "\\ge": (1, "[]")}


def split(text: str, marks: frozenset[str]) -> tuple[list[str], list[str]]:
    """Splits `text` at `marks` outside of all brackets; returns the parts and the marks found."""
    parts, marks_found, depth, start = [], [], 0, 0
    for mark in _MARK.finditer(text):
        depth += (mark[0] in _OPENERS) - (mark[0] in _CLOSERS)
        if depth == 0 and mark[0] in marks:
            parts.append(text[start : mark.start()].strip())
            marks_found.append(mark[0])
            start = mark.end()
    return [*parts, text[start:].strip()], marks_found


def unwrap(text: str, openers: frozenset[str]) -> tuple[str, str, str] | None:
    """Returns opening bracket, content, closing bracket if one pair encloses `text`; else None."""
    marks = list(_MARK.finditer(text))
    if len(marks) < 2 or marks[0][0] not in openers or marks[-1][0] not in _CLOSERS:
        return None
    depth = 0
    for mark in marks[:-1]:
        depth += (mark[0] in _OPENERS) - (mark[0] in _CLOSERS)
        if depth == 0:
            return None
    return marks[0][0], text[marks[0].end() : marks[-1].start()].strip(), marks[-1][0]


def names_its_right_side(sides: Sequence[str], marks: Sequence[str]) -> bool:
    """Returns whether the relation only names its right side, as in x = 5 or (x,y) = (3,4)."""
    if list(marks) not in (["="], ["\\in"]):
        return False
    if _NAMES.fullmatch(sides[0]):
        # Letters out of alphabetical order have another meaning: (y,x) = (3,4).
        letters = re.findall("[A-Za-z]", sides[0])
        return letters == sorted(set(letters))
    return _is_a_value(sides[0]) or any(shape.fullmatch(sides[0]) for shape in (_NAME, _FIGURE))


def _is_a_value(text: str) -> bool:
    r"""Returns whether the text is a function or operator with its argument, as \gcd(12,18)."""
    applied = _APPLIED.match(text)
    return applied is not None and unwrap(text[applied.end() :], frozenset(["(", "["])) is not None


def tells_what_was_asked(sides: Sequence[str], marks: Sequence[str]) -> bool:
    """Returns whether an answer such as m + n = 25 or AB:CD = 2:3 gives the value asked for.

    This cannot be known of a gold answer: there x + y = 5 may be a line.
    """
    if list(marks) != ["="]:
        return False
    if _SUM.fullmatch(sides[0]):
        letters = re.findall("[A-Za-z]", sides[0])
        return len(set(letters)) == len(letters)
    terms = re.split(r"(?<=[)\]]) ?\+ ?", sides[0])
    if len(terms) > 1 and all(map(_is_a_value, terms)):
        return True
    quotient = _QUOTIENT.fullmatch(sides[0])
    return quotient is not None and len({*filter(None, quotient.groups())}) == 2


def condition_of(text: str) -> str:
    """Returns the condition x > 3 of ``x | x > 3``, the inside of a set; other text unchanged."""
    match = _SUCH_THAT.fullmatch(text)
    if match is None or not re.search(rf"(?<![A-Za-z\\]){match[1]}", match[2]):
        return text
    return match[2] if split(match[2], RELATIONS)[1] else text


def as_interval(text: str) -> tuple[str, str] | None:
    r"""Returns the letter and the interval: x and ``(1,2]`` for ``1 < x \le 2``; else None."""
    sides, marks = split(text, RELATIONS)
    if not marks or any(mark not in _ARROWS for mark in marks):
        return None
    if len({_ARROWS[mark][0] for mark in marks}) > 1:
        return None
    if _ARROWS[marks[0]][0]:
        sides, marks = sides[::-1], [FLIPPED[mark] for mark in reversed(marks)]
    kinds = [_ARROWS[mark][1] for mark in marks]
    variable = [place for place, side in enumerate(sides) if re.fullmatch("[A-Za-z]", side)]
    if len(sides) == 3 and variable == [1]:
        low = "(" if sides[0] == "-\\infty" else kinds[0][0]
        high = ")" if sides[2] == "\\infty" else kinds[1][1]
        return sides[1], f"{low}{sides[0]},{sides[2]}{high}"
    if len(sides) == 2 and variable == [0]:
        return sides[0], f"(-\\infty,{sides[1]}{kinds[0][1]}"
    if len(sides) == 2 and variable == [1]:
        return sides[1], f"{kinds[0][0]}{sides[0]},\\infty)"
    return None


def as_tuple(elements: Sequence[str]) -> str | None:
    """Returns ``(3,4)`` for the elements x = 3 and y = 4, sorted by letter; else None."""
    values = {}
    for element in elements:
        sides, marks = split(element, RELATIONS)
        if marks != ["="] or not re.fullmatch("[A-Za-z]", sides[0]) or sides[0] in values:
            return None
        values[sides[0]] = sides[1]
    return f"({','.join(values[name] for name in sorted(values))})" if len(values) > 1 else None
