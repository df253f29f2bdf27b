"""Makes the table of a comparison, for people and for programs.

Every number is in `table.json`; `table.md` and the terminal show the same table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from srl.compare.cell_run import CellRun
from srl.compare.figures import HIGHER, LOWER, ONE_SEED
from srl.compare.plan import Plan
from srl.compare.results import Contrast, Part
from srl.console import clock, say, visible
from srl.runs.folder import replace_file, write_json
from srl.stats import Estimate

# ---- for programs -------------------------------------------------------------------------------


def as_json(plan: Plan, runs: Mapping[str, CellRun], parts: Sequence[Part]) -> dict[str, object]:
    """Returns every number of the comparison, and the machine and code that made the cells."""
    return {
        "config": str(plan.source),
        "quick": plan.quick,
        "metrics": list(plan.metrics),
        "seeds": list(plan.seeds),
        "difficulties": [
            {
                "name": part.difficulty,
                "problems": part.problems,
                "rows": [
                    {
                        "name": row.name,
                        "title": row.title,
                        "after": row.after,
                        "seeds_done": [c.cell.seed for c in cells if c.values and c.cell.trained],
                        "figures": {n: e.to_json() for n, e in part.figures[row.name].items()},
                        "behaviour": {n: e.to_json() for n, e in part.behaviour[row.name].items()},
                        "cells": [cell.cell.name for cell in cells],
                    }
                    for row, cells in part.rows
                ],
                "contrasts": [{**asdict(c), "verdict": c.word} for c in part.contrasts],
            }
            for part in parts
        ],
        "cells": {
            name: {
                "state": str(run.state),
                "seed": run.cell.seed,
                "figures": {figure: fmean(run.values[figure].values()) for figure in run.values},
                "seconds": round(run.seconds, 1),
                "commands": run.commands,
                "summary": dict(run.summary),
                "held_out_steps": {n: e.to_json() for n, e in run.held_out_steps.items()},
                "policy_step": run.policy_step,
                "experts_first_fifth": run.loads and run.loads[0],
                "experts_last_fifth": run.loads and run.loads[1],
                "groups_kept": run.groups[0] if run.groups else None,
                "groups_tried": run.groups[1] if run.groups else None,
                "commit": run.made_with.commit if run.made_with else None,
            }
            for name, run in runs.items()
        },
        # The machine and code that made the cells, which may differ from those of this table.
        "made_with": [
            {**asdict(made), "cells": [name for name, run in runs.items() if run.made_with == made]}
            for made in dict.fromkeys(run.made_with for run in runs.values())
            if made is not None
        ],
    }


def write_table(plan: Plan, runs: Mapping[str, CellRun], parts: Sequence[Part]) -> None:
    """Writes `table.json` and `table.md` into the output folder."""
    write_json(plan.output / "table.json", as_json(plan, runs, parts))
    replace_file(plan.output / "table.md", markdown(plan, runs, parts).encode())


# ---- for people ---------------------------------------------------------------------------------


def markdown(plan: Plan, runs: Mapping[str, CellRun], parts: Sequence[Part]) -> str:
    """Returns the table as Markdown."""
    lines = [f"# {plan.source.name}: {plan.metric}", ""]
    for part in parts:
        lines += [f"## {_heading(part, plan)}", ""]
        for header, rows in _tables(part, plan):
            lines += [_line(header), "|" + "---|" * len(header), *map(_line, rows), ""]
    for header, rows in _across(plan, parts):
        lines += ["## side by side", "", _line(header), "|" + "---|" * len(header)]
        lines += [*map(_line, rows), ""]
    lines += [f"- {note}" for note in notes(plan, runs, parts)]
    return "\n".join(lines) + "\n"


def show(plan: Plan, runs: Mapping[str, CellRun], parts: Sequence[Part], console: Console) -> None:
    """Shows the table in the terminal."""
    for part in parts:
        title = _heading(part, plan)
        for header, rows in _tables(part, plan):
            _show_one(header, rows, title, console)
            title = ""
    for header, rows in _across(plan, parts):
        _show_one(header, rows, "side by side", console)
    for note in notes(plan, runs, parts):
        say(console, visible(note, console.encoding))


def _show_one(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str, console: Console
) -> None:
    table = Table(title=Text(title), title_justify="left")
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(visible(cell, console.encoding)) for cell in row))
    console.print(table)


def _across(plan: Plan, parts: Sequence[Part]) -> list[tuple[list[str], list[list[str]]]]:
    """Returns tables of each contrast for all difficulties side by side, with the better row."""
    if not plan.across:
        return []
    titles = {row.name: row.title for row in plan.rows}
    tables = []
    for metric in plan.metrics:
        rows = []
        for first, second in plan.contrasts:
            cells = [
                _decided(c, titles, plan)
                for part in parts
                for c in part.contrasts
                if (c.figure, c.first, c.second) == (metric, first, second)
            ]
            rows.append([f"{titles[first]} less {titles[second]}", *cells])
        header = [f"difference in {metric}, points", *(part.difficulty for part in parts)]
        tables.append((header, rows))
    return tables


def _decided(contrast: Contrast, titles: Mapping[str, str], plan: Plan) -> str:
    if contrast.difference is None:
        return "-"
    better = {
        HIGHER: f"{titles[contrast.first]} better",
        LOWER: f"{titles[contrast.second]} better",
        ONE_SEED: "(one seed: no verdict)",
    }
    value = _interval(contrast.difference, _mark(len(contrast.seeds), plan), signed=True)
    return f"{value} {better.get(contrast.word, 'undecided')}"


ALONE = "(p)"
"""The mark of intervals over problems alone, if others in the table are over seeds too."""


def notes(plan: Plan, runs: Mapping[str, CellRun], parts: Sequence[Part]) -> list[str]:
    """Returns the notes that a reader of the table needs."""
    notes = []
    missing = [f"{n} ({r.state})" for n, r in runs.items() if not r.done]
    if missing:
        notes.append(f"Incomplete, {len(missing)} of {len(runs)} cells: {', '.join(missing)}.")
    over = "over problems and training seeds together"
    alone = "over problems alone: of one training nobody knows what the next gives"
    if len(plan.seeds) == 1:
        over = alone
    elif any(_is_alone(part, plan) for part in parts):
        over += f"; those with {ALONE} {alone}"
    notes.append(
        f"Intervals are 95 %, {over} (srl/compare/figures.py). Contrasts are paired by problem and "
        "seed, and not corrected for their number."
    )
    if any(run.loads for run in runs.values()):
        notes.append(
            "Experts in training: means over layers and cells, at first and at last over a fifth "
            "of the updates. Violation is (most - mean) / mean of the tokens an expert gets "
            "(docs/experts.md)."
        )
    if any(run.tokens is not None for run in runs.values()):
        notes.append(
            "Groups used are those that updates were made of, of all that were sampled: dynamic "
            "sampling leaves out groups whose rollouts earned the same. Updates are those of the "
            "policies that were tested, seed by seed where validation picked them. Tokens and time "
            "are sums over a row's cells: tokens that the policy wrote in training, or that SFT "
            "read; time with evaluations."
        )
    seconds = sum(run.seconds for run in runs.values())
    notes.append(
        f"{'; '.join([*_makings(runs), f'cells took {clock(seconds)}'])}. Made by: "
        f"{' '.join([_command(plan), *plan.given])}"
    )
    return notes


def _command(plan: Plan) -> str:
    return f"python -m srl compare --config {plan.source}{' --quick' if plan.quick else ''}"


def _makings(runs: Mapping[str, CellRun]) -> list[str]:
    """Returns the machines and code of the finished cells, with numbers of cells if they differ."""
    made = [run.made_with for run in runs.values() if run.made_with is not None]
    aspects = [
        _counted(making.cpu for making in made),
        _counted(making.cpu_count and f"{making.cpu_count} cores" for making in made),
        _counted(making.threads and f"threads a cell: {making.threads}" for making in made),
        _counted(making.torch and f"torch {making.torch}" for making in made),
        _counted(
            making.commit
            and f"commit {making.commit[:10]}{' with changes' if making.dirty else ''}"
            for making in made
        ),
    ]
    makings = [", ".join(values) for values in aspects if values]
    if any(len(values) > 1 for values in aspects):
        makings.append("so not all cells were made alike")
    return makings


def _counted(values: Iterable[object]) -> list[str]:
    """Returns the only known value, or each known value with its number of cells."""
    counts = Counter(str(value) for value in values if value)
    if len(counts) < 2:
        return list(counts)
    return [f"{value} ({count} cells)" for value, count in counts.items()]


def _heading(part: Part, plan: Plan) -> str:
    seeds = ", ".join(map(str, plan.seeds))
    return f"{part.difficulty}: {part.problems} problems, seeds {seeds}; solved, %"


def _tables(part: Part, plan: Plan) -> list[tuple[list[str], list[list[str]]]]:
    """Returns the tables of a difficulty that have rows, each as its header and its rows."""
    contrasts = (_contrast_rows(part, plan, metric) for metric in plan.metrics)
    tables = (
        _figure_rows(part, plan),
        *contrasts,
        _held_out_step_rows(part),
        _behaviour_rows(part, plan),
        _load_rows(part),
    )
    return [(header, rows) for header, rows in tables if rows]


def _held_out_step_rows(part: Part) -> tuple[list[str], list[list[str]]]:
    """Returns the table of greedy steps compared with the expert's, for rows with `test_rows`."""
    # A list and not a mapping by title, because two rows may have the same title.
    by_row = [(row.title, [c.held_out_steps for c in cells if c.done]) for row, cells in part.rows]
    names = dict.fromkeys(n for _, cells in by_row for figures in cells for n in figures)
    rows = [
        [title, *(_mean_of([figures.get(name) for figures in cells]) for name in names)]
        for title, cells in by_row
        if any(cells)
    ]
    return ["held-out steps, greedy, %", *names], rows


