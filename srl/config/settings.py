"""Settings of the trainers: `SRLConfig`, and what cannot be.

It is transformers' `TrainingArguments` (learning rate, schedule, saving, trackers ...) plus what
SRL needs, named as in TRL's `GRPOConfig` wherever the meaning is the same. Sizes that cannot work
together, and settings of transformers that would be ignored, are refused before anything is loaded.
A whole YAML file is `srl/config/experiment.py`.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from transformers import TrainingArguments

from environments.prompts import PAPER_EVALUATION_PROMPT, PAPER_SYSTEM_PROMPT
from srl.errors import UsageError


@dataclass
class SRLConfig(TrainingArguments):
    """Everything `SRLTrainer` can be told. Defaults follow the paper (arXiv 2510.25992) where it
    states a value; sizes are those of one process.

    Attributes:
        learning_rate: the paper's, for 7B models; small models bear and need far more.
        lr_scheduler_type: the paper does not state one.
        bf16: None means bf16 autocast on a GPU and float32 on a CPU.
        targets: which expert steps are targets. "literal" is 1..N-1 as the paper writes, "all" is
            1..N, "skip_first" is 2..N. "whole" makes the whole solution the one target: with the
            reward `answer` that is RLVR.
        step_title: "given" puts the next step's title into the prompt (the paper's footnote 1).
        template: "chat", "plain" text, or "auto": chat if the tokenizer has a chat template.
        think: the policy writes a monologue in think tags before its step.
        system_prompt: what the policy is told for a step; null sends no system message.
        whole_system_prompt: the same, for solving a whole problem in one completion.
        prompts_per_step: groups wanted for one optimiser step.
        prompt_order: "shuffled" draws rows one by one; "trajectory" draws trajectories, and their
            rows one after another, so that they share prompts (docs/prefix_tree.md).
        num_generations: G, rollouts of one prompt; 2 or more.
        max_completion_length: the longest completion of one step, in tokens.
        temperature, top_p, top_k, min_p: sampling; top_p 1.0, top_k 0 and min_p null are off.
        dynamic_sampling: drop flat groups and draw others instead.
        dynamic_sampling_epsilon: a group is kept if the population std of its rewards is above it.
        max_sampling_rounds: draws in one step at most, the first included.
        max_empty_steps: so many steps in a row without any group to train on stop the run.
        loss_type: "grpo", "dapo" or "dr_grpo".
        scale_rewards: "group" divides advantages by the group's std, "none" does not.
        epsilon: the clip range below 1, and above it too unless `epsilon_high` is given.
        epsilon_high: the clip range above 1.
        beta: weight of the KL term against the run's first policy; 0 needs no second model.
        use_bias_correction_kl: weigh the KL term by the ratio, as TRL does (training/loss.py).
        num_iterations: optimiser steps on the same rollouts; clipping matters from 2 on.
        rollout_token_budget: prompt and completion tokens sampled together, at full length.
        prefix_tree: compute tokens that rollouts share once, in the update and when sampling.
        micro_batch_tokens: tokens of one forward and backward: nodes of the prefix tree, or, where
            there is none, tokens of repeated rows with their padding.
        format_failure_reward: what a completion that breaks the format earns; the paper's -1 is for
            steps, RLVR is usually given 0.
        reward_deadline: seconds that one call of a named reward may take; then it is stopped, its
            value is null, and the metrics count it.
        reward_workers: processes that score beside generation; null is the cores less one, 1 to 8.
        reward_errors: what happens when a reward function of yours fails: "stop" ends the run and
            saves the row, "record" makes it a null and counts it.
        log_completions: write steps.jsonl, one record per rollout.
        train_problems: train on so many of the problems that are not held out, the same ones and
            more where it is larger; 0 takes all.
        validation_problems: held-out problems for `eval_steps` and the best checkpoint.
        validate_by: how they are solved: "steps", "whole", or "auto": whole if `targets` is.
        data_seed: which problems are held out; null is `seed`.
        test_problems: further held-out problems, solved before and after training.
        test_before: solve them before training too.
        test_rows: rows of theirs whose steps are compared with the expert's; 1000 give +-3 points.
        short_steps: problems whose expert takes at most so many steps are called short in reports.
        solve_max_steps: own steps after which step-by-step solving gives up.
        solve_samples: sampled attempts per test problem beside the greedy one; 0 is none.
        solve_whole: also solve the test problems in one completion.
        whole_samples: sampled attempts in one completion; null is `solve_samples`.
        whole_max_completion_length: the longest whole solution, in tokens.
    """

    # No setting: whether training samples `num_generations` completions of a row.
    samples_rows = True

    # Other defaults than transformers'.
    output_dir: str | None = "runs"
    learning_rate: float = 5e-7
    lr_scheduler_type: str = "constant_with_warmup"
    max_grad_norm: float = 1.0
    logging_steps: float = 1
    bf16: bool | None = None
    report_to: str | list[str] | None = "none"
    disable_tqdm: bool | None = False
    save_strategy: str = "steps"
    save_total_limit: int | None = 2
    # One training_step is one whole SRL step: the trainer's own batch is a single tick.
    per_device_train_batch_size: int = 1
    remove_unused_columns: bool | None = False

    # Rows and prompts.
    targets: Literal["literal", "all", "skip_first", "whole"] = "literal"
    step_title: Literal["off", "given"] = "off"
    template: Literal["auto", "chat", "plain"] = "auto"
    think: bool = True
    system_prompt: str | None = PAPER_SYSTEM_PROMPT
    whole_system_prompt: str | None = PAPER_EVALUATION_PROMPT

    # Rollouts.
    prompts_per_step: int = 64
    prompt_order: Literal["shuffled", "trajectory"] = "shuffled"
    num_generations: int = 8
    max_completion_length: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    rollout_token_budget: int = 65536

    # Dynamic sampling.
    dynamic_sampling: bool = True
    dynamic_sampling_epsilon: float = 1e-3
    max_sampling_rounds: int = 4
    max_empty_steps: int = 5

    # Update.
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    scale_rewards: Literal["group", "none"] = "group"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    num_iterations: int = 1
    prefix_tree: bool = True
    micro_batch_tokens: int = 8192

    # Rewards.
    format_failure_reward: float = -1.0
    reward_deadline: float = 5.0
    reward_workers: int | None = None
    reward_errors: Literal["stop", "record"] = "stop"

    # Records and evaluation.
    log_completions: bool = True
    train_problems: int = 0
    validation_problems: int = 60
    validate_by: Literal["auto", "steps", "whole"] = "auto"
    test_problems: int = 0
    test_before: bool = True
    test_rows: int = 1000
    short_steps: int = 4
    solve_max_steps: int = 12
    solve_samples: int = 0
    solve_whole: bool = False
    whole_samples: int | None = None
    whole_max_completion_length: int = 2048

    @property
    def length_field(self) -> str:
        """The field that limits a row's completion: a step's, or a whole solution's."""
        whole = self.targets == "whole"
        return "whole_max_completion_length" if whole else "max_completion_length"

    @property
    def completion_length(self) -> int:
        """The longest completion of a row, in tokens."""
        return int(getattr(self, self.length_field))

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available()
        _check_choices(self)
        _check_sizes(self)
        if self.samples_rows:
            _check_budgets(self)
        super().__post_init__()


