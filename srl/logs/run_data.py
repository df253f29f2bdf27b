"""Reads a run's folder for the views: the step log, and those of the other files that exist.

A folder need not be complete. While the run trains there is no summary, before it trains there is
no log of figures, and a trainer used from Python writes no config. The contents of the files are
checked while they are read, because a folder may come from somebody else or may have been edited.
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
from srl.logs.index import Log, Progress
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
    """The problem of a record: its text, the expert's steps, the final answer if there is one."""

    text: str
    steps: tuple[str, ...]
    answer: str | None


class RunData:
    """The data of a run.

    Attributes:
        folder: the run's folder.
        log: its step log.
    """

    def __init__(self, folder: RunFolder, log: Log) -> None:
        self.folder = folder
        self.log = log

    @classmethod
    def open(cls, folder: RunFolder, progress: Progress | None = None) -> RunData:
        """Opens a run and reads its step log; the other files are read when they are needed.

        Raises:
            UsageError: the step log does not exist, is empty, or is not a step log.
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
        log = Log.open(path, progress)
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
        """Whether the run has ended by itself."""
        return has_ended(self.folder)

    @cached_property
    def config(self) -> Row | None:
        """The resolved settings; None if the folder has no readable config."""
        with suppress(UsageError):
            return self.folder.read_config() if self.folder.config.is_file() else None
        return None

    @cached_property
    def environment(self) -> Row | None:
        """The versions, the machine and the commit; None if the file cannot be read."""
        return _json(self.folder.environment)

    @cached_property
    def summary(self) -> Row | None:
        """The summary that a complete run writes at its end; None if it cannot be read."""
        return _json(self.folder.summary)

    @property
    def policy_step(self) -> int | None:
        """The training step of the policy that was kept; None if it is the last step or unknown.

        This policy was the best on validation, and the attempts `after` are made with it.
        """
        best = (self.summary or {}).get("best_checkpoint")
        number = str(best).rpartition("checkpoint-")[2]
        if not isinstance(best, str) or not number.isdecimal() or int(number) == self.last_step:
            return None
        return int(number)

    @property
    def last_step(self) -> int:
        """The last training step in the step log or in the training figures of metrics.jsonl."""
        last_steps = [
            step for points in self.training_figures().values() for step, _ in points[-1:]
        ]
        return max([int(self.log.table["train_step"].to_numpy().max()), *last_steps])

    # -- metrics.jsonl ---------------------------------------------------------------------------

    @cached_property
    def metrics(self) -> list[Row]:
        """The lines of metrics.jsonl, in order.

        Raises:
            UsageError: a line does not have the format of that file.
        """
        return list(checked_rows(self.folder.metrics, {"step": is_step}))

    @cached_property
    def expert_load(self) -> list[tuple[int, Layers]]:
        """Pairs (training step, tokens of every expert of each sparse layer), in order.

        Raises:
            UsageError: a line of experts.jsonl does not have the format of that file.
        """
        fields = {"step": is_step, "layers": is_load}
        rows = checked_rows(self.folder.experts, fields)
        return [(int(str(row["step"])), cast(Layers, row["layers"])) for row in rows]

    def training_figures(self) -> dict[str, Points]:
        """Returns the training figures of metrics.jsonl: name -> (step, value), in order."""
        return self._figures(evaluation=False)

    def validation_figures(self) -> dict[str, Points]:
        """Returns the `eval_` figures: name without that prefix -> (step, value), in order."""
        return self._figures(evaluation=True)

    def _figures(self, *, evaluation: bool) -> dict[str, Points]:
        figures: dict[str, Points] = {}
        for row in self.metrics:
            if any(name.startswith("eval_") for name in row) != evaluation:
                continue
            if "train_runtime" in row:  # the Trainer's last line, about the run
                continue
            for name, value in row.items():
                if name not in ("step", "epoch") and (number := _number(value)) is not None:
                    points = figures.setdefault(name.removeprefix("eval_"), [])
                    points.append((int(str(row["step"])), number))
        return figures

    def per_step(self, name: str) -> Points:
        """Returns the mean per training step of a figure that metrics.jsonl sums over several."""
        steps = sorted({int(str(row["step"])) for row in self.metrics if "loss" in row})
        before = dict(zip(steps, [0, *steps], strict=False))
        return [
            (step, value / max(1, step - before.get(step, step - 1)))
            for step, value in self.training_figures().get(name, ())
        ]

    def totals(self) -> dict[str, float]:
        """Returns the whole run's sums of tokens, seconds and failures of rewards, by name."""
        return {
            name: sum(value for _, value in points)
            for name, points in self.training_figures().items()
            if name.startswith(SUMMED)
        }

    def seconds(self) -> float | None:
        """Returns the run's seconds of sampling and updating; None if none are recorded."""
        seconds = [value for name, value in self.totals().items() if name.startswith("seconds/")]
        return sum(seconds) if seconds else None

    def validation_accuracy(self) -> list[tuple[int, Estimate]]:
        """Returns (training step, share of validation problems solved) of each validation.

        The bounds of the interval are NaN if the number of problems (`eval_problems`) is missing.
        """
        figures = self.validation_figures()
        problems = dict(figures.get("problems", ()))
        validations = []
        for step, value in figures.get("accuracy", ()):
            n = problems.get(step, 0)
            counted = 1 <= n <= _MOST_PROBLEMS and 0 <= value <= 1
            estimate = (
                wilson(round(value * n), int(n))
                if counted
                else Estimate(value, math.nan, math.nan, 0)
            )
            validations.append((step, estimate))
        return validations

    # -- problems.jsonl --------------------------------------------------------------------------

    @cached_property
    def problems(self) -> Mapping[str, list[Problem]]:
        """A problem's id -> the expert solutions of that problem in problems.jsonl.

        Raises:
            UsageError: a line does not have the format of that file.
        """
        by_problem: dict[str, list[Problem]] = {}
        for row in checked_rows(self.folder.problems, {"problem_id": is_text, "problem": is_text}):
            steps, answer = row.get("steps"), row.get("answer")
            by_problem.setdefault(str(row["problem_id"]), []).append(
                Problem(
                    str(row["problem"]),
                    tuple(map(str, steps)) if isinstance(steps, list) else (),
                    None if answer is None else str(answer),
                )
            )
        return by_problem

    def problem_of(self, record: StepRecord) -> Problem | None:
        """Returns the expert solution that has the record's step; None if it is not recorded."""
        for problem in self.problems.get(record.problem_id, ()):
            if problem.steps[record.step_index : record.step_index + 1] == (record.expert_step,):
                return problem
        return None

    # -- eval.jsonl ------------------------------------------------------------------------------

    @cached_property
    def attempts(self) -> list[Attempt]:
        """The attempts at held-out problems.

        Raises:
            UsageError: a line does not have the format of that file.
        """
        return read_attempts(self.folder.eval)

    def accuracies(self) -> list[Accuracy]:
        """Returns the held-out accuracy by time, mode and sampling, as in summary.json."""
        return accuracies(self.attempts)

    def solved_by(self, column: str) -> dict[str, dict[object, Estimate]]:
        """Returns the greedy step-by-step accuracy by `num_steps` or `source`.

        The result maps when -> value of the column -> share of problems solved.
        """
        return solved_by(self.attempts, column)

    def gain(self, mode: str = "steps") -> Estimate | None:
        """Returns greedy accuracy after minus before, paired by problem; see `attempts.gain`."""
        return gain(
            [attempt for attempt in self.attempts if attempt.mode == mode and attempt.sample == 0]
        )


def has_ended(folder: RunFolder) -> bool:
    """Returns whether a run has ended by itself.

    A trainer used from Python records its end only in metrics.jsonl.
    """
    if folder.summary.is_file() or folder.config.is_file():
        return folder.summary.is_file()
    return any("train_runtime" in row for row in checked_rows(folder.metrics, {}))


# ---- values that may be anything ------------------------------------------------------------


def _number(value: object) -> float | None:
    """Returns a finite number as a float, and None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None


def _json(path: Path) -> Row | None:
    with suppress(OSError, ValueError, RecursionError):
        if not path.is_file():  # reading a pipe would block
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    return None
