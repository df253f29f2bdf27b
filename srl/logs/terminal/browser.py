"""`srl inspect --browse`: walking through a log with the keyboard.

Three panes: the groups that pass the filter, the attempts of the group under the cursor, and the
attempt under the cursor in full. The filter line takes the words of the command line. Everything
listed comes from the index; texts are read when they are shown, so a million records open as fast
as a hundred.
"""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any, ClassVar, NoReturn

import numpy as np
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Container, Vertical, VerticalScroll
from textual.widgets import Collapsible, Footer, Input, Static

from srl.errors import UsageError
from srl.logs.filters import Filter, add_filters, in_order
from srl.logs.run_data import RunData
from srl.logs.terminal.pen import Pen, number
from srl.logs.terminal.rollout_view import Section, group_rows, sections
from srl.logs.terminal.rows_widget import Rows
from srl.runs.folder import RunFolder
from srl.runs.records import StepRecord

# What the key `s` goes through; any other order is asked for in the filter line.
_SORTS = (None, "group_mean", "-group_mean", "-group_std", "step_index")
_GROUP_HEAD = f"{'step':>6} {'k/N':>5}  {'problem':8}  {'mean':>6}  {'std':>5}  fate"
_ATTEMPT_HEAD = f"{'record':>9} {'reward':>7} {'lift':>7} {'advantage':>9}  policy's step"


