"""`srl report`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report_pages import inside, made_up, write_run

from srl.commands.cli import main
from srl.errors import UsageError
from srl.logs.report.report import MARKER, ROLLOUTS, write_report


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with two runs, and a file that is somebody's data."""
    folder = tmp_path / "home"
    for name in ("one", "two"):
        run = write_run(folder / "runs" / name, made_up(4))
        (run / "config.yaml").write_text("a: 1\n")
    (folder / "data.jsonl").write_text("{}\n")
    return folder


def test_the_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(home):
        assert main(["report", "one"]) == 0
        assert re.fullmatch(r"runs/one/report.html  \d+ kB\n", capsys.readouterr().out)
        assert main(["report", "one", "two", "--output", "both.html", "--rollouts", "30"]) == 0
        assert capsys.readouterr().out.startswith("both.html  ")
        first = (home / "both.html").read_bytes()
        assert MARKER.encode() in first[:256]
        assert main(["report", "one", "two", "--output", "both.html", "--rollouts", "30"]) == 0
        assert (home / "both.html").read_bytes() == first  # ours is replaced, and is the same again
    assert not list(home.rglob(".report*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "runs/gone is not a run folder: no such folder. Runs in runs: one, two"),
        (["one", "gone"], "runs/gone is not a run folder"),
        (["one", "runs/one/"], "is the run itself: name another run"),
        (["one", "--rollouts", "0"], "--rollouts 0: at least 1"),
        (["one", "--output", "no/such/a.html"], "there is no folder no/such; make it first"),
        (["one", "--output", "runs"], "--output runs is a folder; name a file, such as runs/"),
        (["one", "--output", "a" * 300], "a: File name too long"),
        (["one", "--output", "data.jsonl"], "data.jsonl exists and is no report: it is left"),
        (["one", "--colour", "red"], "unknown words: --colour red"),
        (["bare"], "runs/bare/steps.jsonl does not exist: this run has recorded no rollouts yet"),
        (["empty"], "runs/empty/steps.jsonl is empty"),
        (["half"], "holds no whole record"),
        (["broken"], "runs/broken/steps.jsonl, line 1: not JSON"),
    ],
)
def test_wrong_use(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    logs = {"bare": None, "empty": "", "half": '{"schema"', "broken": "none\n"}
    with inside(home):
        for name in logs.keys() & set(words):
            Path("runs", name).mkdir()
            Path("runs", name, "config.yaml").write_text("a: 1\n")
            if (log := logs[name]) is not None:
                Path("runs", name, "steps.jsonl").write_text(log)
        assert main(["report", *words]) == 2
        assert Path("data.jsonl").read_text() == "{}\n"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("srl: ") == 1
    assert re.search(re.escape(message), " ".join(shown.err.split())), shown.err


def test_a_log_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "steps.jsonl").write_text(json.dumps({"schema": 1, "\x1b]0;pwned\x07": 1}) + "\n")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert r"\u{1b}]0;pwned\u{7}" in said
    assert said.replace("\n", "").isprintable()


def test_the_help_knows_how_many_rollouts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert f"(default {ROLLOUTS})" in " ".join(capsys.readouterr().out.split())


def test_a_report_that_cannot_be_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UsageError, match="cannot write .*a.html: No space left on device"):
        write_report(home / "runs/one", output=folder / "a.html")
    assert list(folder.iterdir()) == []
