"""What is said while records are read into the index: a minute for a million, once."""

from __future__ import annotations

import os
import sys
import time

from srl.console import visible


def say(text: str) -> None:
    """A word on stderr, apart from what was asked for."""
    sys.stderr.write(f"srl: {visible(text)}\n")
    sys.stderr.flush()


class Reading:
    """Tells on stderr how much of a log is read; as a context it clears that line at its end.

    Called as `Log.open` calls what it is given: with the bytes read, and the bytes there are.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._drawn = False

    def __call__(self, done: int, size: int) -> None:
        if _redrawn():
            sys.stderr.write(f"\rreading new records: {done / size:.0%} of {size / 1e6:,.0f} MB ")
            sys.stderr.flush()
            self._drawn = True
        elif not self._drawn and time.monotonic() - self._began > 2:
            say(f"reading {size / 1e6:,.0f} MB of records; an index of them is kept")
            self._drawn = True

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn and _redrawn():
            sys.stderr.write("\r" + " " * 60 + "\r")
            sys.stderr.flush()


def _redrawn() -> bool:
    """Whether stderr is a terminal whose line can be written again."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
