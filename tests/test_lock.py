"""One writer per run folder."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import refused, train

from srl.commands.cli import main
from srl.errors import UsageError
from srl.runs import lock
from srl.runs.folder import RunFolder
from srl.runs.lock import LOCK, only_writer, writer_of

ROOT = Path(__file__).resolve().parent.parent
HOLD = "import sys, time; from pathlib import Path; from srl.runs.lock import only_writer\n"
HOLD += "with only_writer(Path(sys.argv[1]), print): print('held', flush=True); time.sleep(600)"


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the folder's lock."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_kernel_gives_the_lock_of_a_killed_process_back(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        who = f"process {process.pid} on "
        assert who in str(writer_of(tmp_path))
        message = rf"is being written by {who}\S+ since \d{{4}}-"
        with pytest.raises(UsageError, match=message), only_writer(tmp_path, print):
            pass
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / LOCK).is_file()
    assert writer_of(tmp_path) is None
    told: list[str] = []
    with only_writer(tmp_path, told.append):
        assert f"process {os.getpid()} " in (tmp_path / LOCK).read_text()
    assert told == []
    assert not tmp_path.exists()  # nothing was in it


def test_the_lock_leaves_nothing_behind_and_is_no_content(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    (run.path / LOCK).write_text("process 1 on elsewhere since yesterday")
    RunFolder.create(tmp_path, "a")  # as one that was killed at once
    told: list[str] = []
    with only_writer(run.path, told.append):
        run.metrics.write_text("")
    assert "was last written by process 1 on elsewhere since yesterday" in told[0]
    assert [path.name for path in run.path.iterdir()] == ["metrics.jsonl"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    run = RunFolder.create(tmp_path, "a")
    (run.path / LOCK).symlink_to(mine)
    with pytest.raises(UsageError, match="cannot write into"), only_writer(run.path, print):
        pass
    assert mine.read_text() == "kept"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    told: list[str] = []
    with only_writer(tmp_path, told.append):
        assert re.search(r"has no locks \(No locks available\); see to it", told[0])


def test_a_second_command_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two starts under one name, and of a resume or an evaluation beside a living training."""
    run = RunFolder.create(Path("runs"), "one")
    with only_writer(run.path, print):
        assert train() == 2
        assert "runs/one is being written by process" in capsys.readouterr().err
        run.write_start({"model": "x", "data": {"source": "word_problems"}}, [])
        before = {path: path.read_bytes() for path in run.path.iterdir()}
        (run.path / "checkpoint-1").mkdir()
        evaluation = ["eval", "--model", "x", "--config", "config.yaml", "--run-name", "one"]
        commands = [["resume", "one"], ["eval", "--run", "one", "--test_problems", "1"], evaluation]
        for words in (*commands, ["train", "--config", "config.yaml", "--run-name", "one"]):
            (run.path / "policy").mkdir(exist_ok=True)
            assert main(words) == 2
            message = f"runs/one is being written by process {os.getpid()} on "
            assert message in capsys.readouterr().err
        after = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
        assert after == before


def test_a_name_is_not_held_by_a_start_that_was_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, train("--max_steps", "none"), "max_steps")
    refused(capsys, train("--data.path", "gone.jsonl"), "gone.jsonl")