class _Words(argparse.ArgumentParser):
    """The options of a filter, typed inside the program: a mistake is said and ends nothing."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class Browser(App[int]):
    """The program.

    Args:
        data: the run.
        words: the filter to start with, as on the command line.
        encoding: of the terminal.
    """

    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012  textual's own way
    CSS = """
    #status { height: 1; background: $panel; }
    #filter { height: 1; border: none; padding: 0 1; }
    #panes { height: 1fr; layout: horizontal; }
    .-narrow #panes { layout: vertical; }
    #left { width: 52; border-right: solid $panel; }
    .-narrow #left { width: 1fr; height: 8; border-right: none; }
    #right { width: 1fr; height: 1fr; }
    #attempts { height: 8; }
    #rollout { height: 1fr; border-top: solid $panel; padding: 0 1; }
    .head { height: 1; text-style: bold; text-wrap: nowrap; }
    """
    BINDINGS: ClassVar = [
        Binding("slash", "filter", "Filter"),
        Binding("tab", "app.focus_next", "Pane", priority=True),
        Binding("s", "sort", "Sort"),
        Binding("t", "thought", "Thought"),
        Binding("r", "reload", "Reload"),
        Binding("escape", "groups", "Groups", show=False),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, data: RunData, words: str = "", encoding: str = "utf-8") -> None:
        super().__init__()
        self.data = data
        self.words = words
        self.encoding = encoding
        self.sort: str | None = None
        self.said = ""
        self.groups = np.zeros(0, dtype=np.int64)  # the row of a group's first record that passes
        self.attempts = np.zeros(0, dtype=np.int64)
        self.records: list[StepRecord] = []

    def compose(self) -> ComposeResult:
        yield Static(id="status")
        yield Input(
            f"{self.words} ",  # the next option is typed after it
            id="filter",
            placeholder="--kept true --reward lt:0.2 --sort=-reward   (Enter)",
            select_on_focus=False,
        )
        with Container(id="panes"):
            with Vertical(id="left"):
                yield Static(Text(_GROUP_HEAD), classes="head")
                yield Rows(id="groups")
            with Vertical(id="right"):
                yield Static(Text(_ATTEMPT_HEAD), classes="head")
                yield Rows(id="attempts")
                with VerticalScroll(id="rollout"):
                    yield Static(id="above")
                    with Collapsible(title="thought", collapsed=False, id="thought"):
                        yield Static(id="thought-text")
                    yield Static(id="below")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#groups", Rows).focus()
        self._apply(self.words)

    # -- what is listed ----------------------------------------------------------------------------

    def _apply(self, words: str, *, at: int | None = None) -> None:
        """Filter and sort; words that cannot be read leave the list as it is."""
        parser = _Words(add_help=False)
        add_filters(parser)
        parser.add_argument("--sort")
        log = self.data.log
        try:
            args = parser.parse_args(shlex.split(words))
            wanted = Filter.from_args(args)
            rows = wanted.rows(log)
            firsts = _firsts(self.data, rows)
            sort = args.sort or self.sort
            # Without an order: the newest first.
            self.groups = firsts[::-1] if sort is None else in_order(log, firsts, sort)
        except (UsageError, ValueError) as error:  # ValueError: an open quotation mark
            self._tell(str(error))
            return
        self.words = words
        order = "newest first" if sort is None else f"by {sort}"
        self._tell(
            f"{len(rows):,} of {log.table.num_rows:,} records, {len(self.groups):,} groups, {order}"
            f"  ({wanted.words})"
        )
        found = np.flatnonzero(self.groups == (-1 if at is None else at))
        cursor = int(found[0]) if found.size else 0
        self.query_one("#groups", Rows).fill(len(self.groups), self._group_line, cursor=cursor)
        if not len(self.groups):
            self.attempts, self.records = self.groups, []
            self.query_one("#attempts", Rows).fill(0, self._attempt_line)
            self._show(None)

    def _tell(self, said: str) -> None:
        self.said = self._pen(200).say(f"{self.data.folder.path}: {said}")
        self.query_one("#status", Static).update(Text(self.said, no_wrap=True, overflow="ellipsis"))

    def _group_line(self, at: int) -> Text:
        table, row = self.data.log.table, int(self.groups[at])

        def value(column: str) -> Any:
            return table[column][row].as_py()

        fate = "eval" if value("phase") == "eval" else "kept"
        if value("phase") != "eval" and not value("kept"):
            fate = value("dropped_because") or "dropped"
        place = f"{value('step_index') + 1}/{value('num_steps')}"
        mean, std = number(value("group_mean")), number(value("group_std"))
        pen = self._pen(80)
        return Text(
            f"{value('train_step'):>6} {place:>5}  {pen.say(value('problem_id')[:8]):8}  "
            f"{mean:>6}  {std:>5}  {pen.say(fate)}"
        )

    def _attempt_line(self, at: int) -> Text:
        row, record = int(self.attempts[at]), self.records[at]
        line = Text(
            f"{f'#{row + 1}':>9} {number(record.reward):>7} {number(record.lift, sign=True):>7} "
            f"{number(record.advantage, sign=True):>9}  "
        )
        pen = self._pen(400)
        if record.format_failure is None:
            return line.append(pen.clip(record.action, 400))
        what = record.action or record.thought
        return line.append(pen.clip(f"[{record.format_failure}] {what}", 400), style="red")

    def on_rows_moved(self, moved: Rows.Moved) -> None:
        """Another group: its attempts. Another attempt: its texts."""
        if moved.rows.id == "groups" and moved.row < len(self.groups):
            row = int(self.groups[moved.row])
            self.attempts = group_rows(self.data.log, row)
            try:
                self.records = list(self.data.log.read(self.attempts.tolist()))
            except UsageError as error:  # cut back by a resumed run
                self.attempts, self.records = self.attempts[:0], []
                self._tell(f"{error}; r reads the log again")
            cursor = int(np.searchsorted(self.attempts, row))
            attempts = self.query_one("#attempts", Rows)
            attempts.fill(len(self.attempts), self._attempt_line, cursor=cursor)
        elif moved.rows.id == "attempts" and moved.row < len(self.attempts):
            self._show(moved.row)

    # -- one in full ------------------------------------------------------------------------------

    def _show(self, at: int | None) -> None:
        above, below = self.query_one("#above", Static), self.query_one("#below", Static)
        thought = self.query_one("#thought-text", Static)
        if at is None:
            above.update(Text("no record matches: / changes the filter"))
            thought.update("")
            below.update("")
            return
        pane = self.query_one("#rollout", VerticalScroll)
        pen = self._pen(max(20, pane.size.width - 4))
        parts = sections(self.data, int(self.attempts[at]), self.records[at], pen)
        what, problem, so_far, monologue, policy, expert = parts
        above.update(_block(what, policy, expert))  # what one compares, in the first lines
        thought.update(monologue.body)
        below.update(_block(problem, so_far))
        pane.scroll_home(animate=False)

    def _pen(self, width: int) -> Pen:
        return Pen(width, None, self.encoding, not os.environ.get("NO_COLOR"))

    # -- keys --------------------------------------------------------------------------------------

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._apply(event.value)
        self.query_one("#groups", Rows).focus()

    def action_filter(self) -> None:
        self.query_one("#filter", Input).focus()

    def action_groups(self) -> None:
        self.query_one("#groups", Rows).focus()

    def action_sort(self) -> None:
        self.sort = _SORTS[(_SORTS.index(self.sort) + 1) % len(_SORTS)]
        self._apply(self.words)

    def action_thought(self) -> None:
        thought = self.query_one("#thought", Collapsible)
        thought.collapsed = not thought.collapsed

    def action_reload(self) -> None:
        """What the run has written meanwhile; the cursor stays on its group."""
        cursor = self.query_one("#groups", Rows).cursor
        at = int(self.groups[cursor]) if len(self.groups) else None
        try:
            self.data = RunData.open(self.data.folder)
        except UsageError as error:
            self._tell(str(error))
            return
        self._apply(self.words, at=at)


def _block(*parts: Section) -> Group:
    return Group(
        *(Group(Text(part.title, "bold"), Padding(part.body, (0, 0, 1, 2))) for part in parts)
    )


def _firsts(data: RunData, rows: np.ndarray) -> np.ndarray:
    """The first of these rows in each group, in the log's order."""
    table = data.log.table
    step = table["train_step"].to_numpy()[rows].astype(np.int64)
    group = table["group_id"].to_numpy()[rows].astype(np.int64)
    train = table["phase"].combine_chunks().indices.to_numpy()[rows].astype(np.int64)
    span = int(group.max(initial=0)) + 1
    key = (step * span + group) * (int(train.max(initial=0)) + 1) + train
    return rows[np.sort(np.unique(key, return_index=True)[1])]


def browse(folder: RunFolder, words: str, console: Console) -> int:
    """Run the browser until it is left.

    Raises:
        UsageError: there is no log, or nothing in it can be read.
    """
    Browser(RunData.open(folder), words, console.encoding).run()
    return 0
