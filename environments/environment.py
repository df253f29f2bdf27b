"""Defines `Environment`: it loads problems, ends attempts at them, and judges the attempts.

A data set of maths text needs only `load`: every other method has a default for solutions in words
that state an answer. A simulator defines the other methods too (docs/environments.md). Methods use
only their arguments. An environment keeps no state, because attempts at many problems run side by
side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from environments.answers import LONGEST_ANSWER, is_number, same_answer, stated_answer
from environments.prompts import PAPER_EVALUATION_PROMPT, PAPER_SYSTEM_PROMPT
from environments.types import DataError, LoadReport, Step, Trajectory


@dataclass(frozen=True)
class Verdict:
    """The judgement of one attempt.

    Attributes:
        correct: whether the attempt is right. None means that text and exact numbers do not settle
            it; the evaluation then asks the step reward `answer`, mathematics in a worker process.
        answer: the answer that the attempt states or reaches, as text; None if there is none. Votes
            compare these answers.
        why: one line for the record; an empty one is not recorded.
    """

    correct: bool | None
    answer: str | None = None
    why: str = ""


@dataclass(frozen=True)
class Prompts:
    """The default system prompts of a kind of work, used where an experiment sets none.

    Attributes:
        step: the prompt for one step.
        whole: the prompt for a whole solution in one completion.
    """

    step: str | None = PAPER_SYSTEM_PROMPT
    whole: str | None = PAPER_EVALUATION_PROMPT


class Environment:
    """The base class of environments. Its defaults are for mathematics in words."""

    prompts = Prompts()

    def load(
        self, path: str | None = None, *, report: LoadReport, limit: int | None = None
    ) -> list[Trajectory]:
        """Returns the expert solutions.

        Further keyword-only parameters are the options of the source. Their values are checked
        against the annotations. A loader that counts nothing in the report has used all its rows.

        Args:
            path: a file or a hub name; None for the source's own.
            report: counts rows read, kept and dropped.
            limit: how many trajectories; None for all.

        Raises:
            DataError: there is nothing to read, or nothing that can be used.
        """
        raise DataError(
            f"environment {type(self).__name__} has no method `load`; write "
            "def load(self, path=None, *, report, limit=None), which returns trajectories"
        )

    def judge(self, trajectory: Trajectory, steps: Sequence[Step]) -> Verdict:
        """Returns the verdict on an attempt at a problem.

        Args:
            trajectory: the problem, with the expert's solution.
            steps: the policy's steps, with its thoughts and the observations. A whole solution in
                one completion is one step. An attempt that failed at once has no steps.
        """
        answer = stated_answer(steps[-1].text, trajectory.problem) if steps else None
        gold = trajectory.answer
        if answer is None or gold is None:
            return Verdict(False, answer)
        if len(answer) > max(LONGEST_ANSWER, len(gold)):
            return Verdict(
                False,
                answer,
                f"its answer has {len(answer):,} characters; at most "
                f"{max(LONGEST_ANSWER, len(gold)):,} are checked",
            )
        if answer == gold or (is_number(answer) and is_number(gold)):
            return Verdict(same_answer(answer, gold), answer)
        return Verdict(None, answer)  # such as x(x+1) against x^2+x, or R - r against r - R

    def finished(self, trajectory: Trajectory, steps: Sequence[Step]) -> bool:
        """Returns whether the last of `steps` ends an attempt. By default, an answer ends it."""
        return stated_answer(steps[-1].text) is not None

    def observe(self, trajectory: Trajectory, steps: Sequence[Step]) -> str:
        """Returns the environment's reply to the last of `steps`; the default is an empty text."""
        return ""

    def context(self, trajectory: Trajectory, steps: Sequence[Step]) -> Sequence[Step]:
        """Returns the steps that the policy reads before it writes the next one; by default all."""
        return steps


MATHS = Environment()
"""The environment that judges trajectories without an environment of their own."""


def environment_of(trajectory: Trajectory) -> Environment:
    """Returns the environment of a trajectory, or `MATHS` if the trajectory has none."""
    return MATHS if trajectory.environment is None else trajectory.environment
