"""How many threads torch computes with on a CPU that has other work to do as well.

The threads of one operation wait for one another. Beside other work one of them is often without a
core, and all wait for it: a run that two idle cores finish in six minutes took twenty-five beside a
busy process. One thread less than that runs several times faster. So other work is measured from
the moment this module is loaded, and threads are left out for the cores that it takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = "OMP_NUM_THREADS"
_STAT = Path("/proc/stat")
# Below so many seconds nothing can be said of a machine.
_LEAST_SECONDS = 0.5


@dataclass(frozen=True)
class Threads:
    """How many threads to compute with.

    Attributes:
        count: None leaves torch's own choice alone.
        why: a line for the user where it is fewer than the cores; else empty.
    """

    count: int | None
    why: str = ""


def choose_threads(
    *, cores: int, busy: float | None, recorded: int | None, environ: Mapping[str, str]
) -> Threads:
    """How many threads to compute with.

    Args:
        cores: that this process may use.
        busy: of the machine's cores, how many other processes keep busy; None is unknown.
        recorded: with how many an interrupted run computed; it goes on with as many, since another
            number adds in another order and rounds otherwise.
        environ: the environment; the user's OMP_NUM_THREADS wins.
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
    """Cores that other processes have kept busy since this module was loaded; None is unknown."""
    now = _look()
    seconds = now.seconds - _START.seconds
    if now.machine is None or _START.machine is None or seconds < _LEAST_SECONDS:
        return None
    others = (now.machine - _START.machine) - (now.own - _START.own)
    return max(0.0, others / seconds)


def _look() -> _Moment:
    """Processor seconds until now, of the whole machine and of this process with its children."""
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
