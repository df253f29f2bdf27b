"""The table of a comparison: from what its cells left on the disk, for the eye and for programs.

Every number is in `table.json`; `table.md` and the terminal show the same table. Nothing is
remembered between calls: a cell counts if its folder holds a finished run with the plan's settings.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from srl.compare.figures import (
    behaviour_of,
    contrast,
    figures_of,
    last_evaluation,
    row_estimate,
    row_mean,
    verdict,
)
from srl.compare.origin import began_at, other_weights, read_json, read_start, time_of
from srl.compare.plan import Cell, Plan, Row
from srl.config import SRLConfig
from srl.errors import UsageError
from srl.estimates import Estimate
from srl.experiment import parse_experiment
from srl.logs.terminal.pen import clock
from srl.logs.text import visible
from srl.records import read_rows
from srl.run_folder import RunFolder, changed_keys, replace_file, write_json

SESSIONS = "sessions.jsonl"
"""In the output folder: a line for every time that a cell was started and ended."""


class State(StrEnum):
    """What is there of a cell."""

    TO_DO = "to do"
    DONE = "done"
    INTERRUPTED = "interrupted"  # with a checkpoint to go on from
    CUT_OFF = "cut off"  # without one: it starts again
    OTHER_SETTINGS = "other settings"  # there, but not what the plan asks for
    OTHER_START = "other start"  # there, but not from the policy that the plan has for it now
    FAILED = "failed"  # when it was last tried, and nothing is left of it


def state_of(cell: Cell, plan: Plan) -> State:
    """What is there of `cell`."""
    run = RunFolder(plan.output / cell.name)
    if not run.path.is_dir() or not any(run.path.iterdir()):
        return State.TO_DO
    finished = run.summary.is_file()
    if not finished and not (cell.trained and _has_checkpoint(run)):
        return State.CUT_OFF
    if changes_of(cell, plan):
        return State.OTHER_SETTINGS
    if other_start(cell, plan) is not None:
        return State.OTHER_START
    return State.DONE if finished else State.INTERRUPTED


def changes_of(cell: Cell, plan: Plan) -> list[str]:
    """`key: old -> new` for every setting of the cell's run that the plan has otherwise."""
    run = RunFolder(plan.output / cell.name)
    old, new = run.read_config(), cell.experiment.resolved()
    # A setting of ours that has gone from the config of this method has no meaning for it.
    idle = SRLConfig.__annotations__.keys() - new.keys()
    old = {key: value for key, value in old.items() if key not in idle}
    with suppress(UsageError):  # a field that there is no more is told as it is
        # A field that is newer than the run has its default, which is what the run did.
        old = parse_experiment(old, where=str(run.config)).resolved()
    return changed_keys(old, new)


def other_start(cell: Cell, plan: Plan) -> str | None:
    """Why the policy that `cell`'s run started from is not the one that is there for it now; None
    if it is, as far as that is known."""
    if RunFolder(plan.output / cell.name).read_config().get("model") != cell.experiment.model:
        return None  # another policy by its settings, which is told as that
    if cell.after is not None:
        first = next(one for one in plan.cells if one.name == cell.after)
        if (state := state_of(first, plan)) is not State.DONE:
            return f"{first.name}, whose policy it started from, is not done ({state})"
    if (digests := other_weights(cell, plan.output)) is not None:
        before, now = digests
        return f"{cell.experiment.model} has other weights now ({before} -> {now})"
    return None


def _has_checkpoint(run: RunFolder) -> bool:
    if not run.config.is_file():
        return False
    try:
        return run.latest_checkpoint() is not None
    except UsageError:  # there are some, none of them whole
        return False


@dataclass(frozen=True)
class MadeWith:
    """What a cell was made with, by its own environment.json; None is unknown."""

    cpu: str | None
    cpu_count: int | None
    torch: str | None
    commit: str | None
    dirty: bool | None


