"""What a comparison's cells left on the disk, and the figures that follow from it.

Nothing is remembered between calls: a cell counts if its folder holds a finished run with the
plan's settings that started from the policy that the plan names.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from srl.compare.figures import (
    behaviour_of,
    contrast,
    figures_of,
    last_evaluation,
    row_estimate,
    row_estimate_of_counts,
    verdict,
)
from srl.compare.origin import began_at, other_weights, read_json, read_start, time_of
from srl.compare.plan import Cell, Plan, Row
from srl.config.experiment import parse_experiment
from srl.config.parts import setting_names
from srl.config.settings import SRLConfig
from srl.errors import UsageError
from srl.runs.folder import RunFolder, changed_keys
from srl.runs.records import read_rows
from srl.stats import Estimate

SESSIONS = "sessions.jsonl"
"""In the output folder: a line for every time that a cell was started and ended."""


# How fast, where to and what is shown: cells that differ in them are the same.
_FREE = ("output_dir", "reward_workers", "disable_tqdm", "report_to")


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
    # Earlier versions wrote down what other methods have use for.
    idle = {*setting_names(SRLConfig)} - {*setting_names(type(cell.experiment.args))}
    old = {key: value for key, value in old.items() if key not in idle}
    with suppress(UsageError):  # a field that there is no more is told as it is
        # A field that is newer than the run has its default, which is what the run did.
        old = parse_experiment(old, where=str(run.config)).resolved()
    before, after = (
        {key: value for key, value in settings.items() if key not in _FREE}
        for settings in (old, new)
    )
    return changed_keys(before, after)


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
    threads: int | None
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
        commands: of the same sessions, as one would type them.
        summary: the numbers of its summary.json, such as tokens.
        policy_step: the training step of the policy that was tested: the last, or the best on
            validation; None where nothing was trained.
        groups: in training, groups that updates were made of, and all that were sampled; None where
            there are no rollouts.
        made_with: the code and the machine; None unless it is done.
    """

    cell: Cell
    state: State
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    behaviour: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    commands: list[str] = field(default_factory=list)
    summary: Mapping[str, float] = field(default_factory=dict)
    policy_step: int | None = None
    groups: tuple[float, float] | None = None
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
            # Of whoever's Python it was: a table is there to be shown.
            found[name].commands.append(shlex.join(["python", *map(str, command[1:])]))
    for name, result in found.items():
        run = RunFolder(plan.output / name)
        if result.state is State.TO_DO and last_exit.get(name) not in (None, 0, 130):
            result.state = State.FAILED
        if result.state is State.DONE:
            attempts = last_evaluation(read_rows(run.eval)) if run.eval.is_file() else []
            result.values, result.behaviour = figures_of(attempts), behaviour_of(attempts)
            summary = read_json(run.summary)
            result.summary = {k: v for k, v in summary.items() if type(v) in (int, float)}  # type: ignore[misc]
            result.policy_step = _policy_step(summary)
            result.groups = _groups(run)
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


def _policy_step(summary: Mapping[str, object]) -> int | None:
    best = str(summary.get("best_checkpoint")).rpartition("checkpoint-")[2]
    steps = int(best) if best.isdecimal() else summary.get("steps")
    return steps if isinstance(steps, int) else None


def _groups(run: RunFolder) -> tuple[float, float] | None:
    lines = list(read_rows(run.metrics)) if run.metrics.is_file() else []
    kept = tried = 0.0
    last = 0
    for line in lines:
        found = [line.get(name) for name in ("groups_kept", "groups_tried", "step")]
        if all(isinstance(value, int | float) for value in found):
            mean_kept, mean_tried, step = map(float, found)  # type: ignore[arg-type]
            kept += mean_kept * (step - last)  # means over the steps since the line before
            tried += mean_tried * (step - last)
            last = int(step)
    return (kept, tried) if tried else None


def _made_with(run: RunFolder, start: Mapping[str, object]) -> MadeWith:
    environment = read_json(run.environment)
    packages, git = environment.get("packages"), environment.get("git")
    versions = packages if isinstance(packages, dict) else {}
    code = git if isinstance(git, dict) else {}

    def text(value: object) -> str | None:
        return value if isinstance(value, str) else None

    def whole(value: object) -> int | None:
        return value if isinstance(value, int) else None

    dirty = code.get("dirty")
    return MadeWith(
        cpu=text(start.get("cpu")),
        cpu_count=whole(environment.get("cpu_count")),
        threads=whole(start.get("threads")),
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
    """The first row less the second, in one figure; of two rows that are not trained `seeds` is
    empty."""

    figure: str
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
        contrasts: of each of the plan's metrics in turn.
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
            shown[row.name] = {
                a: row_estimate_of_counts([values[a] for values in seen]) for a in aspects
            }
        by_row = {row.name: cells for row, cells in rows}
        contrasts = [
            _contrast(*pair, by_row, metric) for metric in plan.metrics for pair in plan.contrasts
        ]
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
        return Contrast(metric, first, second, (), None)
    difference = contrast([a for _, a, _ in there], [b for _, _, b in there])
    shared = tuple(s for s, _, _ in there if s is not None)
    return Contrast(metric, first, second, shared, difference)


def _same_problems(cells: Sequence[CellResult], plan: Plan) -> int:
    """How many problems all cells have solved."""
    seen: dict[str, tuple[str, set[str]]] = {}
    for cell in cells:
        for figure, values in cell.values.items():
            name, problems = seen.setdefault(figure, (cell.cell.name, set(values)))
            if problems != set(values):
                raise UsageError(
                    f"{cell.cell.name} and {name} have solved different problems: the data has "
                    f"changed since one of them was made. Move both out of {plan.output} to make "
                    "them again"
                )
    return max((len(problems) for _, problems in seen.values()), default=0)
