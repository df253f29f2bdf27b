"""Resumes a stopped training: what a checkpoint keeps, and how it is restored."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from srl.config.settings import TrainerConfig
from srl.data.mixing import Stream
from srl.data.stream import PromptStream
from srl.errors import DivergedError, RunError, UsageError
from srl.models.restoring import is_converted, restore
from srl.models.routing import load_bias
from srl.runs.checkpoints import best_so_far, check_checkpoint, latest_checkpoint
from srl.training.by_the_clock import StopAfterMinutes
from srl.training.checkpoints import Saving, read_state
from srl.training.run_log import RunLog


class ResumableTrainer(Trainer):
    """A trainer whose run resumes from a checkpoint as if it had not been stopped.

    Attributes:
        settings: the same as `args`, but set before the library sets `args`.
        stream: chooses the next rows.
        run_log: the logs in the run's folder.
        expert_tokens: the expert's tokens in the rows drawn so far, if they are counted.
    """

    settings: TrainerConfig
    stream: Stream
    run_log: RunLog
    expert_tokens: int
    _row_tokens: Sequence[int]
    _saving: Saving
    _clock: StopAfterMinutes | None
    # What a subclass adds to `state_dict`: name -> type.
    _further_state: Mapping[str, type] = {}

    @abstractmethod
    def _fits_into_memory(self) -> AbstractContextManager[None]:
        """Returns a context around training that explains out-of-memory errors."""

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: object):  # type: ignore[no-untyped-def]
        """Trains, from a checkpoint if one is given: its folder, or True for the newest one.

        Raises:
            UsageError: there is no checkpoint to resume from, or a new run finds another's log.
            DivergedError: the policy's numbers are not finite; the last checkpoint is good.
            RunError: a checkpoint cannot be saved.
        """
        checkpoint = self._checkpoint(resume_from_checkpoint)
        if checkpoint is None:
            self.run_log.refuse_another()
        else:
            self._load_state(checkpoint)
            self._saving.best = best_so_far(checkpoint)
            # The log already has the evaluation from the start of this training.
            self.args.eval_on_start = False
            if self._rows_are_over() or (self._clock is not None and self._clock.is_over):
                self.args.max_steps = int(checkpoint.name.rpartition("-")[2])
        try:
            self.run_log.open()
            path = None if checkpoint is None else str(checkpoint)
            with self._fits_into_memory():
                return super().train(resume_from_checkpoint=path, **kwargs)
        except DivergedError as error:
            raise DivergedError(self._why_diverged(error)) from error
        except (OSError, RuntimeError, SafetensorError) as error:
            unfinished = self._saving.unfinished
            if unfinished is None or isinstance(error, RunError):
                raise
            raise RunError(
                f"{unfinished} could not be saved (is the disk full?): {error}. "
                f"{self._where_it_can_go_on()}"
            ) from error
        finally:
            self._saving.end(self.args)
            self.run_log.close()

    def _rows_are_over(self) -> bool:
        most = self.settings.max_expert_tokens
        return self.stream.is_over or (most is not None and self.expert_tokens >= most)

    @property
    def _bare_model(self) -> nn.Module:
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        return model

    # This overrides undocumented methods, because the library offers no other way: its own would
    # not load the experts of a sparse policy.
    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        bare, folder = self._bare_model, Path(resume_from_checkpoint)
        if is_converted(bare, folder):
            restore(cast(PreTrainedModel, bare), folder)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        bare, folder = self._bare_model, Path(str(self.state.best_model_checkpoint))
        if is_converted(bare, folder):
            restore(cast(PreTrainedModel, bare), folder)
        else:
            super()._load_best_model()
        load_bias(bare, folder)

    def _checkpoint(self, asked: str | bool | None) -> Path | None:
        """Returns the checkpoint to resume from, after a check that it is whole; None to start.

        Raises:
            UsageError: there is no checkpoint, or it is damaged.
        """
        with_best = self.args.load_best_model_at_end
        if not asked:
            return None
        if asked is not True:
            check_checkpoint(Path(asked), with_best=with_best)
            return Path(asked)
        folder = Path(str(self.args.output_dir))
        checkpoint = latest_checkpoint(folder, warnings.warn, with_best=with_best)
        if checkpoint is None:
            raise UsageError(f"{folder} has no checkpoint to go on from")
        return checkpoint

    def _why_diverged(self, error: DivergedError) -> str:
        """Returns a message: when training stopped, why, and what to do."""
        step = self.state.global_step
        if step == 0:
            when = "before any update"
            advice = "Look at the model, the data, the loss and the rewards"
        else:
            when = f"after step {step}"
            advice = f"Lower learning_rate (now {self.args.learning_rate:g})"
            advice += "" if self.args.max_grad_norm else ", or clip gradients with max_grad_norm"
        for line in [entry for entry in self.state.log_history if "grad_norm" in entry][-1:]:
            when += f" (loss {line['loss']:.3g}, gradient norm {line['grad_norm']:.3g}"
            when += ")" if line["step"] == step else f" at step {line['step']})"
        return f"training stops {when}: {error}. {advice}. {self._where_it_can_go_on()}"

    def _where_it_can_go_on(self) -> str:
        try:
            last = latest_checkpoint(Path(str(self.args.output_dir)), lambda _: None)
        except UsageError:
            last = None
        return "There is no checkpoint yet" if last is None else f"The last good checkpoint: {last}"

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps in addition to the Trainer's own state."""
        seconds = {} if self._clock is None else {"seconds": self._clock.seconds}
        stream, positions = self.stream.state_dict(), self.run_log.positions()
        if self._row_tokens:
            stream = {**stream, "expert_tokens": self.expert_tokens}
        return {"stream": stream, "positions": positions, **seconds}

    def _load_state(self, checkpoint: Path) -> dict[str, Any]:
        """Restores the state of a checkpoint, and returns it.

        Raises:
            UsageError: the checkpoint is damaged, or was saved with other data or another seed.
        """
        holds = {"stream": dict, **self._further_state}
        state, positions = read_state(
            checkpoint, holds=holds, logs=self.run_log.paths, may_hold={"seconds": float}
        )
        self.stream.load_state_dict(state["stream"])
        load_bias(self._bare_model, checkpoint)
        if self._clock is not None:
            self._clock.seconds = self._seconds_so_far(state, checkpoint)
        if self._row_tokens:
            self.expert_tokens = self._tokens_so_far(state["stream"], checkpoint)
        self.run_log.cut_back(positions)
        return state

    def _seconds_so_far(self, saved: Mapping[str, Any], checkpoint: Path) -> float:
        """Returns the time of the steps before a checkpoint, even if the clock did not run."""
        if "seconds" in saved:
            return float(saved["seconds"])
        history = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).log_history
        return sum(_seconds_of(line) for line in history)

    def _tokens_so_far(self, saved: Mapping[str, Any], checkpoint: Path) -> int:
        """Returns the expert's tokens in the rows before a checkpoint, even if it has no count.

        Raises:
            UsageError: it has no count, and the rows that were drawn from a mixture are not known.
        """
        counted = saved.get("expert_tokens")
        if isinstance(counted, int):
            return counted
        stream = self.stream
        if not isinstance(stream, PromptStream):
            raise UsageError(
                f"{checkpoint} was saved before the expert's tokens were counted; start a new run "
                "from its policy: --model FOLDER"
            )
        before = PromptStream(stream.num_rows, stream.seed, units=stream.units)
        return sum(self._row_tokens[row] for row in before.take(stream.cursor))


def _seconds_of(line: Mapping[str, float]) -> float:
    """Seconds of all steps since the line before, as the log has them; 0 of other lines."""
    return sum(line.get(name, 0.0) for name in ("seconds/collect", "seconds/update"))
