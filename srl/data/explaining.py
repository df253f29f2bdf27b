"""Asks a policy why an expert took a step, and puts the answer before the step as its thought.

A thought comes before its step. So the question asks what the policy thinks before it knows the
step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from environments.types import Step, Trajectory
from rewards import normalize
from rewards.similarity import matching_blocks
from srl.data.steps import StepExample

INSTRUCTION = (
    "You explain solutions. You are given a problem, the solution so far and its next step. Say in "
    "one or two short sentences what has to be found out next and how, as if the next step had not "
    "been written yet. Do not repeat the next step."
)
"""The system prompt that asks the policy for an explanation."""

_QUESTION = "Why is this the next step?"

# Shown before every question, because a small model does not follow the instruction alone.
EXAMPLES = (
    (
        "Tom reads 15 pages a day. How many pages does he read in 2 weeks?",
        (),
        "Two weeks have 2 x 7 = 14 days.",
        "The pages are given for a day, but the question is about weeks. So we first need to know "
        "how many days that is.",
    ),
    (
        "Ann is taller than Bob. Carl is shorter than Bob. Who is the tallest?",
        ("Ann is taller than Bob, so it is not Bob.",),
        "Carl is shorter than Bob, so it is not Carl.",
        "Bob is ruled out. We look at the other sentence to see whether Carl can be the tallest.",
    ),
    (
        "A baker makes 12 loaves and then twice as many. He sells 30. How many are left?",
        ("Then he makes 12 x 2 = 24 loaves.",),
        "In all he makes 12 + 24 = 36 loaves.",
        "Now both numbers of loaves are known. Before we take away what was sold, we add them to "
        "get all the loaves.",
    ),
)


def worked_examples() -> list[StepExample]:
    """Returns questions with their answers, for the argument `shots` of `PromptFormat`."""
    return [
        StepExample(Trajectory(question(problem, so_far, step), (Step(explanation),)), 0)
        for problem, so_far, step, explanation in EXAMPLES
    ]


def question(problem: str, so_far: Sequence[str], step: str) -> str:
    """Returns the question about one step.

    Args:
        problem: the problem's text.
        so_far: the texts of the steps before it and of their observations.
        step: the expert's step.
    """
    before = "\n".join(part.strip() for part in so_far if part.strip()) or "(nothing yet)"
    return (
        f"Problem:\n{problem.strip()}\n\nSolution so far:\n{before}\n\n"
        f"Next step:\n{step.strip()}\n\n{_QUESTION}"
    )


def with_thought(example: StepExample, thought: str) -> StepExample:
    """Returns the row with `thought` as the thought before its step."""
    steps = list(example.trajectory.steps)
    steps[example.step_index] = replace(steps[example.step_index], thought=thought)
    return replace(example, trajectory=replace(example.trajectory, steps=tuple(steps)))


def cut_around(
    completion: list[int], step: str, read: Callable[[Sequence[int]], str]
) -> tuple[list[int], list[int]] | None:
    """Returns the tokens before the step and the step's own tokens; None if there is no step.

    The step's tokens are the fewest that hold its whole text. The search starts at the end, because
    a thought may hold the step too. A token that holds the end of the tag and the beginning of the
    step belongs to the step.

    Args:
        completion: a thought, the step and the end token.
        step: the step's text.
        read: tokens -> text, as `PromptFormat.read`.
    """
    step, length = step.strip(), len(completion)
    start = next((n for n in range(length, -1, -1) if step in read(completion[n:])), None)
    if start is None:
        return None
    end = next(n for n in range(start, length + 1) if step in read(completion[start:n]))
    return completion[:start], completion[start:end]


def in_thought(step: str, thought: str) -> float:
    """Returns the length of the step's longest piece in the thought, over the step's length.

    Case and the amount of white space do not matter.
    """
    wanted, written = (" ".join(normalize(text).lower().split()) for text in (step, thought))
    if not wanted:
        return 0.0
    longest = max((size for _, _, size in matching_blocks(written, wanted)), default=0)
    return longest / len(wanted)
