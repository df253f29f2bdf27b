"""Collects the figures of a run's overview: is it complete, did it learn, where does it fail.

The figures come from `figures.py` and `run_data.py`. `overview_tables.py` draws them, and
`--figures --json` writes them for scripts, so that no script has to parse tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srl.logs.figures import (
    Metric,
    Yield,
    all_of,
    bins_of,
    counts,
    metrics_of,
    over_training,
    sampling_yield,
)
from srl.logs.filters import Filter
from srl.logs.index import Log
from srl.logs.run_data import RunData
from srl.logs.terminal.by_column import (
    Grouped,
    cells_json,
    estimate_json,
    grouped,
    table_of,
)
from srl.logs.tried_steps import TriedStep, extremes
from srl.stats import Estimate

GROUPS = Metric("groups", "groups kept", "share used in the update, over groups of training", True)
TABLES = ("step_index", "steps_left", "num_steps", "source")


@dataclass(frozen=True)
class Course:
    """A metric over all records, and its course over training.

    Attributes:
        metric: the metric.
        whole: its estimate over all records.
        first, last: its estimates over the first and the last fifth of the training steps; None if
            the records are of one training step only, or none of them counts there.
        trend: one value for each bin of training.
    """

    metric: Metric
    whole: Estimate
    first: Estimate | None
    last: Estimate | None
    trend: list[float | None]


@dataclass(frozen=True)
class Time:
    """Seconds of the whole run so far, and tokens written per second of sampling and updating."""

    sampling: float
    updating: float
    validating: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class Overview:
    """The figures of those records of a run that pass a filter.

    Attributes:
        records, problems, groups: how many there are.
        tokens: the tokens of all completions together.
        steps: (first, last) training step.
        bins: (first, last) training step of each bin of a trend.
        fifths: the same for the first and the last fifth; None if there is one training step only.
        courses: the metrics.
        failures: reason of a format failure -> how many records.
        sampling: the groups of training; None if no record is of training.
        time: the times; None if metrics.jsonl has none.
        tables: column -> its values, or those with the most records; columns with one value only
            are left out.
        extremes: the best, worst and most improved steps; `row` is a row of the log.
    """

    records: int
    problems: int
    groups: int
    tokens: int
    steps: tuple[int, int]
    bins: list[tuple[int, int]]
    fifths: tuple[tuple[int, int], tuple[int, int]] | None
    courses: list[Course]
    failures: Mapping[str, int]
    sampling: Yield | None
    time: Time | None
    tables: Mapping[str, Grouped]
    extremes: Mapping[str, Sequence[TriedStep]]


def overview(
    data: RunData, rows: np.ndarray, *, bins: int = 40, most: int = 5, values: int = 10
) -> Overview:
    """Returns the figures of these rows of the log; there must be at least one row.

    Args:
        data: the run.
        rows: row numbers from `Filter.rows`.
        bins: how many values a trend has at most.
        most: how many best, worst and most improved steps there are at most.
        values: how many values a table has at most.
    """
    log = data.log
    table = table_of(log, rows)
    metrics = metrics_of(log)
    whole = all_of(table, metrics)
    trends = over_training(table, metrics, most=bins)
    steps = table["train_step"].to_numpy()
    span = int(steps.min()), int(steps.max())
    fifths = _fifths(table)
    early, late = (None, None) if fifths is None else (_within(table, part) for part in fifths)
    first, last = (None if t is None else all_of(t, metrics) for t in (early, late))
    courses = []
    for metric in metrics:
        name = metric.name
        if (value := whole.metrics[name][0]) is not None:
            courses.append(
                Course(
                    metric,
                    value,
                    first.metrics[name][0] if first else None,
                    last.metrics[name][0] if last else None,
                    [
                        None if estimate is None else estimate.value
                        for estimate in trends.metrics[name]
                    ],
                )
            )
    sampled = sampling_yield(table, most=1)
    if sampled:
        kept = [_kept(part) for part in (table, early, late)]
        trend = [part.kept / part.tried for part in sampling_yield(table, most=bins)]
        if kept[0] is not None:
            courses.append(Course(GROUPS, kept[0], kept[1], kept[2], [*trend]))
    return Overview(
        records=table.num_rows,
        problems=whole.problems[0],
        groups=whole.groups[0],
        tokens=int(pc.sum(table["completion_tokens"]).as_py()),
        steps=span,
        bins=[key for key in trends.keys if isinstance(key, tuple)],
        fifths=fifths,
        courses=courses,
        failures={name: sum(n) for name, n in counts(table, "format_failure", most=1)[1].items()},
        sampling=sampled[0] if sampled else None,
        time=_time(data),
        tables=_tables(log, rows, values),
        extremes=extremes(log.table, rows, most),
    )


def _fifths(table: pa.Table) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Returns the first and the last of five bins of training, which the remarks compare."""
    bins = bins_of(table, 5)[1]
    return (bins[0], bins[-1]) if len(bins) > 1 else None


