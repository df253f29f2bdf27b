"""The logs of a training: what they say is what happened."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, pstdev, stdev

import pytest
from conftest import groups_of, read_jsonl, toy_config, toy_trajectories

from srl.data.prompts import FAILURES
from srl.errors import UsageError
from srl.runs.records import FIELDS
from srl.training.run_log import RunLog
from srl.training.trainer import SRLTrainer


def test_records_agree_with_the_rewards(toy_policy: Path, tmp_path: Path) -> None:
    epsilon = 0.3
    args = toy_config(tmp_path, dynamic_sampling_epsilon=epsilon, max_sampling_rounds=2)
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    records = read_jsonl(tmp_path / "steps.jsonl")
    seen = {True: 0, False: 0}
    for group in groups_of(records):
        rewards = [float(record["reward"]) for record in group]  # type: ignore[arg-type]
        assert [record["rollout"] for record in group] == [0, 1, 2, 3]
        assert len({record["expert_step"] for record in group}) == 1
        kept = pstdev(rewards) > epsilon
        seen[kept] += 1
        for record, reward in zip(group, rewards, strict=True):
            assert tuple(record) == FIELDS
            assert record["group_mean"] == pytest.approx(fmean(rewards))
            assert record["group_std"] == pytest.approx(pstdev(rewards))
            assert record["kept"] is kept
            assert record["dropped_because"] == (None if kept else "flat_group")
            if kept:
                advantage = (reward - fmean(rewards)) / (stdev(rewards) + 1e-4)
                assert record["advantage"] == pytest.approx(advantage)
            else:
                assert record["advantage"] is None
            if record["format_failure"] is None:
                assert reward == record["rewards"]["similarity"]  # type: ignore[index]
                assert record["action"]
            else:
                assert reward == -1.0
                assert record["rewards"] == {"similarity": None}
                assert record["metrics"]["lift"] is None
    assert min(seen.values()) > 0  # both kinds came up
    assert any(record["format_failure"] for record in records)


def test_evaluation_is_recorded_and_counts_everything(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1, short_steps=1)
    trainer = SRLTrainer(
        str(toy_policy), args, toy_trajectories(30), validation_trajectories=toy_trajectories(3)
    )
    trainer.train()
    records = [r for r in read_jsonl(tmp_path / "steps.jsonl") if r["phase"] == "eval"]
    assert len(records) == 3 * 3  # problems, steps
    assert {(r["train_step"], r["kept"], r["advantage"]) for r in records} == {(1, False, None)}
    metrics = next(m for m in read_jsonl(tmp_path / "metrics.jsonl") if "eval_reward" in m)
    assert metrics["eval_reward"] == pytest.approx(fmean(float(r["reward"]) for r in records))  # type: ignore[arg-type]
    assert metrics["eval_accuracy_short"] is None  # there is no short problem: no number, no NaN


def test_logging_every_other_step_gives_means_and_totals(toy_policy: Path, tmp_path: Path) -> None:
    for every in (1, 2):
        args = toy_config(tmp_path / str(every), max_steps=4, logging_steps=every)
        SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    each = read_jsonl(tmp_path / "1" / "metrics.jsonl")[:4]
    both = read_jsonl(tmp_path / "2" / "metrics.jsonl")[:2]
    for line, pair in zip(both, (each[:2], each[2:]), strict=True):
        assert line["step"] == pair[1]["step"]
        assert line["tokens"] == sum(one["tokens"] for one in pair)  # type: ignore[misc]
        for name in ("reward", "rewards/similarity", "format_failures", "group_std"):
            assert line[name] == pytest.approx(fmean(one[name] for one in pair))  # type: ignore[type-var]
        parts = [float(line[f"format_failures/{name}"]) for name in FAILURES]  # type: ignore[arg-type]
        assert sum(parts) == pytest.approx(line["format_failures"])
    assert sum(float(line["format_failures"]) for line in both) > 0  # type: ignore[arg-type]


def test_no_step_records_where_none_are_wanted(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(tmp_path, max_steps=1, log_completions=False)
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    assert not (tmp_path / "steps.jsonl").exists()
    assert (tmp_path / "metrics.jsonl").exists()


def test_every_problem_is_told_once_before_its_first_record(
    toy_policy: Path, tmp_path: Path
) -> None:
    args = toy_config(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2)
    known = toy_trajectories(24)
    SRLTrainer(str(toy_policy), args, known[:20], known[20:]).train()
    told = read_jsonl(tmp_path / "problems.jsonl")
    by_id = {trajectory.problem_id: trajectory for trajectory in known}
    used = [record["problem_id"] for record in read_jsonl(tmp_path / "steps.jsonl")]
    assert [row["problem_id"] for row in told] == list(dict.fromkeys(used))
    for row in told:
        trajectory = by_id[str(row["problem_id"])]
        assert row == {
            "problem_id": trajectory.problem_id,
            "source": trajectory.source,
            "problem": trajectory.problem,
            "steps": list(trajectory.texts),
            "answer": trajectory.answer,
        }


def test_two_trainings_never_share_a_log(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(tmp_path, max_steps=1)
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    before = (tmp_path / "steps.jsonl").read_bytes()
    again = SRLTrainer(str(toy_policy), toy_config(tmp_path, max_steps=1), toy_trajectories(20))
    with pytest.raises(UsageError, match="steps.jsonl is the log of another training"):
        again.train()
    assert (tmp_path / "steps.jsonl").read_bytes() == before


def test_logs_are_cut_back_to_the_checkpoint_even_if_not_written_now(tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_text("{}\n{}\n")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    log = RunLog(tmp_path, log_completions=False)
    assert log.positions() == {"steps": 6, "problems": 0, "metrics": 3}
    log.cut_back({"steps": 3, "problems": 0, "metrics": 3})
    assert (tmp_path / "steps.jsonl").read_text() == "{}\n"
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="metrics.jsonl has 0 bytes, but the checkpoint"):
        log.cut_back({"steps": 3, "problems": 0, "metrics": 3})


def test_what_a_line_says_of_several_steps(tmp_path: Path) -> None:
    log = RunLog(tmp_path, log_completions=False)
    log.note({"tokens": 3, "groups_kept": 1, "max_log_ratio": 0.0, "kl": math.nan})
    log.note({"tokens": 4, "groups_kept": 0, "max_log_ratio": 0.5, "kl": 0.2})
    assert log.take_noted() == {
        "tokens": 7,  # the sum
        "groups_kept": 0.5,  # the mean
        "max_log_ratio": 0.5,  # the largest
        "kl": 0.2,
    }
