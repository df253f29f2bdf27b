"""Solving with a scripted policy, and the figures: shares, intervals, means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
from transformers import PreTrainedTokenizerFast

from environments.types import Trajectory
from rewards import RewardSum, similarity
from srl.data.prompts import PromptFormat
from srl.data.steps import build_examples
from srl.evaluation.behaviour import behaviour
from srl.evaluation.solving import (
    Attempt,
    accuracy,
    by_length,
    by_problem,
    solve_step_by_step,
    solve_whole,
)
from srl.rollout.rollouts import rollout_metrics, sample_rollouts
from srl.rollout.samplers import Completion, Prompt, SamplingParams
from srl.stats import bootstrap, wilson

PARAMS = SamplingParams(max_new_tokens=40, temperature=0)
CUT = "<cut>"  # at the end of a script's text: the length limit cut it there


@dataclass
class ScriptedPolicy:
    """A sampler that looks its completions up by the words of the prompt, and remembers it."""

    tokenizer: PreTrainedTokenizerFast
    script: dict[str, list[str]]
    asked: list[list[str]] = field(default_factory=list)

    remembering = nullcontext

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        params: SamplingParams,
        *,
        first_sample: int = 0,
    ) -> Iterator[tuple[int, list[Completion]]]:
        words = [self.tokenizer.decode(list(prompt.ids)) for prompt in prompts]
        if words:
            self.asked.append(words)
        done = [self.completions(key, num_samples) for key in words]
        yield from reversed(list(enumerate(done)))  # any order will do

    def completions(self, key: str, count: int) -> list[Completion]:
        return [self.write(text) for text in self.script[key][:count]]

    def write(self, text: str) -> Completion:
        ids = self.tokenizer.encode(text.removesuffix(CUT), add_special_tokens=False)
        if text.endswith(CUT):
            return Completion(ids, truncated=True)
        return Completion([*ids, self.tokenizer.eos_token_id], truncated=False)


@pytest.fixture
def form(byte_tokenizer: PreTrainedTokenizerFast) -> PromptFormat:
    return PromptFormat(byte_tokenizer, system_prompt=None, whole_system_prompt=None)


def problem(name: str, answer: str | None = "2", steps: int = 2) -> Trajectory:
    return Trajectory(name, tuple(f"expert {k}" for k in range(steps)), answer, "made up")


def prompt(*parts: str) -> str:
    return "".join(part + "\n\n" for part in parts)


def texts(attempt: Attempt) -> tuple[str, ...]:
    return tuple(one.text for one in attempt.steps)


def step(text: str) -> str:
    return f"<think>hm</think>{text}"


def test_own_steps_are_fed_back_until_an_answer(form: PromptFormat) -> None:
    script = {
        prompt("A"): [step("one")],
        prompt("B"): [step("\nThe answer is 3. ")],
        prompt("A", "one"): [step("two")],
        prompt("A", "one", "two"): [step("The answer is 2.")],
    }
    policy = ScriptedPolicy(form.tokenizer, script)
    told: list[str] = []
    a, b = solve_step_by_step(
        policy,
        form,
        [problem("A"), problem("B")],
        params=PARAMS,
        max_steps=9,
        context_limit=None,
        first_sample=7,
        tick=told.append,
    )
    assert [len(words) for words in policy.asked] == [2, 1, 1]
    assert (texts(a), a.answer, a.correct) == (("one", "two", "The answer is 2."), "2", True)
    assert (texts(b), b.answer, b.correct) == (("The answer is 3.",), "3", False)
    assert a.failure is b.failure is None
    assert {a.mode, b.mode} == {"steps"}
    assert a.sample == 7
    # Every token counts, thoughts and end tokens as well
    assert b.tokens == len(step("\nThe answer is 3. ")) + 1
    assert told[0] == "step 1, 2 of 2 attempts unfinished"
    assert told[2] == "step 3, 1 of 2 attempts unfinished"


class InTurn(ScriptedPolicy):
    """Asked for the same prompt again, it writes the next of its completions."""

    def completions(self, key: str, count: int) -> list[Completion]:
        return [self.write(self.script[key].pop(0)) for _ in range(count)]


def test_samples_are_taken_side_by_side(form: PromptFormat) -> None:
    script = {
        prompt("A"): [step("one"), step("The answer is 2."), step("one")],
        prompt("B"): [step("The answer is 2."), step("two"), step("two")],
        prompt("A", "one"): [step("The answer is 2."), step("The answer is 3.")],
        prompt("B", "two"): [step("three"), step("The answer is 2.")],
        prompt("B", "two", "three"): [step("The answer is 4.")],
    }
    policy = InTurn(form.tokenizer, script)
    found = solve_step_by_step(
        policy,
        form,
        [problem("A"), problem("B")],
        params=PARAMS,
        max_steps=9,
        context_limit=None,
        num_samples=3,
        first_sample=1,
    )
    assert [len(words) for words in policy.asked] == [6, 4, 1]
    assert [(a.trajectory.problem, a.sample, a.answer) for a in found] == [
        *(("A", 1, "2"), ("B", 1, "2")),
        *(("A", 2, "2"), ("B", 2, "4")),
        *(("A", 3, "3"), ("B", 3, "2")),
    ]


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("The answer is 2.", "missing_open"),
        ("<think>The answer is 2.", "missing_close"),
        ("<think>hm</think>", "empty_action"),
        (step("The answer is 2.") + CUT, "truncated"),
    ],
)
def test_a_broken_format_ends_the_attempt(form: PromptFormat, text: str, failure: str) -> None:
    script = {prompt("A"): [step("one")], prompt("A", "one"): [text]}
    policy = ScriptedPolicy(form.tokenizer, script)
    (attempt,) = solve_step_by_step(
        policy, form, [problem("A")], params=PARAMS, max_steps=9, context_limit=None
    )
    assert (attempt.failure, texts(attempt)) == (failure, ("one",))
    assert attempt.answer is None
    assert not attempt.correct


def test_solving_gives_up(form: PromptFormat) -> None:
    script = {
        prompt("A"): [step("a")],
        prompt("A", "a"): [step("a")],
        prompt("B" * 30): [step("b")],
        prompt("B" * 30, "b"): [step("The answer is 2.")],
    }

    def solve(max_steps: int, context_limit: int | None) -> list[tuple[int, str | None, bool]]:
        attempts = solve_step_by_step(
            ScriptedPolicy(form.tokenizer, script),
            form,
            [problem("A"), problem("B" * 30)],
            params=PARAMS,
            max_steps=max_steps,
            context_limit=context_limit,
        )
        return [(len(attempt.steps), attempt.failure, attempt.correct) for attempt in attempts]

    assert solve(1, None) == [(1, "no_answer", False), (1, "no_answer", False)]
    assert solve(2, None) == [(2, "no_answer", False), (2, None, True)]
    # 40 tokens to write; the prompts of B take 32 and then 35, those of A 3 and 6
    assert solve(2, 75) == [(2, "no_answer", False), (2, None, True)]
    assert solve(2, 74) == [(2, "no_answer", False), (1, "context_limit", False)]
    assert solve(2, 72) == [(2, "no_answer", False), (1, "context_limit", False)]
    assert solve(2, 71) == [(2, "no_answer", False), (0, "context_limit", False)]
    assert solve(2, 42) == [(0, "context_limit", False)] * 2


def test_a_problem_without_an_answer_cannot_be_solved(form: PromptFormat) -> None:
    policy = ScriptedPolicy(form.tokenizer, {prompt("A"): [step("The answer is 2.")]})
    (attempt,) = solve_step_by_step(
        policy, form, [problem("A", None)], params=PARAMS, max_steps=1, context_limit=None
    )
    assert (attempt.answer, attempt.correct) == ("2", False)


def whole(
    form: PromptFormat, texts: list[str], *problems: Trajectory, limit: int | None = None
) -> list[Attempt]:
    policy = ScriptedPolicy(form.tokenizer, {prompt("A"): texts})
    return solve_whole(
        policy,
        form,
        problems or [problem("A")],
        params=PARAMS,
        context_limit=limit,
        num_samples=len(texts),
        first_sample=1,
    )


def test_whole_solutions_are_read_without_their_thoughts(form: PromptFormat) -> None:
    texts = [
        "<think>the answer is 3</think>x = 2\n\n<think>so</think>The answer is 2.",
        "The answer is 2.",
        "<think>the answer is 2</think>x = 2",
        "x = 2\n<think>the answer is 2",
        "x = 2\nThe answer is 2. And" + CUT,
        "x = 2" + CUT,
        "1. **a** x\n2. **b** \\boxed{2}",
    ]
    found = whole(form, texts)
    assert [(a.sample, a.mode) for a in found] == [(k, "whole") for k in range(1, 8)]
    assert found[0].to_json()["steps"] == ["x = 2", "The answer is 2."]
    assert [a.correct for a in found] == [True, True, False, False, True, False, True]
    assert [a.failure for a in found] == [
        None,
        None,
        "no_answer",
        "no_answer",
        None,
        "truncated",
        None,
    ]
    assert [a.tokens for a in found[1:6:4]] == [len(texts[1]) + 1, len("x = 2")]


def test_a_thought_that_the_prompt_opened_is_stripped_too(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    byte_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    form = PromptFormat(byte_tokenizer, system_prompt=None, whole_system_prompt=None)
    assert form.opens_thought
    texts = [
        "the answer is 3</think>x\nThe answer is 2.",
        "perhaps the answer is 2" + CUT,
        "<think>the answer is 3</think>The answer is 2.",
    ]
    policy = ScriptedPolicy(byte_tokenizer, {"A<think>\n": texts})
    found = solve_whole(
        policy, form, [problem("A")], params=PARAMS, context_limit=None, num_samples=3
    )
    assert [a.to_json()["steps"] for a in found] == [
        ["x", "The answer is 2."],
        [],
        ["The answer is 2."],
    ]
    assert [a.correct for a in found] == [True, False, True]
    assert [a.failure for a in found] == [None, "truncated", None]
    # Whatever the prompt opened with, the text can be read without it
    assert [a.text for a in found] == [
        f"<think>{texts[0]}",
        "<think>perhaps the answer is 2",
        texts[2],
    ]
    assert [behaviour(a.text, a.tokens).thoughts for a in found] == [1, 1, 1]
    assert behaviour(found[1].text, 1).thought_share == 1.0
    policy = ScriptedPolicy(
        byte_tokenizer,
        {"A<think>\n": ["hm</think>x"], "A\n\nx<think>\n": ["<think>hm</think>The answer is 2."]},
    )
    (steps,) = solve_step_by_step(
        policy, form, [problem("A")], params=PARAMS, max_steps=3, context_limit=None
    )
    assert steps.correct
    assert steps.text == "<think>hm</think>x\n<think>hm</think>The answer is 2."


def test_whole_problems_that_do_not_fit_count_as_unsolved(form: PromptFormat) -> None:
    long = problem("L" * 50)
    found = whole(form, ["The answer is 2."] * 2, long, problem("A"), limit=60)
    by_problem = {
        name: [(a.sample, a.failure, a.correct) for a in found if a.trajectory.problem == name]
        for name in ("A", "L" * 50)
    }
    assert by_problem["A"] == [(1, None, True), (2, None, True)]
    assert by_problem["L" * 50] == [(1, "context_limit", False), (2, "context_limit", False)]
    assert accuracy(found).value == 0.5
    assert [a.failure for a in whole(form, ["x"], long, limit=60)] == ["context_limit"]


def attempt(trajectory: Trajectory, correct: bool, sample: int = 0) -> Attempt:
    answer = "2" if correct else None
    return Attempt(trajectory, "steps", sample, (), answer, correct, None, 1)


def test_accuracy_counts_problems_and_every_unanswered_one() -> None:
    problems = [problem(f"p{k}") for k in range(10)]
    single = [attempt(p, k < 8) for k, p in enumerate(problems)]
    assert accuracy(single) == wilson(8, 10)
    # With samples: a mean over problems, not over samples
    several = [attempt(problems[0], True, k) for k in range(9)] + [attempt(problems[1], False)]
    assert accuracy(several) == wilson(1, 2)
    several.append(attempt(problems[0], False))
    assert accuracy(several) == bootstrap([0.9, 0.0])
    # Two expert solutions of one problem are two attempts at one problem
    twice = [attempt(problem("p", steps=k), k == 2) for k in (2, 3)]
    assert (accuracy(twice).value, accuracy(twice).n) == (0.5, 1)
    assert [[one.correct for one in of] for of in by_problem([*single, *twice])] == [
        *([one.correct] for one in single),
        [True, False],
    ]


def test_accuracy_by_length() -> None:
    assert math.isnan(accuracy([]).value)
    assert by_length([]) == {}
    short = [attempt(problem(f"s{k}", steps=2), True) for k in range(3)]
    long = [attempt(problem(f"l{k}", steps=5), k == 0) for k in range(4)]
    assert by_length([*long, *short]) == {2: wilson(3, 3), 5: wilson(1, 4)}
    assert list(by_length([*long, *short])) == [2, 5]


def test_an_attempt_as_a_line_of_json() -> None:
    trajectory = problem("A")
    assert attempt(trajectory, False, 3).to_json() == {
        "problem_id": trajectory.problem_id,
        "source": "made up",
        "num_steps": 2,
        "mode": "steps",
        "sample": 3,
        "steps": [],
        "text": "",
        "answer": None,
        "gold": "2",
        "correct": False,
        "failure": None,
        "completion_tokens": 1,
    }


def test_sampled_steps_are_scored_and_failures_kept_apart(form: PromptFormat) -> None:
    trajectory = Trajectory("A", ("first step", "second step"), "2")
    rows = build_examples([trajectory], targets="all")
    script = {
        prompt("A"): [step("first step  "), "first step", step("xyz")],
        prompt("A", "first step"): [step("second step"), step("first step"), "<think>" + CUT],
    }
    groups = sample_rollouts(
        ScriptedPolicy(form.tokenizer, script),
        form,
        rows,
        [Prompt(form.encode_example(row), 0) for row in rows],
        rewards=RewardSum({"similarity": 2.0}),
        params=PARAMS,
        num_samples=3,
    )
    assert [[s.example for s in group] for group in groups] == [[row] * 3 for row in rows]
    copied = similarity("first step", "second step")
    scores = [[s.score.reward for s in group] for group in groups]
    assert scores == [[2.0, -1.0, 2 * similarity("xyz", "first step")], [2.0, 2 * copied, -1.0]]
    assert [[s.parsed.failure for s in group] for group in groups] == [
        [None, "missing_open", None],
        [None, None, "truncated"],
    ]
    assert [[s.metrics["exact"] for s in group] for group in groups] == [
        [1.0, None, 0.0],
        [1.0, 0.0, None],
    ]
    assert [[s.metrics["lift"] for s in group] for group in groups] == [
        [None] * 3,
        [1 - copied, pytest.approx(0), None],
    ]
    assert groups[0][1].score.rewards == {"similarity": None}
    assert [s.truncated for s in groups[1]] == [False, False, True]
    assert [len(group[0].prompt_ids) for group in groups] == [3, 15]

    metrics = rollout_metrics([s for group in groups for s in group])
    similarities = [1.0, similarity("xyz", "first step"), 1.0, copied]
    assert metrics["rewards/similarity"] == pytest.approx(sum(similarities) / 4)
    assert metrics["reward"] == pytest.approx((2 * sum(similarities) - 2) / 6)
    assert metrics["format_failures"] == pytest.approx(2 / 6)
    assert metrics["exact"] == 0.5
    assert metrics["lift"] == pytest.approx((1 - copied) / 2)
    tokens = [len(s.completion_ids) for group in groups for s in group]
    assert metrics["completion_tokens"] == sum(tokens) / 6


def test_metrics_of_no_steps_are_nan() -> None:
    assert all(math.isnan(value) for value in rollout_metrics([]).values())
