r"""Computes avg@k, pass@k and maj@k from several samples of each problem, with intervals.

Each metric is one number per problem, and then the mean over problems. pass@k and maj@k are the
expected values over all draws of k of the n samples without replacement. They are computed exactly,
so the order of the samples does not matter. pass@k is the unbiased estimator of Chen et al. (arXiv
2107.03374); maj@k is computed in the same way. At k = n, maj@k is the majority vote of all samples
(self-consistency, arXiv 2203.11171).

This module does not import torch. Only the bootstrap draws at random, with a fixed seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import comb

from environments.answers import same_answer
from srl.stats import Estimate, bootstrap, wilson

Sample = tuple[bool, str | None]
"""Whether a sample's answer is right, and the answer; None if it has no answer."""

RIGHT = 0
"""The vote of a sample with a right answer; the different wrong answers vote 1, 2, ..."""


def avg_at_k(correct: Sequence[bool]) -> float:
    """Returns the share of a problem's samples that are right: the mean accuracy of a sample.

    Raises:
        ValueError: no samples.
    """
    if not correct:
        raise ValueError("avg@k of no samples; give 1 or more")
    return sum(correct) / len(correct)


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Returns the unbiased chance that 1 or more of k samples are right: 1 - C(n-c, k) / C(n, k).

    Args:
        correct: whether each of a problem's n samples is right; c of them are.
        k: how many samples are drawn, 1 to n.

    Raises:
        ValueError: k is not between 1 and n.
    """
    n, c = len(correct), sum(correct)
    _check(k, n)
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


def maj_at_k(votes: Sequence[int | None], k: int) -> float:
    """Returns the chance that the most frequent answer of k samples is the right answer.

    Samples without an answer do not vote. If none of the k has an answer, the problem is not
    solved. A tie of t answers counts 1/t if the right answer is among them, else 0, as for a
    random choice among the tied answers. So the order of the samples never decides a tie.

    Args:
        votes: for each of a problem's n samples: `RIGHT`, the number of its wrong answer, or None
            if it has no answer. See `votes_of`.
        k: how many samples are drawn, 1 to n.

    Raises:
        ValueError: k is not between 1 and n.
    """
    n = len(votes)
    _check(k, n)
    right = sum(vote == RIGHT for vote in votes)
    silent = sum(vote is None for vote in votes)
    wrong = [votes.count(vote) for vote in {*votes} - {RIGHT, None}]
    won = Fraction(0)
    for most in range(1, min(right, k) + 1):  # how often the draw contains the right answer
        # (tied, size) -> number of choices of `size` samples among the wrong answers seen so far,
        # such that no answer occurs more than `most` times and `tied` answers occur `most` times
        ways = Counter({(0, 0): 1})
        for count in wrong:
            after: Counter[tuple[int, int]] = Counter()
            for (tied, size), number in ways.items():
                for drawn in range(min(count, most, k - most - size) + 1):
                    after[tied + (drawn == most), size + drawn] += number * comb(count, drawn)
            ways = after
        for (tied, size), number in ways.items():
            draws = comb(right, most) * number * comb(silent, k - most - size)
            won += Fraction(draws, 1 + tied)
    return float(won / comb(n, k))


def votes_of(answers: Sequence[str | None], correct: Sequence[bool]) -> list[int | None]:
    r"""Returns each sample's vote for one problem: `RIGHT`, the number of a wrong answer, or None.

    All right answers have the same vote, however they are written, because each equals the gold
    answer. Two wrong answers have the same vote if `same_answer` says so: equal text or the same
    exact number. This is cheap and needs no worker process. But two wrong answers that only algebra
    shows to be equal (``x(x+1)`` and ``x^2+x``) split their vote, which slightly favours the right
    answer. For answers that are numbers, as in GSM8K, AMC and AIME, there is no difference.
    """
    distinct: list[str] = []
    votes: list[int | None] = []
    for answer, is_right in zip(answers, correct, strict=True):
        if is_right:
            votes.append(RIGHT)
        elif answer is None:
            votes.append(None)
        else:
            same = (place for place, other in enumerate(distinct) if same_answer(answer, other))
            place = next(same, len(distinct))
            if place == len(distinct):
                distinct.append(answer)
            votes.append(place + 1)
    return votes


def sample_figures(
    problems: Sequence[Sequence[Sample]], *, only_most: bool = False
) -> dict[str, list[float]]:
    """Returns avg@K, pass@k and maj@k, each as one number per problem, in the order of `problems`.

    Args:
        problems: the samples of each problem. K is the smallest number of samples; avg@K of a
            problem with more samples is the mean over all of its samples.
        only_most: k is only K; otherwise 1, 2, 4, ... and K.

    Returns:
        name -> numbers; empty if a problem has no samples or if there are no problems.
    """
    most = min(map(len, problems), default=0)
    if not most:
        return {}
    hits = [[correct for correct, _ in samples] for samples in problems]
    votes = [
        votes_of([answer for _, answer in samples], of)
        for samples, of in zip(problems, hits, strict=True)
    ]
    sizes = [most] if only_most else sizes_up_to(most)
    return {
        f"avg@{most}": [avg_at_k(of) for of in hits],
        **{f"pass@{k}": [pass_at_k(of, k) for of in hits] for k in sizes},
        **{f"maj@{k}": [maj_at_k(of, k) for of in votes] for k in sizes},
    }


def over_problems(values: Sequence[float]) -> Estimate:
    """Returns the mean of one number per problem, each from 0 to 1, with its 95 % interval.

    The interval is Wilson's if every number is 0 or 1, else a bootstrap over problems. If all
    problems have the same share, the bootstrap has no width; then Wilson's is used around it.
    """
    n = len(values)
    if all(value in (0.0, 1.0) for value in values):
        return wilson(round(sum(values)), n)
    drawn = bootstrap(values)
    if drawn.low < drawn.high:
        return drawn
    hits = int(sum(values))
    return replace(drawn, low=wilson(hits, n).low, high=wilson(min(n, hits + 1), n).high)


def sizes_up_to(samples: int) -> list[int]:
    """Returns the values of k to report: 1, 2, 4, ... and the number of samples."""
    sizes = {1 << power for power in range(samples.bit_length())} | {samples}
    return sorted(size for size in sizes if 1 <= size <= samples)


def _check(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, and there are {n} samples; k must be from 1 to {n}")
