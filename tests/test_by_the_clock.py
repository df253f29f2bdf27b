from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import read_jsonl, same_weights, toy_config, toy_trajectories, train, weights

from srl.commands.cli import main
from srl.errors import UsageError
from srl.models.loading import load_policy
from srl.runs.checkpoints import STATE_FILE, damage
from srl.training.trainer import SRLTrainer


def test_a_step_that_took_long_is_saved(tmp_path: Path, toy_policy: Path) -> None:
    """But not in the middle of a batch of two passes."""
    args = toy_config(tmp_path, save_every_minutes=1e-9, num_iterations=2, max_steps=5)
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert damage(tmp_path / "checkpoint-4") is None


def test_no_checkpoint_before_its_time(tmp_path: Path, toy_policy: Path) -> None:
    args = toy_config(tmp_path, save_every_minutes=1e9, max_steps=1)
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["save_every_minutes", "max_minutes"])
def test_minutes_that_cannot_be(tmp_path: Path, name: str, minutes: float) -> None:
    with pytest.raises(UsageError, match=f"{name} is .*; give minutes, above 0"):
        toy_config(tmp_path, **{name: minutes})


def test_minutes_end_a_training_as_its_last_step_does(tmp_path: Path, toy_policy: Path) -> None:
    """Checkpoint, evaluation and the log's line at the end; going on from there adds nothing."""
    rows = toy_trajectories(20)
    changes = {
        "max_minutes": 1e-9, "num_iterations": 2, "max_steps": 40, "save_strategy": "steps",
        "save_steps": 30, "eval_strategy": "steps", "eval_steps": 30,
    }  # fmt: skip
    args = toy_config(tmp_path, **changes)
    first = SRLTrainer(str(toy_policy), args, rows[:15], validation_trajectories=rows[15:])
    first.train()
    assert first.state.global_step == 2  # both passes over the first batch
    assert damage(tmp_path / "checkpoint-2") is None
    before = (tmp_path / "metrics.jsonl").read_text()
    args = toy_config(tmp_path, **changes)
    again = SRLTrainer(str(toy_policy), args, rows[:15], validation_trajectories=rows[15:])
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2
    assert same_weights(weights(first.model), weights(again.model))
    steps = [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2]
    assert before.count('"eval_accuracy"') == 1


def test_minutes_of_an_earlier_session_count(tmp_path: Path, toy_policy: Path) -> None:
    rows = toy_trajectories(20)
    args = toy_config(tmp_path, max_minutes=60.0, max_steps=2, save_strategy="steps", save_steps=2)
    SRLTrainer(str(toy_policy), args, rows).train()
    state = tmp_path / "checkpoint-2" / STATE_FILE
    assert 0 < json.loads(state.read_text())["seconds"] < 3600
    args = toy_config(tmp_path, max_minutes=1e-9, max_steps=9, save_strategy="no")
    again = SRLTrainer(str(toy_policy), args, rows)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2


def test_minutes_that_a_resume_adds_count_from_the_start(tmp_path: Path, toy_policy: Path) -> None:
    rows = toy_trajectories(20)
    args = toy_config(tmp_path, max_steps=4, save_strategy="steps", save_steps=4, logging_steps=2)
    first = SRLTrainer(str(toy_policy), args, rows)
    first.train()
    assert "seconds" not in json.loads((tmp_path / "checkpoint-4" / STATE_FILE).read_text())
    took = [
        float(str(line["seconds/collect"])) + float(str(line["seconds/update"]))
        for line in read_jsonl(tmp_path / "metrics.jsonl")
        if "seconds/update" in line
    ]
    assert len(took) == 2  # sums over two steps
    for limit, steps in ((0.9 * sum(took), {4}), (1.5 * sum(took), {5, 6}), (60.0 * 60, {6})):
        args = toy_config(tmp_path, max_minutes=limit / 60, max_steps=6, save_strategy="no")
        again = SRLTrainer(str(toy_policy), args, rows)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step in steps


@pytest.mark.parametrize("method", ["srl", "sft"])
def test_tokens_of_the_expert_end_a_training_and_are_counted_over_a_resume(
    home: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load((home / "config.yaml").read_text())
    values |= {"method": method, "max_steps": 30, "eval_strategy": "no", "save_steps": 1}
    values |= {"max_expert_tokens": 80, "save_total_limit": None}
    if method == "sft":
        del values["num_generations"]
    else:
        values["dynamic_sampling"] = False
    (home / "config.yaml").write_text(yaml.safe_dump(values))
    assert train(name="straight") == 0
    said = "until 80 of the expert's tokens were drawn, or for 30 steps"
    assert said in capsys.readouterr().out
    run = home / "runs" / "straight"
    steps = yaml.safe_load((run / "summary.json").read_text())["steps"]
    assert 2 < steps < 30
    counted = [
        json.loads((run / f"checkpoint-{step}" / STATE_FILE).read_text())["stream"]["expert_tokens"]
        for step in range(1, steps + 1)
    ]
    assert counted[-2] < 80 <= counted[-1]  # the step with which they are reached is the last one
    last = weights(load_policy("runs/straight/policy")[0])
    # As if it had been stopped after the second step.
    for step in range(3, steps + 1):
        shutil.rmtree(run / f"checkpoint-{step}")
    (run / "summary.json").unlink()
    (run / "before.json").write_text("{}")
    assert main(["resume", "straight"]) == 0
    assert yaml.safe_load((run / "summary.json").read_text())["steps"] == steps
    assert same_weights(weights(load_policy("runs/straight/policy")[0]), last)


def test_a_budget_of_tokens_that_a_resume_adds_counts_from_the_start(home: Path) -> None:
    values = yaml.safe_load((home / "config.yaml").read_text())
    values |= {"dynamic_sampling": False, "eval_strategy": "no", "save_steps": 1, "max_steps": 30}
    values |= {"save_total_limit": None}
    (home / "config.yaml").write_text(yaml.safe_dump(values))
    assert train("--max_expert_tokens", "80", name="straight") == 0
    assert train("--max_steps", "2", name="later") == 0
    run = home / "runs" / "later"
    (run / "summary.json").unlink()
    (run / "before.json").write_text("{}")
    words = ["--max_steps", "30", "--max_expert_tokens", "80", "--accept-changes"]
    assert main(["resume", "later", *words]) == 0
    steps = [
        yaml.safe_load((home / "runs" / name / "summary.json").read_text())["steps"]
        for name in ("straight", "later")
    ]
    assert steps[0] == steps[1] > 2
