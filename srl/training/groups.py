"""Decides which groups are worth training on; pure Python.

`collect_groups` is dynamic sampling (DAPO, arXiv 2503.14476, section 3.2; SRL, arXiv 2510.25992,
section 3.2). A group whose rewards hardly differ does not show which rollout was better. So the
whole group is dropped, and a further prompt replaces it. With a continuous reward, "std == 0" would
filter almost nothing, so the limit is an explicit epsilon. The number of rounds is bounded, so the
step also ends if the policy fails everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from srl.errors import UsageError
from srl.rollout.rollouts import Rollout
from srl.training.advantages import group_stats

FLAT_GROUP = "flat_group"


@dataclass(frozen=True)
class Group:
    """The G rollouts of one prompt."""

    rollouts: list[Rollout]

    @property
    def rewards(self) -> list[float]:
        """Returns one reward per rollout, for dynamic sampling."""
        return [rollout.reward for rollout in self.rollouts]

    def with_advantages(self, advantages: Sequence[float]) -> Group:
        """Returns the same group, each rollout with its advantage."""
        pairs = zip(self.rollouts, advantages, strict=True)
        return Group([replace(rollout, advantage=value) for rollout, value in pairs])


class RewardedGroup(Protocol):
    """What dynamic sampling needs from a group: one reward per rollout."""

    @property
    def rewards(self) -> Sequence[float]: ...


GroupT = TypeVar("GroupT", bound=RewardedGroup)


@dataclass(frozen=True)
class FilterDecision:
    """The decision to keep or to drop one group, with its figures.

    Attributes:
        mean: the mean of the group's rewards.
        std: the population std of the rewards.
        dropped_because: None for a kept group, else the reason (`flat_group`).
    """

    mean: float
    std: float
    dropped_because: str | None

    @property
    def kept(self) -> bool:
        return self.dropped_because is None


def filter_groups(
    groups_rewards: Sequence[Sequence[float]], epsilon: float
) -> list[FilterDecision]:
    """Returns one decision per group: keep it if and only if its population std is above `epsilon`.

    Raises:
        UsageError: epsilon is negative, a group is empty, or a reward is not finite.
    """
    if not epsilon >= 0:
        raise UsageError(f"dynamic sampling's epsilon is {epsilon}; it must be 0 or more")
    decisions = []
    for rewards in groups_rewards:
        mean, std = group_stats(rewards)
        decisions.append(FilterDecision(mean, std, None if std > epsilon else FLAT_GROUP))
    return decisions


@dataclass(frozen=True)
class Collected(Generic[GroupT]):
    """The result of one collection: every group tried, in the order drawn, and its decision.

    `decisions` has one entry per group, so that dropped groups can be recorded as well.
    """

    groups: list[GroupT]
    decisions: list[FilterDecision]
    rounds: int

    @property
    def kept(self) -> list[GroupT]:
        """Returns the groups to train on: fewer than needed, or none, if the rounds ran out."""
        return [g for g, d in zip(self.groups, self.decisions, strict=True) if d.kept]


def collect_groups(
    draw: Callable[[int], Sequence[GroupT]],
    *,
    needed: int,
    max_rounds: int,
    epsilon: float,
    dynamic_sampling: bool = True,
) -> Collected[GroupT]:
    """Draws groups until `needed` of them are kept or `max_rounds` rounds are used.

    Every round draws exactly as many prompts as are still missing. So no group is left over, but
    the rounds become smaller. The caller decides what an incomplete or empty batch means. Every
    loop here is bounded.

    Args:
        draw: `draw(n)` returns the groups of the next n prompts, sampled and scored.
        needed: groups wanted for this optimiser step.
        max_rounds: rounds in all, the first included; 1 means "filter, but do not refill".
        epsilon: a group is kept if the population std of its rewards is above it.
        dynamic_sampling: False draws one round and keeps every group, flat ones too.

    Raises:
        UsageError: a size is below 1, or `draw` returns another number of groups than n.
    """
    if needed < 1 or max_rounds < 1:
        raise UsageError(
            f"dynamic sampling with {needed} needed groups and {max_rounds} rounds; "
            "both must be 1 or more"
        )
    groups: list[GroupT] = []
    decisions: list[FilterDecision] = []
    missing, rounds = needed, 0
    while missing > 0 and rounds < (max_rounds if dynamic_sampling else 1):
        drawn = draw(missing)
        if len(drawn) != missing:
            raise UsageError(
                f"draw({missing}) gave {len(drawn)} groups; it must give exactly what is asked for"
            )
        if dynamic_sampling:
            decided = filter_groups([g.rewards for g in drawn], epsilon)
        else:
            decided = [FilterDecision(*group_stats(g.rewards), None) for g in drawn]
        groups += drawn
        decisions += decided
        missing -= sum(d.kept for d in decided)
        rounds += 1
    return Collected(groups, decisions, rounds)
