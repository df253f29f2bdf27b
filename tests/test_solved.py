"""What counts as a solved problem: each once, by the verdict that the reward `answer` gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from environments.environment import MATHS
from environments.types import Step, Trajectory
from srl.config.settings import SRLConfig
from srl.evaluation import judging
from srl.evaluation.judging import judged
from srl.evaluation.solving import Attempt, one_each

ARGS = SRLConfig(use_cpu=True, reward_workers=1)


def attempt(answer: str | None, gold: str | None, mode: str = "whole") -> Attempt:
    problem = Trajectory("How many?", ("a", "b"), gold, "files")
    texts = ["A first line.", "Nothing." if answer is None else f"The answer is {answer}."]
    steps = tuple(map(Step, texts if mode == "steps" else ["\n".join(texts)]))
    verdict = MATHS.judge(problem, steps)
    assert verdict.answer == answer
    return Attempt(problem, mode, 0, steps, answer, verdict.correct, None, 3)


@pytest.mark.parametrize("mode", ["whole", "steps"])
def test_mathematics_tells(mode: str) -> None:
    pairs = [
        (r"\dfrac{\sqrt3}{2}", r"\frac{\sqrt{3}}{2}", True),
        (r"\pi/2", r"\frac{\pi}{2}", True),
        ("79 marbles", "79", True),
        ("x=5", "5", True),
        ("R^2 - r^2", "R^2-r^2", True),
        ("R^2 - r^2", "r^2 - R^2", False),
        (r"\frac{\pi}{3}", r"\frac{\pi}{2}", False),
        ("78 marbles", "79", False),
        ("50%", "0.5", True),
        (r"\frac{1}{2}", r"50\%", True),
        ("50%", "5", False),
        (None, "79", False),
        ("79", None, False),
        ("78", "79", False),
    ]
    attempts = [attempt(answer, gold, mode) for answer, gold, _ in pairs]
    found = judged(attempts, ARGS)
    assert [one.correct for one in found] == [right for _, _, right in pairs]
    kept = [
        replace(one, correct=before.correct) for one, before in zip(found, attempts, strict=True)
    ]
    assert kept == attempts


def test_numbers_need_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_is_started(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(judging, "RewardSum", none_is_started)
    attempts = [
        attempt("78", "79"),
        attempt(None, "79"),
        attempt("79 marbles", None),
        replace(attempt("x", "y"), correct=True),
    ]
    assert judged(attempts, ARGS) == attempts


def test_a_problem_with_several_solutions_is_solved_once() -> None:
    steps = {"a1": "a", "b1": "b", "a2": "a", "c1": "c", "b2": "b"}
    trajectories = [Trajectory(of, (name,), "1", "files") for name, of in steps.items()]
    assert [one.texts for one in one_each(trajectories)] == [("a1",), ("b1",), ("c1",)]
