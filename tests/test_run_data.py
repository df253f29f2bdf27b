"""A run's folder as the views read it, whole and half."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from step_logs import RECORD, write_log

from srl.errors import UsageError
from srl.estimates import bootstrap, wilson
from srl.logs.run_data import Problem, RunData
from srl.records import json_line
from srl.run_folder import RunFolder


def lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_bytes(b"".join(json_line(row) for row in rows))


def attempt(problem: int, when: str, correct: bool, sample: int = 0) -> dict[str, object]:
    return {
        "when": when,
        "problem_id": str(problem),
        "mode": "steps",
        "sample": sample,
        "correct": correct,
        "failure": None if correct else "no_answer",
    }


def test_half_a_run_is_a_run(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    run = RunData.open(RunFolder.with_log(tmp_path))
    assert run.log.table.num_rows == 1
    assert not run.complete
    assert run.config is run.environment is run.summary is run.gain() is None
    assert run.metrics == run.accuracies() == run.validation_accuracy() == []
    assert run.training_figures() == {}
    assert run.problem_of(RECORD) is None


def test_folders_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gone is not a run folder: no such folder"):
        RunFolder.with_log(tmp_path / "gone")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UsageError, match=r"steps.jsonl does not exist: .* no rollouts yet"):
        RunData.open(RunFolder.with_log(tmp_path))
    log = tmp_path / "steps.jsonl"
    log.write_bytes(b"")
    with pytest.raises(UsageError, match="steps.jsonl is empty"):
        RunData.open(RunFolder.with_log(tmp_path))
    log.write_bytes(json_line(RECORD)[:50])
    with pytest.raises(UsageError, match="holds no whole record yet: its first .* or was cut off"):
        RunData.open(RunFolder.with_log(log))
    (tmp_path / "summary.json").write_text("{")
    log.write_bytes(json_line(RECORD))
    with pytest.raises(UsageError, match="cannot read .*summary.json"):
        assert RunData.open(RunFolder.with_log(log)).summary


def test_figures_of_training_and_of_validations(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    training = [{"step": k, "loss": k / 10, "reward": 0.5, "epoch": 1.0} for k in (1, 2)]
    validations = [
        {"step": 2, "eval_accuracy": 0.25, "eval_problems": 8, "eval_reward": 0.75, "epoch": 1.0},
        {"step": 4, "eval_accuracy": 0.5, "eval_reward": None, "epoch": 1.0},
    ]
    last = {"step": 4, "train_runtime": 3.0, "train_loss": 0.1, "epoch": 1.0}
    lines(tmp_path / "metrics.jsonl", [training[0], training[1], *validations, last])
    run = RunData.open(RunFolder.with_log(tmp_path))
    assert run.training_figures() == {"loss": [(1, 0.1), (2, 0.2)], "reward": [(1, 0.5), (2, 0.5)]}
    assert run.validation_figures() == {
        "accuracy": [(2, 0.25), (4, 0.5)],
        "problems": [(2, 8.0)],
        "reward": [(2, 0.75)],
    }
    (first, counted), (second, uncounted) = run.validation_accuracy()
    assert (first, second) == (2, 4)
    assert counted == wilson(2, 8)
    assert (uncounted.value, uncounted.n) == (0.5, 0)
    assert math.isnan(uncounted.low)


def test_problems_solved_before_and_after(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    before = [attempt(k, "before", k < 2) for k in range(10)]
    after = [attempt(k, "after", k < 6) for k in range(10)]
    samples = [attempt(k, "after", k == n, n) for k in (1, 2) for n in (1, 2)]
    lines(tmp_path / "eval.jsonl", [*before, *after, *samples])
    run = RunData.open(RunFolder.with_log(tmp_path))
    found = {(a.when, a.sampled): a for a in run.accuracies()}
    assert found["before", False].estimate == wilson(2, 10)
    assert found["after", False].estimate == wilson(6, 10)
    assert found["after", True].estimate == bootstrap([0.5, 0.5])
    assert found["before", False].failures == {"no_answer": 8}
    gain = run.gain()
    assert gain is not None
    # Four of ten problems gained: .4 with a standard deviation of sqrt(10/9 * .24), t(9) = 2.2622.
    assert (gain.value, gain.n) == (pytest.approx(0.4), 10)
    half = 2.2622 * math.sqrt(10 / 9 * 0.24 / 10)
    assert (gain.low, gain.high) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-3)
    lines(tmp_path / "eval.jsonl", [*before, *after[:9]])
    assert RunData.open(RunFolder.with_log(tmp_path)).gain() is None  # not the same problems


def test_the_problem_of_a_record(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    told = {"problem_id": RECORD.problem_id, "source": "s", "problem": "Eggs?", "answer": "7"}
    other = ["She has 3 eggs.", "She has 8 eggs."]
    steps = ["She has 3 eggs.", RECORD.expert_step]
    rows = [{**told, "steps": other}, {**told, "steps": steps, "answer": None}]
    lines(tmp_path / "problems.jsonl", rows)
    run = RunData.open(RunFolder.with_log(tmp_path))
    assert run.problem_of(RECORD) == Problem("Eggs?", tuple(steps), None)
    assert run.problem_of(replace(RECORD, expert_step=other[1])) == Problem(
        "Eggs?", tuple(other), "7"
    )
    assert run.problem_of(replace(RECORD, expert_step="unheard of")) is None
    assert run.problem_of(replace(RECORD, problem_id="another")) is None


def test_settings_and_machine(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    run = RunFolder(tmp_path)
    run.write_start({"seed": 3}, ["srl", "train"])
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 4}))
    data = RunData.open(run)
    assert data.config == {"seed": 3}
    assert data.environment is not None
    assert "packages" in data.environment
    assert data.summary == {"steps": 4}
    assert data.complete