@dataclass
class CellResult:
    """One cell as the table needs it.

    Attributes:
        cell: which.
        state: what is there of it.
        values: figure -> problem -> number; empty unless it is done.
        behaviour: aspect of whole greedy solutions -> problem -> number; likewise.
        seconds: of the sessions of the run that is there, those that failed or were stopped
            included; not of earlier runs that were moved away.
        commands: of the same sessions, as they were typed.
        summary: the numbers of its summary.json, such as tokens.
        made_with: the code and the machine; None unless it is done.
    """

    cell: Cell
    state: State
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    behaviour: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    commands: list[str] = field(default_factory=list)
    summary: Mapping[str, float] = field(default_factory=dict)
    made_with: MadeWith | None = None

    @property
    def tokens(self) -> float | None:
        """Written in training by the policy, or read by SFT; None where nothing was trained."""
        return self.summary.get("tokens_written", self.summary.get("tokens_read"))


def read_results(plan: Plan) -> dict[str, CellResult]:
    """Every cell of the plan by its name, from the disk."""
    found = {cell.name: CellResult(cell, state_of(cell, plan)) for cell in plan.cells}
    last_exit: dict[str, object] = {}
    for line in read_sessions(plan.output):
        name, seconds, command = str(line.get("cell")), line.get("seconds"), line.get("command")
        last_exit[name] = line.get("exit")
        if name not in found or not isinstance(seconds, int | float):
            continue
        if isinstance(command, list) and _is_of_run(line, seconds, name, plan.output):
            found[name].seconds += seconds
            found[name].commands.append(shlex.join(map(str, command)))
    for name, result in found.items():
        run = RunFolder(plan.output / name)
        if result.state is State.TO_DO and last_exit.get(name) not in (None, 0, 130):
            result.state = State.FAILED
        if result.state is State.DONE:
            attempts = last_evaluation(read_rows(run.eval)) if run.eval.is_file() else []
            result.values, result.behaviour = figures_of(attempts), behaviour_of(attempts)
            summary = read_json(run.summary)
            result.summary = {k: v for k, v in summary.items() if type(v) in (int, float)}  # type: ignore[misc]
            result.made_with = _made_with(run, read_start(name, plan.output))
    return found


def _is_of_run(session: Mapping[str, object], seconds: float, name: str, output: Path) -> bool:
    """Whether a session worked on the run that is there, not on one that was moved away."""
    run, started = RunFolder(output / name), time_of(session.get("started"))
    if started is not None and (first := time_of(read_start(name, output).get("started"))):
        return started >= first
    # Made before there were starts: a session that ended before the run began was another's.
    began = began_at(run)
    if began is None or started is None:
        return run.path.is_dir()
    return started + timedelta(seconds=seconds) >= began


def _made_with(run: RunFolder, start: Mapping[str, object]) -> MadeWith:
    environment = read_json(run.environment)
    packages, git = environment.get("packages"), environment.get("git")
    versions = packages if isinstance(packages, dict) else {}
    code = git if isinstance(git, dict) else {}

    def text(value: object) -> str | None:
        return value if isinstance(value, str) else None

    count, dirty = environment.get("cpu_count"), code.get("dirty")
    return MadeWith(
        cpu=text(start.get("cpu")),
        cpu_count=count if isinstance(count, int) else None,
        torch=text(versions.get("torch")),
        commit=text(code.get("commit")),
        dirty=dirty if isinstance(dirty, bool) else None,
    )


def read_sessions(output: Path) -> list[dict[str, object]]:
    """The lines of the output folder's `sessions.jsonl`."""
    path = output / SESSIONS
    return list(read_rows(path)) if path.is_file() else []


def values_of(run: RunFolder) -> dict[str, dict[str, float]]:
    """Figure -> problem -> number, of a finished run."""
    return figures_of(last_evaluation(read_rows(run.eval))) if run.eval.is_file() else {}


@dataclass(frozen=True)
class Contrast:
    """The first row less the second; of two rows that are not trained `seeds` is empty."""

    first: str
    second: str
    seeds: tuple[int, ...]
    difference: Estimate | None

    @property
    def word(self) -> str:
        if self.difference is None:
            return "not there yet"
        return verdict(self.difference, len(self.seeds))


@dataclass
class Part:
    """The table of one difficulty.

    Attributes:
        difficulty: its name.
        problems: how many there are; 0 if no cell is done.
        rows: each row with its cells.
        figures: row -> figure -> mean with interval, over the seeds that are done.
        behaviour: row -> aspect of whole greedy solutions -> the same.
        contrasts: of the plan's metric.
    """

    difficulty: str
    problems: int
    rows: list[tuple[Row, list[CellResult]]]
    figures: dict[str, dict[str, Estimate]]
    behaviour: dict[str, dict[str, Estimate]]
    contrasts: list[Contrast]


