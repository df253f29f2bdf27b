"""Group statistics and advantages against the statistics module and against their own algebra."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.errors import UsageError
from srl.training.advantages import (
    ADVANTAGE_EPS,
    ScaleRewards,
    decoupled_advantages,
    group_stats,
    step_advantages,
)

reward = st.floats(-1, 1).map(lambda x: round(x, 6))
groups = st.lists(reward, min_size=2, max_size=16)
scales = st.sampled_from(["group", "batch", "none"])


def group_advantages(rewards: list[float], scale: ScaleRewards = "group") -> list[float]:
    """Of a step with one group."""
    [advantages] = step_advantages([rewards], scale=scale)
    return advantages


@given(groups)
def test_stats_equal_the_standard_library(rewards: list[float]) -> None:
    mean, std = group_stats(rewards)
    assert mean == pytest.approx(statistics.fmean(rewards), abs=1e-12)
    assert std == pytest.approx(statistics.pstdev(rewards), abs=1e-12)


@given(st.floats(-1, 1), st.integers(1, 16))
def test_equal_rewards_have_exactly_no_spread(value: float, size: int) -> None:
    assert group_stats([value] * size) == (value, 0.0)


@given(st.floats(-1, 1), st.integers(2, 16), scales)
def test_a_flat_group_has_exactly_no_advantage(
    value: float, size: int, scale: ScaleRewards
) -> None:
    assert group_advantages([value] * size, scale=scale) == [0.0] * size


@given(groups)
def test_advantages_divide_by_the_sample_std(rewards: list[float]) -> None:
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    expected = [(r - mean) / (std + 1e-4) for r in rewards]
    assert group_advantages(rewards) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_advantage_and_the_filter_use_different_spreads() -> None:
    rewards = [-1.0, 0.2, 0.4, 0.4, 0.5, 0.6, 0.7, 1.0]
    _, population = group_stats(rewards)
    sample = (rewards[-1] - statistics.fmean(rewards)) / group_advantages(rewards)[-1]
    assert (sample - ADVANTAGE_EPS) / population == pytest.approx(math.sqrt(8 / 7))


@given(groups, scales)
def test_advantages_are_centred_and_keep_the_order(
    rewards: list[float], scale: ScaleRewards
) -> None:
    advantages = group_advantages(rewards, scale=scale)
    assert sum(advantages) == pytest.approx(0, abs=1e-9)
    for a, r in zip(advantages, rewards, strict=True):
        for b, s in zip(advantages, rewards, strict=True):
            assert (a > b) == (r > s)


@given(groups, st.floats(-5, 5))
def test_a_constant_on_every_reward_changes_nothing(rewards: list[float], shift: float) -> None:
    shifted = group_advantages([r + shift for r in rewards])
    assert shifted == pytest.approx(group_advantages(rewards), abs=1e-6)


def test_unscaled_advantages_are_the_distance_from_the_mean() -> None:
    assert group_advantages([0.0, 1.0, 0.5, 0.5], scale="none") == [-0.5, 0.5, 0.0, 0.0]


@given(st.lists(groups, min_size=1, max_size=4))
def test_a_step_divides_by_its_own_spread_or_by_each_groups(step: list[list[float]]) -> None:
    everything = [r for rewards in step for r in rewards]
    spread = statistics.stdev(everything) + 1e-4
    expected = [[(r - statistics.fmean(g)) / spread for r in g] for g in step]
    for ours, theirs in zip(step_advantages(step, scale="batch"), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    assert step_advantages(step) == [group_advantages(g) for g in step]
    assert step_advantages([]) == []


# Rewards that are normalised one by one


def by_name(*rows: tuple[float | None, float | None]) -> list[dict[str, float | None]]:
    return [{"a": a, "b": b} for a, b in rows]


@given(groups)
def test_of_one_reward_and_one_group_it_is_the_group_normalised_twice(
    rewards: list[float],
) -> None:
    [ours] = decoupled_advantages([[{"a": r} for r in rewards]], {"a": 2.0})
    expected = group_advantages([2 * a for a in group_advantages(rewards)])
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.lists(st.lists(st.tuples(reward, reward), min_size=2, max_size=5), min_size=1))
def test_the_scale_of_a_reward_does_not_matter(step: list[list[tuple[float, float]]]) -> None:
    """That is what it is for: a reward with large values does not drown the other."""
    step = [[(round(a, 1), round(b, 1)) for a, b in group] for group in step]
    results = [
        decoupled_advantages(
            [by_name(*((a * factor, b) for a, b in group)) for group in step],
            {"a": 1.0, "b": 0.5},
            eps=1e-12,
        )
        for factor in (1.0, 1000.0)
    ]
    for one, two in zip(*results, strict=True):
        assert one == pytest.approx(two, abs=1e-5)


def test_a_null_neither_counts_nor_pays() -> None:
    weights = {"a": 1.0, "b": 1.0}
    step = [by_name((1.0, None), (0.0, None), (0.5, 1.0)), by_name((None, 2.0), (None, 1.0))]
    [first, second] = decoupled_advantages(step, weights)
    # `b` has a single value in the first group, which is nothing to compare with.
    assert first == pytest.approx([-n for n in (first[1], first[0], 0.0)], abs=1e-12)
    assert second[0] == pytest.approx(-second[1])
    assert second[0] > 0
    nothing = decoupled_advantages([by_name((None, None), (None, None))], weights)
    assert nothing == [[0.0, 0.0]]


@given(st.floats(0.1, 2), st.floats(-2, -0.1))
def test_a_format_failure_is_worst_in_every_reward(plus: float, minus: float) -> None:
    """Of negative weight too, where a reward is a penalty that a failure must not escape."""
    step = [[*by_name((0.5, 0.5), (0.25, 0.25), (0.5, 0.0)), -1.0]]
    [ours] = decoupled_advantages(step, {"a": plus, "b": minus})
    assert min(ours) == ours[3]
    [flat] = decoupled_advantages([[-1.0, -1.0]], {"a": plus, "b": minus})
    assert flat == [0.0, 0.0]
    # Where a failure earns what a reward's least value is, it is as good as that.
    [rlvr] = decoupled_advantages([[{"a": 0.0}, {"a": 1.0}, 0.0]], {"a": 1.0})
    assert rlvr[0] == rlvr[2] < rlvr[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(UsageError, match="finite"):
        group_stats([0.5, bad])
    with pytest.raises(UsageError, match="finite"):
        group_advantages([0.5, bad], scale="none")


def test_wrong_use_is_named() -> None:
    with pytest.raises(UsageError, match="num_generations to 2"):
        group_advantages([1.0])
    with pytest.raises(UsageError, match="without rewards"):
        group_advantages([])
    with pytest.raises(UsageError, match="'std'; allowed: group, batch, none"):
        group_advantages([0.0, 1.0], scale="std")  # type: ignore[arg-type]
