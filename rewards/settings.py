"""Checks rewards as users write them: `similarity: 0.5`, `{name: mine.py:units, weight: 1}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real

from rewards.by_path import CodeNameError
from rewards.loading import BUILT_INS, LoadedReward, RewardSpec, bind, found_target
from rewards.types import StepReward


@dataclass(frozen=True)
class WeightedReward:
    """One reward of a sum."""

    name: str  # its name in the log
    weight: float  # finite; 0: recorded only; negative: a penalty
    reward: RewardSpec | LoadedReward  # a name to load later, or a function
    shown: str  # how messages show it


def read_settings(reward: str | StepReward, settings: object) -> WeightedReward:
    """Reads and checks one entry of the `rewards` setting.

    Args:
        reward: the key: a name, or a function.
        settings: the weight, or a mapping of weight, options and name.

    Raises:
        ValueError: something in the entry is unknown, missing or invalid.
    """
    weight, target, key = settings, reward, None
    options: object = {}
    if isinstance(settings, Mapping):
        unknown = sorted(set(map(str, settings)) - {"weight", "options", "name"})
        if unknown or "weight" not in settings:
            wrong = f"{', '.join(unknown)} in it is unknown" if unknown else "it has no weight"
            raise ValueError(
                f"step reward {reward!r} is {dict(settings)}: {wrong}; give a number, or "
                "{weight: 0.5, options: {...}, name: similarity}"
            )
        weight, options = settings["weight"], settings.get("options") or {}
        if "name" in settings:
            key, target = str(reward), settings["name"]
    if not isinstance(options, Mapping):
        raise ValueError(f"the options of step reward {reward!r} are {options!r}, no mapping")
    built_in = target if isinstance(target, str) else _built_in_of(target)
    name = key or name_of(target)
    number = _finite_weight(name, weight)
    step_reward = (
        bind(target, options, f"step reward {name!r}")
        if built_in is None
        else RewardSpec(name, found_target(built_in), dict(options))
    )
    shown = target if isinstance(target, str) else "the function"
    return WeightedReward(name, number, step_reward, shown)


def name_of(reward: object) -> str:
    """Returns the log's name for a reward that was given without an explicit name.

    A built-in keeps its name, whether given by name or as a function. `file.py:name` gets its last
    part, a function its own name, a `partial` the name of the wrapped function, and an instance the
    name of its class.

    Raises:
        CodeNameError: `reward` is neither a name nor callable.
    """
    if isinstance(reward, str):
        return reward if reward in BUILT_INS else reward.rpartition(":")[2]
    if not callable(reward):
        raise CodeNameError(
            f"a step reward is a name or a function of a StepContext, not {reward!r}; "
            f"built in: {', '.join(BUILT_INS)}"
        )
    built_in = _built_in_of(reward)
    if built_in is not None:
        return built_in
    while isinstance(reward, partial):
        reward = reward.func
    return str(getattr(reward, "__name__", type(reward).__name__))


def _built_in_of(function: object) -> str | None:
    """Returns the name of a built-in that was passed as a function; None for anything else."""
    place = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    return next((name for name, target in BUILT_INS.items() if target == place), None)


def _finite_weight(name: str, weight: object) -> float:
    try:
        # YAML reads 1e-1 as a string.
        number = float(weight) if isinstance(weight, Real | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(weight, bool) or not math.isfinite(number):
        raise ValueError(
            f"the weight of step reward {name!r} is {weight!r}; "
            "give a finite number (0 records without optimising)"
        )
    return number
