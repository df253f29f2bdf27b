"""Defines what a step reward receives and what it returns.

A step reward is a plain function ``def my_reward(step: StepContext) -> float | None``. ``None``
means "does not apply to this step"; it is logged as null and adds nothing to the sum.

A batched reward takes all steps of a batch at once:
``def my_reward(steps: list[StepContext]) -> list[float | None]``. It is recognised by the name of
its parameter, ``steps``, or by the annotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepContext:
    """The input of a step reward: one step of the policy, the expert's step and their context.

    Attributes:
        problem: the problem's text.
        previous_steps: the steps before this one, which the policy saw in its prompt.
        action: the step the policy wrote, without its monologue.
        thought: the policy's monologue (the text inside ``<think> ... </think>``).
        expert_step: the expert's step at the same position.
        step_index: the position of the step in the expert's solution, counted from 0.
        num_steps: the number of steps in the expert's solution.
        answer: the final answer of the problem, or None.
        source: the name of the data set or of the teacher.
        metadata: what the environment recorded about the problem.
    """

    problem: str
    previous_steps: tuple[str, ...]
    action: str
    thought: str
    expert_step: str
    step_index: int
    num_steps: int
    answer: str | None = None
    source: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)


SingleReward = Callable[[StepContext], float | None]
BatchedReward = Callable[[list[StepContext]], Sequence[float | None]]
StepReward = SingleReward | BatchedReward
