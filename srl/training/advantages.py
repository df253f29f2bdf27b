"""From the rewards of one group of rollouts to their advantages; pure Python.

GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1) centres the G rewards of one prompt and divides
them by their spread. Two spreads are in use, 7 % apart at G = 8, and both occur here on purpose:

- the *advantage* divides by the sample std (n - 1) plus 1e-4, as TRL's `GRPOTrainer` does, so that
  our updates can be held against TRL's;
- the *filter* of dynamic sampling (`groups.py`) and the step record's `group_std` use the
  population std (n), as the SRL paper (arXiv 2510.25992) does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from srl.errors import UsageError

ScaleRewards = Literal["group", "none"]

# TRL's `GRPOTrainer` adds the same constant, which keeps a flat group at zero instead of 0 / 0.
ADVANTAGE_EPS = 1e-4


def group_stats(rewards: Sequence[float]) -> tuple[float, float]:
    """Mean and population std of one group's rewards.

    Equal rewards give a std of exactly 0.0: summing [0.1, 0.1, 0.1] in floating point leaves a
    residue of 1e-17, and with an epsilon of 0 that residue would pass for a spread.

    Raises:
        UsageError: no rewards, or one that is not finite.
    """
    _check_rewards(rewards)
    if min(rewards) == max(rewards):
        return float(rewards[0]), 0.0
    mean = math.fsum(rewards) / len(rewards)
    return mean, math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))


def group_advantages(
    rewards: Sequence[float], *, scale: ScaleRewards = "group", eps: float = ADVANTAGE_EPS
) -> list[float]:
    """One advantage per rollout of a group.

    "group" gives `(r - mean) / (sample_std + eps)`: the GRPO paper's form with TRL's constants.
    "none" gives `r - mean`, which Dr. GRPO (arXiv 2503.20783) asks for: dividing by the std weighs
    prompts that are nearly always or nearly never solved more than the rest. The names are those of
    TRL's `scale_rewards`. A flat group has advantages of exactly 0 either way.

    Raises:
        UsageError: fewer than two rewards, one that is not finite, or an unknown scale.
    """
    if scale not in get_args(ScaleRewards):
        allowed = ", ".join(get_args(ScaleRewards))
        raise UsageError(f"scale_rewards is {scale!r}; allowed: {allowed}")
    if len(rewards) == 1:
        raise UsageError(
            "a group of 1 rollout has no advantage: there is nothing to compare it with; "
            "set num_generations to 2 or more"
        )
    mean, population_std = group_stats(rewards)
    if scale == "none":
        return [r - mean for r in rewards]
    sample_std = population_std * math.sqrt(len(rewards) / (len(rewards) - 1))
    return [(r - mean) / (sample_std + eps) for r in rewards]


def _check_rewards(rewards: Sequence[float]) -> None:
    if len(rewards) == 0:
        raise UsageError("a group without rewards; every group needs one reward per rollout")
    bad = [r for r in rewards if not math.isfinite(r)]
    if bad:
        raise UsageError(
            f"a reward of {bad[0]} among {len(rewards)} rewards of a group; "
            "rewards must be finite numbers"
        )
