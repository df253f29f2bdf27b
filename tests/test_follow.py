"""`srl inspect --follow`: logs that grow, end, are cut back, or do not exist yet."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from step_logs import RECORD, random_records, write_log

from srl.logs.filters import Comparison, Filter
from srl.logs.index import Log, LogChangedError
from srl.logs.terminal import follow
from srl.logs.terminal.follow import follow_lines, follow_live
from srl.runs.folder import RunFolder
from srl.runs.records import StepRecord, truncate_to

RECORDS = random_records(3, train_steps=6)
EVERYTHING = Filter("all")


def numbered(count: int, first: int = 0) -> list[StepRecord]:
    return [replace(RECORD, train_step=n + 1, group_id=n) for n in range(first, first + count)]


class Follower:
    """`follow_lines` on a thread: what it wrote, and what it said."""

    def __init__(
        self, folder: Path, wanted: Filter = EVERYTHING, before: int | None = None
    ) -> None:
        self.lines: list[int] = []
        self.texts: list[str] = []
        self.said: list[str] = []
        self.failed: list[BaseException] = []

        def write(log: Log, rows: np.ndarray) -> None:
            texts = [record.action for record in log.read(rows.tolist())]
            self.lines += (rows + 1).tolist()
            self.texts += texts

        def run() -> None:
            try:
                follow_lines(
                    RunFolder(folder),
                    wanted,
                    write,
                    self.said.append,
                    before=before,
                    poll=0.01,
                )
            except BaseException as error:  # noqa: BLE001  told by the test
                self.failed.append(error)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < end, (self.lines, self.said, self.failed)
            time.sleep(0.005)

    def ends(self) -> None:
        self.thread.join(120)
        assert not self.thread.is_alive()
        assert self.failed == []


def test_records_come_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    follower = Follower(tmp_path)
    follower.until(lambda: bool(follower.said))
    assert follower.said == [f"waiting for the first record of {tmp_path}"]
    for at in range(0, 30, 10):
        write_log(tmp_path, numbered(10, at))
        follower.until(lambda at=at: len(follower.lines) == at + 10)  # type: ignore[misc]
    with (tmp_path / "steps.jsonl").open("ab") as file:  # half a record: it is waited for
        file.write(b'{"schema": 1, "train')
    time.sleep(0.05)
    assert follower.thread.is_alive()
    write_log(tmp_path, numbered(1, 30))  # as a resumed run: the half line goes
    follower.until(lambda: len(follower.lines) == 31)
    (tmp_path / "summary.json").write_text("{}")
    follower.ends()
    assert follower.lines == list(range(1, 32))
    assert len(follower.said) == 1


def test_what_is_written_last_is_seen(tmp_path: Path) -> None:
    write_log(tmp_path, numbered(3))
    follower = Follower(tmp_path)
    follower.until(lambda: len(follower.lines) == 3)
    write_log(tmp_path, numbered(2, 3))
    (tmp_path / "summary.json").write_text("{}")
    follower.ends()
    assert follower.lines == [1, 2, 3, 4, 5]


def test_filter_and_the_last_before_the_start(tmp_path: Path) -> None:
    write_log(tmp_path, RECORDS)
    (tmp_path / "summary.json").write_text("{}")
    failed = [k for k, one in enumerate(RECORDS, start=1) if one.format_failure]
    for before, wanted in ((None, failed), (4, failed[-4:]), (10_000, failed)):
        follower = Follower(tmp_path, Filter("all", failure="any"), before=before)
        follower.ends()
        assert follower.lines == wanted


@pytest.mark.parametrize("again", [0, 2, 9])
def test_a_log_that_is_cut_back(tmp_path: Path, again: int) -> None:
    """A resumed run: at the checkpoint there were 4 records; the new ones may be fewer or more."""
    log = write_log(tmp_path, numbered(4))
    position = log.stat().st_size
    write_log(tmp_path, numbered(5, 4))
    follower = Follower(tmp_path)
    follower.until(lambda: len(follower.lines) == 9)
    new = [replace(one, action="again", reward=0.5) for one in numbered(again, 4)]
    beside = tmp_path / "beside.jsonl"
    beside.write_bytes(log.read_bytes())
    truncate_to({beside: position})
    write_log(tmp_path / "new", new)
    beside.write_bytes(beside.read_bytes() + (tmp_path / "new" / "steps.jsonl").read_bytes())
    os.replace(beside, log)  # at once, so that no look comes between
    follower.until(lambda: bool(follower.said))
    assert follower.said == [
        "the log was cut back from 9 records to 4, as a resumed run does: it is read again from "
        "there"
    ]
    follower.until(lambda: len(follower.lines) == 9 + again)
    write_log(tmp_path, [replace(RECORD, action="last")])
    (tmp_path / "summary.json").write_text("{}")
    follower.ends()
    assert follower.lines == [*range(1, 10), *range(5, 5 + again), 5 + again]
    assert follower.texts[9:] == ["again"] * again + ["last"]


def test_nothing_is_read_while_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path, numbered(3))
    seen: list[int] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            write_log(tmp_path, numbered(1, 3))
            (tmp_path / "summary.json").write_text("{}")

    monkeypatch.setattr(follow.time, "sleep", sleep)
    follow.follow(RunFolder(tmp_path), lambda log: seen.append(log.table.num_rows))
    assert seen == [3, 4]


def test_on_a_terminal_the_overview_is_drawn_again(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("max_steps: 9")
    out = io.StringIO()
    console = Console(
        file=out, width=90, height=30, force_terminal=True, color_system=None, legacy_windows=False
    )
    failed: list[BaseException] = []

    def run() -> None:
        try:
            follow_live(RunFolder(tmp_path), Filter("train"), console, limit=2, poll=0.01)
        except BaseException as error:  # noqa: BLE001  told by the test
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def until(said: str) -> None:
        end = time.monotonic() + 120
        while said not in out.getvalue():
            assert time.monotonic() < end
            assert failed == []
            time.sleep(0.005)

    until("waiting for the first record of")
    write_log(tmp_path, [one for one in RECORDS if one.phase == "eval"])
    until("no record matches --phase train yet, of 10")
    written = [one for one in RECORDS if one.phase == "train"]
    write_log(tmp_path, written[:40])
    until("not complete: training step 6 of 9")
    until("40 of 50 (--phase train)")
    until("#50")  # the newest
    write_log(tmp_path, written[40:])
    until(f"{len(written)} of {len(RECORDS)}")
    write_log(tmp_path, numbered(1, 50))
    until("Ctrl-C ends")
    (tmp_path / "summary.json").write_text("{}")
    thread.join(20)
    assert not thread.is_alive()
    assert failed == []
    last = out.getvalue()[-4000:]
    assert "complete, after training step 51" in last  # printed once more, to stay
    assert "most improved" in last
    # No picture is higher than the terminal: it could not be drawn over.
    assert "…\n" not in out.getvalue()
    live, _, _ = out.getvalue().rpartition("Ctrl-C ends")
    assert all(picture.count("\n") < 30 for picture in live.split("Ctrl-C ends"))


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "srl", "inspect", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def test_another_process_writes_and_ctrl_c_ends(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    json_lines = start(str(tmp_path), "--follow", "--json", "--phase", "all")
    lines = start(str(tmp_path / "steps.jsonl"), "--follow", "--failures-only")
    assert json_lines.stdout is not None
    assert lines.stdout is not None
    assert lines.stderr is not None
    assert "waiting for the first record" in lines.stderr.readline()
    # All at once: of a log that is half written the last ten failures are others.
    aside = write_log(tmp_path.with_name(f"{tmp_path.name}-aside"), RECORDS[:60])
    aside.replace(tmp_path / "steps.jsonl")
    found = [json.loads(json_lines.stdout.readline()) for _ in range(60)]
    assert [row["line"] for row in found] == list(range(1, 61))
    failed = [
        (k, one)
        for k, one in enumerate(RECORDS[:60], start=1)
        if one.format_failure and one.phase == "train"
    ]
    for number, record in failed[-10:]:
        line = lines.stdout.readline()
        assert line.startswith(f"#{number} step {record.train_step} {record.problem_id[:8]} ")
        assert f"reward -1.000 {'kept' if record.kept else 'dropped'}" in line
        assert line.endswith(f"[{record.format_failure}] hm\n")
    lines.send_signal(signal.SIGINT)
    assert lines.wait(120) == 130
    assert lines.stderr.read() == ""
    write_log(tmp_path, RECORDS[60:])
    (tmp_path / "summary.json").write_text("{}")
    rest, errors = json_lines.communicate(timeout=120)
    assert json_lines.returncode == 0
    assert [json.loads(line)["line"] for line in rest.splitlines()] == list(
        range(61, len(RECORDS) + 1)
    )
    assert errors in ("", f"srl: waiting for the first record of {tmp_path}\n")


def cut_while_it_is_read(
    log: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, opening: bool = False
) -> None:
    """The log's content once, just after it was opened the next time, or while that is done."""
    open_log = Log.open
    changes = [content]

    def opened(path: Path) -> Log:
        if opening and changes:
            log.write_bytes(b"half a line that was cut\n")
        try:
            return open_log(path)
        finally:
            if changes:
                log.write_bytes(changes.pop())

    monkeypatch.setattr(Log, "open", opened)


