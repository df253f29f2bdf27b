"""The curves of a report: training, step indices over training, sources, validation.

One run gives one line a chart; two runs share each chart that has lines, and have their own of
those with stacks and colours. Every point comes from `figures.py` or `run_data.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from srl.logs.figures import (
    FIXED,
    REWARD_METRIC,
    Cells,
    Grid,
    Metric,
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
from srl.logs.index import METRIC, REWARD
from srl.logs.report.axes import Series, bins_of, drawable, plain_series, ticks
from srl.logs.report.charts import SERIES, heat_map, line_chart, stacked_bars
from srl.logs.run_data import RunData
from srl.stats import Estimate

BINS = 60
COLUMNS = 40  # of a heat map
ROWS = 40
SOURCES = 6  # lines one can tell apart

# Figures of metrics.jsonl that no record has: name -> title, what it is.
_FIGURES = {
    "loss": (
        "Loss",
        "The objective that is minimised; near zero where all rollouts are on policy.",
    ),
    "grad_norm": ("Gradient norm", "Before it is cut."),
    "learning_rate": ("Learning rate", "Of the optimiser, by the schedule."),
    "max_log_ratio": (
        "Largest log-ratio",
        "Of a token's probability at the update to that at sampling: how far off policy.",
    ),
    "kl": ("KL", "To the reference policy, per token."),
    "seconds/collect": ("Seconds of sampling", "Of one training step: rollouts and their rewards."),
    "seconds/update": ("Seconds of the update", "Of one training step: loss and gradients."),
}


@dataclass(frozen=True)
class Named:
    """A run, and what the page calls it."""

    name: str
    run: RunData

    @cached_property
    def train(self) -> pa.Table:
        """The records of training."""
        return only(self.run.log.table, "train")


def training(runs: Sequence[Named]) -> str:
    """How every figure of the rollouts went, with 95 % bands."""
    over = [over_training(one.train, metrics_of(one.run.log), most=BINS) for one in runs]
    if not any(cells.keys for cells in over):
        return '<p class="none">No rollouts of training in this log.</p>'

    def lines(metric: Metric) -> list[Series]:
        return [_series(one, cells, metric) for one, cells in zip(runs, over, strict=True)]

    def chart(metric: Metric, title: str, zero: bool = False) -> str:
        about = _sentence(metric)
        return line_chart(title, about, lines(metric), share=metric.share, zero=zero)

    named = list(dict.fromkeys(m for one in runs for m in _rewards(one.run)))
    charts = [chart(REWARD_METRIC, "Reward")]
    charts += [chart(metric, _title(metric)) for metric in named]
    if len(named) > 1:
        for one, cells in zip(runs, over, strict=True):
            charts += _components(one, cells, runs)
    charts.append(chart(FIXED["lift"], "Lift over copying", zero=True))
    charts.append(chart(FIXED["exact"], "Exact steps"))
    charts.append(chart(FIXED["copied"], "Copies"))
    charts.append(chart(FIXED["format_failures"], "Format failures"))
    charts += [_failures(one, runs) for one in runs]
    charts += [_yield(one, runs) for one in runs]
    charts.append(chart(FIXED["group_std"], "Spread within groups"))
    charts.append(chart(FIXED["completion_tokens"], "Length of completions"))
    others = dict.fromkeys(m for one in runs for m in metrics_of(one.run.log))
    charts += [chart(metric, _title(metric)) for metric in others if metric.name.startswith(METRIC)]
    return _grid(charts)


def _components(one: Named, cells: Cells, runs: Sequence[Named]) -> list[str]:
    """All named rewards of a run together: in one chart, or in several where they are many."""
    named = _rewards(one.run)
    if len(named) < 2:
        return []
    about = "Every named reward, over rollouts in the right format that it applies to."
    count = -(-len(named) // SERIES)
    charts = []
    for k in range(count):
        chosen = named[k * len(named) // count : (k + 1) * len(named) // count]
        parts = [Series(m.label, bins_of(cells.keys), cells.metrics[m.name]) for m in chosen]
        title = "Reward components" + (f", {k + 1} of {count}" if count > 1 else "")
        charts.append(line_chart(_of(title, one, runs), about, _bare(parts)))
    return charts


def optimisation(runs: Sequence[Named]) -> str:
    """Figures of metrics.jsonl that no rollout has; those that are zero throughout are left out."""
    charts = []
    for name, (title, about) in _FIGURES.items():
        points = [_figure(one.run, name) for one in runs]
        if any(value for part in points for _, value in part):
            charts.append(_plain(title, about, runs, points))
    speeds = [one.run.speed() for one in runs]
    if any(speeds):
        about = "Tokens written, over the seconds of sampling and update together."
        charts.append(_plain("Tokens a second", about, runs, speeds))
    return _grid(charts) if charts else '<p class="none">No metrics.jsonl in this folder.</p>'


def _figure(run: RunData, name: str) -> Sequence[tuple[int, float]]:
    if name.startswith("seconds/"):  # a line has those of all steps since the one before
        return run.per_step(name)
    return run.training_figures().get(name, [])


def by_index(runs: Sequence[Named]) -> str:
    """Two heat maps a run: reward and exact steps, by step index over training."""
    maps = []
    tables = [one.train for one in runs]
    for metric, title in ((REWARD_METRIC, "Reward"), (FIXED["exact"], "Exact steps")):
        grids = [grid(table, metric, most=COLUMNS) for table in tables]
        scale = (0.0, 1.0) if metric.share else _scale(grids)
        maps += [
            _map(_of(f"{title} by step index", one, runs), metric, found, scale)
            for one, found in zip(runs, grids, strict=True)
            if found.columns
        ]
    return f'<div class="charts maps">{"".join(maps)}</div>'


def _map(title: str, metric: Metric, found: Grid, scale: tuple[float, float]) -> str:
    about = f"{_sentence(metric)} Rows are the places of the expert's steps, the first is 0."
    if len(found.rows) > ROWS:
        about += f" {len(found.rows) - ROWS} more rows are not drawn."
    rows = [str(row) for row in found.rows[:ROWS]]
    return heat_map(
        title, about, found.columns, rows, found.cells[:ROWS], scale, share=metric.share
    )


def _scale(grids: Sequence[Grid]) -> tuple[float, float]:
    """One for all maps, so that a colour means the same in each."""
    cells = [drawable(c) for one in grids for row in one.cells for c in row]
    found = [c.value for c in cells if c is not None]
    marks = ticks(min(found), max(found)) if found else [0.0, 1.0]
    return marks[0], marks[-1]


def by_source(runs: Sequence[Named]) -> str:
    """Reward and similarity of each source; nothing where a run has one source only."""
    charts = []
    for one in runs:
        table = most_frequent(one.train, "source", SOURCES)
        cells, names = codes(table["source"])
        if len(names) < 2:
            continue
        for metric in [REWARD_METRIC, *_similarity(one.run)]:
            parts = []
            for k, name in enumerate(names):
                over = over_training(table.filter(pa.array(cells == k)), [metric], most=BINS)
                parts.append(Series(str(name), bins_of(over.keys), over.metrics[metric.name]))
            title = _of(f"{_title(metric)} by source", one, runs)
            charts.append(line_chart(title, _sentence(metric), parts))
    return _grid(charts) if charts else ""


def evaluation(runs: Sequence[Named]) -> str:
    """Validation problems and their steps; held-out problems by length."""
    accuracy = []
    for one in runs:
        found = one.run.validation_accuracy()
        every = max(1, -(-len(found) // (2 * BINS)))
        found = found[::-1][::every][::-1]  # some of very many, the last among them
        accuracy.append(Series(one.name, [(s, s) for s, _ in found], [e for _, e in found]))
    charts = []
    if any(one.bins for one in accuracy):
        about = "Share of the validation problems solved step by step, with Wilson's interval."
        charts.append(line_chart("Validation problems solved", about, accuracy, share=True))
    over = [
        over_training(only(one.run.log.table, "eval"), metrics_of(one.run.log), most=BINS)
        for one in runs
    ]
    if any(cells.keys for cells in over):
        named = list(dict.fromkeys(m for one in runs for m in _similarity(one.run)))
        for metric in (REWARD_METRIC, *named, FIXED["exact"], FIXED["format_failures"]):
            parts = [_series(one, cells, metric) for one, cells in zip(runs, over, strict=True)]
            title = f"Validation steps: {metric.label}"
            charts.append(line_chart(title, _sentence(metric), parts, share=metric.share))
    charts += _by_length(runs)
    return _grid(charts) if charts else ""


def _by_length(runs: Sequence[Named]) -> list[str]:
    """Held-out problems solved by the number of the expert's steps, at each time."""
    charts = []
    for one in runs:
        parts = []
        for when, found in one.run.solved_by("num_steps").items():
            lengths = [int(k) for k in found]  # type: ignore[call-overload]
            parts.append(Series(when, [(k, k) for k in lengths], list(found.values())))
        if parts:
            title = _of("Held-out problems solved, by length", one, runs)
            about = "Greedy, step by step, with Wilson's interval."
            charts.append(line_chart(title, about, parts, share=True, along="expert steps"))
    return charts


