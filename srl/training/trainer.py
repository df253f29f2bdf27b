"""The SRL trainer: step-wise supervised reinforcement learning (Deng et al., arXiv 2510.25992).

One `training_step` of transformers' `Trainer` is one whole SRL step:

    take prompts from the stream -> sample G rollouts of each -> parse and score every step
    -> drop flat groups and draw others (dynamic sampling) -> advantages inside each group
    -> one forward and backward per micro-batch -> the Trainer's clip, optimiser and schedule

Everything else (checkpoints, schedules, trackers, resuming) is the Trainer's own, and only its
documented methods are overridden.

Where this departs from the paper, and why (docs/method.md has the full list):
- difflib's autojunk heuristic is off;
- refilling is bounded: after `max_sampling_rounds` the step trains on the groups it has, and
  `max_empty_steps` steps without any group stop the run;
- a completion cut off by the length limit is a format failure.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
)
from transformers.trainer_utils import get_last_checkpoint

from environments.types import Trajectory
from rewards import RewardSum, StepReward
from srl.config.experiment import sum_rewards
from srl.config.settings import SRLConfig, check_evaluation, check_one_process
from srl.data.prompts import ensure_pad
from srl.data.rows import Rows
from srl.data.steps import StepExample, trajectory_numbers
from srl.data.stream import PromptStream
from srl.errors import UsageError, libraries_refuse
from srl.evaluation.judging import judged
from srl.evaluation.solving import (
    Attempt,
    accuracy,
    one_each,
    solve_validation,
    solves_whole,
    whole_attempt,
)
from srl.models.loading import context_limit, load_policy, prompt_format
from srl.models.prefix_tree import Row
from srl.models.scoring import CompletionScores, completion_log_probs
from srl.models.tree_models import attending_over_trees, refusal
from srl.rollout.local import Completion, LocalSampler, SamplingParams
from srl.rollout.scored import ScoredStep, sample_steps, step_metrics, try_rewards
from srl.training.advantages import group_advantages
from srl.training.batch import Batch, Group, MicroBatch
from srl.training.checkpoints import add_saving, read_state
from srl.training.groups import collect_groups
from srl.training.loss import LossStats, policy_loss
from srl.training.progress import ProgressReport
from srl.training.run_log import RunLog, collect_metrics
from srl.training.start_lines import arithmetic, dropped, nothing_left, reward_report
from srl.training.trackers import TABLES, RolloutTables, check_installed, names_of


class NothingToTrainOnError(RuntimeError):
    """Dynamic sampling dropped every group for several steps in a row."""


class SRLTrainer(Trainer):
    """Trains a causal language model to take the expert's steps.

    Args:
        model: a model folder, a hub name, or a loaded model (then `processing_class` is needed).
        args: the settings; see `SRLConfig`.
        train_trajectories: expert solutions to train on.
        validation_trajectories: expert solutions of other problems, for `evaluate`.
        step_rewards: reward -> weight, or a `RewardSum`; similarity alone by default. Rewards are
            built-in names, `file.py:name`, `package.module:name` or functions (`rewards`).
        processing_class: the tokenizer, if `model` is not a name.
        callbacks: further callbacks of transformers.

    Raises:
        UsageError: wrong use, in words.
    """

    control: TrainerControl

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
    ) -> None:
        if isinstance(model, str):
            model, processing_class = load_policy(model)
        elif processing_class is None:
            raise UsageError("a loaded model needs its tokenizer: give processing_class=…")
        else:
            ensure_pad(processing_class)
        adapter = getattr(model, "active_peft_config", None)
        if adapter is not None and adapter.is_prompt_learning:
            raise UsageError(
                f"the policy has an adapter of type {adapter.peft_type.value}, which puts tokens "
                "of its own before the prompt; use one that lives in the layers, such as LoRA"
            )
        check_one_process(args)
        check_evaluation(args, validates=bool(validation_trajectories))
        check_installed(args.report_to)
        if not isinstance(step_rewards, RewardSum):
            step_rewards = {"similarity": 1.0} if step_rewards is None else step_rewards
            step_rewards = sum_rewards(step_rewards, args, Path(args.output_dir or "runs"))
        self.rewards = step_rewards
        self.form = prompt_format(
            model,
            processing_class,
            template=args.template,
            think=args.think,
            system_prompt=args.system_prompt,
            whole_system_prompt=args.whole_system_prompt,
        )
        self.context_limit = context_limit(model)
        rows = Rows.of(train_trajectories, self.form, args, self.context_limit)
        self.examples, self.prompts, self.dropped_rows = rows.examples, rows.prompts, rows.dropped
        if len(self.examples) < args.prompts_per_step:
            raise UsageError(
                f"there are {len(self.examples)} training rows"
                f"{dropped(self.dropped_rows)}, fewer than prompts_per_step "
                f"{args.prompts_per_step}; give more data"
                + (f", or set prompts_per_step to {n} or less" if (n := len(self.examples)) else "")
            )
        self.reward_checks = try_rewards(self.rewards, self.examples[0])
        self.validation_trajectories = list(validation_trajectories)
        self.validation_rows = Rows.of(
            self.validation_trajectories, self.form, args, self.context_limit
        )
        if args.max_steps <= 0:
            rows_a_step = args.prompts_per_step / args.num_iterations
            args.max_steps = max(1, round(args.num_train_epochs * len(self.examples) / rows_a_step))
        in_order = args.prompt_order == "trajectory"
        units = trajectory_numbers(self.examples) if in_order else None
        self.stream = PromptStream(len(self.examples), args.seed, units=units)
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if args.beta else None
        self.run_log = RunLog(Path(args.output_dir or "."), log_completions=args.log_completions)
        self._batch: Batch | None = None
        self._empty_steps = 0
        with libraries_refuse():
            super().__init__(
                model=model,
                args=args,
                processing_class=processing_class,
                train_dataset=_Ticks(args.max_steps),
                eval_dataset=_Ticks(1),
                callbacks=callbacks,
            )
        # Its own accounting would call a step of 64 rollouts one sample.
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        add_saving(self, self.state_dict)
        if not args.disable_tqdm and not any(
            isinstance(c, ProgressReport) for c in callbacks or ()
        ):
            # What the command line shows, but for Ctrl-C, which stays the script's own.
            lines = (self.reward_report, self.arithmetic)
            self.add_callback(ProgressReport(Console(), first=lines, stops=False))
        if trackers := [name for name in names_of(args.report_to) if name in TABLES]:
            tables = RolloutTables(trackers)  # after the trackers' own callbacks
            self.run_log.listeners.append(tables.keep)
            self.add_callback(tables)
        if self.reference is not None:
            self.reference.to(self.args.device)
        # Why the update repeats what rollouts share, or None: it computes over prefix trees.
        self.tree_refusal = refusal(self.model) if args.prefix_tree else "prefix_tree is off"
        self.sampling = SamplingParams(
            max_new_tokens=args.completion_length,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            stop_ids=self.form.stop_ids,
        )
        self.greedy = SamplingParams(
            max_new_tokens=args.completion_length, temperature=0, stop_ids=self.form.stop_ids
        )

    # -- what a user reads at the start ----------------------------------------------------------

    def arithmetic(self) -> str:
        """One line: the sizes of a step, and how often the rows are seen."""
        return arithmetic(self.args, len(self.examples), self.dropped_rows, self.tree_refusal)

    def reward_report(self) -> str:
        """One line: each reward, its weight, what it gives an expert's own step, and its price."""
        return reward_report(self.args, self.reward_checks)

    # -- documented methods of Trainer -----------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Ticks, one for every optimiser step: the prompt stream decides what a step is about."""
        return DataLoader(_Ticks(self.args.max_steps), batch_size=1)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: object):  # type: ignore[no-untyped-def]
        """Train; with a checkpoint's folder, go on exactly where it was saved.

        Raises:
            NothingToTrainOnError: every group was dropped for `max_empty_steps` steps.
        """
        if resume_from_checkpoint is True:
            folder = str(self.args.output_dir)
            resume_from_checkpoint = get_last_checkpoint(folder) if Path(folder).is_dir() else None
            if resume_from_checkpoint is None:
                raise UsageError(f"{folder} has no checkpoint to go on from")
        if resume_from_checkpoint:
            self._load_state(Path(str(resume_from_checkpoint)))
            self.args.eval_on_start = (
                False  # of a training that has started, it would be told twice
            )
        else:
            self.run_log.refuse_another()
        try:
            self.run_log.open()
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.run_log.close()

    def training_step(
        self, model: nn.Module, inputs: object, num_items_in_batch: object = None
    ) -> Tensor:
        """One SRL step up to the gradients; the Trainer clips them and updates."""
        started = time.perf_counter()
        first_pass = self.state.global_step % self.args.num_iterations == 0
        if first_pass or self._batch is None:
            self._batch = self._collect()
        collected = time.perf_counter()
        model.train()
        # A step without groups leaves every gradient None, so that the optimiser changes nothing:
        # a gradient of zero would still move the weights by momentum and weight decay.
        total = torch.zeros((), device=self.args.device)
        stats: LossStats | None = None
        for number, micro_batch in enumerate(self._batch.micro_batches):
            with self._attention(model, micro_batch):
                # Accelerate autocasts the model's own forward, but the scores come from its parts.
                with self.accelerator.autocast():
                    loss, part = self._loss(model, self._batch, number, micro_batch)
                self.accelerator.backward(loss)
            total += loss.detach()
            stats = part if stats is None else stats + part
        self.run_log.note(stats.metrics() if stats is not None else {})
        self.run_log.note(
            {
                "seconds/collect": collected - started,
                "seconds/update": time.perf_counter() - collected,
            }
        )
        return total

    def evaluate(
        self,
        eval_dataset: object = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Greedy accuracy on the validation problems, and the rewards of their rows."""
        if not self.validation_trajectories:
            raise UsageError("evaluation needs validation_trajectories: set validation_problems")
        started = time.perf_counter()
        rows = self.validation_rows
        groups = self._sample(rows.examples, rows.prompts, 1, self.greedy)
        steps = [step for group in groups for step in group]
        attempts = judged(self._attempts(steps), self.args)
        short = [a for a in attempts if len(a.trajectory.steps) <= self.args.short_steps]
        values = {
            "problems": len(attempts),
            "accuracy": accuracy(attempts).value,
            "accuracy_short": accuracy(short).value,
            **step_metrics(steps),
            "seconds": time.perf_counter() - started,
        }
        self.run_log.write_evaluation(self.state.global_step, steps)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's figures together with those of the step."""
        if "loss" in logs:
            logs = {**logs, **self.run_log.take_noted()}
        self.run_log.write_metrics(self.state.global_step, logs)
        super().log(logs, start_time)

    # -- one step --------------------------------------------------------------------------------

    def sampler(self) -> LocalSampler:
        """Completions from the policy as it is now."""
        return LocalSampler(
            self.accelerator.unwrap_model(self.model),
            pad_id=self.processing_class.pad_token_id,
            token_budget=self.args.rollout_token_budget,
            share=self.args.prefix_tree,
        )

    def _sample(
        self,
        examples: Sequence[StepExample],
        prompts: Sequence[list[int]],
        num_samples: int,
        params: SamplingParams,
    ) -> list[list[ScoredStep]]:
        with self.accelerator.autocast():
            return sample_steps(
                self.sampler(),
                self.form,
                examples,
                prompts,
                rewards=self.rewards,
                params=params,
                num_samples=num_samples,
            )

    def _attempts(self, steps: Sequence[ScoredStep]) -> list[Attempt]:
        """One greedy attempt at every validation problem, whose rows were sampled as `steps`."""
        problems = one_each(self.validation_trajectories)
        rows = [step.example.trajectory.problem_id for step in steps]
        rows_are_problems = rows == [problem.problem_id for problem in problems]
        if self.args.targets == "whole" and solves_whole(self.args) and rows_are_problems:
            return [
                whole_attempt(
                    self.form,
                    step.example.trajectory,
                    Completion(step.completion_ids, step.truncated),
                    sample=0,
                )
                for step in steps
            ]  # the rows are the problems: nothing is written twice
        with self.accelerator.autocast():
            return solve_validation(
                self.sampler(), self.form, problems, self.args, context_limit=self.context_limit
            )

    def _draw(self, count: int) -> list[Group]:
        """The next `count` prompts of the stream as scored groups."""
        rows = self.stream.take(count)
        prompts = [self.prompts[row] for row in rows]
        sampled = self._sample(
            [self.examples[row] for row in rows], prompts, self.args.num_generations, self.sampling
        )
        return [Group(prompt, steps) for prompt, steps in zip(prompts, sampled, strict=True)]

    def _collect(self) -> Batch:
        """Sample until enough groups are worth training on, write them down, make the batch."""
        args = self.args
        collected = collect_groups(
            self._draw,
            needed=args.prompts_per_step,
            max_rounds=args.max_sampling_rounds,
            epsilon=args.dynamic_sampling_epsilon,
            dynamic_sampling=args.dynamic_sampling,
        )
        advantages = [
            group_advantages(group.rewards, scale=args.scale_rewards) if decision.kept else None
            for group, decision in zip(collected.groups, collected.decisions, strict=True)
        ]
        # The step that is being made counts from 1, as in the log.
        self.run_log.write_groups(self.state.global_step + 1, collected, advantages)
        self.run_log.note(collect_metrics(collected))
        self._empty_steps = 0 if collected.kept else self._empty_steps + 1
        if self._empty_steps >= args.max_empty_steps:
            raise NothingToTrainOnError(nothing_left(args, collected))
        return Batch.of(
            collected.groups,
            advantages,
            max_completion_length=args.completion_length,
            micro_batch_tokens=args.micro_batch_tokens,
            trees=self.tree_refusal is None,
        )

    def _attention(self, model: nn.Module, micro_batch: MicroBatch) -> AbstractContextManager[None]:
        """How the model attends to a micro-batch, forward and backward."""
        if not micro_batch.tree:
            return nullcontext()
        return attending_over_trees(self.accelerator.unwrap_model(model))

    def _loss(
        self, model: nn.Module, batch: Batch, number: int, micro_batch: MicroBatch
    ) -> tuple[Tensor, LossStats]:
        """This micro-batch's share of the step's loss."""
        rows = [batch.rows[i] for i in micro_batch.rows]
        scores = self._score(model, rows, micro_batch.tree)
        old = None
        if self.args.num_iterations > 1:
            if number == len(batch.old_log_probs):
                batch.old_log_probs.append(scores.log_probs.detach())
            old = batch.old_log_probs[number]
        reference = None
        if self.reference is not None:
            with torch.no_grad(), self._attention(self.reference, micro_batch):
                reference = self._score(self.reference, rows, micro_batch.tree).log_probs
        return policy_loss(
            scores.log_probs,
            old,
            torch.tensor([batch.advantages[i] for i in micro_batch.rows], device=self.args.device),
            scores.mask,
            loss_type=self.args.loss_type,
            scale=batch.scale,
            epsilon_low=self.args.epsilon,
            epsilon_high=(
                self.args.epsilon if self.args.epsilon_high is None else self.args.epsilon_high
            ),
            ref_log_probs=reference,
            beta=self.args.beta,
            use_bias_correction_kl=self.args.use_bias_correction_kl,
        )

    def _score(self, model: nn.Module, rows: Sequence[Row], tree: bool) -> CompletionScores:
        return completion_log_probs(
            model,
            rows,
            pad_id=self.processing_class.pad_token_id,
            temperature=self.args.temperature,
            device=self.args.device,
            tree=tree,
        )

    # -- resuming ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps beside the Trainer's own state."""
        return {
            "stream": self.stream.state_dict(),
            "empty_steps": self._empty_steps,
            "positions": self.run_log.positions(),
        }

    def _load_state(self, checkpoint: Path) -> None:
        state, positions = read_state(
            checkpoint, holds={"stream": dict, "empty_steps": int}, logs=self.run_log.paths
        )
        self.stream.load_state_dict(state["stream"])
        self._empty_steps = state["empty_steps"]
        self.run_log.cut_back(positions)


class _Ticks(Dataset[dict[str, int]]):
    """A data set of nothing but its length: one item for every optimiser step."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"tick": index}
