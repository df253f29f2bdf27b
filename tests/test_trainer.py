"""The training loop: it learns what is rewarded, nothing else, and writes down what it did."""

from __future__ import annotations

import random
import signal
import warnings
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
import torch
from conftest import (
    TOY_STEPS,
    groups_of,
    read_jsonl,
    same_weights,
    toy_config,
    toy_trajectories,
    weights,
)
from torch import Tensor
from transformers import TrainerCallback

from environments.types import Trajectory
from rewards import RewardError, StepContext, similarity_reward
from srl.config.settings import SRLConfig
from srl.models.loading import load_policy
from srl.training.trainer import NothingToTrainOnError, SRLTrainer

STEPS, RATE = 30, 1e-3
EASY = toy_trajectories(40, long=False)  # with targets "literal", the expert always adds


def easy_config(folder: Path, **changes: object) -> SRLConfig:
    """Settings under which the toy policy learns clearly, at a rate at which it drifts little."""
    settings = {
        "targets": "literal",
        "max_steps": STEPS,
        "learning_rate": RATE,
        "num_generations": 6,
    }
    return toy_config(folder, **{**settings, **changes})


class Watch(TrainerCallback):
    """Copies the weights before the first step and after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        self.weights.append(weights(model))

    def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        self.weights.append(weights(model))


def similarity_by_step(folder: Path) -> list[float]:
    lines = read_jsonl(folder / "metrics.jsonl")
    return [float(line["rewards/similarity"]) for line in lines if "loss" in line]  # type: ignore[arg-type]


def gain(folder: Path) -> float:
    """Similarity of the last five steps minus that of the first five."""
    values = similarity_by_step(folder)
    return fmean(values[-5:]) - fmean(values[:5])


# ---- what is learned ---------------------------------------------------------------------------


def test_a_run_moves_the_weights_towards_the_expert(toy_policy: Path, tmp_path: Path) -> None:
    watch = Watch()
    SRLTrainer(str(toy_policy), easy_config(tmp_path), EASY, callbacks=[watch]).train()
    assert len(watch.weights) == STEPS + 1
    assert not any(
        same_weights(a, b) for a, b in zip(watch.weights, watch.weights[1:], strict=False)
    )
    assert gain(tmp_path) > 0.3
    exact = [line["exact"] for line in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in line]
    assert fmean(exact[:3]) < 0.4 < 0.6 < fmean(exact[-3:])  # type: ignore[type-var]


def test_a_random_reward_teaches_nothing(toy_policy: Path, tmp_path: Path) -> None:
    """One run wanders (ten seeds: mean -.009, standard deviation .08), their mean does not."""

    def gain_of(seed: int) -> float:
        rng = random.Random(seed)

        def noise(step: StepContext) -> float:
            return rng.random()

        rewards = {noise: 1.0, similarity_reward: 0.0}  # weight 0: recorded, not optimised
        args = easy_config(tmp_path / str(seed), seed=seed)
        SRLTrainer(str(toy_policy), args, EASY, step_rewards=rewards).train()
        return gain(tmp_path / str(seed))

    assert abs(fmean(gain_of(seed) for seed in range(3))) < 0.15


def test_nothing_but_the_reward_knows_the_expert(toy_policy: Path, tmp_path: Path) -> None:
    """With a reward that does not look at it, the expert's step leaves no trace in the weights."""

    def short(step: StepContext) -> float:
        return -float(len(step.action))

    def train(expert_step: str) -> dict[str, Tensor]:
        data = [Trajectory(t.problem, (expert_step, TOY_STEPS[3]), answer="4") for t in EASY]
        args = toy_config(tmp_path / expert_step, targets="literal")
        trainer = SRLTrainer(str(toy_policy), args, data, step_rewards={short: 1.0})
        trainer.train()
        return weights(trainer.model)

    assert same_weights(train(TOY_STEPS[0]), train(TOY_STEPS[1]))


