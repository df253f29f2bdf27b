"""Draws the overview of `srl inspect`: a run on one or two screens, the first questions on top.

Is it complete? Was it worth it (problems solved before and after)? Did it learn (each metric with
its interval and its course)? Where does it fail (by step, source and length), on which steps?
Names and texts may come from anybody: control characters are spelt out, and markup is not read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from srl.console import clock
from srl.logs.filters import Filter
from srl.logs.index import Log
from srl.logs.opening import opening
from srl.logs.run_data import RunData
from srl.logs.terminal.by_column import grouped_table
from srl.logs.terminal.overview import Course, Overview
from srl.logs.terminal.pen import Pen, figure, interval, number, percent, tally
from srl.logs.tried_steps import TriedStep
from srl.runs.attempts import Accuracy
from srl.stats import Estimate

FIFTHS = "first {arrow} last"
_LEAST_TREND, _MOST_TREND = 8, 60


def overview_parts(
    data: RunData, wanted: Filter, figures: Overview, pen: Pen
) -> list[RenderableType]:
    """Returns the overview's sections in order: the run, metrics, tables, best and worst steps."""
    parts: list[RenderableType] = [
        *(Text(pen.say(sentence)) for sentence in opening(data)),
        Text(),
        about(data, wanted, figures, pen),
        Text(),
        courses(figures, pen),
    ]
    for table in figures.tables.values():
        parts += [Text(), grouped_table(table, None, pen)]
    if len(figures.extremes["worst"]) > 1:
        parts += [Text(), _extremes(data.log, figures, pen)]
    return parts


