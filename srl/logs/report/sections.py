"""Makes the parts of a report: key figures, remarks, curves, tables, steps of note, settings.

Each function takes the runs to show, one or two to compare, and returns a piece of HTML. In most
charts each run has one line, and two runs share the chart. Figures come from `figures.py` and
`run_data.py` and keep their names from there, so a new metric in the log needs no code here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from srl.logs.figures import (
    FIXED,
    REWARD_METRIC,
    Cells,
    Metric,
    by,
    codes,
    counts,
    grid,
    metrics_of,
    most_frequent,
    only,
    over_training,
    sampling_yield,
    thinned,
)
from srl.logs.opening import opening
from srl.logs.report.charts import SERIES, Bin, Series, heat_map, line_chart, plain_series, span_of
from srl.logs.report.markup import Raw, number, points, table, text, with_interval
from srl.logs.report.remarks import fifths, remarks_of
from srl.logs.run_data import Points, RunData
from srl.logs.tried_steps import TriedStep
from srl.redaction import shareable, shareable_command
from srl.runs.folder import flattened, plain
from srl.runs.records import SUMMED
from srl.stats import Estimate

BINS = 60
COLUMNS, ROWS = 12, 40  # the most that a heat map has
LONGEST_TABLE, PROBLEMS = 100, 20
_EXCERPT = 140
_COMMAND = 20_000  # how many characters of command.txt are shown
_LONGEST_LINK = 200  # an id has 16 characters, unless another program wrote the log
_OF_SOURCES = ("reward", "lift", "exact", "format_failures", "kept", "group_std")


@dataclass(frozen=True)
class Named:
    """A run and its name on the page.

    Attributes:
        name: the name of the run.
        run: its data.
        tag: a suffix of titles and keys that are of this run only; empty if it is the only run.
        link: a prefix of places in the log that names the run; empty for the first run.
    """

    name: str
    run: RunData
    tag: str = ""
    link: str = ""

    @cached_property
    def train(self) -> pa.Table:
        """The records of training."""
        return only(self.run.log.table, "train")


Runs = Sequence[Named]


def overview(runs: Runs) -> str:
    """Returns the state of each run, and its key figures at the start and end, with intervals."""
    return "".join(
        _facts(named_run) + table(("", "first", "last", ""), _key_figures(named_run))
        for named_run in runs
    )


def _facts(named_run: Named) -> str:
    run, steps = named_run.run, named_run.run.log.table["train_step"]
    asked = (run.config or {}).get("max_steps")
    of = f" of {asked:,}" if isinstance(asked, int) and asked > 0 else ""
    started = (run.environment or {}).get("started")
    facts = [
        "complete" if run.complete else "not complete",
        f"training step {pc.max(steps).as_py():,}{of}",
        f"{len(steps):,} rollouts recorded, "
        f"{len(steps) - len(named_run.train):,} of them in validations",
        *([f"started {started}"] if started else []),
    ]
    paragraphs = "".join(f"<p>{text(sentence)}</p>" for sentence in opening(run, named_run.name))
    return (
        f"<h3>{text(named_run.name)}</h3>{paragraphs}<p class=facts>{text(' · '.join(facts))}</p>"
    )


def _key_figures(named_run: Named) -> list[list[object]]:
    run, rows = named_run.run, []
    solved = {a.when: a.estimate for a in run.accuracies() if a.mode == "steps" and not a.sampled}
    before, after, gain = solved.get("before"), solved.get("after"), run.gain()
    if before or after:
        note = points(gain) if gain else ""
        if after and run.policy_step is not None:
            note += f"; after: policy of step {run.policy_step:,}, the best on validation"
        shown = (with_interval(estimate, share=True) for estimate in (before, after))
        rows.append(["held-out problems solved", *shown, note])
    elif validations := run.validation_accuracy():
        ends = validations[0], validations[-1]
        shown = (with_interval(accuracy, share=True) for _, accuracy in ends)
        when = " → ".join(f"step {step}" for step, _ in ends)
        rows.append(["validation problems solved", *shown, when])
    parts = fifths(run)
    for metric in metrics_of(run.log) if parts.keys else ():
        cells = parts.metrics[metric.name]
        if any(cells):
            shown = (with_interval(cell, share=metric.share) for cell in (cells[0], cells[-1]))
            when = " → ".join(span_of(b) for b in (_bins(parts)[0], _bins(parts)[-1]))
            rows.append([metric.label, *shown, when])
    for part in sampling_yield(run.log.table, most=1):
        kept = f"{part.kept:,} of {part.tried:,} tried"
        rows.append(["groups kept", "", number(part.kept / part.tried, share=True), kept])
        took = f"in {number(run.seconds())} s" if run.seconds() else ""
        tokens = pc.sum(named_run.train["completion_tokens"]).as_py()
        rows.append(["tokens written", "", number(tokens), took])
    return rows  # type: ignore[return-value]


def remarks(runs: Runs) -> str:
    """Returns the list of remarks on each run, by the rules of `remarks.py`."""
    parts = []
    for named_run in runs:
        items = "".join(
            f'<li class="{"good" if r.good else "look"}">{text(r.text)}</li>'
            for r in remarks_of(named_run.run)
        )
        name = f"<h3>{text(named_run.name)}</h3>" if named_run.tag else ""
        none = '<p class="none">None of the automatic checks found a problem.</p>'
        parts.append(name + (f"<ul class=remarks>{items}</ul>" if items else none))
    return "".join(parts)


# ---- curves -------------------------------------------------------------------------------------


def training(runs: Runs) -> str:
    """Returns charts of all metrics of rollouts, and of failed and dropped rollouts by reason."""
    charts = _metric_charts(runs, [named_run.train for named_run in runs], "")
    for column, title in (("format_failure", "Format failures"), ("dropped_because", "Dropped")):
        for named_run in runs:
            bins, reasons = counts(named_run.train, column, most=BINS)
            lines = [
                plain_series(name, list(zip(bins, map(float, n), strict=True)))
                for name, n in reasons.items()
            ]
            charts.append(line_chart(f"{title} by reason{named_run.tag}", "Rollouts.", lines))
    return _charts(charts, "No rollouts of training in this log.")


def _metric_charts(runs: Runs, tables: Sequence[pa.Table], prefix: str) -> list[str]:
    metrics = _metrics(runs)
    over = [
        over_training(records, metrics_of(named_run.run.log), most=BINS)
        for named_run, records in zip(runs, tables, strict=True)
    ]
    return [
        line_chart(
            prefix + metric.label,
            _sentence(metric),
            [
                _series(named_run.name, cells, metric)
                for named_run, cells in zip(runs, over, strict=True)
            ],
            share=metric.share,
        )
        for metric in metrics
    ]


def optimisation(runs: Runs) -> str:
    """Returns charts of the figures that only metrics.jsonl has, without those that stay zero."""
    known = {name for metric in _metrics(runs) for name in (metric.name, metric.label)}
    names = dict.fromkeys(name for named_run in runs for name in named_run.run.training_figures())
    charts = []
    for name in names:
        lines = [_figure(named_run.run, name) for named_run in runs]
        zero = not any(value for line in lines for _, value in line)
        if name not in known and not name.startswith("format_failures/") and not zero:
            charts.append(_plain(name, runs, lines))
    return _charts(charts, "No metrics.jsonl in this folder.")


def _figure(run: RunData, name: str) -> Points:
    return run.per_step(name) if name.startswith(SUMMED) else run.training_figures().get(name, [])


def _plain(title: str, runs: Runs, lines: Sequence[Points]) -> str:
    pairs = zip(runs, lines, strict=True)
    about = "Per training step." if title.startswith(SUMMED) else ""
    return line_chart(
        title,
        about,
        [plain_series(named_run.name, thinned(line, 2 * BINS)) for named_run, line in pairs],
    )


def by_index(runs: Runs) -> str:
    """Returns heat maps of reward and exact steps, by step index and training.

    All runs have the same scale.
    """
    maps = []
    for metric in (REWARD_METRIC, FIXED["exact"]):
        grids = [grid(named_run.train, metric, most=COLUMNS) for named_run in runs]
        every = [c for part in grids for row in part.cells for c in row if c is not None]
        values = [c.value for c in every if math.isfinite(c.value)]
        scale = (0.0, 1.0) if metric.share else (min(values, default=0.0), max(values, default=1.0))
        for named_run, part in zip(runs, grids, strict=True):
            about = _sentence(metric)
            if len(part.rows) > ROWS:
                about += f" {len(part.rows) - ROWS} more rows are not shown."
            rows = [f"step index {row}" for row in part.rows[:ROWS]]
            title = f"{metric.label} by step index{named_run.tag}"
            columns, cells = list(map(span_of, part.columns)), part.cells[:ROWS]
            if values:
                maps.append(heat_map(title, about, columns, rows, cells, scale, share=metric.share))
    return _charts(maps)


def by_source(runs: Runs) -> str:
    """Returns charts of each source over training; a run with one source only has none."""
    metrics = [FIXED[name] for name in _OF_SOURCES]
    charts = []
    for named_run in runs:
        records = most_frequent(named_run.train, "source", SERIES)
        cells, names = codes(records["source"])
        if len(names) < 2:
            continue
        parts = [
            over_training(records.filter(pa.array(cells == k)), metrics, most=BINS)
            for k in range(len(names))
        ]
        for metric in metrics:
            lines = [_series(str(n), part, metric) for n, part in zip(names, parts, strict=True)]
            title = f"{metric.label} by source{named_run.tag}"
            charts.append(line_chart(title, _sentence(metric), lines, share=metric.share))
    return _charts(charts)


def evaluation(runs: Runs) -> str:
    """Returns the shares of validation and held-out problems solved, and metrics of validations."""
    lines = []
    for named_run in runs:
        validations = named_run.run.validation_accuracy()
        every = max(1, -(-len(validations) // (2 * BINS)))
        # Thins out a long list, and keeps the last point.
        validations = validations[::-1][::every][::-1]
        lines.append(
            Series(named_run.name, [(s, s) for s, _ in validations], [e for _, e in validations])
        )
    about = "Share of the validation problems solved, with Wilson's interval."
    charts = [line_chart("validation problems solved", about, lines, share=True)]
    tables = [only(named_run.run.log.table, "eval") for named_run in runs]
    charts += _metric_charts(runs, tables, "validation steps: ")
    shown = _charts(charts) + _held_out(runs)
    return shown or '<p class="none">This run has evaluated nothing yet.</p>'


def _held_out(runs: Runs) -> str:
    rows: list[list[object]] = []
    for named_run in runs:
        for accuracy in named_run.run.accuracies():
            way = "step by step" if accuracy.mode == "steps" else "whole solution"
            how = "sampled" if accuracy.sampled else "greedy"
            what = f"{accuracy.when}, {way}, {how}{named_run.tag}"
            why = sorted(accuracy.failures.items(), key=lambda item: (-item[1], item[0]))
            rows.append([what, number(accuracy.estimate.n), _solved(accuracy.estimate),
                         ", ".join(f"{name} {count:,}" for name, count in why)])  # fmt: skip
        if gain := named_run.run.gain():
            rows.append([f"after − before{named_run.tag}", number(gain.n), points(gain), ""])
    if not rows:
        return ""
    parts = [_titled("held-out problems", ("", "problems", "solved", "why not"), rows)]
    for named_run in runs:
        if times := named_run.run.solved_by("num_steps"):
            lengths = sorted({int(str(k)) for by_length in times.values() for k in by_length})
            body = [
                [k, *(_solved(by_length.get(k)) for by_length in times.values())] for k in lengths
            ]
            title = f"solved by number of expert's steps{named_run.tag}"
            parts.append(_titled(title, ["steps", *times], body))
    return "".join(parts)


def _solved(estimate: Estimate | None) -> str:
    return with_interval(estimate, share=True)


# ---- tables -------------------------------------------------------------------------------------


def tables(runs: Runs) -> str:
    """Returns tables of metrics by step index, steps left, number of steps, source and problem."""
    return "".join(
        (
            _by_table(runs, "step_index", "step index"),
            _by_table(runs, "steps_left", "steps left"),
            _by_table(runs, "num_steps", "expert's steps"),
            _by_table(runs, "source", "source"),
            _by_table(runs, "problem_id", "problem", PROBLEMS),
        )
    )


def _by_table(runs: Runs, column: str, title: str, most: int = LONGEST_TABLE) -> str:
    """Returns a table with a row for each value and run.

    For each run it has the `most` values with the most rollouts.
    """
    metrics = [metric for metric in _metrics(runs) if metric.name != "group_std"]
    keyed_rows = []
    for place, named_run in enumerate(runs):
        records = most_frequent(named_run.train, column, most)
        cells = by(records, column, metrics_of(named_run.run.log))
        for k, key in enumerate(cells.keys):
            counted = map(number, (cells.records[k], cells.groups[k], cells.problems[k]))
            values = ((cells.metrics.get(m.name, {k: None})[k], m.share) for m in metrics)
            figures = [with_interval(value, share=share) for value, share in values]
            order = (-cells.records[k] if column == "problem_id" else 0, key, place)
            keyed_rows.append((order, [_key(key, column, named_run), *counted, *figures]))
    if not keyed_rows:
        return ""
    keyed_rows.sort(key=lambda row: row[0])
    some = f" (the {most} with most rollouts)" if len(keyed_rows) >= most else ""
    head = [title, "rollouts", "groups", "problems", *(m.label for m in metrics)]
    return _titled(f"by {title}{some}", head, [row for _, row in keyed_rows])


def _key(key: object, column: str, named_run: Named) -> object:
    if column != "problem_id" or len(str(key)) > _LONGEST_LINK:
        return f"{key}{named_run.tag}"
    asked = quote(str(key), safe="", errors="replace")
    return Raw(
        f'<a href="#find={named_run.link}{text(asked)}">{text(key)}</a>{text(named_run.tag)}'
    )


def steps_of_note(
    runs: Runs,
    of_note: Sequence[Mapping[str, Sequence[TriedStep]]],
    inside: Sequence[Iterable[int]],
) -> str:
    """Returns the best, the worst and the most improved expert steps.

    A step has a link into the viewer if its rollout is embedded in the page.
    """
    parts = []
    head = ("step", "expert's step", "best attempt of the last time", "rollouts", "mean reward",
            "first", "last")  # fmt: skip
    for named_run, lists, here in zip(runs, of_note, map(set, inside), strict=True):
        for title, steps in lists.items():
            records = named_run.run.log.read([step.row for step in steps])
            rows = []
            for step, record in zip(steps, records, strict=True):
                label = text(f"{step.problem_id[:8]}, {step.step_index + 1}/{record.num_steps}")
                link = f'<a href="#r={named_run.link}{step.row + 1}">{label}</a>'
                rows.append(
                    [Raw(link) if step.row in here else label, _excerpt(record.expert_step),
                     _excerpt(record.action), number(step.rollouts), number(step.reward),
                     f"{number(step.first)}, step {step.first_step}",
                     f"{number(step.last)}, step {step.last_step}"]
                )  # fmt: skip
            none = '<p class="none">None was tried at two times, and better at the last.</p>'
            heading = f"<h3>{text(title + named_run.tag)}</h3>"
            parts.append(heading + (table(head, rows) if rows else none))
    return "".join(parts)


def _excerpt(words: str) -> str:
    one_line = " ".join(words.split())
    return one_line if len(one_line) <= _EXCERPT else f"{one_line[:_EXCERPT]}…"


def settings(runs: Runs) -> str:
    """Returns settings, environment and command; the values that differ between runs come first."""
    parts = [
        _flat_table("settings", runs, lambda run: run.config),
        _flat_table("environment", runs, lambda run: run.environment),
    ]
    for named_run in runs:
        path = named_run.run.folder.command
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                command = text(shareable_command(file.read(_COMMAND).strip()), most=_COMMAND)
            parts.append(f"<h3>{text(f'command{named_run.tag}')}</h3><pre>{command}</pre>")
    return "".join(parts)


def _flat_table(
    title: str, runs: Runs, of: Callable[[RunData], Mapping[str, object] | None]
) -> str:
    """Returns a table with the value of each key in each run.

    Secrets and folders are hidden. Values that differ only in a hidden part still count as
    different.
    """
    raw = [plain(of(named_run.run) or {}) for named_run in runs]
    shown = [flattened(shareable(part)) for part in raw]
    hidden = [
        dict(zip(shown_keys, flattened(whole).values(), strict=False))
        for shown_keys, whole in zip(shown, raw, strict=True)
    ]
    keys = list(dict.fromkeys(key for part in shown for key in part if key))
    if not keys:
        return f'<h3>{text(title)}</h3><p class="none">Not recorded in this folder.</p>'
    head = ["key", *(named_run.name for named_run in runs)]
    rows = {key: [key, *(str(part.get(key, "–")) for part in shown)] for key in keys}
    differ = [row for key, row in rows.items() if len({str(p.get(key)) for p in hidden}) > 1]
    first = _titled(f"{title} that differ", head, differ) if differ else ""
    folded = f"<details><summary>{text(title)}</summary>{table(head, rows.values())}</details>"
    return first + folded


# ---- pieces -------------------------------------------------------------------------------------


def _metrics(runs: Runs) -> list[Metric]:
    return list(
        dict.fromkeys(metric for named_run in runs for metric in metrics_of(named_run.run.log))
    )


def _bins(cells: Cells) -> list[Bin]:
    return cells.keys  # type: ignore[return-value]


def _series(name: str, cells: Cells, metric: Metric) -> Series:
    """Returns a line of a chart; it has no points if the run does not have that metric."""
    return Series(name, _bins(cells), cells.metrics.get(metric.name, [None] * len(cells.keys)))


def _sentence(metric: Metric) -> str:
    return f"{metric.formula[:1].upper()}{metric.formula[1:]}."


def _titled(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return f"<h3>{text(title)}</h3>{table(head, rows)}"


def _charts(charts: Sequence[str], none: str = "") -> str:
    if not any(charts):
        return f'<p class="none">{none}</p>' if none else ""
    return f'<div class="charts">{"".join(charts)}</div>'
