"""Sends tables of rollouts to the trackers that have tables: wandb, trackio and mlflow.

Figures reach every tracker of `report_to` through `Trainer.log`, under the names of metrics.jsonl.
The texts that the policy wrote go to the tracker as a table, with each line of figures.
`steps.jsonl` has every rollout; a tracker gets only the newest ones.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from importlib import import_module
from itertools import groupby

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import (
    is_mlflow_available,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)

from srl.errors import UsageError
from srl.runs.records import StepRecord, finite, utf8

# The trackers that have tables.
TABLES = ("wandb", "trackio", "mlflow")

# Rows of one table: enough to see what the policy does. With texts of 2 KB they take about 150 KB.
# All rollouts of a long run would be gigabytes. Trackers send them over the network and load them
# into a page.
MAX_ROWS = 64

# Tables that mlflow gets over a whole training, evenly spread. mlflow lists a run's tables in one
# tag of at most 8000 characters. After about 130 names it cuts that list and cannot read it again.
MLFLOW_TABLES = 100

# Columns are fields of the step record. Rewards and metrics stand between, one column per name.
_BEFORE = (
    "train_step", "source", "problem_id", "step_index", "group_id", "rollout", "thought", "action",
    "expert_step", "format_failure", "reward",
)  # fmt: skip
_AFTER = ("kept", "advantage")

_AVAILABLE = {
    "tensorboard": is_tensorboard_available,
    "trackio": is_trackio_available,
    "wandb": is_wandb_available,
    "mlflow": is_mlflow_available,
}


_log = logging.getLogger(__name__)


def names_of(report_to: str | Sequence[str] | None) -> list[str]:
    """Returns the requested trackers as a list, also for a single name or None."""
    return [report_to] if isinstance(report_to, str) else list(report_to or ())


def check_installed(report_to: str | Sequence[str] | None) -> None:
    """Refuses a tracker that is not installed; the message says what to type.

    Unknown names and rarer trackers are left to transformers.

    Raises:
        UsageError: a tracker of `report_to` is not installed.
    """
    for name in names_of(report_to):
        if name in _AVAILABLE and not _AVAILABLE[name]():
            raise UsageError(
                f"report_to asks for {name}, which is not installed; type: pip install {name}"
            )


class RolloutTables(TrainerCallback):
    """Sends a table of the newest rollouts with every line of figures.

    Callbacks are called in the order in which they were added. Add this one after those of the
    trackers, so that their runs have started when it sends.

    Args:
        trackers: names from `TABLES`.
    """

    def __init__(self, trackers: Sequence[str]) -> None:
        self._trackers = list(trackers)
        self._records: list[StepRecord] = []
        self._mlflow_span = -1

    def keep(self, records: Sequence[StepRecord]) -> None:
        """Keeps a step's rollouts for the next table; older ones stay if there is room."""
        self._records = _whole_groups([*records, *self._records])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        records, self._records = self._records, []
        if not records:  # figures of an evaluation, or of the whole training
            return
        columns, rows = rollout_table(records)
        for name in tuple(self._trackers):
            try:
                self._send(name, columns, rows, state)
            except Exception as error:  # noqa: BLE001 - each tracker has errors of its own, from
                # a full disk to a lost connection, and none should end a training of hours.
                self._trackers.remove(name)
                lines = str(error).splitlines() or [""]
                _log.warning(
                    "%s gets no more tables of rollouts, as one could not be sent: %s: %s",
                    name,
                    type(error).__name__,
                    lines[0][:200],
                )

    def _send(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        state: TrainerState,
    ) -> None:
        tracker = import_module(name)
        if name != "mlflow":
            # The step is in the row, as with figures, because these trackers count calls of `log`.
            table = tracker.Table(columns=list(columns), data=[list(row) for row in rows])
            tracker.log({"rollouts": table, "train/global_step": state.global_step})
            return
        span = (state.global_step - 1) // math.ceil(max(1, state.max_steps) / MLFLOW_TABLES)
        if span != self._mlflow_span:
            self._mlflow_span = span
            # Each table has its own file. To add to a file, mlflow reads it back first, and takes
            # texts of digits for numbers.
            tracker.log_table(
                {column: [row[i] for row in rows] for i, column in enumerate(columns)},
                artifact_file=f"rollouts/step-{state.global_step:06d}.json",
            )


def rollout_table(records: Sequence[StepRecord]) -> tuple[list[str], list[list[object]]]:
    """Returns columns and rows, which contain only texts, numbers, booleans and None."""
    named = {
        (kind, name): None
        for kind in ("rewards", "metrics")
        for record in records
        for name in getattr(record, kind)
    }
    columns = [*_BEFORE, *(f"{kind}/{utf8(name)}" for kind, name in named), *_AFTER]
    rows = [
        [
            *(_cell(getattr(record, field)) for field in _BEFORE),
            *(_cell(getattr(record, kind).get(name)) for kind, name in named),
            *(_cell(getattr(record, field)) for field in _AFTER),
        ]
        for record in records
    ]
    return columns, rows


def _whole_groups(records: Sequence[StepRecord]) -> list[StepRecord]:
    """Returns the first whole groups, at most `MAX_ROWS` rows, but at least one group."""
    taken: list[StepRecord] = []
    for _, group in groupby(records, lambda record: (record.train_step, record.group_id)):
        rows = list(group)
        if taken and len(taken) + len(rows) > MAX_ROWS:
            break
        taken += rows
    return taken


def _cell(value: object) -> object:
    # trackio leaves out a table with a lone surrogate, and mlflow fails.
    return utf8(value) if isinstance(value, str) else finite(value)
