"""Defines the reasons of a broken format, and checks the reward of each."""

from __future__ import annotations

from collections.abc import Mapping

from rewards import FORMAT_FAILURE_REWARD
from srl.errors import UsageError

FAILURES = (
    "truncated",  # the length limit cut the completion, whatever it contains
    "missing_open",  # no <think>
    "missing_close",  # no </think> after the first <think>
    "repeated_tag",  # a second <think> or </think>
    "text_before_think",  # words before <think>
    "unexpected_tag",  # a think tag although `think` is false
    "empty_action",  # nothing after </think>
    "several_steps",  # step `k. **...` is followed by step `k+1. **...`
)
"""The reasons why a completion breaks the format. If several apply, the first of them is named."""

DEFAULT = "default"
"""The key for all failures that a mapping does not name."""

_LEAST, _MOST = -1e6, 1e6


def checked_failure_reward(value: float | Mapping[str, float]) -> float | dict[str, float]:
    """Returns the checked reward of a broken format: a number, or a mapping with its `default`.

    A mapping can reward parts of the format, so none of its values may be above 0. A valid step
    earns at least 0 if the rewards are shares from 0 to 1 with weights above 0.

    Raises:
        UsageError: a reason is unknown, or a number is not allowed.
    """
    if not isinstance(value, Mapping):
        if not _LEAST <= value <= _MOST:
            raise UsageError(
                f"format_failure_reward is {value}; give a finite number, such as -1 or 0 (from "
                "-1e6 to 1e6), or a mapping by reason, such as {truncated: -1, default: -0.5}"
            )
        return float(value)
    for name, earned in value.items():
        if name not in (*FAILURES, DEFAULT):
            raise UsageError(
                f"format_failure_reward names {name!r}; allowed: {', '.join(FAILURES)}, and "
                f"{DEFAULT} for all others"
            )
        if isinstance(earned, bool) or not isinstance(earned, int | float):
            raise UsageError(f"format_failure_reward.{name} is {earned!r}; give a number")
        if not _LEAST <= earned <= 0:
            raise UsageError(
                f"format_failure_reward.{name} is {earned}; give a number from -1e6 to 0, so that "
                "a broken format never earns more than a valid step"
            )
    return {DEFAULT: FORMAT_FAILURE_REWARD} | {name: float(value[name]) for name in value}
