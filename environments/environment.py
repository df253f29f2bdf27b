"""A kind of work: where its problems come from, and when an attempt is finished and right.

A data set of maths text needs `load` alone: every other method has a default for solutions in words
that state an answer. A simulator writes the others too (docs/environments.md). Methods answer from
their arguments: attempts at many problems are made side by side, so an environment keeps no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from environments.answers import LONGEST_ANSWER, is_number, same_answer, stated_answer
from environments.prompts import PAPER_EVALUATION_PROMPT, PAPER_SYSTEM_PROMPT
from environments.types import DataError, LoadReport, Step, Trajectory


@dataclass(frozen=True)
class Verdict:
    """Whether an attempt is right.

    Attributes:
        correct: None where text and exact numbers do not settle it; the evaluation then asks the
            step reward `answer`, mathematics in a worker process.
        answer: what the attempt states or comes to, as text; None for nothing. Votes are over it.
        why: one line for the record; an empty one is not recorded.
    """

    correct: bool | None
    answer: str | None = None
    why: str = ""


@dataclass(frozen=True)
class Prompts:
    """The system prompts of a kind of work, where an experiment gives none of its own.

    Attributes:
        step: for one step.
        whole: for a whole solution in one completion.
    """

    step: str | None = PAPER_SYSTEM_PROMPT
    whole: str | None = PAPER_EVALUATION_PROMPT


class Environment:
    """Base class; what stands here is for mathematics in words."""

    prompts = Prompts()

    def load(
        self, path: str | None = None, *, report: LoadReport, limit: int | None = None
    ) -> list[Trajectory]:
        """Returns the expert solutions.

        Further keyword-only parameters are the options of the source, checked against their
        annotations. A loader that counts nothing in the report has used all its rows.

        Args:
            path: a file or a hub name; None for the source's own.
            report: counts rows read, kept and dropped.
            limit: how many trajectories; None for all.

        Raises:
            DataError: nothing to read, or nothing that can be used.
        """
        raise DataError(
            f"environment {type(self).__name__} has no method `load`; write "
            "def load(self, path=None, *, report, limit=None), which returns trajectories"
        )

    def judge(self, trajectory: Trajectory, steps: Sequence[Step]) -> Verdict:
        """Returns whether an attempt at a problem is right.

        Args:
            trajectory: the problem, with the expert's solution.
            steps: what the policy wrote, with its thoughts and what it observed. A whole solution
                in one completion is one step; an attempt that failed at once has none.
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
        return Verdict(None, answer)  # such as x(x+1) beside x^2+x, or R - r beside r - R

    def finished(self, trajectory: Trajectory, steps: Sequence[Step]) -> bool:
        """Returns whether an attempt ends with the last of these steps: it states an answer."""
        return stated_answer(steps[-1].text) is not None

    def observe(self, trajectory: Trajectory, steps: Sequence[Step]) -> str:
        """Returns what the world says after the last of these steps; an empty text for nothing."""
        return ""

    def context(self, trajectory: Trajectory, steps: Sequence[Step]) -> Sequence[Step]:
        """Returns those of the steps so far that the policy reads before it writes the next one."""
        return steps


MATHS = Environment()
"""What judges a trajectory that no environment has loaded."""


def environment_of(trajectory: Trajectory) -> Environment:
    """Returns the environment that a trajectory was loaded from, or mathematics in words."""
    return MATHS if trajectory.environment is None else trajectory.environment