def _series(one: Named, cells: Cells, metric: Metric) -> Series:
    """A run's line; an empty one where it does not have that metric."""
    keys = bins_of(cells.keys)
    return Series(one.name, keys, cells.metrics.get(metric.name, [None] * len(keys)))


def _failures(one: Named, runs: Sequence[Named]) -> str:
    bins, stacks = counts(one.train, "format_failure", most=BINS)
    about = "How many rollouts failed, by reason."
    return stacked_bars(
        _of("Format failures by reason", one, runs), about, bins, stacks, "failures"
    )


def _yield(one: Named, runs: Sequence[Named]) -> str:
    parts = sampling_yield(one.run.log.table, most=BINS)
    reasons = list(dict.fromkeys(name for part in parts for name in part.dropped))
    stacks = {"kept": [part.kept for part in parts]}
    for name in reasons:  # a reason may be called anything, `kept` too
        stacks[f"dropped: {name}"] = [part.dropped.get(name, 0) for part in parts]
    about = "Groups that were tried: kept for the update, or dropped, and why."
    title = _of("Dynamic sampling", one, runs)
    return stacked_bars(title, about, [part.bin for part in parts], stacks, "groups")


def _plain(
    title: str, about: str, runs: Sequence[Named], points: Sequence[Sequence[tuple[int, float]]]
) -> str:
    parts = zip(runs, (thinned(part, 2 * BINS) for part in points), strict=True)
    return line_chart(title, about, [plain_series(one.name, part) for one, part in parts])


def _bare(series: Sequence[Series]) -> list[Series]:
    """Without bands: five of them over each other say nothing."""

    def bare(value: Estimate | None) -> Estimate | None:
        return value and Estimate(value.value, math.nan, math.nan, value.n)

    return [Series(one.name, one.bins, [bare(v) for v in one.values]) for one in series]


def _rewards(run: RunData) -> list[Metric]:
    return [m for m in metrics_of(run.log) if m.name.startswith(REWARD)]


def _similarity(run: RunData) -> list[Metric]:
    return [m for m in _rewards(run) if m.label == "similarity"]


def _title(metric: Metric) -> str:
    # `units` is a word, `my_rewards.py:units` a name.
    return metric.label.capitalize() if metric.label.isalpha() else metric.label


def _sentence(metric: Metric) -> str:
    return f"{metric.formula[:1].upper()}{metric.formula[1:]}."


def _of(title: str, one: Named, runs: Sequence[Named]) -> str:
    return title if len(runs) == 1 else f"{title}: {one.name}"


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'
