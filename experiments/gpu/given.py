"""Gives the parts their device, model, problems and time, or toy versions of these."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from environments import load_trajectories
from environments.types import LoadReport, Trajectory
from srl.models.loading import load_policy

ROOT = Path(__file__).resolve().parents[2]
TOY_MODEL = ROOT / "experiments" / "tiny" / "base"
# The size of GSM8K's test set. Without a test file, this many problems are held out from the end of
# the training file.
HELD_OUT = 1319
# A run of minutes never reads more, and tokenising all problems takes twenty seconds per stage.
TRAIN = 1500

Note = Callable[[Mapping[str, object]], None]
"""Saves figures as soon as they are known."""


class SkippedError(Exception):
    """Raised by a part that cannot run with what it is given; the message says what is missing."""


@dataclass(frozen=True)
class Given:
    """The inputs of a part.

    Attributes:
        toy: uses toy sizes on a CPU, which is no measurement.
        model: a model's folder; None takes random weights where weights do not matter.
        data: GSM8K's training rows as JSON lines.
        test: GSM8K's test rows; None holds out rows of `data`.
        folder: the folder for the files of runs.
        ends: the `time.monotonic()` at which the part is stopped.
    """

    toy: bool
    model: Path | None
    data: Path | None
    test: Path | None
    folder: Path
    ends: float

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.toy else "cuda")

    @property
    def left(self) -> float:
        """The seconds until the part is stopped."""
        return self.ends - time.monotonic()

    def policy(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads the model onto the device, and its tokenizer.

        Raises:
            SkippedError: no model is given.
        """
        if self.model is None and not self.toy:
            raise SkippedError("it needs --model, a model's folder")
        model, tokenizer = load_policy(str(self.model or TOY_MODEL))
        return model.to(self.device), tokenizer

    @property
    def source(self) -> dict[str, object]:
        """The value of `data` in an experiment's settings."""
        if self.toy and self.data is None:
            return {"source": "word_problems", "limit": 12, "max_operations": 3}
        return {"source": "gsm8k", "path": str(self.data), "answer_step": True}

    def problems(self) -> tuple[list[Trajectory], list[Trajectory]]:
        """Loads the problems to train on, and other problems to test with.

        Raises:
            SkippedError: no problems are given.
        """
        if self.data is None and not self.toy:
            raise SkippedError("it needs --data, GSM8K's training rows as JSON lines")

        def load(source: Mapping[str, object]) -> list[Trajectory]:
            options = {name: value for name, value in source.items() if name != "source"}
            return load_trajectories(str(source["source"]), report=LoadReport(), **options)  # type: ignore[arg-type]

        train = load(self.source)
        if self.toy:
            return train[2:], train[:2]
        if self.test is not None:
            return train[:TRAIN], load({**self.source, "path": str(self.test)})
        return train[:-HELD_OUT][:TRAIN], train[-HELD_OUT:]


def rounded(values: Mapping[str, object]) -> dict[str, object]:
    """Returns figures as plain values, with floats rounded to four significant digits."""
    return json.loads(json.dumps(values), parse_float=lambda text: float(f"{float(text):.4g}"))
