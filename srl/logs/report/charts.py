"""Draws charts over training steps: lines with 95 % intervals as SVG, heat maps as tables.

Colours and dashes are CSS classes that the page's style sheet defines. So charts follow the theme,
and none has an inline style, which the page's policy forbids. A line chart has three forms of the
same numbers: the picture, a tooltip on every point, and a table. This module does not depend on the
meaning of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from srl.logs.report.markup import Raw, number, table, text, with_interval
from srl.stats import Estimate

SERIES = 6  # how many series the style sheet has colours for
SHADES = 8  # how many shades a heat map has
WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 34
TRAINING = "training step"
# Squares and differences of values beyond the first overflow; below the second they vanish.
_LARGEST, _SMALLEST = 1e150, 1e-150

Bin = tuple[int, int]


@dataclass(frozen=True)
class Series:
    """A line: (first, last) training step of each point, and the figure there; None makes a gap."""

    name: str
    bins: Sequence[Bin]
    values: Sequence[Estimate | None]


def plain_series(name: str, points: Sequence[tuple[Bin, float]]) -> Series:
    """Returns a line without intervals."""
    values = [Estimate(v, math.nan, math.nan, 0) if math.isfinite(v) else None for _, v in points]
    return Series(name, [bins for bins, _ in points], values)


def span_of(steps: Bin) -> str:
    """Returns `steps 9–16`, or `step 9` if the first and the last step are the same."""
    return f"step {steps[0]}" if steps[0] == steps[1] else f"steps {steps[0]}–{steps[1]}"


def _plain_span(of: Bin) -> str:
    return f"{of[0]}" if of[0] == of[1] else f"{of[0]}–{of[1]}"


def ticks(low: float, high: float) -> list[float]:
    """Returns about four to eight round numbers from `low` to `high`, which must differ."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(m * power for m in (1, 2, 2.5, 5) if m * power <= (high - low) / 4 * 1.001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def line_chart(
    title: str,
    caption: str,
    series: Sequence[Series],
    *,
    share: bool = False,
    axis: str = TRAINING,
) -> str:
    """Draws lines over training steps, or over `axis`, with a bar at each point with an interval.

    Args:
        title: the title of the chart.
        caption: one sentence that explains what is drawn.
        series: one line each; at most SERIES are drawn, and the caption names the others.
        share: whether values are shares, which are shown in per cent.
        axis: what is counted from left to right.

    Returns:
        A <figure>, or an empty string if no series has a value.
    """
    if rest := [curve.name for curve in series[SERIES:]]:
        caption = f"{caption} Not drawn: {', '.join(rest)}.".lstrip()
    # A run keeps its colour even if the other run has nothing to draw.
    drawn = {k: (curve.name, _drawable(curve)) for k, curve in enumerate(series[:SERIES])}
    drawn = {k: (name, points) for k, (name, points) in drawn.items() if points}
    if not drawn:
        return ""
    bins = sorted({b for _, points in drawn.values() for b in points})
    y = _vertical([v for _, points in drawn.values() for v in points.values()])
    x = _Scale(bins[0][0] - 0.5, max(b[1] for b in bins) + 0.5, LEFT, WIDTH - RIGHT)
    parts = [_axes(x, y, share, axis)]
    counted = span_of if axis == TRAINING else _plain_span
    rows: dict[Bin, list[str]] = {b: [counted(b)] for b in bins}
    for k, (name, points) in drawn.items():
        labels = {b: _shown(value, share=share) for b, value in points.items()}
        line, bars, dots, pen = "", "", "", "M"
        for b in series[k].bins:
            if b not in points:  # a gap
                pen = "M"
                continue
            value, across = points[b], x((b[0] + b[1]) / 2)
            line, pen = f"{line}{pen}{across} {y(value.value)}", "L"
            if math.isfinite(value.low + value.high):
                bars += f"M{across} {y(value.high)}V{y(value.low)}"
            tip = f"{f'{name}, ' if len(series) > 1 else ''}{counted(b)}: {labels[b]}"
            dots += f'<path d="M{across} {y(value.value)}h0"><title>{text(tip)}</title></path>'
        parts.append(
            f'<g class="s{k}"><path class="bars" d="{bars}"/><path class="line" d="{line}"/>'
            f'<g class="dots">{dots}</g></g>'
        )
        for b, row in rows.items():
            row.append(labels.get(b, ""))
    legend = "".join(
        f'<span><svg viewBox="0 0 22 12" class="s{k}" aria-hidden="true">'
        f'<path class="line" d="M1 6H21"/></svg>{text(name)}</span>'
        for k, (name, _) in drawn.items()
    )
    numbers = table([axis, *(name for name, _ in drawn.values())], rows.values())
    return (
        f"<figure>{_caption(title, caption)}"
        f"{f'<p class=legend>{legend}</p>' if len(series) > 1 else ''}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">'
        f"{''.join(parts)}</svg><details><summary>numbers</summary>{numbers}</details></figure>"
    )


