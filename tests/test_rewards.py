"""The similarity reward against difflib itself, and the sum of rewards with all its refusals."""

from __future__ import annotations

import difflib
import json
import random
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import (
    FORMAT_FAILURE_REWARD,
    RewardError,
    RewardSum,
    StepContext,
    normalize,
    similarity,
    similarity_lift,
    similarity_reward,
)
from rewards.similarity import _blocks, matching_blocks

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_train.jsonl"


def step(
    action: str = "2 + 2 = 4", expert_step: str = "2 + 2 = 4", **changes: object
) -> StepContext:
    fields: dict[str, object] = {
        "problem": "How much is 2 + 2?", "previous_steps": (), "action": action, "thought": "",
        "expert_step": expert_step, "step_index": 0, "num_steps": 2,
    }  # fmt: skip
    return StepContext(**{**fields, **changes})  # type: ignore[arg-type]


def oracle(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, normalize(a), normalize(b), autojunk=False).ratio()


few_letters = st.text(alphabet="ab \n", max_size=60)


@given(few_letters | st.text(max_size=60), few_letters | st.text(max_size=60))
def test_similarity_is_difflib_on_the_normalised_strings(a: str, b: str) -> None:
    assert similarity(a, b) == oracle(a, b)


def test_similarity_is_difflib_on_long_text() -> None:
    rng = random.Random(0)
    words = ["the", "of", "price", "apples", "then", "is", "12", "3.5", "+", "=", "per", "hour"]
    for _ in range(20):
        a, b = (" ".join(rng.choices(words, k=rng.randint(40, 150))) for _ in range(2))
        assert similarity(a, b) == oracle(a, b)


def test_autojunk_is_off() -> None:
    rng = random.Random(1)
    words = rng.choices(["the", "total", "price", "of", "apples", "is"], k=80)
    changed = [w if rng.random() > 0.3 else "xyzzy" for w in words]
    a, b = " ".join(changed), " ".join(words)
    with_autojunk = difflib.SequenceMatcher(None, a, b).ratio()
    assert similarity(a, b) == oracle(a, b) > with_autojunk + 0.1


def test_the_first_argument_is_the_action() -> None:
    a, b = "tide", "diet"  # the example of difflib's own documentation
    assert oracle(a, b) == 0.25
    assert oracle(b, a) == 0.5
    assert similarity_reward(step(action=a, expert_step=b)) == 0.25


@given(st.text(max_size=80))
def test_a_copy_scores_exactly_one(text: str) -> None:
    assert similarity(text, text) == 1.0
    assert similarity(f"\n  {text} \r\n", text) == 1.0


@given(st.text(max_size=80))
def test_normalize_is_idempotent(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


def test_normalize_touches_only_line_ends_and_the_outside() -> None:
    assert normalize(" a  b\t\r\n  c \rd \n\n") == "a  b\n  c\nd"


def test_empty_steps() -> None:
    assert similarity("", " \n") == 1.0
    assert similarity("", "x") == similarity("x", "") == 0.0


def test_looping_text_is_bounded_and_never_overrated() -> None:
    start = time.perf_counter()
    looping = similarity("abc" * 2000, "acb" * 2000)  # minutes without the bound
    assert time.perf_counter() - start < 20
    assert 0.0 < looping < 0.5


@given(few_letters, few_letters, st.integers(0, 400))
def test_a_smaller_budget_never_raises_the_score(a: str, b: str, budget: int) -> None:
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    exact = sum(block.size for block in blocks)
    assert sum(size for _, _, size in _blocks(a, b, False)) == exact
    assert 0 <= sum(size for _, _, size in _blocks(a, b, False, budget)) <= exact
    assert matching_blocks(a, b) == [tuple(block) for block in blocks if block.size]


def test_lift_is_over_a_copy_of_the_previous_step() -> None:
    assert similarity_lift(step()) is None
    second = step("3 + 1 = 4", "3 + 1 = 4", previous_steps=("x", "3 + 1 = 5"), step_index=1)
    assert similarity_lift(second) == pytest.approx(1.0 - 16 / 18)
    copy = step("3 + 1 = 5", "3 + 1 = 4", previous_steps=("x", "3 + 1 = 5"), step_index=1)
    assert similarity_lift(copy) == 0.0


@pytest.mark.skipif(not GSM8K.exists(), reason="needs ../shared/data/gsm8k_train.jsonl")
def test_real_steps_score_one_against_themselves_and_as_difflib_against_each_other() -> None:
    with GSM8K.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["answer"] for line, _ in zip(lines, range(40), strict=False)]
    for a, b in pairwise(texts):
        assert similarity(a, a) == 1.0
        assert similarity(a, b) == oracle(a, b)


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
    score = RewardSum({"similarity": 1.0, broken: 1.0}).failed()
    assert score.rewards == {"similarity": None, "broken": None}
    assert score.reward == FORMAT_FAILURE_REWARD == -1.0


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
        ({"similarity": "1"}, "weight of step reward 'similarity' is '1'"),
        ({"similarity": True}, "is True; give a finite number"),
        ({"similarity": 1.0, similarity_reward: 1.0}, "two step rewards are called 'similarity'"),
        ({Length(1): 1.0, Length(2): 1.0}, "two step rewards are called 'Length'"),
        ({3: 1.0}, "a name or a function of a StepContext, not 3"),
    ],
)
def test_wrong_use_is_refused(given_: dict[object, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSum(given_)  # type: ignore[arg-type]