@dataclass
class ExpertConfig(SRLConfig):
    """The same for `ExpertTrainer`, which trains on text there is: no sizes of rollouts to check.

    What it samples to evaluate, and rows that are long, take more than a budget if they must.
    """

    samples_rows = False


_AT_LEAST: dict[str, float] = {
    "prompts_per_step": 1,
    "num_generations": 2,
    "max_completion_length": 1,
    "max_sampling_rounds": 1,
    "max_empty_steps": 1,
    "num_iterations": 1,
    "train_problems": 0,
    "validation_problems": 0,
    "test_problems": 0,
    "test_rows": 0,
    "short_steps": 1,
    "solve_max_steps": 1,
    "solve_samples": 0,
    "whole_samples": 0,
    "reward_workers": 1,
    "whole_max_completion_length": 1,
    "top_k": 0,
    "dynamic_sampling_epsilon": 0.0,
    "epsilon": 0.0,
    "epsilon_high": 0.0,
    "beta": 0.0,
    "learning_rate": 0.0,
}


# Settings of transformers that an SRL step would silently ignore, and what to use instead.
_UNUSED = {
    name: why
    for why, names in {
        "a step is cut into micro-batches by micro_batch_tokens": (
            "gradient_accumulation_steps",
            "auto_find_batch_size",
            "torch_empty_cache_steps",
        ),
        "prompts_per_step says how many groups one step takes": ("per_device_train_batch_size",),
        "the order of prompts follows from seed, all in memory": (
            "train_sampling_strategy",
            "length_column_name",
            "ignore_data_skip",
            "dataloader_drop_last",
            "dataloader_num_workers",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
        ),
        "a step without groups has no gradients, which its loss scaling cannot do without; "
        "set bf16": ("fp16",),
        "the objective has advantages, not labels": ("label_smoothing_factor", "label_names"),
        "evaluation generates, within rollout_token_budget, and has its own metrics": (
            "per_device_eval_batch_size",
            "eval_accumulation_steps",
            "prediction_loss_only",
            "batch_eval_metrics",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "bf16_full_eval",
            "fp16_full_eval",
        ),
        "tokens are counted in the log as they are": ("include_num_input_tokens_seen",),
        "the commands train, eval and resume say what to do": (
            "do_train",
            "do_predict",
            "resume_from_checkpoint",
        ),
    }.items()
    for name in names
}


