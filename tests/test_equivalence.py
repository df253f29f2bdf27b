"""Runs that must be equal: same seed, other micro-batches, interrupted and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import read_jsonl, same_weights, toy_config, toy_trajectories, weights
from torch import Tensor
from transformers import TrainerCallback

import srl.training.trainer
from rewards import StepContext, similarity_reward
from srl.errors import UsageError
from srl.models.loading import load_policy
from srl.training.trainer import NothingToTrainOnError, SRLTrainer

DATA = toy_trajectories(24)


def often_flat(step: StepContext) -> float:
    """Drops every other problem's groups, so that steps refill."""
    return -1.0 if int(step.problem[-1]) % 2 else similarity_reward(step)


def make(policy: Path, folder: Path, *callbacks: TrainerCallback, **changes: object) -> SRLTrainer:
    return SRLTrainer(
        str(policy),
        toy_config(folder, **changes),
        DATA[:20],
        validation_trajectories=DATA[20:],
        step_rewards={often_flat: 1.0, similarity_reward: 0.0},
        callbacks=list(callbacks),
    )


def steps_of(folder: Path) -> bytes:
    return (folder / "steps.jsonl").read_bytes()


def metrics_of(folder: Path) -> list[dict[str, object]]:
    """Without times."""
    times = ("seconds", "runtime", "per_second")
    return [
        {name: value for name, value in line.items() if not any(word in name for word in times)}
        for line in read_jsonl(folder / "metrics.jsonl")
    ]


# ---- the same seed -----------------------------------------------------------------------------


def test_the_seed_decides_everything(toy_policy: Path, tmp_path: Path) -> None:
    found = {}
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        torch.rand(3)  # whatever was drawn before the run does not matter
        trainer = make(
            toy_policy, tmp_path / name, seed=seed, max_steps=2, eval_strategy="steps", eval_steps=1
        )
        trainer.train()
        found[name] = weights(trainer.model)
    assert same_weights(found["a"], found["b"])
    assert steps_of(tmp_path / "a") == steps_of(tmp_path / "b")
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")
    assert not same_weights(found["a"], found["c"])
    assert steps_of(tmp_path / "a") != steps_of(tmp_path / "c")


