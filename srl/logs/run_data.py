"""A run's folder as the views read it: the step log and, where they are there, the files beside it.

Half a run is a run: while it trains there is no summary, before it trains there is no log of
figures, and a trainer used from Python writes no config. What stands in the files is checked as it
is read: a folder may be somebody else's, or have been edited.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from srl.errors import UsageError
from srl.estimates import Estimate, bootstrap, paired_change, wilson
from srl.logs.index import Log, Told
from srl.records import StepRecord, read_rows
from srl.run_folder import RunFolder

Row = Mapping[str, object]
Points = list[tuple[int, float]]

# Figures that metrics.jsonl sums over the training steps since the line before; see srl/run_log.py.
_SUMMED = ("tokens", "seconds/", "reward_errors/", "reward_deadlines/")
_MOST_PROBLEMS = 10**9


@dataclass(frozen=True)
class Problem:
    """A record's problem: its text, the expert's steps, the final answer if there is one."""

    text: str
    steps: tuple[str, ...]
    answer: str | None


@dataclass(frozen=True)
class Attempt:
    """A line of eval.jsonl: one attempt at one held-out problem.

    Attributes:
        when: `before`, `after`, or `eval`, with a number from the second of these on.
        problem: which: its id, and its number among the solutions of that problem.
        mode: `steps` (step by step) or `whole`.
        sample: 0 is greedy.
        source: of the problem.
        num_steps: how many steps the expert takes.
        written: how many steps the policy took.
        correct: it was solved.
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
        """Why it was not solved; None if it was.

        An answer given after fewer steps than the expert takes is mostly one that came too early.
        """
        if self.correct:
            return None
        if self.failure is not None:
            return self.failure
        early = self.mode == "steps" and self.written < self.num_steps
        return "wrong answer, fewer steps than the expert" if early else "wrong answer"


@dataclass(frozen=True)
class Accuracy:
    """How many held-out problems were solved, at one time and in one way.

    Attributes:
        when, mode: as in `Attempt`.
        sampled: sampled, or greedy.
        estimate: share of problems solved; `n` counts problems.
        failures: why attempts failed -> how many of them; see `Attempt.shortfall`.
    """

    when: str
    mode: str
    sampled: bool
    estimate: Estimate
    failures: Mapping[str, int]


