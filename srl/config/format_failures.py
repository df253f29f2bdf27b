"""The names of broken formats, and what each of them earns."""

from __future__ import annotations

from collections.abc import Mapping

from rewards import FORMAT_FAILURE_REWARD
from srl.errors import UsageError

FAILURES = (
    "truncated",  # the length limit cut the completion, whatever it holds
    "missing_open",  # no <think>
    "missing_close",  # no </think> after the first <think>
    "repeated_tag",  # a second <think> or </think>
    "text_before_think",  # words before <think>
    "unexpected_tag",  # a think tag from a policy that is told not to think
    "empty_action",  # nothing after </think>
    "several_steps",  # step `k. **...` goes on into step `k+1. **...`
)
"""Why a completion breaks the format. Where several hold, the first in this order is named."""

DEFAULT = "default"
"""Stands for all failures that a mapping does not name."""

_LEAST, _MOST = -1e6, 1e6


def checked_failure_reward(value: float | Mapping[str, float]) -> float | dict[str, float]:
    """What a broken format earns: one number, or a mapping by reason with its `default` filled in.

    A mapping pays for parts of the format, so none of its values may be above 0: a valid step earns
    at least that where the rewards are shares, from 0 to 1, with weights above 0.

    Raises:
        UsageError: an unknown reason, or a number that cannot be.
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
