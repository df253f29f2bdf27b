"""What a reader should look at first: remarks found by plain rules, each with its numbers.

Compared are the first and the last fifth of training (`figures.over_training` in five bins). The
rules, in this order:

    proxy        similarity, or else the reward, rose by more than .01 while accuracy fell by more
                 than 3 points: greedy, from before to after; without these, from the first to the
                 last validation
    unsolved     not one held-out problem is solved after training, or at the last validation
    answers      exact steps stand at the expert's last step alone: above 5 % of those in the last
                 fifth, and less than a tenth of that at all others
    failures     format failures above 20 % in the last fifth
    collapse     format failures of a later fifth 10 points above those of the first
    cut          above 10 % of the last fifth's completions are cut at the allowed length
    copies       above 10 % of the valid steps in the last fifth repeat the previous step
    lift         mean lift of the last fifth is 0 or less: copying would score as well
    dropped      less than half of all groups were kept
    empty        training steps that kept no group at all, so nothing was learnt in them
    broken       a reward that raised an error or ran out of time
    never        a reward that has no value on any valid rollout
    constant     a reward that is the same number on every valid rollout that has one
    longer       completions of the last fifth more than twice as long as those of the first
    unmoved      at least 10 training steps, and the reward's intervals of the two fifths overlap
    rise         the reward's interval of the last fifth lies above that of the first
    gain         accuracy after minus before, with its paired interval, where that excludes zero
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from srl.logs.figures import (
    FIXED,
    REWARD_METRIC,
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
from srl.logs.report.axes import span_of, steps_of
from srl.logs.report.markup import number, points, with_interval
from srl.logs.run_data import RunData
from srl.stats import Estimate

RISE, FALL = 0.01, 0.03
FAILURES, COLLAPSE, CUT, COPIES, KEPT, LONGER = 0.2, 0.1, 0.1, 0.1, 0.5, 2.0
ANSWERS = 0.05
STEPS_TO_MOVE = 10


TRUNCATED = Metric(
    "truncated", "cut off", "share cut at the allowed length, over all rollouts", True
)


@dataclass(frozen=True)
class Remark:
    """One thing to look at.

    Attributes:
        rule: its name, as above.
        text: what was found, with the numbers.
        good: it is good news.
    """

    rule: str
    text: str
    good: bool = False


def fifths(run: RunData) -> Cells:
    """Training in at most five bins: what the remarks compare."""
    metrics = [*metrics_of(run.log), TRUNCATED]
    return over_training(only(run.log.table, "train"), metrics, most=5)


def remarks_of(run: RunData) -> list[Remark]:
    """Everything that a rule finds, in the order of the rules."""
    parts = fifths(run)
    found = [*_proxy(run, parts), *_unsolved(run), *_answers(run, parts)]
    if parts.keys:
        found += [*_last_fifth(parts), *_groups(run), *_rewards(run), *_movement(parts)]
    return [*found, *_gain(run)]


def _proxy(run: RunData, parts: Cells) -> Iterator[Remark]:
    gain, validations = run.gain(), run.validation_accuracy()
    if gain is not None:
        fell, when = -gain.value, "after training than before"
    elif len(validations) > 1:
        fell = validations[0][1].value - validations[-1][1].value
        when = "at the last validation than at the first"
    else:
        return
    if fell <= FALL:
        return
    for name, label in ((REWARD + "similarity", "Similarity"), (REWARD_METRIC.name, "The reward")):
        first, last = _ends(parts, name)
        if first is not None and last is not None and last.value - first.value > RISE:
            lost = number(fell, share=True).removesuffix(" %")
            yield Remark(
                "proxy",
                f"{label} rose from {number(first.value)} to {number(last.value)}, but {lost} "
                f"points fewer problems are solved {when}: the policy learns what is paid, not "
                "what is right.",
            )
            return


def _unsolved(run: RunData) -> Iterator[Remark]:
    after = [one.estimate for one in run.accuracies() if one.when == "after"]
    validations = [estimate for _, estimate in run.validation_accuracy()][-1:]
    if (found := after or validations) and all(one.value == 0 for one in found):
        when = "after training" if after else "at the last validation"
        many = f"None of {number(found[0].n)}" if found[0].n else "No"
        yield Remark("unsolved", f"{many} held-out problems is solved {when}.")


def _answers(run: RunData, parts: Cells) -> Iterator[Remark]:
    train = only(run.log.table, "train")
    if not parts.keys:
        return
    steps = steps_of(parts.keys[-1])
    column = train["train_step"]
    late = train.filter(
        pc.and_(pc.greater_equal(column, steps[0]), pc.less_equal(column, steps[1]))
    )
    at_the_end = pc.equal(late["steps_left"], 0)
    last, others = (
        all_of(part, [FIXED["exact"]]).metrics["exact"][0]
        for part in (late.filter(at_the_end), late.filter(pc.invert(at_the_end)))
    )
    if last is not None and others is not None and last.value > max(ANSWERS, 10 * others.value):
        yield Remark(
            "answers",
            f"Exact steps stand at the expert's last step alone: {with_interval(last, share=True)} "
            f"of those in {span_of(steps)}, {with_interval(others, share=True)} of all others. The "
            "policy states answers; it does not take the steps before them.",
        )


def _last_fifth(parts: Cells) -> Iterator[Remark]:
    when = span_of(steps_of(parts.keys[-1]))
    bounds = (
        ("format_failures", FAILURES, "failures", f"of all rollouts of {when} failed the format."),
        (
            "truncated",
            CUT,
            "cut",
            f"of the completions of {when} are cut at the allowed length: allow more tokens, or "
            "look whether the policy loops.",
        ),
        ("copied", COPIES, "copies", f"of the valid steps of {when} repeat the previous step."),
    )
    for name, bound, rule, said in bounds:
        found = parts.metrics[name][-1]
        if found is not None and found.value > bound:
            yield Remark(rule, f"{with_interval(found, share=True)} {said}")
    failures = parts.metrics["format_failures"]
    first = failures[0]
    known = [(one.value, k) for k, one in enumerate(failures) if one is not None]
    worst, k = max(known)
    if first is not None and worst > first.value + COLLAPSE:
        yield Remark(
            "collapse",
            f"Format failures rose from {number(first.value, share=True)} to "
            f"{number(worst, share=True)} in {span_of(steps_of(parts.keys[k]))}: the policy lost "
            "the form; the learning rate may be too high.",
        )
    lift = parts.metrics["lift"][-1]
    if lift is not None and lift.value <= 0:
        yield Remark(
            "lift",
            f"Mean lift of {when} is {with_interval(lift)}: copying the previous step would score "
            "as well.",
        )


def _groups(run: RunData) -> Iterator[Remark]:
    # More bins than there can be steps: one a step.
    by_step = sampling_yield(run.log.table, most=2**31)
    tried, kept = sum(part.tried for part in by_step), sum(part.kept for part in by_step)
    reasons: dict[str, int] = {}
    for part in by_step:
        for name, count in part.dropped.items():
            reasons[name] = reasons.get(name, 0) + count
    if kept < KEPT * tried:
        most = max(reasons, key=lambda name: reasons[name], default="")
        why = f", most often because of {most} ({number(reasons[most])})" if most else ""
        dropped = tried - kept
        yield Remark(
            "dropped",
            f"{number(dropped)} of {number(tried)} groups ({number(dropped / tried, share=True)}) "
            f"were dropped{why}: most of what is generated teaches nothing.",
        )
    if empty := sum(part.kept == 0 for part in by_step):
        yield Remark(
            "empty",
            f"{number(empty)} of {number(len(by_step))} training steps kept no group: nothing was "
            "learnt in them.",
        )


def _rewards(run: RunData) -> Iterator[Remark]:
    train = only(run.log.table, "train")
    totals = run.totals()
    for name in run.log.reward_names:
        errors, late = (totals.get(f"reward_{why}/{name}", 0) for why in ("errors", "deadlines"))
        if errors + late:
            yield Remark(
                "broken",
                f"The reward {name} failed {number(round(errors + late))} times in training, "
                f"{number(round(late))} of them by running out of time: its mean is over the rest.",
            )
        values = values_of(train, Metric(REWARD + name, name, ""))
        values = values[~np.isnan(values)]
        if not len(values):
            yield Remark("never", f"The reward {name} has no value on any valid rollout.")
        elif len(values) > 1 and values.min() == values.max():
            yield Remark(
                "constant",
                f"The reward {name} is {number(float(values[0]))} on all {number(len(values))} "
                "valid rollouts of training that have it: it prefers none of them to another.",
            )


def _movement(parts: Cells) -> Iterator[Remark]:
    first, last = _ends(parts, "completion_tokens")
    if first is not None and last is not None and last.value > LONGER * first.value:
        yield Remark(
            "longer",
            f"Completions grew from {number(first.value)} to {number(last.value)} tokens.",
        )
    early, late = steps_of(parts.keys[0]), steps_of(parts.keys[-1])
    first, last = _ends(parts, REWARD_METRIC.name)
    if first is not None and last is not None and last.low > first.high:
        yield Remark(
            "rise",
            f"The reward rose from {with_interval(first)} in {span_of(early)} to "
            f"{with_interval(last)} in {span_of(late)}.",
            good=True,
        )
    if (
        early != late
        and late[1] - early[0] + 1 >= STEPS_TO_MOVE
        and first is not None
        and last is not None
        and first.low <= last.high
        and last.low <= first.high
    ):
        yield Remark(
            "unmoved",
            f"No clear change of the reward: {with_interval(first)} in {span_of(early)}, "
            f"{with_interval(last)} in {span_of(late)}; the intervals overlap.",
        )


def _gain(run: RunData) -> Iterator[Remark]:
    gain = run.gain()
    if gain is None or gain.low <= 0 <= gain.high:
        return
    words = "more" if gain.value > 0 else "fewer"
    yield Remark(
        "gain",
        f"The policy solves {words} held-out problems than before: {points(gain)}, "
        f"{number(gain.n)} problems.",
        good=gain.value > 0,
    )


def _ends(parts: Cells, name: str) -> tuple[Estimate | None, Estimate | None]:
    """The first fifth and the last."""
    cells = parts.metrics.get(name)
    return (cells[0], cells[-1]) if cells else (None, None)
