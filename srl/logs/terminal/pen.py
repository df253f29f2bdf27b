"""How figures and texts are written in a terminal: by its width, its colours and its signs.

One place decides what a number looks like, what stands for a missing one, and how a course over
training becomes a line of blocks. Where the terminal has no UTF-8 (a bare ssh, a pipe in the C
locale) every sign is ASCII; where it has no colour, what colour would say is said in another way.
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

# Characters beyond which a text for one line is not looked at: no terminal is that wide.
_LINE = 2_000


@dataclass(frozen=True)
class Pen:
    """What a terminal can show.

    Attributes:
        width: columns.
        height: lines; None where the output is no terminal and may be of any length.
        encoding: of the output.
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
        """A terminal of few lines: what is less asked for stays out."""
        return self.height is not None and self.height < 40

    @property
    def arrow(self) -> str:
        return "→" if self.unicode else "->"

    @property
    def overflow(self) -> Literal["ellipsis", "crop"]:
        """How rich cuts what is too long: its ellipsis is no ASCII."""
        return "ellipsis" if self.unicode else "crop"

    def say(self, text: str) -> str:
        """Somebody's text on one line, every character of it to be seen."""
        return visible(text, self.encoding)

    def line(self, text: str, style: str = "") -> Text:
        """Somebody's text as the one line of a cell, cut where the cell ends."""
        said = self.say(text[:_LINE])
        return Text(said, style=style, no_wrap=True, overflow=self.overflow)

    def clip(self, text: str, cells: int) -> str:
        """Somebody's text in at most so many cells."""
        said = self.say(text[:_LINE])
        if cell_len(said) <= cells and len(text) <= _LINE:
            return said
        dots = "…" if self.unicode else ".."
        return set_cell_size(said, max(0, cells - len(dots))) + dots[:cells]

    def spark(self, values: Sequence[float | None]) -> str:
        """A course, one sign a value, from its own lowest to its own highest; no value, no sign.

        Where nothing changes it is a line, which looks like no height at all.
        """
        known = [value for value in values if value is not None and math.isfinite(value)]
        if not known:
            return " " * len(values)
        low, high = min(known), max(known)
        signs = _BLOCKS if self.unicode else _LETTERS
        span = high / 2 - low / 2  # halves, whose difference is a number whatever they are

        def sign(value: float | None) -> str:
            if value is None or not math.isfinite(value):
                return " "
            if span <= 5e-10 * max(1.0, abs(high)):
                return "─" if self.unicode else "_"
            part = (value / 2 - low / 2) / span
            # A value on a border counts as above it, whatever its last bit says.
            return signs[min(len(signs) - 1, int(part * len(signs) + 1e-9))]

        return "".join(map(sign, values))

    def change(self, metric: Metric, first: Estimate | None, last: Estimate | None) -> str:
        """`0.802 → 0.991`, or nothing where one is missing."""
        if first is None or last is None:
            return ""
        return f"{figure(metric, first.value)} {self.arrow} {figure(metric, last.value)}"


def number(value: float | None, *, sign: bool = False) -> str:
    """A reward or the like; `-` where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 1e6:
        return f"{value:+.3g}" if sign else f"{value:.3g}"
    if abs(value) >= 1e3:
        return f"{value:+,.0f}" if sign else f"{value:,.0f}"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f}%"


def figure(metric: Metric, value: float | None) -> str:
    """A metric's value as such a metric is read: a share in per cent, tokens with one decimal."""
    if metric.share:
        return percent(value)
    if metric.name == "completion_tokens" and value is not None and math.isfinite(value):
        return f"{value:,.1f}"
    return number(value)


def interval(metric: Metric, estimate: Estimate) -> str:
    """`[0.948, 0.958]`; nothing where there is none, as over one problem."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"[{figure(metric, estimate.low)}, {figure(metric, estimate.high)}]"


def tally(counts: Mapping[str, int], pen: Pen) -> str:
    """`missing_close 5, truncated 3`, most first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{pen.say(name)} {count:,}" for name, count in ordered)
