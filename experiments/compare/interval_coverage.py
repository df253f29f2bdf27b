"""How often do the comparison's intervals hold the truth? Simulated rows, where it is known.

A problem is solved with the chance 1 / (1 + exp(-x)), where x is what the policy can, what the
problem is, what this training became, and how the two met, each normal. Two rows face the same
problems; every training of either is its own. One line for each kind of world:

    python experiments/compare/interval_coverage.py [--seeds 3] [--problems 200] [--repeats 2000]
"""

from __future__ import annotations

import argparse
import math
import random
from itertools import product
from statistics import NormalDist, fmean, stdev

from srl.compare.figures import contrast, row_estimate

MEETING = 1.0  # std of how a training and a problem meet, in logits
BETTER = 0.5  # how much better the second row is, in logits


def chance(ability: float, spread: float) -> float:
    """The expected share solved: the mean over everything that is drawn."""
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
    """The share of intervals that hold the truth, for a row and for a contrast of two; how wide
    they are, and how far off the estimates (root of the mean square).

    Args:
        share: what a policy solves of problems of the middle kind.
        problem_spread: std of the problems, in logits.
        seed_spread: std of the trainings, in logits.
        seeds: trainings of each row.
        problems: problems that all solve.
        repeats: how many comparisons.
        random_seed: of the draws.
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