def build(plan: Plan, results: Mapping[str, CellResult]) -> list[Part]:
    """The figures of every difficulty.

    Raises:
        UsageError: cells of one difficulty have solved different problems.
    """
    parts = []
    for difficulty in plan.difficulties:
        rows = [
            (row, [results[cell.name] for cell in plan.cells_of(difficulty, row.name)])
            for row in plan.rows
        ]
        problems = _same_problems([one for _, cells in rows for one in cells], plan)
        figures, shown = {}, {}
        for row, cells in rows:
            done = [cell.values for cell in cells if cell.values]
            # A figure that only some seeds have would be of other trainings than its neighbours.
            names = [n for n in done[0] if all(n in values for values in done)] if done else []
            figures[row.name] = {n: row_estimate([values[n] for values in done]) for n in names}
            seen = [cell.behaviour for cell in cells if cell.behaviour]
            aspects = seen[0] if seen else ()
            shown[row.name] = {a: row_mean([values[a] for values in seen]) for a in aspects}
        by_row = {row.name: cells for row, cells in rows}
        contrasts = [_contrast(*pair, by_row, plan.metric) for pair in plan.contrasts]
        parts.append(Part(difficulty, problems, rows, figures, shown, contrasts))
    return parts


def _contrast(
    first: str, second: str, rows: Mapping[str, Sequence[CellResult]], metric: str
) -> Contrast:
    """Paired by seed; a row without seeds is every seed's partner."""
    one, other = (
        {cell.cell.seed: cell.values[metric] for cell in rows[row] if metric in cell.values}
        for row in (first, second)
    )
    seeds: list[int | None] = [*sorted(s for s in {*one, *other} if s is not None)] or [None]
    pairs = [(s, one.get(s, one.get(None)), other.get(s, other.get(None))) for s in seeds]
    there = [(s, a, b) for s, a, b in pairs if a is not None and b is not None]
    if not there:
        return Contrast(first, second, (), None)
    difference = contrast([a for _, a, _ in there], [b for _, _, b in there])
    return Contrast(first, second, tuple(s for s, _, _ in there if s is not None), difference)


def _same_problems(cells: Sequence[CellResult], plan: Plan) -> int:
    """How many problems all cells have solved."""
    seen: dict[str, tuple[str, set[str]]] = {}
    for cell in cells:
        for figure, values in cell.values.items():
            name, problems = seen.setdefault(figure, (cell.cell.name, set(values)))
            if problems != set(values):
                raise UsageError(
                    f"{cell.cell.name} and {name} have solved different problems, though their "
                    f"settings are the same: the data has changed. Move both out of {plan.output} "
                    "to make them again"
                )
    return max((len(problems) for _, problems in seen.values()), default=0)


# ---- for programs -------------------------------------------------------------------------------


def as_json(
    plan: Plan, results: Mapping[str, CellResult], parts: Sequence[Part]
) -> dict[str, object]:
    """Every number of the comparison, and what it was made with."""
    return {
        "config": str(plan.source),
        "quick": plan.quick,
        "metric": plan.metric,
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
                        "figures": {
                            name: estimate.to_json()
                            for name, estimate in part.figures[row.name].items()
                        },
                        "behaviour": {
                            name: estimate.to_json()
                            for name, estimate in part.behaviour[row.name].items()
                        },
                        "cells": [cell.cell.name for cell in cells],
                    }
                    for row, cells in part.rows
                ],
                "contrasts": [
                    {
                        "first": c.first,
                        "second": c.second,
                        "figure": plan.metric,
                        "seeds": list(c.seeds),
                        "difference": None if c.difference is None else c.difference.to_json(),
                        "verdict": c.word,
                    }
                    for c in part.contrasts
                ],
            }
            for part in parts
        ],
        "cells": {
            name: {
                "state": str(result.state),
                "seed": result.cell.seed,
                "figures": {
                    figure: sum(values.values()) / len(values)
                    for figure, values in result.values.items()
                },
                "seconds": round(result.seconds, 1),
                "commands": result.commands,
                "summary": dict(result.summary),
                "commit": result.made_with.commit if result.made_with else None,
            }
            for name, result in results.items()
        },
        # What the cells were made with, which need not be what this table is.
        "made_with": [{**asdict(made), "cells": names} for made, names in _by_making(results)],
    }