class RunData:
    """What is known of a run.

    Attributes:
        folder: the run's folder.
        log: its step log.
    """

    def __init__(self, folder: RunFolder, log: Log) -> None:
        self.folder = folder
        self.log = log

    @classmethod
    def open(cls, folder: RunFolder, told: Told | None = None) -> RunData:
        """Read the step log; the other files are read when they are asked for.

        Raises:
            UsageError: there is no step log, it is empty, or it is none.
        """
        path = folder.steps
        if not path.is_file():
            if folder.config.is_file() and folder.read_config().get("method") == "sft":
                raise UsageError(
                    f"{folder.path} was fine-tuned on the expert's text (method: sft), which "
                    "samples no rollouts, so there are none to look at. Its figures are in "
                    f"{folder.metrics.name}, its attempts at the test problems in "
                    f"{folder.eval.name}; to solve them again: make eval RUN={folder.name}"
                )
            raise UsageError(f"{path} does not exist: this run has recorded no rollouts yet")
        log = Log.open(path, told)
        if not log.table.num_rows:
            raise UsageError(
                f"{path} holds no whole record yet: its first record is being written, or was cut "
                "off"
                if log.unfinished
                else f"{path} is empty: this run has recorded no rollouts yet"
            )
        return cls(folder, log)

    @property
    def complete(self) -> bool:
        """The run has ended by itself."""
        return has_ended(self.folder)

    @cached_property
    def config(self) -> Row | None:
        """The resolved settings; None where the folder has none that can be read."""
        with suppress(UsageError):
            return self.folder.read_config() if self.folder.config.is_file() else None
        return None

    @cached_property
    def environment(self) -> Row | None:
        """Versions, machine, commit; None where the folder does not tell."""
        return _json(self.folder.environment)

    @cached_property
    def summary(self) -> Row | None:
        """What a complete run wrote last; None where it cannot be read."""
        return _json(self.folder.summary)

    @property
    def policy_step(self) -> int | None:
        """The training step of the policy that was kept, where that is not the last one's.

        It was the best on validation, and what `after` speaks of.
        """
        best = (self.summary or {}).get("best_checkpoint")
        number = str(best).rpartition("checkpoint-")[2]
        if not isinstance(best, str) or not number.isdecimal() or int(number) == self.last_step:
            return None
        return int(number)

    @property
    def last_step(self) -> int:
        """The last training step of which any file tells."""
        told = [step for points in self.training_figures().values() for step, _ in points[-1:]]
        return max([int(self.log.table["train_step"].to_numpy().max()), *told])

    # -- metrics.jsonl ---------------------------------------------------------------------------

    @cached_property
    def metrics(self) -> list[Row]:
        """The lines of metrics.jsonl, in order.

        Raises:
            UsageError: a line is none of that file.
        """
        return list(_rows(self.folder.metrics, {"step": _is_step}))

    def training_figures(self) -> dict[str, Points]:
        """Each figure of training in metrics.jsonl -> (training step, value), in order."""
        return self._figures(evaluation=False)

    def validation_figures(self) -> dict[str, Points]:
        """Each `eval_` figure, without that prefix -> (training step, value), in order."""
        return self._figures(evaluation=True)

    def _figures(self, *, evaluation: bool) -> dict[str, Points]:
        found: dict[str, Points] = {}
        for row in self.metrics:
            if any(name.startswith("eval_") for name in row) != evaluation:
                continue
            if "train_runtime" in row:  # the Trainer's last line, about the run
                continue
            for name, value in row.items():
                if name not in ("step", "epoch") and (number := _number(value)) is not None:
                    points = found.setdefault(name.removeprefix("eval_"), [])
                    points.append((int(str(row["step"])), number))
        return found

    def per_step(self, name: str) -> Points:
        """A figure that is summed over the steps since the line before, for one of those steps."""
        steps = sorted({int(str(row["step"])) for row in self.metrics if "loss" in row})
        before = dict(zip(steps, [0, *steps], strict=False))
        return [
            (step, value / max(1, step - before.get(step, step - 1)))
            for step, value in self.training_figures().get(name, ())
        ]

    def totals(self) -> dict[str, float]:
        """The whole run's sum of each figure that metrics.jsonl sums: tokens, seconds, failures."""
        return {
            name: sum(value for _, value in points)
            for name, points in self.training_figures().items()
            if name.startswith(_SUMMED)
        }

    def seconds(self) -> float | None:
        """Seconds of sampling and updating, over the whole run; None where none were taken."""
        found = [value for name, value in self.totals().items() if name.startswith("seconds/")]
        return sum(found) if found else None

    def speed(self) -> Points:
        """(training step, tokens written a second): over rollouts, rewards and update together.

        A batch that several updates use is sampled once: its tokens count over all of them.
        """
        figures = self.training_figures()
        seconds: Counter[int] = Counter()
        for name in ("seconds/collect", "seconds/update"):
            for step, value in figures.get(name, ()):
                seconds[step] += value  # type: ignore[assignment]
        sampled = figures.get("tokens", [])
        found = []
        for k, (step, tokens) in enumerate(sampled):
            end = sampled[k + 1][0] if k + 1 < len(sampled) else math.inf
            taken = sum(value for at, value in seconds.items() if step <= at < end)
            if taken:
                found.append((step, tokens / taken))
        return found

    def validation_accuracy(self) -> list[tuple[int, Estimate]]:
        """(training step, share of validation problems solved) of each validation.

        Without the number of problems (`eval_problems`) there is no interval: NaN.
        """
        figures = self.validation_figures()
        problems = dict(figures.get("problems", ()))
        found = []
        for step, value in figures.get("accuracy", ()):
            n = problems.get(step, 0)
            counted = 1 <= n <= _MOST_PROBLEMS and 0 <= value <= 1
            estimate = (
                wilson(round(value * n), int(n))
                if counted
                else Estimate(value, math.nan, math.nan, 0)
            )
            found.append((step, estimate))
        return found

    # -- problems.jsonl --------------------------------------------------------------------------

    @cached_property
    def problems(self) -> Mapping[str, list[Problem]]:
        """Problem's id -> the expert solutions of it that the log speaks of.

        Raises:
            UsageError: a line is none of that file.
        """
        found: dict[str, list[Problem]] = {}
        for row in _rows(self.folder.problems, {"problem_id": _is_text, "problem": _is_text}):
            steps, answer = row.get("steps"), row.get("answer")
            found.setdefault(str(row["problem_id"]), []).append(
                Problem(
                    str(row["problem"]),
                    tuple(map(str, steps)) if isinstance(steps, list) else (),
                    None if answer is None else str(answer),
                )
            )
        return found

    def problem_of(self, record: StepRecord) -> Problem | None:
        """The expert solution that the record's step is from; None if the folder does not tell."""
        for problem in self.problems.get(record.problem_id, ()):
            if problem.steps[record.step_index : record.step_index + 1] == (record.expert_step,):
                return problem
        return None

    # -- eval.jsonl ------------------------------------------------------------------------------

    @cached_property
    def attempts(self) -> list[Attempt]:
        """The attempts at held-out problems; of `before` and `after` those of the newest.

        An evaluation that was made again, after a kill or with other settings, is another one, by
        its number in the lines.

        Raises:
            UsageError: a line is none of that file.
        """
        rows = list(_rows(self.folder.eval, _ATTEMPT))
        numbers: dict[str, list[object]] = {}
        for row in rows:
            known = numbers.setdefault(str(row["when"]), [])
            if (number := row.get("evaluation")) not in known:  # None: the logs had none at first
                known.append(number)
        seen: Counter[tuple[object, ...]] = Counter()
        found = []
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
            found.append(
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
        return found

    def accuracies(self) -> list[Accuracy]:
        """Held-out problems solved, as summary.json has it, by time, mode and sampling."""
        parts: dict[tuple[str, str, bool], list[Attempt]] = {}
        for one in self.attempts:
            parts.setdefault((one.when, one.mode, one.sample > 0), []).append(one)
        return [
            Accuracy(when, mode, sampled, _accuracy(rows), _failures(rows))
            for (when, mode, sampled), rows in parts.items()
        ]

    def solved_by(self, column: str) -> dict[str, dict[object, Estimate]]:
        """Greedy accuracy, step by step, by `num_steps` or `source`: when -> value -> share."""
        parts: dict[str, dict[object, list[Attempt]]] = {}
        for one in self.attempts:
            if one.mode == "steps" and one.sample == 0:
                parts.setdefault(one.when, {}).setdefault(getattr(one, column), []).append(one)
        return {
            when: {value: _accuracy(rows) for value, rows in sorted(by.items())}
            for when, by in parts.items()
        }

    def gain(self, mode: str = "steps") -> Estimate | None:
        """Greedy accuracy after minus before, problem by problem, with its 95 % interval.

        None where one of them is missing, or they were not asked the same problems.
        """
        solved: dict[str, dict[tuple[str, int], bool]] = {"before": {}, "after": {}}
        for one in self.attempts:
            if one.mode == mode and one.sample == 0 and one.when in solved:
                solved[one.when][one.problem] = one.correct
        before, after = solved["before"], solved["after"]
        if not before or before.keys() != after.keys():
            return None
        won = sum(after[key] and not before[key] for key in before)
        lost = sum(before[key] and not after[key] for key in before)
        return paired_change(won, lost, len(before))


def has_ended(folder: RunFolder) -> bool:
    """A run has ended by itself. A trainer used from Python says so in metrics.jsonl alone."""
    if folder.summary.is_file() or folder.config.is_file():
        return folder.summary.is_file()
    return any("train_runtime" in row for row in _rows(folder.metrics, {}))


def _accuracy(rows: Iterable[Attempt]) -> Estimate:
    by_problem: dict[tuple[str, int], list[bool]] = {}
    for row in rows:
        by_problem.setdefault(row.problem, []).append(row.correct)
    hits = list(by_problem.values())
    if all(len(one) == 1 for one in hits):
        return wilson(sum(one[0] for one in hits), len(hits))
    return bootstrap([sum(one) / len(one) for one in hits])


def _failures(rows: Iterable[Attempt]) -> dict[str, int]:
    return dict(Counter(why for row in rows if (why := row.shortfall) is not None))


# ---- rows that may be anything ------------------------------------------------------------------


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


_ATTEMPT: dict[str, Callable[[object], bool]] = {
    "when": _is_text,
    "problem_id": _is_text,
    "mode": _is_text,
    "sample": _is_step,
    "source": _is_text,
    "num_steps": _is_step,
    "steps": lambda value: isinstance(value, list),
    "correct": lambda value: isinstance(value, bool),
    "failure": lambda value: value is None or isinstance(value, str),
}


def _rows(path: Path, fields: Mapping[str, Callable[[object], bool]]) -> Iterable[Row]:
    """The rows of a log; none where there is no file.

    Raises:
        UsageError: a row lacks one of `fields`, or has something else in it (names the line).
    """
    if not path.is_file():
        return
    for number, row in enumerate(read_rows(path), start=1):
        for name, fits in fields.items():
            if name not in row:
                raise UsageError(f"{path}, line {number}: {name} is missing")
            if not fits(row[name]):
                shown = json.dumps(row[name])[:40]
                raise UsageError(f"{path}, line {number}: {name} is {shown}, which it cannot be")
        yield row


def _number(value: object) -> float | None:
    """A finite number as a float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None


def _json(path: Path) -> Row | None:
    with suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    return None
