"""`targets: whole` in training: RLVR from the final answer, and the one-step similarity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from conftest import read_jsonl, toy_config, toy_trajectories

from rewards import similarity
from srl.config.settings import SRLConfig
from srl.errors import UsageError
from srl.evaluation.solving import solve_whole
from srl.rollout.samplers import LocalSampler
from srl.training.trainer import SRLTrainer

PROBLEMS = toy_trajectories(48)
WHOLE = "\n".join(PROBLEMS[0].texts)


def whole_config(folder: Path, **changes: object) -> SRLConfig:
    """RLVR on the toy: a right answer earns 1, anything else 0."""
    settings = {
        "targets": "whole",
        "whole_max_completion_length": 12,
        "max_completion_length": 5,  # of a step: no row is one
        "format_failure_reward": 0.0,
        "learning_rate": 1e-3,
    }
    return toy_config(folder, **{**settings, **changes})


def test_rlvr_learns_from_answers_alone(toy_policy: Path, tmp_path: Path) -> None:
    args = whole_config(tmp_path, max_steps=12, num_generations=6, eval_on_start=True,
                        eval_strategy="steps", eval_steps=12)  # fmt: skip
    rewards = {"answer": 1.0, "similarity": 0.0}
    SRLTrainer(str(toy_policy), args, PROBLEMS[8:], PROBLEMS[:8], step_rewards=rewards).train()

    records = read_jsonl(tmp_path / "steps.jsonl")
    trained = [r for r in records if r["phase"] == "train"]
    for record in trained:
        assert (record["step_index"], record["num_steps"]) == (0, 1)
        assert record["expert_step"] == WHOLE
        assert record["previous_step"] is None
        if record["format_failure"] is None:
            right = "answer is 4" in str(record["action"])
            assert record["reward"] == record["rewards"]["answer"] == float(right)  # type: ignore[index]
            found = similarity(str(record["action"]), WHOLE)
            assert record["rewards"]["similarity"] == pytest.approx(found)  # type: ignore[index]
        else:
            assert record["reward"] == 0.0
    assert {r["format_failure"] for r in trained} > {None}
    found = [
        m["eval_accuracy"] for m in read_jsonl(tmp_path / "metrics.jsonl") if "eval_accuracy" in m
    ]
    assert found[0] == 0.0  # greedily it never answers at first
    assert found[-1] > 0.5


def test_validation_counts_the_solutions_that_were_sampled(
    toy_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = SRLTrainer(
        str(toy_policy),
        whole_config(tmp_path),
        PROBLEMS[8:],
        PROBLEMS[:8],
        step_rewards={"answer": 1.0},
    )
    written = []
    plain = LocalSampler.sample

    def counting(self, prompts, *rest, **named):  # type: ignore[no-untyped-def]
        written.append(len(prompts))
        return plain(self, prompts, *rest, **named)

    monkeypatch.setattr(LocalSampler, "sample", counting)
    found = trainer.evaluate()
    assert written == [8]  # once, not once for the rows and once for the problems
    attempts = solve_whole(
        trainer.sampler(), trainer.form, PROBLEMS[:8], params=trainer.greedy, context_limit=None
    )
    assert found["eval_accuracy"] == fmean(float(a.correct) for a in attempts)
    assert found["eval_problems"] == 8


def test_validation_asks_for_the_style_that_is_to_be_solved_in(
    toy_policy: Path, tmp_path: Path
) -> None:
    """Rows tell their own solution's tag, and attempts the one of `solve_as`."""
    tagged = [replace(one, tags={"length": "long"}) for one in PROBLEMS]
    args = whole_config(tmp_path, source_tag="length", solve_as="answer")
    trainer = SRLTrainer(
        str(toy_policy), args, tagged[8:], tagged[:8], step_rewards={"answer": 1.0}
    )
    asked: list[list[int]] = []
    encode = trainer.form.encode_whole

    def noted(problem: str) -> list[int]:
        asked.append(encode(problem))
        return asked[-1]

    trainer.form.encode_whole = noted  # type: ignore[method-assign]
    trainer.evaluate()
    told = [trainer.form.read(ids) for ids in asked]
    assert len(told) == 8
    assert all("length: answer" in text for text in told)


@pytest.mark.parametrize(
    ("targets", "validate_by", "mode"),
    [
        ("all", "auto", "steps"),
        ("all", "whole", "whole"),
        ("whole", "auto", "whole"),
        ("whole", "steps", "steps"),
    ],
)
def test_validation_is_in_the_way_that_is_asked_for(
    toy_policy: Path, tmp_path: Path, targets: str, validate_by: str, mode: str
) -> None:
    args = whole_config(
        tmp_path, targets=targets, validate_by=validate_by, max_completion_length=12
    )
    trainer = SRLTrainer(str(toy_policy), args, PROBLEMS[8:], PROBLEMS[:8])
    attempts, _ = trainer._validate()
    assert {a.mode for a in attempts} == {mode}
    assert [a.trajectory for a in attempts] == PROBLEMS[:8]


def test_a_milder_price_of_a_broken_format(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(tmp_path, max_steps=2, format_failure_reward=-0.25)
    SRLTrainer(str(toy_policy), args, PROBLEMS).train()
    broken = [r for r in read_jsonl(tmp_path / "steps.jsonl") if r["format_failure"]]
    assert broken
    assert {r["reward"] for r in broken} == {-0.25}
    with pytest.raises(UsageError, match="format_failure_reward is nan; give a finite number"):
        toy_config(tmp_path, format_failure_reward=float("nan"))
