"""What a checkpoint holds beside transformers' own files: the state of our trainers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STATE_FILE = "srl_state.json"


class SaveState(TrainerCallback):
    """Puts our state into every checkpoint as its last file, which makes it whole.

    Before a checkpoint and at the end the log gets its line, whatever `logging_steps` says: figures
    that wait for their line are in no checkpoint.

    Args:
        state_dict: gives the state.
    """

    def __init__(self, state_dict: Callable[[], Mapping[str, object]]) -> None:
        self._state_dict = state_dict

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
        (folder / STATE_FILE).write_text(json.dumps(self._state_dict()), encoding="utf-8")
