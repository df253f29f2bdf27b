"""Mixing sources: ratios at every place, by each measure, over epochs, ends and resume."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.types import Trajectory
from srl.config.mixture import Adaptive, Mixture
from srl.data.adaptive import AdaptiveShares, bounded
from srl.data.mixing import MixedStream
from srl.data.steps import StepExample, build_examples
from srl.errors import UsageError

NAMES = ("a", "b", "c", "d", "e")


def rows_of(lengths: dict[str, Sequence[int]]) -> list[StepExample]:
    """Rows of sources whose trajectories have so many steps; problems of their own."""
    return build_examples(
        [
            Trajectory(f"{name} {number}", tuple(f"step {i}" for i in range(steps)), source=name)
            for name, counts in lengths.items()
            for number, steps in enumerate(counts)
        ],
        targets="all",
    )


def mixed(examples: list[StepExample], mixture: Mixture) -> MixedStream:
    return MixedStream(examples, mixture, 0, tokens=[1] * len(examples))


mixtures = st.lists(
    st.tuples(st.floats(0.01, 100), st.lists(st.integers(1, 9), min_size=1, max_size=6)),
    min_size=2,
    max_size=5,
)


@settings(max_examples=150)
@given(mixtures, st.sampled_from(["row", "trajectory", "token"]), st.booleans(), st.data())
def test_shares_hold_at_every_place_within_one_unit(
    sources: list[tuple[float, list[int]]], mix_by: str, in_order: bool, data: st.DataObject
) -> None:
    """For any weights and lengths, across epochs, and across a resume at any place."""
    weights = {name: weight for name, (weight, _) in zip(NAMES, sources, strict=False)}
    examples = rows_of({name: counts for name, (_, counts) in zip(NAMES, sources, strict=False)})
    tokens = [1 + (7 * row) % 5 for row in range(len(examples))]
    mixture = Mixture(weights, mix_by=mix_by)  # type: ignore[arg-type]

    def stream() -> MixedStream:
        return MixedStream(examples, mixture, 3, tokens=tokens, in_order=in_order)

    def size(row: int) -> float:
        example = examples[row]
        return {"row": 1.0, "token": tokens[row], "trajectory": 1 / example.num_steps}[mix_by]

    first = stream()
    place = data.draw(st.integers(0, 80))
    rows = first.take(place)
    second = stream()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rows += second.take(160 - place)
    assert rows == stream().take(160)

    unit = max(
        sum(size(row) for row, one in enumerate(examples) if one.trajectory is trajectory)
        if in_order
        else max(size(row) for row, one in enumerate(examples) if one.trajectory is trajectory)
        for trajectory in {id(one.trajectory): one.trajectory for one in examples}.values()
    )
    taken = dict.fromkeys(weights, 0.0)
    for row in rows:
        taken[examples[row].source] += size(row)
        total = sum(taken.values())
        for name, share in mixture.shares.items():
            assert abs(taken[name] - share * total) <= unit * (1 + 1e-6)


@pytest.mark.parametrize(
    ("mix_by", "rows", "trajectories"), [("row", 0.2, 0.2 / 4.2), ("trajectory", 25 / 45, 0.2)]
)
def test_a_fifth_of_the_long_ones(mix_by: str, rows: float, trajectories: float) -> None:
    """Solutions of 25 steps beside solutions of 5, 10,000 draws."""
    examples = rows_of({"long": [25] * 40, "short": [5] * 40})
    mixture = Mixture({"long": 1, "short": 4}, mix_by=mix_by)  # type: ignore[arg-type]
    stream = mixed(examples, mixture)
    taken = [examples[row] for row in stream.take(10_000)]
    of_long = [one.source == "long" for one in taken]
    assert sum(of_long) / len(taken) == pytest.approx(rows, abs=0.001)
    solutions = [1 / one.num_steps for one in taken]
    long = sum(size for size, is_long in zip(solutions, of_long, strict=True) if is_long)
    assert long / sum(solutions) == pytest.approx(trajectories, abs=0.001)


def test_every_source_has_epochs_of_its_own() -> None:
    examples = rows_of({"a": [3] * 5, "b": [2] * 4})
    stream = mixed(examples, Mixture({"a": 0.75, "b": 0.25}))
    rows = stream.take(400)
    orders = set()
    for name, size in (("a", 15), ("b", 8)):
        own = [row for row in rows if examples[row].source == name]
        for start in range(0, len(own) - size + 1, size):
            epoch = own[start : start + size]
            assert len(set(epoch)) == size
            orders.add(tuple(epoch))
    assert len(orders) > 25  # every epoch another one


def test_sources_with_the_same_problems_tell_them_in_different_orders() -> None:
    examples = same_problems(30)
    stream = mixed(examples, Mixture({"a": 1, "b": 1}))
    rows = stream.take(60)
    a, b = ([examples[row].problem for row in rows if examples[row].source == n] for n in "ab")
    assert sorted(a) == sorted(b)
    assert sum(x == y for x, y in zip(a, b, strict=True)) < 10


def same_problems(count: int) -> list[StepExample]:
    """Two sources that solve the same problems, and a further one of each alone."""
    both = [Trajectory(f"p{n}", ("x",), source=name) for name in "ab" for n in range(count)]
    return build_examples(both, targets="all")


def test_problems_told_once() -> None:
    examples = same_problems(400)
    mixture = Mixture({"a": 1, "b": 3}, same_problem="once")
    told = Counter()
    seen: dict[str, set[str]] = {}
    for row in mixed(examples, mixture).take(4000):
        seen.setdefault(examples[row].problem, set()).add(examples[row].source)
    for who in seen.values():
        assert len(who) == 1
        told.update(who)
    assert told.total() == 400
    assert told["a"] / 400 == pytest.approx(0.25, abs=0.07)


def test_an_epoch_counts_the_rows_that_are_told() -> None:
    examples = same_problems(40)
    once = mixed(examples, Mixture({"a": 1, "b": 1}, same_problem="once"))
    assert once.rows_an_epoch == 40
    assert mixed(examples, Mixture({"a": 1, "b": 1})).rows_an_epoch == 80


def test_a_source_whose_problems_are_told_in_turn_ends_when_all_were_told() -> None:
    examples = same_problems(40)
    mixture = Mixture({"a": 1, "b": 1}, same_problem="in_turn", when_exhausted="stop")
    stream = mixed(examples, mixture)
    told: dict[str, set[str]] = {"a": set(), "b": set()}
    while not stream.is_over:
        example = examples[stream.take(1)[0]]
        told[example.source].add(example.problem)
    assert max(map(len, told.values())) == 40


def test_the_order_of_the_names_is_part_of_a_mixture() -> None:
    examples = same_problems(5)
    saved = mixed(examples, Mixture({"a": 1, "b": 1}))
    with pytest.raises(UsageError, match="prompt stream has mixture"):
        mixed(examples, Mixture({"b": 1, "a": 1})).load_state_dict(saved.state_dict())


def test_problems_told_in_turn() -> None:
    """In each epoch of its own a source tells some problems, in the next one the others."""
    examples = same_problems(40)
    stream = mixed(examples, Mixture({"a": 1, "b": 1}, same_problem="in_turn"))
    told: dict[tuple[str, int], list[str]] = {}
    for _ in range(400):
        epochs = {name: at[0] for name, at in stream.state_dict()["sources"].items()}
        example = examples[stream.take(1)[0]]
        told.setdefault((example.source, epochs[example.source]), []).append(example.problem)
    every = {f"p{n}" for n in range(40)}
    for epoch in range(4):
        for name in "ab":
            assert set(told[name, epoch]) | set(told[name, epoch + 1]) == every
            assert not set(told[name, epoch]) & set(told[name, epoch + 1])
            assert len(set(told[name, epoch])) == len(told[name, epoch]) > 10
        assert set(told["a", epoch]) == every - set(told["b", epoch])


@pytest.mark.parametrize("when", ["repeat", "drop", "stop"])
def test_what_happens_when_a_source_has_been_seen_whole(when: str) -> None:
    examples = rows_of({"a": [1] * 10, "b": [1] * 40})
    mixture = Mixture({"a": 1, "b": 1}, when_exhausted=when)  # type: ignore[arg-type]
    stream = mixed(examples, mixture)
    names = [examples[row].source for row in stream.take(18)]
    assert not stream.is_over
    names += [examples[row].source for row in stream.take(2)]
    assert Counter(names) == {"a": 10, "b": 10}
    assert stream.is_over == (when == "stop")
    rows = stream.take(30)
    names = [examples[row].source for row in rows]
    assert Counter(names) == ({"b": 30} if when == "drop" else {"a": 15, "b": 15})
    if when == "drop":  # both anew
        assert Counter(examples[row].source for row in stream.take(20)) == {"a": 10, "b": 10}


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"weights": {}}, "without sources"),
        (
            {"weights": {"a": 0}},
            "weight of source 'a' is 0; it must be a number from 0.000001 to 1",
        ),
        ({"weights": {"a": 1e308, "b": 1e308}}, "weight of source 'a' is 1e.308; it must be"),
        ({"weights": {"a": 1e-320, "b": 1}}, "weight of source 'a' is 1e-320"),
        ({"weights": {"a": float("nan")}}, "weight of source 'a' is nan"),
        ({"weights": {"a": True}}, "weight of source 'a' is True"),
        (
            {"weights": {"a": 1}, "mix_by": "step"},
            "mix_by is 'step'; allowed: row, trajectory, tok",
        ),
        ({"weights": {"a": 1}}, "rows of source 'b', which has no weight"),
        ({"weights": {"a": 1, "b": 1, "c": 1}}, "source 'c' has no rows to train on"),
    ],
)
def test_what_is_refused(mixture: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mixed(same_problems(3), Mixture(**mixture))  # type: ignore[arg-type]


def test_a_state_of_another_mixture_is_refused() -> None:
    examples = same_problems(5)
    saved = mixed(examples, Mixture({"a": 1, "b": 1}))
    saved.take(7)
    other = mixed(examples, Mixture({"a": 1, "b": 4}))
    with pytest.raises(UsageError, match="prompt stream has mixture"):
        other.load_state_dict(saved.state_dict())
    other.takes_any_state = True
    other.load_state_dict(saved.state_dict())
    assert other.cursor == 7
    assert Counter(examples[row].source for row in other.take(50)) == {"a": 10, "b": 40}


# ---- adaptive shares ---------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=5),
    st.floats(0.001, 0.2),
    st.floats(0.5, 1),
)
def test_bounded_shares_add_up_and_keep_their_bounds_and_order(
    parts: list[float], least: float, most: float
) -> None:
    total = sum(parts)
    shares = {
        name: part / total if total else 1 / len(parts)
        for name, part in zip(NAMES, parts, strict=False)
    }
    found = bounded(shares, least, most)
    assert sum(found.values()) == pytest.approx(1)
    assert all(least - 1e-9 <= share <= most + 1e-9 for share in found.values())
    for a in shares:
        for b in shares:
            assert not (shares[a] < shares[b] and found[a] > found[b] + 1e-9)
    if all(least <= share <= most for share in shares.values()):
        assert found == pytest.approx(shares)


def test_shares_move_to_the_source_that_has_more_signal() -> None:
    """Groups of `a` differ by .3 and half of them are kept, those of `b` by .05."""
    examples = rows_of({"a": [1] * 50, "b": [1] * 50})
    mixture = Mixture({"a": 1, "b": 1}, adaptive=Adaptive(smoothing=0.9, most=0.8, least=0.2))
    stream = mixed(examples, mixture)

    def step(stream: MixedStream, number: int) -> dict[str, float]:
        rows = stream.take(8)
        names = [examples[row].source for row in rows]
        spreads = [0.3 if name == "a" else 0.05 for name in names]
        kept = [name == "b" or (number + i) % 2 == 0 for i, name in enumerate(names)]
        return stream.count(rows, kept, spreads)

    for number in range(10):
        figures = step(stream, number)
    assert figures["signal/a"] == pytest.approx(0.15, abs=0.08)
    assert figures["signal/b"] == pytest.approx(0.05, abs=0.01)
    again = mixed(examples, mixture)
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    for number in range(10, 40):
        assert step(stream, number) == step(again, number)
    assert stream.shares["a"] == pytest.approx(0.75, abs=0.06)
    taken = Counter(examples[row].source for row in stream.take(100))
    assert taken["a"] == pytest.approx(100 * stream.shares["a"], abs=1)


def test_nothing_moves_while_there_is_nothing_to_compare() -> None:
    shares = AdaptiveShares({"a": 0.3, "b": 0.7}, Adaptive())
    shares.update(["a", "a"], [0.2, 0.4])  # none of b yet
    assert shares.shares == {"a": 0.3, "b": 0.7}
    shares = AdaptiveShares({"a": 0.3, "b": 0.7}, Adaptive())
    shares.update(["a", "b"], [0.0, 0.0])  # no source teaches anything
    assert shares.shares == {"a": 0.3, "b": 0.7}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothing": 1}, "smoothing is 1; it must be from 0 to below 1"),
        ({"least": 0.6}, "2 sources cannot all have shares from 0.6 to 0.95"),
        ({"least": 0.5, "most": 0.4}, "least is 0.5 and most is 0.4"),
    ],
)
def test_bounds_that_cannot_be(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Mixture({"a": 1, "b": 1}, adaptive=Adaptive(**settings))


def test_other_rows_that_were_accepted_start_anew() -> None:
    saved = mixed(rows_of({"a": [1] * 50, "b": [1] * 50}), Mixture({"a": 1, "b": 1}))
    saved.take(77)
    fewer = rows_of({"a": [1] * 3, "b": [1] * 3})
    other = mixed(fewer, Mixture({"a": 1, "b": 1}))
    other.takes_any_state = True
    other.load_state_dict(saved.state_dict())
    assert other.cursor == 77
    assert Counter(fewer[row].source for row in other.take(20)) == {"a": 10, "b": 10}
