"""Builds one training row per expert step: the problem, the steps so far, and the step to write.

With targets `whole` it builds one row per solution, whose single step is the whole solution. A
reward for the final answer makes that RLVR; a reward for similarity makes it the paper's one-step
baseline.

The paper's literal reading gives an expert solution of N steps N-1 rows, so the last step, which
has the answer, is never a target (arXiv 2510.25992, section 3). The two other readings are `all`
and `skip_first`. Problems, not rows, are held out: steps of one problem on both sides of a split
would leak its solution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from environments.asking import context_of
from environments.splitting import step_title as title_of
from environments.types import Step, Trajectory
from rewards.types import StepContext
from srl.errors import UsageError

Targets = Literal["literal", "all", "skip_first", "whole"]
StepTitle = Literal["off", "given"]


@dataclass(frozen=True)
class StepExample:
    """One step for the policy to write.

    Attributes:
        trajectory: the expert's whole solution.
        step_index: the index of the target step in the solution, from 0.
        title: the target step's title if it is part of the context, else None.
        whole: the target is the whole solution, as a single step.
    """

    trajectory: Trajectory
    step_index: int
    title: str | None = None
    whole: bool = False

    @property
    def problem(self) -> str:
        """Returns the problem's text."""
        return self.trajectory.problem

    @property
    def problem_id(self) -> str:
        """Returns the problem's id, equal for equal problems."""
        return self.trajectory.problem_id

    @property
    def source(self) -> str:
        """Returns the name of the data set or of the teacher."""
        return self.trajectory.source

    @property
    def answer(self) -> str | None:
        """Returns the problem's final answer; None if the data has no answer."""
        return self.trajectory.answer

    @property
    def previous(self) -> tuple[Step, ...]:
        """Returns the expert's steps before the target that the policy reads, with observations."""
        before = self.trajectory.steps[: self.step_index]
        return context_of(self.trajectory, before)

    @property
    def previous_steps(self) -> tuple[str, ...]:
        """Returns the texts of `previous`. With problem and observations they are the context."""
        return tuple(step.text for step in self.previous)

    @property
    def expert_step(self) -> str:
        """Returns the target's text; for a whole solution, its steps joined by line ends."""
        if self.whole:
            return "\n".join(self.trajectory.texts)
        return self.trajectory.steps[self.step_index].text

    @property
    def expert_steps(self) -> tuple[Step, ...]:
        """Returns the target as steps: one step, or all steps of a whole solution."""
        steps = self.trajectory.steps
        return steps if self.whole else steps[self.step_index : self.step_index + 1]

    @property
    def num_steps(self) -> int:
        """Returns the number of steps of the expert's solution; 1 if the target is all of it."""
        return 1 if self.whole else len(self.trajectory.steps)

    def context(self, action: str, thought: str) -> StepContext:
        """Returns what a reward reads if the policy wrote `action` after `thought`."""
        return StepContext(
            problem=self.problem,
            previous_steps=self.previous_steps,
            action=action,
            thought=thought,
            expert_step=self.expert_step,
            step_index=self.step_index,
            num_steps=self.num_steps,
            answer=self.answer,
            source=self.source,
            metadata=self.trajectory.metadata,
        )


def build_examples(
    trajectories: Iterable[Trajectory],
    *,
    targets: Targets = "literal",
    step_title: StepTitle = "off",
    also_whole: bool = False,
) -> list[StepExample]:
    """Returns the rows of expert solutions, in the order of the solutions and of their steps.

    Args:
        trajectories: the expert solutions.
        targets: which of the steps 1..N become targets: `literal` 1..N-1, `all` 1..N,
            `skip_first` 2..N. A solution of one step gives a step row under `all` only. `whole`
            gives one row for the whole solution.
        step_title: `given` puts the target's own title into the context (footnote 1 of the
            paper), if the step has a title.
        also_whole: adds a row for the whole solution after the step rows of each solution.

    Raises:
        UsageError: `targets` or `step_title` has an unknown value, or the two exclude each other.
    """
    _one_of("targets", targets, get_args(Targets))
    _one_of("step_title", step_title, get_args(StepTitle))
    if targets == "whole":
        if step_title != "off":
            raise UsageError(
                f"step_title is {step_title!r}, but under targets: whole there is no step that a "
                "title could announce; set step_title: off, or other targets"
            )
        return [
            StepExample(trajectory, 0, whole=True)
            for trajectory in trajectories
            if trajectory.steps
        ]
    rows = []
    for trajectory in trajectories:
        first = 1 if targets == "skip_first" else 0
        for index in range(first, len(trajectory.steps) - (1 if targets == "literal" else 0)):
            title = title_of(trajectory.steps[index].text) if step_title == "given" else None
            rows.append(StepExample(trajectory, index, title))
        if also_whole and trajectory.steps:
            rows.append(StepExample(trajectory, 0, whole=True))
    return rows


def trajectory_numbers(examples: Sequence[StepExample]) -> list[int]:
    """Returns the number of each row's trajectory, from 0 in order of first appearance."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(id(example.trajectory), len(numbers)) for example in examples]


def split_by_problem(
    trajectories: Iterable[Trajectory], *, held_out: int, seed: int
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Splits solutions into training and held-out parts, by whole problems.

    Problems are ranked by a hash of the seed and their id. So the same seed holds out the same
    problems whatever the order of the input, and a larger `held_out` only adds problems.

    Args:
        trajectories: the expert solutions; several may share a problem.
        held_out: how many problems to hold out, at least 0.
        seed: chooses the problems.

    Returns:
        The solutions to train on and the held-out solutions, both in the order of the ranking.

    Raises:
        UsageError: `held_out` is negative or leaves no problem to train on.
    """
    by_problem: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_problem.setdefault(trajectory.problem_id, []).append(trajectory)
    if held_out < 0 or held_out >= len(by_problem):
        raise UsageError(
            f"cannot hold out {held_out} of {len(by_problem)} distinct problems; "
            f"give a number from 0 to {max(len(by_problem) - 1, 0)}, or more data"
        )
    ranked = sorted(
        by_problem, key=lambda problem: hashlib.sha256(f"{seed}:{problem}".encode()).digest()
    )
    ordered = [
        sorted(
            by_problem[problem],
            key=lambda trajectory: (trajectory.source, trajectory.texts, trajectory.steps),
        )
        for problem in ranked
    ]
    return (
        [solution for solutions in ordered[held_out:] for solution in solutions],
        [solution for solutions in ordered[:held_out] for solution in solutions],
    )


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{field} is {value!r}; allowed: {', '.join(allowed)}")
