"""`srl inspect --browse`, driven by its keys."""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import read_jsonl
from rich.console import Console
from step_logs import RECORD, random_records, write_log

from srl.commands.cli import main
from srl.errors import UsageError
from srl.logs.filters import Filter, add_filters
from srl.logs.index import Log
from srl.logs.run_data import RunData
from srl.logs.terminal import command
from srl.runs.folder import RunFolder
from srl.runs.records import StepRecord

pytest.importorskip("textual")

from textual.pilot import Pilot
from textual.widgets import Collapsible, Input

from srl.logs.terminal.browser import Browser
from srl.logs.terminal.rows_widget import Rows

RECORDS = random_records(11, train_steps=9)


def browse(
    folder: Path,
    drive: Callable[[Browser, Pilot[int]], Awaitable[None]],
    words: str = "",
    size: tuple[int, int] = (140, 45),
) -> None:
    async def run() -> None:
        app = Browser(RunData.open(RunFolder(folder)), words)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await drive(app, pilot)

    asyncio.run(run())


def screen(app: Browser) -> str:
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in line) for line in lines)


async def type_filter(app: Browser, pilot: Pilot[int], words: str) -> None:
    await pilot.press("slash")
    app.query_one("#filter", Input).value = words
    await pilot.press("enter")
    await pilot.pause()


def listed(records: list[StepRecord], passes: Callable[[StepRecord], bool]) -> list[int]:
    """The number of the first record that passes, of each group, newest group first."""
    firsts: dict[object, int] = {}
    for number, record in enumerate(records, start=1):
        if passes(record):
            firsts.setdefault((record.phase, record.train_step, record.group_id), number)
    return list(firsts.values())[::-1]


def test_groups_attempts_and_texts(tmp_path: Path) -> None:
    write_log(tmp_path, RECORDS)

    async def drive(app: Browser, pilot: Pilot[int]) -> None:
        wanted = listed(RECORDS, lambda record: record.phase == "train")
        assert [row + 1 for row in app.groups] == wanted
        assert f"{len(wanted)} groups, newest first" in app.said
        await pilot.press("down", "down", "pagedown", "up")
        await pilot.pause()
        groups = app.query_one("#groups", Rows)
        assert groups.cursor > 10
        first = wanted[groups.cursor]
        record = RECORDS[first - 1]
        same = [
            n
            for n, one in enumerate(RECORDS, start=1)
            if (one.phase, one.train_step, one.group_id)
            == (record.phase, record.train_step, record.group_id)
        ]
        assert [row + 1 for row in app.attempts] == same
        assert app.records == [RECORDS[n - 1] for n in same]
        await pilot.press("tab", "down")
        await pilot.pause()
        assert app.focused is app.query_one("#attempts", Rows)
        shown = " ".join(screen(app).split())
        assert f"record #{same[1]}: step {record.step_index + 1} of 4" in shown
        assert record.expert_step in shown
        await pilot.press("home")
        await pilot.press("end")
        await pilot.pause()
        assert f"record #{same[-1]}:" in " ".join(screen(app).split())

    browse(tmp_path, drive)


def test_the_filter_line_takes_the_words_of_the_command_line(tmp_path: Path) -> None:
    write_log(tmp_path, RECORDS)

    async def drive(app: Browser, pilot: Pilot[int]) -> None:
        await type_filter(app, pilot, "--kept true --failures-only --tokens gt:9")
        wanted = listed(
            RECORDS,
            lambda one: one.kept and one.format_failure is not None and one.completion_tokens > 9,
        )
        assert [row + 1 for row in app.groups] == wanted
        assert isinstance(app.focused, Rows)
        # The cursor stands on the attempt that passed.
        assert app.query_one("#attempts", Rows).cursor == RECORDS[wanted[0] - 1].rollout
        before = app.groups
        for words, message in (
            ("--kept perhaps", "argument --kept: invalid choice"),
            ("--nonsense", "unrecognized arguments: --nonsense"),
            ("--reward lt:x", "--reward lt:x: a comparison such as"),
            ("--problem 'a", "No closing quotation"),
            ("--sort nix", "--sort nix: allowed are"),
        ):
            await type_filter(app, pilot, words)
            assert message in app.said
            assert np.array_equal(app.groups, before)
        await type_filter(app, pilot, "--step 99")
        assert "0 of" in app.said
        assert "no record matches" in screen(app)
        await pilot.press("down", "enter", "s")
        await type_filter(app, pilot, "--phase eval --sort=-train_step")
        found = [RECORDS[row] for row in app.groups]
        assert {one.phase for one in found} == {"eval"}
        assert [one.train_step for one in found] == sorted(
            (one.train_step for one in RECORDS if one.phase == "eval"), reverse=True
        )

    browse(tmp_path, drive)


def test_a_name_with_a_space_goes_on_into_the_filter_line(tmp_path: Path) -> None:
    write_log(tmp_path, RECORDS)
    parser = argparse.ArgumentParser()
    add_filters(parser)
    wanted = Filter.from_args(parser.parse_args(["--source", "teacher 1"]))

    async def drive(app: Browser, pilot: Pilot[int]) -> None:
        passing = listed(RECORDS, lambda r: r.phase == "train" and r.source == "teacher 1")
        assert [row + 1 for row in app.groups] == passing

    browse(tmp_path, drive, wanted.words)


