"""Saves checkpoints by the clock, and ends a training by the clock or when the rows are used up."""

from __future__ import annotations

import time
from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveEveryMinutes(TrainerCallback):
    """Requests a checkpoint once `minutes` have passed since the last one, after a step.

    Args:
        minutes: the time between checkpoints.
        multiple_of: a run can resume only from steps that are a multiple of this.
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


class StopAfterMinutes(TrainerCallback):
    """Ends training with the step at which the time for training is used up.

    Only the time of steps counts, not that of evaluations, of checkpoints or between two sessions.
    This callback must come before the library's own, which handles the last step.

    Args:
        minutes: the time for training.
        multiple_of: only a step that is a multiple of this can be the last.

    Attributes:
        seconds: the time that the steps have taken so far, including earlier sessions.
    """

    def __init__(self, minutes: float, *, multiple_of: int) -> None:
        self._limit = 60 * minutes
        self._multiple = multiple_of
        self._began = time.monotonic()
        self.seconds = 0.0

    @property
    def is_over(self) -> bool:
        """Returns whether the steps have used up the time."""
        return self.seconds >= self._limit

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.seconds += time.monotonic() - self._began
        if self.is_over and state.global_step % self._multiple == 0:
            state.max_steps = state.global_step


class StopWhenOver(TrainerCallback):
    """Ends training with the step at which the rows are used up, as `StopAfterMinutes` does.

    Args:
        is_over: returns whether the rows are used up.
        multiple_of: only a step that is a multiple of this can be the last.
    """

    def __init__(self, is_over: Callable[[], bool], *, multiple_of: int) -> None:
        self._is_over = is_over
        self._multiple = multiple_of

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self._is_over() and state.global_step % self._multiple == 0:
            state.max_steps = state.global_step