def _mean_of(figures: Sequence[Estimate | None]) -> str:
    """Returns the figure of one training with its interval over problems; of several, the mean."""
    there = [figure for figure in figures if figure is not None]
    if len(there) == 1:
        return _interval(there[0])
    return f"{100 * fmean(figure.value for figure in there):.1f}" if there else "-"


# Figures of the experts' load that the table shows: of the first fifth of training, then the last.
_OF_FIRST = {"router/violation": "violation at first"}
_OF_LAST = {
    "router/violation": "violation at last",
    "max_router_violation": "of the worst layer",
    "router/entropy": "entropy",
    "router/idle": "idle experts, %",
}


def _load_rows(part: Part) -> tuple[list[str], list[list[str]]]:
    """Returns the table of how experts were used in training, as means over a row's cells."""
    rows = []
    for row, cells in part.rows:
        loads = [cell.loads for cell in cells if cell.loads is not None]
        if loads:
            first = [fmean(load[name] for load, _ in loads) for name in _OF_FIRST]
            last = {name: fmean(load[name] for _, load in loads) for name in _OF_LAST}
            last["router/idle"] *= 100
            rows.append([row.title, *(f"{value:.2f}" for value in (*first, *last.values()))])
    return ["experts in training", *_OF_FIRST.values(), *_OF_LAST.values()], rows