def test_sorting_with_a_key(tmp_path: Path) -> None:
    write_log(tmp_path, RECORDS)

    async def drive(app: Browser, pilot: Pilot[int]) -> None:
        newest = app.groups.tolist()
        for column, sign in (("group_mean", 1), ("group_mean", -1), ("group_std", -1)):
            await pilot.press("s")
            await pilot.pause()
            values = [sign * (getattr(RECORDS[row], column) or 0.0) for row in app.groups]
            assert values == sorted(values)
            assert column in app.said
        await pilot.press("s", "s")
        await pilot.pause()
        assert app.groups.tolist() == newest

    browse(tmp_path, drive)


def test_a_live_run_is_read_again(tmp_path: Path) -> None:
    write_log(tmp_path, RECORDS[:40])

    async def drive(app: Browser, pilot: Pilot[int]) -> None:
        await pilot.press("down", "down")
        await pilot.pause()
        groups = app.query_one("#groups", Rows)
        here = int(app.groups[groups.cursor])
        count = len(app.groups)
        write_log(tmp_path, RECORDS[40:])
        await pilot.press("r")
        await pilot.pause()
        assert len(app.groups) > count
        assert int(app.groups[groups.cursor]) == here  # still on the same group
        # Cut back by a resumed run: said when a text is asked for, and read again.
        lines = (tmp_path / "steps.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "steps.jsonl").write_bytes(b"".join(lines[:8]))
        await pilot.press("home")
        await pilot.pause()
        assert "r reads the log again" in app.said
        await pilot.press("r")
        await pilot.pause()
        assert "8 of 8 records" in app.said
        (tmp_path / "steps.jsonl").write_text("")
        await pilot.press("r")
        await pilot.pause()
        assert "is empty" in app.said

    browse(tmp_path, drive)


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (160, 50)])
def test_it_fits_and_the_keys_are_listed(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "[red]x[/red] \x1b[2J\x07\u202e [@click=app.quit]y[/] 漢 " * 3
    record = replace(
        RECORD,
        action=hostile,
        thought=hostile,
        expert_step=hostile + "z",
        problem_id="\x1b[1m[b]",
        source="[i]\x1b[3m",
        dropped_because="[u]\x1b[8m",
        kept=False,
        rewards={"[b]\x1b": 1.0},
    )
    write_log(tmp_path, [record, replace(record, rollout=1, format_failure="\x1b[7m[b]")])

    async def drive(app: Browser, pilot: Pilot[int]) -> None:
        text = screen(app)
        for key in ("/ Filter", "tab Pane", "s Sort", "t Thought", "r Reload", "q Quit"):
            assert key in text, key
        for sign in "\x1b\x07\u202e":
            assert sign not in text
        assert "[red]x[/red] \\u{1b}[2J" in text
        assert not re.search("Traceback|Error", text)
        thought = app.query_one("#thought", Collapsible)
        assert not thought.collapsed
        await pilot.press("t")
        assert thought.collapsed
        await pilot.press("q")

    browse(tmp_path, drive, size=size)
    monkeypatch.setenv("NO_COLOR", "1")

    async def marks(app: Browser, pilot: Pilot[int]) -> None:
        await pilot.press("tab")
        pane = app.query_one("#rollout")
        pane.scroll_to(y=8, animate=False)
        await pilot.pause()
        assert "^^^^" in screen(app)

    browse(tmp_path, marks, size=(160, 60))


def test_only_what_is_on_the_screen_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand groups: neither their lines nor their texts are made."""
    write_log(tmp_path, [replace(RECORD, train_step=n + 1) for n in range(3)])
    data = RunData.open(RunFolder(tmp_path))
    many = 100_000
    table = data.log.table.take(np.zeros(many, dtype=np.int64))
    place = table.column_names.index("train_step")
    table = table.set_column(place, "train_step", [np.arange(1, many + 1, dtype=np.int32)])
    data.log.table = table
    made: list[int] = []
    line = Browser._group_line
    monkeypatch.setattr(Browser, "_group_line", lambda self, at: made.append(at) or line(self, at))
    read: list[int] = []
    reading = Log.read
    monkeypatch.setattr(Log, "read", lambda self, rows: read.extend(rows) or reading(self, [0]))

    async def run() -> None:
        app = Browser(data)
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.press("end", "pageup", "home", "down")
            await pilot.pause()
            assert len(app.groups) == many
            assert len(set(made)) < 200
            assert 0 in made
            assert many - 1 in made
            assert len(read) < 10

    asyncio.run(run())


# ---- when it cannot start -----------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_needs_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, RECORDS[:4])
    assert main(["inspect", str(tmp_path), "--browse"]) == 2
    assert "--browse needs a terminal" in capsys.readouterr().err


def test_without_textual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path, RECORDS[:4])
    assert len(read_jsonl(tmp_path / "steps.jsonl")) == 4
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stdin", Terminal())
    for name in [name for name in sys.modules if name.split(".")[0] == "textual"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "srl.logs.terminal.browser")
    monkeypatch.delitem(sys.modules, "srl.logs.terminal.rows_widget")
    parser = command.argparse.ArgumentParser()
    command.add_inspect(parser)
    args = parser.parse_args([str(tmp_path), "--browse"])
    console = Console(file=sys.stdout, force_terminal=True, _environ={"TERM": "xterm"})
    with pytest.raises(UsageError, match=r"pip install 'stepwise-srl\[browser\]'"):
        command.inspect_run(tmp_path, args, console)