@pytest.mark.parametrize("opening", [False, True])
@pytest.mark.parametrize("again", [0, 1, 7])
def test_a_log_that_is_cut_back_while_it_is_read(
    tmp_path: Path, again: int, opening: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path, numbered(6))
    follower = Follower(tmp_path)
    follower.until(lambda: len(follower.texts) == 6)
    lines = log.read_bytes().splitlines(keepends=True)[:4]
    new = [replace(one, action="again", reward=0.5, rollout=3) for one in numbered(again, 4)]
    other = (write_log(tmp_path / "new", new)).read_bytes()
    cut_while_it_is_read(log, b"".join(lines) + other, monkeypatch, opening)
    write_log(tmp_path, numbered(2, 6))
    follower.until(lambda: bool(follower.said))
    assert follower.said == [
        "the log was cut back from 6 records to 4, as a resumed run does: it is read again from "
        "there"
    ]
    follower.until(lambda: len(follower.texts) == 6 + again)
    (tmp_path / "summary.json").write_text("{}")
    follower.ends()
    assert follower.texts[6:] == ["again"] * again


def test_a_log_that_does_not_fit_its_index_is_not_looked_at_for_ever(tmp_path: Path) -> None:
    write_log(tmp_path, numbered(3))

    def write(log: Log, rows: np.ndarray) -> None:
        raise LogChangedError("the log was changed since it was opened")

    with pytest.raises(LogChangedError):
        follow_lines(RunFolder(tmp_path), EVERYTHING, write, str, before=None, poll=0.01)


