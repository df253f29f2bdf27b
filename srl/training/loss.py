"""The GRPO objective on padded completions, in the three normalisations we offer.

For token t of rollout i, with `r = exp(log_prob - old_log_prob)` and the rollout's advantage A:

    l[i,t] = -min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A) + beta * k3
    k3     = exp(ref - log_prob) - (ref - log_prob) - 1          (never negative, 0 at equality)

(k3 is multiplied by r unless told otherwise, as TRL does: DeepSeek-V3.2, arXiv 2512.02556.)

    grpo     sum_i (1 / |o_i|) sum_t l[i,t] / rollouts           DeepSeekMath, arXiv 2402.03300
    dapo     sum_i sum_t l[i,t] / tokens                         DAPO, arXiv 2503.14476
    dr_grpo  sum_i sum_t l[i,t] / (rollouts * longest allowed)   Dr. GRPO, arXiv 2503.20783

The divisors belong to the whole optimiser step, not to the tensors at hand. So the losses of its
micro-batches *add up* to the step's loss, however the step was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from srl.errors import UsageError

LossType = Literal["grpo", "dapo", "dr_grpo"]

# Two such exponentials may be multiplied, and float32 ends at exp(88.7): beyond it `min` hands back
# a gradient of 0 * inf = NaN. A token that is 17 orders of magnitude off gets no gradient instead.
_LOG_RATIO_LIMIT = 40.0


@dataclass(frozen=True)
class LossScale:
    """Totals of the whole optimiser step that the loss is divided by.

    Under data parallelism gradients are averaged over processes: give each process the totals over
    all processes divided by their number (which is why the counts are floats).

    Attributes:
        num_sequences: rollouts in the step.
        num_tokens: completion tokens in the step that count (the sum of all masks).
        max_completion_length: the longest completion allowed, not the longest one seen.
    """

    num_sequences: float
    num_tokens: float
    max_completion_length: int

    @classmethod
    def of(cls, completion_lengths: Sequence[int], max_completion_length: int) -> LossScale:
        """The totals of a step whose rollouts have these lengths."""
        return cls(len(completion_lengths), sum(completion_lengths), max_completion_length)


@dataclass(frozen=True)
class LossStats:
    """Sums over the counted tokens of one micro-batch; `a + b` gives those of both.

    The fields are scalar tensors without gradient, so that collecting them does not make the host
    wait for the device; `metrics()` does, and belongs at the end of a step.

    Attributes:
        tokens: how many tokens count.
        clipped_low: tokens whose ratio fell below the clip range under a negative advantage.
        clipped_high: tokens whose ratio rose above it under a positive one.
        kl: sum of the KL term before its weight `beta`; 0 without one.
        max_log_ratio: the largest |log_prob - old_log_prob|.
    """

    tokens: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    kl: Tensor
    max_log_ratio: Tensor

    def __add__(self, other: LossStats) -> LossStats:
        return LossStats(
            tokens=self.tokens + other.tokens,
            clipped_low=self.clipped_low + other.clipped_low,
            clipped_high=self.clipped_high + other.clipped_high,
            kl=self.kl + other.kl,
            max_log_ratio=torch.maximum(self.max_log_ratio, other.max_log_ratio),
        )

    def metrics(self) -> dict[str, float]:
        """Means per token, and the largest log ratio, as plain numbers for the log."""
        tokens = max(self.tokens.item(), 1.0)
        return {
            "clip_ratio_low": self.clipped_low.item() / tokens,
            "clip_ratio_high": self.clipped_high.item() / tokens,
            "kl": self.kl.item() / tokens,
            "max_log_ratio": self.max_log_ratio.item(),
        }


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: LossType,
    scale: LossScale,
    epsilon_low: float,
    epsilon_high: float,
    ref_log_probs: Tensor | None = None,
    beta: float = 0.0,
    use_bias_correction_kl: bool = True,
) -> tuple[Tensor, LossStats]:
    """This micro-batch's share of the optimiser step's loss (module docstring), and its figures.

    Values at masked positions are never used, not even a NaN. The arithmetic is float32 at least.

    Args:
        log_probs: [B, C] of the policy under training, with gradient.
        old_log_probs: [B, C] of the policy that sampled; None on the first update after sampling,
            where both are the same policy (the ratio is 1, its gradient is not 0).
        advantages: [B], one per rollout.
        mask: [B, C], True or 1 at the tokens that count. Build it from lengths.
        loss_type: which normalisation.
        scale: the totals of the whole optimiser step.
        epsilon_low, epsilon_high: the clip range is [1 - epsilon_low, 1 + epsilon_high].
        ref_log_probs: [B, C] of the reference policy; needed when `beta` is not 0.
        beta: weight of the KL term.
        use_bias_correction_kl: multiply k3 by the ratio, which makes its gradient that of the
            reverse KL; differs from plain k3 even where the ratio is 1. TRL's name and default.

    Raises:
        UsageError: unknown loss type, shapes that do not fit, a missing reference, totals below 1.
    """
    _check(log_probs, old_log_probs, advantages, mask, loss_type, scale, ref_log_probs, beta)
    active = mask.bool()
    weight = active.to(_wide(log_probs).dtype)  # [B, C]
    advantage = advantages.to(weight).unsqueeze(1)  # [B, 1]

    log_ratio = _difference(
        log_probs, log_probs.detach() if old_log_probs is None else old_log_probs, active
    )
    ratio = torch.exp(log_ratio)
    clipped_ratio = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    token_loss = -torch.minimum(ratio * advantage, clipped_ratio * advantage)

    kl = torch.zeros_like(weight)
    if beta != 0.0 and ref_log_probs is not None:
        ref_log_ratio = _difference(ref_log_probs, log_probs, active)
        kl = torch.exp(ref_log_ratio) - ref_log_ratio - 1
        if use_bias_correction_kl:
            kl = kl * ratio
        token_loss = token_loss + beta * kl

    token_loss = token_loss * weight
    if loss_type == "grpo":
        loss = (token_loss.sum(1) / weight.sum(1).clamp(min=1)).sum() / scale.num_sequences
    elif loss_type == "dapo":
        loss = token_loss.sum() / scale.num_tokens
    else:
        loss = token_loss.sum() / (scale.num_sequences * scale.max_completion_length)

    with torch.no_grad():
        too_low = (ratio < 1 - epsilon_low) & (advantage < 0)
        too_high = (ratio > 1 + epsilon_high) & (advantage > 0)
        stats = LossStats(
            tokens=weight.sum(),
            clipped_low=(too_low * weight).sum(),
            clipped_high=(too_high * weight).sum(),
            kl=(kl * weight).sum(),
            max_log_ratio=log_ratio.abs().max() if log_ratio.numel() else weight.sum(),
        )
    return loss, stats


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _difference(a: Tensor, b: Tensor, active: Tensor) -> Tensor:
    """`a - b` where active, and 0 elsewhere, within what exp() can bear; [B, C]."""
    difference = torch.where(active, _wide(a) - _wide(b), 0.0)
    return difference.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)


def _check(
    log_probs: Tensor,
    old_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    loss_type: str,
    scale: LossScale,
    ref_log_probs: Tensor | None,
    beta: float,
) -> None:
    if loss_type not in get_args(LossType):
        raise UsageError(f"loss_type is {loss_type!r}; allowed: {', '.join(get_args(LossType))}")
    if beta != 0.0 and ref_log_probs is None:
        raise UsageError(
            f"beta is {beta} but there are no ref_log_probs; the KL term needs the reference "
            "policy's log-probabilities, or beta: 0"
        )
    if min(scale.num_sequences, scale.num_tokens, scale.max_completion_length) <= 0:
        raise UsageError(f"{scale}: every total must be above 0; an empty step has no loss")
    if log_probs.dim() != 2:
        raise UsageError(f"log_probs has shape {tuple(log_probs.shape)}; it must be [B, C]")
    for name, tensor in (
        ("old_log_probs", old_log_probs),
        ("ref_log_probs", ref_log_probs),
        ("mask", mask),
    ):
        if tensor is not None and tensor.shape != log_probs.shape:
            raise UsageError(
                f"{name} has shape {tuple(tensor.shape)}; "
                f"it must be that of log_probs, {tuple(log_probs.shape)}"
            )
    if advantages.shape != log_probs.shape[:1]:
        raise UsageError(
            f"advantages has shape {tuple(advantages.shape)}; "
            f"it must be one per row, ({log_probs.shape[0]},)"
        )
