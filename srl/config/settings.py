"""Defines the settings of each method: `SRLConfig`, `ExpertConfig`, `BenchmarkSettings`.

The trainers' settings are transformers' `TrainingArguments` (learning rate, schedule, saving,
trackers ...) plus the parts of `srl/config/parts.py`. A part's setting has the name that TRL's
`GRPOConfig` uses if the meaning is the same. Sizes that cannot work together, and settings of
transformers that would be ignored, are refused before anything is loaded. Whole YAML files are read
in `srl/config/experiment.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from transformers import TrainingArguments

from srl.config.parts import (
    BatchSettings,
    EvaluationSettings,
    GroupSettings,
    LoggingSettings,
    LossSettings,
    Part,
    PromptSettings,
    SamplingSettings,
    SplitSettings,
    VerifierSettings,
    at_least,
    check_seeds,
    within,
)
from srl.config.router import ReplaySettings, RouterSettings
from srl.errors import UsageError
from srl.redaction import SECRETS

# Settings of transformers that an SRL step would silently ignore, with the reason.
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
        "a checkpoint is there to go on from, and cannot without the optimiser's state": (
            "save_only_model",
        ),
        "a checkpoint is whole at the end of a step only; Ctrl-C saves one": (
            "enable_jit_checkpoint",
        ),
        "prefix trees and the LM head in pieces do not go through a compiled model": (
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
        ),
        "the commands train, eval and resume say what to do": (
            "do_train",
            "do_predict",
            "resume_from_checkpoint",
        ),
    }.items()
    for name in names
}


_BELOW_1 = 1 - 2**-53  # the largest float below 1


@dataclass
class TrainerConfig(
    RouterSettings, BatchSettings, SplitSettings, EvaluationSettings, TrainingArguments
):
    """The settings of both trainers; sizes are those of one process.

    Attributes:
        learning_rate: the default is the paper's, for 7B models; small models need a far higher
            one and can bear it.
        lr_scheduler_type: the learning rate schedule; the paper does not state one.
        bf16: None means bf16 autocast on a GPU and float32 on a CPU.
        data_seed: the seed that chooses the held-out problems and the worked examples; null is
            `seed`.
        save_every_minutes: save an additional checkpoint after the first step that ends this many
            minutes after the last checkpoint; null is off.
        max_minutes: stop after the step with which all steps have taken this many minutes, whatever
            max_steps is. Evaluations and checkpoints do not count. null is off. Two runs with the
            same seed can then stop at different steps.
        max_expert_tokens: stop after the step with which the drawn rows contain this many of the
            expert's tokens, if max_steps is not reached before. null is off.
    """

    save_every_minutes: float | None = None
    max_minutes: float | None = None
    max_expert_tokens: int | None = None

    # These defaults differ from those of transformers.
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
    # One training_step is one whole step, so the Trainer's own batch only counts steps.
    per_device_train_batch_size: int = 1
    remove_unused_columns: bool | None = False

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and not self.use_cpu
        Part.__post_init__(self)
        TrainingArguments.__post_init__(self)

    @property
    def split_seed(self) -> int:
        """Returns the seed that chooses the held-out problems and the worked examples."""
        return self.seed if self.data_seed is None else self.data_seed

    def __getstate__(self) -> dict[str, object]:
        """Returns the state without access tokens.

        transformers pickles the state beside every checkpoint and policy.
        """
        return without_tokens(self)

    def check(self) -> None:
        at_least(self, learning_rate=0, weight_decay=0, adam_epsilon=0, max_grad_norm=0)
        at_least(self, warmup_steps=0, eval_delay=0, save_total_limit=0)
        within(self, neftune_noise_alpha=(0, 1000))
        within(self, adam_beta1=(0, _BELOW_1), adam_beta2=(0, _BELOW_1), max_steps=(-1, 2**31 - 1))
        if self.max_steps <= 0:  # then num_train_epochs is the length of the training
            within(self, num_train_epochs=(1e-6, 1e6))
        for name in ("logging_steps", "eval_steps", "save_steps"):
            if (every := getattr(self, name)) is not None and not every > 0:
                raise UsageError(
                    f"{name} is {every}; give a number of steps, or a share of them below 1; to "
                    f"switch it off: {name.removesuffix('steps')}strategy: no"
                )
        for name in ("save_every_minutes", "max_minutes"):
            if (minutes := getattr(self, name)) is not None and not 0 < minutes < math.inf:
                raise UsageError(f"{name} is {minutes}; give minutes, above 0, such as 30, or null")
        at_least(self, max_expert_tokens=1)
        check_seeds(seed=self.seed, data_seed=self.data_seed)
        defaults = {setting.name: setting.default for setting in fields(self)}
        for name, why in _UNUSED.items():
            default = defaults.get(name)  # not every version of transformers has all settings
            value = getattr(self, name, default)
            if value in (default, None) or (value is False and default == "no"):
                continue
            raise UsageError(f"{name} is {value!r}; leave it at {default!r}: {why}")
        for name in ("logging_strategy", "eval_strategy", "save_strategy"):
            if getattr(self, name) == "epoch":
                raise UsageError(
                    f"{name} is epoch; prompts come in a stream without an end: write {name}: "
                    f"steps and after how many with {name.removesuffix('strategy')}steps"
                )


@dataclass
class ExpertConfig(TrainerConfig):
    """All settings of `ExpertTrainer`, which fine-tunes on the expert's text (SFT).

    It adds little to `TrainerConfig`. SFT trains on no rollouts, so the sizes of rollouts, the loss
    and the rewards are not settings here. Samples for evaluation and long rows may exceed a token
    budget if necessary.

    Attributes:
        require_thoughts: drop rows whose step has no thought in the data. Such rows would teach
            the policy to write a step after an empty thought.
        also_whole: add one row for each solution: the whole solution, under `whole_system_prompt`.
            A policy that is trained on single steps only stops after one step, even if it is asked
            for a whole solution. RLVR then has nothing to start from.
    """

    require_thoughts: bool = False
    also_whole: bool = False

    def check(self) -> None:
        if self.also_whole and self.targets == "whole":
            raise UsageError(
                "also_whole is true, but under targets: whole there are no other rows; leave it "
                "away, or set targets: all"
            )
        if self.also_whole and self.system_prompt == self.whole_system_prompt:
            raise UsageError(
                f"also_whole is true, but system_prompt and whole_system_prompt are both "
                f"{self.system_prompt!r}, so that a problem's first step and its whole solution "
                "would follow the same prompt; give one of them other words"
            )
        if self.require_thoughts and not self.think:
            raise UsageError(
                "require_thoughts is true, but think is false, so thoughts are left out; leave "
                "require_thoughts away, or set think: true"
            )


@dataclass
class SRLConfig(ReplaySettings, LoggingSettings, LossSettings, GroupSettings, TrainerConfig):
    """All settings of `SRLTrainer`.

    Defaults follow the paper (arXiv 2510.25992) where it states a value. Each part documents its
    own settings: `PromptSettings`, `SamplingSettings`, `RowSettings`, `VerifierSettings`,
    `RewardSettings`, `EvaluationSettings`, `SplitSettings`, `BatchSettings`, `GroupSettings`,
    `LossSettings`, `LoggingSettings` (`srl/config/parts.py`), `RouterSettings` and `ReplaySettings`
    (`srl/config/router.py`), and `TrainerConfig`.
    """

    def check(self) -> None:
        self._check_saving()
        # The rollouts of one row must fit into the token budgets, which bound the memory.
        for name, rows, why in (
            ("rollout_token_budget", self.num_generations, "one prompt's rollouts"),
            ("micro_batch_tokens", 1, "one completion"),
        ):
            given, needed = getattr(self, name), rows * (self.completion_length + 1)
            if given < needed:
                raise UsageError(
                    f"{name} is {given}, but {why} may take {needed} tokens "
                    f"({rows} x {self.length_field} {self.completion_length} and a prompt); "
                    f"set {name} to {4 * needed}, or {self.length_field} to "
                    f"{max(1, given // (4 * rows))}"
                )

    def _check_saving(self) -> None:
        """Raises UsageError if a checkpoint would be saved in the middle of a batch of rollouts."""
        # transformers turns this value into an ExplicitEnum.
        strategy = getattr(self.save_strategy, "value", self.save_strategy)
        saved_after = {"steps": "save_steps", "best": "eval_steps"}.get(strategy)
        every = None if saved_after is None else getattr(self, saved_after)
        if strategy == "best" and every is None:
            saved_after, every = "logging_steps", self.logging_steps  # transformers' fallback
        times = self.num_iterations
        if times == 1 or every is None or every <= 0 or (every >= 1 and every % times == 0):
            return
        share, put = "", f"make {saved_after}"
        if every < 1:
            share, put = ", a share of the steps,", f"give {saved_after} in steps,"
        raise UsageError(
            f"{saved_after} is {every:g}{share} and num_iterations {times}: a checkpoint in the "
            f"middle of a batch could not be resumed; {put} a multiple of {times}"
        )


@dataclass
class BenchmarkSettings(VerifierSettings, SamplingSettings, PromptSettings):
    """The settings of a benchmark: how its problems are prompted, solved and verified.

    Attributes:
        num_fewshot: the number of worked examples before each problem, in the benchmark's own
            layout. There is then no system prompt unless `whole_system_prompt` is given.
        fewshot_file: the source of the examples: a file, or NAME=FILE for each benchmark; null is
            the benchmark's training split on the hub.
        as_is: use the model's own chat template with only the problem, without our system prompt.
        bf16: None means bf16 autocast on a GPU and float32 on a CPU.
        use_cpu: compute on the CPU even if there is a GPU.
        seed: the seed of the samples and of the draw of examples.
        output_dir: the folder in which the evaluation's folder is created.
    """

    num_fewshot: int = 0
    fewshot_file: str | None = None
    as_is: bool = False
    bf16: bool | None = None
    use_cpu: bool = False
    seed: int = 42
    output_dir: str | None = "runs"

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and not self.use_cpu
        super().__post_init__()

    def check(self) -> None:
        check_seeds(seed=self.seed)
        at_least(self, num_fewshot=0)
        within(self, num_fewshot=(0, 64))
        if self.fewshot_file is not None and not self.num_fewshot:
            raise UsageError(
                f"fewshot_file is {self.fewshot_file}, but num_fewshot is 0: no example would be "
                "shown; add --num_fewshot 5, or leave fewshot_file out"
            )
        for name in ("open_thought", "think_budget"):
            if getattr(self, name) and self.num_fewshot:
                raise UsageError(
                    f"{name} has no place behind worked examples, which show no thoughts; leave "
                    f"{name} or num_fewshot out"
                )
        if self.think_budget >= self.whole_max_completion_length:
            raise UsageError(
                f"think_budget is {self.think_budget}, which leaves no room for an answer: "
                f"whole_max_completion_length is {self.whole_max_completion_length}"
            )
        if self.as_is:
            taken = {
                "num_fewshot": self.num_fewshot,
                "whole_system_prompt": self.whole_system_prompt,
                "template": self.template if self.template != "chat" else None,
            }
            for name, value in taken.items():
                if value:
                    raise UsageError(
                        f"as_is asks in the model's own chat template with nothing of ours in it, "
                        f"but {name} is {value!r}; leave one of them out"
                    )

    @property
    def device(self) -> torch.device:
        """Returns the device on which the policy computes."""
        accelerator = None if self.use_cpu else torch.accelerator.current_accelerator(True)
        return torch.device("cpu") if accelerator is None else accelerator


def without_tokens(settings: TrainingArguments) -> dict[str, object]:
    """Returns the state of `settings` without access tokens, for a pickle that users may share."""
    return {name: None if name in SECRETS else value for name, value in vars(settings).items()}


# Metrics of `SRLTrainer.evaluate` that may choose the best checkpoint. Metrics over valid steps
# only are not allowed: a policy that breaks the format on all hard rows would look best.
BEST_BY = ("eval_accuracy", "eval_reward")


def check_one_process(config: TrainerConfig) -> None:
    """Raises UsageError unless there is one process with at most one GPU, as both trainers need.

    Raises:
        UsageError: a launcher started several processes, or there are several GPUs.
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
    config: TrainerConfig, *, validates: bool, best_by: Sequence[str] = BEST_BY
) -> None:
    """Raises UsageError at the start for settings that would fail at the first evaluation.

    Args:
        config: the settings.
        validates: whether there are validation problems.
        best_by: the metrics that may choose the best checkpoint.

    Raises:
        UsageError: an evaluation has no problems, or an unknown metric is to choose the best
            checkpoint.
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
