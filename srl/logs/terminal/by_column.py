"""Shows all metrics of the records by the values of one column: `srl inspect --by COLUMN`.

The table uses the width of the terminal. If there is not enough room, it leaves out the intervals,
then the counts of problems and groups, then the last metrics, and a note says which columns are
missing. If a column has a million values, figures are computed only for those that are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from srl.errors import UsageError
from srl.logs.figures import (
    Cells,
    Metric,
    cells_of,
    codes,
    groups_in,
    metrics_of,
    name_codes,
    values_of,
)
from srl.logs.filters import Filter
from srl.logs.index import Log
from srl.logs.run_data import RunData
from srl.logs.terminal.pen import Pen, figure, interval
from srl.stats import Estimate

BY = (
    "step_index", "steps_left", "num_steps", "source", "problem", "problem_id", "train_step",
    "format_failure", "phase",
)  # fmt: skip
_COUNTS = ("records", "problems", "groups")


@dataclass(frozen=True)
class Grouped:
    """The figures of some or all values of a column, in order; `values` counts all values."""

    column: str
    cells: Cells
    values: int
    metrics: list[Metric]


def table_of(log: Log, rows: np.ndarray) -> pa.Table:
    """Returns these rows of the log's table."""
    return log.table if len(rows) == log.table.num_rows else log.table.take(pa.array(rows))


def grouped(
    log: Log, rows: np.ndarray, column: str, *, sort: str | None = None, limit: int | None = None
) -> Grouped:
    """Groups these rows of the log by a column.

    Args:
        log: the log.
        rows: row numbers from `Filter.rows`.
        column: one of `BY`.
        sort: a count, a metric, or `key`; a minus in front reverses the order. None: by the value
            itself, and problems from the lowest mean reward up.
        limit: how many values to show at most.

    Raises:
        UsageError: the values cannot be sorted by that name.
    """
    column = "problem_id" if column == "problem" else column
    table, metrics = table_of(log, rows), metrics_of(log)
    sort = sort or ("reward" if column == "problem_id" else "key")
    down, name = sort.startswith("-"), sort.lstrip("-")
    named = {alias: metric for metric in metrics for alias in (metric.label, metric.name)}
    if name not in (*_COUNTS, "key") and name not in named:
        allowed = ", ".join(dict.fromkeys(["key", *_COUNTS, *(m.name for m in metrics)]))
        raise UsageError(f"--sort {sort}: a table can be sorted by {allowed}; -NAME goes downwards")
    cells, keys = codes(table[column])
    values = sort_values(table, cells, len(keys), name, named.get(name))
    # The sort is stable, and keys without a value come last. Only the shown keys get all figures.
    order = np.argsort(-values if down else values, kind="stable")[:limit]
    place = np.full(len(keys), -1)
    place[order] = np.arange(len(order))
    chosen = place[cells] >= 0
    shown = cells_of(
        table.filter(pa.array(chosen)), place[cells[chosen]], [keys[k] for k in order], metrics
    )
    return Grouped(column, shown, len(keys), metrics)


def sort_values(
    table: pa.Table, cells: np.ndarray, count: int, name: str, metric: Metric | None
) -> np.ndarray:
    """Returns the sort keys of the cells (count,): `key`, one of `_COUNTS`, or a metric's mean."""
    if name == "key":
        return np.arange(count, dtype=np.float64)
    if metric is not None:
        values = values_of(table, metric)
        there = ~np.isnan(values)
        n = np.bincount(cells[there], minlength=count)
        total = np.bincount(cells[there], weights=values[there], minlength=count)
        return np.divide(total, n, out=np.full(count, np.nan), where=n > 0)
    if name == "problems":
        problems = name_codes(table["problem_id"])
        cells = np.unique(np.stack([cells, problems]), axis=1)[0]
    elif name == "groups":
        cells = cells[groups_in(table, cells)]
    return np.bincount(cells, minlength=count).astype(np.float64)