def _behaviour_rows(part: Part, plan: Plan) -> tuple[list[str], list[list[str]]]:
    aspects = dict.fromkeys(name for estimates in part.behaviour.values() for name in estimates)
    rows = []
    for row, cells in part.rows:
        if shown := part.behaviour[row.name].values():
            mark = _mark(_trainings(cells), plan)
            figures = (f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]{mark}" for e in shown)
            rows.append([row.title, *figures])
    return ["a whole solution has", *(name.replace("_", " ") for name in aspects)], rows


def _figure_rows(part: Part, plan: Plan) -> tuple[list[str], list[list[str]]]:
    names = dict.fromkeys(name for figures in part.figures.values() for name in figures)
    others = [name for name in names if name != plan.metric]
    header = ["", plan.metric, *(f"seed {seed}" for seed in plan.seeds), *others]
    header += ["groups used", "updates", "tokens", "time"]
    rows = []
    for row, cells in part.rows:
        figures = part.figures[row.name]
        by_seed = {cell.cell.seed: cell for cell in cells}
        mark = _mark(_trainings(cells), plan)
        rows.append(
            [
                row.title,
                _interval(figures.get(plan.metric), mark) + _short_of(cells),
                *(_seed_cell(by_seed.get(seed), plan.metric) for seed in plan.seeds),
                *(_other(figures.get(name), name in plan.metrics, mark) for name in others),
                _groups_used(cells),
                _updates(cells),
                _tokens(cells),
                clock(sum(cell.seconds for cell in cells)),
            ]
        )
    return header, rows


