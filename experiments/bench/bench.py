"""Speed beside the libraries people would otherwise use: `make bench`.

Each row runs its contestants in turn, several times over, in one process and on the same input, and
says with the median and the spread whether they also give the same result. Shapes on which we lose
are rows like the others.

    1  similarity of 4,096 pairs of steps as long as those of s1K
    2  similarity of looping text, and how its time grows

    python experiments/bench/bench.py [--rows 1 2] [--repeats 5] [--steps s1k.jsonl] [--out FILE]

Without `--steps` (JSON lines with a list `steps`, as in s1K) the steps are pieces of this project's
own documents, as long as those of s1K.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cydifflib

from rewards import RewardSum, StepContext, normalize, similarity

SIMILARITY = importlib.import_module("rewards.similarity")  # the package's name is the function's

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
Pair = tuple[str, str]

PAIRS = 4096
# Characters of s1K-1.1's steps: every fifth percentile of 256 steps.
S1K_LENGTHS = (
    *(80, 92, 109, 136, 160, 177, 202, 222, 239, 250),
    *(270, 290, 298, 319, 351, 384, 438, 514, 628, 1454),
)


@dataclass
class Contest:
    """One row: seconds of each contestant, repeat by repeat, and whether results agree."""

    row: int
    title: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    base: str = ""
    goal: str = ""
    agreement: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def lines(self) -> list[str]:
        told = [f"row {self.row}: {self.title}" + (f"; goal: {self.goal}" if self.goal else "")]
        for name, times in self.seconds.items():
            speed = self.median(self.base) / self.median(name)
            told.append(
                f"  {name:<34} {1000 * self.median(name):>11,.2f} ms "
                f"[{1000 * min(times):,.2f}, {1000 * max(times):,.2f}]  {speed:>7.1f}x"
                f"  {self.agreement.get(name, '')}".rstrip()
            )
        return told

    def to_json(self) -> dict[str, object]:
        return {
            "row": self.row,
            "title": self.title,
            "goal": self.goal,
            "against": self.base,
            "agreement": self.agreement,
            "seconds": self.seconds,
            "speed": {n: self.median(self.base) / self.median(n) for n in self.seconds},
        }


Contestant = Callable[[], Callable[[], Sequence[float]]]
"""Makes ready, untimed; what it returns is timed."""


def run(contest: Contest, contestants: dict[str, Contestant], repeats: int) -> Contest:
    """Every contestant in turn, `repeats` times; the first one is what the others are against."""
    contest.base = next(iter(contestants))
    expected: Sequence[float] = ()
    for number in range(repeats):
        for name, prepare in contestants.items():
            SIMILARITY._ratio.cache_clear()
            SIMILARITY._searched.cache_clear()
            work = prepare()
            started = time.perf_counter()
            found = work()
            contest.seconds.setdefault(name, []).append(time.perf_counter() - started)
            if name == contest.base:
                expected = found
            elif number == 0:
                same = sum(a == b for a, b in zip(found, expected, strict=True))
                contest.agreement[name] = f"{same:,} of {len(expected):,} bit-equal"
    return contest


def in_process(pairs: Sequence[Pair]) -> dict[str, Contestant]:
    """The three ways to compare pairs on one core."""

    def ratio(matcher: type) -> Contestant:
        return lambda: lambda: [matcher(None, a, b, autojunk=False).ratio() for a, b in pairs]

    return {
        "difflib": ratio(difflib.SequenceMatcher),
        "cydifflib": ratio(cydifflib.SequenceMatcher),
        "ours, one core": lambda: lambda: [similarity(a, b) for a, b in pairs],
    }


# ---- rows --------------------------------------------------------------------------------------


def similarity_row(solutions: list[list[str]], cores: int, repeats: int) -> list[Contest]:
    """Row 1. As in training, 8 actions share an expert's step; a third of them each is an edit of
    it, another step of the problem, and a step of another problem.

    No pair comes twice: identical ones are scored once, which would flatter us.
    """
    rng = random.Random(0)
    kinds: dict[str, list[Pair]] = {
        "30 % of the words replaced": [],
        "another step of the same problem": [],
        "a step of another problem": [],
    }
    mixed: dict[Pair, None] = {}
    while len(mixed) < PAIRS:
        solution = rng.choice(solutions)
        expert = rng.choice(solution)
        for _ in range(min(8, PAIRS - len(mixed))):
            other = rng.choice([one for one in solutions if one is not solution])
            actions = (_edited(expert, rng), rng.choice(solution), rng.choice(other))
            for action, pairs in sorted(
                zip(actions, kinds.values(), strict=True), key=lambda one: len(one[1])
            ):
                if action != expert and (action, expert) not in mixed:
                    mixed[action, expert] = None
                    pairs.append((action, expert))
                    break
    contests = [
        _similarity(list(mixed), f"{len(mixed):,} pairs", cores, repeats, ">= 12x on one core")
    ]
    for kind, pairs in kinds.items():
        contests.append(_similarity(pairs, f"{len(pairs):,} of them: {kind}", 0, repeats, ""))
    return contests


def _edited(step: str, rng: random.Random) -> str:
    return " ".join(word if rng.random() > 0.3 else "xyzzy" for word in step.split(" "))


def _similarity(pairs: list[Pair], title: str, cores: int, repeats: int, goal: str) -> Contest:
    contestants = in_process(pairs)
    contexts = [StepContext("", (), a, "", b, 0, 2) for a, b in pairs]
    for workers in sorted({1, cores} if cores else set()):
        contestants[f"ours, {workers} worker process{'es' * (workers > 1)}"] = _pooled(
            workers, contexts
        )
    return run(Contest(1, title, goal=goal), contestants, repeats)


def _pooled(workers: int, contexts: list[StepContext]) -> Contestant:
    """Through worker processes; new ones each time, because they remember what they have seen."""

    def prepare() -> Callable[[], Sequence[float]]:
        rewards = RewardSum({"similarity": 1.0}, workers=workers)
        # As many chunks as workers, so that all of them are up.
        rewards.score([StepContext("", (), str(n), "", "x", 0, 2) for n in range(16 * workers)])

        def score() -> list[float]:
            found = [score.reward for score in rewards.score(contexts)]
            rewards.close()
            return found

        return score

    return prepare


def looping_row(repeats: int) -> list[Contest]:
    """Row 2. Beside difflib at 600 characters, and alone at growing lengths."""
    pair = ("abc" * 200, "acb" * 200)
    contestants = in_process([pair])
    contests = [run(Contest(2, "600 looping characters", goal="<= 10 ms"), contestants, repeats)]
    contests[0].agreement["ours, one core"] = "a lower bound, by design"
    growing = Contest(2, "the same at growing lengths", goal="at most 4x for twice the length")
    for length in (300, 600, 1200, 2400, 4800, 9600):
        longer = ("abc" * (length // 3), "acb" * (length // 3))
        name = f"ours, {length:,} characters"
        one = run(Contest(2, ""), {name: in_process([longer])["ours, one core"]}, repeats)
        growing.seconds |= one.seconds
    growing.base = "ours, 600 characters"
    return [*contests, growing]


# ---- input and output ----------------------------------------------------------------------------


def read_solutions(path: Path | None) -> tuple[list[list[str]], str]:
    """Solutions as lists of steps, and in words where they are from."""
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


def machine() -> dict[str, object]:
    """What the figures depend on."""
    packages = {}
    for name in ("cydifflib", "rapidfuzz", "torch", "transformers", "trl"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": packages,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=Path, help="JSON lines with a list `steps`")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: give 1 or more")
    if args.steps is not None and not args.steps.is_file():
        parser.error(f"--steps {args.steps}: no such file")
    about = machine()
    solutions, words = read_solutions(args.steps)
    print(f"{about['cpu']}, {about['cores']} cores, Python {about['python']}; {words}")
    contests: list[Contest] = []
    for row in args.rows:
        done = (
            similarity_row(solutions, int(str(about["cores"])), args.repeats)
            if row == 1
            else looping_row(args.repeats)
        )
        for contest in done:
            print("\n".join(contest.lines()))
            sys.stdout.flush()
        contests += done
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = {**about, "input": words, "repeats": args.repeats}
    result["contests"] = [contest.to_json() for contest in contests]
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
