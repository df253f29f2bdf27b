"""Asks mathematics about the attempts that their environment leaves open.

Equal text and equal numbers need no check. What only mathematics can tell equal is verified by the
step reward `answer` in worker processes with a deadline; a check that was killed has verified
nothing. Without it a policy that writes as the expert does would be ahead of one that is as often
right. Held-out problems and benchmarks are judged here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rewards import RewardSum, StepContext
from srl.config.parts import VerifierSettings
from srl.evaluation.solving import Attempt


def judged(attempts: Sequence[Attempt], args: VerifierSettings) -> list[Attempt]:
    """The attempts with a verdict each; workers are started only where one is open.

    Args:
        attempts: as `srl.evaluation.solving` made them.
        args: how the check is asked.
    """
    if all(one.correct is not None for one in attempts):
        return list(attempts)
    verifier = make_verifier(args)
    try:
        return verified(attempts, verifier)
    finally:
        verifier.close()


def make_verifier(args: VerifierSettings) -> RewardSum:
    """The step reward `answer` in worker processes; close it."""
    return RewardSum(
        {"answer": 1.0},
        deadline=args.reward_deadline,
        workers=args.reward_workers,
        for_training=False,
    )


def verified(attempts: Sequence[Attempt], verifier: RewardSum) -> list[Attempt]:
    """The attempts, those that were open with the verdict of the reward `answer`.

    `why` says of one that is not right whether its check was killed at the deadline or failed.
    """
    found = list(attempts)
    open_ones = [place for place, one in enumerate(found) if one.correct is None]
    scores = verifier.score([_as_step(found[place]) for place in open_ones])
    for place, score in zip(open_ones, scores, strict=True):
        correct = score.rewards["answer"] == 1.0
        why = found[place].why if correct else score.failures.get("answer", found[place].why)
        found[place] = replace(found[place], correct=correct, why=why)
    return found


def _as_step(one: Attempt) -> StepContext:
    """The end of the solution, where the answer stands, as the only step there is."""
    return StepContext(
        problem=one.trajectory.problem,
        previous_steps=(),
        action=one.steps[-1].text if one.steps else "",
        thought="",
        expert_step="",
        step_index=0,
        num_steps=1,
        answer=one.trajectory.answer,
    )
