"""Writes messages while records are read into the index.

A million records take a minute, the first time only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from srl.console import visible


def say(text: str) -> None:
    """Writes a message to stderr, so that stdout holds only the requested output."""
    sys.stderr.write(f"srl: {visible(text)}\n")
    sys.stderr.flush()


def reading() -> Callable[[int, int], None]:
    """Returns a callback for `Log.open`.

    It writes one message that the log is being read, once that has taken more than 2 seconds.
    """
    began = time.monotonic()
    announced = False

    def report_progress(done: int, size: int) -> None:
        nonlocal announced
        if not announced and time.monotonic() - began > 2:
            say(f"reading {size / 1e6:,.0f} MB of records; an index of them is kept")
            announced = True

    return report_progress
