"""Computes the figures that the views of a run show from its records.

The report and the terminal show the same figures because both use this module.

A mean over rollouts is the mean of all rollouts that count. Its 95 % interval takes the problem as
the unit, not the rollout, because the G rollouts of a group, and the groups of one problem, are
alike. The mean is a ratio of two sums over problems (the values, and their number). Its variance is
estimated by linearisation (Cochran 1977, 6.3), with Student's t for the number of problems. For a
share the interval is never narrower than Wilson's over rollouts, which is also valid where all
values are 1 or all are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srl.logs.index import METRIC, REWARD, Log
from srl.stats import Estimate, student_t, wilson


@dataclass(frozen=True)
class Metric:
    """A figure about rollouts.

    Attributes:
        name: the name of the metric, the same as in metrics.jsonl if the metric is there.
        label: the name that a reader sees.
        formula: what is averaged, over which rollouts.
        share: whether it is a share, from 0 to 1.
    """

    name: str
    label: str
    formula: str
    share: bool = False


REWARD_METRIC = Metric("reward", "reward", "the weighted sum of the rewards, over all rollouts")
_VALID = "over rollouts in the right format"
FIXED = {
    metric.name: metric
    for metric in (
        REWARD_METRIC,
        Metric(
            "lift",
            "lift",
            "similarity minus that of copying the previous step, "
            f"{_VALID} that have a previous step",
        ),
        Metric("exact", "exact steps", f"share equal to the expert's step, {_VALID}", True),
        Metric(
            "copied",
            "copies",
            f"share equal to the previous step, {_VALID} that have a previous step",
            True,
        ),
        Metric("format_failures", "format failures", "share, over all rollouts", True),
        Metric("kept", "kept", "share used in the update, over rollouts of training", True),
        Metric("completion_tokens", "tokens", "tokens of a completion, over all rollouts"),
        Metric(
            "group_std",
            "group std",
            "population standard deviation of the rewards of its group, over rollouts of training",
        ),
    )
}


def metrics_of(log: Log) -> list[Metric]:
    """Returns the metrics of a log, in the order in which they are shown."""
    named = [
        Metric(
            REWARD + name,
            name,
            f"the reward {name}, {_VALID} that it applies to",
        )
        for name in log.reward_names
    ]
    taken = {metric.label for metric in (*named, *FIXED.values())}
    others = [
        Metric(
            METRIC + name,
            METRIC + name if name in taken else name,
            f"the metric {name}, over the rollouts that have it",
        )
        for name in log.metric_names
        if name not in ("lift", "exact")
    ]
    return [REWARD_METRIC, *named, *(m for m in FIXED.values() if m is not REWARD_METRIC), *others]


def values_of(table: pa.Table, metric: Metric) -> np.ndarray:
    """Returns one value for each record (N,); NaN where the record does not count."""
    name = metric.name
    if name == "format_failures":
        column = pc.is_valid(table["format_failure"])
    elif name == "kept":
        train = pc.equal(pc.cast(table["phase"], pa.string()), "train")
        column = pc.if_else(train, table["kept"], None)
    elif name.startswith(REWARD) or name in ("lift", "exact"):
        name = name if name.startswith(REWARD) else METRIC + name
        if name not in table.column_names:  # no record has it
            return np.full(table.num_rows, np.nan)
        # A record with a failed format has none of these, even if the log has a value.
        column = pc.if_else(pc.is_null(table["format_failure"]), table[name], None)
    else:
        column = table[name]
    return pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)


def codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[object]]:
    """Returns a number for each value (N,), and the values by number, sorted, with null last."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, pa.string())
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    meaning = encoded.dictionary.to_pylist()
    order = sorted(range(len(meaning)), key=lambda i: (meaning[i] is None, meaning[i]))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    numbers = encoded.indices.to_numpy(zero_copy_only=False)
    return rank[numbers], [meaning[i] for i in order]


