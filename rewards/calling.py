"""Calls a reward and returns an outcome for each step: a value, or a description of the failure.

An exception in a reward becomes an outcome. Worker processes use this module, and so does the main
process for rewards that were given as Python functions.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from rewards.loading import LoadedReward
from rewards.secrets import concealed
from rewards.types import StepContext

# These types do not give values in the order of the steps.
Unordered = Mapping | Set | str

DEADLINE = "deadline"
"""The failure of a call that was stopped because it took too long."""


@dataclass(frozen=True)
class Outcome:
    """The result of one reward for one step."""

    value: float | None = None  # finite; None: it does not apply, or it failed
    failure: str | None = None  # "deadline", or a description of the failure
    trace: str = ""  # the traceback of an exception
    seconds: float = 0.0  # duration of the call; of a batched call, one step's share


def call(reward: LoadedReward, steps: Sequence[StepContext]) -> list[Outcome]:
    """Returns one outcome per step; a reward that is not batched is called once per step."""
    if reward.batched:
        return _call(reward, list(steps))
    return [outcome for step in steps for outcome in _call(reward, [step])]


def _call(reward: LoadedReward, steps: list[StepContext]) -> list[Outcome]:
    started = time.perf_counter()
    try:
        output: object = reward.function(steps if reward.batched else steps[0])  # type: ignore[arg-type]
        if reward.batched and isinstance(output, Iterable) and not isinstance(output, Unordered):
            output = list(output)  # an array, or a generator that runs here
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything
        return [_raised(error, reward)] * len(steps)
    seconds = (time.perf_counter() - started) / max(1, len(steps))
    values = output if reward.batched else [output]
    if not isinstance(values, list) or len(values) != len(steps):
        came = f"{len(values)} values" if isinstance(values, list) else repr(values)[:80]
        failed = Outcome(failure=f"returned {came} for {len(steps)} steps")
        return [failed] * len(steps)
    return [_checked(value, seconds) for value in values]


def _raised(error: BaseException, reward: LoadedReward) -> Outcome:
    try:
        # The last frame shows where the error happened; the first frame is in this module.
        frames = traceback.extract_tb(error.__traceback__)[1:]
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        return Outcome(
            failure=concealed(f"raised {type(error).__name__}: {error}{place}", reward.options),
            trace=concealed("".join(traceback.format_exception(error)), reward.options),
        )
    except Exception:  # noqa: BLE001 - an exception that cannot be shown as text
        return Outcome(failure=f"raised {type(error).__name__}")


def _checked(value: object, seconds: float) -> Outcome:
    if value is None:
        return Outcome(seconds=seconds)
    # A tensor or array that holds one number is a number.
    if not isinstance(value, Real) and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    try:
        if isinstance(value, Real) and math.isfinite(value):
            return Outcome(value=float(value), seconds=seconds)
    except OverflowError:  # an integer too large for a float
        pass
    return Outcome(failure=f"returned {short(repr(value))}")


def short(text: str) -> str:
    """Returns the text, shortened to at most 80 characters."""
    return text if len(text) <= 80 else f"{text[:77]}..."
