"""Makes texts of models, of data and of file names safe to show.

A text that a policy wrote may contain control characters, direction overrides or lone surrogates.
Shown unchanged, it could move the cursor, hide text or set colours. This module writes every such
character as its code. It does the same with characters that the output's encoding lacks, which
happens over ssh, in a pipe or in an old terminal.
"""

from __future__ import annotations

import codecs
import math
import re
import time
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Invisible characters that are not controls: joiners, fillers, variation selectors.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)
_SECONDS_BETWEEN_LINES = 10.0
_MARKS = {"\n": "⏎", "\t": "⇥"}


def say(console: Console, text: str) -> None:
    """Prints a line unchanged: no markup, no colours, no wrapping."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def now_and_then(console: Console, of: str) -> Callable[[str], None]:
    """Returns a function that prints the progress of a long task, at most every 10 seconds.

    Args:
        console: where to print.
        of: the name of the task.
    """
    last = time.monotonic()

    def tell(words: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(console, f"{of}: {words}")

    return tell


def clock(seconds: float) -> str:
    """Returns seconds as `2:05` or `1:02:05`; a dash if they are not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def visible(text: str, encoding: str = "utf-8") -> str:
    """Returns `text` as one line in which control characters are written as codes.

    Args:
        text: any text.
        encoding: of the output; characters that it lacks are written as codes too.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_spellings(codec_name(encoding), one_line=True))


def spelt(text: str) -> str:
    r"""Returns `text` with invisible characters, except line ends and tabs, as `\u{202e}`."""
    return text.translate(_spellings("utf-8", one_line=False))


def is_unicode(encoding: str) -> bool:
    """Returns whether the encoding can show every character."""
    return codec_name(encoding).startswith("utf")


@lru_cache(maxsize=16)
def codec_name(encoding: str) -> str:
    """Returns the standard name of an encoding; ASCII for an unknown one."""
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        return "ascii"


class _Spellings(dict[int, str]):
    """Maps each character code to its replacement, computed at its first use."""

    def __init__(self, encoding: str, *, one_line: bool) -> None:
        super().__init__()
        self._encoding = encoding
        self._marks = _MARKS if one_line else {mark: mark for mark in _MARKS}

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        # C*: controls, direction overrides, surrogates, unassigned; Zl and Zp can end a line.
        category = unicodedata.category(sign)
        unseen = category.startswith("C") or category in ("Zl", "Zp") or _UNSEEN.match(sign)
        shown = self._marks.get(sign, sign)
        if unseen and sign not in self._marks:
            shown = f"\\u{{{code:x}}}"
        try:
            shown.encode(self._encoding)
        except UnicodeEncodeError:
            shown = f"\\u{{{code:x}}}"
        self[code] = shown
        return shown


@lru_cache(maxsize=16)
def _spellings(encoding: str, *, one_line: bool) -> _Spellings:
    return _Spellings(encoding, one_line=one_line)


def say_titled(console: Console, head: str, text: str) -> None:
    """Prints a text after its bold title; control characters in the text are written as codes."""
    from rich.text import Text

    lines = "\n".join(visible(line) for line in text.splitlines())
    console.print(Text(f"{head}: ", "bold").append(lines, "not bold"), soft_wrap=True)