@pytest.mark.parametrize("changes", [{"prefix_tree": False}, {"rollout_token_budget": 120}])
def test_neither_trees_nor_memory_change_what_is_sampled(
    toy_policy: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    """Nor, with it, a reward or an advantage; weights may differ by the rounding of sums."""
    sampled = {}
    for name, more in (("a", {}), ("b", changes)):
        make(toy_policy, tmp_path / name, max_steps=3, optim="sgd", **more).train()
        sampled[name] = [
            {key: value for key, value in record.items() if not isinstance(value, float)}
            for record in read_jsonl(tmp_path / name / "steps.jsonl")
        ]
    assert len(sampled["a"]) > 48
    assert sampled["a"] == sampled["b"]


# ---- micro-batches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_type", "beta"), [("grpo", 0.2), ("dapo", 0.0), ("dr_grpo", 0.2), ("cispo", 0.0)]
)
def test_neither_micro_batches_nor_trees_change_a_step(
    toy_policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss_type: str,
    beta: float,
) -> None:
    start = weights(load_policy(str(toy_policy))[0])
    high = 5.0 if loss_type == "cispo" else None
    calls = 0
    step_loss = srl.training.trainer.step_loss

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return step_loss(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(srl.training.trainer, "step_loss", counted)

    def update(tokens: int, prefix_tree: bool = True) -> tuple[int, Tensor, float]:
        nonlocal calls
        calls = 0
        folder = tmp_path / f"{tokens} {prefix_tree}"
        # SGD, because Adam's first step is a sign: where the gradient is noise, so is the step.
        trainer = make(
            toy_policy, folder, max_steps=2, num_iterations=2, loss_type=loss_type, beta=beta,
            epsilon_high=high,
            entropy_coef=beta, importance_sampling_level="sequence" if beta else "token",
            mask_truncated_completions=bool(beta), micro_batch_tokens=tokens,
            prefix_tree=prefix_tree, optim="sgd", learning_rate=0.1, max_grad_norm=0, save_steps=2,
        )  # fmt: skip
        trainer.train()
        after = weights(trainer.model)
        moved = torch.cat([(after[name] - start[name]).flatten() for name in sorted(start)])
        return calls, moved, float(read_jsonl(folder / "metrics.jsonl")[1]["loss"])  # type: ignore[arg-type]

    whole_calls, whole, whole_loss = update(8192)
    assert whole_calls == 2  # two optimiser steps
    assert whole.norm() > 1e-3
    cuts = [(48, True, 8), (96, False, 8), (8192, False, 2)]
    for tokens, prefix_tree, least_calls in cuts if loss_type == "grpo" else cuts[:1]:
        cut_calls, cut, cut_loss = update(tokens, prefix_tree)
        assert cut_calls >= least_calls
        assert (cut - whole).norm() <= 1e-5 * whole.norm()
        assert cut_loss == pytest.approx(whole_loss, rel=1e-4, abs=1e-6)


# ---- resuming ----------------------------------------------------------------------------------


class Crash(TrainerCallback):
    """The process dies in the middle of a step."""

    def __init__(self, after_step: int) -> None:
        self.after_step = after_step

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step == self.after_step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_iterations": 3, "beta": 0.1, "loss_type": "dapo"},
        {
            "dynamic_sampling": False,
            "lr_scheduler_type": "cosine",
            "weight_decay": 0.1,
            "logging_steps": 4,  # no line is due at the checkpoint, nor at the end
            "eval_on_start": True,  # which is when the training starts, and not when it goes on
        },
    ],
    ids=["dropping", "several passes and KL", "schedule, lines and the start"],
)
def test_a_resumed_run_equals_a_straight_one(
    toy_policy: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    common = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        **changes,
    }
    straight = make(toy_policy, tmp_path / "a", **common)
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        make(toy_policy, tmp_path / "b", Crash(5), **common).train()
    with (tmp_path / "b" / "steps.jsonl").open("a") as log:
        log.write('{"half a line')
    assert {r["train_step"] for r in read_steps(tmp_path / "b")} > {4}  # 4 will be made again

    torch.rand(3)
    resumed = make(toy_policy, tmp_path / "b", **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert same_weights(weights(straight.model), weights(resumed.model))
    assert steps_of(tmp_path / "a") == steps_of(tmp_path / "b")
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")
    assert straight.stream.state_dict() == resumed.stream.state_dict()
    if changes.get("dynamic_sampling", True):
        assert straight.stream.cursor > 6 // int(changes.get("num_iterations", 1)) * 4  # type: ignore[call-overload]


def test_empty_steps_are_counted_across_a_resume(toy_policy: Path, tmp_path: Path) -> None:
    def make_flat(*callbacks: TrainerCallback) -> SRLTrainer:
        args = toy_config(
            tmp_path, max_steps=9, max_empty_steps=3, save_strategy="steps", save_steps=1
        )
        return SRLTrainer(
            str(toy_policy), args, DATA, step_rewards={flat: 1.0}, callbacks=list(callbacks)
        )

    def flat(step: StepContext) -> float:
        return -1.0

    with pytest.raises(KeyboardInterrupt):
        make_flat(Crash(2)).train()
    with pytest.raises(NothingToTrainOnError):
        make_flat().train(resume_from_checkpoint=True)
    assert {record["train_step"] for record in read_jsonl(tmp_path / "steps.jsonl")} == {1, 2, 3}


def test_the_newest_checkpoint_is_found(toy_policy: Path, tmp_path: Path) -> None:
    common = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        make(toy_policy, tmp_path, Crash(2), **common).train()
    resumed = make(toy_policy, tmp_path, **common)
    resumed.train(resume_from_checkpoint=True)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    empty = make(toy_policy, tmp_path / "empty", **common)
    with pytest.raises(UsageError, match="no checkpoint"):
        empty.train(resume_from_checkpoint=True)


def test_resuming_with_other_data_or_seed_is_refused(toy_policy: Path, tmp_path: Path) -> None:
    make(toy_policy, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    before = steps_of(tmp_path)
    checkpoint = str(tmp_path / "checkpoint-1")
    other_seed = make(toy_policy, tmp_path, max_steps=2, seed=1)
    with pytest.raises(UsageError, match="has seed 42, this run has 1"):
        other_seed.train(resume_from_checkpoint=checkpoint)
    other_data = SRLTrainer(str(toy_policy), toy_config(tmp_path, max_steps=2), DATA)
    with pytest.raises(UsageError, match="has num_rows 60, this run has 72"):
        other_data.train(resume_from_checkpoint=checkpoint)
    assert steps_of(tmp_path) == before


def test_resuming_with_edited_data_is_refused(toy_policy: Path, tmp_path: Path) -> None:
    """As many rows as before, but a step of one problem reads otherwise."""
    make(toy_policy, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    before = steps_of(tmp_path)
    checkpoint = str(tmp_path / "checkpoint-1")
    edited = list(DATA[:20])
    edited[7] = replace(edited[7], steps=("add the blue box", *edited[7].steps[1:]))
    for rows in (edited, DATA[19::-1]):
        other = SRLTrainer(str(toy_policy), toy_config(tmp_path, max_steps=2), rows)
        with pytest.raises(UsageError, match=r"rows of digest .*, this run has .*resume with the"):
            other.train(resume_from_checkpoint=checkpoint)
    assert steps_of(tmp_path) == before
    make(toy_policy, tmp_path, max_steps=2).train(resume_from_checkpoint=checkpoint)
    assert len(steps_of(tmp_path)) > len(before)


def read_steps(folder: Path) -> list[dict[str, object]]:
    """The whole lines of a log whose last one is not."""
    whole = folder / "whole.jsonl"
    whole.write_bytes(steps_of(folder).rpartition(b"\n")[0])
    return read_jsonl(whole)
