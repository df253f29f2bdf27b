"""What is there of a comparison's cells, read from the disk.

A cell counts if its folder holds a finished run with the plan's settings that started from the
policy that the plan names. That policy is named by a folder, in which another may lie later: a base
that was made again, or a first stage. So the output folder has two logs of its own: `starts.jsonl`,
a line for every time that a cell was started anew, with the digest of the weights it started from,
and `sessions.jsonl`, a line for every time that a cell was started or resumed and has ended. What
has no line, and the weights of a model by its hub name, is unknown, which is no difference.
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

# How fast, where to and what is shown: cells that differ in them are the same.
_FREE = ("output_dir", "reward_workers", "disable_tqdm", "report_to", "save_every_minutes")

Line = Mapping[str, Any]


class State(StrEnum):
    """What is there of a cell."""

    TO_DO = "to do"
    DONE = "done"
    INTERRUPTED = "interrupted"  # with a checkpoint to go on from
    CUT_OFF = "cut off"  # without one: it starts again
    OTHER_SETTINGS = "other settings"  # there, but not what the plan asks for
    OTHER_START = "other start"  # there, but not from the policy that the plan has for it now
    FAILED = "failed"  # when it was last tried, and nothing is left of it


@dataclass(frozen=True)
class MadeWith:
    """What a cell was made with; None is unknown."""

    cpu: str | None
    cpu_count: int | None
    threads: int | None
    torch: str | None
    commit: str | None
    dirty: bool | None


@dataclass(frozen=True)
class CellRun:
    """A cell and the run that is there of it. Its figures are read when they are asked for.

    Attributes:
        cell: which.
        run: its folder.
        state: what is there.
        why: `key: old -> new` of every setting that changed, or why its start is another.
        start: its line of starts.jsonl, empty if unknown.
        sessions: of the run that is there, those that failed or were stopped included; not of
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
        """Figure -> problem -> number; empty unless it is done."""
        return self._figures[0]

    @property
    def behaviour(self) -> Mapping[str, Mapping[str, float]]:
        """Aspect of whole greedy solutions -> problem -> number; empty unless it is done."""
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
        """The numbers of its summary.json."""
        return {k: v for k, v in self._summary.items() if type(v) in (int, float)}

    @cached_property
    def held_out_steps(self) -> dict[str, Estimate]:
        """Figure -> its mean over held-out steps: similarity, exact, format failures, lift."""
        figures = self._summary.get("after") or self._summary.get("eval") or {}
        return {
            name.removeprefix(HELD_OUT_STEPS): Estimate(**figure)
            for name, figure in figures.items()
            if name.startswith(HELD_OUT_STEPS) and isinstance(figure, dict)
        }

    @property
    def tokens(self) -> float | None:
        """Written in training by the policy, or read by SFT; None where nothing was trained."""
        return self.summary.get("tokens_written", self.summary.get("tokens_read"))

    @property
    def policy_step(self) -> int | None:
        """The training step of the policy that was tested: the last, or the best on validation."""
        best = str(self._summary.get("best_checkpoint")).rpartition("checkpoint-")[2]
        return int(best) if best.isdecimal() else self._summary.get("steps")

    @cached_property
    def groups(self) -> tuple[float, float] | None:
        """Groups that updates were made of, and all that were sampled; None without rollouts."""
        return groups_of(log_lines(self.run.metrics)) if self.done else None

    @cached_property
    def loads(self) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
        """How a sparse policy's experts were used in the first and in the last fifth of training.

        Figures as `load_figures` names them; None of a dense policy, and without training.
        """
        lines = [line["layers"] for line in log_lines(self.run.experts)] if self.done else []
        if not lines:
            return None
        fifth = max(1, len(lines) // 5)
        return load_figures(added(lines[:fifth])), load_figures(added(lines[-fifth:]))

    @property
    def seconds(self) -> float:
        """What its sessions took."""
        return sum(line["seconds"] for line in self.sessions)

    @property
    def commands(self) -> list[str]:
        """Its sessions' commands as one would type them, whoever's Python it was."""
        return [shlex.join(["python", *line["command"][1:]]) for line in self.sessions]

    @cached_property
    def made_with(self) -> MadeWith | None:
        """The code and the machine; None unless it is done."""
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
    """Every cell of the plan by its name."""
    starts, sessions = log_lines(plan.output / STARTS), log_lines(plan.output / SESSIONS)
    found: dict[str, CellRun] = {}
    for cell in plan.cells:  # each behind the one it starts from
        first = None if cell.after is None else found[cell.after]
        found[cell.name] = _read(cell, plan.output, first, starts, sessions)
    return found


def read_cell(cell: Cell, output: Path) -> CellRun:
    """One cell, whose first is known to be done."""
    return _read(cell, output, None, log_lines(output / STARTS), log_lines(output / SESSIONS))


def write_start(cell: Cell, output: Path, started: str, *, threads: int) -> None:
    """Write down what `cell` starts from now.

    Args:
        cell: which.
        output: the comparison's folder.
        started: date and time, ISO 8601.
        threads: how many it computes with, on which the rounding of its sums depends.
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
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def groups_of(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Groups kept and tried, of metrics.jsonl, whose lines hold means since the line before."""
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
    # environment.json has whole seconds.
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
    # Above 128 it was asked to stop, and did; below 0 it was killed.
    if state is State.TO_DO and own and own[-1]["exit"] != 0 and own[-1]["exit"] <= 128:
        state = State.FAILED
    since = _time(start.get("started"))
    if since is None and began is not None:
        # Of other clocks than a session's times, and without their parts of a second.
        since = began - timedelta(seconds=1)
    of_run = [line for line in own if since is not None and _ended(line) >= since]
    return CellRun(cell, run, state, why, start, of_run)


def _state(
    cell: Cell, run: RunFolder, first: CellRun | None, start: Line
) -> tuple[State, list[str]]:
    """What is there of a cell, and what is wrong with it in words."""
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
    except UsageError:  # there are some, none of them whole
        return False


def _changes(cell: Cell, run: RunFolder) -> list[str]:
    """`key: old -> new` for every setting of the run that the plan has otherwise."""
    old, new = run.read_config(), cell.experiment.resolved()
    # A setting of ours that has gone from the config of this method has no meaning for it.
    idle = {*setting_names(SRLConfig)} - {*setting_names(type(cell.experiment.args))}
    old = {key: value for key, value in old.items() if key not in idle}
    # A source may be code. The plan's is the user's own; that of a folder need not be.
    if list(sources_in(old.get("data"))) == list(sources_in(new.get("data"))):
        with suppress(UsageError):  # a field that there is no more is told as it is
            # A field that is newer than the run has its default, which is what the run did.
            old = parse_experiment(old, where=str(run.config)).resolved()
    before, after = (
        {key: value for key, value in settings.items() if key not in _FREE}
        for settings in (old, new)
    )
    return changed_keys(before, after)


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; none without a file."""
    return list(read_rows(path)) if path.is_file() else []


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _time(text: str | None) -> datetime | None:
    """A date and time as logs have it."""
    if text is None:
        return None
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _ended(session: Line) -> datetime:
    return datetime.fromisoformat(session["started"]) + timedelta(seconds=session["seconds"])


def _stamp(model: str) -> str | None:
    """Names, sizes and times of a model folder's files, as one word: while they stay, the weights
    do, and need not be read. None where there is no folder, and for an adapter, whose base is
    elsewhere."""
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
    """Read once a process: every row starts from the same base, which may have gigabytes."""
    return fingerprint(model)
