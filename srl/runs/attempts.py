"""Reads attempts at held-out problems from eval.jsonl, and computes how many were solved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from srl.runs.checked_rows import Fields, checked_rows, is_step, is_text
from srl.runs.folder import replace_file
from srl.runs.records import json_line, read_rows
from srl.sample_metrics import avg_at_k, over_problems
from srl.stats import Estimate, paired_change


@dataclass(frozen=True)
class Attempt:
    """A line of eval.jsonl: one attempt at one held-out problem.

    Attributes:
        when: `before`, `after` or `eval`; the second evaluation called `eval` is `eval 2`, and so
            on.
        problem: the problem's id, and the attempt's number among those with the same id, time, mode
            and sample.
        mode: `steps` (step by step) or `whole`.
        sample: the number of the sample; 0 is greedy.
        source: the source of the problem.
        num_steps: how many steps the expert takes.
        written: how many steps the policy took.
        correct: the attempt solved the problem.
        failure: why there is no answer, or None.
    """

    when: str
    problem: tuple[str, int]
    mode: str
    sample: int
    source: str
    num_steps: int
    written: int
    correct: bool
    failure: str | None

    @property
    def shortfall(self) -> str | None:
        """Returns why the attempt did not solve the problem; None if it did.

        A wrong answer after fewer steps than the expert takes is usually an answer given too early.
        """
        if self.correct:
            return None
        if self.failure is not None:
            return self.failure
        early = self.mode == "steps" and self.written < self.num_steps
        return "wrong answer, fewer steps than the expert" if early else "wrong answer"


@dataclass(frozen=True)
class Accuracy:
    """The share of held-out problems that were solved at one time and in one way.

    Attributes:
        when, mode: as in `Attempt`.
        sampled: True for samples, False for greedy attempts.
        estimate: share of problems solved; `n` counts problems.
        failures: reason of failure -> number of attempts; see `Attempt.shortfall`.
    """

    when: str
    mode: str
    sampled: bool
    estimate: Estimate
    failures: Mapping[str, int]


_ATTEMPT: Fields = {
    "when": is_text,
    "problem_id": is_text,
    "mode": is_text,
    "sample": is_step,
    "source": is_text,
    "num_steps": is_step,
    "steps": lambda value: isinstance(value, list),
    "correct": lambda value: isinstance(value, bool),
    "failure": lambda value: value is None or isinstance(value, str),
}


def read_attempts(path: Path) -> list[Attempt]:
    """Returns the attempts in an eval.jsonl; for `before` and `after`, only the newest evaluation.

    An evaluation that is repeated, after a kill or with other settings, has another number in its
    lines.

    Raises:
        UsageError: a line does not belong to such a file.
    """
    rows = list(checked_rows(path, _ATTEMPT))
    numbers: dict[str, list[object]] = {}
    for row in rows:
        known = numbers.setdefault(str(row["when"]), [])
        if (number := row.get("evaluation")) not in known:  # None: early logs have no number
            known.append(number)
    seen: Counter[tuple[object, ...]] = Counter()
    attempts = []
    for row in rows:
        when, number = str(row["when"]), row.get("evaluation")
        known = numbers[when]
        if when in ("before", "after"):
            if number != known[-1]:
                continue
        elif number != known[0]:
            when = f"{when} {known.index(number) + 1}"
        key = (when, row["mode"], row["sample"], row["problem_id"])
        failure = row["failure"]
        attempts.append(
            Attempt(
                when=when,
                problem=(str(row["problem_id"]), seen[key]),
                mode=str(row["mode"]),
                sample=int(str(row["sample"])),
                source=str(row["source"]),
                num_steps=int(str(row["num_steps"])),
                written=len(row["steps"]),  # type: ignore[arg-type]
                correct=row["correct"] is True,
                failure=None if failure is None else str(failure),
            )
        )
        seen[key] += 1
    return attempts


def forget(path: Path, when: str) -> None:
    """Removes the attempts of one time from an eval.jsonl, because they will be made again.

    Raises:
        UsageError: a line is not a JSON object.
    """
    if path.is_file():
        kept = [row for row in read_rows(path) if row.get("when") != when]
        replace_file(path, b"".join(map(json_line, kept)))


def accuracies(attempts: Sequence[Attempt]) -> list[Accuracy]:
    """Returns accuracies on held-out problems by time, mode and sampling, as in summary.json."""
    parts: dict[tuple[str, str, bool], list[Attempt]] = {}
    for attempt in attempts:
        parts.setdefault((attempt.when, attempt.mode, attempt.sample > 0), []).append(attempt)
    return [
        Accuracy(when, mode, sampled, _accuracy(rows), _failures(rows))
        for (when, mode, sampled), rows in parts.items()
    ]


def solved_by(attempts: Sequence[Attempt], column: str) -> dict[str, dict[object, Estimate]]:
    """Returns greedy step-by-step accuracy by a column: time -> value of the column -> share.

    Args:
        attempts: all attempts; others than greedy step-by-step ones are ignored.
        column: `num_steps` or `source`.
    """
    parts: dict[str, dict[object, list[Attempt]]] = {}
    for attempt in attempts:
        if attempt.mode == "steps" and attempt.sample == 0:
            parts.setdefault(attempt.when, {}).setdefault(getattr(attempt, column), []).append(
                attempt
            )
    return {
        when: {value: _accuracy(rows) for value, rows in sorted(by.items())}
        for when, by in parts.items()
    }


def gain(attempts: Sequence[Attempt]) -> Estimate | None:
    """Returns the accuracy after minus before, paired by problem, with its 95 % interval.

    `attempts` have one mode, and one attempt at each problem each time. Returns None if before or
    after is missing, or if their problems differ.
    """
    solved: dict[str, dict[tuple[str, int], bool]] = {"before": {}, "after": {}}
    for attempt in attempts:
        if attempt.when in solved:
            solved[attempt.when][attempt.problem] = attempt.correct
    before, after = solved["before"], solved["after"]
    if not before or before.keys() != after.keys():
        return None
    won = sum(after[key] and not before[key] for key in before)
    lost = sum(before[key] and not after[key] for key in before)
    return paired_change(won, lost, len(before))


def _accuracy(rows: Iterable[Attempt]) -> Estimate:
    by_problem: dict[tuple[str, int], list[bool]] = {}
    for row in rows:
        by_problem.setdefault(row.problem, []).append(row.correct)
    return over_problems([avg_at_k(outcomes) for outcomes in by_problem.values()])


def _failures(rows: Iterable[Attempt]) -> dict[str, int]:
    return dict(Counter(why for row in rows if (why := row.shortfall) is not None))
