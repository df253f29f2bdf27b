"""Starts the processes of a comparison's cells, and prevents that a cell runs twice at a time.

Each cell has its own process group, so Ctrl-C reaches only the process that started the cells. That
process passes the signal on. If that process is killed, the kernel sends the cells a signal
(Linux). The cells inherit the output folder's lock, which is held until the last of them has ended.
A second lock belongs to the starting process only. It distinguishes a call that is at work from
cells that an earlier call has left.
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
# Looked up here and not in a child between fork and exec, where other threads may hold locks.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class Process(Protocol):
    """A running cell."""

    def poll(self) -> int | None:
        """Returns the exit code, which is negative for a signal; None while the cell runs."""

    def send_signal(self, sig: int, /) -> None: ...


Start = Callable[[Sequence[str], Mapping[str, str], Path, int], Process]
"""A function that starts a command line with an environment. The process appends its output to a
file, and keeps a lock's file descriptor open until it ends."""


def start_process(
    words: Sequence[str], environment: Mapping[str, str], log: Path, lock: int
) -> subprocess.Popen[bytes]:
    """Starts a cell's process, as `Start` describes; it gets a signal when this process dies."""
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
    """Asks the kernel to send this process SIGTERM when its parent dies, so that it saves and ends.

    The signal may come once for each thread of the parent. So it is not SIGINT, because a second
    Ctrl-C stops a cell at once.
    """
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


def at_work(output: Path) -> str | None:
    """Returns the id of the process that makes cells in the folder now; None if there is none."""
    if not (output / ".caller").is_file():
        return None
    with (output / ".caller").open("r+") as own:
        return None if _take(own) else own.read().strip()


@contextmanager
def locked(output: Path, waits: Callable[[], object]) -> Iterator[int]:
    """Takes the folder's lock and yields its file descriptor, which the cells inherit.

    The lock is held until the last process that inherits it has ended.

    Args:
        output: the folder.
        waits: called once if cells of an earlier call are still running; then it waits for them.

    Raises:
        UsageError: another call is at work in the folder.
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
    """Takes a lock that child processes do not inherit; returns False if it is already held.

    The lock ends with this process.
    """
    try:
        fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True
