"""Code that only a run's folder names does not run unasked; one's own runs ask nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import train

from srl.commands.cli import main
from srl.config.trust import note, refuse_foreign
from srl.errors import UsageError

EVIL = "from pathlib import Path\nPath('ran').touch()\ndef judge(step):\n    return 1.0\n"


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing has been run here."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    return tmp_path


def refused(settings: dict[str, object], **more: object) -> str:
    with pytest.raises(UsageError, match="has not been run here.*--trust-code") as error:
        refuse_foreign(settings, "runs/x/config.yaml", **more)  # type: ignore[arg-type]
    assert not Path("ran").exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"rewards": {"evil.py:judge": 1.0}}, "evil.py:judge"),
        ({"rewards": {"mine": {"name": "evil.py:judge", "weight": 1}}}, "evil.py:judge"),
        ({"rewards": {"similarity": 1.0, "evil:judge": 0}}, "evil:judge"),
        (
            {"rewards": {"p": {"name": "subprocess:Popen", "options": {"args": "id"}}}},
            "subprocess:Popen",
        ),
        ({"data": {"source": "evil.py:judge"}}, "evil.py:judge"),
        ({"loss_type": "evil.py:judge"}, "evil.py:judge"),
        ({"trust_remote_code": True, "model": "some/model"}, "trust_remote_code of some/model"),
    ],
)
def test_code_that_a_folder_names(evil: Path, settings: dict[str, object], what: str) -> None:
    assert what in refused(settings)
    refuse_foreign(settings, "x", named=settings)  # given on the command line too
    note(settings)
    refuse_foreign(settings, "x")


def test_what_is_no_code(evil: Path) -> None:
    refuse_foreign(
        {
            "rewards": {"similarity": 1.0, "w": {"name": "indel", "weight": 0}, "gone.py:f": 1},
            "data": {"source": "files", "path": "a:b"},
            "loss_type": "grpo",
            "system_prompt": "Answer:yes",
            "trust_remote_code": False,
        },
        "x",
    )
    for hostile in ({"rewards": 3}, {"rewards": {3: "a:b"}}, {"data": "a:b"}, {"loss_type": [":"]}):
        refuse_foreign(hostile, "x")


def test_code_that_has_changed(evil: Path) -> None:
    settings: dict[str, object] = {"rewards": {"evil.py:judge": 1.0}}
    (evil / "evil.py").write_text("import beside\n" + EVIL)
    (evil / "beside.py").write_text("a = 1\n")
    note(settings)
    refuse_foreign(settings, "x")
    (evil / "beside.py").write_text("a = 2\n")
    refused(settings)
    refuse_foreign(settings, "x", edited=True)
    os.rename(evil / "evil.py", evil / "other.py")
    refused({"rewards": {"other.py:judge": 1.0}}, edited=True)


def test_where_nothing_can_be_noted(evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(evil / "evil.py"))
    note({"loss_type": "evil.py:judge"})
    refused({"loss_type": "evil.py:judge"})


def test_a_foreign_run_is_refused_and_ones_own_goes_on(
    home: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--test_problems", "0", "--validation_problems", "4", "--eval_strategy", "no"]
    assert train(*words) == 0
    run = home / "runs/one"
    (run / "evil.py").write_text(EVIL)
    config = yaml.safe_load((run / "config.yaml").read_text())
    place = "runs/one/evil.py:judge"
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "rewards": {place: 1.0}}))
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoint-4")
    left = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    views = (["inspect", "one"], ["report", "one", "--output", "page.html"])
    for command in (["resume", "one"], ["eval", "--run", "one"]):
        assert main(command) == 2
        assert "evil.py:judge. A run's folder may be" in capsys.readouterr().err
    assert [main(view) for view in views] == [0, 0]
    assert not Path("ran").exists()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == left
    # As its policy was trained on problems of code's making, nothing of it runs either.
    (run / "config.yaml").write_text(
        yaml.safe_dump({**config, "data": {"source": "runs/one/evil.py:World"}})
    )
    (run / "steps.jsonl").rename(home / "steps.jsonl")
    evaluated = ["eval", "--model", "runs/one/policy", "--config", "config.yaml"]
    assert main([*evaluated, "--test_problems", "2", "--solve_max_steps", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "not checked: whether runs/one trained on these problems" in shown
    assert not Path("ran").exists()
    (home / "steps.jsonl").rename(run / "steps.jsonl")

    (run / "config.yaml").write_text(yaml.safe_dump({**config, "rewards": {place: 1.0}}))
    (run / "before.json").write_text("{}")
    assert main(["resume", "one", "--trust-code", "--accept-changes"]) == 0
    assert Path("ran").exists()
    assert main(["eval", "--run", "one"]) == 0  # asked once
