"""Charts as SVG, drawn here: lines over training with their 95 % bands.

Each is a <figure> that can be read three ways: the picture, a tooltip on every point,
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
    drawable,
    middle,
    where,
)
from srl.logs.report.markup import interval, number, table, text, with_interval
from srl.stats import Estimate

SERIES = 6  # how many series the style sheet can tell apart


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


def _legend(names: Mapping[int, str]) -> str:
    keys = [
        '<span class="key"><svg class="sign" viewBox="0 0 22 12" aria-hidden="true">'
        f'<path class="line s{k}" d="M1 6H21"/><g class="points few s{k}">'
        f'<path d="{_marker(k, 11, 6, 2.8)}"/></g></svg>{text(name)}</span>'
        for k, name in names.items()
    ]
    return f'<p class="legend">{"".join(keys)}</p>'


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
