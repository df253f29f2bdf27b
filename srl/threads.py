"""Chooses the number of threads for torch on a CPU that also runs other processes.

The threads of one operation wait for one another. If other processes keep a core busy, one thread
often has no core, and all threads wait for it: a run that takes six minutes on two idle cores took
twenty-five beside a busy process. With one thread less, the run is several times faster. So this
module measures the other load from the moment it is loaded and uses fewer threads accordingly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = "OMP_NUM_THREADS"
_STAT = Path("/proc/stat")
# A shorter measurement (in seconds) is not used.
_LEAST_SECONDS = 0.5


@dataclass(frozen=True)
class Threads:
    """The number of threads to compute with.

    Attributes:
        count: the number; None keeps torch's own choice.
        why: a line for the user if the number differs from the number of cores; else empty.
    """

    count: int | None
    why: str = ""


def choose_threads(
    *, cores: int, busy: float | None, recorded: int | None, environ: Mapping[str, str]
) -> Threads:
    """Returns how many threads to compute with.

    Args:
        cores: the cores that this process may use.
        busy: how many of the machine's cores other processes keep busy; None if unknown.
        recorded: the number of threads of an interrupted run. The run continues with it, because
            another number changes the order of additions and so the rounding.
        environ: the environment; the user's OMP_NUM_THREADS has priority.
    """
    if environ.get(_VARIABLE):
        return Threads(None)
    if recorded is not None:
        why = f"computing with {_threads(recorded)}, as this run began; {_VARIABLE} changes that"
        return Threads(recorded, why if recorded != cores else "")
    if busy is None:
        return Threads(None)
    free = (os.cpu_count() or cores) - busy
    count = max(1, min(cores, round(free)))
    if count == cores:
        return Threads(None)
    return Threads(
        count,
        f"other work keeps {busy:.1f} of the machine's {os.cpu_count()} cores busy, so this run is "
        f"slower and computes with {_threads(count)}: more would wait for one another; "
        f"{_VARIABLE}={cores} takes all {cores} cores",
    )


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class _Moment:
    seconds: float
    machine: float | None
    own: float


def busy_elsewhere() -> float | None:
    """Returns how many cores other processes used since this module was loaded; None if unknown."""
    now = _look()
    seconds = now.seconds - _START.seconds
    if now.machine is None or _START.machine is None or seconds < _LEAST_SECONDS:
        return None
    others = (now.machine - _START.machine) - (now.own - _START.own)
    return max(0.0, others / seconds)


def _look() -> _Moment:
    """Returns processor seconds so far, of the machine and of this process with ended children."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return _Moment(time.monotonic(), _machine_seconds(), own)


def _machine_seconds() -> float | None:
    try:
        words = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
        user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
    except (OSError, ValueError):
        return None  # not Linux
    ticks = user + nice + system + irq + softirq + steal
    return ticks / float(os.sysconf("SC_CLK_TCK"))


_START = _look()
