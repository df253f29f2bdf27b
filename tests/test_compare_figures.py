"""The statistics of a comparison: against their definitions, brute force, and a simulated world."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl.compare.figures import (
    HIGHER,
    LOWER,
    ONE_SEED,
    SAME,
    behaviour_of,
    contrast,
    figures_of,
    last_evaluation,
    row_estimate,
    row_estimate_of_counts,
    verdict,
)
from srl.stats import Estimate

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "compare"))

from interval_coverage import coverage


def attempt(
    problem: str, *, mode: str = "whole", sample: int = 0, answer: str | None = "1", **more: object
) -> dict[str, object]:
    line = {"problem_id": problem, "mode": mode, "sample": sample, "answer": answer}
    return {"when": "after", "evaluation": 0, **line, "correct": answer == "4", **more}


def seeds_of(rows: list[list[float]]) -> list[dict[str, float]]:
    return [{f"p{i}": value for i, value in enumerate(row)} for row in rows]


# ---- from lines to numbers ----------------------------------------------------------------------


def test_a_cell_is_judged_by_its_last_evaluation_after_training() -> None:
    lines = [
        attempt("a", when="before", answer="4"),
        attempt("a", when="after", evaluation=1),
        attempt("a", when="after", evaluation=2, answer="4"),  # made again after a kill
        attempt("b", when="after", evaluation=2),
        attempt("c", when="eval", evaluation=3),  # somebody's later question
    ]
    assert [line["problem_id"] for line in last_evaluation(lines)] == ["a", "b"]
    assert last_evaluation(lines)[0]["correct"] is True
    untrained = [attempt("a", when="eval"), attempt("a", when="eval", evaluation=1, answer="4")]
    assert last_evaluation(untrained) == untrained[1:]
    assert last_evaluation([]) == []


def test_figures_are_one_number_a_problem() -> None:
    lines = [attempt("a", answer="4"), attempt("b"), attempt("a", mode="steps")]
    for sample, answer in enumerate(("4", "7", "7", None), start=1):
        lines.append(attempt("a", sample=sample, answer=answer))
    for sample, answer in enumerate(("4", "4", "4", "9"), start=1):
        lines.append(attempt("b", sample=sample, answer=answer))
    assert figures_of(lines) == {
        "whole greedy": {"a": 1.0, "b": 0.0},
        "whole avg@4": {"a": 0.25, "b": 0.75},
        "whole pass@4": {"a": 1.0, "b": 1.0},
        "whole maj@4": {"a": 0.0, "b": 1.0},
        "steps greedy": {"a": 0.0},
    }
    assert figures_of([]) == {}


# ---- the interval -------------------------------------------------------------------------------


def test_a_row_by_hand() -> None:
    draw = random.Random(0)
    rows = [[float(draw.random() < share) for _ in range(40)] for share in (0.4, 0.5, 0.6)]
    found = row_estimate(seeds_of(rows))
    seed_means = [sum(row) / 40 for row in rows]
    problem_means = [sum(row[i] for row in rows) / 3 for i in range(40)]
    assert (found.value, found.n) == (pytest.approx(sum(seed_means) / 3), 40)
    # Two problems that are solved and two that are not more.
    problem_means += [1, 1, 0, 0]
    of_problems = statistics.variance(problem_means) / 44
    of_seeds = statistics.variance(seed_means) / 3
    together = of_problems + of_seeds
    degrees = together**2 / (of_problems**2 / 43 + of_seeds**2 / 2)
    assert 4 < degrees < 5
    half = 2.7764 * math.sqrt(together)
    middle = statistics.fmean(problem_means)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-4)


def test_with_many_seeds_that_differ_it_is_the_interval_of_their_means() -> None:
    draw = random.Random(1)
    shares = [draw.uniform(0.2, 0.8) for _ in range(9)]
    # All problems alike within a seed: only the seeds are drawn.
    found = row_estimate(seeds_of([[share] * 4000 for share in shares]))
    error = statistics.stdev(shares) / 3
    assert found.value == pytest.approx(statistics.fmean(shares))
    assert found.high - found.value == pytest.approx(2.306 * error, rel=0.002)
    assert found.value - found.low == pytest.approx(2.306 * error, rel=0.002)


def test_with_seeds_that_agree_it_is_the_interval_over_problems() -> None:
    draw = random.Random(2)
    hits = [float(draw.random() < 0.3) for _ in range(4000)]
    found = row_estimate(seeds_of([hits] * 3))
    assert found.high - found.low == pytest.approx(
        2 * 1.96 * statistics.stdev(hits) / math.sqrt(4000), rel=0.002
    )
    assert found == row_estimate(seeds_of([hits]))  # one seed: over problems alone


values = st.integers(1, 4).flatmap(
    lambda seeds: st.lists(
        st.lists(st.floats(0, 1), min_size=seeds, max_size=seeds), min_size=1, max_size=12
    )
)


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_problems_does_not_matter(
    columns: list[list[float]], draw: random.Random
) -> None:
    rows = [list(row) for row in zip(*columns, strict=True)]
    found = row_estimate(seeds_of(rows))
    assert 0 <= found.low <= found.value <= found.high <= 1
    draw.shuffle(columns)
    rows = [list(row) for row in zip(*columns, strict=True)]
    draw.shuffle(rows)
    again = row_estimate(seeds_of(rows))
    for one, two in ((found.low, again.low), (found.value, again.value), (found.high, again.high)):
        assert one == pytest.approx(two, abs=1e-6)


@given(values)
def test_a_contrast_is_mirrored_when_its_rows_are(columns: list[list[float]]) -> None:
    rows = seeds_of([list(row) for row in zip(*columns, strict=True)])
    other = [{problem: 1 - value**2 for problem, value in row.items()} for row in rows]
    one, two = contrast(rows, other), contrast(other, rows)
    assert one.value == pytest.approx(-two.value, abs=1e-9)
    assert one.low == pytest.approx(-two.high, abs=1e-9)
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert contrast(rows, rows).value == 0


def test_the_mean_is_the_mean_of_all_attempts() -> None:
    draw = random.Random(3)
    rows = [[float(draw.random() < 0.4) for _ in range(30)] for _ in range(3)]
    other = [[float(draw.random() < 0.7) for _ in range(30)] for _ in range(3)]
    flat, flat_other = (list(itertools.chain(*some)) for some in (rows, other))
    assert row_estimate(seeds_of(rows)).value == pytest.approx(sum(flat) / 90)
    found = contrast(seeds_of(other), seeds_of(rows))
    assert found.value == pytest.approx((sum(flat_other) - sum(flat)) / 90)
    # A row without seeds is every seed's partner.
    base = seeds_of(rows[:1])
    found = contrast(seeds_of(other), base * 3)
    assert found.value == pytest.approx(sum(flat_other) / 90 - sum(rows[0]) / 30)


def test_problems_are_told_by_their_id_not_by_their_place() -> None:
    one, two = {"a": 1.0, "b": 0.0}, {"b": 0.0, "a": 1.0}
    assert contrast([one], [two]).value == 0
    assert row_estimate([one, two]) == row_estimate([one, one])


def test_nothing_and_everything_keep_a_width() -> None:
    none, all_ = row_estimate(seeds_of([[0.0] * 50] * 3)), row_estimate(seeds_of([[1.0] * 50] * 3))
    assert (none.value, none.low) == (0.0, 0.0)
    assert 0.05 < none.high < 0.1  # Wilson's of 0 in 50 ends at .071
    assert (all_.low, all_.high) == (pytest.approx(1 - none.high, abs=1e-6), 1.0)
    same = contrast(seeds_of([[1.0] * 50] * 3), seeds_of([[1.0] * 50] * 3))
    assert same.low == pytest.approx(-same.high)
    assert 0.02 < same.high < 0.06


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        row_estimate([])
    with pytest.raises(ValueError, match="no values"):
        row_estimate([{}])
    with pytest.raises(ValueError, match="seeds of a row have solved different problems"):
        row_estimate([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(ValueError, match="rows of a contrast have solved different problems"):
        contrast([{"a": 1.0}], [{"b": 1.0}])
    with pytest.raises(ValueError, match="shorter"):
        contrast([{"a": 1.0}, {"a": 1.0}], [{"a": 1.0}])


def test_verdicts() -> None:
    assert verdict(Estimate(0.1, 0.01, 0.2, 9), 3) == HIGHER
    assert verdict(Estimate(-0.1, -0.2, -0.01, 9), 3) == LOWER
    assert verdict(Estimate(0.1, -0.01, 0.2, 9), 3) == SAME
    assert verdict(Estimate(0.1, 0.0, 0.2, 9), 3) == SAME
    assert verdict(Estimate(0.1, 0.01, 0.2, 9), 1) == ONE_SEED
    assert verdict(Estimate(0.1, 0.01, 0.2, 9), 0) == HIGHER  # two policies, neither trained


# ---- does it hold the truth? --------------------------------------------------------------------


@pytest.mark.parametrize(("seed_spread", "share"), [(0.0, 0.5), (0.2, 0.05), (0.4, 0.5)])
def test_intervals_hold_what_they_promise(seed_spread: float, share: float) -> None:
    """With three seeds; 300 comparisons have a standard error of 1.3 points."""
    found = coverage(
        share=share, problem_spread=1.0, seed_spread=seed_spread, problems=60, repeats=300
    )
    for kind in ("row", "contrast"):
        assert found[kind] > 0.915
        # And they say something: no wider than Student's t of 2 degrees of freedom explains.
        assert 1.8 < found[f"{kind} half width"] / found[f"{kind} error"] < 4.3


def test_neither_problems_alone_nor_seeds_alone_would() -> None:
    """Where seeds differ, an interval over problems alone holds the truth far too rarely."""
    draw = random.Random(0)
    held = both = 0
    for _ in range(300):
        means = [0.5 + draw.gauss(0, 0.08) for _ in range(3)]
        rows = [[float(draw.random() < mean) for _ in range(200)] for mean in means]
        found, alone = (
            row_estimate(seeds_of(rows)),
            [statistics.fmean(c) for c in zip(*rows, strict=True)],
        )
        half = 1.96 * statistics.stdev(alone) / math.sqrt(200)
        held += abs(found.value - 0.5) <= half
        both += found.low <= 0.5 <= found.high
    assert held / 300 < 0.75
    assert both / 300 > 0.915


def test_no_count_is_below_nothing() -> None:
    found = row_estimate_of_counts([{"a": 0.0, "b": 1.0}, {"a": 30.0, "b": 40.0}])
    assert (found.value, found.low) == (17.75, 0.0)
    assert found.high > 40


def test_means_of_numbers_that_are_no_shares() -> None:
    # Seeds' means 25, 27, 29: variance 4, of their mean 4/3. Problems' means 12, 22, 32, 42: 500/3,
    # of their mean 125/3. Together 43, with 43^2 / ((125/3)^2 / 3 + (4/3)^2 / 2) = 3.19 degrees of
    # freedom, so 3, whose t is 3.1824: 3.1824 * sqrt(43) = 20.869.
    seeds = [{str(p): 10.0 * p + 2 * s for p in range(1, 5)} for s in range(3)]
    found = row_estimate_of_counts(seeds)
    assert (found.value, found.n) == (27.0, 4)
    assert (found.low, found.high) == pytest.approx((6.131, 47.869), abs=1e-3)
    same = row_estimate_of_counts([{"a": 7.0, "b": 7.0}] * 3)
    assert (same.low, same.value, same.high) == (7.0, 7.0, 7.0)


def test_behaviour_is_that_of_whole_greedy_solutions() -> None:
    text = "<think>hm</think>a\n<think>let me check this</think>b"
    lines = [
        {"mode": "whole", "sample": 0, "problem_id": "p", "text": text, "completion_tokens": 9},
        {"mode": "whole", "sample": 1, "problem_id": "p", "text": "", "completion_tokens": 1},
        {"mode": "steps", "sample": 0, "problem_id": "p", "text": "", "completion_tokens": 2},
    ]
    found = behaviour_of(lines)
    assert {aspect: values["p"] for aspect, values in found.items()} == {
        "tokens": 9,
        "thoughts": 2,
        "interleaved": 1,
        "thought_share": pytest.approx(19 / 21),
        "checks": 1,
        "plans": 0,
    }