def heat_map(
    title: str,
    caption: str,
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Sequence[Sequence[Estimate | None]],
    scale: tuple[float, float],
    *,
    share: bool = False,
) -> str:
    """Returns a table of shaded figures; `scale` has the values of the first and the last shade."""
    low, high = scale

    def cell(value: Estimate | None) -> object:
        if value is None or not abs(value.value) < _LARGEST:
            return "–"
        shade = int((value.value - low) / ((high - low) or 1) * SHADES)
        return Raw(
            f'<span class="h{min(SHADES - 1, max(0, shade))}" title="{_shown(value, share=share)}">'
            f"{number(value.value, share=share)}</span>"
        )

    body = [[name, *map(cell, row)] for name, row in zip(rows, cells, strict=True)]
    numbers = table(["", *columns], body)
    return f'<figure class="map">{_caption(title, caption)}{numbers}</figure>'


@dataclass(frozen=True)
class _Scale:
    """Maps a value to a place between two edges of the picture; values beyond are clipped."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> str:
        part = (min(self.high, max(self.low, value)) - self.low) / (self.high - self.low)
        return f"{self.start + part * (self.end - self.start):.1f}"


def _vertical(estimates: Sequence[Estimate]) -> _Scale:
    """Returns a scale for all values, and as much of their intervals as keeps the line readable."""
    low, high = min(v.value for v in estimates), max(v.value for v in estimates)
    # A bin of two problems has an interval ten times as wide as everything else. So on each side an
    # interval gets at most as much room as the line needs, or as the median interval.
    banded = [v for v in estimates if math.isfinite(v.low + v.high)]
    widths = sorted(v.high - v.low for v in banded)
    room = max(high - low, widths[len(widths) // 2] if widths else 0.0)
    low = max(low - room, min([low, *(v.low for v in banded)]))
    high = min(high + room, max([high, *(v.high for v in banded)]))
    low, high = max(low, -_LARGEST), min(high, _LARGEST)
    size = max(abs(low), abs(high))
    if high - low > max(1e-6 * size, _SMALLEST):
        pad = 0.04 * (high - low)
    else:  # the values are equal, except for rounding
        pad = 0.1 * size if size > _SMALLEST else 0.1
    return _Scale(low - pad, high + pad, HEIGHT - BOTTOM, TOP)


def _axes(x: _Scale, y: _Scale, share: bool, axis: str) -> str:
    parts = []
    for mark in ticks(y.low, y.high):
        label = f"{100 * mark:.6g} %" if share else f"{mark:.6g}"
        parts.append(
            f'<path class="grid" d="M{LEFT} {y(mark)}H{WIDTH - RIGHT}"/>'
            f'<text class="up" x="{LEFT - 6}" y="{y(mark)}">{label.replace("-", "−")}</text>'
        )
    for step in sorted({round(s) for s in ticks(x.low, x.high) if x.low < round(s) < x.high}):
        parts.append(f'<text x="{x(step)}" y="{HEIGHT - BOTTOM + 14}">{step:,}</text>')
    return f'{"".join(parts)}<text x="{WIDTH / 2:g}" y="{HEIGHT - 4}">{text(axis)}</text>'


def _drawable(series: Series) -> dict[Bin, Estimate]:
    """Returns the points that can be drawn: those with a value that is not too large."""
    pairs = zip(series.bins, series.values, strict=True)
    return {b: v for b, v in pairs if v is not None and abs(v.value) < _LARGEST}


def _shown(value: Estimate, *, share: bool) -> str:
    label = with_interval(value, share=share)
    return f"{label}, n = {number(value.n)}" if value.n else label


def _caption(title: str, caption: str) -> str:
    span = f"<span>{text(caption)}</span>" if caption else ""
    return f"<figcaption><strong>{text(title)}</strong>{span}</figcaption>"
