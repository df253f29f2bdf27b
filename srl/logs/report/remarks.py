"""Finds what a reader should look at first, by simple rules over a run's figures.

Most rules compare the first and the last fifth of training (`figures.over_training` in five bins).
`remarks_of` collects the rules. Each has a name, a condition, and a text with its numbers that says
what was found and often what to do. A figure that a run does not have is NaN, and no condition is
true for NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from srl.logs.figures import (
    FIXED,
    Cells,
    Metric,
    all_of,
    metrics_of,
    only,
    over_training,
    sampling_yield,
    values_of,
)
from srl.logs.index import REWARD
from srl.logs.report.charts import Bin, span_of
from srl.logs.report.markup import number, points, with_interval
from srl.logs.run_data import RunData
from srl.stats import Estimate

RISE, FALL = 0.01, 0.03  # RISE of similarity or reward; FALL of the share of problems solved
FAILURES, COLLAPSE, CUT, COPIES, KEPT, LONGER = 0.2, 0.1, 0.1, 0.1, 0.5, 2.0
ANSWERS = 0.05
STEPS_TO_MOVE = 10
TRUNCATED = Metric("truncated", "cut off", "share cut at the allowed length", True)
_NONE = Estimate(math.nan, math.nan, math.nan, 0)

Rule = tuple[str, bool, str]


@dataclass(frozen=True)
class Remark:
    """A remark on a run: the rule's name, what was found, and whether it is good news."""

    rule: str
    text: str
    good: bool


def fifths(run: RunData) -> Cells:
    """Returns the figures of training in at most five bins, which the remarks compare."""
    metrics = [*metrics_of(run.log), TRUNCATED]
    return over_training(only(run.log.table, "train"), metrics, most=5)


def remarks_of(run: RunData) -> list[Remark]:
    """Returns the remarks of all rules whose condition holds, in the order of the rules."""
    parts = fifths(run)
    rules = [*_solving(run, parts)]
    if parts.keys:
        rules += [*_last_fifth(run, parts), *_groups(run), *_rewards(run), *_movement(parts)]
    return [Remark(name, words, name in ("rise", "more")) for name, holds, words in rules if holds]


def _solving(run: RunData, parts: Cells) -> Iterator[Rule]:
    gain, validations = run.gain() or _NONE, [estimate for _, estimate in run.validation_accuracy()]
    fell, when = -gain.value, "after training than before"
    if math.isnan(fell) and len(validations) > 1:
        fell = validations[0].value - validations[-1].value
        when = "at the last validation than at the first"
    for name, label in ((REWARD + "similarity", "Similarity"), ("reward", "The reward")):
        first, last = _ends(parts, name)
        lost = number(fell, share=True).removesuffix(" %")
        if fell > FALL and last.value - first.value > RISE:
            yield (
                "proxy", True,
                f"{label} rose from {number(first.value)} to {number(last.value)}, but "
                f"{lost} points fewer problems are solved {when}: the policy learns what is paid, "
                "not what is right.",
            )  # fmt: skip
            break
    after = [accuracy.estimate for accuracy in run.accuracies() if accuracy.when == "after"]
    solved = after or validations[-1:]
    yield (
        "unsolved", bool(solved) and all(estimate.value == 0 for estimate in solved),
        f"None of {number(solved[0].n or None) if solved else ''} held-out problems is solved "
        f"{'after training' if after else 'at the last validation'}.",
    )  # fmt: skip
    change = f"held-out problems than before: {points(gain)}, {number(gain.n)} problems."
    yield "more", gain.low > 0, f"The policy solves more {change}"
    yield "fewer", gain.high < 0, f"The policy solves fewer {change}"


