"""The SRL trainer: step-wise supervised reinforcement learning (Deng et al., arXiv 2510.25992).

One `training_step` of transformers' `Trainer` is one whole SRL step:

    take prompts from the stream -> sample G rollouts of each -> parse and score every step
    -> drop flat groups and draw others (dynamic sampling) -> advantages inside each group
    -> one forward and backward per micro-batch -> the Trainer's clip, optimiser and schedule

Everything else (checkpoints, schedules, trackers, resuming) is the Trainer's own. Only documented
methods are overridden, except for two in `resuming.py` that load a checkpoint.

Differences from the paper (docs/method.md has the full list and the reasons):
- difflib's autojunk heuristic is off;
- refilling is bounded: after `max_sampling_rounds` the step trains on the groups it has, and
  `max_empty_steps` steps without any group stop the run;
- a completion cut off by the length limit is a format failure.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from environments.types import Trajectory
from rewards import RewardSum, StepReward
from srl.config.experiment import sum_rewards
from srl.config.mixture import Mixture
from srl.config.settings import BEST_BY, SRLConfig
from srl.data.rows import Rows
from srl.data.steps import StepExample
from srl.errors import UsageError, libraries_refuse
from srl.evaluation.solving import Attempt, one_each, solves_whole, whole_attempt
from srl.models.loading import load_policy
from srl.rollout.rollouts import Rollout, rollout_metrics, sample_rollouts, try_rewards
from srl.rollout.samplers import Completion, Prompt, SamplingParams, key_of
from srl.training.advantages import decoupled_advantages, step_advantages
from srl.training.base import StepTrainer, Ticks
from srl.training.batch import Batch, MicroBatch, row_of, without_loss
from srl.training.divergence import refuse_step
from srl.training.groups import Group, collect_groups
from srl.training.loss import Figures, FigureSums, LossInputs, load_loss, step_loss
from srl.training.run_log import RunLog, collect_metrics
from srl.training.sampler_gap import SamplerGap
from srl.training.start_lines import arithmetic, broken_format, nothing_left, reward_report
from srl.training.trackers import TABLES, RolloutTables, names_of

_log = logging.getLogger(__name__)


class NothingToTrainOnError(RuntimeError):
    """Raised when dynamic sampling dropped every group for several steps in a row."""


class SRLTrainer(StepTrainer):
    """Trains a causal language model to take the expert's steps.

    Args:
        model: a model folder, a hub name, or a loaded model (which needs `processing_class`).
        args: the settings; see `SRLConfig`.
        train_trajectories: expert solutions to train on.
        validation_trajectories: expert solutions of other problems, for `evaluate`.
        step_rewards: reward -> weight, or a `RewardSum`; by default only similarity. Rewards are
            built-in names, `file.py:name`, `package.module:name` or functions (`rewards`).
        processing_class: the tokenizer, if `model` is a loaded model.
        callbacks: further callbacks of transformers.
        mixture: the share of each source of trajectories; None treats all rows alike.

    Raises:
        UsageError: the model, the data or the settings cannot be used; the message says why.
    """

    _further_state: Mapping[str, type] = {"empty_steps": int}

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: SRLConfig,
        train_trajectories: Sequence[Trajectory],
        validation_trajectories: Sequence[Trajectory] = (),
        step_rewards: (
            RewardSum | Mapping[str | StepReward, object] | Mapping[str, object] | None
        ) = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        args = copy.copy(args)  # this training writes its own values into it
        if isinstance(model, str):
            model, processing_class = load_policy(model)
        elif processing_class is None:
            raise UsageError("a loaded model needs its tokenizer: give processing_class=…")
        if not isinstance(step_rewards, RewardSum):
            step_rewards = {"similarity": 1.0} if step_rewards is None else step_rewards
            step_rewards = sum_rewards(step_rewards, args, Path(args.output_dir or "runs"))
        self.loss = load_loss(args)
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
        rows = Rows.of(train_trajectories, self.form, args, self.context_limit)
        self.examples, self.prompts, self.dropped_rows = rows.examples, rows.prompts, rows.dropped
        self._take_rows(
            self.examples,
            self.dropped_rows,
            lambda: [self.form.count_tokens(example.expert_step) for example in self.examples],
        )
        self.reward_checks = try_rewards(self.rewards, self.examples[0])
        self.validation_rows = Rows.of(
            self.validation_trajectories, self.form, args, self.context_limit
        )
        if args.max_steps <= 0:
            rows_a_step = args.prompts_per_step / args.num_iterations
            rows = args.num_train_epochs * self.stream.rows_an_epoch
            args.max_steps = max(1, round(rows / rows_a_step))
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if args.beta else None
        self.run_log = RunLog(
            Path(args.output_dir or "."),
            log_completions=args.log_completions,
            sparse=bool(self.routers.layers),
        )
        self._batch: Batch | None = None
        self._empty_steps = 0
        self._drawn: list[int] = []  # rows drawn for the current step
        self._told_of_format = False
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
            first_lines=(self.reward_report, self.arithmetic),
        )
        if trackers := [name for name in names_of(args.report_to) if name in TABLES]:
            tables = RolloutTables(trackers)  # after the trackers' own callbacks
            self.run_log.listeners.append(tables.keep)
            self.add_callback(tables)
        if self.reference is not None:
            self.reference.to(self.args.device)
        self.sampling = SamplingParams.of(
            args,
            seed=args.seed,
            max_new_tokens=args.completion_length,
            stop_ids=self.form.stop_ids,
            limits=self.form.limits(whole=args.targets == "whole"),
        )
        self.greedy = replace(self.sampling, temperature=0)

    # -- what a user reads at the start ----------------------------------------------------------

    def arithmetic(self) -> str:
        """Returns a line with the sizes of a step and how often the rows are seen."""
        return arithmetic(
            self.args, self.stream.rows_an_epoch, self.dropped_rows, self.tree_refusal
        )

    def reward_report(self) -> str:
        """Returns a line with each reward's weight, and its value and time on an expert's step."""
        return reward_report(self.args, self.reward_checks)

    # -- documented methods of Trainer -----------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: object, num_items_in_batch: object = None
    ) -> Tensor:
        """Runs one SRL step up to the gradients; the Trainer clips them and updates."""
        started = time.perf_counter()
        first_pass = self.state.global_step % self.args.num_iterations == 0
        if first_pass or self._batch is None:
            self._batch = self._collect()
        collected = time.perf_counter()
        model.train()
        # A step without groups leaves every gradient None, so that the optimiser changes nothing:
        # a gradient of zero would still move the weights by momentum and weight decay.
        total = torch.zeros((), device=self.args.device)
        figures = FigureSums()
        gap = SamplerGap()
        self._begin_routing(model, self._batch.parts(), self._batch.routes(), fresh=first_pass)
        for number, micro_batch in enumerate(self._batch.micro_batches):
            with self._attention(model, micro_batch.tree), self.routers.following(number):
                loss, part = self._loss(model, self._batch, number, micro_batch, gap)
                self.accelerator.backward(loss)
            total += loss.detach()
            figures.add(part)
        self._end_routing()
        self.run_log.note({**figures.metrics(self._batch.scale.num_tokens), **gap.metrics()})
        self.run_log.note(
            {
                "seconds/collect": collected - started,
                "seconds/update": time.perf_counter() - collected,
            }
        )
        refuse_step(model, total, self.state.global_step + 1)
        return total

    # -- evaluation ------------------------------------------------------------------------------

    def _validate(self) -> tuple[list[Attempt], dict[str, float]]:
        """Returns greedy attempts at the validation problems, and mean figures of their rows."""
        rows = self.validation_rows
        prompts = [Prompt(ids, key=0) for ids in rows.prompts]  # greedy: the key is not used
        groups = self._sample(rows.examples, prompts, 1, self.greedy)
        rollouts = [rollout for group in groups for rollout in group]
        self.run_log.write_evaluation(self.state.global_step, rollouts)
        return self._attempts_beside(rollouts), rollout_metrics(rollouts)

    def _attempts_beside(self, rollouts: Sequence[Rollout]) -> list[Attempt]:
        """Returns one greedy attempt at every validation problem.

        If the rows are whole problems with the same prompts, `rollouts` become the attempts.
        """
        problems = [trajectory.problem_id for trajectory in one_each(self.validation_trajectories)]
        rows_are_problems = problems == [rollout.example.problem_id for rollout in rollouts]
        same_prompts = self.args.solve_as is None
        whole = self.args.targets == "whole" and solves_whole(self.args)
        if whole and rows_are_problems and same_prompts:
            return [
                whole_attempt(
                    self.form,
                    rollout.example.trajectory,
                    Completion(rollout.completion_ids, rollout.truncated),
                    sample=0,
                )
                for rollout in rollouts
            ]  # the rows are the problems, so nothing is sampled twice
        return self._attempts()

    # -- one step --------------------------------------------------------------------------------

    def _sample(
        self,
        examples: Sequence[StepExample],
        prompts: Sequence[Prompt],
        num_samples: int,
        params: SamplingParams,
    ) -> list[list[Rollout]]:
        with self.accelerator.autocast():
            return sample_rollouts(
                self.sampler(),
                self.form,
                examples,
                prompts,
                rewards=self.rewards,
                params=params,
                num_samples=num_samples,
                policy_version=self.state.global_step,
            )

    def _draw(self, count: int) -> list[Group]:
        """Returns the next `count` prompts of the stream as scored groups."""
        place = self.stream.cursor
        rows = self.stream.take(count)
        self._drawn += rows
        prompts = [
            Prompt(self.prompts[row], key_of("train", place + i)) for i, row in enumerate(rows)
        ]
        examples = [self.examples[row] for row in rows]
        sampled = self._sample(examples, prompts, self.args.num_generations, self.sampling)
        return [Group(rollouts) for rollouts in sampled]

    def _collect(self) -> Batch:
        """Samples until enough groups are kept, logs all groups, and returns the batch."""
        args = self.args
        self._drawn = []
        collected = collect_groups(
            self._draw,
            needed=args.prompts_per_step,
            max_rounds=args.max_sampling_rounds,
            epsilon=args.dynamic_sampling_epsilon,
            dynamic_sampling=args.dynamic_sampling,
        )
        advantages = iter(self._advantages(collected.kept))
        groups = [
            group.with_advantages(next(advantages)) if decision.kept else group
            for group, decision in zip(collected.groups, collected.decisions, strict=True)
        ]
        collected = replace(collected, groups=groups)
        # The log counts steps from 1.
        self.run_log.write_groups(self.state.global_step + 1, collected)
        self.run_log.note(collect_metrics(collected))
        kept = [decision.kept for decision in collected.decisions]
        spreads = [decision.std for decision in collected.decisions]
        self._count(self._drawn, kept, spreads)
        self._empty_steps = 0 if collected.kept else self._empty_steps + 1
        broken = broken_format(args, collected, self.form.read)
        if self._empty_steps >= args.max_empty_steps:
            raise NothingToTrainOnError(nothing_left(args, collected, broken))
        if broken is not None and not self._told_of_format:
            _log.warning("step %d: %s", self.state.global_step + 1, broken)
            self._told_of_format = True
        rollouts = [rollout for group in collected.kept for rollout in group.rollouts]
        if args.mask_truncated_completions:
            self.run_log.note({"masked_rollouts": sum(rollout.truncated for rollout in rollouts)})
            rollouts = [
                without_loss(rollout) if rollout.truncated else rollout for rollout in rollouts
            ]
        return Batch.of(
            rollouts,
            max_completion_length=args.completion_length,
            micro_batch_tokens=args.micro_batch_tokens,
            trees=self.tree_refusal is None,
        )

    def _advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        """Returns one advantage per rollout of each group that is trained on."""
        args = self.args
        if args.multi_objective_aggregation == "normalize_then_sum":
            return decoupled_advantages(
                [
                    [
                        rollout.score.rewards if rollout.is_valid else rollout.reward
                        for rollout in group.rollouts
                    ]
                    for group in groups
                ],
                self.rewards.weights,
            )
        return step_advantages([group.rewards for group in groups], scale=args.scale_rewards)

    def _loss(
        self,
        model: nn.Module,
        batch: Batch,
        number: int,
        micro_batch: MicroBatch,
        gap: SamplerGap,
    ) -> tuple[Tensor, Figures]:
        """Returns this micro-batch's share of the step's loss, and its figures."""
        rollouts = [batch.rollouts[i] for i in micro_batch.rows]
        rows, tree = [row_of(rollout) for rollout in rollouts], micro_batch.tree
        with self.routers.watching(number):
            scores = self._score(
                model,
                rows,
                tree=tree,
                temperature=self.args.temperature,
                with_entropy=True,
                entropy_gradient=self.args.entropy_coef != 0.0,
            )
        if rollouts[0].policy_version == self.state.global_step:
            counted = [rollout.loss_mask for rollout in rollouts]
            gap.add(scores, [rollout.log_probs for rollout in rollouts], counted)
        old = None
        if self.args.num_iterations > 1:
            if number == len(batch.old_log_probs):  # the first pass
                batch.old_log_probs.append(scores.log_probs.detach())
            else:
                old = batch.old_log_probs[number]
        reference = None
        if self.reference is not None:
            with torch.no_grad(), self._attention(self.reference, tree):
                reference = self._score(
                    self.reference, rows, tree=tree, temperature=self.args.temperature
                ).log_probs
        inputs = LossInputs(
            log_probs=scores.log_probs,
            advantages=torch.tensor(
                [rollout.advantage for rollout in rollouts], device=self.args.device
            ),
            mask=scores.padded([rollout.loss_mask for rollout in rollouts]),
            old_log_probs=old,
            ref_log_probs=reference,
            entropy=scores.entropy,
        )
        loss, figures = step_loss(
            self.loss, inputs, batch.scale, entropy_coef=self.args.entropy_coef
        )
        return self.routers.add_loss(loss), figures

    # -- resuming --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps in addition to the Trainer's own state."""
        return {**super().state_dict(), "empty_steps": self._empty_steps}

    def _load_state(self, checkpoint: Path) -> dict[str, Any]:
        state = super()._load_state(checkpoint)
        self._empty_steps = state["empty_steps"]
        return state
