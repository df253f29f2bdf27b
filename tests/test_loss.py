"""The loss against its own formula written out with loops, and its behaviour at the edges.

That it also equals TRL's, gradients included, is shown in test_trl_oracle.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from srl.errors import UsageError
from srl.training.loss import LossScale, LossStats, LossType, policy_loss

LOSS_TYPES: list[LossType] = ["grpo", "dapo", "dr_grpo"]
LOW, HIGH, LONGEST = 0.2, 0.28, 9


@dataclass(frozen=True)
class Step:
    """The tensors of one optimiser step."""

    log_probs: Tensor
    old: Tensor
    ref: Tensor
    advantages: Tensor
    mask: Tensor

    @property
    def scale(self) -> LossScale:
        return LossScale.of([int(n) for n in self.mask.sum(1)], LONGEST)

    def rows(self, start: int, stop: int) -> Step:
        parts = (self.log_probs, self.old, self.ref, self.advantages, self.mask)
        return Step(*(part[start:stop] for part in parts))

    def loss(
        self,
        loss_type: LossType,
        beta: float = 0.0,
        scale: LossScale | None = None,
        use_bias_correction_kl: bool = True,
    ) -> tuple[Tensor, LossStats]:
        return policy_loss(
            self.log_probs,
            self.old,
            self.advantages,
            self.mask,
            loss_type=loss_type,
            scale=scale or self.scale,
            epsilon_low=LOW,
            epsilon_high=HIGH,
            ref_log_probs=self.ref,
            beta=beta,
            use_bias_correction_kl=use_bias_correction_kl,
        )


def make_step(seed: int = 0, B: int = 8, C: int = 6, dtype: torch.dtype = torch.float64) -> Step:
    g = torch.Generator().manual_seed(seed)
    log_probs = -3 * torch.rand(B, C, generator=g, dtype=dtype)
    lengths = torch.randint(1, C + 1, (B,), generator=g)
    return Step(
        log_probs=log_probs.requires_grad_(),
        # Wide enough for both clip bounds to be at work
        old=(log_probs + 0.4 * torch.randn(B, C, generator=g, dtype=dtype)).detach(),
        ref=(log_probs + 0.4 * torch.randn(B, C, generator=g, dtype=dtype)).detach(),
        advantages=torch.randn(B, generator=g, dtype=dtype),
        mask=torch.arange(C) < lengths.unsqueeze(1),
    )


def written_out(step: Step, loss_type: LossType, beta: float, correction: bool) -> float:
    """The docstring's formula, one token at a time."""
    total = 0.0
    lengths = [int(n) for n in step.mask.sum(1)]
    for i, length in enumerate(lengths):
        for t in range(length):
            new, old, ref = (x[i, t].item() for x in (step.log_probs, step.old, step.ref))
            ratio, a = math.exp(new - old), float(step.advantages[i])
            clipped = min(max(ratio, 1 - LOW), 1 + HIGH)
            token = -min(ratio * a, clipped * a)
            kl = math.exp(ref - new) - (ref - new) - 1
            token += beta * kl * (ratio if correction else 1)
            total += token / length if loss_type == "grpo" else token
    if loss_type == "dapo":
        return total / sum(lengths)
    return total / len(lengths) / (LONGEST if loss_type == "dr_grpo" else 1)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.04])
@given(seed=st.integers(0, 10_000), correction=st.booleans())
def test_the_loss_is_its_formula(
    loss_type: LossType, beta: float, seed: int, correction: bool
) -> None:
    step = make_step(seed)
    loss, _ = step.loss(loss_type, beta, use_bias_correction_kl=correction)
    expected = written_out(step, loss_type, beta, correction)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_gradient_is_the_slope(loss_type: LossType) -> None:
    step = make_step(3, B=3, C=4)
    assert torch.autograd.gradcheck(
        lambda x: replace(step, log_probs=x).loss(loss_type, 0.04)[0], (step.log_probs,)
    )


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@given(seed=st.integers(0, 10_000), cuts=st.sets(st.integers(1, 7)))
def test_micro_batches_of_any_cut_add_up(loss_type: LossType, seed: int, cuts: set[int]) -> None:
    step = make_step(seed)
    whole, stats = step.loss(loss_type, 0.04)
    [expected] = torch.autograd.grad(whole, step.log_probs)

    bounds = [0, *sorted(cuts), 8]
    parts = [step.rows(a, b).loss(loss_type, 0.04, scale=step.scale) for a, b in pairwise(bounds)]
    total = torch.stack([loss for loss, _ in parts]).sum()
    [grad] = torch.autograd.grad(total, step.log_probs)
    torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)
    summed = parts[0][1]
    for _, part in parts[1:]:
        summed = summed + part
    assert summed.metrics() == pytest.approx(stats.metrics())


