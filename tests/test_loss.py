"""The losses against their own formulas written out with loops, and their behaviour at the edges.

That they also equal TRL's, gradients included, is shown in test_trl_oracle.py.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from conftest import (
    read_jsonl,
    refused,
    same_weights,
    toy_config,
    toy_trajectories,
    train,
    weights,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from srl.commands.cli import main
from srl.config.parts import LOSS_TYPES, LossSettings
from srl.errors import UsageError
from srl.models.loading import load_policy
from srl.training.advantages import decoupled_advantages
from srl.training.loss import (
    BUILT_INS,
    Figures,
    FigureSums,
    LossInputs,
    LossScale,
    load_loss,
    step_loss,
)
from srl.training.progress import ProgressReport
from srl.training.trainer import SRLTrainer

LOW, HIGH, LONGEST = 0.2, 0.28, 9


def settings_of(**changes: object) -> LossSettings:
    low = {} if changes.get("loss_type") == "cispo" else {"epsilon": LOW}
    return LossSettings(**{**low, "epsilon_high": HIGH, **changes})  # type: ignore[arg-type]


any_settings = st.builds(
    settings_of,
    loss_type=st.sampled_from(LOSS_TYPES[:3]),
    delta=st.sampled_from([None, 1.5]),
    beta=st.sampled_from([0.0, 0.04]),
    use_bias_correction_kl=st.booleans(),
    importance_sampling_level=st.sampled_from(["token", "sequence"]),
    entropy_coef=st.sampled_from([0.0, 0.1, -0.1]),
) | st.builds(
    settings_of,
    loss_type=st.just("cispo"),
    epsilon_high=st.sampled_from([0.2, 1.1, 5.0]),
    beta=st.sampled_from([0.0, 0.04]),
    importance_sampling_level=st.sampled_from(["token", "sequence"]),
    entropy_coef=st.sampled_from([0.0, 0.1]),
)


@dataclass(frozen=True)
class Step:
    """The tensors of one optimiser step."""

    inputs: LossInputs

    @property
    def log_probs(self) -> Tensor:
        return self.inputs.log_probs

    @property
    def scale(self) -> LossScale:
        return LossScale.of([int(n) for n in self.inputs.mask.sum(1)], LONGEST)

    def of(self, **changes: Tensor | None) -> Step:
        return Step(replace(self.inputs, **changes))  # type: ignore[arg-type]

    def rows(self, start: int, stop: int) -> Step:
        return self.of(**{name: part[start:stop] for name, part in vars(self.inputs).items()})

    def loss(
        self, settings: LossSettings, scale: LossScale | None = None
    ) -> tuple[Tensor, Figures]:
        return step_loss(
            load_loss(settings),
            self.inputs,
            scale or self.scale,
            entropy_coef=settings.entropy_coef,
        )

    def metrics(self, settings: LossSettings) -> dict[str, float]:
        sums = FigureSums()
        sums.add(self.loss(settings)[1])
        return sums.metrics(self.scale.num_tokens)

    def gradient(self, settings: LossSettings) -> Tensor:
        return torch.autograd.grad(self.loss(settings)[0], self.log_probs)[0]


def make_step(seed: int = 0, B: int = 8, C: int = 6, dtype: torch.dtype = torch.float64) -> Step:
    g = torch.Generator().manual_seed(seed)
    log_probs = -3 * torch.rand(B, C, generator=g, dtype=dtype)
    lengths = torch.randint(1, C + 1, (B,), generator=g)
    # Wide enough for both clip bounds to be at work
    return Step(
        LossInputs(
            log_probs=log_probs.requires_grad_(),
            old_log_probs=(log_probs + 0.4 * torch.randn(B, C, generator=g, dtype=dtype)).detach(),
            ref_log_probs=(log_probs + 0.4 * torch.randn(B, C, generator=g, dtype=dtype)).detach(),
            advantages=torch.randn(B, generator=g, dtype=dtype),
            mask=torch.arange(C) < lengths.unsqueeze(1),
            entropy=torch.rand(B, C, generator=g, dtype=dtype),
        )
    )


def written_out(step: Step, s: LossSettings) -> float:
    """The docstring's formula, one token at a time."""
    total = 0.0
    given_, high = step.inputs, s.epsilon if s.epsilon_high is None else s.epsilon_high
    lengths = [int(n) for n in given_.mask.sum(1)]
    for i, length in enumerate(lengths):
        tokens = [
            [
                float(x[i, t])
                for x in (given_.log_probs.detach(), given_.old_log_probs, given_.ref_log_probs)
            ]  # type: ignore[index]
            for t in range(length)
        ]
        log_ratios = [new - old for new, old, _ in tokens]
        a = float(given_.advantages[i])
        for t, (new, _, ref) in enumerate(tokens):
            sequence = s.importance_sampling_level == "sequence"
            ratio = math.exp(sum(log_ratios) / length if sequence else log_ratios[t])
            bounded = ratio if s.delta is None else min(ratio, s.delta)
            clipped = min(max(ratio, 1 - LOW), 1 + high)
            token = -min(bounded * a, clipped * a)
            if s.loss_type == "cispo":
                token = -min(ratio, high) * a * new
            kl = math.exp(ref - new) - (ref - new) - 1
            token += s.beta * kl * (ratio if s.use_bias_correction_kl else 1)
            total += token / length if s.loss_type == "grpo" else token
    divisor = {
        "grpo": len(lengths),
        "dr_grpo": len(lengths) * LONGEST,
        "dapo": sum(lengths),
        "cispo": sum(lengths),
    }
    entropy = sum(float(given_.entropy[i, t]) for i, n in enumerate(lengths) for t in range(n))  # type: ignore[index]
    return total / divisor[s.loss_type] - s.entropy_coef * entropy / sum(lengths)