def _within(table: pa.Table, steps: tuple[int, int]) -> pa.Table:
    column = table["train_step"]
    return table.filter(
        pc.and_(pc.greater_equal(column, steps[0]), pc.less_equal(column, steps[1]))
    )


def _tables(log: Log, rows: np.ndarray, most: int) -> dict[str, Grouped]:
    tables = {}
    for column in TABLES:
        count = len(pc.unique(log.table[column].take(pa.array(rows))))
        if count > 1:
            sort = "-records" if count > most else None
            tables[column] = grouped(log, rows, column, sort=sort, limit=most)
    return tables


def _kept(table: pa.Table | None) -> Estimate | None:
    """Returns the share of groups that were kept, without an interval."""
    sampled = sampling_yield(table, most=1) if table is not None else []
    return (
        Estimate(sampled[0].kept / sampled[0].tried, math.nan, math.nan, sampled[0].tried)
        if sampled
        else None
    )


def _time(data: RunData) -> Time | None:
    totals = data.totals()
    if "seconds/collect" not in totals:
        return None
    sampling, updating = totals["seconds/collect"], totals.get("seconds/update", 0.0)
    seconds, tokens = sampling + updating, totals.get("tokens")
    validating = sum(value for _, value in data.validation_figures().get("seconds", ()))
    speed = tokens / seconds if tokens is not None and seconds > 0 else None
    return Time(sampling, updating, validating, speed)


def overview_json(data: RunData, wanted: Filter, figures: Overview) -> dict[str, object]:
    """Returns everything that the overview shows, for JSON."""
    sampling, gain = figures.sampling, data.gain()
    return {
        "run": str(data.folder.path),
        "complete": data.complete,
        "unfinished_bytes": data.log.unfinished,
        "records_in_log": data.log.table.num_rows,
        "filter": wanted.words,
        "records": figures.records,
        "problems": figures.problems,
        "groups": figures.groups,
        "tokens": figures.tokens,
        "train_steps": figures.steps,
        "bins": figures.bins,
        "fifths": figures.fifths,
        "metrics": {
            course.metric.name: {
                "label": course.metric.label,
                "formula": course.metric.formula,
                **course.whole.to_json(),
                "first_fifth": estimate_json(course.first),
                "last_fifth": estimate_json(course.last),
                "trend": course.trend,
            }
            for course in figures.courses
            if course.metric is not GROUPS
        },
        "format_failures": figures.failures,
        "sampling": None
        if sampling is None
        else {
            "tried": sampling.tried,
            "kept": sampling.kept,
            "dropped": sampling.dropped,
            "trend": next(c.trend for c in figures.courses if c.metric is GROUPS),
        },
        "time": None if figures.time is None else asdict(figures.time),
        "accuracies": [
            {
                "when": accuracy.when,
                "mode": accuracy.mode,
                "sampled": accuracy.sampled,
                **accuracy.estimate.to_json(),
                "failures": accuracy.failures,
            }
            for accuracy in data.accuracies()
        ],
        "gain": estimate_json(gain),
        "validations": [
            {"step": step, **estimate.to_json()} for step, estimate in data.validation_accuracy()
        ],
        "by": {column: cells_json(grouping.cells) for column, grouping in figures.tables.items()},
        "values": {column: grouping.values for column, grouping in figures.tables.items()},
        "extremes": {
            name: [
                {k: v for k, v in asdict(step).items() if k != "row"} | {"line": step.row + 1}
                for step in steps
            ]
            for name, steps in figures.extremes.items()
        },
    }
