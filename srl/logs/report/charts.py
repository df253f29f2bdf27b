"""Charts as SVG, drawn here: lines with their 95 % bands, stacked bars, heat maps.

Each is a <figure> that can be read three ways: the picture, a tooltip on every point, bar and cell,
and under it a table of the same numbers. Colours are classes that the page's style sheet fills in:
so charts follow the theme, and none has an inline style, which the page's policy forbids. Series
differ by colour, dash and marker. Nothing here knows what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from srl.logs.report.axes import (
    HEIGHT,
    LEFT,
    RIGHT,
    TRAINING,
    WIDTH,
    Bin,
    Scale,
    Series,
    at,
    axes,
    columns_of,
    drawable,
    middle,
    span_of,
    where,
)
from srl.logs.report.markup import interval, number, table, text, with_interval
from srl.stats import Estimate

SERIES = 6  # how many series the style sheet can tell apart
RAMP = 16  # colours of a heat map


def line_chart(
    title: str,
    caption: str,
    series: Sequence[Series],
    *,
    share: bool = False,
    zero: bool = False,
    along: str = TRAINING,
) -> str:
    """Lines over training steps, with a band where there are intervals.

    Args:
        title: what is drawn.
        caption: in one sentence what that is.
        series: one line each; at most SERIES are drawn, and the caption names the others.
        share: values are shares, shown in per cent.
        zero: a line at zero, which is then inside the picture.
        along: what the horizontal axis counts.
    """
    if rest := [one.name for one in series[SERIES:]]:
        caption = f"{caption} Not drawn: {', '.join(rest)}.".lstrip()
    # A run keeps its colour where the other has nothing to draw.
    shown = [Series(one.name, one.bins, [*map(drawable, one.values)]) for one in series[:SERIES]]
    drawn = [(k, one) for k, one in enumerate(shown) if any(one.values)]
    if not drawn:
        return _figure(title, caption, '<p class="none">Nothing to draw yet.</p>', "", "")
    many = len(series) > 1
    y = Scale.of_values([one for _, one in drawn], share=share, zero=zero)
    x = Scale.along([b for _, one in drawn for b in one.bins])
    parts = [axes(x, y, along, share=share)]
    if zero:
        parts.append(f'<path class="zero" d="M{LEFT} {at(y(0))}H{WIDTH - RIGHT}"/>')
    parts += [_band(one, k, x, y) for k, one in drawn]
    parts += [_line(one, k, x, y) for k, one in drawn]
    parts += [_points(one, k, x, y, along, share, many) for k, one in drawn]
    legend = _legend({k: one.name for k, one in drawn}) if many else ""
    numbers = _line_table([one for _, one in drawn], along, share, many)
    return _figure(title, caption, _svg(title, parts), legend, numbers)


def stacked_bars(
    title: str, caption: str, bins: Sequence[Bin], stacks: Mapping[str, Sequence[int]], unit: str
) -> str:
    """Counts by bin of training steps, stacked in the order given; `unit` is what is counted."""
    names = list(stacks)
    if len(names) > SERIES:  # the rest in one
        rest = [sum(stacks[n][k] for n in names[SERIES - 1 :]) for k in range(len(bins))]
        stacks = {**{n: stacks[n] for n in names[: SERIES - 1]}, "others": rest}
    if not any(map(any, stacks.values())):
        return _figure(title, caption, '<p class="none">None.</p>', "", "")
    totals = [sum(counts[k] for counts in stacks.values()) for k in range(len(bins))]
    y = Scale.up(0, 1.04 * max(totals), whole=True)
    x = Scale.along(bins)
    width = max(1.0, 0.8 * (WIDTH - LEFT - RIGHT) / max(1, columns_of(bins)))
    parts = [axes(x, y, TRAINING)]
    below = [0] * len(bins)
    for number_of, (name, counts) in enumerate(stacks.items()):
        bars = []
        for k, count in enumerate(counts):
            if not count:
                continue
            top, bottom = y(below[k] + count), y(below[k])
            below[k] += count
            said = f"{span_of(bins[k])}: {name}, {number(count)} of {number(totals[k])} {unit}"
            left = x(middle(bins[k])) - width / 2
            bars.append(
                f'<rect x="{at(left)}" y="{at(top)}" width="{at(width)}" '
                f'height="{at(bottom - top)}"><title>{text(said)}</title></rect>'
            )
        parts.append(f'<g class="bars s{number_of}">{"".join(bars)}</g>')
    rows = [
        [span_of(b), *(number(c[k]) for c in stacks.values()), number(totals[k])]
        for k, b in enumerate(bins)
    ]
    numbers = table(["training", *stacks, "all"], rows)
    return _figure(
        title, caption, _svg(title, parts), _legend(dict(enumerate(stacks)), bars=True), numbers
    )


def heat_map(
    title: str,
    caption: str,
    columns: Sequence[Bin],
    rows: Sequence[str],
    cells: Sequence[Sequence[Estimate | None]],
    scale: tuple[float, float],
    *,
    share: bool = False,
) -> str:
    """One row a step index, one column a bin of training steps, the figure as a colour.

    `scale` is what the first and the last colour stand for.
    """
    low, high = scale
    cells = [[*map(drawable, row)] for row in cells]
    wide, left, tall = 640, 26, 18
    across, bottom = (wide - left - 2) / len(columns), len(rows) * tall
    parts = []
    for r, row in enumerate(cells):
        parts.append(_word("end", left - 6, (r + 0.5) * tall + 4, rows[r]))
        for c, cell in enumerate(row):
            said = "no rollouts" if cell is None else _said(cell, share=share)
            here = f"step index {rows[r]}, {span_of(columns[c])}: {said}"
            colour = "gap" if cell is None else f"h{_level(cell.value, low, high)}"
            parts.append(
                f'<rect class="{colour}" x="{at(left + c * across)}" y="{r * tall}" '
                f'width="{at(across - 0.8)}" height="{tall - 0.8}">'
                f"<title>{text(here)}</title></rect>"
            )
    for c in range(0, len(columns), math.ceil(len(columns) / 10)):
        parts.append(_word("middle", left + (c + 0.5) * across, bottom + 16, str(columns[c][0])))
    parts.append(_word("middle", (left + wide) / 2, bottom + 33, TRAINING))
    svg = (
        f'<div class="scroll" tabindex="0"><svg class="wide" viewBox="0 0 {wide} {bottom + 38}" '
        f'role="img" aria-label="{text(title)}">{"".join(parts)}</svg></div>'
    )
    ramp = "".join(
        f'<rect class="h{k}" x="{k * 10}" y="0" width="10.2" height="10"/>' for k in range(RAMP)
    )
    empty = _key('<rect class="gap" x="4" y="1" width="14" height="10"/>', "no rollouts")
    legend = (
        f'<p class="legend">{number(low, share=share)} <svg class="ramp" viewBox="0 0 {RAMP * 10} '
        f'10" aria-hidden="true">{ramp}</svg> {number(high, share=share)}{empty}</p>'
    )
    body = [
        [span_of(columns[c]), *(with_interval(row[c], share=share) for row in cells)]
        for c in range(len(columns))
    ]
    numbers = table(["training", *(f"step index {name}" for name in rows)], body)
    return _figure(title, caption, svg, legend, numbers)


def _band(one: Series, number_of: int, x: Scale, y: Scale) -> str:
    paths = []
    for part in _unbroken(one, with_bands=True):
        if len(part) == 1:  # a whisker
            bins, v = part[0]
            left = x(middle(bins)) - 2
            paths.append(f"M{at(left)} {at(y(v.high))}h4V{at(y(v.low))}h-4Z")
            continue
        up = [f"{at(x(middle(b)))} {at(y(v.high))}" for b, v in part]
        down = [f"{at(x(middle(b)))} {at(y(v.low))}" for b, v in reversed(part)]
        paths.append(f"M{'L'.join(up)}L{'L'.join(down)}Z")
    return f'<path class="band s{number_of}" d="{"".join(paths)}"/>' if paths else ""


def _line(one: Series, number_of: int, x: Scale, y: Scale) -> str:
    parts = [part for part in _unbroken(one, with_bands=False) if len(part) > 1]
    path = "".join(
        "M" + "L".join(f"{at(x(middle(b)))} {at(y(v.value))}" for b, v in part) for part in parts
    )
    return f'<path class="line s{number_of}" d="{path}"/>' if path else ""


def _unbroken(one: Series, *, with_bands: bool) -> list[list[tuple[Bin, Estimate]]]:
    parts: list[list[tuple[Bin, Estimate]]] = [[]]
    for bins, value in zip(one.bins, one.values, strict=True):
        if value is None or (with_bands and not math.isfinite(value.low + value.high)):
            parts.append([])
        else:
            parts[-1].append((bins, value))
    return [part for part in parts if part]


def _points(
    one: Series, number_of: int, x: Scale, y: Scale, along: str, share: bool, named: bool
) -> str:
    marks = []
    for bins, value in zip(one.bins, one.values, strict=True):
        if value is None:
            continue
        prefix = f"{one.name}, " if named else ""
        said = f"{prefix}{where(bins, along)}: {_said(value, share=share)}"
        outline = _marker(number_of, x(middle(bins)), y(value.value))
        marks.append(f'<path d="{outline}"><title>{text(said)}</title></path>')
    few = " few" if len(marks) <= 24 else ""
    return f'<g class="points s{number_of}{few}">{"".join(marks)}</g>'


def _marker(number_of: int, x: float, y: float, r: float = 2.1) -> str:
    """A disc, a square, a triangle, a diamond: told apart without colour."""
    a, b = at(x), at(y)
    kind = number_of % 4
    if kind == 0:
        return f"M{at(x - r)} {b}a{r} {r} 0 1 0 {2 * r:g} 0a{r} {r} 0 1 0 {-2 * r:g} 0Z"
    if kind == 1:
        return f"M{at(x - r)} {at(y - r)}h{2 * r:g}v{2 * r:g}h{-2 * r:g}Z"
    if kind == 2:
        return f"M{a} {at(y - 1.3 * r)}l{1.25 * r:g} {2.2 * r:g}h{-2.5 * r:g}Z"
    d = 1.4 * r
    return f"M{a} {at(y - d)}l{d:g} {d:g}l{-d:g} {d:g}l{-d:g} {-d:g}Z"


def _said(value: Estimate, *, share: bool) -> str:
    said = with_interval(value, share=share)
    return f"{said}, n = {number(value.n)}" if value.n else said


def _legend(names: Mapping[int, str], *, bars: bool = False) -> str:
    keys = []
    for k, name in names.items():
        sign = (
            f'<rect class="bars s{k}" x="4" y="1" width="14" height="10"/>'
            if bars
            else f'<path class="line s{k}" d="M1 6H21"/>'
            f'<g class="points few s{k}"><path d="{_marker(k, 11, 6, 2.8)}"/></g>'
        )
        keys.append(_key(sign, name))
    return f'<p class="legend">{"".join(keys)}</p>'


def _key(sign: str, name: str) -> str:
    drawn = f'<svg class="sign" viewBox="0 0 22 12" aria-hidden="true">{sign}</svg>'
    return f'<span class="key">{drawn}{text(name)}</span>'


def _line_table(series: Sequence[Series], along: str, share: bool, named: bool) -> str:
    head = [along]
    rows: dict[Bin, dict[int, list[str]]] = {}
    for one in series:
        head += [one.name if named else "value"]
        banded = any(v is not None and math.isfinite(v.low) for v in one.values)
        counted = any(v is not None and v.n for v in one.values)
        head += ["95 % interval"] if banded else []
        head += ["n"] if counted else []
        for bins, value in zip(one.bins, one.values, strict=True):
            row = rows.setdefault(bins, {})
            cells = ["–" if value is None else number(value.value, share=share)]
            if banded:
                cells.append("" if value is None else interval(value, share=share))
            if counted:
                cells.append("" if value is None else number(value.n))
            row[id(one)] = cells
    widths = {
        id(one): next(len(row[id(one)]) for row in rows.values() if id(one) in row)
        for one in series
    }
    body = [
        [
            where(bins, along),
            *(c for one in series for c in rows[bins].get(id(one), [""] * widths[id(one)])),
        ]
        for bins in sorted(rows)
    ]
    return table(head, body)


def _figure(title: str, caption: str, picture: str, legend: str, numbers: str) -> str:
    details = f"<details><summary>numbers</summary>{numbers}</details>" if numbers else ""
    said = f"<span>{text(caption)}</span>" if caption else ""
    return (
        f"<figure><figcaption><strong>{text(title)}</strong>"
        f"{said}</figcaption>{legend}{picture}{details}</figure>"
    )


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _word(anchor: str, x: float, y: float, said: str) -> str:
    return f'<text class="{anchor}" x="{at(x)}" y="{at(y)}">{text(said)}</text>'


def _level(value: float, low: float, high: float) -> int:
    return min(RAMP - 1, max(0, int((value - low) / (high - low) * RAMP)))
