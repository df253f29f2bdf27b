"""Computes advantages from the rewards of a step's groups of rollouts; pure Python.

GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1) centres the G rewards of one prompt and divides
them by their standard deviation. There are two kinds, which differ by 7 % at G = 8. Both are used
here on purpose:

- the *advantage* divides by the sample std (n - 1) plus 1e-4, as TRL's `GRPOTrainer` does, so that
  our updates can be compared with TRL's;
- the *filter* of dynamic sampling (`groups.py`) and the step record's `group_std` use the
  population std (n), as the SRL paper (arXiv 2510.25992) does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from srl.errors import UsageError

ScaleRewards = Literal["group", "batch", "none"]

# TRL's `GRPOTrainer` adds the same constant. A flat group gets 0 with it, instead of 0 / 0.
ADVANTAGE_EPS = 1e-4


def group_stats(rewards: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the population std of one group's rewards.

    Equal rewards give a std of exactly 0.0. Summing [0.1, 0.1, 0.1] in floating point would leave a
    residue of 1e-17, which would count as a difference if epsilon is 0.

    Raises:
        UsageError: there are no rewards, or one is not finite.
    """
    _check_rewards(rewards)
    if min(rewards) == max(rewards):
        return float(rewards[0]), 0.0
    mean = math.fsum(rewards) / len(rewards)
    return mean, math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))


def step_advantages(
    groups: Sequence[Sequence[float]], *, scale: ScaleRewards = "group", eps: float = ADVANTAGE_EPS
) -> list[list[float]]:
    """Returns one advantage per rollout of the groups that an optimiser step trains on.

    "group" gives `(r - group mean) / (group's sample std + eps)`: the GRPO paper's form with TRL's
    constants. "batch" divides by the sample std of all the step's rewards instead (Lite PPO, arXiv
    2508.08221). "none" gives `r - group mean`, as Dr. GRPO (arXiv 2503.20783) does: dividing by the
    group's std would give more weight to prompts that are nearly always or nearly never solved. The
    names are those of TRL's `scale_rewards`. A flat group has advantages of exactly 0.

    Raises:
        UsageError: a group has fewer than two rewards, one is not finite, or the scale is unknown.
    """
    if scale not in get_args(ScaleRewards):
        allowed = ", ".join(get_args(ScaleRewards))
        raise UsageError(f"scale_rewards is {scale!r}; allowed: {allowed}")
    for rewards in groups:
        if len(rewards) == 1:
            raise UsageError(
                "a group of 1 rollout has no advantage: there is nothing to compare it with; "
                "set num_generations to 2 or more"
            )
    spread = _sample_std([r for rewards in groups for r in rewards]) if scale == "batch" else None
    advantages = []
    for rewards in groups:
        mean, _ = group_stats(rewards)
        if scale == "group":
            spread = _sample_std(rewards)
        divisor = 1.0 if spread is None else spread + eps
        advantages.append([(r - mean) / divisor for r in rewards])
    return advantages


def decoupled_advantages(
    groups: Sequence[Sequence[Mapping[str, float | None] | float]],
    weights: Mapping[str, float],
    *,
    eps: float = ADVANTAGE_EPS,
) -> list[list[float]]:
    """Returns advantages from rewards that are normalised one by one before they are summed.

    This is TRL's `multi_objective_aggregation: normalize_then_sum` (GDPO, arXiv 2601.05242). Each
    reward is centred and divided by its sample std in the group. The results are summed by weight.
    The sums are centred and divided by their sample std over the step.

    A value of None counts neither in the mean nor in the std, and adds nothing to the sum. A reward
    with fewer than two values in a group adds nothing there. No reward scores a format failure. So
    the value that the failure earned is used for every reward, with its sign changed if the weight
    is negative. The failure is then worth as little in each reward as in the sum.

    Args:
        groups: each rollout's rewards by name, or the value that it earned as a format failure.
        weights: the weight of each reward.
        eps: added to every std.

    Raises:
        UsageError: a reward is not finite.
    """
    sums = []
    for group in groups:
        totals = [0.0] * len(group)
        for name, weight in weights.items():
            values = [
                rewards[name]
                if isinstance(rewards, Mapping)
                else math.copysign(rewards, rewards * weight)
                for rewards in group
            ]
            known = [value for value in values if value is not None]
            if len(known) < 2 or weight == 0:
                continue
            mean, divisor = group_stats(known)[0], _sample_std(known) + eps
            for i, value in enumerate(values):
                if value is not None:
                    totals[i] += weight * ((value - mean) / divisor)
        sums.append(totals)
    everything = [total for totals in sums for total in totals]
    if not everything:
        return []
    mean, divisor = group_stats(everything)[0], _sample_std(everything) + eps
    return [[(total - mean) / divisor for total in totals] for totals in sums]


def _sample_std(values: Sequence[float]) -> float:
    """Returns the std with n - 1; 0 for equal values, and for fewer than two."""
    if len(values) < 2:
        return 0.0
    return group_stats(values)[1] * math.sqrt(len(values) / (len(values) - 1))


def _check_rewards(rewards: Sequence[float]) -> None:
    if len(rewards) == 0:
        raise UsageError("a group without rewards; every group needs one reward per rollout")
    bad = [r for r in rewards if not math.isfinite(r)]
    if bad:
        raise UsageError(
            f"a reward of {bad[0]} among {len(rewards)} rewards of a group; "
            "rewards must be finite numbers"
        )