def _check_choices(config: SRLConfig) -> None:
    """Words and switches of our own; a file's were checked where it was read, Python's were not."""
    hints = typing.get_type_hints(SRLConfig)
    for name in SRLConfig.__annotations__:
        value, kind = getattr(config, name), hints[name]
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        if choices and value not in choices:
            raise UsageError(f"{name} is {value!r}; allowed: {', '.join(map(str, choices))}")
        if kind is bool and not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r}; allowed: True, False")


def _check_sizes(config: SRLConfig) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(config, name)
        if value is not None and not value >= least:  # not `<`, which NaN would pass
            reason = (
                ": a group of 1 has no advantage, there is nothing to compare it with"
                if name == "num_generations"
                else ""
            )
            raise UsageError(f"{name} is {value}; it must be {least} or more{reason}")
    for name in ("seed", "data_seed"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < 2**32:
            raise UsageError(f"{name} is {value}; it must be from 0 to {2**32 - 1}")
    if not 0 < config.temperature < math.inf:
        raise UsageError(
            f"temperature is {config.temperature}; rollouts are sampled, so it must be above 0 "
            "(and finite)"
        )
    if not 0 < config.top_p <= 1:
        raise UsageError(f"top_p is {config.top_p}; it must be above 0 and at most 1 (1 is off)")
    if config.min_p is not None and not 0 < config.min_p <= 1:
        raise UsageError(f"min_p is {config.min_p}; it must be above 0 and at most 1, or null")
    if not -math.inf < config.format_failure_reward < math.inf:
        raise UsageError(
            f"format_failure_reward is {config.format_failure_reward}; give a finite number, "
            "such as -1 or 0"
        )
    if not 0 < config.reward_deadline < math.inf:
        raise UsageError(
            f"reward_deadline is {config.reward_deadline}; give seconds, above 0, such as 5"
        )
    defaults = {setting.name: setting.default for setting in fields(config)}
    for name, why in _UNUSED.items():
        default = defaults.get(name)  # not every version of transformers has all of them
        value = getattr(config, name, default)
        if value in (default, None) or (value is False and default == "no"):
            continue
        raise UsageError(f"{name} is {value!r}; leave it at {default!r}: {why}")
    for name in ("logging_strategy", "eval_strategy", "save_strategy"):
        if getattr(config, name) == "epoch":
            raise UsageError(
                f"{name} is epoch; prompts come in a stream without an end: write {name}: steps "
                f"and after how many with {name.removesuffix('strategy')}steps"
            )
    # An ExplicitEnum once transformers has read it.
    strategy = getattr(config.save_strategy, "value", config.save_strategy)
    saved_after = {"steps": "save_steps", "best": "eval_steps"}.get(strategy)
    every = None if saved_after is None else getattr(config, saved_after)
    if strategy == "best" and every is None:
        saved_after, every = "logging_steps", config.logging_steps  # as transformers has it
    if every is not None and 0 < every < 1 and config.num_iterations > 1:
        raise UsageError(
            f"{saved_after} is {every:g}, a share of the steps, and num_iterations "
            f"{config.num_iterations}: a checkpoint in the middle of a batch could not be resumed; "
            f"give {saved_after} in steps, a multiple of {config.num_iterations}"
        )
    if every is not None and every >= 1 and every % config.num_iterations:
        raise UsageError(
            f"{saved_after} is {every:g} and num_iterations {config.num_iterations}: "
            "a checkpoint in the middle of a batch could not be resumed; "
            f"make {saved_after} a multiple of {config.num_iterations}"
        )


def _check_budgets(config: SRLConfig) -> None:
    """Rollouts of one row must fit into memory as it is bounded."""
    for name, why in (
        ("rollout_token_budget", "one prompt's rollouts"),
        ("micro_batch_tokens", "one completion"),
    ):
        rows = config.num_generations if name == "rollout_token_budget" else 1
        needed = rows * (config.completion_length + 1)
        if getattr(config, name) < needed:
            raise UsageError(
                f"{name} is {getattr(config, name)}, but {why} may take {needed} tokens "
                f"({rows} x {config.length_field} {config.completion_length} and a prompt); "
                f"set {name} to {4 * needed}, or {config.length_field} to "
                f"{max(1, getattr(config, name) // (4 * rows))}"
            )


# Metrics of `SRLTrainer.evaluate` that a best checkpoint may be chosen by. Not those among valid
# steps alone: a policy that breaks the format on all hard rows would look best.
BEST_BY = ("eval_accuracy", "eval_reward")


def check_one_process(config: SRLConfig) -> None:
    """Both trainers run in one process, on one device.

    Raises:
        UsageError: a launcher started several, or there are several GPUs.
    """
    if config.world_size > 1:
        raise UsageError(
            f"{config.world_size} processes were started; this trainer runs in one. "
            "Start it without torchrun or accelerate launch"
        )
    if config.n_gpu > 1:  # transformers would spread every batch over all of them
        raise UsageError(
            f"this process sees {config.n_gpu} GPUs; this trainer uses one. Show it one, as in: "
            "CUDA_VISIBLE_DEVICES=0 make train"
        )


def check_evaluation(
    config: SRLConfig, *, validates: bool, best_by: Sequence[str] = BEST_BY
) -> None:
    """Refuse at the start what would otherwise fail at the first evaluation.

    Args:
        config: the settings.
        validates: whether there are validation problems.
        best_by: the metrics that a best checkpoint may be chosen by.

    Raises:
        UsageError: an evaluation without problems, or a best checkpoint by a figure there is not.
    """
    if not validates and (config.eval_strategy != "no" or config.eval_on_start):
        raise UsageError(
            "there are no validation problems to evaluate on: set validation_problems to 1 or more "
            "(validation_trajectories in Python), or eval_strategy to no"
        )
    if not config.load_best_model_at_end and config.save_strategy != "best":
        return
    metric = f"eval_{str(config.metric_for_best_model).removeprefix('eval_')}"
    if metric not in best_by:
        raise UsageError(
            f"the best checkpoint cannot be chosen by metric_for_best_model "
            f"{config.metric_for_best_model}; allowed: {', '.join(best_by)}"
        )
