"""The supervised baseline: fine-tuning on the expert's own text, through TRL's `SFTTrainer`.

Rows and prompts are those of SRL; the completion is what the expert wrote, in the policy's format:
with the expert's thoughts where the data has them. The loss is the mean cross-entropy of the
completion tokens of an optimiser step, whatever micro-batches it was cut into.

The only touch point with TRL's SFT. It relies on this of TRL 1.16, and the tests fail where it
moves:
- a data set with `input_ids` and `labels` and `skip_prepare_dataset` is trained on as it is;
- `compute_loss(model, inputs, num_items_in_batch=n)` is the sum over the labels divided by n, and
  `training_step` adds its gradients to those there are;
- `log` adds its own figures, kept in `_metrics`, to the mapping it is given;
- `create_model_card` is what writes a README.md beside the checkpoints: not here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from environments.types import Trajectory
from rewards import RewardSum
from srl.config.parts import RowSettings
from srl.config.settings import ExpertConfig, without_tokens
from srl.data.prompts import TAG, PromptFormat
from srl.data.rows import Rows, dropped
from srl.data.steps import StepExample
from srl.errors import UsageError, libraries_refuse
from srl.evaluation.solving import Attempt
from srl.training.base import StepTrainer
from srl.training.divergence import refuse_step
from srl.training.run_log import RunLog

# Metrics of `ExpertTrainer.evaluate` that a best checkpoint may be chosen by.
BEST_BY = ("eval_accuracy", "eval_loss")

_IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


@dataclass(frozen=True)
class ExpertRows:
    """What the expert wrote, as prompt and completion.

    Attributes:
        examples: the rows.
        prompts: token ids of each row's prompt, SRL's.
        completions: token ids of each row's completion, the end token included.
        dropped: why rows were left out -> how many.
    """

    examples: list[StepExample]
    prompts: list[list[int]]
    completions: list[list[int]]
    dropped: Counter[str]

    @classmethod
    def of(
        cls,
        trajectories: Sequence[Trajectory],
        form: PromptFormat,
        args: RowSettings,
        limit: int | None,
        *,
        require_thoughts: bool = False,
    ) -> ExpertRows:
        """The rows that SRL would train on, less those whose completion cannot be trained on.

        Args:
            trajectories: the expert solutions.
            form: the words around a step.
            args: the settings.
            limit: tokens that the policy can read and write together; None is no limit.
            require_thoughts: leave out rows whose step has no thought.

        Raises:
            UsageError: no row fits.
        """
        rows = Rows.of(trajectories, form, args, limit)
        found = cls([], [], [], Counter(rows.dropped))
        for example, prompt in zip(rows.examples, rows.prompts, strict=True):
            completion = form.encode_expert(example)
            thoughts = [step.thought for step in example.expert_steps]
            if require_thoughts and not any(map(str.strip, thoughts)):
                found.dropped["no thought before the step"] += 1
            elif args.think and any(map(TAG.search, thoughts)):
                # It would end its own thought, and teach what follows as a step.
                found.dropped["a think tag inside a thought"] += 1
            elif limit is not None and len(prompt) + len(completion) > limit:
                found.dropped["too long for the policy's context"] += 1
            elif failure := form.parse(completion, False, whole=example.whole).failure:
                # Trained on, it would teach what every evaluation counts as a failure.
                found.dropped[f"the expert's text breaks the policy's format ({failure})"] += 1
            else:
                found.examples.append(example)
                found.prompts.append(prompt)
                found.completions.append(completion)
        if rows.examples and not found.examples:
            raise UsageError(f"no row can be trained on{dropped(found.dropped)}; give other data")
        return found

    def to_dataset(self) -> Dataset:
        """As `SFTTrainer` takes them: labels are the completion's tokens, and none elsewhere."""
        pairs = list(zip(self.prompts, self.completions, strict=True))
        return Dataset.from_dict(
            {
                "input_ids": [[*prompt, *completion] for prompt, completion in pairs],
                "labels": [
                    [*[_IGNORED] * len(prompt), *completion] for prompt, completion in pairs
                ],
            }
        )


