r"""Finds ``\boxed{..}`` in a text, and decides which boxes belong together.

Braces are matched, because answers nest them; escaped ones (``\{``) do not count. Every function
takes linear time in its text, because a policy may write thousands of boxes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MOST_BOXES = 64
"""The most boxes that are read, from the end; an answer with more parts is never right."""
_BOX = re.compile(r"\\(?:f?box(?:ed)?|framebox)(?![A-Za-z])\s*+")
_BARE = re.compile(r"(?:[^\s${}]|\{[^\s${}]*\})+")
_MARK = re.compile(r"\\.|[{}]", re.DOTALL)
_BLANK = re.compile(
    r"(?:\\phantom\s*\{[^{}]*\}|\\(?:q?quad|hspace\s*\{[^{}]*\})|\\[,;:! ]|[\s?~_])*+"
)
# Text after a box that is part of its answer: \boxed{-15}x^3. A unit such as m^2 is not part of it.
_EXPONENT = r"\^(?:\d|\{[^{}]{1,9}\})"
_POWER = rf"(?!(?:[cdkm]?m|in|ft|yd|s)\^)(?:[a-z](?:{_EXPONENT})?){{0,3}}[a-z]{_EXPONENT}"
_BEHIND = re.compile(rf"\s*(?:\\%|\^\s*(?:\\circ|\{{\s*\\circ\s*\}}))|{_POWER}")
_MINUS = re.compile(r"(?:^|[=$&(\[])\s*-\Z")  # a minus sign, not the dash of a list
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
    """A box outside all other boxes: its start, its end and its content."""

    start: int
    end: int
    content: str


def boxes_in(text: str) -> list[Box]:
    r"""Returns the outermost ``\boxed{..}`` and ``\fbox{..}`` of a text, without empty ones.

    ``\boxed 5`` holds the text before the next white space or ``$``. A minus sign before a box is
    part of it, and so is a power, a per cent sign or a degree sign right after it. A box that is
    never closed does not count.
    """
    matches = list(_BOX.finditer(text))
    closing = _closing_braces(text) if matches else {}
    boxes: list[Box] = []
    end = 0
    for box in matches:
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
    """Returns the boxes that form the answer: the last one, and those that belong to it.

    Boxes belong together if only "and", "or", commas or ``x =`` stand between them. If the problem
    asks for answers separated by commas and the last box holds no list, boxes also belong together
    if no conclusion stands between them: there is one box for each case. Otherwise a box before
    the last one is an intermediate result, or the same answer found in another way.
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
    """Returns the name ``x`` in ``x = \\boxed{..}``, or None if there is none."""
    named = _NAMED.search(text, max(0, box.start - 40), box.start)
    return named[1] if named else None


def _joined(between: str) -> bool:
    if len(between) > _LONGEST_BETWEEN or "\n\n" in between:
        return False
    return _BETWEEN.fullmatch(_LAYOUT.sub(r" \1 ", between)) is not None


def _unboxed(content: str) -> str:
    r"""Returns the content without ``\boxed``; the braces of each inner box stay."""
    return _BOX.sub("", content) if "box" in content else content


def _closing_braces(text: str) -> dict[int, int]:
    """Maps the place of each brace that is closed to the place of its closing brace."""
    closing, opened = {}, []
    for mark in _MARK.finditer(text):
        if mark.group() == "{":
            opened.append(mark.start())
        elif mark.group() == "}" and opened:
            closing[opened.pop()] = mark.start()
    return closing
