"""Formats figures and texts for a terminal, by its width, its colours and its characters.

This module decides how a number looks, what stands for a missing number, and how values over
training become a line of blocks. Where the terminal has no UTF-8 (a bare ssh, a pipe in the C
locale) all output is ASCII. Where it has no colour, other signs replace the colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from srl.console import is_unicode, visible
from srl.logs.figures import Metric
from srl.stats import Estimate

_BLOCKS = "▁▂▃▄▅▆▇█"
_LETTERS = ".:-=+*#@"

# Characters of a text for one line that are used; the rest is ignored. No terminal is that wide.
_LINE = 2_000


@dataclass(frozen=True)
class Pen:
    """The properties of a terminal that decide how figures and texts are written.

    Attributes:
        width: its number of columns.
        height: its number of lines; None if the output is not a terminal and may have any length.
        encoding: the encoding of the output.
        colour: whether colours are shown.
    """

    width: int = 120
    height: int | None = None
    encoding: str = "utf-8"
    colour: bool = False

    @classmethod
    def of(cls, console: Console) -> Pen:
        return cls(
            console.width,
            console.height if console.is_terminal else None,
            console.encoding,
            console.color_system is not None and not console.no_color,
        )

    @property
    def unicode(self) -> bool:
        return is_unicode(self.encoding)

    @property
    def short(self) -> bool:
        """Whether the terminal has fewer than 40 lines, so that some parts are left out."""
        return self.height is not None and self.height < 40

    @property
    def arrow(self) -> str:
        return "→" if self.unicode else "->"

    @property
    def overflow(self) -> Literal["ellipsis", "crop"]:
        """How rich cuts a long text; without Unicode it crops, as its ellipsis is not ASCII."""
        return "ellipsis" if self.unicode else "crop"

    def say(self, text: str) -> str:
        """Returns any text on one line, with every character of it visible."""
        return visible(text, self.encoding)

    def line(self, text: str, style: str = "") -> Text:
        """Returns any text as the single line of a table cell, cut where the cell ends."""
        printable = self.say(text[:_LINE])
        return Text(printable, style=style, no_wrap=True, overflow=self.overflow)

    def clip(self, text: str, cells: int) -> str:
        """Returns any text, cut to at most `cells` columns of the terminal."""
        printable = self.say(text[:_LINE])
        if cell_len(printable) <= cells and len(text) <= _LINE:
            return printable
        dots = "…" if self.unicode else ".."
        return set_cell_size(printable, max(0, cells - len(dots))) + dots[:cells]

    def spark(self, values: Sequence[float | None]) -> str:
        """Returns a sparkline: one character for each value, scaled from the lowest to the highest.

        A missing value is a space. If the values do not change, it is a flat line, which does not
        look like any height.
        """
        known = [value for value in values if value is not None and math.isfinite(value)]
        if not known:
            return " " * len(values)
        low, high = min(known), max(known)
        signs = _BLOCKS if self.unicode else _LETTERS
        span = high / 2 - low / 2  # the difference of the halves cannot overflow

        def sign(value: float | None) -> str:
            if value is None or not math.isfinite(value):
                return " "
            if span <= 5e-10 * max(1.0, abs(high)):
                return "─" if self.unicode else "_"
            part = (value / 2 - low / 2) / span
            # A value on a border counts as above it, in spite of rounding errors.
            return signs[min(len(signs) - 1, int(part * len(signs) + 1e-9))]

        return "".join(map(sign, values))

    def change(self, metric: Metric, first: Estimate | None, last: Estimate | None) -> str:
        """Returns `0.802 → 0.991`, or an empty string if one of the two is missing."""
        if first is None or last is None:
            return ""
        return f"{figure(metric, first.value)} {self.arrow} {figure(metric, last.value)}"


def number(value: float | None, *, sign: bool = False) -> str:
    """Returns a reward or a similar value as text; `-` if there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 1e6:
        return f"{value:+.3g}" if sign else f"{value:.3g}"
    if abs(value) >= 1e3:
        return f"{value:+,.0f}" if sign else f"{value:,.0f}"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Returns a share as a percentage; `-` if there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f}%"


def figure(metric: Metric, value: float | None) -> str:
    """Returns a metric's value as text: a share in per cent, tokens with one decimal."""
    if metric.share:
        return percent(value)
    if metric.name == "completion_tokens" and value is not None and math.isfinite(value):
        return f"{value:,.1f}"
    return number(value)


def interval(metric: Metric, estimate: Estimate) -> str:
    """Returns `[0.948, 0.958]`, or an empty string if there is no interval, as for one problem."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"[{figure(metric, estimate.low)}, {figure(metric, estimate.high)}]"


def tally(counts: Mapping[str, int], pen: Pen) -> str:
    """Returns counts as `missing_close 5, truncated 3`, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{pen.say(name)} {count:,}" for name, count in ordered)
