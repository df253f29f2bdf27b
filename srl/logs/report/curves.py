"""The curves of a report: training, step indices over training, sources, validation.

One run gives one line a chart; two runs share each chart that has a line a run, and have their own
of those with several. Every point comes from `figures.py` or `run_data.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from srl.logs.figures import (
    FIXED,
    REWARD_METRIC,
    Cells,
    Metric,
    codes,
    counts,
    metrics_of,
    most_frequent,
    only,
    over_training,
    sampling_yield,
    thinned,
)
from srl.logs.index import METRIC, REWARD
from srl.logs.report.axes import Bin, Series, bins_of, plain_series
from srl.logs.report.charts import SERIES, line_chart
from srl.logs.run_data import RunData

BINS = 60
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


def optimisation(runs: Sequence[Named]) -> str:
    """Figures of metrics.jsonl that no rollout has; those that are zero throughout are left out."""
    charts = []
    for name, (title, about) in _FIGURES.items():
        points = [_figure(one.run, name) for one in runs]
        if any(value for part in points for _, value in part):
            charts.append(_plain(title, about, runs, points))
    return _grid(charts) if charts else '<p class="none">No metrics.jsonl in this folder.</p>'


def _figure(run: RunData, name: str) -> Sequence[tuple[int, float]]:
    if name.startswith("seconds/"):  # a line has those of all steps since the one before
        return run.per_step(name)
    return run.training_figures().get(name, [])


def by_value(runs: Sequence[Named], column: str, title: str) -> str:
    """Figures over training, a line each value of a column; nothing where a run has one only."""
    charts = []
    for one in runs:
        table = most_frequent(one.train, column, SERIES)
        cells, names = codes(table[column])
        if len(names) < 2:
            continue
        metrics = [REWARD_METRIC, *_similarity(one.run), FIXED["exact"]]
        over = [
            over_training(table.filter(pa.array(cells == k)), metrics, most=BINS)
            for k in range(len(names))
        ]
        for metric in metrics:
            parts = [
                Series(str(name), bins_of(part.keys), part.metrics[metric.name])
                for name, part in zip(names, over, strict=True)
            ]
            said = _of(f"{_title(metric)} by {title}", one, runs)
            charts.append(line_chart(said, _sentence(metric), parts, share=metric.share))
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
    bins, found = counts(one.train, "format_failure", most=BINS)
    about = "How many rollouts failed, by reason."
    return _counts(_of("Format failures by reason", one, runs), about, bins, found)


def _yield(one: Named, runs: Sequence[Named]) -> str:
    parts = sampling_yield(one.run.log.table, most=BINS)
    found = {"tried": [part.tried for part in parts], "kept": [part.kept for part in parts]}
    for name in dict.fromkeys(name for part in parts for name in part.dropped):
        # A reason may be called anything, `kept` too.
        found[f"dropped: {name}"] = [part.dropped.get(name, 0) for part in parts]
    about = "Groups that were tried, those kept for the update, and those dropped, by reason."
    title = _of("Dynamic sampling", one, runs)
    return _counts(title, about, [part.bin for part in parts], found)


def _counts(title: str, about: str, bins: Sequence[Bin], found: Mapping[str, Sequence[int]]) -> str:
    parts = [plain_series(name, list(zip(bins, n, strict=True))) for name, n in found.items()]
    return line_chart(title, about, parts)


def _plain(
    title: str, about: str, runs: Sequence[Named], points: Sequence[Sequence[tuple[int, float]]]
) -> str:
    parts = zip(runs, (thinned(part, 2 * BINS) for part in points), strict=True)
    return line_chart(title, about, [plain_series(one.name, part) for one, part in parts])


def _rewards(run: RunData) -> list[Metric]:
    return [m for m in metrics_of(run.log) if m.name.startswith(REWARD)]


def _similarity(run: RunData) -> list[Metric]:
    return [m for m in _rewards(run) if m.label == "similarity"]


def _title(metric: Metric) -> str:
    # `units` is a word, `my_rewards.py:units` a name.
    is_word = metric in FIXED.values() or metric.label.isalpha()
    return metric.label.capitalize() if is_word else metric.label


def _sentence(metric: Metric) -> str:
    return f"{metric.formula[:1].upper()}{metric.formula[1:]}."


def _of(title: str, one: Named, runs: Sequence[Named]) -> str:
    return title if len(runs) == 1 else f"{title}: {one.name}"


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'