def test_a_log_that_is_emptied_with_a_filter_by_reward(tmp_path: Path) -> None:
    log = write_log(tmp_path, numbered(3))
    wanted = Filter("all", comparisons=(Comparison("rewards/similarity", "gt", 0.5),))
    follower = Follower(tmp_path, wanted)
    follower.until(lambda: len(follower.texts) == 3)
    log.write_bytes(b"")
    follower.until(lambda: bool(follower.said))
    write_log(tmp_path, numbered(2))
    (tmp_path / "summary.json").write_text("{}")
    follower.ends()
    assert follower.lines == [1, 2, 3, 1, 2]


def test_no_more_than_half_of_the_time_goes_into_looking_and_showing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path, numbered(1))
    now, slept = [0.0], []
    takes = iter((0.5, 7.0, 5000.0, 0.0))

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        write_log(tmp_path, numbered(1))
        if len(slept) == 3:
            (tmp_path / "summary.json").write_text("{}")

    def show(shown: Log) -> None:
        assert shown.path == log
        now[0] += next(takes)

    monkeypatch.setattr(follow.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(follow.time, "sleep", sleep)
    follow.follow(RunFolder(tmp_path), show)
    assert slept == [1.0, 7.0, 60.0]


@pytest.mark.parametrize("opening", [False, True])
def test_the_picture_stays_while_the_log_is_cut_back(
    tmp_path: Path, opening: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path, numbered(6))
    (tmp_path / "summary.json").write_text("{}")
    lines = log.read_bytes().splitlines(keepends=True)[:4]
    cut_while_it_is_read(log, b"".join(lines), monkeypatch, opening)
    out = io.StringIO()
    console = Console(file=out, width=90, height=30, force_terminal=True, color_system=None)
    follow_live(RunFolder(tmp_path), Filter("train"), console, limit=2, poll=0.01)
    _, _, last = out.getvalue().rpartition("Ctrl-C")
    assert "4 of 4 (--phase train)" in last


def test_a_log_that_goes_wrong(tmp_path: Path) -> None:
    write_log(tmp_path, numbered(3))
    follower = Follower(tmp_path)
    follower.until(lambda: len(follower.lines) == 3)
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(b"not a record\n")
    follower.until(lambda: bool(follower.failed))
    assert "line 4: not JSON" in str(follower.failed[0])
