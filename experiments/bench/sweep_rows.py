"""The sweep: speed against how long prompts are beside completions, and how many are nested.

For every share P/C of prompt to completion tokens (P is the mean prompt) and every number K of
nested prompts, our trainer's update beside our own repeated rows and beside TRL. The first prompt
is half the mean and the last one and a half times it. `sweep_plot.py` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence

from contest import Contest
from shapes import Shape, tiny_model
from update_rows import PADDED, TRAINED, update_contest

SHARES = (0.5, 1.0, 2.0, 4.0, 8.0)
PROMPTS = (1, 4, 10)


def sweep_rows(
    repeats: int,
    *,
    shares: Sequence[float] = SHARES,
    prompts: Sequence[int] = PROMPTS,
    G: int = 8,
    C: int = 48,
) -> list[Contest]:
    """One contest for every share and every number of prompts."""
    model = tiny_model()
    contests = []
    for K in prompts:
        for share in shares:
            shape = nested(share, K, G, C)
            contest = update_contest("sweep", shape, model, repeats)
            contest.figures |= {
                "K": K,
                "P/C": shape.mean_prompt / C,
                "over TRL": contest.speed(TRAINED),
                "over rows": contest.speed(TRAINED, PADDED),
            }
            contests.append(contest)
    return contests


def nested(share: float, K: int, G: int, C: int) -> Shape:
    """Prompts whose mean is `share` times C, from half of it to one and a half times it."""
    mean = share * C
    if K == 1:
        return Shape(1, round(mean), 0, G, C)
    s = max(1, round(mean / (K - 1)))
    return Shape(K, max(1, round(mean - s * (K - 1) / 2)), s, G, C)
