"""What goes wrong with the disk while a run goes on is one message, and the run goes on after."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import train

from srl.commands import session
from srl.commands.cli import main
from srl.commands.session import _trouble
from srl.runs.folder import RunFolder
from srl.training.progress import ProgressReport


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, what: Callable[[], object]) -> None:
    """Do something while a step is being made."""

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step + 1 == step:
            what()

    monkeypatch.setattr(ProgressReport, "on_step_begin", on_step_begin, raising=False)


def test_without_room_for_a_checkpoint_the_run_stops_and_goes_on_later(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a quota: the file of the optimiser's state does not fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard)))
        try:
            assert train("--test_problems", "0") == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert said.startswith(
        "srl: no room left for runs/one: about 461.3 kB are needed, and the disk"
    )
    assert said.endswith("Make room. Go on from checkpoint-2 with: make resume RUN=one\n")
    assert main(["resume", "one"]) == 0


def test_a_folder_that_goes_while_the_run_writes(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 2, lambda: shutil.rmtree("runs/one"))
    assert train("--test_problems", "0") == 1
    assert re.match(r"srl: runs/one\S* is gone: it was deleted", capsys.readouterr().err)
    assert not Path("runs/one").exists()  # not half of it anew


def test_troubles_in_words(tmp_path: Path) -> None:
    denied = PermissionError(13, "Permission denied", "x/steps.jsonl")
    assert _trouble(denied, tmp_path, 0) == "cannot read or write x/steps.jsonl: Permission denied"
    read_only = OSError(30, "Read-only file system", "x")
    assert _trouble(read_only, tmp_path, 0) == "cannot read or write x: Read-only file system"
    full = OSError(28, "No space left on device")
    assert str(_trouble(full, tmp_path / "gone", 5_000_000)).startswith(
        f"no room left for {tmp_path / 'gone'}: about 5.0 MB are needed, and the disk has "
    )
    wrote_less = RuntimeError("basic_ios::clear: iostream error")
    assert str(_trouble(wrote_less, tmp_path / "gone", 0)).startswith(
        f"{tmp_path / 'gone'} has gone"
    )
    assert str(_trouble(wrote_less, tmp_path, 1)).endswith(": basic_ios::clear: iostream error")
    for defect in (RuntimeError("out of memory"), OSError("no number"), OSError(111, "refused")):
        assert _trouble(defect, tmp_path, 0) is None


def test_too_little_room_is_told_at_the_start(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**6, 10**6, 400_000)
    monkeypatch.setattr(session.shutil, "disk_usage", lambda path: usage)
    assert train("--max_steps", "1", "--test_problems", "0", "--eval_strategy", "no") == 0
    told = "warning: a checkpoint and the policy take about 461.3 kB, and runs/one has room for"
    assert f"{told} 400.0 kB" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_that_may_only_be_read(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(Path("runs"), "one")
    run.write_start({"model": "x", "data": {"source": "word_problems"}}, [])
    run.path.chmod(0o500)
    assert main(["resume", "one"]) == 2
    assert "cannot write into runs/one: Permission denied" in capsys.readouterr().err
