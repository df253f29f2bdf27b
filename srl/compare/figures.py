"""Computes what a row solves, and how much two rows differ, with 95 % intervals.

A figure has one number from 0 to 1 per problem and training seed. Its value is the mean over seeds
and problems. Both were drawn at random: all seeds share the problems, and all problems share the
seeds. An interval over problems alone is valid only for these three trainings. An interval over
seeds alone is valid only for these problems.

Here the variance of the mean is the sum of two parts: the variance of the seeds' means divided by
the number of seeds, and the variance of the problems' means divided by the number of problems. The
randomness of a single attempt is in both parts, so the sum is rather too large than too small. The
half width is the root of the sum times Student's t. Its degrees of freedom are those of Welch and
Satterthwaite, rounded down: 2 for three seeds that differ much, a hundred or more for seeds that do
not. A contrast is computed in the same way from the differences, paired by problem and by seed.

Rows that solve all problems, or none, must keep a width. So the spread over problems includes four
additional problems for a row (two solved, two not: Agresti and Coull 1998) and two for a contrast
(half a problem of each kind of pair: Agresti and Min 2005).

The coverage was measured on simulated rows of 200 problems and three seeds. There were 24 worlds of
easy and hard problems and of seeds whose means have a standard deviation of 2 to 7 points, with
2,000 comparisons in each. The true value is in 94.3 to 98.9 % of the rows' intervals and in 93.9 to
99.2 % of the contrasts' intervals (`python experiments/compare/interval_coverage.py`).

Three seeds have limits. Three values say little about a spread (t is 4.30; with many seeds it is
1.96). If the seeds of a row have a standard deviation of 3 points, the interval of a contrast
extends 8 to 12 points to each side, so smaller differences cannot be detected even if they exist.
There is no correction for the number of contrasts: of twenty contrasts without a true difference,
one may well appear to have one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean

from srl.evaluation.behaviour import behaviour
from srl.sample_metrics import sample_figures
from srl.stats import Estimate, student_t

Values = Mapping[str, float]
"""Problem id -> number; the number is from 0 to 1 if it is a share."""

HIGHER, LOWER, SAME, ONE_SEED = "higher", "lower", "not told apart", "one seed"

# (value, number): the spread includes this number of additional problems with this value.
_ROW_PRIOR = ((1.0, 2.0), (0.0, 2.0))
_CONTRAST_PRIOR = ((1.0, 0.5), (-1.0, 0.5), (0.0, 1.0))


def last_evaluation(rows: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Returns the lines of eval.jsonl that count for a cell.

    These are the lines of the last evaluation after training, because an evaluation that was killed
    is made again. Later evaluations by a user (`make eval`), perhaps of other problems, do not
    count. If there was no evaluation after training, the last evaluation counts.
    """
    lines = list(rows)
    lines = [line for line in lines if line.get("when") == "after"] or lines
    last = max((_number(line) for line in lines), default=0)
    return [line for line in lines if _number(line) == last]


