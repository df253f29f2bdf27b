"""Texts of a model, of data and of file names, made fit to be shown.

Whatever a policy wrote may hold control characters, direction overrides, half a surrogate: shown as
it is it could move the cursor, hide text or set colours. Here every such character is spelt out. So
is what the place that shows it has no sign for: over ssh, in a pipe, in a terminal of another time.
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

# Invisible, and yet no control: joiners, fillers, variation selectors.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)
_SECONDS_BETWEEN_LINES = 10.0
_MARKS = {"\n": "⏎", "\t": "⇥"}


def say(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no colours, no wrapping."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def now_and_then(console: Console, of: str) -> Callable[[str], None]:
    """Returns a function that says how far a long work is, where one would begin to wonder.

    Args:
        console: where.
        of: what the work is called.
    """
    last = time.monotonic()

    def tell(words: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(console, f"{of}: {words}")

    return tell


def clock(seconds: float) -> str:
    """`2:05`, or `1:02:05`; a dash where there is no such time."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def visible(text: str, encoding: str = "utf-8") -> str:
    """One line of `text` that shows it as it is: control characters are spelt out.

    Args:
        text: anything.
        encoding: of the place that shows it; what it has no sign for is spelt out too.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_spellings(codec_name(encoding), one_line=True))


def spelt(text: str) -> str:
    r"""`text` in which every invisible sign but line ends and tabs reads `\u{202e}`."""
    return text.translate(_spellings("utf-8", one_line=False))


def is_unicode(encoding: str) -> bool:
    """Whether every sign can be shown."""
    return codec_name(encoding).startswith("utf")


@lru_cache(maxsize=16)
def codec_name(encoding: str) -> str:
    """The one name of an encoding; ASCII for one that nobody knows."""
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        return "ascii"


class _Spellings(dict[int, str]):
    """What stands for each character, found when it is first met."""

    def __init__(self, encoding: str, *, one_line: bool) -> None:
        super().__init__()
        self._encoding = encoding
        self._marks = _MARKS if one_line else {mark: mark for mark in _MARKS}

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        # C*: controls, direction overrides, surrogates, unassigned; Zl and Zp end lines for some.
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
