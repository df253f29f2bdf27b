"""Pieces of HTML from values that nobody vouches for: text, numbers, tables.

Names, settings and problems reach a report as they stand in the log, and some were written by a
model. So every value passes `text` here: HTML is escaped, quotes included, and what an eye cannot
see (controls, direction overrides, zero widths, lone surrogates) is spelt out. Numbers are written
one way everywhere: shares in per cent, figures below ten with three decimals, larger ones with
three digits.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

from srl.console import spelt
from srl.stats import Estimate

# No name, setting or label is as long; texts of rollouts do not come this way.
LONGEST = 2_000


def text(value: object, *, most: int = LONGEST) -> str:
    """`value` to stand in HTML, between tags or between quotes."""
    words = str(value)
    if len(words) > most:
        words = f"{words[:most]}… ({len(words):,} characters)"
    return html.escape(spelt(words), quote=True)


def number(value: float | None, *, share: bool = False) -> str:
    """A figure as a reader wants it; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if share:
        shown = f"{100 * value:.1f}"
    elif isinstance(value, int):
        shown = f"{value:,}"
    elif abs(value) >= 99.95:
        shown = f"{value:,.0f}"
    elif abs(value) >= 9.9995:
        shown = f"{value:.1f}"
    elif value == 0 or abs(value) >= 0.001:
        shown = f"{value:.3f}"
    else:
        shown = f"{value:.2e}"
    # "-0.000" is no figure, and a minus is no hyphen.
    if re.fullmatch(r"-0\.?0*", shown):
        shown = shown[1:]
    return shown.replace("-", "−") + (" %" if share else "")


def interval(estimate: Estimate, *, share: bool = False) -> str:
    """`[low, high]`, or nothing where there is no interval."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    low, high = (number(v, share=share).removesuffix(" %") for v in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def with_interval(estimate: Estimate | None, *, share: bool = False) -> str:
    """`46.6 % [42.5, 50.7]`."""
    if estimate is None:
        return "–"
    shown = number(estimate.value, share=share)
    return f"{shown} {interval(estimate, share=share)}".rstrip()


def points(gain: Estimate) -> str:
    """A difference of shares: `+25.2 points [21.2, 29.2]`."""
    shown = f"{100 * gain.value:+.1f}".replace("-", "−")
    return f"{shown} points {interval(gain, share=True)}"


def seconds(value: float) -> str:
    """`6 min 18 s`."""
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: int) -> str:
    """`1.4 MB`."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} kB"


Cell = object  # text, or a figure with its interval, or `Raw`


class Raw(str):
    """HTML made here, not to be escaped again."""


def table(
    head: Sequence[str], rows: Iterable[Sequence[Cell]], *, words: int = 1, tail: int = 0
) -> str:
    """A table whose first `words` and last `tail` columns are words, and the others figures."""
    numbers = range(words, len(head) - tail)
    titles = "".join(
        f'<th scope="col"{_class(k in numbers)}>{text(title)}</th>' for k, title in enumerate(head)
    )
    body = "".join(f"<tr>{_row(row, numbers)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[Cell], numbers: range) -> str:
    cells = []
    for k, cell in enumerate(row):
        inner = cell if isinstance(cell, Raw) else text(cell)
        if k == 0:
            cells.append(f'<th scope="row">{inner}</th>')
        else:
            cells.append(f"<td{_class(k in numbers)}>{inner}</td>")
    return "".join(cells)


def _class(is_number: bool) -> str:
    return ' class="n"' if is_number else ""


def figure_cell(estimate: Estimate | None, *, share: bool = False) -> Raw:
    """A figure with its interval beside it, smaller."""
    if estimate is None:
        return Raw("–")
    between = interval(estimate, share=share)
    said = f' <span class="ci">{between}</span>' if between else ""
    return Raw(f"{number(estimate.value, share=share)}{said}")