@given(seed=st.integers(0, 10_000), settings=any_settings)
def test_the_loss_is_its_formula(seed: int, settings: LossSettings) -> None:
    step = make_step(seed)
    loss, _ = step.loss(settings)
    assert loss.item() == pytest.approx(written_out(step, settings), rel=1e-10, abs=1e-12)


@given(seed=st.integers(0, 100), settings=any_settings)
def test_the_gradient_is_the_slope(seed: int, settings: LossSettings) -> None:
    step = make_step(seed, B=3, C=4)
    if settings.loss_type == "cispo":  # whose ratio is a constant: hold it still
        settings = settings_of(loss_type="cispo", epsilon_high=0.01)
    assert torch.autograd.gradcheck(
        lambda x: step.of(log_probs=x).loss(settings)[0], (step.log_probs,)
    )


@given(seed=st.integers(0, 10_000), cuts=st.sets(st.integers(1, 7)), settings=any_settings)
def test_micro_batches_of_any_cut_add_up(seed: int, cuts: set[int], settings: LossSettings) -> None:
    step = make_step(seed)
    whole, _ = step.loss(settings)
    expected = step.gradient(settings)

    bounds = [0, *sorted(cuts), 8]
    parts = [step.rows(a, b).loss(settings, scale=step.scale) for a, b in pairwise(bounds)]
    total = torch.stack([loss for loss, _ in parts]).sum()
    [grad] = torch.autograd.grad(total, step.log_probs)
    torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)
    sums = FigureSums()
    for _, figures in parts:
        sums.add(figures)
    assert sums.metrics(step.scale.num_tokens) == pytest.approx(step.metrics(settings))


def test_the_first_update_after_sampling_is_the_plain_policy_gradient() -> None:
    first = make_step(1).of(old_log_probs=None)
    settings = settings_of(loss_type="dapo")
    inputs = first.inputs
    expected = -inputs.advantages.unsqueeze(1) * inputs.mask / inputs.mask.sum()
    torch.testing.assert_close(first.gradient(settings), expected)
    metrics = first.metrics(settings)
    assert metrics.pop("entropy") > 0
    assert metrics == {"clip_ratio_low": 0, "clip_ratio_high": 0, "kl": 0, "max_log_ratio": 0}
    # CISPO's is the same, where the ratio of 1 is within its bound.
    cispo = first.gradient(settings_of(loss_type="cispo", epsilon_high=5.0))
    torch.testing.assert_close(cispo, expected)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_no_advantage_means_no_gradient(loss_type: str) -> None:
    flat = make_step(2).of(advantages=torch.zeros(8, dtype=torch.float64))
    assert not flat.gradient(settings_of(loss_type=loss_type)).any()


@given(settings=any_settings, junk=st.sampled_from([math.nan, math.inf, -1e9]))
def test_masked_positions_are_never_looked_at(settings: LossSettings, junk: float) -> None:
    step = make_step(4)

    def spoil(x: Tensor | None) -> Tensor:
        assert x is not None
        return x.detach().masked_fill(~step.inputs.mask, junk)

    given_ = step.inputs
    spoilt = step.of(
        log_probs=spoil(given_.log_probs).requires_grad_(),
        old_log_probs=spoil(given_.old_log_probs),
        ref_log_probs=spoil(given_.ref_log_probs),
        entropy=spoil(given_.entropy),
    )
    torch.testing.assert_close(spoilt.loss(settings)[0], step.loss(settings)[0])
    torch.testing.assert_close(spoilt.gradient(settings), step.gradient(settings))
    assert spoilt.metrics(settings) == step.metrics(settings)


