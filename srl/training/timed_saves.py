"""Checkpoints by the clock, for steps that take long: `save_every_minutes`."""

from __future__ import annotations

import time

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveEveryMinutes(TrainerCallback):
    """Asks for a checkpoint after the step with which the time since the last one is over.

    Args:
        minutes: how long.
        multiple_of: only steps that are a multiple of this can be gone on from.
    """

    def __init__(self, minutes: float, *, multiple_of: int) -> None:
        self._seconds = 60 * minutes
        self._multiple = multiple_of
        self._saved = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        over = time.monotonic() - self._saved >= self._seconds
        if over and state.global_step % self._multiple == 0:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._saved = time.monotonic()
