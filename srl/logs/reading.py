"""What is said while records are read into the index: a minute for a million, once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from srl.console import visible


def say(text: str) -> None:
    """A word on stderr, apart from what was asked for."""
    sys.stderr.write(f"srl: {visible(text)}\n")
    sys.stderr.flush()


def reading() -> Callable[[int, int], None]:
    """For `Log.open`: says once that a log is read, where that takes a while."""
    began = time.monotonic()
    said = False

    def told(done: int, size: int) -> None:
        nonlocal said
        if not said and time.monotonic() - began > 2:
            say(f"reading {size / 1e6:,.0f} MB of records; an index of them is kept")
            said = True

    return told