def _by_making(results: Mapping[str, CellResult]) -> list[tuple[MadeWith, list[str]]]:
    """What finished cells were made with, each with their names."""
    found: dict[MadeWith, list[str]] = {}
    for name, result in results.items():
        if result.made_with is not None:
            found.setdefault(result.made_with, []).append(name)
    return list(found.items())


def write_table(plan: Plan, results: Mapping[str, CellResult], parts: Sequence[Part]) -> None:
    """`table.json` and `table.md` in the output folder."""
    write_json(plan.output / "table.json", as_json(plan, results, parts))
    replace_file(plan.output / "table.md", markdown(plan, results, parts).encode())


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- for the eye --------------------------------------------------------------------------------


def markdown(plan: Plan, results: Mapping[str, CellResult], parts: Sequence[Part]) -> str:
    """The table as Markdown."""
    lines = [f"# {plan.source.name}: {plan.metric}", ""]
    for part in parts:
        lines += [f"## {_heading(part, plan)}", ""]
        for header, rows in _tables(part, plan):
            lines += [_line(header), "|" + "---|" * len(header), *map(_line, rows), ""]
    lines += [f"- {note}" for note in notes(plan, results, parts)]
    return "\n".join(lines) + "\n"


def show(
    plan: Plan, results: Mapping[str, CellResult], parts: Sequence[Part], console: Console
) -> None:
    """The table in the terminal."""
    for part in parts:
        title = _heading(part, plan)
        for header, rows in _tables(part, plan):
            table = Table(title=Text(title), title_justify="left")
            for number, name in enumerate(header):
                table.add_column(Text(name), justify="right" if number else "left")
            for row in rows:
                table.add_row(*(Text(visible(cell, console.encoding)) for cell in row))
            console.print(table)
            title = ""
    for note in notes(plan, results, parts):
        console.print(
            visible(note, console.encoding), markup=False, highlight=False, soft_wrap=True
        )


ALONE = "(p)"
"""Marks intervals over problems alone in a table whose others are over training seeds too."""


def notes(plan: Plan, results: Mapping[str, CellResult], parts: Sequence[Part]) -> list[str]:
    """What one must know to read the table."""
    found = []
    missing = [f"{n} ({r.state})" for n, r in results.items() if r.state is not State.DONE]
    if missing:
        found.append(f"Incomplete, {len(missing)} of {len(results)} cells: {', '.join(missing)}.")
    over = "over problems and training seeds together"
    alone = "over problems alone: of one training nobody knows what the next gives"
    if len(plan.seeds) == 1:
        over = alone
    elif any(_is_alone(part, plan) for part in parts):
        over += f"; those with {ALONE} {alone}"
    found.append(
        f"Intervals are 95 %, {over} (srl/compare/figures.py). Contrasts are paired by problem and "
        "seed, and not corrected for their number."
    )
    if any(result.tokens is not None for result in results.values()):
        found.append(
            "Tokens and time are sums over a row's cells: tokens that the policy wrote in "
            "training, or that SFT read; time with evaluations."
        )
    seconds = sum(result.seconds for result in results.values())
    found.append(
        f"{'; '.join([*_makings(results), f'cells took {clock(seconds)}'])}. Made by: "
        f"python -m srl compare --config {plan.source}{' --quick' if plan.quick else ''}"
    )
    return found


def _makings(results: Mapping[str, CellResult]) -> list[str]:
    """What the finished cells were made with; where they differ, how many with what."""
    made = [result.made_with for result in results.values() if result.made_with is not None]
    found = [
        _counted(one.cpu for one in made),
        _counted(None if one.cpu_count is None else f"{one.cpu_count} cores" for one in made),
        _counted(None if one.torch is None else f"torch {one.torch}" for one in made),
        _counted(
            None
            if one.commit is None
            else f"commit {one.commit[:10]}{' with changes' if one.dirty else ''}"
            for one in made
        ),
    ]
    said = [", ".join(values) for values in found if values]
    if any(len(values) > 1 for values in found):
        said.append("so not all cells were made alike")
    return said


def _counted(values: Iterable[str | None]) -> list[str]:
    """The one value there is, or each with its number of cells; the unknown is left out."""
    counts = Counter(value for value in values if value is not None)
    if len(counts) < 2:
        return list(counts)
    return [f"{value} ({count} cells)" for value, count in counts.items()]


