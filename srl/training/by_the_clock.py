"""Checkpoints and the end of a training: by the clock, or where the rows are over."""

from __future__ import annotations

import time
from collections.abc import Callable

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


class StopAfterMinutes(TrainerCallback):
    """Makes the step with which the time for training is over the last one.

    Only the steps count: neither evaluations and checkpoints, nor the time between two sessions.
    Stands in front of the library's own callback, which does at the last step what is due there.

    Args:
        minutes: how long.
        multiple_of: only a step that is a multiple of this can be the last.

    Attributes:
        seconds: that the steps have taken so far, those of earlier sessions included.
    """

    def __init__(self, minutes: float, *, multiple_of: int) -> None:
        self._limit = 60 * minutes
        self._multiple = multiple_of
        self._began = time.monotonic()
        self.seconds = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the steps have taken all of the time."""
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
    """Makes the step with which the rows are over the last one, as `StopAfterMinutes` does.

    Args:
        is_over: whether they are.
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
