"""What a broken format earns: one number, or a mapping by reason, from the file to the gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import (
    read_jsonl,
    refused,
    same_weights,
    toy_config,
    toy_tokenizer,
    toy_trajectories,
    train,
    weights,
    write_config,
)

from rewards import RewardSum
from srl.commands.cli import main
from srl.config.experiment import parse_experiment
from srl.config.format_failures import FAILURES
from srl.errors import UsageError
from srl.models.loading import load_policy
from srl.training.trainer import NothingToTrainOnError, SRLTrainer
from srl.trl_adapter import adapt

MINIMAL: dict[str, object] = {"model": "some/model", "data": {"source": "word_problems"}}
# The policy is told not to think, and thinks; a step of five words does not fit.
ALL_FAIL: dict[str, Any] = {
    "think": False,
    "targets": "literal",
    "max_completion_length": 8,
    "max_steps": 1,
}


def earned(value: object) -> object:
    experiment = parse_experiment({**MINIMAL, "format_failure_reward": value}, where="my.yaml")
    return experiment.resolved()["format_failure_reward"]


def test_a_number_stays_a_number_and_a_mapping_gets_its_default() -> None:
    assert earned(-1) == -1.0
    assert earned(0.5) == 0.5  # one number for all cannot favour a part of the format
    assert earned({"truncated": -1}) == {"default": -1.0, "truncated": -1.0}
    assert earned({"missing_open": 0, "default": -0.5}) == {"default": -0.5, "missing_open": 0.0}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"missing_opne": -1}, f"'missing_opne'; allowed: {', '.join(FAILURES)}, and default"),
        ({"truncated": 0.1}, "truncated is 0.1; give a number from -1e6 to 0"),
        ({"default": float("nan")}, "default is nan"),
        ({"truncated": "bad"}, "truncated is 'bad'; give a number"),
        ({"truncated": True}, "truncated is True; give a number"),
        ("bad", "must be of type float or dict"),
        (1e9, "from -1e6 to 1e6"),
    ],
)
def test_what_cannot_be_is_refused(value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        earned(value)


def test_groups_of_failures_with_different_reasons_train_the_policy(
    toy_policy: Path, tmp_path: Path
) -> None:
    easy = toy_trajectories(40, long=False)
    start = weights(load_policy(str(toy_policy))[0])
    flat = toy_config(tmp_path / "flat", max_empty_steps=1, **ALL_FAIL)
    with pytest.raises(NothingToTrainOnError, match="nothing to train on"):
        SRLTrainer(str(toy_policy), flat, easy).train()

    by_reason = {"truncated": -1.0, "unexpected_tag": -0.5}
    args = toy_config(tmp_path / "one", format_failure_reward=by_reason, **ALL_FAIL)
    trainer = SRLTrainer(str(toy_policy), args, easy)
    trainer.train()
    assert not same_weights(start, weights(trainer.model))
    records = read_jsonl(tmp_path / "one" / "steps.jsonl")
    assert {one["format_failure"] for one in records} == {"truncated", "unexpected_tag"}
    assert all(one["reward"] == by_reason[str(one["format_failure"])] for one in records)
    kept = [one for one in records if one["kept"]]
    assert kept
    for one in kept:
        assert float(str(one["group_std"])) > 0
        assert (float(str(one["advantage"])) > 0) == (one["format_failure"] == "unexpected_tag")


def test_rewards_normalised_one_by_one_take_the_reason_too(
    toy_policy: Path, tmp_path: Path
) -> None:
    args = toy_config(
        tmp_path,
        format_failure_reward={"truncated": -1.0, "unexpected_tag": -0.5},
        multi_objective_aggregation="normalize_then_sum",
        **ALL_FAIL,
    )
    SRLTrainer(str(toy_policy), args, toy_trajectories(40, long=False)).train()
    kept = [one for one in read_jsonl(tmp_path / "steps.jsonl") if one["kept"]]
    assert {one["format_failure"] for one in kept} == {"truncated", "unexpected_tag"}
    for one in kept:
        assert (float(str(one["advantage"])) > 0) == (one["format_failure"] == "unexpected_tag")


def test_the_command_line_gives_it_by_reason_and_a_resume_compares_it(
    home: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(
        home / "config.yaml",
        model=str(toy_policy),
        format_failure_reward=-0.5,
        validation_problems=0,
        test_problems=0,
        eval_strategy="no",
        max_steps=1,
        save_steps=1,
    )
    assert train("--format_failure_reward.truncatde", "-1") == 2
    refused(capsys, 2, "names 'truncatde'; allowed: truncated")
    assert train("--format_failure_reward.truncated", "-1") == 0
    config = yaml.safe_load((home / "runs/one/config.yaml").read_text())
    assert config["format_failure_reward"] == {"default": -0.5, "truncated": -1.0}
    (home / "runs/one/summary.json").unlink()
    (home / "runs/one/before.json").write_text("{}")
    again = ["resume", "one"]
    capsys.readouterr()
    assert main([*again, "--format_failure_reward.truncated", "-0.9"]) == 2
    assert "format_failure_reward.truncated: -1.0 -> -0.9" in capsys.readouterr().err
    assert main([*again, "--max_steps", "2", "--accept-changes"]) == 0
    records = read_jsonl(home / "runs/one/steps.jsonl")
    failed = [one for one in records if one["format_failure"] is not None]
    assert failed
    for one in failed:
        assert one["reward"] == (-1.0 if one["format_failure"] == "truncated" else -0.5)


def test_trls_trainer_pays_by_reason_too() -> None:
    tokenizer = toy_tokenizer()
    rewards = RewardSum({"similarity": 1.0}, format_failure={"truncated": -1.0, "default": -0.25})
    ours = adapt(toy_trajectories(2), rewards, tokenizer, system_prompt=None)
    columns = {name: [ours.dataset[0][name]] * 3 for name in ours.dataset.column_names}
    texts = ["<think> hm</think> add", "add<eos>", "<think> hm</think> add the red box<eos>"]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    reward = ours.reward_funcs[0]
    assert reward(completion_ids=ids, **columns) == [-1.0, -0.25, 1.0]
