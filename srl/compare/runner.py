"""Makes the missing runs of a comparison, each in its own process.

The progress is read from the disk only, so the same command continues after any interruption. A
finished cell is skipped, a cell with a checkpoint is resumed, and an unfinished cell without one is
moved aside and started again. Only the checkpoints of finished cells are deleted: nobody resumes
from them, and they take 12 bytes per parameter. A plan may keep them. Cells that others wait for
start first, beginning with the longest chain.

Ctrl-C, or another signal that asks to stop, goes to this process. It passes the signal on to the
cells, and they save.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from types import FrameType

import yaml
from rich.console import Console

import srl
from rewards.pool import cores
from srl.compare.cell_run import (
    SESSIONS,
    CellRun,
    State,
    read_cell,
    read_cells,
    write_start,
)
from srl.compare.plan import Cell, Plan
from srl.compare.problems import check_problems
from srl.compare.processes import Process, Start, at_work, locked, start_process
from srl.compare.results import build
from srl.compare.table import show, write_table
from srl.console import clock, say, visible
from srl.errors import UsageError
from srl.runs.folder import replace_file
from srl.runs.lock import writer_of
from srl.runs.records import RecordWriter
from srl.runs.stopping import handling

DONE, FAILED = 0, 1
_PAUSE = 0.1  # seconds between looks at the running cells
_CODE = str(Path(srl.__file__).resolve().parent.parent)


def compare(
    plan: Plan,
    console: Console,
    *,
    cells: Sequence[Cell] | None = None,
    jobs: int | None = None,
    start: Start | None = None,
) -> int:
    """Runs the missing cells, shows and writes the table, and returns the exit code.

    Args:
        plan: the comparison.
        console: where progress is printed.
        cells: the cells to run; None: all cells of the plan.
        jobs: the number of cells at a time; None: one per core, or one if any runs on a GPU.
        start: the function that starts a cell's process; None: `start_process`.

    Returns:
        0 if all cells are done; 1 if some failed; 128 + n after signal n (130 after Ctrl-C), with
        checkpoints saved.

    Raises:
        UsageError: an existing cell has other settings or another start, or another call runs in
            the folder.
        DataError: the data cannot be used.
    """
    chosen = plan.cells if cells is None else cells
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs is {jobs}; it must be 1 or more")
    refuse_mixed_runs(plan, chosen, read_cells(plan))
    _make_folders(plan.output)
    waiting = "waiting for cells that an earlier call left running"
    with locked(plan.output, lambda: _say(console, waiting)) as lock:
        runs = read_cells(plan)  # an earlier call's cells may have ended while we waited
        refuse_mixed_runs(plan, chosen, runs)
        missing = [cell for cell in chosen if not runs[cell.name].done]
        _refuse_living([runs[cell.name] for cell in missing])
        _say(console, f"{len(chosen)} cells, {len(chosen) - len(missing)} of them done")
        check_problems(plan, missing, console)
        at_once = min(jobs or _at_once(missing), max(1, len(missing)))
        queue = Queue(plan, missing, at_once, runs, lock, start or start_process, console)
        code = queue.run()
    show_table(plan, console)
    for name, why in queue.failures.items():
        _say(console, f"{name}: {why}")
    if code > 128:
        _say(console, "stopped; the same command goes on")
    return code


def show_table(plan: Plan, console: Console) -> None:
    """Shows and writes the table of the existing cells."""
    _tell_who_is_at_work(plan, console)
    runs = read_cells(plan)
    parts = build(plan, runs)
    show(plan, runs, parts, console)
    if any(run.values for run in runs.values()):
        write_table(plan, runs, parts)
        _say(console, f"table: {plan.output / 'table.md'}, {plan.output / 'table.json'}")


def list_cells(plan: Plan, cells: Sequence[Cell], console: Console) -> None:
    """Prints the state of each cell, in the order in which a call would start them: `--dry-run`."""
    _tell_who_is_at_work(plan, console)
    runs = read_cells(plan)
    for cell in first_first(cells):
        from_ = f", from {cell.after}" if cell.after is not None else ""
        _say(console, f"{cell.name:30} {runs[cell.name].state}{from_}")
        for line in runs[cell.name].why:
            _say(console, f"    {line}")


def first_first(cells: Sequence[Cell]) -> list[Cell]:
    """Returns cells in the order to start them: by the longest chain that waits, then by seed.

    So whole seeds are complete early.
    """
    longest = dict.fromkeys((cell.name for cell in cells), 0)
    for cell in reversed(cells):  # a cell comes after the cell it starts from
        if cell.after in longest:
            longest[cell.after] = max(longest[cell.after], longest[cell.name] + 1)
    # A row without seeds takes little time, and all contrasts with it wait for it.
    return sorted(cells, key=lambda c: (-longest[c.name], -1 if c.seed is None else c.seed))


def refuse_mixed_runs(plan: Plan, cells: Sequence[Cell], runs: Mapping[str, CellRun]) -> None:
    """Raises UsageError if existing runs are not what the plan asks for, so that runs never mix.

    Raises:
        UsageError: a run of `cells` has other settings; or the policy from which a run of `cells`,
            or a run that depends on one, started has changed or is not done. The message names the
            runs and says what to type.
    """
    asked = {cell.name for cell in cells}
    concerned = set(asked)
    alike: dict[str, list[Path]] = {}
    for name, run in runs.items():  # a cell comes after the cell it starts from
        if run.cell.after in concerned:
            concerned.add(name)
        refused = asked if run.state is State.OTHER_SETTINGS else concerned
        if run.why and name in refused:
            alike.setdefault("\n".join(f"    {line}" for line in run.why), []).append(run.run.path)
    if alike:
        moves = [f"  mv {path} {path}.old" for paths in alike.values() for path in paths]
        lines = [
            f"These runs are not what {plan.source} asks for now:",
            *(f"  {', '.join(map(str, paths))}:\n{why}" for why, paths in alike.items()),
            "To keep them, put back what changed, or write another `output` into the file. To make "
            "them again, move them away first:",
            *moves,
        ]
        raise UsageError("\n".join(lines))


def _refuse_living(runs: Sequence[CellRun]) -> None:
    """Raises UsageError if another process writes in a cell's folder, which might be moved away."""
    for run in runs:
        if (owner := writer_of(run.run.path)) is not None:
            raise UsageError(
                f"{run.run.path} is being written by {owner}; wait until it has ended, or stop it"
            )


