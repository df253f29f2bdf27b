"""Whether held-out problems were solved, told as the reward `answer` and the benchmarks tell it.

Equal text and equal numbers need no check. What only mathematics can tell equal is verified in
worker processes with a deadline; a check that was killed has verified nothing. Without it a policy
that writes as the expert does would be ahead of one that is as often right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from environments.answers import is_number
from rewards import RewardSum, StepContext
from srl.config.parts import VerifierSettings
from srl.evaluation.solving import Attempt


def judged(attempts: Sequence[Attempt], args: VerifierSettings) -> list[Attempt]:
    """The attempts, with `correct` where an answer is the expert's though written otherwise.

    Args:
        attempts: as `srl.evaluation.solving` made them, `correct` by text and exact numbers.
        args: how the check is asked.
    """
    found = list(attempts)
    open_ones = [place for place, one in enumerate(found) if _is_open(one)]
    if not open_ones:
        return found
    verifier = RewardSum(
        {"answer": 1.0},
        deadline=args.reward_deadline,
        workers=args.reward_workers,
        for_training=False,
    )
    try:
        scores = verifier.score([_as_step(found[place]) for place in open_ones])
    finally:
        verifier.close()
    for place, score in zip(open_ones, scores, strict=True):
        if score.rewards["answer"] == 1.0:
            found[place] = replace(found[place], correct=True)
    return found


def _is_open(one: Attempt) -> bool:
    """Whether text and numbers have not settled it."""
    gold = one.trajectory.answer
    if one.correct or one.answer is None or gold is None:
        return False
    return not (is_number(one.answer) and is_number(gold))


def _as_step(one: Attempt) -> StepContext:
    """The end of the solution, where the answer stands, as the only step there is."""
    return StepContext(
        problem=one.trajectory.problem,
        previous_steps=(),
        action=one.steps[-1] if one.mode == "steps" else "\n".join(one.steps),
        thought="",
        expert_step="",
        step_index=0,
        num_steps=1,
        answer=one.trajectory.answer,
    )
