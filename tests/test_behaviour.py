"""Reasoning, counted: on texts whose counts one sees at a glance."""

from __future__ import annotations

import pytest

from srl.evaluation.behaviour import CHECKING, PLANNING, Behaviour, behaviour, mean_behaviour


@pytest.mark.parametrize(
    ("text", "thoughts", "interleaved", "share"),
    [
        ("", 0, 0, 0.0),
        ("abcd", 0, 0, 0.0),
        ("<think>ab</think>cd", 1, 0, 0.5),
        ("<think> ab </think>\ncd\n<think>efgh</think>ij", 2, 1, 0.6),
        ("ab<think>cd</think><think>ef</think>", 2, 2, 4 / 6),
        ("<think>ab", 1, 0, 1.0),
        ("ab</think>cd", 0, 0, 0.0),  # it closes nothing
        ("ab</think>cd<think>ef</think>gh", 1, 1, 0.25),
        ("<think>ab<think>cd</think>", 1, 0, 1.0),  # opened twice: one thought
    ],
)
def test_thoughts(text: str, thoughts: int, interleaved: int, share: float) -> None:
    found = behaviour(text, 7)
    assert (found.tokens, found.thoughts, found.interleaved) == (7, thoughts, interleaved)
    assert found.thought_share == pytest.approx(share)


CHECKS = [
    "Let me double-check the sum.",
    "Wait, that is not right.",
    "So 3+4=8. Wait, 7.",
    "Hmm, wait: is 9 prime?",
    "But wait there are two of them.",
    "I should verify this by substitution.",
    "We can check that 3 + 4 = 7.",
    "Is that correct?",
    "Plugging it back into the equation, 2 = 2.",
    "Sanity check: the sum is positive.",
    "To verify, add them.",
]
PLANS = [
    "First, we find the slope.",
    "To solve this, use the quadratic formula.",
    "Let's break it down.",
    "My plan is to factor.",
    "I'll start by listing the primes.",
    "Plan: isolate x.",
]
NEITHER = [
    "The first term is 3.",
    "He paid with a check of 5 dollars.",
    "The waiter waits.",
    "They wait for 5 minutes.",
    "The cars wait 3 hours.",
    "She can't wait. So Leo came.",
    "So Leo has 12+5=17 pens.",
    "They approach the plane from the east.",
    "A test of 20 questions.",
]


@pytest.mark.parametrize("text", CHECKS)
def test_checking(text: str) -> None:
    assert len(CHECKING.findall(text)) == 1
    assert behaviour(f"<think>{text}</think> {text}", 1).checks == 2


@pytest.mark.parametrize("text", PLANS)
def test_planning(text: str) -> None:
    assert len(PLANNING.findall(text)) == 1
    assert behaviour(text, 1).plans == 1


@pytest.mark.parametrize("text", NEITHER)
def test_neither(text: str) -> None:
    found = behaviour(text, 1)
    assert (found.checks, found.plans) == (0, 0)


def test_means_are_over_attempts_and_intervals_over_problems() -> None:
    many = [Behaviour(k, 1, 0, 0.5, 0, k % 2) for k in range(8)]
    found = mean_behaviour(many, [str(k // 2) for k in range(8)])
    assert found["tokens"].value == pytest.approx(3.5)
    assert found["plans"].value == pytest.approx(0.5)
    assert found["plans"].low == found["plans"].high == 0.5  # every problem has one of two
    assert found["tokens"].low < 3.5 < found["tokens"].high
    assert {one.n for one in found.values()} == {4}
    assert mean_behaviour([], []) == {}
