"""Reads the states of a comparison's cells from the disk.

A cell is done if its folder has a finished run with the plan's settings that started from the
policy that the plan names. The plan names the policy by its folder, which may contain another
policy later, such as a base or a first stage that was made again. So the output folder has two logs
of its own. `starts.jsonl` has a line for each new start of a cell, with the digest of the weights
that it started from. `sessions.jsonl` has a line for each start or resume of a cell that has ended.
A start without a line and the weights of a hub model are unknown, and unknown counts as unchanged.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from srl.compare.figures import behaviour_of, figures_of, last_evaluation
from srl.compare.plan import Cell, Plan
from srl.config.experiment import parse_experiment
from srl.config.parts import setting_names
from srl.config.settings import SRLConfig
from srl.config.trust import sources_in
from srl.errors import UsageError
from srl.evaluation.held_out import HELD_OUT_STEPS
from srl.models.loading import fingerprint
from srl.models.lora import is_adapter_folder
from srl.runs.checkpoints import latest_checkpoint
from srl.runs.expert_load import added, load_figures
from srl.runs.folder import RunFolder, changed_keys
from srl.runs.records import RecordWriter, read_rows
from srl.stats import Estimate

STARTS, SESSIONS = "starts.jsonl", "sessions.jsonl"

# Settings of speed, place and display: cells that differ only in them count as the same.
_FREE = ("output_dir", "reward_workers", "disable_tqdm", "report_to", "save_every_minutes")

Line = Mapping[str, Any]


class State(StrEnum):
    """The state of a cell on the disk."""

    TO_DO = "to do"
    DONE = "done"
    INTERRUPTED = "interrupted"  # not finished, with a checkpoint to resume from
    CUT_OFF = "cut off"  # not finished and without a checkpoint: it starts again
    OTHER_SETTINGS = "other settings"  # the run exists, but with other settings than the plan's
    OTHER_START = "other start"  # the run exists, but started from another policy than the plan's
    FAILED = "failed"  # the last attempt failed, and its folder is empty or missing


@dataclass(frozen=True)
class MadeWith:
    """The machine and the code that made a cell; None is unknown."""

    cpu: str | None
    cpu_count: int | None
    threads: int | None
    torch: str | None
    commit: str | None
    dirty: bool | None


@dataclass(frozen=True)
class CellRun:
    """A cell and its run on the disk. Figures are read only when they are needed.

    Attributes:
        cell: the cell.
        run: the run's folder.
        state: the state of the run.
        why: `key: old -> new` of every changed setting, or why the start differs.
        start: the run's line of starts.jsonl; empty if unknown.
        sessions: the sessions of this run, including failed and stopped ones, without those of
            earlier runs that were moved away.
    """

    cell: Cell
    run: RunFolder
    state: State
    why: Sequence[str]
    start: Line
    sessions: Sequence[Line]

    @property
    def done(self) -> bool:
        return self.state is State.DONE

    @property
    def values(self) -> Mapping[str, Mapping[str, float]]:
        """Returns figure -> problem -> number; empty unless the cell is done."""
        return self._figures[0]

    @property
    def behaviour(self) -> Mapping[str, Mapping[str, float]]:
        """Returns aspect of whole greedy solutions -> problem -> number; empty unless done."""
        return self._figures[1]

    @cached_property
    def _figures(self) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
        attempts = last_evaluation(log_lines(self.run.eval)) if self.done else []
        return figures_of(attempts), behaviour_of(attempts)

    @cached_property
    def _summary(self) -> Line:
        return _object(self.run.summary) if self.done else {}

    @property
    def summary(self) -> dict[str, float]:
        """Returns the numbers of the run's summary.json; empty unless the cell is done."""
        return {k: v for k, v in self._summary.items() if type(v) in (int, float)}

    @cached_property
    def held_out_steps(self) -> dict[str, Estimate]:
        """Returns figure -> mean over held-out steps: similarity, exact, format failures, lift."""
        figures = self._summary.get("after") or self._summary.get("eval") or {}
        return {
            name.removeprefix(HELD_OUT_STEPS): Estimate(**figure)
            for name, figure in figures.items()
            if name.startswith(HELD_OUT_STEPS) and isinstance(figure, dict)
        }

    @property
    def tokens(self) -> float | None:
        """Returns the tokens that the policy wrote in training, or that SFT read.

        The result is None without training, and unless the cell is done.
        """
        return self.summary.get("tokens_written", self.summary.get("tokens_read"))

    @property
    def policy_step(self) -> int | None:
        """Returns the training step of the tested policy: the last, or the best on validation."""
        best = str(self._summary.get("best_checkpoint")).rpartition("checkpoint-")[2]
        return int(best) if best.isdecimal() else self._summary.get("steps")

    @cached_property
    def groups(self) -> tuple[float, float] | None:
        """Returns the numbers of groups trained on and of sampled groups; None without rollouts."""
        return groups_of(log_lines(self.run.metrics)) if self.done else None

    @cached_property
    def loads(self) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
        """Returns how the experts were used in the first and the last fifth of training.

        The figures have the names of `load_figures`. The result is None for a dense policy, and
        without training.
        """
        lines = [line["layers"] for line in log_lines(self.run.experts)] if self.done else []
        if not lines:
            return None
        fifth = max(1, len(lines) // 5)
        return load_figures(added(lines[:fifth])), load_figures(added(lines[-fifth:]))

    @property
    def seconds(self) -> float:
        """Returns the total time of the run's sessions, in seconds."""
        return sum(line["seconds"] for line in self.sessions)

    @property
    def commands(self) -> list[str]:
        """Returns the sessions' commands as a user would type them, with `python` as first word."""
        return [shlex.join(["python", *line["command"][1:]]) for line in self.sessions]

    @cached_property
    def made_with(self) -> MadeWith | None:
        """Returns the code and the machine that made the cell; None unless the cell is done."""
        if not self.done:
            return None
        environment = _object(self.run.environment)
        code = environment.get("git") or {}
        return MadeWith(
            cpu=self.start.get("cpu"),
            cpu_count=environment.get("cpu_count"),
            threads=self.start.get("threads"),
            torch=environment.get("packages", {}).get("torch"),
            commit=code.get("commit"),
            dirty=code.get("dirty"),
        )


def read_cells(plan: Plan) -> dict[str, CellRun]:
    """Returns the name of every cell of the plan -> its run on the disk."""
    starts, sessions = log_lines(plan.output / STARTS), log_lines(plan.output / SESSIONS)
    runs: dict[str, CellRun] = {}
    for cell in plan.cells:  # a cell comes after the cell it starts from
        first = None if cell.after is None else runs[cell.after]
        runs[cell.name] = _read(cell, plan.output, first, starts, sessions)
    return runs


def read_cell(cell: Cell, output: Path) -> CellRun:
    """Returns one cell's run; the cell that it starts from must be done."""
    return _read(cell, output, None, log_lines(output / STARTS), log_lines(output / SESSIONS))


def write_start(cell: Cell, output: Path, started: str, *, threads: int) -> None:
    """Adds a line to starts.jsonl with the weights that `cell` starts from now.

    Args:
        cell: the cell.
        output: the comparison's folder.
        started: date and time, ISO 8601.
        threads: the number of threads of the cell, on which the rounding of its sums depends.
    """
    model = cell.experiment.model
    stamp = _stamp(model)
    line = {
        "cell": cell.name,
        "started": started,
        "model": model,
        "weights": _digest(model, stamp),
        "stamp": stamp,
        "cpu": cpu_name(),
        "threads": threads,
    }
    with RecordWriter(output / STARTS) as writer:
        writer.write([line])


def cpu_name() -> str:
    """Returns the model name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def groups_of(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Returns the total groups kept and tried, from metrics.jsonl; None if no group was tried.

    Each line has the means over the steps since the previous such line.
    """
    kept = tried = 0.0
    last = 0
    for line in lines:
        if "groups_kept" in line:
            kept += line["groups_kept"] * (line["step"] - last)
            tried += line["groups_tried"] * (line["step"] - last)
            last = line["step"]
    return (kept, tried) if tried else None


def _read(
    cell: Cell,
    output: Path,
    first: CellRun | None,
    starts: Sequence[Line],
    sessions: Sequence[Line],
) -> CellRun:
    run = RunFolder(output / cell.name)
    # The time in environment.json is in whole seconds.
    began = _time(_object(run.environment).get("started"))
    before = [
        line
        for line in starts
        if line["cell"] == cell.name
        and began is not None
        and datetime.fromisoformat(line["started"]).replace(microsecond=0) <= began
    ]
    start: Line = before[-1] if before else {}
    own = [line for line in sessions if line["cell"] == cell.name]
    state, why = _state(cell, run, first, start)
    # Exit codes above 128: the cell stopped because a signal asked it. Below 0: it was killed.
    if state is State.TO_DO and own and own[-1]["exit"] != 0 and own[-1]["exit"] <= 128:
        state = State.FAILED
    since = _time(start.get("started"))
    if since is None and began is not None:
        # `began` is of another clock than the sessions' times, and has no fraction of a second.
        since = began - timedelta(seconds=1)
    of_run = [line for line in own if since is not None and _ended(line) >= since]
    return CellRun(cell, run, state, why, start, of_run)


def _state(
    cell: Cell, run: RunFolder, first: CellRun | None, start: Line
) -> tuple[State, list[str]]:
    """Returns the state of a cell, and lines that say why its settings or its start differ."""
    if not run.path.is_dir() or not any(run.path.iterdir()):
        return State.TO_DO, []
    finished = run.summary.is_file()
    if not finished and not (cell.trained and _has_checkpoint(run)):
        return State.CUT_OFF, []
    if changes := _changes(cell, run):
        return State.OTHER_SETTINGS, changes
    if first is not None and not first.done:
        words = f"{first.cell.name}, whose policy it started from, is not done ({first.state})"
        return State.OTHER_START, [words]
    model = cell.experiment.model
    before, stamp = start.get("weights"), _stamp(model)
    if before is not None and (stamp is None or stamp != start.get("stamp")):
        now = _digest(model, stamp)
        if now is not None and now != before:
            return State.OTHER_START, [f"{model} has other weights now ({before} -> {now})"]
    return (State.DONE if finished else State.INTERRUPTED), []


def _has_checkpoint(run: RunFolder) -> bool:
    if not run.config.is_file():
        return False
    try:
        return latest_checkpoint(run.path, lambda _: None) is not None
    except UsageError:  # there are checkpoints, but none is complete
        return False


def _changes(cell: Cell, run: RunFolder) -> list[str]:
    """Returns `key: old -> new` for every setting in which the run differs from the plan."""
    old, new = run.read_config(), cell.experiment.resolved()
    # SRL's settings that this method does not have, as in old configs, have no effect on it.
    idle = {*setting_names(SRLConfig)} - {*setting_names(type(cell.experiment.args))}
    old = {key: value for key, value in old.items() if key not in idle}
    # A source may be code. The plan's code is the user's own, but a folder's code may not be.
    if list(sources_in(old.get("data"))) == list(sources_in(new.get("data"))):
        with suppress(UsageError):  # if a setting no longer exists, the config is compared as it is
            # A setting that is newer than the run gets its default, which is what the run used.
            old = parse_experiment(old, where=str(run.config)).resolved()
    before, after = (
        {key: value for key, value in settings.items() if key not in _FREE}
        for settings in (old, new)
    )
    return changed_keys(before, after)


def log_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log; an empty list if there is no file."""
    return list(read_rows(path)) if path.is_file() else []


def _object(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file; an empty one if there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _time(text: str | None) -> datetime | None:
    """Returns a log's date and time, in UTC if it has no zone; None for None."""
    if text is None:
        return None
    timestamp = datetime.fromisoformat(text)
    return timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)


def _ended(session: Line) -> datetime:
    return datetime.fromisoformat(session["started"]) + timedelta(seconds=session["seconds"])


def _stamp(model: str) -> str | None:
    """Returns a digest of the names, sizes and times of a model folder's files.

    While the digest is unchanged, the weights count as unchanged and are not read. The result is
    None if there is no folder, and for an adapter, whose base is elsewhere.
    """
    folder = Path(model)
    if not folder.is_dir() or is_adapter_folder(folder):
        return None
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    shown = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return hashlib.sha256(shown.encode()).hexdigest()[:16]


def _digest(model: str, stamp: str | None) -> str | None:
    return fingerprint(model) if stamp is None else _digest_once(model, stamp)


@cache
def _digest_once(model: str, stamp: str) -> str | None:
    """Returns the fingerprint of a model, computed once per process.

    Every row starts from the same base, which may have gigabytes.
    """
    return fingerprint(model)