@pytest.mark.parametrize("gap", [100.0, -100.0, 1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_policy_far_from_the_sampler_gives_no_nan(
    gap: float, advantage: float, level: str
) -> None:
    log_probs = torch.full((1, 2), -5.0, requires_grad=True)
    step = Step(
        LossInputs(
            log_probs=log_probs,
            old_log_probs=log_probs.detach() - gap,
            ref_log_probs=log_probs.detach() + gap,
            advantages=torch.tensor([advantage]),
            mask=torch.ones(1, 2),
        )
    )
    settings = settings_of(beta=0.1, importance_sampling_level=level)
    assert torch.isfinite(step.loss(settings)[0])
    assert torch.isfinite(step.gradient(settings)).all()


@given(settings=any_settings)
def test_a_row_whose_tokens_are_all_masked_adds_nothing(settings: LossSettings) -> None:
    step = make_step(5)
    mask = step.inputs.mask.clone()
    mask[0] = False
    scale = step.scale
    loss, _ = step.of(mask=mask).loss(settings, scale)
    others, _ = step.rows(1, 8).loss(settings, scale)
    torch.testing.assert_close(loss, others)


def test_the_figures_count_what_they_say() -> None:
    ratios = torch.tensor([[0.5, 2.0, 1.0, 0.5], [0.5, 2.0, 2.0, 9.0]])
    step = Step(
        LossInputs(
            log_probs=ratios.log(),
            old_log_probs=torch.zeros(2, 4),
            ref_log_probs=ratios.log() - 1,
            advantages=torch.tensor([-1.0, 1.0]),
            mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
            entropy=torch.tensor([[0.5, 0.5, 0.5, 0.5], [4.0, 0.0, 0.0, 9.0]]),
        )
    )
    common = {"kl": math.exp(-1) + 1 - 1, "entropy": 6 / 7, "max_log_ratio": math.log(2)}
    settings = settings_of(beta=0.5, use_bias_correction_kl=False)
    # Two halves under a negative advantage, two doubles under a positive one; the 9 is masked
    clipped = {"clip_ratio_low": 2 / 7, "clip_ratio_high": 2 / 7}
    assert step.metrics(settings) == pytest.approx({**clipped, **common})
    bounded = {"beta": 0.5, "use_bias_correction_kl": False}
    cispo = settings_of(loss_type="cispo", epsilon_high=1.5, **bounded)
    assert step.metrics(cispo) == pytest.approx({"clip_ratio_high": 2 / 7, **common})
    # One ratio a sequence, 2 ** (-1/4) and 2 ** (1/3): all tokens of one are clipped or none
    sequence = replace(settings, importance_sampling_level="sequence", epsilon=0.1)
    clipped = {"clip_ratio_low": 4 / 7, "clip_ratio_high": 0.0}
    assert step.metrics(sequence) == pytest.approx({**clipped, **common})


def test_half_precision_is_widened() -> None:
    step = make_step(6, dtype=torch.float32)
    half = step.of(log_probs=step.log_probs.detach().bfloat16().requires_grad_())
    loss, _ = half.loss(settings_of())
    assert loss.dtype == torch.float32
    exact, _ = half.of(log_probs=half.log_probs.float()).loss(settings_of())
    assert loss.item() == exact.item()


def test_the_names_of_the_config_are_the_built_in_losses() -> None:
    assert tuple(BUILT_INS) == LOSS_TYPES


def test_wrong_use_is_named() -> None:
    step = make_step()
    with pytest.raises(UsageError, match="'ppo'; allowed: grpo, dapo, dr_grpo, cispo; a loss of"):
        settings_of(loss_type="ppo")
    with pytest.raises(UsageError, match="every total must be above 0"):
        step.loss(settings_of(), scale=LossScale(8, 0, LONGEST))
    with pytest.raises(UsageError, match=r"old_log_probs has shape \(8, 5\)"):
        step.of(old_log_probs=step.log_probs[:, 1:])
    with pytest.raises(UsageError, match=r"advantages has shape \(7,\).*one per row, \(8,\)"):
        step.of(advantages=step.inputs.advantages[1:])
    with pytest.raises(UsageError, match=r"must be \[B, C\]"):
        step.of(log_probs=step.log_probs[0])
    with pytest.raises(UsageError, match="entropy_coef is 0.1, but the inputs have no entropy"):
        step.of(entropy=None).loss(settings_of(entropy_coef=0.1))


# A loss of one's own


MINE = """
import torch

def reinforce(inputs, scale):
    weighted = inputs.advantages[:, None] * inputs.log_probs
    return -torch.where(inputs.mask, weighted, 0).sum() / scale.num_tokens, {}

def with_settings(inputs, scale, settings):
    loss, figures = reinforce(inputs, scale)
    return loss * (1 + settings.beta), {"max_mine": inputs.advantages.max()}

def only_one(inputs): ...
def raises(inputs, scale): inputs.log_prob
def later(inputs, scale):
    return (reinforce(inputs, scale)[0] if inputs.old_log_probs is None else 1 / 0), {}
def bare(inputs, scale): return inputs.log_probs.sum()
def per_token(inputs, scale): return inputs.log_probs, {}
def plain(inputs, scale): return 3.0, {}
def no_gradient(inputs, scale): return inputs.log_probs.detach().sum(), {}
def elsewhere(inputs, scale): return torch.zeros((), requires_grad=True) * 2, {}
def flat(inputs, scale): return inputs.log_probs.sum() * 0, {}
def infinite(inputs, scale): return inputs.log_probs.sum() / 0, {}
def steep(inputs, scale): return inputs.log_probs.clamp(max=0).neg().sqrt().sum(), {}
def figures(inputs, scale): return inputs.log_probs.sum(), {"mine": 0.5}
def mean(inputs, scale): return (-inputs.advantages[:, None] * inputs.log_probs).mean(), {}
class Loss: ...
CONSTANT = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_loss_by_path_is_called_as_the_built_in_ones(mine: Path) -> None:
    step = make_step(7).of(old_log_probs=None)
    settings = settings_of(loss_type="mine.py:with_settings", beta=1.0)
    assert settings.loss_type == f"{mine / 'mine.py'}:with_settings"
    own = LossSettings(loss_type="mine.py:reinforce", entropy_coef=0.1)
    expected = step.gradient(LossSettings(loss_type="dapo"))
    torch.testing.assert_close(step.gradient(own), expected)
    torch.testing.assert_close(step.gradient(settings), 2 * expected)
    plain = own.__class__(loss_type="mine.py:reinforce")
    bonus = step.loss(plain)[0] - step.loss(own)[0]
    assert bonus.item() == pytest.approx(0.1 * step.metrics(own)["entropy"])
    assert step.metrics(settings)["loss/max_mine"] == step.inputs.advantages.max().item()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reinforc", "has no 'reinforc'; .*did you mean 'reinforce'"),
        ("only_one", "cannot be called as a loss: .*write def my_loss"),
        ("raises", "raised AttributeError: .*log_prob.* as in the first update"),
        ("later", "raised ZeroDivisionError: .* as in a later update"),
        ("bare", r"returned a tensor of shape \[\]; it must return a pair"),
        ("per_token", r"returned a tensor of shape \[2, 3\] as the loss; it must be a scalar"),
        ("plain", r"returned 3.0 \(float\) as the loss; it must be a scalar tensor"),
        ("no_gradient", "returned a loss without gradient; compute it from inputs.log_probs"),
        ("elsewhere", "with respect to inputs.log_probs is none; it must be finite"),
        ("flat", "is .*0.0.*; it must be finite, and not 0 everywhere"),
        ("infinite", "returned -inf on finite inputs"),
        ("steep", "the gradient of its loss .* is .*; it must be finite"),
        ("figures", r"returned the figure 'mine' as 0.5 \(float\); a figure is a scalar tensor"),
        (
            "mean",
            r"for two rollouts, but .* over each alone; the losses of micro-batches",
        ),
        ("Loss", "which is not a function; write def my_loss"),
        ("CONSTANT", "is 3, which is not a function"),
    ],
)
def test_a_loss_that_cannot_train_is_refused(mine: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_loss(LossSettings(loss_type=f"mine.py:{name}"))


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.1},
        {"delta": 4.0},
        {"epsilon": 0.1},
        {"epsilon_high": 0.1},
        {"importance_sampling_level": "sequence"},
        {"use_bias_correction_kl": False},
    ],
)
def test_a_setting_that_a_loss_cannot_follow_is_refused(
    mine: Path, changes: dict[str, object]
) -> None:
    [name] = changes
    with pytest.raises(UsageError, match=f"takes no settings, so {name} would do nothing"):
        load_loss(LossSettings(loss_type="mine.py:reinforce", **changes))  # type: ignore[arg-type]
    load_loss(LossSettings(loss_type="mine.py:with_settings", **changes))  # type: ignore[arg-type]


# Whole runs with it


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C while a step is being made."""

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step + 1 == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressReport, "on_step_begin", on_step_begin, raising=False)


@pytest.mark.parametrize("name", ["reinforce", "leaky"])
def test_a_run_with_a_loss_of_ones_own_trains_and_resumes(
    home: Path, toy_policy: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = str(Path(__file__).parent.parent / "experiments/custom_loss.py")
    words = ["--loss_type", f"{os.path.relpath(place)}:{name}", "--num_iterations", "2"]
    words += ["--test_problems", "0", "--validation_problems", "0", "--eval_strategy", "no"]
    assert train(*words, name="straight") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert train(*words, name="stopped") == 130
    assert yaml.safe_load(Path("runs/stopped/config.yaml").read_text())["loss_type"].startswith("/")
    assert main(["resume", "stopped"]) == 0
    straight, stopped, start = (
        weights(load_policy(str(path))[0])
        for path in ("runs/straight/policy", "runs/stopped/policy", toy_policy)
    )
    assert same_weights(straight, stopped)
    assert not same_weights(straight, start)
    steps = [one for one in read_jsonl(home / "runs/straight/metrics.jsonl") if "entropy" in one]
    assert len(steps) == 4
    for one in steps:
        assert one["entropy"] > 0  # type: ignore[operator]
        assert one["loss/surprise" if name == "reinforce" else "loss/max_ratio"] > 0  # type: ignore[operator]


def test_a_run_with_a_wrong_loss_is_refused(
    home: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, train("--loss_type", "mine.py:flat"), "mine.py:flat.*not 0 everywhere")
    refused(capsys, train("--loss_type", "mine.py:flt"), "it has: reinforce, .*did you mean")


def test_truncated_completions_are_left_out_of_the_loss_and_counted(
    toy_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, **changes: object) -> tuple[SRLTrainer, list[dict[str, object]]]:
        args = toy_config(tmp_path / name, max_steps=1, dynamic_sampling=False, **changes)
        trainer = SRLTrainer(str(toy_policy), args, toy_trajectories(20))
        trainer.train()
        lines = read_jsonl(tmp_path / name / "metrics.jsonl")
        return trainer, [line for line in lines if "entropy" in line or "masked_rollouts" in line]

    trainer, [line] = run("some", mask_truncated_completions=True, max_completion_length=8)
    batch = trainer._batch
    assert batch is not None
    assert batch.scale.num_sequences == 16
    assert 0 < line["masked_rollouts"] == 16 - len(batch.rollouts)  # type: ignore[operator]
    assert not any(one.truncated for one in batch.rollouts)
    assert batch.scale.num_tokens == sum(len(one.completion_ids) for one in batch.rollouts)
    # Where all are cut off there is nothing to learn from, and nothing changes.
    monkeypatch.setattr("srl.data.rows._why_unpayable", lambda *_: None)  # such rows are dropped
    trainer, [line] = run("all", mask_truncated_completions=True, max_completion_length=1)
    assert line["masked_rollouts"] == 16
    before = weights(load_policy(str(toy_policy))[0])
    assert same_weights(before, weights(trainer.model))


def test_rewards_normalised_one_by_one_train(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(
        tmp_path, max_steps=1, multi_objective_aggregation="normalize_then_sum", epsilon_high=5.0,
        loss_type="cispo", importance_sampling_level="sequence", entropy_coef=0.01,
    )  # fmt: skip
    rewards = {"similarity": 1.0, "progress": 0.5, "length": -0.1}
    trainer = SRLTrainer(str(toy_policy), args, toy_trajectories(20), step_rewards=rewards)
    trainer.train()
    assert trainer._batch is not None
    rollouts = trainer._batch.rollouts
    groups = [rollouts[i : i + 4] for i in range(0, len(rollouts), 4)]
    expected = decoupled_advantages(
        [[one.score.rewards if one.is_valid else -1.0 for one in group] for group in groups],
        rewards,
    )
    assert [one.advantage for one in rollouts] == [a for group in expected for a in group]
    assert not all(one.is_valid for one in rollouts)
    assert not same_weights(weights(load_policy(str(toy_policy))[0]), weights(trainer.model))