def about(data: RunData, wanted: Filter, figures: Overview, pen: Pen) -> Table:
    """Returns a table with the run's name, its state, its records, problems solved, and times."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")

    def row(label: str, content: str, style: str = "") -> None:
        grid.add_row(Text(label, style="bold"), Text(content, style=style))

    row("run", pen.say(str(data.folder.path)))
    row("state", state(data), "" if data.complete else "yellow")
    first, last = figures.steps
    steps = f"training steps {first:,} to {last:,}" if first != last else f"training step {first:,}"
    row(
        "records",
        f"{figures.records:,} of {data.log.table.num_rows:,} ({pen.say(wanted.words)}): "
        f"{figures.problems:,} problems, {figures.groups:,} groups, {steps}, "
        f"{figures.tokens:,} tokens",
    )
    for line in _solved(data, pen):
        row("solved", line)
    if validations := data.validation_accuracy():
        row("validation", _validation(validations, pen))
    if (taken := figures.time) is not None:
        speed = taken.tokens_per_second
        row(
            "time",
            f"{clock(taken.sampling)} sampling, {clock(taken.updating)} updating, "
            f"{clock(taken.validating)} validating; "
            + (f"{speed:,.0f} tokens/s" if speed is not None else "tokens/s unknown"),
        )
    return grid


def state(data: RunData) -> str:
    """Returns in words whether the run is complete, and whether its last record is whole."""
    steps = data.log.table["train_step"].to_numpy()
    reached = f"training step {int(steps.max()):,}"
    if data.complete:
        sentence = f"complete, after {reached}"
    else:
        most = (data.config or {}).get("max_steps")
        of = f" of {most:,}" if isinstance(most, int) and most > 0 else ""
        age = max(0.0, time.time() - data.folder.steps.stat().st_mtime)
        sentence = f"not complete: {reached}{of}; a record was last written {_ago(age)} ago"
    if data.log.unfinished:
        sentence += (
            f"; the last {data.log.unfinished:,} bytes of the log are no whole record: "
            "it is being written, or was cut off"
        )
    return sentence


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def _solved(data: RunData, pen: Pen) -> list[str]:
    """Returns a line for each way of solving: before, after, and the change."""
    ways: dict[tuple[str, bool], list[Accuracy]] = {}
    for accuracy in data.accuracies():
        ways.setdefault((accuracy.mode, accuracy.sampled), []).append(accuracy)
    lines = []
    for (mode, sampled), accuracies in ways.items():
        parts = [
            (
                f"{percent(accuracy.estimate.value)} {_range(accuracy.estimate)} "
                f"{pen.say(accuracy.when)}"
            ).replace("  ", " ")
            for accuracy in accuracies
        ]
        way = {"steps": "step by step", "whole": "whole solution"}.get(mode, pen.say(mode))
        line = f" {pen.arrow} ".join(parts)
        gain = None if sampled else data.gain(mode)
        if gain is not None:
            line += f": {100 * gain.value:+.1f} {_range(gain)}"
        how = "sampled" if sampled else "greedy"
        lines.append(f"{line}; {accuracies[-1].estimate.n:,} problems, {way}, {how}")
    return lines


def _range(estimate: Estimate) -> str:
    if not (np.isfinite(estimate.low) and np.isfinite(estimate.high)):
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _validation(validations: Sequence[tuple[int, Estimate]], pen: Pen) -> str:
    def at_step(step: int, estimate: Estimate) -> str:
        return f"{percent(estimate.value)} {_range(estimate)} at step {step:,}".replace("  ", " ")

    if len(validations) <= 3:
        return f" {pen.arrow} ".join(at_step(*validation) for validation in validations)
    best = max(validations, key=lambda validation: validation[1].value)
    trend = pen.spark([estimate.value for _, estimate in validations][-_MOST_TREND:])
    ends = f"{at_step(*validations[0])} {pen.arrow} {at_step(*validations[-1])}"
    return f"{ends}; best {at_step(*best)}  {trend}"


# ---- metrics ------------------------------------------------------------------------------------


def courses(figures: Overview, pen: Pen) -> Group:
    """Returns a table of metrics: mean, interval, course over training, first and last fifth."""
    rows = [_course_row(course, pen) for course in figures.courses if course.metric.name != "kept"]
    # Only the label's column wraps; the trend gets the width that is left.
    longest = max(cell_len(row[0]) for row in rows)
    titles = {1: "mean", 2: "95% interval", 4: FIFTHS.format(arrow=pen.arrow)}
    taken = 0
    for k, title in titles.items():
        taken += max(len(text) for text in (title, *(str(row[k]) for row in rows))) + 2
    label = max(12, min(longest, 24, pen.width - taken - 2))
    room = min(_MOST_TREND, pen.width - taken - label - 4)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("", overflow="fold", width=label)
    table.add_column(titles[1], justify="right", no_wrap=True)
    table.add_column(titles[2], no_wrap=True)
    trend = len(figures.bins) > 1 and room >= _LEAST_TREND
    if trend:
        table.add_column("over training", no_wrap=True)
    if figures.fifths is not None:
        table.add_column(titles[4], no_wrap=True)
    for name, value, between, values, change in rows:
        cells = [Text(name), Text(value, style="bold"), Text(between, style="dim")]
        if trend:
            cells.append(Text(pen.spark(_squeezed(values, room)), style="cyan"))
        if figures.fifths is not None:
            cells.append(Text(change))
        table.add_row(*cells)
    notes = Table.grid(padding=(0, 2))
    notes.add_column(no_wrap=True)
    notes.add_column(overflow="fold")
    if figures.fifths is not None:
        (_, first), (last, end) = figures.fifths
        note = (
            f"the first and the last fifth of training: steps {figures.steps[0]:,} to {first:,}, "
        )
        notes.add_row(
            Text(FIFTHS.format(arrow=pen.arrow), style="bold"), Text(f"{note}{last:,} to {end:,}")
        )
    if figures.failures:
        notes.add_row(Text("failures", style="bold"), Text(tally(figures.failures, pen)))
    if figures.sampling is not None:
        whole = figures.sampling
        note = f"{whole.kept:,} kept of {whole.tried:,} tried"
        note += f"; dropped: {tally(whole.dropped, pen)}" if whole.dropped else ""
        notes.add_row(Text("groups", style="bold"), Text(note))
    return Group(table, notes)


_Row = tuple[str, str, str, Sequence[float | None], str]


def _course_row(course: Course, pen: Pen) -> _Row:
    metric, whole = course.metric, course.whole
    return (
        pen.say(metric.label),
        figure(metric, whole.value),
        interval(metric, whole),
        course.trend,
        pen.change(metric, course.first, course.last),
    )


def _squeezed(values: Sequence[float | None], room: int) -> Sequence[float | None]:
    """Returns at most `room` values, each the mean of about equally many neighbours."""
    if len(values) <= room:
        return values
    parts = np.array_split(np.array(values, dtype=np.float64), room)
    return [float(np.nanmean(p)) if not np.isnan(p).all() else None for p in parts]


def _extremes(log: Log, figures: Overview, pen: Pen) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    roomy = pen.width >= 76
    for title in ("steps", "record", *(("k/N", "tried") if roomy else ()), "mean"):
        table.add_column(title, no_wrap=True, justify="left" if title == "steps" else "right")
    table.add_column(FIFTHS.format(arrow=pen.arrow), no_wrap=True)
    table.add_column("expert's step")
    for name in ("most improved", "worst", "best"):
        steps = figures.extremes[name]
        if not steps:
            none = pen.line("none was tried at two training steps and got better", "dim")
            table.add_row(Text(name, style="bold"), *[Text("-")] * (5 if roomy else 3), none)
        records = log.read([step.row for step in steps])
        for k, (step, record) in enumerate(zip(steps, records, strict=True)):
            place = Text(f"{record.step_index + 1}/{record.num_steps}"), Text(f"{step.rollouts:,}")
            table.add_row(
                Text(name if k == 0 else "", style="bold"),
                Text(f"#{step.row + 1}"),
                *(place if roomy else ()),
                Text(number(step.reward)),
                Text(_tried_change(step, pen)),
                pen.line(record.expert_step),
            )
    return table


def _tried_change(step: TriedStep, pen: Pen) -> str:
    if step.first_step == step.last_step:
        return number(step.first)
    return f"{number(step.first)} {pen.arrow} {number(step.last)}"
