"""A run's folder as the views read it: the step log and, where they are there, the files beside it.

Half a run is a run: while it trains there is no summary, before it trains there is no log of
figures, and a trainer used from Python writes no config.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from srl.errors import UsageError
from srl.estimates import Estimate, bootstrap, student_t, wilson
from srl.logs.index import Log, Told
from srl.records import StepRecord, read_rows
from srl.run_folder import RunFolder

Row = Mapping[str, object]


@dataclass(frozen=True)
class Problem:
    """A record's problem: its text, the expert's steps, the final answer if there is one."""

    text: str
    steps: tuple[str, ...]
    answer: str | None


@dataclass(frozen=True)
class Accuracy:
    """How many held-out problems were solved, at one time and in one way.

    Attributes:
        when: `before`, `after`, or `eval` for a later `make eval`.
        mode: `steps` (step by step) or `whole`.
        sampled: sampled, or greedy.
        estimate: share of problems solved; `n` counts problems.
        failures: why there was no answer -> how many attempts.
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
            raise UsageError(f"{path} does not exist: this run has recorded no rollouts yet")
        log = Log.open(path, told)
        if not log.table.num_rows:
            began = " yet: its first record is being written" if log.unfinished else ""
            raise UsageError(
                f"{path} is empty: this run has recorded no rollouts yet"
                if not began
                else f"{path} holds no whole record{began}, or was cut off"
            )
        return cls(folder, log)

    @property
    def complete(self) -> bool:
        """The run has ended by itself."""
        return self.folder.summary.is_file()

    @cached_property
    def config(self) -> Row | None:
        """The resolved settings; None where the folder has none."""
        return self.folder.read_config() if self.folder.config.is_file() else None

    @cached_property
    def environment(self) -> Row | None:
        """Versions, machine, commit."""
        return _json(self.folder.environment)

    @cached_property
    def summary(self) -> Row | None:
        """What a complete run wrote last."""
        return _json(self.folder.summary)

    @cached_property
    def metrics(self) -> list[Row]:
        """The lines of metrics.jsonl, in order."""
        return list(_rows(self.folder.metrics))

    def training_figures(self) -> dict[str, list[tuple[int, float]]]:
        """Each figure of training in metrics.jsonl -> (training step, value), in order."""
        return self._figures(evaluation=False)

    def validation_figures(self) -> dict[str, list[tuple[int, float]]]:
        """Each `eval_` figure, without that prefix -> (training step, value), in order."""
        return self._figures(evaluation=True)

    def _figures(self, *, evaluation: bool) -> dict[str, list[tuple[int, float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        for row in self.metrics:
            if any(name.startswith("eval_") for name in row) != evaluation:
                continue
            if not evaluation and "reward" not in row:  # the Trainer's last line, about the run
                continue
            for name, value in row.items():
                if name not in ("step", "epoch") and isinstance(value, int | float):
                    found.setdefault(name.removeprefix("eval_"), []).append(
                        (int(row["step"]), float(value))  # type: ignore[call-overload]
                    )
        return found

    def validation_accuracy(self) -> list[tuple[int, Estimate]]:
        """(training step, share of validation problems solved) of each validation.

        Logs of versions that did not count the problems give no interval (NaN).
        """
        figures = self.validation_figures()
        problems = dict(figures.get("problems", ()))
        found = []
        for step, value in figures.get("accuracy", ()):
            n = int(problems.get(step, 0))
            estimate = (
                wilson(round(value * n), n) if n else Estimate(value, float("nan"), float("nan"), 0)
            )
            found.append((step, estimate))
        return found

    @cached_property
    def problems(self) -> Mapping[str, list[Problem]]:
        """Problem's id -> the expert solutions of it that the log speaks of."""
        found: dict[str, list[Problem]] = {}
        for row in _rows(self.folder.problems):
            steps, answer = row.get("steps"), row.get("answer")
            found.setdefault(str(row.get("problem_id")), []).append(
                Problem(
                    str(row.get("problem")),
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

    @cached_property
    def attempts(self) -> list[Row]:
        """The lines of eval.jsonl, in order."""
        return list(_rows(self.folder.eval))

    def accuracies(self) -> list[Accuracy]:
        """Held-out problems solved, as summary.json has it, by time, mode and sampling."""
        parts: dict[tuple[str, str, bool], list[Row]] = {}
        for row in self.attempts:
            key = (str(row["when"]), str(row["mode"]), row["sample"] != 0)
            parts.setdefault(key, []).append(row)
        return [
            Accuracy(when, mode, sampled, _accuracy(rows), _failures(rows))
            for (when, mode, sampled), rows in parts.items()
        ]

    def solved_by(self, column: str) -> dict[str, dict[object, Estimate]]:
        """Greedy accuracy, step by step, by `num_steps` or `source`: when -> value -> share."""
        parts: dict[str, dict[object, list[Row]]] = {}
        for row in self.attempts:
            if row["mode"] == "steps" and row["sample"] == 0:
                parts.setdefault(str(row["when"]), {}).setdefault(row[column], []).append(row)
        return {
            when: {value: _accuracy(rows) for value, rows in sorted(by.items(), key=_order)}
            for when, by in parts.items()
        }

    def speed(self) -> list[tuple[int, float]]:
        """(training step, tokens written a second): over rollouts, rewards and update together."""
        figures = self.training_figures()
        seconds: dict[int, float] = {}
        for name in ("seconds/collect", "seconds/update"):
            for step, value in figures.get(name, ()):
                seconds[step] = seconds.get(step, 0.0) + value
        tokens = figures.get("tokens", ())
        return [(step, n / seconds[step]) for step, n in tokens if seconds.get(step)]

    def seconds(self) -> float | None:
        """How long training took: all of it once the run is complete, else its steps so far."""
        told = (self.summary or {}).get("seconds_training")
        if isinstance(told, int | float):
            return float(told)
        found = self.training_figures()
        parts = [v for name, rows in found.items() if name.startswith("seconds/") for _, v in rows]
        return sum(parts) if parts else None

    def gain(self, mode: str = "steps") -> Estimate | None:
        """Greedy accuracy after minus before, problem by problem, with its 95 % interval.

        None where one of them is missing, or they were not asked the same problems.
        """
        solved: dict[str, dict[object, bool]] = {"before": {}, "after": {}}
        for row in self.attempts:
            if row["mode"] == mode and row["sample"] == 0 and row["when"] in solved:
                solved[str(row["when"])][row["problem_id"]] = bool(row["correct"])
        before, after = solved["before"], solved["after"]
        if len(before) < 2 or before.keys() != after.keys():
            return None
        changes = [after[key] - before[key] for key in before]
        n = len(changes)
        mean = sum(changes) / n
        error = (sum((change - mean) ** 2 for change in changes) / (n - 1) / n) ** 0.5
        half = student_t(n - 1) * error
        return Estimate(mean, mean - half, mean + half, n)


def _order(item: tuple[object, object]) -> tuple[bool, object]:
    return isinstance(item[0], str), item[0]


def _accuracy(rows: Iterable[Row]) -> Estimate:
    by_problem: dict[object, list[bool]] = {}
    for row in rows:
        by_problem.setdefault(row["problem_id"], []).append(bool(row["correct"]))
    hits = list(by_problem.values())
    if all(len(one) == 1 for one in hits):
        return wilson(sum(one[0] for one in hits), len(hits))
    return bootstrap([sum(one) / len(one) for one in hits])


def _failures(rows: Iterable[Row]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        if row["failure"] is not None:
            found[str(row["failure"])] = found.get(str(row["failure"]), 0) + 1
    return found


def _rows(path: Path) -> list[dict[str, object]]:
    return list(read_rows(path)) if path.is_file() else []


def _json(path: Path) -> Row | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    return value if isinstance(value, dict) else None