def test_a_constant_reward_stops_the_run(toy_policy: Path, tmp_path: Path) -> None:
    def constant(step: StepContext) -> float:
        return -1.0  # what a format failure earns

    watch = Watch()
    args = toy_config(tmp_path, max_steps=9, max_empty_steps=2, max_sampling_rounds=3)
    trainer = SRLTrainer(
        str(toy_policy), args, EASY, step_rewards={constant: 1.0}, callbacks=[watch]
    )
    message = "nothing to train on: for 2 steps in a row every group was dropped.*constant"
    with pytest.raises(NothingToTrainOnError, match=message):
        trainer.train()
    assert same_weights(watch.weights[0], weights(trainer.model))
    records = read_jsonl(tmp_path / "steps.jsonl")
    assert len(records) == 2 * 3 * 4 * 4  # steps, rounds, prompts, rollouts
    assert {record["dropped_because"] for record in records} == {"flat_group"}


def test_a_policy_without_the_format_is_told_so_at_once_with_an_example(
    toy_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So hot that it writes any token: no completion keeps the format."""
    args = toy_config(tmp_path, temperature=1000.0, max_empty_steps=2, max_steps=4)
    with pytest.raises(NothingToTrainOnError, match="nothing to train on.* rollouts break the"):
        SRLTrainer(str(toy_policy), args, EASY).train()
    (told,) = [one for one in caplog.messages if "break the format" in one]
    records = [one for one in read_jsonl(tmp_path / "steps.jsonl") if one["train_step"] == 1]
    reasons = Counter(record["format_failure"] for record in records)
    reason, count = reasons.most_common(1)[0]
    assert told.startswith(f"step 1: {len(records)} of {len(records)} rollouts break the format")
    assert f"{count} of them as '{reason}', such as" in told
    assert "method: sft" in told
    assert all(ord(sign) >= 32 for line in told.split("\n") for sign in line)
    assert told.count("\n") <= 4


def test_a_policy_that_often_keeps_the_format_is_told_nothing(
    toy_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SRLTrainer(str(toy_policy), toy_config(tmp_path, max_steps=1), EASY).train()
    assert not [one for one in caplog.messages if "break the format" in one]


# ---- dynamic sampling --------------------------------------------------------------------------


def test_a_step_of_flat_groups_changes_no_weight(toy_policy: Path, tmp_path: Path) -> None:
    """Not by momentum either, nor by weight decay: an earlier step has filled the optimiser."""
    watch = Watch()

    def flat_at_step_2(step: StepContext) -> float:
        return -1.0 if len(watch.weights) == 2 else similarity_reward(step)

    args = toy_config(tmp_path, weight_decay=0.1, max_sampling_rounds=2, max_empty_steps=2)
    trainer = SRLTrainer(
        str(toy_policy), args, EASY, step_rewards={flat_at_step_2: 1.0}, callbacks=[watch]
    )
    trainer.train()
    start, one, two, three = watch.weights
    assert not same_weights(start, one)
    assert same_weights(one, two)
    assert not same_weights(two, three)
    lines = read_jsonl(tmp_path / "metrics.jsonl")[:3]
    assert [(line["groups_kept"], line["groups_tried"]) for line in lines] == [
        (4, 4),
        (0, 8),
        (4, 4),
    ]
    assert [line["grad_norm"] == 0 for line in lines] == [False, True, False]


def test_flat_groups_are_replaced_by_others(toy_policy: Path, tmp_path: Path) -> None:
    def flat_for_odd_problems(step: StepContext) -> float:
        return -1.0 if int(step.problem[-1]) % 2 else similarity_reward(step)

    args = toy_config(tmp_path, max_steps=2, max_sampling_rounds=20, num_generations=6)
    trainer = SRLTrainer(str(toy_policy), args, EASY, step_rewards={flat_for_odd_problems: 1.0})
    trainer.train()
    odd = {t.problem_id for t in EASY if int(t.problem[-1]) % 2}
    records = read_jsonl(tmp_path / "steps.jsonl")
    for line in read_jsonl(tmp_path / "metrics.jsonl")[:2]:
        groups = groups_of([r for r in records if r["train_step"] == line["step"]])
        kept = [group for group in groups if group[0]["kept"]]
        assert len(groups) == line["groups_tried"] > line["groups_kept"] == len(kept) == 4
        assert not odd & {group[0]["problem_id"] for group in kept}
        for group in groups:
            assert len(group) == 6
            if not group[0]["kept"]:
                assert {record["dropped_because"] for record in group} == {"flat_group"}
                assert {record["advantage"] for record in group} == {None}
    assert trainer.stream.cursor == len(groups_of(records))  # every row drawn once, in order


def test_rows_are_the_expert_steps_asked_for(toy_policy: Path, tmp_path: Path) -> None:
    def targets(name: str) -> set[int]:
        trainer = SRLTrainer(
            str(toy_policy), toy_config(tmp_path, targets=name), toy_trajectories(4)
        )
        return {example.step_index for example in trainer.examples}

    assert targets("literal") == {0, 1}
    assert targets("all") == {0, 1, 2}
    assert targets("skip_first") == {1, 2}


# ---- the update --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_one_update_is_the_formula(toy_policy: Path, tmp_path: Path, loss_type: str) -> None:
    """Against plain log_softmax and one backward, at a temperature that is not 1."""
    rate, temperature, longest = 0.1, 0.7, 12
    args = toy_config(
        tmp_path, max_steps=1, loss_type=loss_type, temperature=temperature, optim="sgd",
        learning_rate=rate, max_grad_norm=0, micro_batch_tokens=60,
    )  # fmt: skip
    trainer = SRLTrainer(str(toy_policy), args, toy_trajectories(20))
    trainer.train()
    batch = trainer._batch
    assert batch is not None
    assert len(batch.micro_batches) > 1
    assert len(batch.rollouts) == 16
    model, _ = load_policy(str(toy_policy))
    tokens = sum(len(one.completion_ids) for one in batch.rollouts)
    loss = torch.zeros(())
    for one in batch.rollouts:
        prompt, completion = list(one.prompt_ids), one.completion_ids
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        log_probs = (logits / temperature).log_softmax(-1)
        chosen = log_probs.gather(1, torch.tensor(completion)[:, None]).sum()
        share = {
            "grpo": 1 / (len(completion) * 16),
            "dapo": 1 / tokens,
            "dr_grpo": 1 / (16 * longest),
        }
        assert one.advantage is not None
        loss = loss - one.advantage * chosen * share[loss_type]
    loss.backward()
    after = dict(trainer.model.named_parameters())
    for name, before in model.named_parameters():
        assert before.grad is not None
        expected = before.detach() - rate * before.grad
        torch.testing.assert_close(after[name].detach(), expected, rtol=1e-4, atol=1e-6)


def test_a_second_pass_uses_the_old_log_probs(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(
        tmp_path, num_iterations=2, max_steps=4, epsilon=0.01, epsilon_high=0.02, learning_rate=1e-2
    )
    trainer = SRLTrainer(str(toy_policy), args, toy_trajectories(20))
    trainer.train()
    one, two, three, four = read_jsonl(tmp_path / "metrics.jsonl")[:4]
    for first, second in ((one, two), (three, four)):
        assert first["max_log_ratio"] == first["clip_ratio_low"] == first["clip_ratio_high"] == 0
        assert second["max_log_ratio"] > 0.02  # type: ignore[operator]
        assert second["clip_ratio_low"] > 0  # type: ignore[operator]
        assert second["clip_ratio_high"] > 0  # type: ignore[operator]
        assert "reward" not in second  # nothing was sampled
    assert {record["train_step"] for record in read_jsonl(tmp_path / "steps.jsonl")} == {1, 3}


def test_the_kl_term_grows_from_nothing(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(tmp_path, beta=0.1, max_steps=4)
    trainer = SRLTrainer(str(toy_policy), args, toy_trajectories(20))
    trainer.train()
    kl = [float(line["kl"]) for line in read_jsonl(tmp_path / "metrics.jsonl")[:4]]  # type: ignore[arg-type]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert min(kl[2:]) > 1e-4
    original, _ = load_policy(str(toy_policy))
    assert trainer.reference is not None
    assert same_weights(weights(trainer.reference), weights(original))


def test_the_kl_term_holds_the_policy_back(toy_policy: Path, tmp_path: Path) -> None:
    start, _ = load_policy(str(toy_policy))

    def way(beta: float) -> float:
        args = toy_config(
            tmp_path / str(beta), beta=beta, max_steps=8, optim="sgd", learning_rate=0.03
        )
        trainer = SRLTrainer(str(toy_policy), args, EASY)
        trainer.train()
        after, before = weights(trainer.model), weights(start)
        return sum((after[name] - before[name]).square().sum().item() for name in before)

    assert way(3.0) < 0.5 * way(0.0)


def test_bf16_computes_in_bf16_over_float32_weights(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(tmp_path, bf16=True, max_steps=1)
    trainer = SRLTrainer(str(toy_policy), args, toy_trajectories(20))
    seen: list[torch.dtype] = []

    def see(module: object, inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled():
            seen.append(output.dtype)

    def see_whole(module: object, inputs: object, output: object) -> None:
        if torch.is_grad_enabled() and hasattr(output, "logits"):
            pytest.fail("the update computed all logits: the head was not recognised")

    trainer.model.model.layers[0].mlp.down_proj.register_forward_hook(see)  # type: ignore[union-attr,index]
    trainer.model.register_forward_hook(see_whole)
    trainer.train()
    assert seen
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_gradient_checkpointing_changes_nothing(toy_policy: Path, tmp_path: Path) -> None:
    def train(folder: Path, **changes: object) -> dict[str, Tensor]:
        args = toy_config(folder, max_steps=2, **changes)
        trainer = SRLTrainer(str(toy_policy), args, toy_trajectories(20))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer.train()
        return weights(trainer.model)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions have another name for it
        saving = train(tmp_path / "a", gradient_checkpointing=True)
    plain = train(tmp_path / "b")
    for name in plain:
        torch.testing.assert_close(saving[name], plain[name], rtol=1e-4, atol=1e-6)


# ---- evaluation, logs, endings -----------------------------------------------------------------


def test_the_best_checkpoint_is_loaded_at_the_end(toy_policy: Path, tmp_path: Path) -> None:
    watch = Watch()
    args = toy_config(
        tmp_path,
        targets="literal",
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        greater_is_better=False,  # so that the best is not the last
    )
    trainer = SRLTrainer(
        str(toy_policy), args, EASY[:30], validation_trajectories=EASY[30:], callbacks=[watch]
    )
    trainer.train()
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    found = {line["step"]: line["eval_reward"] for line in lines if "eval_reward" in line}
    assert list(found) == [2, 4, 6]
    best = min(found, key=found.__getitem__)  # type: ignore[arg-type]
    assert best != 6
    assert trainer.state.best_metric == found[best]
    assert same_weights(weights(trainer.model), watch.weights[best])  # type: ignore[call-overload]
    assert not same_weights(weights(trainer.model), watch.weights[6])


def test_a_failing_reward_stops_the_run_and_keeps_the_records(
    toy_policy: Path, tmp_path: Path
) -> None:
    asked = 0

    def fragile(step: StepContext) -> float:
        nonlocal asked
        asked += 1
        if asked > 40:
            raise ZeroDivisionError("by the user")
        return similarity_reward(step)

    args = toy_config(tmp_path, max_steps=9)
    trainer = SRLTrainer(str(toy_policy), args, EASY, step_rewards={fragile: 1.0})
    with pytest.raises(
        RewardError, match="'fragile' raised ZeroDivisionError: by the user .* at step"
    ):
        trainer.train()
    records = read_jsonl(tmp_path / "steps.jsonl")
    assert len(records) >= 32
    assert len(records) % 4 == 0


def test_ctrl_c_twice_leaves_whole_logs(toy_policy: Path, tmp_path: Path) -> None:
    class Impatient(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            if state.global_step == 2:
                raise KeyboardInterrupt

    trainer = SRLTrainer(str(toy_policy), toy_config(tmp_path), EASY, callbacks=[Impatient()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert {r["train_step"] for r in read_jsonl(tmp_path / "steps.jsonl")} == {1, 2}


def test_the_start_line_states_the_arithmetic(toy_policy: Path, tmp_path: Path) -> None:
    trainer = SRLTrainer(str(toy_policy), toy_config(tmp_path, max_steps=30), toy_trajectories(20))
    line = trainer.arithmetic()
    assert "60 rows; 4 prompts x 4 rollouts = 16 completions a step of at most 12 tokens" in line
    assert "at most 4 sampling rounds" in line
    assert line.endswith("30 steps, about 2 epochs")


def test_python_shows_what_the_command_line_shows(
    toy_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_interrupt = signal.getsignal(signal.SIGINT)
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            seen.append(signal.getsignal(signal.SIGINT))

    args = toy_config(tmp_path / "loud", max_steps=2)
    trainer = SRLTrainer(str(toy_policy), args, toy_trajectories(20), callbacks=[Look()])
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [trainer.reward_report(), trainer.arithmetic()]
    assert [line.partition("  reward ")[0] for line in lines[2:]] == ["step 1/2", "step 2/2"]
    assert seen == [on_interrupt] * 2  # Ctrl-C is the script's own
    args = toy_config(tmp_path / "quiet", max_steps=1, disable_tqdm=True)
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    assert capsys.readouterr().out == ""


def test_a_policy_that_cannot_attend_over_trees_trains_on_repeated_rows(
    toy_policy: Path, tmp_path: Path
) -> None:
    def told(model: object, **changes: object) -> tuple[SRLTrainer, str]:
        args = toy_config(tmp_path / str(len(list(tmp_path.iterdir()))), max_steps=1, **changes)
        trainer = SRLTrainer(
            model, args, toy_trajectories(20), processing_class=load_policy(str(toy_policy))[1]
        )  # type: ignore[arg-type]
        return trainer, trainer.arithmetic()

    assert "micro-batches of at most 8,192 tree tokens;" in told(load_policy(str(toy_policy))[0])[1]
    repeated = "micro-batches of at most 8,192 tokens, prompts repeated for every rollout"
    model = load_policy(str(toy_policy))[0]
    trainer, line = told(model, prefix_tree=False)
    assert f"{repeated} (prefix_tree is off);" in line
    assert not trainer.sampler().share

    model = load_policy(str(toy_policy))[0]
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    trainer, line = told(model)
    assert f"{repeated} (its attention has dropout);" in line
    before = weights(trainer.model)
    trainer.train()
    assert not same_weights(before, weights(trainer.model))
    assert not any(micro_batch.tree for micro_batch in trainer._batch.micro_batches)  # type: ignore[union-attr]


def test_trajectories_can_come_one_after_another(toy_policy: Path, tmp_path: Path) -> None:
    """Also over the end of a step, and from one epoch into the next."""
    args = toy_config(
        tmp_path, max_steps=4, prompts_per_step=4, prompt_order="trajectory", dynamic_sampling=False
    )
    SRLTrainer(str(toy_policy), args, toy_trajectories(4)).train()
    groups = groups_of(read_jsonl(tmp_path / "steps.jsonl"))
    drawn = [(group[0]["problem_id"], group[0]["step_index"]) for group in groups]
    assert [index for _, index in drawn] == [0, 1, 2] * 5 + [0]
    problems = [problem for problem, _ in drawn]
    assert all(len(set(problems[i : i + 3])) == 1 for i in range(0, 15, 3))
    assert len(set(problems[:12])) == 4  # an epoch takes every trajectory once


def test_epochs_become_steps(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(tmp_path, max_steps=-1, num_train_epochs=2)
    assert SRLTrainer(str(toy_policy), args, toy_trajectories(20)).args.max_steps == 30
    args = toy_config(tmp_path, max_steps=-1, num_train_epochs=2, num_iterations=2, save_steps=2)
    assert SRLTrainer(str(toy_policy), args, toy_trajectories(20)).args.max_steps == 60
