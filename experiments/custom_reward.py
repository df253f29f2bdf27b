"""Step rewards of your own: copy this file, change it, give its path. docs/rewards.md explains.

    python -m srl score --action "So Kurt has 20/5=4 apples." --expert "So Kurt has 20/5=4 pears." \
        --rewards.experiments/custom_reward.py:same_object 1
    make train RUN=mine ARGS="--rewards.experiments/custom_reward.py:same_object 0.2"
    make inspect RUN=mine

A reward is a function of one step, or, if its parameter is called `steps`, of a list of them. It
returns a number, or None where it does not apply. Options are keyword-only parameters, or those of
a class whose instances are called.
"""

from __future__ import annotations

import re

from rewards import StepContext

_LAST_WORD = re.compile(r"([a-z]+)\W*$")


def same_object(step: StepContext) -> float | None:
    """1.0 if the step ends with the object that the expert's ends with, 0.0 if with another.

    None where the expert's step ends with no word, as it does where only a number is left.
    """
    wanted = _LAST_WORD.search(step.expert_step)
    if wanted is None:
        return None
    written = _LAST_WORD.search(step.action)
    return float(written is not None and written[1] == wanted[1])


def brief(step: StepContext, *, characters: int = 60) -> float:
    """1.0 for a thought of up to so many characters, falling to 0.0 at twice as many."""
    return min(1.0, max(0.0, 2.0 - len(step.thought) / characters))


def rank_in_batch(steps: list[StepContext]) -> list[float]:
    """From 0.0 for the longest step of the batch to 1.0 for the shortest: all of them at once."""
    longest = max((len(step.action) for step in steps), default=0) or 1
    return [1.0 - len(step.action) / longest for step in steps]


class Mentions:
    """The share of some words that the step has in it.

    In a config:  hedges: {name: "experiments/custom_reward.py:Mentions", weight: -0.1,
                           options: {words: [maybe, perhaps]}}
    """

    def __init__(self, words: list[str]) -> None:
        if not words:
            raise ValueError("words is empty; give at least one")
        self.words = words

    def __call__(self, step: StepContext) -> float:
        text = step.action.lower()
        return sum(word in text for word in self.words) / len(self.words)
