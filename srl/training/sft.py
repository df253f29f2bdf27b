"""The supervised baseline: fine-tuning on the expert's own text.

Rows and prompts are those of SRL. The completion is the expert's text in the policy's format, with
the expert's thoughts where the data has them. The loss is the mean cross-entropy of the completion
tokens of an optimiser step, however the step was cut into micro-batches. TRL's `SFTTrainer`
computes the same loss (a test compares both).

The update runs through the model as SRL's does, so that their times can be compared: with prefix
trees instead of padding, and with logits of completion tokens only. On a CPU, TRL computes the
logits of every token.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from environments.types import Trajectory
from rewards import RewardSum
from srl.config.mixture import Mixture
from srl.config.parts import RowSettings
from srl.config.settings import ExpertConfig
from srl.data.prompts import TAG, PromptFormat
from srl.data.rows import Rows, dropped
from srl.data.steps import StepExample
from srl.errors import UsageError, libraries_refuse
from srl.evaluation.solving import Attempt
from srl.models.prefix_tree import Row
from srl.training.base import StepTrainer, Ticks
from srl.training.batch import MicroBatch, micro_batches
from srl.training.divergence import refuse_step
from srl.training.run_log import RunLog
from srl.training.start_lines import steps_line

# Metrics of `ExpertTrainer.evaluate` by which the best checkpoint can be chosen.
BEST_BY = ("eval_accuracy", "eval_loss")


@dataclass(frozen=True)
class ExpertRows:
    """The expert's text as prompts and completions.

    Attributes:
        examples: the rows.
        prompts: token ids of each row's prompt, as in SRL.
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
        also_whole: bool = False,
    ) -> ExpertRows:
        """Returns the rows that SRL would train on, without those whose completion cannot be used.

        Args:
            trajectories: the expert solutions.
            form: the words around a step.
            args: the settings.
            limit: tokens that the policy can read and write together; None is no limit.
            require_thoughts: leave out rows whose step has no thought.
            also_whole: add a row for the whole of each solution.

        Raises:
            UsageError: no row fits the context, or none can be trained on.
        """
        rows = Rows.of(trajectories, form, args, limit, also_whole=also_whole)
        expert_rows = cls([], [], [], Counter(rows.dropped))
        for example, prompt in zip(rows.examples, rows.prompts, strict=True):
            completion = form.encode_expert(example)
            thoughts = [step.thought for step in example.expert_steps]
            if require_thoughts and not any(map(str.strip, thoughts)):
                expert_rows.dropped["no thought before the step"] += 1
            elif args.think and any(map(TAG.search, thoughts)):
                # The tag would end the thought, and the rest would be learned as the step.
                expert_rows.dropped["a think tag inside a thought"] += 1
            elif limit is not None and len(prompt) + len(completion) > limit:
                expert_rows.dropped["too long for the policy's context"] += 1
            elif failure := form.parse(completion, False, whole=example.whole).failure:
                # The row would teach what every evaluation counts as a failure.
                expert_rows.dropped[
                    f"the expert's text breaks the policy's format ({failure})"
                ] += 1
            else:
                expert_rows.examples.append(example)
                expert_rows.prompts.append(prompt)
                expert_rows.completions.append(completion)
        if rows.examples and not expert_rows.examples:
            raise UsageError(
                f"no row can be trained on{dropped(expert_rows.dropped)}; give other data"
            )
        return expert_rows

    def row(self, number: int) -> Row:
        """Returns the tokens of one row: its prompt and its completion."""
        return self.prompts[number], self.completions[number]


