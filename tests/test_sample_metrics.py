"""avg@k, pass@k and maj@k against the average over every subset, and what their intervals are."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.sample_metrics import (
    RIGHT,
    Sample,
    avg_at_k,
    maj_at_k,
    over_problems,
    pass_at_k,
    sample_figures,
    sizes_up_to,
    votes_of,
)
from srl.stats import wilson

Votes = list[int | None]


def brute_pass(correct: Sequence[bool], k: int) -> Fraction:
    drawn = list(itertools.combinations(correct, k))
    return Fraction(sum(any(one) for one in drawn), len(drawn))


def brute_maj(votes: Sequence[int | None], k: int) -> Fraction:
    """A vote in every subset; a tie counts for what a blind pick would win."""
    total = Fraction(0)
    drawn = list(itertools.combinations(votes, k))
    for one in drawn:
        counts = Counter(vote for vote in one if vote is not None)
        winners = [vote for vote, count in counts.items() if count == max(counts.values())]
        if winners:
            total += Fraction(winners.count(RIGHT), len(winners))
    return total / len(drawn)


def all_votes(n: int) -> list[Votes]:
    return [list(votes) for votes in itertools.product([None, RIGHT, 1, 2], repeat=n)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_equal_the_average_over_all_subsets(n: int) -> None:
    for votes in all_votes(n):
        correct = [vote == RIGHT for vote in votes]
        for k in range(1, n + 1):
            assert pass_at_k(correct, k) == pytest.approx(float(brute_pass(correct, k)))
            assert maj_at_k(votes, k) == pytest.approx(float(brute_maj(votes, k))), (votes, k)


def test_figures_are_one_number_a_problem() -> None:
    problems: list[list[Sample]] = [
        [(True, "4"), (False, "5"), (False, "5")],
        [(False, None)] * 3,
        [(True, "1"), (True, "1.0"), (False, "2"), (False, None)],
    ]
    found = sample_figures(problems)
    assert list(found) == ["avg@3", "pass@1", "pass@2", "pass@3", "maj@1", "maj@2", "maj@3"]
    assert found["avg@3"] == found["pass@1"] == [1 / 3, 0, 1 / 2]
    for k in (1, 2, 3):
        assert found[f"pass@{k}"] == [pass_at_k([c for c, _ in one], k) for one in problems]
        votes: list[Votes] = [[RIGHT, 1, 1], [None] * 3, [RIGHT, RIGHT, 1, None]]
        assert found[f"maj@{k}"] == [maj_at_k(one, k) for one in votes]
    most = sample_figures(problems, only_most=True)
    assert most == {name: found[name] for name in ("avg@3", "pass@3", "maj@3")}
    assert sample_figures([]) == sample_figures([[], [(True, "4")]]) == {}


@pytest.mark.parametrize("seed", range(12))
def test_equal_it_with_more_samples_and_more_answers(seed: int) -> None:
    rng = random.Random(seed)
    votes: Votes = rng.choices([None, RIGHT, 1, 2, 3, 4], [1, 3, 2, 2, 1, 1], k=rng.randint(6, 10))
    correct = [vote == RIGHT for vote in votes]
    for k in range(1, len(votes) + 1):
        assert pass_at_k(correct, k) == pytest.approx(float(brute_pass(correct, k)))
        assert maj_at_k(votes, k) == pytest.approx(float(brute_maj(votes, k))), (votes, k)


some_votes = st.lists(st.sampled_from([None, RIGHT, 1, 2, 3, 7]), min_size=1, max_size=40)


@given(some_votes, st.randoms(use_true_random=False))
def test_what_holds_for_any_samples(votes: Votes, rng: random.Random) -> None:
    correct = [vote == RIGHT for vote in votes]
    n = len(votes)
    mean = avg_at_k(correct)
    # One sample: all three are the mean accuracy.
    assert pass_at_k(correct, 1) == pytest.approx(mean)
    assert maj_at_k(votes, 1) == pytest.approx(mean)
    passes = [pass_at_k(correct, k) for k in range(1, n + 1)]
    assert passes == sorted(passes)  # more samples never find less
    assert passes[-1] == float(any(correct))
    shuffled = rng.sample(votes, n)
    for k in sizes_up_to(n):
        assert 0.0 <= maj_at_k(votes, k) <= pass_at_k(correct, k) + 1e-12
        assert maj_at_k(shuffled, k) == maj_at_k(votes, k)


@pytest.mark.parametrize(
    ("votes", "value"),
    [
        ([RIGHT, RIGHT, 1], 1.0),
        ([RIGHT, 1, 1], 0.0),
        ([RIGHT, 1], 0.5),  # a tie of two
        ([RIGHT, 1, 2], 1 / 3),  # a tie of three
        ([RIGHT, 1, 2, 2], 0.0),
        ([RIGHT, RIGHT, 1, 1, 2, 2, 3], 1 / 3),
        ([RIGHT, None, None, None], 1.0),  # who says nothing does not vote
        ([None, None], 0.0),
        ([1, 2], 0.0),  # a tie without the right answer
    ],
)
def test_the_vote_of_all_samples(votes: Votes, value: float) -> None:
    assert maj_at_k(votes, len(votes)) == pytest.approx(value)


def test_large_numbers_of_samples_are_exact() -> None:
    votes: Votes = [RIGHT] * 60 + [1] * 50 + [2] * 40 + list(range(3, 40)) + [None] * 13
    correct = [vote == RIGHT for vote in votes]
    assert pass_at_k(correct, 141) == 1.0  # no 141 samples without a right one
    assert maj_at_k(votes, 200) == 1.0
    assert maj_at_k(votes, 1) == pytest.approx(0.3)


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_must_fit(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}, and there are 3 samples; .* from 1 to 3"):
        pass_at_k([True, False, False], k)
    with pytest.raises(ValueError, match=rf"k is {k}, and there are 3 samples"):
        maj_at_k([RIGHT, 1, None], k)


def test_no_samples_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no samples"):
        avg_at_k([])


def test_who_votes_for_whom() -> None:
    answers = ["0.5", "7", r"\frac{14}{2}", None, "7.0", "x(x+1)", r"\frac12", "x^2+x", "7 cm"]
    correct = [True, False, False, False, False, False, True, False, False]
    # 7, 14/2 and 7.0 are one number; what only mathematics could tell equal is not
    assert votes_of(answers, correct) == [RIGHT, 1, 1, None, 1, 2, RIGHT, 3, 4]


def test_a_right_sample_counts_as_right_without_an_answer_of_its_own() -> None:
    assert votes_of(["4", "four"], [True, True]) == [RIGHT, RIGHT]


def test_votes_and_verdicts_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        votes_of(["1"], [True, False])


def test_shares_of_one_sample_get_wilsons_interval() -> None:
    assert over_problems([1.0, 0.0, 0.0, 1.0]) == wilson(2, 4)
    assert over_problems([0.0] * 30) == wilson(0, 30)


def test_means_of_several_samples_get_a_bootstrap_over_problems() -> None:
    values = [0.25, 0.5, 0.75, 1.0, 0.0] * 6
    found = over_problems(values)
    assert found.n == 30
    assert found.value == pytest.approx(0.5)
    # Close to the normal interval: 1.96 * sqrt(0.125 / 30) = .127
    assert found.low == pytest.approx(0.5 - 0.127, abs=0.02)
    assert found.high == pytest.approx(0.5 + 0.127, abs=0.02)


def test_an_interval_has_a_width_where_all_problems_are_alike() -> None:
    found = over_problems([0.5] * 10)
    assert found.value == 0.5
    assert found.low < 0.3 < 0.7 < found.high


def test_no_problems_no_figure() -> None:
    assert over_problems([]).n == 0


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(0, []), (1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])],
)
def test_which_k_are_reported(samples: int, sizes: list[int]) -> None:
    assert sizes_up_to(samples) == sizes
