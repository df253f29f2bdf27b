"""The sum of rewards: weights, names, failures, and all its refusals."""

from __future__ import annotations

import dataclasses
import pickle
from functools import partial

import pytest

from rewards import (
    BUILT_INS,
    FORMAT_FAILURE_REWARD,
    RewardError,
    RewardSum,
    StepContext,
    similarity_reward,
)
from rewards.loading import READS, RewardSpec, load_reward


def step(
    action: str = "2 + 2 = 4", expert_step: str = "2 + 2 = 4", **changes: object
) -> StepContext:
    fields: dict[str, object] = {
        "problem": "How much is 2 + 2?", "previous_steps": (), "action": action, "thought": "",
        "expert_step": expert_step, "step_index": 0, "num_steps": 2,
    }  # fmt: skip
    return StepContext(**{**fields, **changes})  # type: ignore[arg-type]


def length(step: StepContext) -> float:
    return float(len(step.action))


def nothing(step: StepContext) -> None:
    return None


def nan(step: StepContext) -> float:
    return float("nan")


def text(step: StepContext) -> str:
    return "good"


def broken(step: StepContext) -> float:
    return 1 / 0


def test_sum_is_weighted_and_weight_zero_records_only() -> None:
    weighted = RewardSum({"similarity": 2.0, length: 0, nothing: 1.0})
    score = weighted.score([step()])[0]
    assert score.rewards == {"similarity": 1.0, "length": 9.0, "nothing": None}
    assert score.reward == 2.0
    assert weighted.names == ("similarity", "length", "nothing")
    assert weighted.weights == {"similarity": 2.0, "length": 0.0, "nothing": 1.0}


def test_a_format_failure_asks_no_reward() -> None:
    score = RewardSum({"similarity": 1.0, broken: 1.0}).failed("truncated")
    assert score.rewards == {"similarity": None, "broken": None}
    assert score.reward == FORMAT_FAILURE_REWARD == -1.0


def test_a_format_failure_earns_by_its_reason() -> None:
    rewards = RewardSum({"similarity": 1.0}, format_failure={"truncated": -0.9, "default": -0.5})
    assert rewards.failed("truncated").reward == -0.9
    assert rewards.failed("missing_open").reward == -0.5
    rest = RewardSum({"similarity": 1.0}, format_failure={"truncated": -0.9})
    assert rest.failed("missing_open").reward == FORMAT_FAILURE_REWARD


def test_no_reward_applies() -> None:
    assert RewardSum({nothing: 1.0}).score([step()])[0].reward == 0.0


def test_truth_values_count_as_numbers() -> None:
    def exact(step: StepContext) -> bool:
        return step.action == step.expert_step

    value = RewardSum({exact: 1.0}).score([step()])[0].rewards["exact"]
    assert value == 1.0
    assert type(value) is float


class Length:
    def __init__(self, unit: int) -> None:
        self.unit = unit

    def __call__(self, step: StepContext) -> float:
        return len(step.action) / self.unit


def test_names_of_callables() -> None:
    def scaled(step: StepContext, *, by: float) -> float:
        return by

    assert RewardSum({Length(2): 1.0, partial(scaled, by=3.0): 1.0}).names == ("Length", "scaled")
    assert RewardSum({similarity_reward: 1.0}).names == ("similarity",)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (nan, r"'nan' returned nan at step 1 of 2 of problem 'How much is 2 \+ 2\?'"),
        (text, "'text' returned 'good' at step 1 of 2"),
        (broken, "'broken' raised ZeroDivisionError: .* at step 1 of 2"),
    ],
)
def test_a_reward_that_fails_is_named(reward: object, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        RewardSum({reward: 1.0}).score([step()])  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"similarty": 1.0}, "'similarty'; built in: similarity, .*; did you mean 'similarity'"),
        ({"zzz": 1.0}, "no step reward is called 'zzz'; built in: .*module:name$"),
        ({"similarity": 0.0}, "nothing to optimise"),
        ({}, "nothing to optimise: the step rewards are none at all"),
        ({"similarity": float("nan")}, "weight of step reward 'similarity' is nan"),
        ({"similarity": "much"}, "weight of step reward 'similarity' is 'much'"),
        ({"similarity": True}, "is True; give a finite number"),
        ({"similarity": 1.0, similarity_reward: 1.0}, "two step rewards are called 'similarity'"),
        ({Length(1): 1.0, Length(2): 1.0}, "two step rewards are called 'Length'"),
        ({3: 1.0}, "a name or a function of a StepContext, not 3"),
    ],
)
def test_wrong_use_is_refused(given_: dict[object, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSum(given_)  # type: ignore[arg-type]


FIELDS = {
    "problem": "Another one?",
    "previous_steps": ("1 + 1 = 2",),
    "action": "2 + 2 = 5",
    "thought": "Let me see.",
    "expert_step": "2 + 2 = 4, so 4.",
    "step_index": 1,
    "num_steps": 7,
    "answer": "4",
    "source": "elsewhere",
    "metadata": {"kind": "other"},
}


@pytest.mark.parametrize("name", BUILT_INS)
def test_a_built_in_looks_at_what_it_says_and_at_nothing_else(name: str) -> None:
    """Steps that are equal in that share one score."""
    start = [
        step("\\boxed{4}", previous_steps=("2 + 2",), step_index=1, answer="4"),
        step("2 + 2 = 4", previous_steps=("2 + 2 = 4",)),
        step("2 + 2 = 3", "2 + 3 = 5, 3 + 3 = 7"),
    ]
    function = load_reward(RewardSpec(name, name)).function
    for one in start:
        for field, value in FIELDS.items():
            if field not in READS[name]:
                changed = dataclasses.replace(one, **{field: value})
                assert function(changed) == function(one), field  # type: ignore[arg-type]


@pytest.mark.parametrize("field", [*FIELDS])
def test_a_built_in_of_tomorrow_shares_no_score(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of what it looks at, so it is asked about every step."""
    monkeypatch.setitem(BUILT_INS, "tomorrow", BUILT_INS["length"])
    other = dataclasses.replace(step(), **{field: FIELDS[field]})  # type: ignore[arg-type]
    rewards = RewardSum({"similarity": 1.0, "tomorrow": 1.0}, workers=1)
    asked: list[int] = []
    monkeypatch.setattr(rewards._built_in, "batched", lambda: [False] * 3)
    monkeypatch.setattr(rewards._built_in, "submit", lambda steps, _: asked.append(len(steps)))
    rewards.submit([step(), other, step()])
    assert asked == [3]


def test_a_sum_can_be_sent_to_another_process() -> None:
    rewards = RewardSum({"similarity": 0.5, length: 1.0}, format_failure=-2.0)
    steps = [step(), step("2 + 2 = 5")]
    before = rewards.score(steps)
    again = pickle.loads(pickle.dumps(rewards))
    assert again.score(steps) == before
    assert again.failed("truncated") == rewards.failed("truncated")
    again.close()
    rewards.close()


@pytest.mark.parametrize(("weight", "value"), [(1.0, 1e31), (1e300, 1e8), (1e308, 1e8)])
def test_a_sum_that_cannot_be_computed_with_is_named(weight: float, value: float) -> None:
    """Advantages square it, and the loss is float32."""

    def large(step: StepContext) -> float:
        return value

    with pytest.raises(RewardError, match="the weighted sum of .*large.* is .*at most 1e"):
        RewardSum({large: weight}).score([step()])