def _contrast_rows(part: Part, plan: Plan, metric: str) -> tuple[list[str], list[list[str]]]:
    titles = {row.name: row.title for row in plan.rows}
    rows = [
        [
            f"{titles[c.first]} less {titles[c.second]}",
            _interval(c.difference, _mark(len(c.seeds), plan), signed=True),
            ", ".join(map(str, c.seeds)) or "-",
            c.word,
        ]
        for c in part.contrasts
        if c.figure == metric
    ]
    return ["", f"difference in {metric}, points", "seeds", "verdict"], rows


def _seed_cell(run: CellRun | None, metric: str) -> str:
    if run is None:  # a row without seeds
        return ""
    values = run.values.get(metric)
    if not values:
        return str(run.state)
    return f"{100 * fmean(values.values()):.1f}"


def _short_of(cells: Sequence[CellRun]) -> str:
    done = sum(bool(cell.values) for cell in cells)
    return "" if done == len(cells) else f" ({done} of {len(cells)} cells)"


def _groups_used(cells: Sequence[CellRun]) -> str:
    """Returns the share of the sampled groups that were trained on."""
    counts = [cell.groups for cell in cells if cell.groups is not None]
    kept, tried = (sum(pair[i] for pair in counts) for i in (0, 1))
    return f"{100 * kept / tried:.0f} %" if tried else "-"


def _updates(cells: Sequence[CellRun]) -> str:
    """Returns the numbers of updates of the tested policies, and the total if one was earlier."""
    tested = [cell.policy_step for cell in cells if cell.policy_step is not None]
    if not tested:
        return "-"
    last = max(int(cell.summary.get("steps", 0)) for cell in cells)
    if set(tested) == {last}:
        return str(last)
    return f"{', '.join(map(str, tested))} of {last}"


def _tokens(cells: Sequence[CellRun]) -> str:
    counts = [cell.tokens for cell in cells if cell.tokens is not None]
    return f"{sum(counts):,.0f}" if counts else "-"


def _trainings(cells: Sequence[CellRun]) -> int:
    """Returns over how many trainings a row's interval is computed."""
    return sum(bool(cell.values) and cell.cell.trained for cell in cells)


def _mark(trainings: int, plan: Plan) -> str:
    """Returns the mark after an interval that is over problems alone while others are not."""
    return f" {ALONE}" if trainings < 2 <= len(plan.seeds) else ""


def _is_alone(part: Part, plan: Plan) -> bool:
    """Returns whether any interval of a difficulty is marked."""
    shown = [_trainings(cells) for row, cells in part.rows if part.figures[row.name]]
    shown += [len(c.seeds) for c in part.contrasts if c.difference is not None]
    return any(_mark(trainings, plan) for trainings in shown)


def _interval(estimate: Estimate | None, mark: str = "", *, signed: bool = False) -> str:
    if estimate is None:
        return "-"
    sign = "+" if signed else ""
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]{mark}"


def _other(estimate: Estimate | None, is_metric: bool, mark: str) -> str:
    """Returns a figure besides the main one; it has its interval only if contrasts use it."""
    if estimate is None or is_metric:
        return _interval(estimate, mark)
    return f"{100 * estimate.value:.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(visible(cell).replace("|", "\\|") for cell in cells) + " |"