def cells_json(cells: Cells) -> list[dict[str, object]]:
    """Returns each cell with its key and figures, for JSON."""
    return [
        {
            "key": key,
            "records": cells.records[k],
            "problems": cells.problems[k],
            "groups": cells.groups[k],
            "metrics": {name: estimate_json(values[k]) for name, values in cells.metrics.items()},
        }
        for k, key in enumerate(cells.keys)
    ]


def estimate_json(estimate: Estimate | None) -> dict[str, float | int] | None:
    return None if estimate is None else estimate.to_json()


def grouped_json(data: RunData, wanted: Filter, grouping: Grouped) -> dict[str, object]:
    """Returns the table for scripts: all metrics with their intervals."""
    return {
        "run": str(data.folder.path),
        "by": grouping.column,
        "filter": wanted.words,
        "values": grouping.values,
        "cells": cells_json(grouping.cells),
    }


def grouped_table(grouping: Grouped, wanted: Filter | None, pen: Pen) -> Group:
    """Returns the table, as wide as the terminal allows, and a line on what it leaves out.

    `wanted` is the filter of the records; None if it is shown elsewhere.
    """
    cells = grouping.cells
    columns = [
        _Column("records", [f"{n:,}" for n in cells.records]),
        _Column("problems", [f"{n:,}" for n in cells.problems]),
        _Column("groups", [f"{n:,}" for n in cells.groups]),
    ]
    metrics = [
        m
        for m in grouping.metrics
        if any(estimate is not None for estimate in cells.metrics[m.name])
    ]
    keys = ["none" if key is None else pen.clip(str(key), 32) for key in cells.keys]
    room = pen.width - max(map(cell_len, [grouping.column, *keys]))
    plain = [_column(metric, cells, pen, bounds=False) for metric in metrics]
    full = [_column(metric, cells, pen, bounds=True) for metric in metrics]
    # Tries all intervals, then only those of the first metric, then none.
    for some in (full, [*full[:1], *plain[1:]], plain):
        chosen = [*columns, *some]
        if sum(column.width + 2 for column in chosen) <= room:
            break
    left_out: list[str] = []
    while len(chosen) > 1 and sum(column.width + 2 for column in chosen) > room:
        # Problems and groups are left out first, because the table is about the metrics.
        place = next((k for k, c in enumerate(chosen) if c.title in ("groups", "problems")), -1)
        left_out.append(chosen.pop(place).title)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(grouping.column, no_wrap=True)
    for column in chosen:
        table.add_column(column.title, justify="right", no_wrap=True)
    for k, key in enumerate(keys):
        table.add_row(Text(key), *(Text(column.shown[k]) for column in chosen))
    parts: list[RenderableType] = [table]
    notes = []
    if grouping.values > len(keys):
        how = "--limit" if wanted else f"--by {grouping.column}"
        notes.append(f"{len(keys):,} of {grouping.values:,} shown; {how} shows more")
    if left_out and wanted:
        missing = ", ".join(left_out)
        notes.append(f"this terminal is too narrow to show {missing} too; --json has all columns")
    if grouping.column == "step_index":
        notes.append("step_index counts from 0")
    if wanted:
        notes.append(f"records: {pen.say(wanted.words)}")
    parts += [Text(". ".join(notes), style="dim")] if notes else []
    return Group(*parts)


@dataclass(frozen=True)
class _Column:
    title: str
    shown: list[str]

    @property
    def width(self) -> int:
        return max(map(cell_len, [self.title, *self.shown]))


def _column(metric: Metric, cells: Cells, pen: Pen, *, bounds: bool) -> _Column:
    def shown(estimate: Estimate | None) -> str:
        if estimate is None:
            return "-"
        value = figure(metric, estimate.value)
        return f"{value} {interval(metric, estimate)}".rstrip() if bounds else value

    return _Column(pen.clip(metric.label, 24), [shown(e) for e in cells.metrics[metric.name]])