def test_the_first_update_after_sampling_is_the_plain_policy_gradient() -> None:
    step = make_step(1)
    loss, stats = policy_loss(
        step.log_probs,
        None,
        step.advantages,
        step.mask,
        loss_type="dapo",
        scale=step.scale,
        epsilon_low=LOW,
        epsilon_high=HIGH,
    )
    [grad] = torch.autograd.grad(loss, step.log_probs)
    expected = -step.advantages.unsqueeze(1) * step.mask / step.mask.sum()
    torch.testing.assert_close(grad, expected)
    metrics = stats.metrics()
    assert metrics == {"clip_ratio_low": 0, "clip_ratio_high": 0, "kl": 0, "max_log_ratio": 0}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_no_advantage_means_no_gradient(loss_type: LossType) -> None:
    step = make_step(2)
    flat = replace(step, advantages=torch.zeros(8, dtype=torch.float64))
    [grad] = torch.autograd.grad(flat.loss(loss_type)[0], step.log_probs)
    assert not grad.any()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e9])
def test_masked_positions_are_never_looked_at(loss_type: LossType, junk: float) -> None:
    step = make_step(4)
    whole, stats = step.loss(loss_type, 0.04)
    [expected] = torch.autograd.grad(whole, step.log_probs)

    def spoil(x: Tensor) -> Tensor:
        return x.detach().masked_fill(~step.mask, junk)

    spoilt = Step(
        spoil(step.log_probs).requires_grad_(),
        spoil(step.old),
        spoil(step.ref),
        step.advantages,
        step.mask,
    )
    loss, spoilt_stats = spoilt.loss(loss_type, 0.04)
    [grad] = torch.autograd.grad(loss, spoilt.log_probs)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(grad, expected)
    assert spoilt_stats.metrics() == stats.metrics()


@pytest.mark.parametrize("gap", [100.0, -100.0, 1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_policy_far_from_the_sampler_gives_no_nan(gap: float, advantage: float) -> None:
    log_probs = torch.full((1, 2), -5.0, requires_grad=True)
    loss, _ = policy_loss(
        log_probs,
        log_probs.detach() - gap,
        torch.tensor([advantage]),
        torch.ones(1, 2),
        loss_type="grpo",
        scale=LossScale(1, 2, 4),
        epsilon_low=LOW,
        epsilon_high=HIGH,
        ref_log_probs=log_probs.detach() + gap,
        beta=0.1,
    )
    [grad] = torch.autograd.grad(loss, log_probs)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


def test_a_row_whose_tokens_are_all_masked_adds_nothing() -> None:
    step = make_step(5)
    mask = step.mask.clone()
    mask[0] = False
    loss, _ = replace(step, mask=mask).loss("grpo", scale=step.scale)
    others, _ = step.rows(1, 8).loss("grpo", scale=step.scale)
    torch.testing.assert_close(loss, others)


def test_the_figures_count_what_they_say() -> None:
    ratios = torch.tensor([[0.5, 2.0, 1.0, 0.5], [0.5, 2.0, 2.0, 9.0]])
    _, stats = policy_loss(
        ratios.log(),
        torch.zeros(2, 4),
        torch.tensor([-1.0, 1.0]),
        torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        loss_type="grpo",
        scale=LossScale(2, 7, 4),
        epsilon_low=LOW,
        epsilon_high=HIGH,
        ref_log_probs=ratios.log() - 1,
        beta=0.5,
        use_bias_correction_kl=False,
    )
    assert stats.metrics() == pytest.approx(
        {
            "clip_ratio_low": 2 / 7,  # two halves under a negative advantage
            "clip_ratio_high": 2 / 7,  # two doubles under a positive one
            "kl": math.exp(-1) + 1 - 1,
            "max_log_ratio": math.log(2),  # the 9 is masked
        }
    )


def test_half_precision_is_widened() -> None:
    step = make_step(6, dtype=torch.float32)
    half = replace(step, log_probs=step.log_probs.detach().bfloat16().requires_grad_())
    loss, _ = half.loss("grpo")
    assert loss.dtype == torch.float32
    exact, _ = replace(half, log_probs=half.log_probs.float()).loss("grpo")
    assert loss.item() == exact.item()


def test_wrong_use_is_named() -> None:
    step = make_step()
    with pytest.raises(UsageError, match="'ppo'; allowed: grpo, dapo, dr_grpo"):
        step.loss("ppo")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="every total must be above 0"):
        step.loss("grpo", scale=LossScale(8, 0, LONGEST))
    with pytest.raises(UsageError, match=r"old_log_probs has shape \(8, 5\)"):
        replace(step, old=step.old[:, 1:]).loss("grpo")
    with pytest.raises(UsageError, match=r"advantages has shape \(7,\).*one per row, \(8,\)"):
        replace(step, advantages=step.advantages[1:]).loss("grpo")
    with pytest.raises(UsageError, match="beta is 0.1 but there are no ref_log_probs"):
        policy_loss(
            step.log_probs,
            None,
            step.advantages,
            step.mask,
            loss_type="grpo",
            scale=step.scale,
            epsilon_low=LOW,
            epsilon_high=HIGH,
            beta=0.1,
        )
    with pytest.raises(UsageError, match=r"must be \[B, C\]"):
        replace(step, log_probs=step.log_probs[0]).loss("grpo")