class Queue:
    """The cells that wait and the cells that run.

    Attributes:
        failures: cell -> why it is not done, for cells that failed and cells that waited for them.
    """

    def __init__(
        self,
        plan: Plan,
        cells: Sequence[Cell],
        jobs: int,
        runs: Mapping[str, CellRun],
        lock: int,
        start: Start,
        console: Console,
    ) -> None:
        self.failures: dict[str, str] = {}
        self._plan, self._lock, self._start, self._console = plan, lock, start, console
        self._runs = dict(runs)
        self._waiting = first_first(cells)
        self._total, self._ended, self._jobs = len(cells), 0, jobs
        self._threads = max(1, cores() // jobs)
        self._running: list[_Running] = []
        self._interrupts = 0  # the first signal and each later Ctrl-C
        self._signal: int = signal.SIGINT  # the first signal
        self._reported_stopping = False

    def run(self) -> int:
        """Runs all cells until they have ended, and returns the exit code."""
        with handling(self._interrupt):
            while True:
                while not self._interrupts and len(self._running) < self._jobs:
                    if (cell := self._next()) is None:
                        break
                    self._begin(cell)
                if not self._running:
                    break
                self._pass_on_interrupts()
                time.sleep(_PAUSE)
                for running in list(self._running):
                    code = running.process.poll()
                    if self._jobs == 1:  # lines of several cells would mix
                        self._pass_on_lines(running, ended=code is not None)
                    if code is not None:
                        self._running.remove(running)
                        self._end(running, code)
        if self._interrupts:
            return 128 + self._signal
        return FAILED if self.failures else DONE

    def _next(self) -> Cell | None:
        """Returns the next cell that can start, and gives up cells that wait for a failed cell."""
        unfinished = {cell.name for cell in self._waiting}
        unfinished |= {running.cell.name for running in self._running}
        for cell in list(self._waiting):
            if cell.after in self.failures:
                self._waiting.remove(cell)
                self._ended += 1
                self.failures[cell.name] = f"not started, for {cell.after} failed"
                return self._next()
            if cell.after not in unfinished:
                self._waiting.remove(cell)
                return cell
        return None

    def _begin(self, cell: Cell) -> None:
        plan, path = self._plan, self._plan.output / cell.name
        state = self._runs[cell.name].state
        if state is State.CUT_OFF:
            aside = _move_aside(path, plan.output / "unfinished")
            _say(self._console, f"{cell.name}: cut off before a checkpoint, moved to {aside}")
        words = [sys.executable, "-m", "srl"]
        if state is State.INTERRUPTED:
            words += ["resume", str(path)]
        else:
            config = plan.output / "configs" / f"{cell.name}.yaml"
            text = yaml.safe_dump(dict(cell.settings), sort_keys=False, allow_unicode=True)
            replace_file(config, f"# {cell.name} of {plan.source}\n{text}".encode())
            named = ["--config", str(config), "--run-name", cell.name]
            if cell.trained:
                words += ["train", *named]
            else:
                words += ["eval", "--model", cell.experiment.model, *named]
        log = plan.output / "logs" / f"{cell.name}.log"
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        with log.open("a", encoding="utf-8") as file:
            file.write(f"--- {started}: {' '.join(words)}\n")
        shown = log.stat().st_size
        if state is not State.INTERRUPTED:
            write_start(cell, plan.output, started, threads=self._threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONUNBUFFERED": "1",
            # The cell imports the same code as this process.
            "PYTHONPATH": os.pathsep.join(filter(None, [_CODE, os.environ.get("PYTHONPATH")])),
        }
        process = self._start(words, environment, log, self._lock)
        begun = _Running(cell, process, words, started, time.monotonic(), log, shown)
        self._running.append(begun)
        how = "resumed" if state is State.INTERRUPTED else "started"
        self._report(f"{cell.name} {how}")

    def _end(self, running: _Running, code: int) -> None:
        name, seconds = running.cell.name, time.monotonic() - running.began
        line = {
            "cell": name,
            "started": running.started,
            "seconds": round(seconds, 3),
            "exit": code,
            "command": running.words,
        }
        with RecordWriter(self._plan.output / SESSIONS) as writer:
            writer.write([line])
        self._ended += 1
        self._runs[name] = run = read_cell(running.cell, self._plan.output)
        if code == 0 and run.done:
            if not self._plan.keep_checkpoints:
                for checkpoint in run.run.path.glob("checkpoint-*"):
                    shutil.rmtree(checkpoint, ignore_errors=True)
            values = run.values.get(self._plan.metric, {})
            solved = f"{fmean(values.values()):.1%}" if values else "-"
            self._report(f"{name} done in {clock(seconds)}: {self._plan.metric} {solved}")
            return
        if self._interrupts:
            self._report(f"{name} stopped after {clock(seconds)}")
            return
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        if code == 0:
            how += f", but its run is not done ({run.state})"
        self.failures[name] = f"failed ({how}): {_last_line(running.log)}; its log: {running.log}"
        self._report(f"{name} {self.failures[name]}")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # A signal may come between any two lines, also while a cell starts, so it is only counted.
        # A repeated Ctrl-C is intended. Schedulers and closing terminals repeat their signals.
        if not self._interrupts:
            self._signal = number
        if not self._interrupts or number == signal.SIGINT:
            self._interrupts += 1

    def _pass_on_interrupts(self) -> None:
        """Sends each counted signal to every running cell once; the third kills the cell."""
        if self._interrupts and not self._reported_stopping:
            self._reported_stopping = True
            _say(self._console, "stopping: the running cells save, which may take a step")
        for running in self._running:
            while running.interrupts < self._interrupts:
                running.interrupts += 1
                first = running.interrupts == 1  # SIGINT may be ignored in background processes
                number = self._signal if first else signal.SIGINT
                running.process.send_signal(number if running.interrupts < 3 else signal.SIGKILL)

    def _pass_on_lines(self, running: _Running, *, ended: bool) -> None:
        """Prints the lines that a cell has written into its log since the last call."""
        with running.log.open("rb") as file:
            file.seek(running.shown)
            written = file.read()
        whole = written if ended else written[: written.rfind(b"\n") + 1]
        running.shown += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            _say(self._console, f"  {line}")

    def _report(self, words: str) -> None:
        """Prints `words` and an estimate of the remaining time, from the times of similar cells."""
        took = [run for run in self._runs.values() if run.done]
        rest = ""
        if took:
            left = sum(_expected(cell, took) for cell in self._waiting)
            for running in self._running:
                left += max(0.0, _expected(running.cell, took) - (time.monotonic() - running.began))
            rest = f"  about {clock(left / self._jobs)} left"
        _say(self._console, f"[{self._ended}/{self._total}] {words}{rest}")


def _expected(cell: Cell, took: Sequence[CellRun]) -> float:
    """Returns the mean seconds of finished cells of the same row and difficulty.

    If there are none, it takes the cells of the same row, then all cells.
    """
    row = [run for run in took if run.cell.row == cell.row]
    like = [run for run in row if run.cell.difficulty == cell.difficulty]
    return fmean(run.seconds for run in like or row or took)


@dataclass
class _Running:
    """A running cell.

    `interrupts` counts the signals sent to it. `shown` is the number of printed bytes of its log.
    """

    cell: Cell
    process: Process
    words: Sequence[str]
    started: str
    began: float
    log: Path
    shown: int
    interrupts: int = 0


def _make_folders(output: Path) -> None:
    try:
        for folder in (output, output / "logs", output / "configs"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write the comparison's folder {output}: {error.strerror or error}. Name "
            "another one with output:"
        ) from error


def _tell_who_is_at_work(plan: Plan, console: Console) -> None:
    """Prints a note if another process makes cells now; on the disk they look like stopped ones."""
    if (process := at_work(plan.output)) is not None:
        _say(
            console,
            f"process {process} is making cells in {plan.output} now; those it works on are shown "
            "as if they had been stopped",
        )


def _at_once(cells: Sequence[Cell]) -> int:
    """Returns how many cells run at a time: one per core, or one if a cell would share a GPU."""
    on_cpu = all(cell.experiment.args.device.type == "cpu" for cell in cells)
    return cores() if on_cpu else 1


def _move_aside(path: Path, into: Path) -> Path:
    into.mkdir(exist_ok=True)
    number = 1
    while (aside := into / f"{path.name}.{number}").exists():
        number += 1
    return path.rename(aside)


def _last_line(log: Path) -> str:
    """Returns the last line of a log, which states the error."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    nonempty = [line.strip() for line in lines if line.strip()]
    return nonempty[-1][:200] if nonempty else "it said nothing"


def _say(console: Console, text: str) -> None:
    say(console, "\n".join(visible(line, console.encoding) for line in text.split("\n")))
