"""The processes of a comparison: how a cell is started, and that none is ever run twice at a time.

Cells are in process groups of their own, so Ctrl-C reaches only the one that started them, which
tells them. Killed outright it cannot: then the kernel does (Linux). Until the last of them has
ended they hold the output folder's lock, which they inherit. A second lock, which they do not
inherit, is the starting process's own: it tells a call that is at work from cells that an earlier
one has left.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from srl.errors import UsageError

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# Found here and not in a child between fork and exec, where other threads' locks may be held.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class Process(Protocol):
    """A running cell."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def send_signal(self, sig: int, /) -> None: ...


Start = Callable[[Sequence[str], Mapping[str, str], Path, int], Process]
"""Starts a command line with an environment; its output is appended to a file, and it keeps a
lock's file descriptor open as long as it lives."""


def start_process(
    words: Sequence[str], environment: Mapping[str, str], log: Path, lock: int
) -> subprocess.Popen[bytes]:
    """A cell's process: see `Start`. It is told when this one dies."""
    with log.open("ab") as file:
        return subprocess.Popen(
            list(words),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=(lock,),
            preexec_fn=None if _PRCTL is None else end_with_parent,
        )


def end_with_parent() -> None:
    """Ask the kernel to have this process save and end when the one that started it is gone.

    A parent with threads has each of them tell it. Not by a Ctrl-C, whose second stops at once.
    """
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


def at_work(output: Path) -> str | None:
    """The process that makes cells in the folder now; None if there is none."""
    if not (output / ".caller").is_file():
        return None
    with (output / ".caller").open("r+") as own:
        return None if _take(own) else own.read().strip()


@contextmanager
def locked(output: Path, waits: Callable[[], object]) -> Iterator[int]:
    """The folder's lock; held until the last process that inherits it has ended.

    Args:
        output: the folder.
        waits: called once if cells of an earlier call are to be waited for.

    Raises:
        UsageError: another call holds it.
    """
    with (output / ".caller").open("a+") as own, (output / ".lock").open("a+") as shared:
        if not _take(own):
            own.seek(0)
            raise UsageError(
                f"another comparison runs in {output} (process {own.read().strip()}); wait for it, "
                "or look at what is done with --table"
            )
        own.truncate(0)
        own.write(str(os.getpid()))
        own.flush()
        try:
            fcntl.flock(shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(shared, fcntl.LOCK_EX)
        yield shared.fileno()


def _take(own: IO[str]) -> bool:
    """Take a lock of this process alone, whatever it starts, gone when it ends; False if held."""
    try:
        fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True
