"""`srl solve`: one problem of the user's, solved by a policy."""

from __future__ import annotations

import io
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from environments import word_problems
from environments.types import LoadReport
from srl.commands.cli import main

ROOT = Path(__file__).resolve().parent.parent
BASE = ["solve", "--config", str(ROOT / "experiments/tiny/srl.yaml")]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def short_problem() -> tuple[str, str]:
    """Returns an easy problem of the embedded domain and its answer."""
    drawn = word_problems.load(report=LoadReport(), limit=50)
    easy = min(drawn, key=lambda trajectory: len(trajectory.steps))
    assert easy.answer is not None
    return easy.problem, easy.answer


@pytest.mark.parametrize("whole", [False, True])
def test_a_policy_solves_a_problem_in_its_steps(
    whole: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, answer = short_problem()
    assert main([*BASE, "--problem", problem, *["--whole"] * whole]) == 0
    shown = capsys.readouterr().out
    assert ("solution: " in shown) == whole
    assert ("step 1: " in shown) != whole
    assert shown.splitlines()[-1] == f"answer: {answer}"
    monkeypatch.setattr("sys.stdin", io.StringIO(problem + "\n"))
    assert main([*BASE, *["--whole"] * whole]) == 0
    assert capsys.readouterr().out == shown


def test_an_attempt_without_an_answer_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    problem, _ = short_problem()
    assert main([*BASE, "--problem", problem, "--solve_max_steps", "1"]) == 0
    assert "none is stated in solve_max_steps = 1 steps" in capsys.readouterr().out
    assert main([*BASE, "--problem", problem, "--max_completion_length", "3"]) == 0
    shown = capsys.readouterr().out
    assert "cut off at max_completion_length = 3 tokens" in shown
    assert "its last line: <think>" in shown
    assert main([*BASE, "--problem", problem, "--whole", "--whole_max_completion_length", "3"]) == 0
    assert "cut off at whole_max_completion_length = 3 tokens" in capsys.readouterr().out


def test_what_cannot_be_solved_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BASE, "--problem", " "]) == 2
    assert "give its text: --problem" in capsys.readouterr().err
    own = yaml.safe_load((ROOT / "experiments/tiny/srl.yaml").read_text())
    own |= {"data": {"source": "experiments/custom_environment.py:Counter"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    assert main(["solve", "--config", str(tmp_path / "own.yaml"), "--problem", "x"]) == 2
    assert "Counter has its own" in capsys.readouterr().err


def test_a_run_solves_with_its_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    config = yaml.safe_load((ROOT / "experiments/tiny/srl.yaml").read_text())
    config |= {"model": "gone/base", "bf16": True}  # of a GPU machine
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    problem, answer = short_problem()
    words = ["solve", "--run", str(run), "--problem", problem]
    assert main(words) == 2
    assert "has neither a policy nor a checkpoint yet" in capsys.readouterr().err
    (run / "policy").symlink_to(ROOT / "experiments/tiny/base")
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"answer: {answer}" in shown
    assert "in float32: one was trained in bf16, which needs a GPU" in shown
    assert main([*words, "--model", "other"]) == 2
    assert "--run" in capsys.readouterr().err


def test_a_policy_with_worked_examples_and_too_little_room(
    capsys: pytest.CaptureFixture[str],
) -> None:
    problem, _ = short_problem()
    few = ["--few_shot", "1", "--data.limit", "60"]
    few += ["--test_problems", "4", "--validation_problems", "4"]
    assert main([*BASE, "--problem", problem, *few]) == 0
    assert "step 1: " in capsys.readouterr().out
    assert main([*BASE, "--problem", problem, "--max_completion_length", "5000"]) == 0
    assert "no room for max_completion_length = 5,000 more tokens" in capsys.readouterr().out


def test_a_problem_that_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, "--problem", "\udcff abc"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_the_make_target_passes_any_text_on() -> None:
    problem = "It costs $40. $(shell touch bad) Ann's\nfriend?"
    done = subprocess.run(
        ["make", "-n", "solve", "RUN=one", f"PROBLEM={problem}"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert shlex.split(done.stdout)[-2:] == ["--problem", problem]
    assert not (ROOT / "bad").exists()


def test_play_has_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", *BASE[1:], "--model", "x"]) == 2
    assert "you are the policy" in capsys.readouterr().err
