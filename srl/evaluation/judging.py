"""Verifies the answers that the environment leaves open, by mathematics.

Equal text and equal numbers need no check. Answers that only mathematics can show to be equal are
verified by the step reward `answer`, in worker processes with a deadline. If a check is killed, its
answer does not count as right. Without these checks, a policy that writes as the expert does would
score higher than one that is right equally often. Held-out problems and benchmarks are judged here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rewards import RewardSum, StepContext
from srl.config.parts import VerifierSettings
from srl.evaluation.solving import Attempt


def judged(attempts: Sequence[Attempt], args: VerifierSettings) -> list[Attempt]:
    """Returns the attempts, each with a verdict; workers start only if a verdict is open.

    Args:
        attempts: attempts from `srl.evaluation.solving`.
        args: the settings of the check.
    """
    if all(attempt.correct is not None for attempt in attempts):
        return list(attempts)
    verifier = make_verifier(args)
    try:
        return verified(attempts, verifier)
    finally:
        verifier.close()


def make_verifier(args: VerifierSettings) -> RewardSum:
    """Returns the step reward `answer` in worker processes; the caller must close it."""
    return RewardSum(
        {"answer": 1.0},
        deadline=args.reward_deadline,
        workers=args.reward_workers,
        for_training=False,
    )


def verified(attempts: Sequence[Attempt], verifier: RewardSum) -> list[Attempt]:
    """Returns the attempts; those that were open now have the verdict of the reward `answer`.

    If an answer is not right, `why` says whether its check was killed at the deadline or failed.
    """
    checked = list(attempts)
    open_ones = [place for place, attempt in enumerate(checked) if attempt.correct is None]
    scores = verifier.score([_as_step(checked[place]) for place in open_ones])
    for place, score in zip(open_ones, scores, strict=True):
        correct = score.rewards["answer"] == 1.0
        why = checked[place].why if correct else score.failures.get("answer", checked[place].why)
        checked[place] = replace(checked[place], correct=correct, why=why)
    return checked


def _as_step(attempt: Attempt) -> StepContext:
    """Returns the last step of the solution, which holds the answer, as the only step."""
    return StepContext(
        problem=attempt.trajectory.problem,
        previous_steps=(),
        action=attempt.steps[-1].text if attempt.steps else "",
        thought="",
        expert_step="",
        step_index=0,
        num_steps=1,
        answer=attempt.trajectory.answer,
    )
