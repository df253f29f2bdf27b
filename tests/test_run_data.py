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
from srl.logs.run_data import Problem, RunData
from srl.runs.folder import RunFolder
from srl.runs.records import json_line
from srl.sample_metrics import over_problems
from srl.stats import paired_change, wilson


def lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_bytes(b"".join(json_line(row) for row in rows))


def attempt(
    problem: int, when: str, correct: bool, sample: int = 0, evaluation: int = 0
) -> dict[str, object]:
    return {
        "when": when,
        "evaluation": evaluation,
        "problem_id": str(problem),
        "mode": "steps",
        "sample": sample,
        "source": "toy",
        "num_steps": 2 + problem % 2,
        "steps": ["a"] * 2,
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
    # What only adds to the views is left out where it cannot be read.
    log.write_bytes(json_line(RECORD))
    for broken in ("", "{", "[1]", "[" * 100_000, "\xff"):
        for name in ("summary.json", "config.yaml", "environment.json"):
            (tmp_path / name).write_text(broken, encoding="latin-1")
        run = RunData.open(RunFolder.with_log(log))
        assert run.summary is run.config is run.environment is run.policy_step is None


def test_figures_of_training_and_of_validations(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    training = [{"step": k, "loss": k / 10, "reward": 0.5, "epoch": 1.0} for k in (1, 2)]
    validations = [
        {"step": 2, "eval_accuracy": 0.25, "eval_problems": 8, "eval_reward": 0.75, "epoch": 1.0},
        {"step": 4, "eval_accuracy": 0.5, "eval_reward": None, "epoch": 1.0},
    ]
    # A second update with the batch of step 2 tells no reward.
    training.append({"step": 3, "loss": 0.3, "kl": 0.5, "epoch": 1.0})
    last = {"step": 4, "train_runtime": 3.0, "train_loss": 0.1, "epoch": 1.0}
    lines(tmp_path / "metrics.jsonl", [*training, *validations, last])
    run = RunData.open(RunFolder.with_log(tmp_path))
    assert run.training_figures() == {
        "loss": [(1, 0.1), (2, 0.2), (3, 0.3)],
        "reward": [(1, 0.5), (2, 0.5)],
        "kl": [(3, 0.5)],
    }
    assert run.last_step == 3
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


def test_seconds_and_tokens(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    assert RunData.open(RunFolder.with_log(tmp_path)).seconds() is None
    rows = [
        {"step": 4, "loss": 0.1, "tokens": 100, "seconds/collect": 8.0, "seconds/update": 2.0},
        {"step": 5, "loss": 0.1, "seconds/update": 10.0},  # the same batch once more
        {
            "step": 8,
            "loss": 0.1,
            "tokens": 90,
            "seconds/collect": 9.0,
            "reward_errors/units": 3,
            "masked_rollouts": 6,
        },
    ]
    lines(tmp_path / "metrics.jsonl", rows)
    run = RunData.open(RunFolder.with_log(tmp_path))
    assert run.seconds() == 29
    assert run.totals()["reward_errors/units"] == 3
    assert run.per_step("seconds/collect") == [(4, 2.0), (8, 3.0)]  # of 4 steps, and of 3
    assert run.per_step("masked_rollouts") == [(8, 2.0)]
    assert run.totals()["masked_rollouts"] == 6
    assert run.per_step("gone") == []


def test_an_evaluation_that_was_made_again(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    rows = [attempt(k, "before", k < 2) for k in range(4)]
    rows += [attempt(k, "after", k < 1, evaluation=1) for k in range(4)]
    rows += [attempt(k, "after", k < 3, evaluation=2) for k in range(4)]
    rows += [attempt(k, "eval", k < 4, evaluation=3) for k in range(4)]
    rows += [attempt(k, "eval", k < 1, evaluation=5) for k in range(2)]
    lines(tmp_path / "eval.jsonl", rows)
    run = RunData.open(RunFolder.with_log(tmp_path))
    assert [(a.when, a.estimate) for a in run.accuracies()] == [
        ("before", wilson(2, 4)),
        ("after", wilson(3, 4)),
        ("eval", wilson(4, 4)),
        ("eval 2", wilson(1, 2)),
    ]
    assert run.gain() == paired_change(1, 0, 4)
    assert run.solved_by("num_steps")["after"] == {2: wilson(2, 2), 3: wilson(1, 2)}


def test_two_solutions_of_one_problem_are_two_attempts(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    rows = [attempt(1, "before", False), attempt(1, "before", False), attempt(2, "before", True)]
    rows += [attempt(1, "after", True), attempt(1, "after", False), attempt(2, "after", True)]
    lines(tmp_path / "eval.jsonl", rows)
    run = RunData.open(RunFolder.with_log(tmp_path))
    assert [a.estimate for a in run.accuracies()] == [wilson(1, 3), wilson(2, 3)]
    assert run.gain() == paired_change(1, 0, 3)


@pytest.mark.parametrize(
    ("file", "row", "said"),
    [
        ("eval.jsonl", {}, "eval.jsonl, line 1: when is missing"),
        (
            "eval.jsonl",
            {**attempt(1, "after", True), "problem_id": [1]},
            r"problem_id is \[1\], wh",
        ),
        ("eval.jsonl", {**attempt(1, "after", True), "num_steps": "x"}, 'num_steps is "x", which'),
        ("eval.jsonl", {**attempt(1, "after", True), "correct": "false"}, 'correct is "false"'),
        ("metrics.jsonl", {"loss": 1}, "metrics.jsonl, line 1: step is missing"),
        ("metrics.jsonl", {"step": 10**30}, "step is 1000"),
        ("problems.jsonl", {"problem": "x"}, "problems.jsonl, line 1: problem_id is missing"),
    ],
)
def test_files_that_hold_something_else(
    tmp_path: Path, file: str, row: dict[str, object], said: str
) -> None:
    write_log(tmp_path, [RECORD])
    lines(tmp_path / file, [row])
    run = RunData.open(RunFolder.with_log(tmp_path))
    with pytest.raises(UsageError, match=said):
        assert run.accuracies() or run.training_figures() or run.problem_of(RECORD)


def test_figures_that_are_none(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    odd = [
        {"step": 1, "loss": None, "reward": True, "kl": "x", "lift": 0.5},
        {"step": 2, "eval_accuracy": 2, "eval_problems": 10**20},
    ]
    lines(tmp_path / "metrics.jsonl", odd)
    run = RunData.open(RunFolder.with_log(tmp_path))
    assert run.training_figures() == {"lift": [(1, 0.5)]}
    assert math.isnan(run.validation_accuracy()[0][1].low)


def test_the_policy_that_was_kept(tmp_path: Path) -> None:
    write_log(tmp_path, [replace(RECORD, train_step=40)])
    for best, step in (("runs/a/checkpoint-20", 20), ("runs/a/checkpoint-40", None), (None, None)):
        (tmp_path / "summary.json").write_text(json.dumps({"best_checkpoint": best}))
        assert RunData.open(RunFolder.with_log(tmp_path)).policy_step == step


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
    sampled = found["after", True].estimate
    assert sampled == over_problems([0.5, 0.5])  # as summary.json has it
    assert sampled.low < 0.5 < sampled.high  # though every problem has the same share
    assert found["before", False].failures == {"no_answer": 8}
    rows = [{**attempt(k, "after", False), "failure": None} for k in range(5)]
    lines(tmp_path / "other.jsonl", rows)
    (tmp_path / "other.jsonl").replace(tmp_path / "eval.jsonl")
    (one,) = RunData.open(RunFolder.with_log(tmp_path)).accuracies()
    # Two steps were written; the expert takes three for every other problem.
    assert one.failures == {"wrong answer": 3, "wrong answer, fewer steps than the expert": 2}
    gain = run.gain()
    assert gain is not None
    assert gain == paired_change(4, 0, 10)
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


def test_a_run_of_a_trainer_used_from_python_ends_too(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD])
    lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 0.5}])
    assert not RunData.open(RunFolder.with_log(tmp_path)).complete
    lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 0.5}, {"step": 1, "train_runtime": 2}])
    assert RunData.open(RunFolder.with_log(tmp_path)).complete
    (tmp_path / "config.yaml").write_text("seed: 0\n")  # the command line evaluates after that
    assert not RunData.open(RunFolder.with_log(tmp_path)).complete


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