def name_codes(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a number for each name (N,), equal for equal names, unordered; none may be null."""
    return column.unify_dictionaries().combine_chunks().indices.to_numpy().astype(np.int64)


class Clusters:
    """Computes means and intervals of cells, with the records of a problem in a cell as one unit.

    Args:
        cells: (N,) the cell of each record, from 0.
        problems: (N,) the problem of each record, from 0.
        count: how many cells there are.
    """

    def __init__(self, cells: np.ndarray, problems: np.ndarray, count: int) -> None:
        self.cells, self.count = cells, count
        span = int(problems.max(initial=0)) + 1
        pairs, self._place = np.unique(cells * span + problems, return_inverse=True)
        self._cell_of = pairs // span

    def problems(self) -> list[int]:
        """Returns how many different problems each cell has."""
        return np.bincount(self._cell_of, minlength=self.count).tolist()

    @np.errstate(over="ignore", invalid="ignore")  # of values near the largest float
    def estimates(self, values: np.ndarray, *, share: bool) -> list[Estimate | None]:
        """Returns the mean of each cell with its 95 % interval over problems.

        Args:
            values: (N,), NaN where a record does not count.
            share: whether the values are 0 or 1.

        Returns:
            One estimate for each cell, where `n` is how many records counted; None if none did.
            The interval is NaN if the records are of one problem only.
        """
        counts = ~np.isnan(values)
        cells, place, values = self.cells[counts], self._place[counts], values[counts]
        n = np.bincount(cells, minlength=self.count)
        total = np.bincount(cells, weights=values, minlength=self.count)
        mean = np.divide(total, n, out=np.full(self.count, np.nan), where=n > 0)
        # Sums over the records of each problem, and which problems have a record that counts.
        pairs = len(self._cell_of)
        residuals = np.bincount(place, weights=values - mean[cells], minlength=pairs)
        has = np.bincount(place, minlength=pairs) > 0
        squares = np.bincount(self._cell_of, weights=residuals**2, minlength=self.count)
        units = np.bincount(self._cell_of[has], minlength=self.count)
        return [
            _estimate(float(mean[k]), int(n[k]), int(units[k]), float(squares[k]), share=share)
            for k in range(self.count)
        ]


def _estimate(
    value: float, n: int, problems: int, squares: float, *, share: bool
) -> Estimate | None:
    if n == 0:
        return None
    if problems < 2:
        return Estimate(value, math.nan, math.nan, n)
    half = student_t(problems - 1) * math.sqrt(problems / (problems - 1) * squares) / n
    low, high = value - half, value + half
    if share:
        # In a log from somebody else, a share may have any value.
        apart = wilson(round(min(1.0, max(0.0, value)) * n), n)
        low, high = max(0.0, min(apart.low, low)), min(1.0, max(apart.high, high))
    return Estimate(value, low, high, n)


@dataclass(frozen=True)
class Cells:
    """The figures of records in cells, which are bins of training, step indices, sources or others.

    Attributes:
        keys: the key of each cell: a value of the column, or (first, last) training step of a bin.
        records: how many records each cell has.
        problems: how many different problems each cell has.
        groups: how many groups each cell has.
        metrics: metric's name -> one estimate for each cell, None where no record counts.
    """

    keys: list[object]
    records: list[int]
    problems: list[int]
    groups: list[int]
    metrics: dict[str, list[Estimate | None]]


def all_of(table: pa.Table, metrics: Sequence[Metric]) -> Cells:
    """Returns the figures of all records in one cell."""
    return cells_of(table, np.zeros(table.num_rows, dtype=np.int64), ["all"], metrics)


def by(table: pa.Table, column: str, metrics: Sequence[Metric]) -> Cells:
    """Returns one cell for each value of a column, in order."""
    cells, keys = codes(table[column])
    return cells_of(table, cells, keys, metrics)


def most_frequent(table: pa.Table, column: str, most: int) -> pa.Table:
    """Returns the records of the `most` most frequent values of a column."""
    cells, keys = codes(table[column])
    n = np.bincount(cells, minlength=len(keys))
    chosen = np.argsort(-n, kind="stable")[:most]
    return table.filter(pa.array(np.isin(cells, chosen)))


def over_training(table: pa.Table, metrics: Sequence[Metric], *, most: int) -> Cells:
    """Returns one cell for each bin of training steps."""
    cells, keys = bins_of(table, most)
    return cells_of(table, cells, list(keys), metrics)


def bins_of(table: pa.Table, most: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Returns the bin of each record (N,), and (first, last) training step of each bin.

    There are at most `most` bins. Their numbers of steps differ by at most one, and bins without a
    record are left out.
    """
    steps = table["train_step"].to_numpy().astype(np.int64)
    if not len(steps):
        return np.zeros(0, dtype=np.int64), []
    first, span = int(steps.min()), int(steps.max()) - int(steps.min()) + 1
    used, cells = np.unique(_bin(steps - first, span, most), return_inverse=True)
    return cells, [_steps_of(int(b), first, span, most) for b in used]


def _bin(place: Any, span: int, most: int) -> Any:
    """Returns the bin of a training step that is `place` steps after the first of `span` steps."""
    return place * min(most, span) // span


def _steps_of(number: int, first: int, span: int, most: int) -> tuple[int, int]:
    """Returns the first and the last training step of a bin."""
    count = min(most, span)
    return first - (-number * span // count), first - (-(number + 1) * span // count) - 1


def thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[tuple[int, int], float]]:
    """Returns the means of a figure of metrics.jsonl in at most `most` bins of training steps."""
    if not points:
        return []
    first = min(step for step, _ in points)
    span = max(step for step, _ in points) - first + 1
    parts: dict[int, list[float]] = {}
    for step, value in points:
        parts.setdefault(_bin(step - first, span, most), []).append(value)
    return [
        (_steps_of(k, first, span, most), sum(part) / len(part))
        for k, part in sorted(parts.items())
    ]


@dataclass(frozen=True)
class Grid:
    """A metric by step index and bin of training, for a heat map.

    Attributes:
        columns: (first, last) training step of each bin.
        rows: the step indices.
        cells: [row][column], None where no record counts.
    """

    columns: list[tuple[int, int]]
    rows: list[int]
    cells: list[list[Estimate | None]]


def grid(table: pa.Table, metric: Metric, *, most: int) -> Grid:
    """Returns `metric` by step index and bin of training steps."""
    across, columns = bins_of(table, most)
    down, rows = codes(table["step_index"])
    flat = cells_of(
        table, down * max(1, len(columns)) + across, list(range(len(rows) * len(columns))), [metric]
    ).metrics[metric.name]
    width = len(columns)
    return Grid(
        columns,
        [int(row) for row in rows],  # type: ignore[call-overload]
        [flat[k * width : (k + 1) * width] for k in range(len(rows))],
    )


def counts(
    table: pa.Table, column: str, *, most: int
) -> tuple[list[tuple[int, int]], dict[str, list[int]]]:
    """Counts each name of a column in each bin of training, the most frequent name first.

    Returns:
        The bins, and name -> one count for each bin. Nulls are not counted.
    """
    across, columns = bins_of(table, most)
    names, meaning = codes(table[column])
    by_name = {
        str(name): np.bincount(across[names == k], minlength=len(columns)).tolist()
        for k, name in enumerate(meaning)
        if name is not None
    }
    return columns, dict(sorted(by_name.items(), key=lambda item: (-sum(item[1]), item[0])))


@dataclass(frozen=True)
class Yield:
    """Dynamic sampling in one bin of training: groups tried, kept, and dropped by reason."""

    bin: tuple[int, int]
    tried: int
    kept: int
    dropped: dict[str, int]


def sampling_yield(table: pa.Table, *, most: int) -> list[Yield]:
    """Returns the counts of groups of training, by bin."""
    train = only(table, "train")
    groups = train.take(pa.array(groups_in(train)))
    across, columns = bins_of(groups, most)
    kept = np.bincount(
        across, weights=groups["kept"].to_numpy(zero_copy_only=False), minlength=len(columns)
    )
    tried = np.bincount(across, minlength=len(columns))
    _, dropped = counts(groups, "dropped_because", most=most)
    return [
        Yield(
            columns[k],
            int(tried[k]),
            int(kept[k]),
            {name: numbers[k] for name, numbers in dropped.items() if numbers[k]},
        )
        for k in range(len(columns))
    ]


def rows_of(table: pa.Table, phase: str) -> np.ndarray:
    """Returns the row numbers of one phase."""
    return np.flatnonzero(pc.equal(pc.cast(table["phase"], pa.string()), phase).to_numpy())


def only(table: pa.Table, phase: str) -> pa.Table:
    """Returns the records of one phase."""
    return table.filter(pc.equal(pc.cast(table["phase"], pa.string()), phase))


def cells_of(
    table: pa.Table, cells: np.ndarray, keys: list[object], metrics: Sequence[Metric]
) -> Cells:
    """Returns the figures of each cell.

    `cells` (N,) holds the cell of each record, and `keys` the key of each cell.
    """
    clusters = Clusters(cells, name_codes(table["problem_id"]), len(keys))
    return Cells(
        keys,
        np.bincount(cells, minlength=len(keys)).tolist(),
        clusters.problems(),
        np.bincount(cells[groups_in(table, cells)], minlength=len(keys)).tolist(),
        {
            metric.name: clusters.estimates(values_of(table, metric), share=metric.share)
            for metric in metrics
        },
    )


def groups_in(table: pa.Table, cells: np.ndarray | None = None) -> np.ndarray:
    """Returns the row of each group's first record; with cells, of each group in each cell."""
    phase = name_codes(table["phase"])
    step = table["train_step"].to_numpy().astype(np.int64)
    group = table["group_id"].to_numpy().astype(np.int64)
    key = (step * (int(group.max(initial=0)) + 1) + group) * 2 + phase
    if cells is not None:
        key = key * (int(cells.max(initial=0)) + 1) + cells
    return np.unique(key, return_index=True)[1]
