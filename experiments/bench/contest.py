"""Runs contestants in turn on the same input, and reports a row of the benchmark about them.

Every repeat runs all contestants once, so that a machine that slows down slows all of them. A row
has each contestant's median and spread, its speed relative to the peer, and the agreement of its
result.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Agreement = str | dict[str, float]
"""The agreement of two results: a text, or differences by name."""

Contestant = Callable[[], Callable[[], object]]
"""Prepares the work, untimed, and returns a function whose call is timed."""

PACKAGES = ("cydifflib", "rapidfuzz", "torch", "transformers", "trl")


@dataclass
class Contest:
    """One row of the benchmark.

    Attributes:
        row: its number in the list of rows, or its name.
        title: the input.
        goal: the goal, in words.
        seconds: contestant -> its seconds in each repeat.
        base: the contestant that speeds are relative to.
        ours: the contestant that the goal is about.
        agreement: contestant -> the agreement of its result with the first contestant's.
        figures: all other figures of the row: sizes, ceilings, memory.
    """

    row: int | str
    title: str
    goal: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    base: str = ""
    ours: str = ""
    agreement: dict[str, Agreement] = field(default_factory=dict)
    figures: dict[str, object] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def speed(self, name: str, base: str | None = None) -> float:
        """Returns how many times as fast as `base` (by default the peer) a contestant is."""
        return self.median(base or self.base) / self.median(name)

    def lines(self) -> list[str]:
        """Returns the row as text: its title, its contestants and its other figures."""
        lines = [f"row {self.row}: {self.title}" + (f"; goal: {self.goal}" if self.goal else "")]
        width = max(34, *map(len, self.seconds)) if self.seconds else 0
        for name, times in self.seconds.items():
            lines.append(
                f"  {name:<{width}} {1000 * self.median(name):>11,.2f} ms "
                f"[{1000 * min(times):,.2f}, {1000 * max(times):,.2f}]  {self.speed(name):>7.2f}x"
                f"  {_words(self.agreement.get(name, ''))}".rstrip()
            )
        for name, value in self.figures.items():
            several = value if isinstance(value, list) else [value]
            lines += [f"  {name}: {_words(entry)}" for entry in several]
        return lines

    def to_json(self) -> dict[str, object]:
        return {
            "row": self.row,
            "title": self.title,
            "goal": self.goal,
            "against": self.base,
            "ours": self.ours,
            "agreement": self.agreement,
            "figures": self.figures,
            "seconds": self.seconds,
            "speed": {name: self.speed(name) for name in self.seconds},
        }


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def run(
    contest: Contest,
    contestants: Mapping[str, Contestant],
    repeats: int,
    *,
    compare: Callable[[object, object], Agreement],
    peers: Sequence[str] = (),
    warm_up: bool = False,
    before: Callable[[], None] = lambda: None,
    wait: Callable[[], None] = lambda: None,
) -> Contest:
    """Runs every contestant in turn, `repeats` times, and returns the row with the results.

    Args:
        contest: the row to fill in. The last contestant is ours unless the row names another.
        contestants: name -> contestant. The other results are compared with the first one's.
        repeats: the number of timed rounds.
        compare: returns the agreement of the first contestant's result with another result.
        peers: the contestants that a user would otherwise run. Speeds are relative to the fastest
            of them, by default to the first contestant.
        warm_up: runs one more round before the others, untimed.
        before: called before each contestant prepares its work, for example to empty caches.
        wait: returns when the device has finished all its work.
    """
    names = list(contestants)
    rounds = range(-1 if warm_up else 0, repeats)
    expected: object = None
    for number in rounds:
        for name, prepare in contestants.items():
            before()
            work = prepare()
            wait()
            started = time.perf_counter()
            result = work()
            wait()
            if number >= 0:
                contest.seconds.setdefault(name, []).append(time.perf_counter() - started)
            if number == rounds[0] and name == names[0]:
                expected = result
            elif number == rounds[0]:
                contest.agreement[name] = compare(expected, result)
        expected = None  # frees a result that may be large
    contest.base = min(peers or names[:1], key=contest.median)
    contest.ours = contest.ours or names[-1]
    return contest


def bit_equal(expected: object, actual: object) -> str:
    """Returns how many numbers of two lists are equal to the last bit, as a text."""
    assert isinstance(expected, list)
    assert isinstance(actual, list)
    same = sum(a == b for a, b in zip(expected, actual, strict=True))
    return f"{same:,} of {len(expected):,} bit-equal"


def machine(names: Sequence[str] = PACKAGES) -> dict[str, object]:
    """Returns what the figures depend on: date, machine, and versions of the packages `names`."""
    packages: dict[str, str | None] = {}
    for name in names:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": packages,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
