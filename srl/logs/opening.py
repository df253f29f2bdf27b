"""Writes the two sentences at the top of overview and report: what happened, what to do next."""

from __future__ import annotations

from typing import NamedTuple

from srl.logs.report.markup import number, points, with_interval
from srl.logs.report.remarks import Remark, remarks_of
from srl.logs.run_data import RunData
from srl.runs.lock import writer_of
from srl.stats import Estimate


class Opening(NamedTuple):
    """The two sentences that the overview and the report start with."""

    happened: str
    next: str


# The advice for the first remark that is not good news, by the remark's rule. {run} stands for the
# name of the run's folder.
_NEXT = {
    "proxy": "compare attempts before and after in the report, and give the reward `answer` a "
    "weight",
    "unsolved": "read the attempts in the report: if none states an answer, end the expert's "
    "solutions with a step that does",
    "fewer": "compare attempts before and after in the report (make report RUN={run})",
    "answers": "take the answer step out of the targets (targets: literal)",
    "failures": 'read some failures (make inspect RUN={run} ARGS="--failures-only"); '
    "docs/cold_start.md says what helps",
    "collapse": "start again with a lower learning_rate",
    "cut": "raise max_completion_length, or see whether the policy repeats itself",
    "copies": "train with the reward `progress`, which pays nothing for a copy (docs/rewards.md)",
    "lift": "train with the reward `progress`, which pays nothing for a copy (docs/rewards.md)",
    "dropped": "take other problems or a higher temperature, so that attempts differ",
    "empty": "take other problems or a higher temperature, so that attempts differ",
    "broken": "mend the reward that fails, or take it out",
    "never": "mend the reward that has no values, or take it out",
    "constant": "take out the reward that is always the same, or weigh it with another",
    "longer": "look at some long completions (make inspect RUN={run})",
    "unmoved": "train for more steps, or with a higher learning_rate",
}
_RESUME = "make resume RUN={run} goes on with it"
_LOOK = (
    'look at its worst steps (make inspect RUN={run} ARGS="--sort=reward"), or evaluate it on '
    "other problems (make eval RUN={run} BENCH=gsm8k)"
)
_FOLLOW = 'watch it (make inspect RUN={run} ARGS="--follow")'


def opening(run: RunData, called: str | None = None) -> Opening:
    """Returns what a reader should know about a run before any table.

    Args:
        run: its data.
        called: what commands call the run; None is its path, which a report must not tell.

    Raises:
        UsageError: a file of the run does not have the expected format.
    """
    bad = [remark for remark in remarks_of(run) if not remark.good]
    # A policy that breaks the format learns nothing else.
    bad.sort(key=lambda remark: remark.rule != "failures")
    to_mend = bad[0] if bad else None
    return Opening(
        f"{_how_far(run)}; {_result(run)}.",
        f"Next: {_advice(run, called or run.folder.called, to_mend)}.",
    )


def _how_far(run: RunData) -> str:
    steps = f"{run.last_step:,} training step{'' if run.last_step == 1 else 's'}"
    if run.complete:
        return f"The run is complete after {steps}"
    asked = (run.config or {}).get("max_steps")
    of = f" of {asked:,}" if isinstance(asked, int) and asked > 0 else ""
    return f"The run is not complete: it has {steps}{of}"


def _result(run: RunData) -> str:
    """Returns the result of a run in words.

    It uses the first of these that the run has: the problems solved before and after training, or
    after it, those of the validations, the change of the mean reward.
    """
    solved = {
        accuracy.when: accuracy.estimate
        for accuracy in run.accuracies()
        if accuracy.mode == "steps" and not accuracy.sampled
    }
    before, after, gain = solved.get("before"), solved.get("after"), run.gain()
    if before and after and gain:
        many = f"of {number(gain.n)} held-out problems"
        change = f"{_percent(before)} before and {_percent(after)} after, {points(gain)}"
        if gain.low > 0:
            return f"it solves more {many} step by step than before: {change}"
        if gain.high < 0:
            return f"it solves fewer {many} step by step than before: {change}"
        return f"whether it solves more {many} than before cannot be told: {change}"
    if after:
        return (
            f"it solves {with_interval(after, share=True)} of {number(after.n)} held-out problems"
        )
    if validations := run.validation_accuracy():
        first, last = validations[0][1], validations[-1][1]
        if len(validations) == 1:
            return f"it solves {_percent(last)} of the validation problems"
        return f"validation problems solved went from {_percent(first)} to {_percent(last)}"
    rewards = run.training_figures().get("reward", [])
    if len(rewards) > 1:
        ends = " to ".join(number(value) for _, value in (rewards[0], rewards[-1]))
        return f"the mean reward of a step went from {ends}"
    return "no held-out problem was solved to see what it learned"


def _percent(estimate: Estimate) -> str:
    return number(estimate.value, share=True)


def _advice(run: RunData, called: str, to_mend: Remark | None) -> str:
    folder = run.folder
    stopped = not run.complete and folder.config.is_file() and writer_of(folder.path) is None
    if stopped:
        words = _RESUME
    elif to_mend is not None and to_mend.rule in _NEXT:
        words = _NEXT[to_mend.rule]
    else:
        words = _LOOK if run.complete else _FOLLOW
    return words.format(run=called)
