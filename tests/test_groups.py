"""The prompt stream's order and state, and the bounded refill of dynamic sampling."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.data.stream import PromptStream
from srl.errors import UsageError
from srl.training.groups import FLAT_GROUP, collect_groups, filter_groups

sizes = st.integers(1, 30)
seeds = st.integers(0, 2**31)


@given(sizes, seeds)
def test_every_epoch_is_a_permutation(num_rows: int, seed: int) -> None:
    stream = PromptStream(num_rows, seed)
    for epoch in range(3):
        assert stream.epoch == epoch
        assert sorted(stream.take(num_rows)) == list(range(num_rows))


@given(sizes, seeds, st.lists(st.integers(0, 40), max_size=6))
def test_how_the_stream_is_drawn_does_not_matter(n: int, seed: int, draws: list[int]) -> None:
    stream, straight = PromptStream(n, seed), PromptStream(n, seed)
    assert [row for draw in draws for row in stream.take(draw)] == straight.take(sum(draws))


@given(sizes, seeds, st.integers(0, 80), st.integers(0, 40))
def test_a_resumed_stream_goes_on_as_a_straight_one(n: int, seed: int, cut: int, more: int) -> None:
    straight = PromptStream(n, seed)
    straight.take(cut)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = PromptStream(n, seed)
    resumed.take(3)  # whatever it did before is forgotten
    resumed.load_state_dict(state)
    expected = straight.take(more)
    assert resumed.take(more) == expected
    assert PromptStream(n, seed, cursor=cut).take(more) == expected


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    stream = PromptStream(50, seed=1)
    first, second = stream.take(50), stream.take(50)
    assert first != second
    assert first != PromptStream(50, seed=2).take(50)
    assert first != list(range(50))


def test_the_order_is_pinned() -> None:
    """A change of this order would silently break resuming runs of an earlier version."""
    assert PromptStream(8, seed=7).take(10) == [6, 3, 2, 5, 1, 7, 0, 4, 7, 5]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), seeds)
def test_rows_of_a_unit_stay_together_in_their_own_order(units: list[int], seed: int) -> None:
    stream = PromptStream(len(units), seed, units=units)
    for _ in range(3):
        order = stream.take(len(units))
        assert sorted(order) == list(range(len(units)))
        runs = [list(run) for _, run in groupby(order, key=lambda row: units[row])]
        assert len(runs) == len(set(units))
        assert all(run == sorted(run) for run in runs)


@given(sizes, seeds, st.integers(0, 80))
def test_without_units_every_row_is_its_own(n: int, seed: int, draw: int) -> None:
    expected = PromptStream(n, seed).take(draw)
    assert PromptStream(n, seed, units=range(n)).take(draw) == expected


def test_units_are_permuted_anew_in_every_epoch_and_resumed_as_rows_are() -> None:
    units = [row // 3 for row in range(60)]
    stream = PromptStream(60, seed=1, units=units)
    first, second = stream.take(60), stream.take(60)
    assert first != second
    assert first != list(range(60))
    resumed = PromptStream(60, seed=1, units=units)
    resumed.load_state_dict(PromptStream(60, seed=1, cursor=70, units=units).state_dict())
    assert resumed.take(50) == second[10:]


def test_stream_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UsageError, match="over 0 rows"):
        PromptStream(0, seed=1)
    with pytest.raises(UsageError, match="cursor of -1"):
        PromptStream(3, seed=1, cursor=-1)
    with pytest.raises(UsageError, match="2 units for 3 rows; give every row's unit"):
        PromptStream(3, seed=1, units=[0, 0])
    with pytest.raises(UsageError, match="-2 rows"):
        PromptStream(3, seed=1).take(-2)
    state = PromptStream(3, seed=1).state_dict()
    with pytest.raises(UsageError, match="num_rows 3, this run has 4"):
        PromptStream(4, seed=1).load_state_dict(state)
    with pytest.raises(UsageError, match="seed 1, this run has 2"):
        PromptStream(3, seed=2).load_state_dict(state)
    with pytest.raises(UsageError, match="no 'cursor'"):
        PromptStream(3, seed=1).load_state_dict({"num_rows": 3, "seed": 1})
    with pytest.raises(UsageError, match="cursor is -4"):
        PromptStream(3, seed=1).load_state_dict({**state, "cursor": -4})


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(0, 1))
def test_a_group_is_kept_iff_its_population_std_is_above_epsilon(
    rewards: list[float], epsilon: float
) -> None:
    [decision] = filter_groups([rewards], epsilon)
    assert decision.kept == (decision.std > epsilon)
    assert decision.dropped_because == (None if decision.kept else FLAT_GROUP)


def test_the_filter_takes_the_population_std() -> None:
    rewards = [0.0, 0.0, 0.0, 1.0]  # population std .433, sample std .5
    assert filter_groups([rewards], 0.45)[0].dropped_because == FLAT_GROUP
    assert filter_groups([rewards], 0.43)[0].kept


@pytest.mark.parametrize("size", range(2, 17))
def test_a_flat_group_is_dropped_even_with_epsilon_zero(size: int) -> None:
    assert not filter_groups([[0.1] * size], 0.0)[0].kept


def test_the_filter_refuses_what_it_cannot_judge() -> None:
    with pytest.raises(UsageError, match="epsilon is -0.1"):
        filter_groups([[0.0, 1.0]], -0.1)
    with pytest.raises(UsageError, match="epsilon is nan"):
        filter_groups([[0.0, 1.0]], math.nan)
    with pytest.raises(UsageError, match="finite"):
        filter_groups([[0.0, math.nan]], 0.1)


@dataclass(frozen=True)
class Group:
    number: int
    rewards: tuple[float, ...]


class Source:
    """Gives numbered groups, flat where told so, and remembers what it was asked for."""

    def __init__(self, flat: list[bool]) -> None:
        self.flat = flat
        self.asked: list[int] = []
        self.given = 0

    def draw(self, n: int) -> list[Group]:
        self.asked.append(n)
        groups = []
        for i in range(self.given, self.given + n):
            is_flat = i < len(self.flat) and self.flat[i]
            groups.append(Group(i, (0.3, 0.3) if is_flat else (0.0, 1.0)))
        self.given += n
        return groups


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 8), st.integers(1, 5))
def test_collection_is_exact_bounded_and_loses_nothing(
    flat: list[bool], needed: int, max_rounds: int
) -> None:
    source = Source(flat)
    got = collect_groups(source.draw, needed=needed, max_rounds=max_rounds, epsilon=0.01)
    assert got.rounds == len(source.asked) <= max_rounds
    assert [g.number for g in got.groups] == list(range(source.given))
    assert len(got.decisions) == len(got.groups)
    assert len(got.kept) <= needed
    assert len(got.kept) == needed or got.rounds == max_rounds
    assert all(g.rewards == (0.0, 1.0) for g in got.kept)
    pairs = zip(got.groups, got.decisions, strict=True)
    assert all(g.rewards == (0.3, 0.3) for g, decision in pairs if not decision.kept)


def test_each_round_draws_exactly_what_is_missing() -> None:
    source = Source([True, False, True, False, True, False])
    got = collect_groups(source.draw, needed=4, max_rounds=9, epsilon=0.0)
    assert source.asked == [4, 2, 1]
    assert [g.number for g in got.kept] == [1, 3, 5, 6]
    assert [d.dropped_because for d in got.decisions[:3]] == [FLAT_GROUP, None, FLAT_GROUP]


def test_a_policy_that_fails_everywhere_ends_the_collection() -> None:
    source = Source([True] * 1000)
    got = collect_groups(source.draw, needed=4, max_rounds=3, epsilon=0.0)
    assert source.asked == [4, 4, 4]
    assert got.kept == []


def test_without_dynamic_sampling_one_round_keeps_everything() -> None:
    source = Source([True, False, True])
    got = collect_groups(source.draw, needed=3, max_rounds=5, epsilon=0.9, dynamic_sampling=False)
    assert source.asked == [3]
    assert [g.number for g in got.kept] == [0, 1, 2]
    assert [d.std for d in got.decisions] == [0.0, 0.5, 0.0]


def test_collection_refuses_impossible_sizes_and_a_wrong_draw() -> None:
    source = Source([])
    with pytest.raises(UsageError, match="0 needed groups and 1 rounds"):
        collect_groups(source.draw, needed=0, max_rounds=1, epsilon=0.0)
    with pytest.raises(UsageError, match="2 needed groups and 0 rounds"):
        collect_groups(source.draw, needed=2, max_rounds=0, epsilon=0.0)
    with pytest.raises(UsageError, match=r"draw\(2\) gave 3 groups"):
        collect_groups(lambda n: source.draw(n + 1), needed=2, max_rounds=1, epsilon=0.0)
