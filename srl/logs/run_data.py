"""A run's folder as the views read it: the step log and, where they are there, the files beside it.

Half a run is a run: while it trains there is no summary, before it trains there is no log of
figures, and a trainer used from Python writes no config. What stands in the files is checked as it
is read: a folder may be somebody else's, or have been edited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from srl.errors import UsageError
from srl.logs.index import Log, Told
from srl.runs.attempts import Accuracy, Attempt, accuracies, gain, read_attempts, solved_by
from srl.runs.checked_rows import Row, checked_rows, is_step, is_text
from srl.runs.expert_load import Layers, is_load
from srl.runs.folder import RunFolder
from srl.runs.records import SUMMED, StepRecord
from srl.stats import Estimate, wilson

Points = list[tuple[int, float]]

_MOST_PROBLEMS = 10**9


@dataclass(frozen=True)
class Problem:
    """A record's problem: its text, the expert's steps, the final answer if there is one."""

    text: str
    steps: tuple[str, ...]
    answer: str | None


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
        return list(checked_rows(self.folder.metrics, {"step": is_step}))

    @cached_property
    def expert_load(self) -> list[tuple[int, Layers]]:
        """(training step, of each sparse layer how many tokens its experts got), in order.

        Raises:
            UsageError: a line of experts.jsonl is none of that file.
        """
        fields = {"step": is_step, "layers": is_load}
        rows = checked_rows(self.folder.experts, fields)
        return [(int(str(row["step"])), cast(Layers, row["layers"])) for row in rows]

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
            if name.startswith(SUMMED)
        }

    def seconds(self) -> float | None:
        """Seconds of sampling and updating, over the whole run; None where none were taken."""
        found = [value for name, value in self.totals().items() if name.startswith("seconds/")]
        return sum(found) if found else None

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
        for row in checked_rows(self.folder.problems, {"problem_id": is_text, "problem": is_text}):
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
        """The attempts at held-out problems.

        Raises:
            UsageError: a line is none of that file.
        """
        return read_attempts(self.folder.eval)

    def accuracies(self) -> list[Accuracy]:
        """Held-out problems solved, as summary.json has it, by time, mode and sampling."""
        return accuracies(self.attempts)

    def solved_by(self, column: str) -> dict[str, dict[object, Estimate]]:
        """Greedy accuracy, step by step, by `num_steps` or `source`: when -> value -> share."""
        return solved_by(self.attempts, column)

    def gain(self, mode: str = "steps") -> Estimate | None:
        """Greedy accuracy after minus before, problem by problem; see `attempts.gain`."""
        return gain([one for one in self.attempts if one.mode == mode and one.sample == 0])


def has_ended(folder: RunFolder) -> bool:
    """A run has ended by itself. A trainer used from Python says so in metrics.jsonl alone."""
    if folder.summary.is_file() or folder.config.is_file():
        return folder.summary.is_file()
    return any("train_runtime" in row for row in checked_rows(folder.metrics, {}))


# ---- values that may be anything ------------------------------------------------------------


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
        if not path.is_file():  # a pipe would be waited for
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    return None