def figures_of(attempts: Iterable[Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """Returns every figure of one evaluation, as one number per problem.

    Args:
        attempts: lines of eval.jsonl of one evaluation.

    Returns:
        "steps greedy" and "whole greedy", and for k sampled attempts "whole avg@k", "whole pass@k"
        and "whole maj@k", or the same with "steps" -> problem id -> number. If the numbers of
        samples differ, k is the smallest.
    """
    greedy: dict[str, dict[str, bool]] = {}
    sampled: dict[str, dict[str, list[tuple[bool, str | None]]]] = {}
    for line in attempts:
        mode, problem = str(line["mode"]), str(line["problem_id"])
        correct, answer = bool(line["correct"]), line.get("answer")
        if line["sample"] == 0:
            greedy.setdefault(mode, {})[problem] = correct
        else:
            sample = (correct, None if answer is None else str(answer))
            sampled.setdefault(mode, {}).setdefault(problem, []).append(sample)
    figures: dict[str, dict[str, float]] = {}
    for mode in ("whole", "steps"):
        if mode in greedy:
            figures[f"{mode} greedy"] = {p: float(hit) for p, hit in greedy[mode].items()}
        if mode not in sampled:
            continue
        for name, values in sample_figures([*sampled[mode].values()], only_most=True).items():
            figures[f"{mode} {name}"] = dict(zip(sampled[mode], values, strict=True))
    return figures


def behaviour_of(attempts: Iterable[Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """Returns aspect of `Behaviour` -> problem id -> number, for greedy whole solutions."""
    by_aspect: dict[str, dict[str, float]] = {}
    for line in attempts:
        if (line["mode"], line["sample"]) == ("whole", 0):
            shown = behaviour(str(line.get("text", "")), int(str(line["completion_tokens"])))
            for aspect, value in asdict(shown).items():
                by_aspect.setdefault(aspect, {})[str(line["problem_id"])] = float(value)
    return by_aspect


def row_estimate_of_counts(seeds: Sequence[Values]) -> Estimate:
    """Returns `row_estimate` for counts and lengths: bounded by 0, nothing added to the spread."""
    return _crossed(_matrix(seeds), (), (0.0, math.inf))


def row_estimate(seeds: Sequence[Values]) -> Estimate:
    """Returns the mean over seeds and problems; `n` counts problems.

    With one seed, the interval is over problems alone.

    Args:
        seeds: the values of each seed, for the same problems.

    Raises:
        ValueError: no values, or seeds with other problems.
    """
    return _crossed(_matrix(seeds), _ROW_PRIOR, (0.0, 1.0))


def contrast(row: Sequence[Values], other: Sequence[Values]) -> Estimate:
    """Returns how much more `row` solves than `other`, paired by problem and by seed.

    Args:
        row: the values of each seed.
        other: the values of the same seeds, in the same order; the values of a row without seeds
            are repeated for each seed.

    Raises:
        ValueError: no values, other problems, or not as many seeds.
    """
    pairs = zip(_matrix(row), _matrix(other), strict=True)
    if row[0].keys() != other[0].keys():
        raise ValueError("the rows of a contrast have solved different problems")
    differences = [[a - b for a, b in zip(first, second, strict=True)] for first, second in pairs]
    return _crossed(differences, _CONTRAST_PRIOR, (-1.0, 1.0))


def verdict(difference: Estimate, seeds: int) -> str:
    """Returns the result of a contrast as one of the words above.

    One seed allows no verdict, because the next training may differ. Two rows without seeds are not
    trained, so only the problems are random.
    """
    if seeds == 1:
        return ONE_SEED
    return HIGHER if difference.low > 0 else LOWER if difference.high < 0 else SAME


def _matrix(seeds: Sequence[Values]) -> list[list[float]]:
    """Returns the values as a matrix of seeds by problems, with the same order of problems."""
    if not seeds or not seeds[0]:
        raise ValueError("there are no values to estimate from")
    if any(values.keys() != seeds[0].keys() for values in seeds):
        raise ValueError("the seeds of a row have solved different problems")
    problems = sorted(seeds[0])
    return [[values[problem] for problem in problems] for values in seeds]


def _crossed(
    values: Sequence[Sequence[float]],
    prior: Sequence[tuple[float, float]],
    bounds: tuple[float, float],
) -> Estimate:
    """Returns the mean of a matrix of seeds by problems; see the start of this file.

    Args:
        values: a row for each seed, a column for each problem.
        prior: (value, number) of the problems that are added to the spread.
        bounds: the least and the greatest possible value.
    """
    seed_means = [fmean(row) for row in values]
    problem_means = [fmean(column) for column in zip(*values, strict=True)]
    mean, problems = fmean(seed_means), len(problem_means)
    count = problems + sum(many for _, many in prior)
    middle = (sum(problem_means) + sum(value * many for value, many in prior)) / count
    squares = sum((value - middle) ** 2 for value in problem_means)
    squares += sum(many * (value - middle) ** 2 for value, many in prior)
    of_problems = squares / (count - 1) / count if count > 1 else 0.0
    of_seeds, below = 0.0, of_problems**2 / max(1, count - 1)
    if (seeds := len(seed_means)) > 1:
        of_seeds = sum((value - mean) ** 2 for value in seed_means) / (seeds - 1) / seeds
        below += of_seeds**2 / (seeds - 1)
    variance = of_problems + of_seeds
    if not variance:  # every value is the same
        return Estimate(mean, mean, mean, problems)
    degrees = int(variance**2 / below + 1e-6)  # 9 - 1e-15 is 9
    half = student_t(degrees) * variance**0.5
    # The added problems move the middle; with few problems the mean could be outside the interval.
    low, high = min(mean, middle - half), max(mean, middle + half)
    return Estimate(mean, max(bounds[0], low), min(bounds[1], high), problems)


def _number(line: Mapping[str, object]) -> int:
    number = line.get("evaluation")
    return number if isinstance(number, int) else 0
