"""Simulates how often the comparison's intervals contain the true value.

A problem is solved with the probability 1 / (1 + exp(-x)). x is the row's ability, plus the
deviation of this training, minus the difficulty of the problem, minus a deviation of this training
on this problem. All but the ability are drawn from normal distributions. Two rows have the same
problems, and every training of a row is drawn separately. The script prints one line for each
choice of ability and spreads:

    python experiments/compare/interval_coverage.py [--seeds 3] [--problems 200] [--repeats 2000]
"""

from __future__ import annotations

import argparse
import math
import random
from itertools import product
from statistics import NormalDist, fmean, stdev

from srl.compare.figures import contrast, row_estimate

MEETING = 1.0  # std of the deviation of a training on a problem, in logits
BETTER = 0.5  # how much higher the second row's ability is, in logits


def chance(ability: float, spread: float) -> float:
    """Returns the expected share solved: the mean over all that is drawn, with std `spread`."""
    cuts = 400
    points = (NormalDist().inv_cdf((i + 0.5) / cuts) for i in range(cuts))
    return fmean(1 / (1 + math.exp(-ability - spread * z)) for z in points)


def coverage(
    *,
    share: float,
    problem_spread: float,
    seed_spread: float,
    seeds: int = 3,
    problems: int = 200,
    repeats: int = 2000,
    random_seed: int = 0,
) -> dict[str, float]:
    """Returns how often intervals contain the true value, for a row and for a contrast of two rows.

    Also returns their mean half width, the root mean square error of the estimates, the mean
    standard deviation of the seeds, and the true values.

    Args:
        share: the probability that the first row solves a problem if all deviations are zero.
        problem_spread: the standard deviation of the problems, in logits.
        seed_spread: the standard deviation of the trainings, in logits.
        seeds: the number of trainings of each row.
        problems: the number of problems that all trainings try.
        repeats: the number of simulated comparisons.
        random_seed: the seed of the draws.
    """
    draw = random.Random(random_seed)
    first = math.log(share / (1 - share))
    spread = math.hypot(problem_spread, seed_spread, MEETING)
    truth = [chance(ability, spread) for ability in (first, first + BETTER)]
    held = {"row": 0, "contrast": 0}
    widths: dict[str, list[float]] = {"row": [], "contrast": []}
    squares: dict[str, list[float]] = {"row": [], "contrast": []}
    between = []
    for _ in range(repeats):
        hard = [draw.gauss(0, problem_spread) for _ in range(problems)]
        rows = []
        for ability in (first, first + BETTER):
            row = []
            for _ in range(seeds):
                became = ability + draw.gauss(0, seed_spread)
                chances = (1 / (1 + math.exp(-became - h - draw.gauss(0, MEETING))) for h in hard)
                row.append({str(i): float(draw.random() < p) for i, p in enumerate(chances)})
            rows.append(row)
        between.append(stdev(fmean(training.values()) for training in rows[0]))
        for kind, estimate, true in (
            ("row", row_estimate(rows[0]), truth[0]),
            ("contrast", contrast(rows[1], rows[0]), truth[1] - truth[0]),
        ):
            held[kind] += estimate.low <= true <= estimate.high
            widths[kind].append((estimate.high - estimate.low) / 2)
            squares[kind].append((estimate.value - true) ** 2)
    return {
        "row": held["row"] / repeats,
        "contrast": held["contrast"] / repeats,
        "row half width": fmean(widths["row"]),
        "contrast half width": fmean(widths["contrast"]),
        "row error": math.sqrt(fmean(squares["row"])),
        "contrast error": math.sqrt(fmean(squares["contrast"])),
        "seed std": fmean(between),
        "truth": truth[0],
        "difference": truth[1] - truth[0],
    }


def main() -> None:
    words = argparse.ArgumentParser(description="coverage of the intervals of `srl compare`")
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--problems", type=int, default=200)
    words.add_argument("--repeats", type=int, default=2000)
    args = words.parse_args()
    print("solved  differ  seeds' std  row: held  half width  contrast: held  half width")
    lines = []
    for share, hard, apart in product((0.05, 0.5, 0.9), (1.0, 3.0), (0.0, 0.1, 0.2, 0.4)):
        figures = coverage(
            share=share,
            problem_spread=hard,
            seed_spread=apart,
            seeds=args.seeds,
            problems=args.problems,
            repeats=args.repeats,
        )
        lines.append(figures)
        print(
            f"{figures['truth']:6.1%}  {figures['difference']:6.1%}  {figures['seed std']:10.1%}"
            f"  {figures['row']:9.1%}  {figures['row half width']:10.1%}"
            f"  {figures['contrast']:14.1%}  {figures['contrast half width']:10.1%}",
            flush=True,
        )
    for kind in ("row", "contrast"):
        held = [line[kind] for line in lines]
        print(f"{kind}: held {min(held):.1%} to {max(held):.1%}, {fmean(held):.1%} on average")


if __name__ == "__main__":
    main()
