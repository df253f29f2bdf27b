"""Where things stand in a chart: series over training steps, round numbers, scales and axes.

Geometry only: what is drawn on it is in `charts.py`. A scale never leaves the picture: what lies
beyond its ends is drawn at the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from srl.logs.report.markup import text
from srl.stats import Estimate

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 34
TRAINING = "training step"
_LARGEST = 1e150  # beyond it squares and differences are no numbers any more

Bin = tuple[int, int]


@dataclass(frozen=True)
class Series:
    """A line: (first, last) training step of each point, and the figure there; None is a gap."""

    name: str
    bins: Sequence[Bin]
    values: Sequence[Estimate | None]


def drawable(value: Estimate | None) -> Estimate | None:
    """`value`, or None where it has no place in a picture."""
    return value if value is not None and abs(value.value) < _LARGEST else None


def plain_series(name: str, points: Sequence[tuple[Bin, float]]) -> Series:
    """A line without intervals."""
    values = [Estimate(v, math.nan, math.nan, 0) if math.isfinite(v) else None for _, v in points]
    return Series(name, [bins for bins, _ in points], values)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` or just below to `high` or just above, some `about` of them."""
    if not high > low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = max((high - low) / max(1, about - 1), 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def span_of(steps: Bin) -> str:
    """`steps 9–16`, or `step 9`."""
    return f"step {steps[0]}" if steps[0] == steps[1] else f"steps {steps[0]}–{steps[1]}"


def where(bins: Bin, along: str) -> str:
    return span_of(bins) if along == TRAINING else f"{bins[0]} {along}"


class Scale:
    """From a value to a place between two edges of the picture, which is never left."""

    def __init__(
        self, low: float, high: float, start: float, end: float, marks: Sequence[float]
    ) -> None:
        self.low, self.high, self.marks = low, high, list(marks)
        self._start, self._factor = start, (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (min(self.high, max(self.low, value)) - self.low) * self._factor

    @classmethod
    def up(cls, low: float, high: float) -> Scale:
        """Bottom to top."""
        slack = 1e-9 * (high - low)
        marks = [low, high]
        for about in (5, 6, 8, 10):  # until four are inside
            inside = [m for m in ticks(low, high, about) if low - slack <= m <= high + slack]
            marks = inside if len(inside) > 1 else marks
            if len(inside) >= 4:
                break
        return cls(low, high, HEIGHT - BOTTOM, TOP, marks)

    @classmethod
    def along(cls, bins: Sequence[Bin]) -> Scale:
        """Left to right; marks are whole numbers."""
        first, last = min(b[0] for b in bins), max(b[1] for b in bins)
        pad = 0.5 if first == last else 0.02 * (last - first)
        marks = [m for m in ticks(first, last, 6) if first <= m <= last and m == int(m)]
        return cls(first - pad, last + pad, LEFT, WIDTH - RIGHT, marks or [first])

    @classmethod
    def of_values(cls, series: Sequence[Series], *, share: bool, zero: bool) -> Scale:
        """Over all lines, and as much of their bands as leaves the lines readable."""
        found = [v for one in series for v in one.values if v is not None]
        values = [v.value for v in found] + ([0.0] if zero else [])
        low, high = min(values), max(values)
        banded = [v for v in found if math.isfinite(v.low + v.high)]
        if banded:
            # A bin of two problems has an interval ten times as wide as everything else: as much
            # room as the lines need, or the usual band.
            usual = sorted(v.high - v.low for v in banded)[len(banded) // 2]
            room = max(high - low, 1.1 * usual)
            low = max(low - room, min(low, *(v.low for v in banded)))
            high = min(high + room, max(high, *(v.high for v in banded)))
        pad = 0.04 * (high - low) or 0.1 * abs(high) or (0.05 if share else 1.0)
        low, high = low - pad, high + pad
        if share and 0 <= min(values) <= max(values) <= 1:
            low, high = 0.0 if low < 0.4 * high else low, min(1.0, high)
        elif low < 0 <= min(values) and not any(v.low < 0 for v in banded):
            low = 0.0
        return cls.up(low, high)


def steps_of(key: object) -> Bin:
    """The (first, last) training step that a bin of `figures` is called."""
    return cast(Bin, key)


def bins_of(keys: Sequence[object]) -> list[Bin]:
    """All of them."""
    return [steps_of(key) for key in keys]


def axes(x: Scale, y: Scale, along: str, *, share: bool = False) -> str:
    grid = "".join(f'<path d="M{LEFT} {at(y(m))}H{WIDTH - RIGHT}"/>' for m in y.marks)
    up = "".join(
        f'<text class="tick end" x="{LEFT - 6}" y="{at(y(m) + 3.5)}">{said}</text>'
        for m, said in zip(y.marks, _marks_text(y.marks, share=share), strict=True)
    )
    across = "".join(
        f'<text class="tick middle" x="{at(x(m))}" y="{HEIGHT - BOTTOM + 14}">{m:,.0f}</text>'
        for m in x.marks
    )
    center = (LEFT + WIDTH - RIGHT) / 2
    name = f'<text class="axis middle" x="{center:g}" y="{HEIGHT - 4}">{text(along)}</text>'
    return f'<g class="grid">{grid}</g>{up}{across}{name}'


def _marks_text(marks: Sequence[float], *, share: bool) -> list[str]:
    """All marks of an axis with as many decimals as their distance needs."""
    largest = max(map(abs, marks))
    if not share and largest and (largest < 1e-3 or largest >= 1e6):
        return ["0" if not m else _minus(f"{m:.2g}".replace("e-0", "e-")) for m in marks]
    step = (marks[1] - marks[0]) * (100 if share else 1) if len(marks) > 1 else 1
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if f"{step:e}".startswith("2.5") and step < 10:
        decimals += 1
    return [
        _minus(f"{100 * m if share else m:,.{decimals}f}") + (" %" if share else "") for m in marks
    ]


def _minus(shown: str) -> str:
    return shown.replace("-", "−")


def middle(bins: Bin) -> float:
    return (bins[0] + bins[1]) / 2


def at(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
