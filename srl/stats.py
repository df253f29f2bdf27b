"""Computes means and shares with 95 % intervals.

Problems are independent; rows of one problem are not. This module does not import torch, because
the readers of logs use it too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

_Z95 = 1.959963984540054
_ROUNDS = 2000  # draws of a bootstrap


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval. `n` counts problems (or rows), not samples."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """Returns the estimate as summary.json stores it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:6.1%}  [{self.low:.1%}, {self.high:.1%}]  n = {self.n}"


def wilson(hits: int, n: int) -> Estimate:
    """Returns the share `hits / n` with Wilson's score interval (Wilson 1927); n = 0 gives NaN."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = hits / n
    scale = 1 + _Z95**2 / n
    middle = (share + _Z95**2 / (2 * n)) / scale
    half = _Z95 / scale * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)


def bootstrap(values: Sequence[float], problems: Sequence[str] | None = None) -> Estimate:
    """Returns the mean of `values` with a percentile bootstrap interval; no values give NaN.

    Args:
        values: one per row.
        problems: the problem of each row; if given, whole problems are drawn with all their rows.
    """
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    rows: dict[object, list[float]] = {}
    for number, value in enumerate(values):
        rows.setdefault(number if problems is None else problems[number], []).append(value)
    parts = [(sum(part), len(part)) for part in rows.values()]
    rng = random.Random(0)
    means = []
    for _ in range(_ROUNDS):
        drawn = rng.choices(parts, k=len(parts))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    low, high = means[int(0.025 * _ROUNDS)], means[int(0.975 * _ROUNDS) - 1]
    return Estimate(sum(values) / len(values), low, high, len(values))


def share_of_rows(hits: Sequence[bool], problems: Sequence[str]) -> Estimate:
    """Returns the share of rows that are hits; its interval covers Wilson's and a bootstrap's.

    Wilson's interval assumes independent rows. The bootstrap over problems does not, but it has no
    width if all rows are hits or none is.
    """
    share = wilson(sum(hits), len(hits))
    drawn = bootstrap([float(hit) for hit in hits], problems)
    if not hits:
        return share
    return replace(share, low=min(share.low, drawn.low), high=max(share.high, drawn.high))


def paired_change(won: int, lost: int, n: int) -> Estimate:
    """Returns by how much the share of solved problems rises from the first to the second time.

    n = 0 gives NaN. The interval is Wald's with half a problem added to each of the four kinds of
    pairs (Agresti and Min 2005). It has a width even if nothing changed, and stays within -1 and 1.

    Args:
        won: problems solved only the second time.
        lost: problems solved only the first time.
        n: all problems.
    """
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    more, less, size = won + 0.5, lost + 0.5, n + 2
    middle = (more - less) / size
    half = _Z95 * math.sqrt(more + less - (more - less) ** 2 / size) / size
    return Estimate((won - lost) / n, max(-1.0, middle - half), min(1.0, middle + half), n)


def student_t(degrees: int) -> float:
    """Returns the 97.5 % point of Student's t, which replaces 1.96 for `degrees + 1` values.

    Up to four degrees of freedom it comes from a table. Above, it comes from Cornish and Fisher's
    series (Abramowitz and Stegun, 26.7.5), which is then accurate to .001.
    """
    table = (math.inf, 12.7062, 4.3027, 3.1824, 2.7764)
    if degrees < len(table):
        return table[degrees]
    z, n = _Z95, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )
