"""Follows a run that is still going on: `srl inspect --follow`.

On a terminal the overview is redrawn whenever the log has changed. Elsewhere new records are
printed as lines, like `tail -f` does. Following can start before there is a first record, and it
ends by itself once the run is complete. A resumed run cuts its log back to the checkpoint: then a
message says so, and printing continues from the cut.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from srl.errors import UsageError
from srl.logs.filters import Filter
from srl.logs.index import Log
from srl.logs.run_data import RunData, has_ended
from srl.logs.terminal.overview import overview
from srl.logs.terminal.overview_tables import overview_parts
from srl.logs.terminal.pen import Pen, number
from srl.runs.folder import RunFolder
from srl.runs.records import StepRecord

# These columns show that a record was replaced by another one in the same place: a resumed run
# does not write the same records again.
_TELLING = ("start", "train_step", "completion_tokens", "group_id", "reward")

# Records that are read together, before the first of them is written.
_AT_ONCE = 256

# The longest pause between two looks at the log, in seconds. A pause is at least as long as the
# last reading took, up to this limit, so that at most half of the time goes into reading.
_LONGEST_PAUSE = 60.0


def follow(folder: RunFolder, show: Callable[[Log], None], poll: float = 1.0) -> None:
    """Shows the log whenever it has changed, until the run is complete and its last state is shown.

    If the log is cut back while it is read or shown, it is read once more.

    Raises:
        UsageError: the log holds something that is not a record.
    """
    shown: tuple[int, int] | None = None
    complaint = ""
    while True:
        complete = has_ended(folder)  # checked first: the end is written after the last record
        began = time.monotonic()
        if (stamp := _stamp(folder)) not in (None, shown):
            try:
                show(Log.open(folder.steps))
                shown, complaint = stamp, ""
            except UsageError as error:
                # A line that is not a record may have been cut just now. The same error twice, or
                # an error in a log that did not change, is a real error.
                if _stamp(folder) == stamp or str(error) == complaint:
                    raise
                complaint = str(error)
        if complete and shown == stamp:
            return
        time.sleep(max(poll, min(_LONGEST_PAUSE, time.monotonic() - began)))


def _stamp(folder: RunFolder) -> tuple[int, int] | None:
    try:
        stat = folder.steps.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def follow_lines(
    folder: RunFolder,
    wanted: Filter,
    write: Callable[[Log, np.ndarray], None],
    say: Callable[[str], None],
    *,
    before: int | None,
    poll: float = 1.0,
) -> None:
    """Writes new records that pass the filter when they appear.

    Args:
        folder: the run.
        wanted: the filter.
        write: called with the log and the rows to write. It writes all of them, or raises before it
            writes the first.
        say: called with each message: that there is no record yet, or that the log was cut back.
        before: how many of the records that exist at the start are written; None: all.
        poll: seconds between two looks at the log.
    """
    seen: pa.Table | None = None  # the records that were written or do not pass

    def show(log: Log) -> None:
        nonlocal seen
        table = log.table
        known = 0 if seen is None else _same(seen, table)
        if seen is not None and known < seen.num_rows:
            say(
                f"the log was cut back from {seen.num_rows:,} records to {known:,}, as a resumed "
                "run does: it is read again from there"
            )
        rows = wanted.rows(log)
        rows = rows[rows >= known]
        if seen is None and before is not None:
            rows = rows[max(0, len(rows) - before) :]
        for at in range(0, len(rows), _AT_ONCE):
            part = rows[at : at + _AT_ONCE]
            seen = table.slice(0, int(part[0]))
            write(log, part)
        seen = table if table.num_rows or seen is not None else None

    if not (folder.steps.is_file() and folder.steps.stat().st_size):
        say(f"waiting for the first record of {folder.path}")
    follow(folder, show, poll)


def _same(before: pa.Table, now: pa.Table) -> int:
    """Returns how many records at the start of both tables are the same."""
    n = min(before.num_rows, now.num_rows)
    same = np.ones(n, dtype=bool)
    for column in _TELLING:
        old, new = (
            table[column].slice(0, n).to_numpy(zero_copy_only=False) for table in (before, now)
        )
        same &= (old == new) | ((old != old) & (new != new))
    return n if same.all() else int(np.argmin(same))


def record_line(line: int, record: StepRecord, pen: Pen) -> str:
    """Returns a record as one line: its place, its reward and fate, and what the policy wrote."""
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
    folder: RunFolder, wanted: Filter, console: Console, *, limit: int, poll: float = 1.0
) -> None:
    """Redraws the overview whenever the log has changed, and prints it in full at the run's end."""
    last: list[RenderableType] = []
    waiting = Text(Pen.of(console).say(f"waiting for the first record of {folder.path}"))
    with Live(waiting, console=console, auto_refresh=False, transient=True) as live:

        def show(log: Log) -> None:
            if not log.table.num_rows:
                return
            pen = Pen.of(console)
            rows = wanted.rows(log)
            data = RunData(folder, log)
            status = Text(f"following, drawn at {time.strftime('%H:%M:%S')}; Ctrl-C ends", "dim")
            if not len(rows):
                message = (
                    f"no record matches {pen.say(wanted.words)} yet, of {log.table.num_rows:,}"
                )
                live.update(Group(Text(message), status), refresh=True)
                return
            newest = rows[-max(1, min(limit, console.height - 12)) :].tolist()
            lines = [
                pen.line(record_line(row + 1, record, pen))
                for row, record in zip(newest, log.read(newest), strict=True)
            ]
            last[:] = overview_parts(data, wanted, overview(data, rows), pen)
            cut = _Cut(list(last), below=len(lines) + 2)
            live.update(Group(cut, Text(), *lines, status), refresh=True)

        follow(folder, show, poll)
    for part in last:
        console.print(part)


@dataclass(frozen=True)
class _Cut:
    """The first lines of some parts, as many as fit above the `below` lines that follow them."""

    parts: list[RenderableType]
    below: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Group(*self.parts), options.update(height=None), pad=False)
        for line in lines[: max(1, console.height - 1 - self.below)]:
            yield from line
            yield Segment.line()


def is_live(console: Console) -> bool:
    """Returns whether the output is a terminal that can be redrawn."""
    return console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()