def _heading(part: Part, plan: Plan) -> str:
    seeds = ", ".join(map(str, plan.seeds))
    return f"{part.difficulty}: {part.problems} problems, seeds {seeds}; solved, %"


def _tables(part: Part, plan: Plan) -> list[tuple[list[str], list[list[str]]]]:
    """Headers and rows of what a difficulty has: figures, contrasts, behaviour."""
    tables = (_figure_rows(part, plan), _contrast_rows(part, plan), _behaviour_rows(part, plan))
    return [(header, rows) for header, rows in tables if rows]


def _behaviour_rows(part: Part, plan: Plan) -> tuple[list[str], list[list[str]]]:
    aspects = list(dict.fromkeys(name for one in part.behaviour.values() for name in one))
    header = ["a whole solution has", *(name.replace("_", " ") for name in aspects)]
    rows = [
        [
            row.title,
            *(
                f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]{_mark(_trainings(cells), plan)}"
                for e in shown.values()
            ),
        ]
        for row, cells in part.rows
        if (shown := part.behaviour[row.name])
    ]
    return header, rows


def _figure_rows(part: Part, plan: Plan) -> tuple[list[str], list[list[str]]]:
    others = list(
        dict.fromkeys(
            name for figures in part.figures.values() for name in figures if name != plan.metric
        )
    )
    header = ["", plan.metric, *(f"seed {seed}" for seed in plan.seeds), *others, "tokens", "time"]
    rows = []
    for row, cells in part.rows:
        figures = part.figures[row.name]
        by_seed = {cell.cell.seed: cell for cell in cells}
        rows.append(
            [
                row.title,
                _interval(figures.get(plan.metric), _mark(_trainings(cells), plan))
                + _short_of(cells),
                *(_seed_cell(by_seed.get(seed), plan.metric) for seed in plan.seeds),
                *(_percent(figures.get(name)) for name in others),
                _tokens(cells),
                clock(sum(cell.seconds for cell in cells)),
            ]
        )
    return header, rows


def _contrast_rows(part: Part, plan: Plan) -> tuple[list[str], list[list[str]]]:
    titles = {row.name: row.title for row in plan.rows}
    rows = [
        [
            f"{titles[c.first]} less {titles[c.second]}",
            _interval(c.difference, _mark(len(c.seeds), plan), signed=True),
            ", ".join(map(str, c.seeds)) or "-",
            c.word,
        ]
        for c in part.contrasts
    ]
    return ["", f"difference in {plan.metric}, points", "seeds", "verdict"], rows


def _seed_cell(result: CellResult | None, metric: str) -> str:
    if result is None:  # a row without seeds
        return ""
    values = result.values.get(metric)
    if not values:
        return str(result.state)
    return f"{100 * sum(values.values()) / len(values):.1f}"


def _short_of(cells: Sequence[CellResult]) -> str:
    done = sum(bool(cell.values) for cell in cells)
    return "" if done == len(cells) else f" ({done} of {len(cells)} cells)"


def _tokens(cells: Sequence[CellResult]) -> str:
    found = [cell.tokens for cell in cells if cell.tokens is not None]
    return f"{sum(found):,.0f}" if found else "-"


def _trainings(cells: Sequence[CellResult]) -> int:
    """How many trainings a row's interval is over."""
    return sum(bool(cell.values) and cell.cell.trained for cell in cells)


def _mark(trainings: int, plan: Plan) -> str:
    """What stands behind an interval that is over problems alone while others are not."""
    return f" {ALONE}" if trainings < 2 <= len(plan.seeds) else ""


def _is_alone(part: Part, plan: Plan) -> bool:
    """Whether any interval of a difficulty is marked."""
    shown = [_trainings(cells) for row, cells in part.rows if part.figures[row.name]]
    shown += [len(c.seeds) for c in part.contrasts if c.difference is not None]
    return any(_mark(trainings, plan) for trainings in shown)


def _interval(estimate: Estimate | None, mark: str = "", *, signed: bool = False) -> str:
    if estimate is None:
        return "-"
    sign = "+" if signed else ""
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]{mark}"


def _percent(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{100 * estimate.value:.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(visible(cell).replace("|", "\\|") for cell in cells) + " |"
