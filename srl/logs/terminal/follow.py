"""`srl inspect --follow`: a run that is still going on.

On a terminal the overview is drawn anew whenever the log has grown; anywhere else new records come
as lines, as from `tail -f`. It starts before there is a first record and ends by itself once the
run is complete. A resumed run cuts its log back to the checkpoint: then the log is read again, and
what is printed goes on from where it was cut, with a word about it. That may happen between reading
the log and showing a text of it: then it is looked at again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from srl.errors import UsageError
from srl.logs.filters import Filter
from srl.logs.index import Log, LogChangedError
from srl.logs.run_data import RunData, has_ended
from srl.logs.terminal.overview import Overview, overview
from srl.logs.terminal.overview_tables import overview_parts
from srl.logs.terminal.pen import Pen, number
from srl.runs.folder import RunFolder
from srl.runs.records import StepRecord

# What tells a record from another in the same place: a resumed run does not write the same again.
_TELLING = ("start", "train_step", "completion_tokens", "group_id", "reward")

# Records that are read before the first of them is written.
_AT_ONCE = 256

# Seconds. A pager can hold us up for hours, which is no work.
_LONGEST_PAUSE = 60.0

# How much is said before the first new record, as `tail -f` does.
_BEFORE = 10


@dataclass(frozen=True)
class Look:
    """The log at one time.

    Attributes:
        data: the run as it is now.
        known: how many of its records were there at the last look and are the same.
        cut: how many there were then, if some of them are gone; else None.
    """

    data: RunData
    known: int
    cut: int | None


@dataclass
class Watch:
    """A log that changes: each `look` reads it again if there is something new.

    Attributes:
        folder: the run.
        behind: what the last look found could not be shown: there has to be another.
    """

    folder: RunFolder
    behind: bool = False
    _log: Log | None = None
    _stamp: tuple[int, int] | None = field(default=None)
    _complaint: str = ""

    def look(self) -> Look | None:
        """What there is now; None if nothing has changed, or there is no record yet.

        Raises:
            UsageError: the log holds something that is no record.
        """
        stamp = self._stamp_now()
        if stamp is None or stamp == self._stamp:
            self.behind = False
            return None
        try:
            log = Log.open(self.folder.steps)
        except UsageError as error:
            # Cut back while it was read, what was a line may be none; the same twice is no chance.
            if self._stamp_now() == stamp or str(error) == self._complaint:
                raise
            self._complaint, self.behind = str(error), True
            return None
        self._stamp, self.behind, self._complaint = stamp, False, ""
        before, self._log = self._log, log
        had = before.table.num_rows if before else 0
        known = _same(before, log) if before else 0
        if not log.table.num_rows and not had:
            return None
        return Look(RunData(self.folder, log), known, had if known < had else None)

    def again(self, shown: int) -> bool:
        """Look again, only the first `shown` records having been shown; False: that is of no use.

        It is of none where the file is the one that was opened: then it does not fit its index.
        """
        now = self._stamp_now()
        if self._log is None or (now is not None and now == self._stamp):
            return False
        log = self._log
        self._log = Log(log.path, log.table.slice(0, shown), log.end, log.unfinished)
        self._stamp, self.behind = None, True
        return True

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            stat = self.folder.steps.stat()
        except OSError:
            return None
        return stat.st_size, stat.st_mtime_ns


def _same(before: Log, now: Log) -> int:
    """How many records from the first on are the same in both."""
    n = min(before.table.num_rows, now.table.num_rows)
    same = np.ones(n, dtype=bool)
    for column in _TELLING:
        one, two = (
            log.table[column].slice(0, n).to_numpy(zero_copy_only=False) for log in (before, now)
        )
        same &= (one == two) | ((one != one) & (two != two))
    return n if same.all() else int(np.argmin(same))


def looks(watch: Watch, poll: float) -> Iterator[Look | None]:
    """A look after the other until the run is complete and its log has ended; None: nothing new."""
    while True:
        # Asked first: it is written after the last record.
        complete = has_ended(watch.folder)
        began = time.monotonic()
        yield watch.look()
        if complete and not watch.behind:
            return
        # A long log takes seconds to read and to show: half of the time at most goes into both.
        time.sleep(max(poll, min(_LONGEST_PAUSE, time.monotonic() - began)))


def follow_lines(
    watch: Watch,
    wanted: Filter,
    write: Callable[[Log, np.ndarray], None],
    say: Callable[[str], None],
    *,
    before: int | None = _BEFORE,
    poll: float = 1.0,
) -> None:
    """Write new records that pass the filter as they come.

    Args:
        watch: of the run.
        wanted: the filter.
        write: told the log and the rows of it to write: all of them, or it raises before the first.
        say: told what is no record: that one waits, that the log was cut back.
        before: how many of the records that are there at the start are written; None: all.
        poll: seconds between two looks.
    """
    waiting = first = True
    for found in looks(watch, poll):
        if found is None:
            if waiting:
                say(f"waiting for the first record of {watch.folder.path}")
            waiting = False
            continue
        waiting = False
        if found.cut is not None:
            say(
                f"the log was cut back from {found.cut:,} records to {found.known:,}, as a resumed "
                "run does: it is read again from there"
            )
        rows = wanted.rows(found.data.log)
        rows = rows[rows >= found.known]
        if first and before is not None:
            rows = rows[max(0, len(rows) - before) :]
        first = False
        for at in range(0, len(rows), _AT_ONCE):
            part = rows[at : at + _AT_ONCE]
            try:
                write(found.data.log, part)
            except LogChangedError:
                if not watch.again(int(part[0])):
                    raise
                break


def record_line(line: int, record: StepRecord, pen: Pen) -> str:
    """One record on one line: where it stands, how it scored, what the policy wrote."""
    fate = "eval" if record.phase == "eval" else "kept" if record.kept else "dropped"
    what = record.action
    if record.format_failure is not None:
        what = f"[{record.format_failure}] {record.action or record.thought}"
    head = (
        f"#{line} step {record.train_step} {pen.say(record.problem_id[:8])} "
        f"{record.step_index + 1}/{record.num_steps} {record.group_id}/{record.rollout} "
        f"reward {number(record.reward)} {fate}"
    )
    head += f" {number(record.advantage, sign=True)}" if record.advantage is not None else ""
    return f"{head}  {pen.clip(what, 2_000)}"


def follow_live(
    watch: Watch,
    wanted: Filter,
    console: Console,
    *,
    limit: int,
    poll: float = 1.0,
) -> None:
    """Draw the overview anew whenever the log has grown, and in full once the run is complete."""
    drawn: tuple[RunData, Overview | None, np.ndarray] | None = None
    waiting = Text(Pen.of(console).say(f"waiting for the first record of {watch.folder.path}"))
    note = ""
    with Live(waiting, console=console, auto_refresh=False, transient=True) as live:
        for found in looks(watch, poll):
            if found is not None:
                rows = wanted.rows(found.data.log)
                figures = overview(found.data, rows) if len(rows) else None
                drawn = found.data, figures, rows
                if found.cut is not None:
                    note = f"the log was cut back to {found.known:,} records and read again; "
            if drawn is None:
                continue
            try:
                live.update(_screen(*drawn, wanted, console, limit, note), refresh=True)
            except LogChangedError:  # the picture stays as it is until the next look
                if not watch.again(drawn[0].log.table.num_rows):
                    raise
    data, figures = drawn[:2] if drawn else (None, None)
    if data is not None and figures is not None:
        for part in overview_parts(data, wanted, figures, Pen.of(console)):
            console.print(part)


def _screen(
    data: RunData,
    found: Overview | None,
    rows: np.ndarray,
    wanted: Filter,
    console: Console,
    limit: int,
    note: str,
) -> RenderableType:
    """As much as the terminal has room for of the overview, and beneath it the newest records."""
    pen = Pen.of(console)
    status = Text(f"{note}following, looked at {time.strftime('%H:%M:%S')}; Ctrl-C ends", "dim")
    if found is None:
        said = f"no record matches {pen.say(wanted.words)} yet, of {data.log.table.num_rows:,}"
        return Group(Text(said), status)
    newest = rows[-max(1, min(limit, console.height - 12)) :].tolist()
    lines = [
        pen.line(record_line(row + 1, record, pen))
        for row, record in zip(newest, data.log.read(newest), strict=True)
    ]
    parts = overview_parts(data, wanted, found, pen)
    return Group(_Cut(parts, below=len(lines) + 2), Text(), *lines, status)


@dataclass(frozen=True)
class _Cut:
    """The first lines of some parts, as many as the terminal has beside the lines `below`."""

    parts: list[RenderableType]
    below: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Group(*self.parts), options.update(height=None), pad=False)
        for line in lines[: max(1, console.height - 1 - self.below)]:
            yield from line
            yield Segment.line()


def is_live(console: Console) -> bool:
    """Whether the terminal can be drawn on again."""
    return console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()
