"""What a row of the comparison solves, and by how much two rows differ, with 95 % intervals.

A figure is first one number a problem from 0 to 1, for each training seed, and then a mean over
seeds and problems. Two things were drawn by chance: the problems, which all seeds share, and the
seeds, which all problems share. An interval over problems alone answers for these three trainings
and no others; one over seeds alone, for these problems and no others.

Here the variance of the mean is the sum of both: that of the seeds' means over the number of seeds,
and that of the problems' means over the number of problems. The chance of a single attempt is in
each of the two, so the sum is too large rather than too small. The half width is the sum's root
times Student's t with the degrees of freedom of Welch and Satterthwaite, rounded down: 2 for three
seeds that differ much, some hundred for seeds that do not. A contrast is the same of the
differences, paired by problem and by seed. So that rows which solve all problems, or none, keep a
width, the spread over problems counts four problems more for a row (two solved, two not: Agresti
and Coull 1998) and two for a contrast (half a problem of each kind of pair: Agresti and Min 2005).

Measured on simulated rows of 200 problems and three seeds, 24 worlds of easy and hard problems and
of seeds whose means have a standard deviation of 2 to 7 points, 2,000 comparisons in each: of the
intervals of rows 94.3 to 98.9 % hold the truth, of those of contrasts 93.9 to 99.2 %
(`python experiments/compare/interval_coverage.py`).

What three seeds cannot give: a spread that is known from three values is hardly known (t is 4.30,
where many seeds have 1.96). Where the seeds of a row have a standard deviation of 3 points, the
interval of a contrast reaches 8 to 12 points to either side: smaller differences are not told apart
though they may be there. Nothing is corrected for the number of contrasts: of twenty where nothing
differs, one may well look as if it did.
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
"""One number a problem, by the problem's id; from 0 to 1 where it is a share."""

HIGHER, LOWER, SAME, ONE_SEED = "higher", "lower", "not told apart", "one seed"

# Values of a problem, and how many problems of it are added to the spread.
_ROW_PRIOR = ((1.0, 2.0), (0.0, 2.0))
_CONTRAST_PRIOR = ((1.0, 0.5), (-1.0, 0.5), (0.0, 1.0))


def last_evaluation(rows: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """The lines of eval.jsonl that a cell is judged by.

    Of a training the last evaluation after it, for one that was killed is made again; what somebody
    asked the run later (`make eval`), perhaps other problems, is not the comparison's. Without any,
    the last evaluation.
    """
    lines = list(rows)
    lines = [line for line in lines if line.get("when") == "after"] or lines
    last = max((_number(line) for line in lines), default=0)
    return [line for line in lines if _number(line) == last]


def figures_of(attempts: Iterable[Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """Every figure that one evaluation gives, as one number a problem.

    Args:
        attempts: lines of eval.jsonl of one evaluation.

    Returns:
        "steps greedy", "whole greedy", and for k sampled attempts "whole avg@k", "whole pass@k" and
        "whole maj@k" -> problem id -> number. With differing numbers of samples k is the smallest.
    """
    greedy: dict[str, dict[str, bool]] = {}
    sampled: dict[str, dict[str, list[tuple[bool, str | None]]]] = {}
    for line in attempts:
        mode, problem = str(line["mode"]), str(line["problem_id"])
        correct, answer = bool(line["correct"]), line.get("answer")
        if line["sample"] == 0:
            greedy.setdefault(mode, {})[problem] = correct
        else:
            one = (correct, None if answer is None else str(answer))
            sampled.setdefault(mode, {}).setdefault(problem, []).append(one)
    found: dict[str, dict[str, float]] = {}
    for mode in ("whole", "steps"):
        if mode in greedy:
            found[f"{mode} greedy"] = {p: float(hit) for p, hit in greedy[mode].items()}
        if mode not in sampled:
            continue
        for name, values in sample_figures([*sampled[mode].values()], only_most=True).items():
            found[f"{mode} {name}"] = dict(zip(sampled[mode], values, strict=True))
    return found


def behaviour_of(attempts: Iterable[Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """Aspect of `Behaviour` -> problem id -> number, of one evaluation's greedy whole solutions."""
    found: dict[str, dict[str, float]] = {}
    for line in attempts:
        if (line["mode"], line["sample"]) == ("whole", 0):
            shown = behaviour(str(line.get("text", "")), int(str(line["completion_tokens"])))
            for aspect, value in asdict(shown).items():
                found.setdefault(aspect, {})[str(line["problem_id"])] = float(value)
    return found


def row_estimate_of_counts(seeds: Sequence[Values]) -> Estimate:
    """`row_estimate` of counts and lengths: from 0 on, and nothing added to the spread."""
    return _crossed(_matrix(seeds), (), (0.0, math.inf))


def row_estimate(seeds: Sequence[Values]) -> Estimate:
    """The mean over seeds and problems; `n` counts problems. One seed: over problems alone.

    Args:
        seeds: for each seed its values, of the same problems.

    Raises:
        ValueError: no values, or seeds with other problems.
    """
    return _crossed(_matrix(seeds), _ROW_PRIOR, (0.0, 1.0))


def contrast(one: Sequence[Values], other: Sequence[Values]) -> Estimate:
    """How much more `one` solves than `other`, paired by problem and by seed.

    Args:
        one: for each seed its values.
        other: for the same seeds in the same order its values; a row without seeds comes again for
            each.

    Raises:
        ValueError: no values, other problems, or not as many seeds.
    """
    pairs = zip(_matrix(one), _matrix(other), strict=True)
    if one[0].keys() != other[0].keys():
        raise ValueError("the rows of a contrast have solved different problems")
    differences = [[a - b for a, b in zip(first, second, strict=True)] for first, second in pairs]
    return _crossed(differences, _CONTRAST_PRIOR, (-1.0, 1.0))


def verdict(difference: Estimate, seeds: int) -> str:
    """The contrast in a word. From one training there is none: the next may differ. Two rows that
    are not trained, which have no seeds, differ by their problems alone."""
    if seeds == 1:
        return ONE_SEED
    return HIGHER if difference.low > 0 else LOWER if difference.high < 0 else SAME


def _matrix(seeds: Sequence[Values]) -> list[list[float]]:
    """Seeds by problems, in one order of the problems."""
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
    """The mean of seeds by problems; see the head of this file.

    Args:
        values: a row for each seed, a column for each problem.
        prior: values of problems that are added to the spread, with how many of each.
        bounds: the least value there is, and the greatest.
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
    # The middle is shrunk; with few problems the mean itself could fall outside.
    low, high = min(mean, middle - half), max(mean, middle + half)
    return Estimate(mean, max(bounds[0], low), min(bounds[1], high), problems)


def _number(line: Mapping[str, object]) -> int:
    number = line.get("evaluation")
    return number if isinstance(number, int) else 0
