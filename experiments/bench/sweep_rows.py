"""Measures the sweep: the speed of an update by the length and the number of nested prompts.

P/C is the ratio of the mean prompt's tokens to the completion's tokens, and K is the number of
nested prompts. For every P/C and every K, the update of our trainer is compared with our own
repeated rows and with TRL. With several prompts, the first one has half the mean length and the
last one has one and a half times the mean. `sweep_plot.py` draws the sweep.
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
    """Runs one contest for every share P/C and every number of prompts."""
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
    """Returns a shape of K prompts whose mean length is `share` times C.

    Their lengths rise from about half the mean to one and a half times the mean.
    """
    mean = share * C
    if K == 1:
        return Shape(1, round(mean), 0, G, C)
    s = max(1, round(mean / (K - 1)))
    return Shape(K, max(1, round(mean - s * (K - 1) / 2)), s, G, C)
