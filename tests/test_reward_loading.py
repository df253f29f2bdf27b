"""Step rewards by name: which are called with one step and which with a batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rewards import BUILT_INS, RewardSum, StepContext
from rewards.loading import LoadedReward, RewardNameError, RewardSpec, bind, load_reward


def single_unnamed(s): ...  # type: ignore[no-untyped-def]
def single_annotated(s: StepContext) -> float: ...  # type: ignore[empty-body]
def batch_named(steps): ...  # type: ignore[no-untyped-def]
def batch_list(s: list[StepContext]) -> list[float]: ...  # type: ignore[empty-body]
def batch_sequence(s: Sequence[StepContext]) -> list[float]: ...  # type: ignore[empty-body]
def any_number(*s): ...  # type: ignore[no-untyped-def]


class BatchCall:
    def __call__(self, s: list[StepContext]) -> list[float]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "batched"),
    [
        (single_unnamed, False),
        (single_annotated, False),
        (any_number, False),
        (batch_named, True),
        (batch_list, True),
        (batch_sequence, True),
        (BatchCall, True),
        (BatchCall(), True),
    ],
)
def test_how_a_batched_function_is_told(function: object, batched: bool) -> None:
    assert bind(function, {}, "it").batched is batched


def test_built_ins_load() -> None:
    for name in BUILT_INS:
        loaded = load_reward(RewardSpec(name, name))
        assert isinstance(loaded, LoadedReward)
        assert not loaded.batched


def test_an_unknown_reward_is_a_wrong_name() -> None:
    with pytest.raises(RewardNameError):
        RewardSum({"similarty": 1.0})