def _last_fifth(run: RunData, parts: Cells) -> Iterator[Rule]:
    steps = _bins(parts)[-1]
    when = span_of(steps)
    train = only(run.log.table, "train")
    late = train.filter(pc.greater_equal(train["train_step"], steps[0]))
    at_the_end = pc.equal(late["steps_left"], 0)
    last, others = (
        all_of(part, [FIXED["exact"]]).metrics["exact"][0] or _NONE
        for part in (late.filter(at_the_end), late.filter(pc.invert(at_the_end)))
    )
    yield (
        "answers", last.value > max(ANSWERS, 10 * others.value),
        f"Exact steps stand at the expert's last step alone: {_share(last)} of those in {when}, "
        f"{_share(others)} of all others. The policy states answers; it does not take the steps "
        "before them. Take the answer step out of the targets.",
    )  # fmt: skip
    failed = [estimate or _NONE for estimate in parts.metrics["format_failures"]]
    worst = max(range(len(failed)), key=lambda k: failed[k].value)
    cut, copied, lift = (_ends(parts, name)[1] for name in ("truncated", "copied", "lift"))
    yield from (
        ("failures", failed[-1].value > FAILURES,
         f"{_share(failed[-1])} of all rollouts of {when} failed the format."),
        ("collapse", failed[worst].value > failed[0].value + COLLAPSE,
         f"Format failures rose from {number(failed[0].value, share=True)} to "
         f"{number(failed[worst].value, share=True)} in {span_of(_bins(parts)[worst])}: the policy "
         "lost the form; the learning rate may be too high."),
        ("cut", cut.value > CUT,
         f"{_share(cut)} of the completions of {when} are cut at the allowed length: allow more "
         "tokens, or look whether the policy loops."),
        ("copies", copied.value > COPIES,
         f"{_share(copied)} of the valid steps of {when} repeat the previous step."),
        ("lift", lift.value <= 0,
         f"Mean lift of {when} is {with_interval(lift)}: copying the previous step would score as "
         "well."),
    )  # fmt: skip


def _groups(run: RunData) -> Iterator[Rule]:
    # There are more bins than steps, so that each step has its own bin.
    by_step = sampling_yield(run.log.table, most=2**31)
    tried, kept = sum(part.tried for part in by_step), sum(part.kept for part in by_step)
    reasons: Counter[str] = sum((Counter(part.dropped) for part in by_step), Counter())
    most = "".join(f", most often because of {r} ({number(n)})" for r, n in reasons.most_common(1))
    yield (
        "dropped", kept < KEPT * tried,
        f"{number(tried - kept)} of {number(tried)} groups ({number(1 - kept / tried, share=True)})"
        f" were dropped{most}: most of what is generated teaches nothing. Take other problems, a "
        "higher temperature, or a reward that tells good steps from better ones.",
    )  # fmt: skip
    empty = sum(part.kept == 0 for part in by_step)
    yield (
        "empty", empty > 0,
        f"{number(empty)} of {number(len(by_step))} training steps kept no group: nothing was "
        "learnt in them.",
    )  # fmt: skip


def _rewards(run: RunData) -> Iterator[Rule]:
    train, totals = only(run.log.table, "train"), run.totals()
    for name in run.log.reward_names:
        errors, late = (totals.get(f"reward_{why}/{name}", 0) for why in ("errors", "deadlines"))
        values = values_of(train, Metric(REWARD + name, name, ""))
        values = values[~np.isnan(values)]
        yield from (
            ("broken", errors + late > 0,
             f"The reward {name} failed {errors + late:,.0f} times in training, "
             f"{late:,.0f} of them by running out of time: its mean is over the rest."),
            ("never", not len(values),
             f"The reward {name} has no value on any valid rollout: take it out, or mend it."),
            ("constant", len(values) > 1 and values.min() == values.max(),
             f"The reward {name} is {number(float(values.max(initial=-math.inf)))} on all "
             f"{number(len(values))} valid rollouts of training that have it: it prefers none of "
             "them to another."),
        )  # fmt: skip


def _movement(parts: Cells) -> Iterator[Rule]:
    early, late = _bins(parts)[0], _bins(parts)[-1]
    short, long = _ends(parts, "completion_tokens")
    first, last = _ends(parts, "reward")
    change = f"{with_interval(first)} in {span_of(early)}, {with_interval(last)} in {span_of(late)}"
    yield from (
        ("longer", long.value > LONGER * short.value,
         f"Completions grew from {number(short.value)} to {number(long.value)} tokens."),
        ("rise", last.low > first.high, f"The reward rose: {change}."),
        ("unmoved",
         early != late and late[1] - early[0] + 1 >= STEPS_TO_MOVE
         and first.low <= last.high and last.low <= first.high,
         f"No clear change of the reward: {change}; the intervals overlap."),
    )  # fmt: skip


def _bins(parts: Cells) -> list[Bin]:
    return parts.keys  # type: ignore[return-value]


def _ends(parts: Cells, name: str) -> tuple[Estimate, Estimate]:
    """Returns the estimates of a metric in the first and the last fifth of training."""
    cells = parts.metrics.get(name) or [None]
    return cells[0] or _NONE, cells[-1] or _NONE


def _share(estimate: Estimate) -> str:
    return with_interval(estimate, share=True)
