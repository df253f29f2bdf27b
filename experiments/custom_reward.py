"""Examples of your own step rewards: copy this file, change it, give its path. See docs/rewards.md.

    python -m srl score --action "So Kurt has 20/5=4 apples." --expert "So Kurt has 20/5=4 pears." \
        --rewards.experiments/custom_reward.py:same_object 1
    make train RUN=mine ARGS="--rewards.experiments/custom_reward.py:same_object 0.2"
    make inspect RUN=mine

A reward is a function of one step. If its parameter is called `steps`, it receives a list of steps.
It returns a number, or None where it does not apply. Options are the function's keyword-only
parameters, or the constructor's parameters of a class whose instances are called.
"""

from __future__ import annotations

import re

from rewards import StepContext

_LAST_WORD = re.compile(r"([a-z]+)\W*$")


def same_object(step: StepContext) -> float | None:
    """Returns 1.0 if the step ends with the same object as the expert's step, else 0.0.

    Returns None if the expert's step does not end with a word, as when it ends with a number.
    """
    wanted = _LAST_WORD.search(step.expert_step)
    if wanted is None:
        return None
    written = _LAST_WORD.search(step.action)
    return float(written is not None and written[1] == wanted[1])


def brief(step: StepContext, *, characters: int = 60) -> float:
    """Returns 1.0 for a thought of up to so many characters, falling to 0.0 at twice as many."""
    return min(1.0, max(0.0, 2.0 - len(step.thought) / characters))


def relative_brevity(steps: list[StepContext]) -> list[float]:
    """Returns, for each step of the batch, 1 minus its length relative to the longest step."""
    longest = max((len(step.action) for step in steps), default=0) or 1
    return [1.0 - len(step.action) / longest for step in steps]


class Mentions:
    """A reward: the share of the given words that occur in the step; case does not matter.

    In a config:  hedges: {name: "experiments/custom_reward.py:Mentions", weight: -0.1,
                           options: {words: [maybe, perhaps]}}
    """

    def __init__(self, words: list[str]) -> None:
        if not words:
            raise ValueError("words is empty; give at least one")
        self.words = [word.lower() for word in words]

    def __call__(self, step: StepContext) -> float:
        text = step.action.lower()
        return sum(word in text for word in self.words) / len(self.words)
