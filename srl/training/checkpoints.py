"""Adds the state of our trainers and a manifest to transformers' checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from srl.errors import UsageError
from srl.runs.checkpoints import STATE_FILE, remove, rotate, seal, sweep
from srl.runs.folder import replace_file


def read_state(
    checkpoint: Path,
    *,
    holds: Mapping[str, type],
    logs: Collection[str],
    may_hold: Mapping[str, type] | None = None,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns the state in a checkpoint's folder, and how far each log was written.

    Args:
        checkpoint: the folder.
        holds: what the state must hold besides the positions of the logs: name -> type.
        logs: names of the logs.
        may_hold: what the state holds under some settings only: name -> type.

    Raises:
        UsageError: the checkpoint was not saved by this trainer, or is damaged.
    """
    path = checkpoint / STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kinds = {**holds, **{name: of for name, of in (may_hold or {}).items() if name in state}}
        values = {name: state[name] for name in kinds}
        for name, value in values.items():
            if type(value) is not kinds[name]:
                raise TypeError(f"{name} is {value!r}")
        positions = {"experts": 0, **state["positions"]}  # older ones have no experts.jsonl
        return values, {name: int(positions[name]) for name in logs}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{checkpoint} is not a checkpoint of this trainer: {path.name} is missing or "
            f"damaged ({error})"
        ) from error


def why_kept(state: TrainerState, metric: str) -> str:
    """Returns a line on the best checkpoint, and on others with the same validation result.

    Args:
        state: the state of a finished training with a best checkpoint.
        metric: the metric that chose it, with or without `eval_`.
    """
    step = int(str(state.best_model_checkpoint).rpartition("-")[2])
    name = f"eval_{metric.removeprefix('eval_')}"
    equal = [
        line["step"]
        for line in state.log_history
        if line.get(name) == state.best_metric and line["step"] != step
    ]
    kept = f"policy of step {step}, the best on validation: {metric} {state.best_metric:.3f}"
    if not equal:
        return kept
    return (
        f"{kept}; so has step {', '.join(map(str, equal))}, and the first is kept: more "
        "validation_problems, or another metric_for_best_model, may tell them apart"
    )


class Saving(TrainerCallback):
    """Completes every checkpoint, and only then deletes those it replaces.

    transformers writes the files of a checkpoint, deletes older ones and calls its callbacks. Our
    state and the manifest are written after that. So its deletion is off while it saves, and this
    class deletes instead.

    A line is logged before a checkpoint or an evaluation and at the end, whatever `logging_steps`
    says, because a checkpoint does not hold figures that are not yet logged.

    Args:
        state_dict: returns our state.

    Attributes:
        best: the best checkpoint so far of a resumed training.
        unfinished: the folder of a checkpoint that is being written, else None.
    """

    def __init__(self, state_dict: Callable[[], Mapping[str, object]]) -> None:
        self._state_dict = state_dict
        self._limit: int | None = None
        self.best: Path | None = None
        self.unfinished: Path | None = None

    def attach(self, trainer: Trainer) -> None:
        """Adds this callback to `trainer`."""
        # The first callback is transformers' own, which decides when to save. Trackers come after
        # it and may upload for minutes, so the checkpoint must be complete before they run.
        trainer.callback_handler.callbacks.insert(1, self)

    def begin(self, checkpoint: Path, args: TrainingArguments) -> None:
        """Prepares the folder and the library, before the first file of a checkpoint is written."""
        self.unfinished = checkpoint
        if checkpoint.exists():  # damaged, incomplete, or from another course of training
            remove(checkpoint)
        self._limit, args.save_total_limit = args.save_total_limit, None

    def end(self, args: TrainingArguments) -> None:
        """Ends a checkpoint, complete or not: the library may delete again."""
        if self.unfinished is not None:
            args.save_total_limit = self._limit
            self.unfinished = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        sweep(Path(str(args.output_dir)))
        # transformers stored a path, which is wrong after the run's folder was moved.
        if self.best is not None:
            state.best_model_checkpoint = str(self.best)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        if control.should_save or control.should_evaluate or state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        replace_file(folder / STATE_FILE, json.dumps(self._state_dict()).encode())
        seal(folder)
        self.end(args)
        best = state.best_model_checkpoint
        rotate(folder, limit=args.save_total_limit, best=None if best is None else Path(best))
