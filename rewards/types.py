"""What a step reward sees, and what it returns.

A step reward is a plain function ``def my_reward(step: StepContext) -> float | None``. ``None``
means "does not apply to this step"; it is logged as null and counts nothing towards the sum. A
batched one takes all steps of a batch at once, ``def my_reward(steps: list[StepContext]) ->
list[float | None]``, and is told apart by the name of its parameter, ``steps``, or its annotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepContext:
    """Exactly what a reward may look at: one step of the policy beside the expert's.

    Attributes:
        problem: the problem's text.
        previous_steps: the steps already taken, which the policy saw in its prompt.
        action: the step the policy wrote, without its monologue.
        thought: the policy's monologue (the text inside ``<think> ... </think>``).
        expert_step: the step the expert took at this place.
        step_index: the place of the step in the expert's solution, counted from 0.
        num_steps: how many steps the expert's solution has.
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
