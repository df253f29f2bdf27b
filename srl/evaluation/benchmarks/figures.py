"""Computes an evaluation's figures from its samples.jsonl, and their table. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from srl.console import visible
from srl.evaluation.benchmarks.remedies import CUT_OFF, NO_ROOM, NO_STATEMENT
from srl.runs.records import read_rows
from srl.sample_metrics import Sample, avg_at_k, over_problems, sample_figures
from srl.stats import Estimate

GREEDY = 0
"""The number of the greedy solution of a problem; samples are 1, 2, ..."""


@dataclass
class _Tally:
    """The verdicts on one problem's solutions; the greedy one is kept apart from the samples."""

    greedy: bool | None
    samples: list[Sample]
    greedy_extracted: dict[str, bool]
    extracted: dict[str, list[bool]]


# lm-evaluation-harness's names -> the field of samples.jsonl that says if that answer is right.
EXTRACTIONS = {"strict-match": "strict_right", "flexible-extract": "flexible_right"}
_CAUSES = {"truncated": CUT_OFF, "context_limit": NO_ROOM}


def figures_of(samples: Path) -> dict[str, object]:
    """Returns all figures of a samples.jsonl by benchmark, as summary.json stores them.

    The counts of solutions (such as truncated and no answer) include the greedy ones.
    """
    problems: dict[str, dict[int, _Tally]] = {}
    counts: dict[str, dict[str, int]] = {}
    unread: dict[str, dict[str, int]] = {}
    for row in read_rows(samples):
        name, number = str(row["benchmark"]), int(str(row["number"]))
        tally = problems.setdefault(name, {}).setdefault(
            number, _Tally(None, [], {}, {key: [] for key in EXTRACTIONS})
        )
        right = row["verdict"] == "right"
        is_greedy = row["sample"] == GREEDY
        for key, column in EXTRACTIONS.items():
            if is_greedy:
                tally.greedy_extracted[key] = row[column] is True
            else:
                tally.extracted[key].append(row[column] is True)
        causes = unread.setdefault(name, dict.fromkeys((CUT_OFF, NO_STATEMENT, NO_ROOM), 0))
        if is_greedy:
            tally.greedy = right
            if row["verdict"] == "no_answer":
                causes[_CAUSES.get(str(row["failure"]), NO_STATEMENT)] += 1
        else:
            answer = row["answer"]
            tally.samples.append((right, answer if isinstance(answer, str) else None))
        count = counts.setdefault(
            name, dict.fromkeys(("solutions", "tokens", "truncated", "no answer", "unverified"), 0)
        )
        count["solutions"] += 1
        count["tokens"] += int(str(row["completion_tokens"]))
        count["truncated"] += row["truncated"] is True
        count["no answer"] += row["verdict"] == "no_answer"
        count["unverified"] += row["verdict"] == "unverified"
    return {
        name: {
            "n": len(tallies),
            **_estimates(list(tallies.values())),
            **counts[name],
            "unread": unread[name],
        }
        for name, tallies in problems.items()
    }


def _estimates(tallies: Sequence[_Tally]) -> dict[str, object]:
    estimates: dict[str, Estimate] = {}
    greedy = [float(tally.greedy) for tally in tallies if tally.greedy is not None]
    if greedy:
        estimates["greedy"] = over_problems(greedy)
        for key in EXTRACTIONS:
            values = [float(tally.greedy_extracted[key]) for tally in tallies]
            estimates[key] = over_problems(values)
    for name, values in sample_figures([tally.samples for tally in tallies]).items():
        estimates[name] = over_problems(values)
    if most := min(len(tally.samples) for tally in tallies):
        for key in EXTRACTIONS:
            values = [avg_at_k(tally.extracted[key]) for tally in tallies]
            estimates[f"{key} avg@{most}"] = over_problems(values)
    return {name: estimate.to_json() for name, estimate in estimates.items()}


def table_of(summary: Mapping[str, object]) -> Table:
    """Returns a table with a row for each figure and a column for each benchmark.

    Metrics are in percent, with 95 % intervals. Truncated and no answer are in percent of all
    solutions.
    """
    benchmarks = summary["benchmarks"]
    assert isinstance(benchmarks, dict)
    table = Table(title="%, 95 % intervals over problems", title_justify="left")
    table.add_column("")
    for name in benchmarks:
        table.add_column(Text(visible(str(name))), justify="right")
    rows = dict.fromkeys(key for figures in benchmarks.values() for key in figures)
    for key in rows:
        if key in ("solutions", "tokens", "unread"):
            continue
        cells = [_cell(key, figures) for figures in benchmarks.values()]
        table.add_row(key, *cells)
    return table


def _cell(key: str, figures: Mapping[str, object]) -> str:
    value = figures.get(key)
    if isinstance(value, dict):
        shown = [100 * float(value[part]) for part in ("value", "low", "high")]
        return f"{shown[0]:.1f} [{shown[1]:.1f}, {shown[2]:.1f}]"
    if isinstance(value, int) and key in ("truncated", "no answer"):
        return f"{100 * value / max(1, int(str(figures['solutions']))):.1f}"
    return "-" if value is None else f"{value:,}"
