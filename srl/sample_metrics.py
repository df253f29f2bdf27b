r"""What several samples of one problem are worth: avg@k, pass@k and maj@k, and their intervals.

Each figure is first one number a problem and then a mean over problems. pass@k and maj@k are the
expected values over all ways to draw k of the n samples without replacement, computed exactly, so
that nothing depends on the order of the samples: pass@k is the unbiased estimator of Chen et al.
(arXiv 2107.03374), and maj@k is made in the same way. At k = n maj@k is the vote of all samples
(self-consistency, arXiv 2203.11171).

No torch here, and nothing is drawn but the bootstrap's problems, from a fixed seed.
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
"""Whether a sample's answer is right, and the answer; None: it has none."""

RIGHT = 0
"""The vote of every sample with a right answer; wrong answers vote 1, 2, ..."""


def avg_at_k(correct: Sequence[bool]) -> float:
    """The share of a problem's samples that are right: the mean accuracy of one sample.

    Raises:
        ValueError: no samples.
    """
    if not correct:
        raise ValueError("avg@k of no samples; give 1 or more")
    return sum(correct) / len(correct)


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """The chance that one at least of k samples is right: 1 - C(n-c, k) / C(n, k), unbiased.

    Args:
        correct: whether each of a problem's n samples is right; c of them are.
        k: how many are drawn, 1 to n.

    Raises:
        ValueError: k is not between 1 and n.
    """
    n, c = len(correct), sum(correct)
    _check(k, n)
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


def maj_at_k(votes: Sequence[int | None], k: int) -> float:
    """The chance that the most frequent answer of k samples is the right one.

    Samples without an answer do not vote; where none of the k has one, the problem is not solved.
    Where several answers are the most frequent, one of them is picked blindly: a tie of t answers
    counts 1/t if the right one is among them, else 0. So no order of samples can decide a tie.

    Args:
        votes: of each of a problem's n samples: `RIGHT`, the number of its wrong answer, or None
            where it has no answer. See `votes_of`.
        k: how many are drawn, 1 to n.

    Raises:
        ValueError: k is not between 1 and n.
    """
    n = len(votes)
    _check(k, n)
    right = sum(vote == RIGHT for vote in votes)
    silent = sum(vote is None for vote in votes)
    wrong = [votes.count(vote) for vote in {*votes} - {RIGHT, None}]
    won = Fraction(0)
    for most in range(1, min(right, k) + 1):  # the right answer stands in the draw so many times
        # (tied, size) -> choices of `size` samples among the wrong answers seen so far, none of
        # which more than `most` times, and `tied` of which just as often
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
    r"""For whom each sample of a problem votes: `RIGHT`, the number of a wrong answer, or None.

    All right answers are one, however they are written, since each was found equal to the gold.
    Wrong ones are the same where `same_answer` says so: equal text or the same exact number. That
    costs nothing and needs no worker process, but two wrong answers that only mathematics could
    tell equal (``x(x+1)`` and ``x^2+x``) split their vote, which favours the right answer a little;
    where answers are numbers, as in GSM8K, AMC and AIME, there is no difference.
    """
    found: list[str] = []
    votes: list[int | None] = []
    for answer, is_right in zip(answers, correct, strict=True):
        if is_right:
            votes.append(RIGHT)
        elif answer is None:
            votes.append(None)
        else:
            same = (place for place, other in enumerate(found) if same_answer(answer, other))
            place = next(same, len(found))
            if place == len(found):
                found.append(answer)
            votes.append(place + 1)
    return votes


def sample_figures(
    problems: Sequence[Sequence[Sample]], *, only_most: bool = False
) -> dict[str, list[float]]:
    """avg@K, pass@k and maj@k, each as one number a problem, in the order of `problems`.

    Args:
        problems: of each problem its samples. K is the smallest number of them; where a problem has
            more, avg@K is the mean over all of them.
        only_most: k is K alone, else 1, 2, 4, ... and K.

    Returns:
        name -> numbers; nothing where a problem has no samples, or where there is none.
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
    """The mean of one number a problem, each from 0 to 1, with its 95 % interval over problems.

    Wilson's where every problem counts 0 or 1, else a bootstrap over problems. Where all problems
    have the same share that bootstrap has no width: then Wilson's around it.
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
    """The k that are reported: 1, 2, 4, ... and all samples."""
    sizes = {1 << power for power in range(samples.bit_length())} | {samples}
    return sorted(size for size in sizes if 1 <= size <= samples)


def _check(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, and there are {n} samples; k must be from 1 to {n}")
