"""Several step rewards as one number, and what each of them said.

A weight of 0 records a reward without optimising it. Every name stands in the scores from the
start as None, so a reward that does not apply (or was never asked, because the completion broke
the format) shows as unscored and never as 0. A reward function that fails stops the run: an
exception silently read as a reward of 0 would train the policy on the bug.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from numbers import Real

from rewards.similarity import similarity_reward
from rewards.types import StepContext, StepReward

FORMAT_FAILURE_REWARD = -1.0
"""What a completion that breaks the format earns (arXiv 2510.25992, section 3)."""

BUILT_INS: dict[str, StepReward] = {
    "similarity": similarity_reward,
}


class RewardError(RuntimeError):
    """A reward function failed; the message names the function, the problem and the step."""


@dataclass(frozen=True)
class StepScore:
    """What one step earned.

    Attributes:
        rewards: name -> unweighted value; None where the reward does not apply or was not asked.
        reward: the weighted sum, which is what the policy is trained on.
    """

    rewards: dict[str, float | None]
    reward: float


class RewardSum:
    """The weighted sum of step rewards."""

    def __init__(self, rewards: Mapping[str | StepReward, float] | Mapping[str, float]) -> None:
        """Take the rewards with their weights.

        Args:
            rewards: built-in name or function -> weight. 0 records the value only; a negative
                weight punishes.

        Raises:
            ValueError: an unknown or doubled name, a weight that is no finite number, or nothing
                to optimise.
        """
        self._functions: dict[str, StepReward] = {}
        self._weights: dict[str, float] = {}
        for reward, weight in rewards.items():
            name, function = _resolve(reward)
            if name in self._functions:
                raise ValueError(
                    f"two step rewards are called {name!r}; the log needs one name for each: "
                    "rename one of the functions"
                )
            self._functions[name] = function
            self._weights[name] = _finite_weight(name, weight)
        if not any(self._weights.values()):
            raise ValueError(
                f"nothing to optimise: the step rewards are {self._weights or 'none at all'}; "
                "give at least one of them a weight other than 0, such as similarity: 1.0"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the rewards, in the order they were given."""
        return tuple(self._functions)

    @property
    def weights(self) -> dict[str, float]:
        """Name -> weight."""
        return dict(self._weights)

    def score(self, step: StepContext) -> StepScore:
        """Ask every reward about one step.

        Where no weighted reward applies, the sum is the empty one, 0.0. Whether a reward applies
        mostly depends on the problem, so such a group is flat and dynamic sampling drops it.

        Raises:
            RewardError: a reward raised, or returned something else than a finite number or None.
        """
        values = dict.fromkeys(self._functions, None) | {
            name: _ask(name, function, step) for name, function in self._functions.items()
        }
        total = sum(
            self._weights[name] * value for name, value in values.items() if value is not None
        )
        if not math.isfinite(total):
            raise RewardError(f"the weighted sum of {values} is {total} at {_place(step)}")
        return StepScore(values, float(total))

    def failed(self) -> StepScore:
        """The score of a completion that broke the format: no reward is asked."""
        return StepScore(dict.fromkeys(self._functions, None), FORMAT_FAILURE_REWARD)


def _resolve(reward: str | StepReward) -> tuple[str, StepReward]:
    if not isinstance(reward, str):
        return _name_of(reward), reward
    if reward not in BUILT_INS:
        near = get_close_matches(reward, BUILT_INS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no step reward is called {reward!r}; built in: {', '.join(BUILT_INS)}{hint}"
        )
    return reward, BUILT_INS[reward]


def _name_of(function: StepReward) -> str:
    """A function's own name; for a `partial` that of the function inside, else that of the class.

    A built-in keeps the name it has in `BUILT_INS`, however it was passed.
    """
    for name, built_in in BUILT_INS.items():
        if function is built_in:
            return name
    if not callable(function):
        raise ValueError(
            f"a step reward is a name or a function of a StepContext, not {function!r}; "
            f"built in: {', '.join(BUILT_INS)}"
        )
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _finite_weight(name: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise ValueError(
            f"the weight of step reward {name!r} is {weight!r}; "
            "give a finite number (0 records without optimising)"
        )
    return float(weight)


def _ask(name: str, function: StepReward, step: StepContext) -> float | None:
    try:
        value: object = function(step)
    except Exception as error:  # a user's function may raise anything; say which one, and where
        raise RewardError(
            f"step reward {name!r} raised {type(error).__name__}: {error} at {_place(step)}"
        ) from error
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise RewardError(
            f"step reward {name!r} returned {value!r} at {_place(step)}; "
            "return a finite float, or None where it does not apply"
        )
    return float(value)


def _place(step: StepContext) -> str:
    problem = step.problem if len(step.problem) <= 80 else step.problem[:77] + "..."
    return f"step {step.step_index + 1} of {step.num_steps} of problem {problem!r}"
