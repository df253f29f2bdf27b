"""Makes a page of what a policy could learn from each source, by step index and by length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from srl.logs.report.charts import Bin, Series, line_chart
from srl.logs.report.markup import bare_page, table
from srl.stats import Estimate


@dataclass(frozen=True)
class Column:
    """A figure in tables and charts.

    Attributes:
        name: its name in learnability.json.
        label: the title of its column.
        about: one sentence about it.
        share: whether it is shown in per cent.
    """

    name: str
    label: str
    about: str
    share: bool = False

    def shown(self, figure: Mapping[str, float | None]) -> str:
        """Returns the value with its interval, or with `too few` if there is no interval."""
        scale, digits = (100, 0) if self.share else (1, 2)
        estimate = _estimate(figure)
        value, low, high = (scale * v for v in (estimate.value, estimate.low, estimate.high))
        interval = f"{low:.{digits}f}, {high:.{digits}f}" if math.isfinite(low) else "too few"
        return f"{value:.{digits}f} [{interval}]"


COLUMNS = (
    Column(
        "log_prob",
        "log-prob a token",
        "Mean log-probability of the expert's tokens, given the context, in nats.",
    ),
    Column(
        "unlikely",
        "tokens below 1 %",
        "Share of the expert's tokens that the policy gives less than one per cent.",
        share=True,
    ),
    Column(
        "similarity",
        "similarity",
        "Mean similarity of the policy's valid attempts with the expert's step.",
    ),
    Column(
        "above_floor",
        "above the floor",
        "How much nearer attempts are to the expert's step than to steps of other problems that "
        "are as long.",
    ),
    Column("lift", "lift", "How much nearer they are to it than the step before it is."),
    Column(
        "kept",
        "groups kept",
        "Share of the groups of attempts whose rewards differ, so that SRL would train on them.",
        share=True,
    ),
    Column("std", "spread", "Mean standard deviation of the rewards in a group."),
    Column(
        "format_failures",
        "format failures",
        "Share of the attempts that break the format.",
        share=True,
    ),
)
"""The figures, in the order of the tables."""


def page(what: Mapping[str, Any]) -> str:
    """Returns the page, which loads no other file.

    Args:
        what: the contents of learnability.json.
    """
    sources = what["sources"]
    charts = []
    for column in COLUMNS:
        for key, axis in (("by_step_index", "step index"), ("by_length", "tokens of the step")):
            series = [_series(name, of[key], column.name) for name, of in sources.items()]
            title = f"{column.label} by {axis}"
            charts.append(line_chart(title, column.about, series, share=column.share, axis=axis))
    body = [
        [name, of["all"]["steps"], *(_cell(of["all"], column) for column in COLUMNS)]
        for name, of in sources.items()
    ]
    head = ["source", "steps", *(column.label for column in COLUMNS)]
    title = f"learnability of {len(sources)} sources for {what['policy']}"
    return bare_page(title, f'{table(head, body)}<div class="charts">{"".join(charts)}</div>')


def _estimate(figure: Mapping[str, float | None]) -> Estimate:
    """Reads an estimate from learnability.json, where a null bound becomes NaN."""
    low, high = (math.nan if (v := figure[part]) is None else v for part in ("low", "high"))
    return Estimate(cast(float, figure["value"]), low, high, int(cast(float, figure["n"])))


def _series(name: str, cells: Mapping[str, Mapping[str, Any]], figure: str) -> Series:
    bins = [_bin(label) for label in cells]
    values = [_estimate(cell[figure]) if figure in cell else None for cell in cells.values()]
    return Series(name, bins, values)


def _bin(label: str) -> Bin:
    first, _, last = label.partition("-")
    return int(first), int(last or first)


def _cell(figures: Mapping[str, Any], column: Column) -> str:
    return column.shown(figures[column.name]) if column.name in figures else "–"