class ExpertTrainer(StepTrainer):
    """Fine-tunes a causal language model on the expert's steps, or whole solutions.

    The order of the rows is that of SRL's prompts without refills. It is a function of the seed, so
    a resumed run sees the same rows as an uninterrupted one.

    Args:
        model: a loaded model, or a model with an adapter.
        args: the settings; those of sampling and scoring are used in evaluation only.
        train_trajectories: expert solutions to train on.
        validation_trajectories: expert solutions of other problems, for `evaluate`.
        step_rewards: the rewards that measure held-out steps.
        processing_class: the tokenizer.
        callbacks: further callbacks of transformers.
        mixture: the share of each source of trajectories; None treats all rows alike.

    Raises:
        UsageError: the model, the data or the settings cannot be used; the message says why.
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
        mixture: Mixture | None = None,
    ) -> None:
        args = copy.copy(args)  # this training writes its own values into it
        train_trajectories = self._prepare(
            model,
            args,
            processing_class,
            train_trajectories,
            validation_trajectories,
            step_rewards,
            mixture,
            best_by=BEST_BY,
        )
        make_rows = partial(
            ExpertRows.of,
            form=self.form,
            args=args,
            limit=self.context_limit,
            require_thoughts=args.require_thoughts,
            also_whole=args.also_whole,
        )
        self.rows = make_rows(train_trajectories)
        if args.also_whole and not any(row.whole for row in self.rows.examples):
            length, drops = args.whole_max_completion_length, dropped(self.rows.dropped)
            raise UsageError(
                f"also_whole is true, but no whole solution is left{drops}: with its prompt, "
                f"whole_max_completion_length {length} must fit the policy's context of "
                f"{self.context_limit} tokens; set it to what solutions take"
            )
        self.prompts = self.rows.prompts
        tokens = list(map(len, self.rows.completions))
        self._take_rows(self.rows.examples, self.rows.dropped, lambda: tokens)
        self.held_out = make_rows(self.validation_trajectories)
        if args.max_steps <= 0:
            rows_seen = args.num_train_epochs * self.stream.rows_an_epoch
            args.max_steps = max(1, round(rows_seen / args.prompts_per_step))
        self.run_log = RunLog(
            Path(args.output_dir or "."), log_completions=False, sparse=bool(self.routers.layers)
        )
        with libraries_refuse():
            super().__init__(
                model=model,
                args=args,
                processing_class=processing_class,
                train_dataset=Ticks(args.max_steps),
                eval_dataset=Ticks(1),
                callbacks=callbacks,
            )
        self._attach(
            first_lines=(self.arithmetic,),
        )

    def arithmetic(self) -> str:
        """Returns a line with the sizes of a step and how often the rows are seen."""
        args, count = self.settings, len(self.prompts)
        thinking = sum(any(step.thought for step in row.expert_steps) for row in self.rows.examples)
        thoughts = f", {thinking:,} with thoughts" if thinking else ""
        if thinking and not args.think:
            thoughts += ", which are left out (think: false)"
        whole = sum(row.whole for row in self.rows.examples)
        kinds = f", {whole:,} of them whole solutions" if 0 < whole < count else ""
        return (
            f"{count:,} rows of the expert's text{kinds}{thoughts}{dropped(self.rows.dropped)}; "
            f"{args.prompts_per_step} rows a step, micro-batches of at most "
            f"{args.micro_batch_tokens:,} tokens; {steps_line(args, self.stream.rows_an_epoch)}"
        )

    # -- documented methods of Trainer -----------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: object, num_items_in_batch: object = None
    ) -> Tensor:
        """Runs one optimiser step up to the gradients; the Trainer clips them and updates."""
        started = time.perf_counter()
        model.train()
        drawn = self.stream.take(self.args.prompts_per_step)
        self._count(drawn, [True] * len(drawn))
        rows = [self.rows.row(row) for row in drawn]
        tokens = sum(len(completion) for _, completion in rows)
        total = torch.zeros((), device=self.args.device)
        entropy, correct = torch.zeros_like(total), torch.zeros_like(total)
        parts = [
            ([rows[row] for row in part.rows], part.tree) for part in self._micro_batches(rows)
        ]
        self._begin_routing(model, parts)
        for number, (members, tree) in enumerate(parts):
            with self._attention(model, tree):
                with self.routers.watching(number):
                    scores = self._score(
                        model, members, tree=tree, with_entropy=True, with_top=True
                    )
                loss = self.routers.add_loss(-scores.log_probs.sum() / tokens)
                self.accelerator.backward(loss)
            total += loss.detach()
            entropy += cast(Tensor, scores.entropy).sum()
            correct += cast(Tensor, scores.is_top).sum()
        self._end_routing()
        self.run_log.note(
            {
                "entropy": float(entropy) / tokens,
                "mean_token_accuracy": float(correct) / tokens,
                "tokens": sum(len(prompt) for prompt, _ in rows) + tokens,
                "seconds/update": time.perf_counter() - started,
            }
        )
        refuse_step(model, total, self.state.global_step + 1)
        return total

    # -- parts -----------------------------------------------------------------------------------

    def _validate(self) -> tuple[list[Attempt], dict[str, float]]:
        """Returns greedy attempts at the validation problems, as in SRL, and their rows' loss."""
        self.model.eval()
        return self._attempts(), {"loss": self._held_out_loss()}

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Returns the mean cross-entropy of all held-out completion tokens; NaN without rows."""
        rows = [self.held_out.row(number) for number in range(len(self.held_out.prompts))]
        if not rows:
            return float("nan")
        total = 0.0
        for part in self._micro_batches(rows):
            with self._attention(self.model, part.tree):
                scores = self._score(self.model, [rows[row] for row in part.rows], tree=part.tree)
            total -= float(scores.log_probs.cpu().double().sum())
        return total / sum(len(completion) for _, completion in rows)

    def _micro_batches(self, rows: Sequence[Row]) -> list[MicroBatch]:
        trees = self.tree_refusal is None
        return micro_batches(rows, self.args.micro_batch_tokens, trees=trees)
