"""Measures rows 1 and 2: similarity of steps beside difflib and cydifflib, autojunk off.

1  4,096 pairs of steps as long as those of s1K
2  looping text, and how its time grows
"""

from __future__ import annotations

import difflib
import importlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import cydifflib
from contest import Contest, Contestant, bit_equal, run

from rewards import RewardSum, StepContext, normalize, similarity

SIMILARITY = importlib.import_module("rewards.similarity")  # `similarity` is also a function

ROOT = Path(__file__).resolve().parents[2]
Pair = tuple[str, str]

PAIRS = 4096
ONE_CORE = "ours, one core"
# The lengths of s1K-1.1's steps in characters: every fifth percentile of 256 steps.
S1K_LENGTHS = (
    *(80, 92, 109, 136, 160, 177, 202, 222, 239, 250),
    *(270, 290, 298, 319, 351, 384, 438, 514, 628, 1454),
)


def similarity_row(
    solutions: list[list[str]], cores: int, repeats: int, pairs: int = PAIRS
) -> list[Contest]:
    """Runs row 1: pairs of an action and an expert's step.

    As in training, 8 actions share an expert's step. One third of the actions are edits of it, one
    third are other steps of the same problem, and one third are steps of another problem. No pair
    occurs twice, because identical pairs are scored only once, which would favour us.
    """
    rng = random.Random(0)
    kinds: dict[str, list[Pair]] = {
        "30 % of the words replaced": [],
        "another step of the same problem": [],
        "a step of another problem": [],
    }
    mixed: dict[Pair, None] = {}
    while len(mixed) < pairs:
        solution = rng.choice(solutions)
        expert = rng.choice(solution)
        for _ in range(min(8, pairs - len(mixed))):
            other = rng.choice([problem for problem in solutions if problem is not solution])
            actions = (_edited(expert, rng), rng.choice(solution), rng.choice(other))
            for action, of_kind in sorted(
                zip(actions, kinds.values(), strict=True), key=lambda pair: len(pair[1])
            ):
                if action != expert and (action, expert) not in mixed:
                    mixed[action, expert] = None
                    of_kind.append((action, expert))
                    break
    contests = [
        _similarity(list(mixed), f"{len(mixed):,} pairs", cores, repeats, ">= 12x on one core")
    ]
    for kind, of_kind in kinds.items():
        contests.append(_similarity(of_kind, f"{len(of_kind):,} of them: {kind}", 0, repeats, ""))
    return contests


def looping_row(repeats: int) -> list[Contest]:
    """Runs row 2: beside difflib at 600 characters, and ours alone at growing lengths."""
    pair = ("abc" * 200, "acb" * 200)
    contests = [
        _run(Contest(2, "600 looping characters", goal="<= 10 ms"), in_process([pair]), repeats)
    ]
    contests[0].agreement[ONE_CORE] = "a lower bound, by design"
    growing = Contest(2, "the same at growing lengths", goal="at most 4x for twice the length")
    for length in (300, 600, 1200, 2400, 4800, 9600):
        longer = ("abc" * (length // 3), "acb" * (length // 3))
        name = f"ours, {length:,} characters"
        contest = _run(Contest(2, ""), {name: in_process([longer])[ONE_CORE]}, repeats)
        growing.seconds |= contest.seconds
    growing.base, growing.ours = "ours, 600 characters", "ours, 1,200 characters"
    return [*contests, growing]


def in_process(pairs: Sequence[Pair]) -> dict[str, Contestant]:
    """Returns the three ways to compare pairs on one core."""

    def ratio(matcher: type) -> Contestant:
        return lambda: lambda: [matcher(None, a, b, autojunk=False).ratio() for a, b in pairs]

    return {
        "difflib": ratio(difflib.SequenceMatcher),
        "cydifflib": ratio(cydifflib.SequenceMatcher),
        ONE_CORE: lambda: lambda: [similarity(a, b) for a, b in pairs],
    }


def _edited(step: str, rng: random.Random) -> str:
    return " ".join(word if rng.random() > 0.3 else "xyzzy" for word in step.split(" "))


def _similarity(pairs: list[Pair], title: str, cores: int, repeats: int, goal: str) -> Contest:
    contestants = in_process(pairs)
    contexts = [StepContext("", (), a, "", b, 0, 2) for a, b in pairs]
    for workers in sorted({1, cores} if cores else set()):
        contestants[f"ours, {workers} worker process{'es' * (workers > 1)}"] = _pooled(
            workers, contexts
        )
    return _run(Contest(1, title, goal=goal, ours=ONE_CORE), contestants, repeats)


def _run(contest: Contest, contestants: dict[str, Contestant], repeats: int) -> Contest:
    return run(contest, contestants, repeats, compare=bit_equal, before=_forget)


def _forget() -> None:
    """Empties our caches, so that no repeat gains from an earlier one."""
    SIMILARITY._ratio.cache_clear()
    SIMILARITY._searched.cache_clear()


def _pooled(workers: int, contexts: list[StepContext]) -> Contestant:
    """Returns a contestant that scores through worker processes.

    Every repeat starts new processes, because they cache what they have scored.
    """

    def prepare() -> Callable[[], list[float]]:
        rewards = RewardSum({"similarity": 1.0}, workers=workers)
        # There are as many chunks as workers, so that all of them are started.
        rewards.score([StepContext("", (), str(n), "", "x", 0, 2) for n in range(16 * workers)])

        def score() -> list[float]:
            values = [score.reward for score in rewards.score(contexts)]
            rewards.close()
            return values

        return score

    return prepare


def read_solutions(path: Path | None) -> tuple[list[list[str]], str]:
    """Returns solutions as lists of steps, and a text that names their source."""
    if path is not None:
        with path.open(encoding="utf-8") as lines:
            solutions = [[normalize(s) for s in json.loads(line)["steps"]] for line in lines]
        count = sum(map(len, solutions))
        return [s for s in solutions if len(s) > 1], f"{count:,} steps of {path.name}"
    documents = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("srl/*.py")])
    text = "\n".join(document.read_text(encoding="utf-8") for document in documents)
    rng = random.Random(0)
    solutions = []
    for _ in range(60):
        starts = [(rng.randrange(len(text) - length), length) for length in S1K_LENGTHS]
        solutions.append([normalize(text[start : start + length]) for start, length in starts])
    return solutions, "pieces of our own documents, as long as s1K's steps"
