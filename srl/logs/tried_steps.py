"""Finds the expert steps with the best rewards, the worst rewards and the largest gains.

A log of a million records can have nearly as many steps. So the steps are kept as columns, and only
a step that is shown becomes an object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from srl.logs.figures import name_codes


@dataclass(frozen=True)
class TriedStep:
    """One expert step and the rewards of the policy's attempts at it.

    Attributes:
        problem_id, source, step_index: the step.
        rollouts: how many rollouts tried the step.
        reward: the mean reward of all of them.
        first, last: the mean reward at the first and at the last training step that tried it.
        first_step, last_step: those training steps.
        row: the row of the table with the best rollout of `last_step`.
    """

    problem_id: str
    source: str
    step_index: int
    rollouts: int
    reward: float
    first: float
    last: float
    first_step: int
    last_step: int
    row: int


def extremes(table: pa.Table, rows: np.ndarray, most: int) -> dict[str, list[TriedStep]]:
    """Returns the best, the worst and the most improved expert steps among these rows of the table.

    Each list has at most `most` steps. The best and the worst are by mean reward. An improved step
    was tried at two or more training steps and has a higher mean reward at the last than at the
    first. Records without a reward do not count. Of equal steps, the one with more rollouts comes
    first, then the one that is earlier in `rows`.
    """
    reward = table["reward"].to_numpy(zero_copy_only=False)
    rows = rows[~np.isnan(reward[rows])]
    reward = reward[rows]
    steps = table["train_step"].to_numpy()[rows]
    index = table["step_index"].to_numpy()[rows].astype(np.int64)
    source = name_codes(table["source"])[rows]
    problem = name_codes(table["problem_id"])[rows]
    # Two solutions of one problem can have different steps at the same place.
    text = np.unique(table["step_text"].to_numpy()[rows], return_inverse=True)[1]
    spans = [int(part.max(initial=0)) + 1 for part in (source, index)]
    place = np.unique((problem * spans[0] + source) * spans[1] + index, return_inverse=True)[1]
    key = place * (int(text.max(initial=0)) + 1) + text
    _, first_at, cells = np.unique(key, return_index=True, return_inverse=True)
    count = len(first_at)
    n = np.bincount(cells, minlength=count)
    # Sorts by step, then by training step, then by reward, and puts the earlier of equal rows last.
    # So each step's block ends with the best rollout at its last training step.
    order = np.lexsort((-np.arange(len(rows)), reward, steps, cells))
    ends = np.cumsum(n) - 1
    earliest, latest = steps[order[ends - n + 1]], steps[order[ends]]

    def mean_at(when: np.ndarray) -> np.ndarray:
        at = steps == when[cells]
        total = np.bincount(cells[at], weights=reward[at], minlength=count)
        return total / np.maximum(1, np.bincount(cells[at], minlength=count))

    inorder = np.argsort(first_at)
    means = np.bincount(cells, weights=reward, minlength=count) / np.maximum(1, n)
    columns = (rows[first_at], n, means, mean_at(earliest), mean_at(latest), earliest, latest)
    example, tried, mean, first, last, first_step, last_step, best = (
        part[inorder] for part in (*columns, rows[order[ends]])
    )

    def top(which: np.ndarray, values: np.ndarray) -> list[TriedStep]:
        ranked = which[np.lexsort((which, -tried[which], values[which]))[:most]]
        return [
            TriedStep(
                *(
                    table[name][int(example[k])].as_py()
                    for name in ("problem_id", "source", "step_index")
                ),
                *(
                    part[k].item()
                    for part in (tried, mean, first, last, first_step, last_step, best)
                ),
            )
            for k in ranked
        ]

    with np.errstate(invalid="ignore"):  # infinity minus infinity
        change = last - first
    everything = np.arange(count)
    return {
        "best": top(everything, -mean),
        "worst": top(everything, mean),
        "most improved": top(np.flatnonzero((last_step > first_step) & (change > 0)), -change),
    }
