r"""Boxes: where a text writes ``\boxed{..}``, and which of them belong together.

Braces are walked, since answers nest them; escaped ones (``\{``) do not count. Every function is
linear in its text, since a policy may write thousands of boxes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MOST_BOXES = 64
"""Boxes that are looked at from the end; an answer with more parts is never right."""
_BOX = re.compile(r"\\(?:f?box(?:ed)?|framebox)(?![A-Za-z])\s*+")
_BARE = re.compile(r"(?:[^\s${}]|\{[^\s${}]*\})+")
_MARK = re.compile(r"\\.|[{}]", re.DOTALL)
_BLANK = re.compile(
    r"(?:\\phantom\s*\{[^{}]*\}|\\(?:q?quad|hspace\s*\{[^{}]*\})|\\[,;:! ]|[\s?~_])*+"
)
# Behind a box and yet part of what it says: \boxed{-15}x^3, but a unit as in m^2 is not
_EXPONENT = r"\^(?:\d|\{[^{}]{1,9}\})"
_POWER = rf"(?!(?:[cdkm]?m|in|ft|yd|s)\^)(?:[a-z](?:{_EXPONENT})?){{0,3}}[a-z]{_EXPONENT}"
_BEHIND = re.compile(rf"\s*(?:\\%|\^\s*(?:\\circ|\{{\s*\\circ\s*\}}))|{_POWER}")
_MINUS = re.compile(r"(?:^|[=$&(\[])\s*-\Z")  # and not the dash of a list
_NAMED = re.compile(r"(\\?[A-Za-z]{1,10}(?:_(?:\w|\{\w{1,9}\}))?)\s*&?\s*=\s*-?\s*\Z")
_BETWEEN = re.compile(
    r"[\s,;]*(?:(?:and|or)\b)?[\s,;]*(?:\\?[A-Za-z]{1,10}(?:_(?:\w|\{\w{1,9}\}))?\s*=\s*)?",
    re.IGNORECASE,
)
_LAYOUT = re.compile(
    r"\\(?:text|mbox|textrm|mathrm)\s*\{([^{}]*)\}|\\q?quad|\\\\(?:\[\w+\])?|\\[,;:! ()\[\]]|[$&~]"
)
_LONGEST_BETWEEN = 80
_CONCLUDES = re.compile(
    r"\b(?:thus|therefore|hence|conclusion|finally|answers?|solutions?|only)\b", re.I
)
_WANTS_A_LIST = re.compile(r"\bseparated? .{0,40}\bcommas?\b", re.IGNORECASE)
_LIST = re.compile(r"[,;]|\\pm|\band\b|\bor\b")


@dataclass(frozen=True)
class Box:
    """A box that stands in no other: where it begins and ends, and what is in it."""

    start: int
    end: int
    content: str


def boxes_in(text: str) -> list[Box]:
    r"""Returns the outermost ``\boxed{..}`` and ``\fbox{..}`` of a text, empty ones left out.

    ``\boxed 5`` holds what stands before the next white space or ``$``. A minus sign in front of a
    box, and a power, a per cent or a degree sign right behind it, are taken as part of it. One
    that is never closed is none.
    """
    found = list(_BOX.finditer(text))
    closing = _closing_braces(text) if found else {}
    boxes: list[Box] = []
    end = 0
    for box in found:
        if box.start() < end:
            continue
        start = box.end()
        if text.startswith("{", start):
            if start not in closing:
                continue
            content, after = text[start + 1 : closing[start]], closing[start] + 1
        else:
            bare = _BARE.match(text, start)
            content = bare.group().rstrip(".,;") if bare else ""
            after = start + len(content)
        end = after
        content = _unboxed(content).strip()
        if _BLANK.fullmatch(content):
            continue
        if behind := _BEHIND.match(text, after):
            content, end = content + behind.group(), behind.end()
        if _MINUS.search(text, max(0, box.start() - 9), box.start()):
            content = (
                f"-{content}" if content.isalnum() or "\\frac" in content[:5] else f"-({content})"
            )
        boxes.append(Box(box.start(), end, content))
    return boxes


def together(text: str, boxes: Sequence[Box], problem: str = "") -> list[Box]:
    """Returns those of the boxes that are the answer: the last one, and what belongs to it.

    Boxes belong together if nothing but "and", "or", commas or ``x =`` stands between them. Where
    the problem asks for answers separated by commas and the last box holds no list, so do all boxes
    between which nothing is concluded: a box for each case. Otherwise a box before the last one
    is an intermediate result, or the same answer found in another way.
    """
    boxes = boxes[-MOST_BOXES:]
    first = len(boxes) - 1
    while first > 0 and _joined(text[boxes[first - 1].end : boxes[first].start]):
        first -= 1
    if (
        first == len(boxes) - 1 > 0
        and not _LIST.search(boxes[first].content)
        and _WANTS_A_LIST.search(problem)
    ):
        while first > 0 and not _CONCLUDES.search(text, boxes[first - 1].end, boxes[first].start):
            first -= 1
    return list(boxes[first:])


def name_of(text: str, box: Box) -> str | None:
    """Returns the ``x`` of ``x = \\boxed{..}``."""
    named = _NAMED.search(text, max(0, box.start - 40), box.start)
    return named[1] if named else None


def _joined(between: str) -> bool:
    if len(between) > _LONGEST_BETWEEN or "\n\n" in between:
        return False
    return _BETWEEN.fullmatch(_LAYOUT.sub(r" \1 ", between)) is not None


def _unboxed(content: str) -> str:
    r"""The content with ``\boxed`` left out, which leaves the braces of each inner box."""
    return _BOX.sub("", content) if "box" in content else content


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace that is closed is closed."""
    closing, opened = {}, []
    for mark in _MARK.finditer(text):
        if mark.group() == "{":
            opened.append(mark.start())
        elif mark.group() == "}" and opened:
            closing[opened.pop()] = mark.start()
    return closing