class ExpertTrainer(StepTrainer, SFTTrainer):
    """Fine-tunes a causal language model on the expert's steps, or whole solutions.

    The order of the rows is that of SRL's prompts without refills: a function of the seed, known
    beforehand, so a resumed run sees the rows an uninterrupted one would have seen.

    Args:
        model: a loaded model, or a model with an adapter.
        args: the settings; those of sampling and scoring serve evaluation alone.
        train_trajectories: expert solutions to train on.
        validation_trajectories: expert solutions of other problems, for `evaluate`.
        step_rewards: what the figures of held-out steps are measured with.
        processing_class: the tokenizer.
        callbacks: further callbacks of transformers.

    Raises:
        UsageError: wrong use, in words.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: ExpertConfig,
        train_trajectories: Sequence[Trajectory],
        validation_trajectories: Sequence[Trajectory],
        step_rewards: RewardSum,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        train_trajectories = self._prepare(
            model,
            args,
            processing_class,
            train_trajectories,
            validation_trajectories,
            step_rewards,
            best_by=BEST_BY,
        )
        make_rows = partial(
            ExpertRows.of,
            form=self.form,
            args=args,
            limit=self.context_limit,
            require_thoughts=args.require_thoughts,
        )
        self.rows = make_rows(train_trajectories)
        self.prompts = self.rows.prompts
        self._take_rows(self.rows.examples, self.rows.dropped)
        held_out = make_rows(self.validation_trajectories)
        if args.max_steps <= 0:
            rows_seen = args.num_train_epochs * len(self.prompts)
            args.max_steps = max(1, round(rows_seen / args.prompts_per_step))
        self.run_log = RunLog(Path(args.output_dir or "."), log_completions=False)
        order = self.stream.take(args.max_steps * args.prompts_per_step)
        with libraries_refuse():
            super().__init__(
                model=model,
                args=_trl_settings(args),
                train_dataset=self.rows.to_dataset().select(order),
                eval_dataset=held_out.to_dataset() if held_out.examples else None,
                processing_class=processing_class,
                callbacks=callbacks,
            )
        self._attach(
            first_lines=(self.arithmetic,),
        )

    def arithmetic(self) -> str:
        """One line: the sizes of a step, and how often the rows are seen."""
        args, count = self.settings, len(self.prompts)
        thinking = sum(any(step.thought for step in row.expert_steps) for row in self.rows.examples)
        thoughts = f", {thinking:,} with thoughts" if thinking else ""
        if thinking and not args.think:
            thoughts += ", which are left out (think: false)"
        return (
            f"{count:,} rows of the expert's text{thoughts}{dropped(self.rows.dropped)}; "
            f"{args.prompts_per_step} rows a step, micro-batches of at most "
            f"{args.micro_batch_tokens:,} tokens; {args.max_steps} steps, about "
            f"{args.max_steps * args.prompts_per_step / count:.2g} epochs"
        )

    # -- documented methods of Trainer -----------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: object = None
    ) -> Tensor:
        """One optimiser step up to the gradients, in micro-batches; the Trainer clips and updates.

        Args:
            model: the model.
            inputs: all rows of the step, padded on the right.
            num_items_in_batch: tokens of all completions: what the loss of each part is divided by.
        """
        started = time.perf_counter()
        lengths = inputs["attention_mask"].sum(1).tolist()
        total = torch.zeros((), device=self.args.device)
        for part in micro_batches(lengths, self.settings.micro_batch_tokens):
            longest = max(lengths[row] for row in part)
            rows = {name: value[part, :longest] for name, value in inputs.items()}
            total += super().training_step(model, rows, num_items_in_batch)
        seconds = time.perf_counter() - started
        self.run_log.note({"tokens": sum(lengths), "seconds/update": seconds})
        refuse_step(model, total, self.state.global_step + 1)
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Without TRL's count of tokens since this process started: `tokens` counts by the step."""
        for figures in self._metrics.values():
            figures.pop("num_tokens", None)
        super().log(logs, start_time)

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """None: the run folder says how the policy came about."""

    # -- parts -----------------------------------------------------------------------------------

    def _validate(self) -> tuple[list[Attempt], dict[str, float]]:
        """Greedy attempts at the validation problems, as SRL's, and the loss of their rows."""
        self.model.eval()
        return self._attempts(), {"loss": self._held_out_loss()}

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Mean cross-entropy of the completion tokens of all held-out rows; NaN without any."""
        if self.eval_dataset is None:
            return float("nan")
        rows = list(self.eval_dataset)
        tokens = sum(label != _IGNORED for row in rows for label in row["labels"])
        lengths = [len(row["input_ids"]) for row in rows]
        total = 0.0
        with self.accelerator.autocast():
            for part in micro_batches(lengths, self.settings.micro_batch_tokens):
                inputs = self._prepare_inputs(self.data_collator([rows[row] for row in part]))
                total += float(self.compute_loss(self.model, inputs, num_items_in_batch=tokens))
        return total

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the Trainer's own state."""
        state = super().state_dict()
        # The whole order was drawn at the start.
        seen = self.state.global_step * self.settings.prompts_per_step
        return {**state, "stream": {**state["stream"], "cursor": seen}}


def micro_batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Rows in order of their length, as many at once as `limit` holds when padded to the longest.

    A row that is longer than that stands alone.

    Args:
        lengths: tokens of each row.
        limit: tokens of a micro-batch, padding included.
    """
    part: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if part and (len(part) + 1) * lengths[row] > limit:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _trl_settings(args: ExpertConfig) -> SFTConfig:
    """Our settings as TRL's; its own beyond them are off."""
    ours: Mapping[str, object] = {
        field.name: getattr(args, field.name) for field in fields(TrainingArguments) if field.init
    }
    changed = {
        # One training_step is one optimiser step, as in SRL; it cuts its rows itself.
        "per_device_train_batch_size": args.prompts_per_step,
        "dataloader_pin_memory": args.dataloader_pin_memory and args.device.type != "cpu",
        "train_sampling_strategy": "sequential",  # the data set is in order already
        "num_train_epochs": 1,
        "max_length": None,  # too long rows were left out and counted
        "packing": False,
        "shuffle_dataset": False,
        "loss_type": "nll",
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    return _TrlSettings(**{**ours, **changed})


class _TrlSettings(SFTConfig):
    def __getstate__(self) -> dict[str, object]:
        return without_tokens(self)
