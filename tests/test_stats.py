"""Means, shares and their intervals, against printed tables and against their own definitions."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.stats import bootstrap, paired_change, share_of_rows, student_t, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        # Method 3 of table I in Newcombe 1998, "Two-sided confidence intervals for the single
        # proportion"
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # A mirror image of 0 in 20
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_against_known_values(hits: int, n: int, low: float, high: float) -> None:
    found = wilson(hits, n)
    assert found.value == hits / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=5.1e-5)
    assert found.n == n


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_own_equation(pair: tuple[int, int]) -> None:
    """The bounds are the shares p from which hits / n lies 1.96 standard errors away."""
    hits, n = pair
    found = wilson(hits, n)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    for p in (found.low, found.high):
        assert (p - hits / n) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / n, abs=1e-7)


def test_estimates_of_nothing_are_nan() -> None:
    for found in (wilson(0, 0), bootstrap([])):
        assert math.isnan(found.value)
        assert math.isnan(found.low)
        assert found.n == 0
        assert str(found)


def test_bootstrap() -> None:
    values = [0.0, 0.25, 0.5, 1.0, 1.0, 0.75, 0.25, 0.0] * 20
    found = bootstrap(values)
    assert found == bootstrap(values)
    mean = sum(values) / len(values)
    error = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5 / len(values) ** 0.5
    assert found.value == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)
    assert bootstrap([0.5] * 9).low == bootstrap([0.5] * 9).high == 0.5
    assert bootstrap([0.3]).n == 1


def test_rows_of_one_problem_are_not_independent() -> None:
    values = [1.0] * 50 + [0.0] * 50
    problems = [f"p{k // 10}" for k in range(100)]  # ten rows each, all alike
    found = bootstrap(values, problems)
    assert (found.value, found.n) == (0.5, 100)
    few = bootstrap([1.0] * 5 + [0.0] * 5)  # what ten problems say
    assert (found.low, found.high) == (few.low, few.high)
    assert bootstrap(values, [str(k) for k in range(100)]) == bootstrap(values)
    # Problems with more rows weigh more, as they do in the mean.
    assert bootstrap([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).value == 0.75


def test_a_share_of_rows_has_the_wider_interval() -> None:
    alike = [f"p{k // 10}" for k in range(100)]
    hits = [True] * 50 + [False] * 50
    found, rows = share_of_rows(hits, alike), wilson(50, 100)
    assert found.low < rows.low < 0.5 < rows.high < found.high
    none = share_of_rows([False] * 100, alike)  # of which a bootstrap would be certain
    assert (none.low, none.high) == (0.0, wilson(0, 100).high)
    assert math.isnan(share_of_rows([], []).value)


def test_student_t_against_printed_values() -> None:
    """Abramowitz and Stegun, table 26.10, two-sided 5 %."""
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 8: 2.306, 10: 2.228}
    printed |= {20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980}
    for degrees, value in printed.items():
        assert student_t(degrees) == pytest.approx(value, abs=0.002), degrees
    assert student_t(0) == math.inf
    assert student_t(10**6) == pytest.approx(1.959966, abs=2e-6)


@pytest.mark.parametrize("degrees", [1, 2, 4, 5, 7, 15])
def test_student_t_leaves_one_in_forty_above_it(degrees: int) -> None:
    """The density of t, summed from 0 to the point, gives .475."""
    point, cuts = student_t(degrees), 20_000
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(
        degrees * math.pi
    )
    width = point / cuts
    below = sum(
        scale * (1 + ((k + 0.5) * width) ** 2 / degrees) ** (-(degrees + 1) / 2) * width
        for k in range(cuts)
    )
    assert below == pytest.approx(0.475, abs=1e-4)


def test_a_paired_change() -> None:
    found = paired_change(8, 2, 40)
    # Half a problem more of each kind: 8.5 and 2.5 of 42; variance (11 - 36 / 42) / 42 ** 2.
    assert (found.value, found.n) == (0.15, 40)
    half = 1.959964 * math.sqrt(11 - 36 / 42) / 42
    assert (found.low, found.high) == pytest.approx((6 / 42 - half, 6 / 42 + half))
    nothing = paired_change(0, 0, 40)
    assert nothing.value == 0
    assert nothing.low == pytest.approx(-nothing.high)
    assert 0.03 < nothing.high < 0.06
    assert paired_change(2, 0, 2).high == 1.0
    assert paired_change(0, 2, 2).low == -1.0
    assert math.isnan(paired_change(0, 0, 0).value)


@pytest.mark.parametrize("n", [10, 60])
def test_a_paired_change_holds_what_it_promises(n: int) -> None:
    """Of 2,000 draws in which 30 % are won and 10 % lost, 95 % hold the true change."""
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        kinds = rng.choices(["won", "lost", "same"], [0.3, 0.1, 0.6], k=n)
        found = paired_change(kinds.count("won"), kinds.count("lost"), n)
        hits += found.low <= 0.2 <= found.high
    assert 0.93 < hits / 2000 < 0.98
