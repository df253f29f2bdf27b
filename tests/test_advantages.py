"""Group statistics and advantages against the statistics module and against their own algebra."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.errors import UsageError
from srl.training.advantages import ADVANTAGE_EPS, group_advantages, group_stats

reward = st.floats(-1, 1).map(lambda x: round(x, 6))
groups = st.lists(reward, min_size=2, max_size=16)


@given(groups)
def test_stats_equal_the_standard_library(rewards: list[float]) -> None:
    mean, std = group_stats(rewards)
    assert mean == pytest.approx(statistics.fmean(rewards), abs=1e-12)
    assert std == pytest.approx(statistics.pstdev(rewards), abs=1e-12)


@given(st.floats(-1, 1), st.integers(1, 16))
def test_equal_rewards_have_exactly_no_spread(value: float, size: int) -> None:
    assert group_stats([value] * size) == (value, 0.0)


@given(st.floats(-1, 1), st.integers(2, 16), st.sampled_from(["group", "none"]))
def test_a_flat_group_has_exactly_no_advantage(value: float, size: int, scale: str) -> None:
    assert group_advantages([value] * size, scale=scale) == [0.0] * size  # type: ignore[arg-type]


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


@given(groups, st.sampled_from(["group", "none"]))
def test_advantages_are_centred_and_keep_the_order(rewards: list[float], scale: str) -> None:
    advantages = group_advantages(rewards, scale=scale)  # type: ignore[arg-type]
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
    with pytest.raises(UsageError, match="'batch'; allowed: group, none"):
        group_advantages([0.0, 1.0], scale="batch")  # type: ignore[arg-type]
