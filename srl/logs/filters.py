"""Selects records by options: `--step-index 3 --kept false --reward lt:0.2 --train-step 40:60`.

All views use the same `Filter`. It is applied to the index, not to the log, so a million records
take a fraction of a second.
"""

from __future__ import annotations

import argparse
import math
import shlex
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srl.errors import UsageError
from srl.logs.index import METRIC, REWARD, Log
from srl.runs.records import MOST

_COMPARE = {
    "lt": pc.less,
    "le": pc.less_equal,
    "gt": pc.greater,
    "ge": pc.greater_equal,
    "eq": pc.equal,
    "ne": pc.not_equal,
}
_RANGES = {  # option -> column
    "train-step": "train_step",
    "step-index": "step_index",
    "steps-left": "steps_left",
    "num-steps": "num_steps",
    "group": "group_id",
}
_NUMBERS = {  # option -> column
    "reward": "reward",
    "similarity": REWARD + "similarity",
    "metric": METRIC,  # followed by a name
    "lift": METRIC + "lift",
    "advantage": "advantage",
    "tokens": "completion_tokens",
    "group-std": "group_std",
}
_TRUTHS = {  # option -> column
    "kept": "kept",
    "exact": METRIC + "exact",
    "copied": "copied",
    "truncated": "truncated",
}
_ORDERS = (
    "train_step", "step_index", "num_steps", "reward", "advantage", "group_mean", "group_std",
    "completion_tokens", "prompt_tokens", "problem_id",
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Whole numbers from `low` to `high`, both included; None means no limit."""

    low: int | None
    high: int | None

    @classmethod
    def parse(cls, text: str, option: str) -> Range:
        """Reads a range from text of the form `40`, `40:60`, `40:` or `:60`.

        Raises:
            UsageError: the text has no such form, a number is too large, or the range is empty.
        """
        low, colon, high = text.partition(":")
        try:
            first = int(low) if low else None
            last = int(high) if high else None
        except ValueError:
            first = last = None
        if first is None and last is None:
            raise UsageError(f"{option} {text}: a number, or a range such as 40:60, 40: or :60")
        if max(abs(first or 0), abs(last or 0)) > MOST:
            raise UsageError(f"{option} {text}: numbers go up to {MOST}")
        if not colon:
            last = first
        if first is not None and last is not None and first > last:
            raise UsageError(f"{option} {text}: the range is empty; try {option} {last}:{first}")
        return cls(first, last)

    def mask(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Returns a mask of the values that lie in the range."""
        mask = pc.is_valid(column)
        if self.low is not None:
            mask = pc.and_(mask, pc.greater_equal(column, self.low))
        if self.high is not None:
            mask = pc.and_(mask, pc.less_equal(column, self.high))
        return mask


@dataclass(frozen=True)
class Comparison:
    """A comparison of a column with a number, such as `reward lt:0.2`.

    Records without a value never pass.
    """

    column: str
    relation: str
    number: float

    @classmethod
    def parse(cls, text: str, option: str, column: str) -> Comparison:
        """Reads a comparison of the form `lt:0.2`.

        `--reward` also accepts `NAME:lt:0.2`, and `--metric` accepts only that form.

        Raises:
            UsageError: the text does not have a form that the option accepts.
        """
        head, _, number = text.rpartition(":")
        name, _, relation = head.rpartition(":")
        by_name = {"--reward": REWARD, "--metric": METRIC}.get(option)
        if name and by_name:
            column = by_name + name
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        wrong = bool(name) if by_name is None else column == METRIC
        if relation not in _COMPARE or not math.isfinite(value) or wrong:
            if option == "--metric":
                raise UsageError(
                    f"{option} {text}: the name of a metric and a comparison, such as lift:lt:0.2; "
                    f"allowed: a name, {', '.join(_COMPARE)} and a number, with colons between"
                )
            named = ", or NAME:lt:0.2 for one reward" if option == "--reward" else ""
            raise UsageError(
                f"{option} {text}: a comparison such as lt:0.2{named}; "
                f"allowed: {', '.join(_COMPARE)}, then a colon and a number"
            )
        return cls(column, relation, value)


@dataclass(frozen=True)
class Filter:
    """The conditions that a record must meet; a field that is None or empty is no condition.

    Attributes:
        words: the filter as options, for messages. Values are quoted so that a shell can read it.
    """

    phase: str = "train"
    ranges: dict[str, Range] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    truths: dict[str, bool] = field(default_factory=dict)
    failure: str | None = None
    comparisons: tuple[Comparison, ...] = ()
    words: str = "--phase train"

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Filter:
        """Makes a filter from the parsed options of `add_filters`.

        Raises:
            UsageError: a value cannot be read.
        """
        typed: list[str] = []

        def note(option: str, value: str) -> None:
            # After a space, a value that starts with a minus would be read as an option.
            between = "=" if value.startswith("-") else " "
            typed.append(f"--{option}{between}{shlex.quote(value)}")

        def given(option: str) -> str | None:
            value = getattr(args, option.replace("-", "_"))
            if value is not None:
                note(option, value)
            return value

        ranges = {
            column: Range.parse(text, f"--{option}")
            for option, column in _RANGES.items()
            if (text := given(option)) is not None
        }
        names = {name: text for name in ("problem", "source") if (text := given(name)) is not None}
        truths = {
            column: text == "true"
            for name, column in _TRUTHS.items()
            if (text := given(name)) is not None
        }
        comparisons = []
        for option, column in _NUMBERS.items():
            for text in getattr(args, option.replace("-", "_")) or ():
                comparisons.append(Comparison.parse(text, f"--{option}", column))
                note(option, text)
        failure = given("failure")
        if args.failures_only:
            failure = failure or "any"
            typed.append("--failures-only")
        typed.append(f"--phase {args.phase}")
        return cls(args.phase, ranges, names, truths, failure, tuple(comparisons), " ".join(typed))

    def rows(self, log: Log) -> np.ndarray:
        """Returns the row numbers (N,) in the log's table that pass, in the log's order.

        Raises:
            UsageError: a comparison names a reward or a metric that the log does not have.
        """
        table = log.table
        if not table.num_rows:  # a log that was cut back, in which no reward has a name yet
            return np.zeros(0, dtype=np.int64)
        selected = pa.chunked_array([pa.array(np.ones(table.num_rows, dtype=bool))])

        def ask(mask: pa.ChunkedArray) -> None:
            nonlocal selected
            selected = pc.and_(selected, pc.fill_null(mask, False))

        if self.phase != "all":
            ask(pc.equal(_text(table["phase"]), self.phase))
        for column, wanted in self.ranges.items():
            ask(wanted.mask(table[column]))
        if (problem := self.names.get("problem")) is not None:
            ask(pc.starts_with(_text(table["problem_id"]), problem))
        if (source := self.names.get("source")) is not None:
            ask(pc.equal(_text(table["source"]), source))
        for column, truth in self.truths.items():
            if column not in table.column_names:  # every record has a broken format
                return np.zeros(0, dtype=np.int64)
            ask(pc.equal(table[column], pa.scalar(truth).cast(table[column].type)))
        if self.failure == "none":
            ask(pc.is_null(table["format_failure"]))
        elif self.failure is not None:
            failed = _text(table["format_failure"])
            ask(pc.is_valid(failed) if self.failure == "any" else pc.equal(failed, self.failure))
        for comparison in self.comparisons:
            if comparison.column not in table.column_names:
                kind, _, name = comparison.column.partition("/")
                known = log.reward_names if kind == "rewards" else log.metric_names
                has = ", ".join(known) or "none"
                raise UsageError(f"no record has a {kind[:-1]} {name!r}; the log has: {has}")
            compare = _COMPARE[comparison.relation]
            ask(compare(table[comparison.column], comparison.number))
        return np.flatnonzero(selected.to_numpy())


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a filter, which are the same in all commands that read a log."""
    group = parser.add_argument_group("which records")
    numbers = "a number or a range: 40, 40:60, 40: or :60"
    for option, help_text in (
        ("train-step", f"optimiser step; {numbers}"),
        ("step-index", f"the expert's step, from 0; {numbers}"),
        ("steps-left", "how many of the expert's steps follow; 0: the last"),
        ("num-steps", "how many steps the expert takes"),
        ("group", "the group within its optimiser step"),
    ):
        also = ["--step"] if option == "train-step" else []
        group.add_argument(f"--{option}", *also, metavar="N", help=help_text)
    group.add_argument("--problem", metavar="ID", help="the problem whose id begins so")
    group.add_argument("--source", metavar="NAME", help="the data set or teacher")
    for option, help_text in (
        ("kept", "used in the update"),
        ("exact", "the expert's step to the letter"),
        ("copied", "the step before, to the letter"),
        ("truncated", "cut at the allowed length"),
    ):
        group.add_argument(f"--{option}", choices=("true", "false"), help=help_text)
    group.add_argument("--failure", metavar="NAME", help="this format failure; any, or none")
    group.add_argument("--failures-only", action="store_true", help="the same as --failure any")
    for option in _NUMBERS:
        named = "; NAME:lt:0.2 for one reward" if option == "reward" else ""
        group.add_argument(
            f"--{option}",
            action="append",
            metavar="NAME:lt:0.2" if option == "metric" else "lt:0.2",
            help=f"lt, le, gt, ge, eq or ne a number{named}",
        )
    group.add_argument(
        "--phase", choices=("train", "eval", "all"), default="train", help="default: train"
    )


def in_order(log: Log, rows: np.ndarray, sort: str | None) -> np.ndarray:
    """Returns `rows` sorted by a column of the table, or by `-NAME` in descending order.

    A name means a column, else a metric, else a reward; `metrics/NAME` and `rewards/NAME` say
    which. None keeps the order of the log. Records without a value come last. Ties stay in the
    log's order.

    Raises:
        UsageError: the table cannot be sorted by that name.
    """
    if sort is None:
        return rows
    down, name = sort.startswith("-"), sort.lstrip("-")
    known = [*_ORDERS, *(n for n in log.table.column_names if n.startswith((METRIC, REWARD)))]
    column = next((n for n in (name, METRIC + name, REWARD + name) if n in known), None)
    if column is None and name == "lift":  # no record has a lift
        return rows
    if column is None:
        allowed = ", ".join(dict.fromkeys([*_ORDERS, *log.metric_names, *log.reward_names]))
        raise UsageError(
            f"--sort {sort}: allowed are {allowed}; a minus in front, as in --sort=-reward, turns "
            "the order round"
        )
    values = log.table[column].take(pa.array(rows))
    if pa.types.is_dictionary(values.type):
        values = pc.rank(_text(values), sort_keys="ascending", tiebreaker="min")
    keys = pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)  # null: NaN, sorted last
    return rows[np.argsort(-keys if down else keys, kind="stable")]


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(column, pa.string())
