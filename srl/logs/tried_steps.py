"""The expert's steps and what the policy made of each: its best, its worst, where it gained most.

A log of a million records has nearly as many steps, so they are columns; a step becomes an object
only where it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from srl.logs.figures import name_codes


@dataclass(frozen=True)
class TriedStep:
    """One expert step and what the policy made of it.

    Attributes:
        problem_id, source, step_index: which step.
        rollouts: how often it was tried.
        reward: mean reward of all.
        first, last: mean reward at the first and at the last training step it was tried at.
        first_step, last_step: those training steps.
        row: a row of the table: the best rollout of the last time.
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
    """Of the expert steps among these rows of the table, the `most` with the best and the worst
    mean reward, and those that gained most.

    Records without a reward do not count. Gained: tried at two training steps at least, and better
    at the last. Ties go to what was tried more often, then to what came first.
    """
    reward = table["reward"].to_numpy(zero_copy_only=False)
    rows = rows[~np.isnan(reward[rows])]
    reward = reward[rows]
    steps = table["train_step"].to_numpy()[rows]
    index = table["step_index"].to_numpy()[rows].astype(np.int64)
    source = name_codes(table["source"])[rows]
    problem = name_codes(table["problem_id"])[rows]
    # Two solutions of one problem have different steps at the same place.
    text = np.unique(table["step_text"].to_numpy()[rows], return_inverse=True)[1]
    spans = [int(part.max(initial=0)) + 1 for part in (source, index)]
    place = np.unique((problem * spans[0] + source) * spans[1] + index, return_inverse=True)[1]
    key = place * (int(text.max(initial=0)) + 1) + text
    _, first_at, cells = np.unique(key, return_index=True, return_inverse=True)
    count = len(first_at)
    n = np.bincount(cells, minlength=count)
    # By step, then by training step, then by reward, the earlier of equals last: each step's block
    # ends with the best rollout of the last time.
    order = np.lexsort((-np.arange(len(rows)), reward, steps, cells))
    ends = np.cumsum(n) - 1
    earliest, latest = steps[order[ends - n + 1]], steps[order[ends]]

    def mean_at(when: np.ndarray) -> np.ndarray:
        at = steps == when[cells]
        total = np.bincount(cells[at], weights=reward[at], minlength=count)
        return total / np.maximum(1, np.bincount(cells[at], minlength=count))

    inorder = np.argsort(first_at)
    means = np.bincount(cells, weights=reward, minlength=count) / np.maximum(1, n)
    found = (rows[first_at], n, means, mean_at(earliest), mean_at(latest), earliest, latest)
    example, tried, mean, first, last, first_step, last_step, best = (
        part[inorder] for part in (*found, rows[order[ends]])
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
