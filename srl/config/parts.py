"""Defines groups of related settings, called parts, and checks their values.

A method's settings class combines parts (`srl/config/settings.py`). A part that depends on the
values of another part extends that part. A function that needs one part takes that part as its
parameter, so that its signature shows what it depends on.
"""

from __future__ import annotations

import inspect
import math
import typing
from dataclasses import dataclass, fields
from datetime import date
from typing import Literal

from environments.prompts import PAPER_EVALUATION_PROMPT, PAPER_SYSTEM_PROMPT, PROMPT_DATE
from rewards import FORMAT_FAILURE_REWARD
from rewards.by_path import CodeNameError, resolve
from srl.config.format_failures import checked_failure_reward
from srl.config.strict_yaml import fit
from srl.errors import UsageError

# Bounds of the temperature: logits divided by it stay finite in float32.
_COLDEST, _HOTTEST = 1e-4, 1e4

ExpertsImplementation = Literal["auto", "eager", "batched_mm", "grouped_mm"]
"""How transformers computes the experts of a sparse model: expert by expert ("eager"), token by
token ("batched_mm"), or all at once ("grouped_mm"). "auto" is the model's own way."""

# The built-in losses (`srl/training/loss.py`).
LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "cispo")


@dataclass
class Part:
    """A group of settings; `check` of each subclass checks the settings that it adds."""

    def __post_init__(self) -> None:
        """Checks all parts; a part is checked before the parts that extend it.

        Raises:
            UsageError: a value is not allowed.
        """
        for part in parts_of(type(self)):
            _check_words(self, part)
            if "check" in vars(part):
                part.check(self)

    def check(self) -> None:
        """Raises UsageError if a value is not allowed."""


def parts_of(kind: type) -> list[type[Part]]:
    """Returns the parts of a settings class; a part comes before the parts that extend it."""
    return [part for part in reversed(kind.__mro__) if issubclass(part, Part)]


def own_settings(kind: type) -> set[str]:
    """Returns the settings that the parts of `kind` define; all others come from transformers."""
    return {name for part in parts_of(kind) for name in inspect.get_annotations(part)}


def setting_names(kind: type) -> list[str]:
    """Returns the names of all settings that `kind` accepts."""
    return [field.name for field in fields(kind) if field.init]


def at_least(settings: Part, why: str = "", **least: float) -> None:
    """Raises UsageError if a number is below its least value or NaN; None is allowed.

    Raises:
        UsageError: the message names the setting and ends with `why`.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:  # `value < bound` would accept NaN
            raise UsageError(f"{name} is {value}; it must be {bound} or more{why}")


def within(settings: Part, **ranges: tuple[float, float]) -> None:
    """Raises UsageError if a number is outside its range; the ends and None are allowed.

    Raises:
        UsageError: the message names the setting.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name} is {value}; it must be from {low:,} to {high:,}")


def check_seeds(**seeds: int | None) -> None:
    """Raises UsageError if torch or numpy does not accept a value as a seed; None is allowed.

    Raises:
        UsageError: the message names the setting.
    """
    for name, value in seeds.items():
        if value is not None and not 0 <= value < 2**32:
            raise UsageError(f"{name} is {value}; it must be from 0 to {2**32 - 1}")


def _check_words(settings: Part, part: type[Part]) -> None:
    """Raises UsageError if a Literal or bool setting of the part has another value.

    Values from a file were checked when it was read; values given in Python were not.
    """
    hints = typing.get_type_hints(part)
    for name in inspect.get_annotations(part):
        if hints[name] is bool or typing.get_origin(hints[name]) is Literal:
            fit(getattr(settings, name), hints[name], name)


@dataclass
class PromptSettings(Part):
    """The settings of prompts.

    Attributes:
        template: "chat", "plain" text, or "auto": chat if the tokenizer has a chat template.
        think: the policy writes a monologue in think tags before its step.
        whole_system_prompt: the system prompt for a whole problem that is solved in one
            completion; null sends no system message. The default of an experiment is its
            environment's prompt.
        open_thought: prompts end in `<think>`, so that a policy that was never trained on the
            format starts inside its thought. Some chat templates write the tag in any case.
        think_budget: after this many tokens, an open thought is closed: the tag is written for the
            policy; 0 is never. The tokens written for the policy have no loss.
        prompt_date: the date for chat templates that ask for one, YYYY-MM-DD. It is
            fixed, so that a resumed run reads the same prompts.
    """

    template: Literal["auto", "chat", "plain"] = "auto"
    think: bool = True
    whole_system_prompt: str | None = PAPER_EVALUATION_PROMPT
    open_thought: bool = False
    think_budget: int = 0
    prompt_date: str = PROMPT_DATE

    def check(self) -> None:
        at_least(self, think_budget=0)
        for name in ("open_thought", "think_budget"):
            if getattr(self, name) and not self.think:
                raise UsageError(
                    f"{name} is {getattr(self, name)}, but think is false: there is no thought; "
                    f"leave {name} away, or set think: true"
                )
        try:
            day = date.fromisoformat(self.prompt_date).isoformat()
        except (TypeError, ValueError):
            day = None
        if day != self.prompt_date:
            raise UsageError(
                f"prompt_date is {self.prompt_date!r}; allowed: a day as YYYY-MM-DD, such as "
                f"{PROMPT_DATE}"
            )


@dataclass
class SamplingSettings(Part):
    """The settings of sampling.

    Attributes:
        temperature, top_p, top_k, min_p: top_p 1.0, top_k 0 and min_p null are off.
        whole_max_completion_length: the maximum length of a whole solution, in tokens.
        rollout_token_budget: the maximum number of prompt and completion tokens sampled together,
            counted at full length. While problems are solved step by step on a CPU, the cache
            keeps up to half as many tokens of earlier prompts in addition.
        prefix_tree: compute tokens that rollouts share only once, in the update and in sampling.
        experts_implementation: how the experts of a sparse policy are computed; docs/experts.md.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    whole_max_completion_length: int = 2048
    rollout_token_budget: int = 65536
    prefix_tree: bool = True
    experts_implementation: ExpertsImplementation = "auto"

    def check(self) -> None:
        at_least(self, top_k=0, whole_max_completion_length=1, rollout_token_budget=1)
        if not _COLDEST <= self.temperature <= _HOTTEST:
            raise UsageError(
                f"temperature is {self.temperature}; rollouts are sampled, so it must be above 0 "
                f"(from {_COLDEST:g} to {_HOTTEST:g})"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 is off)")
        if self.min_p is not None and not 0 < self.min_p <= 1:
            raise UsageError(f"min_p is {self.min_p}; it must be above 0 and at most 1, or null")


@dataclass
class VerifierSettings(Part):
    """The settings of reward calls, including the check of a final answer.

    Attributes:
        reward_deadline: the seconds that one call of a named reward may take. A longer call is
            stopped, its value is null, and the metrics count it.
        reward_workers: the number of processes that score during generation; null is the number of
            cores less one, from 1 to 8.
    """

    reward_deadline: float = 5.0
    reward_workers: int | None = None

    def check(self) -> None:
        at_least(self, reward_workers=1)
        within(self, reward_workers=(1, 1024))
        if not 0.001 <= self.reward_deadline <= 1e6:
            raise UsageError(
                f"reward_deadline is {self.reward_deadline}; give seconds, above 0, such as 5 "
                "(from 0.001 to 1000000)"
            )


@dataclass
class RewardSettings(VerifierSettings):
    """The settings of calls of your own rewards.

    Attributes:
        reward_errors: what happens if your own reward function fails: "stop" ends the run and saves
            the row, "record" sets the value to null and counts it.
    """

    reward_errors: Literal["stop", "record"] = "stop"


@dataclass
class RowSettings(SamplingSettings, PromptSettings):
    """The settings of rows: the context that the policy reads, and the completion after it.

    Attributes:
        targets: which expert steps are targets. "literal" is 1..N-1 as the paper writes, "all" is
            1..N, "skip_first" is 2..N. "whole" makes the whole solution the only target; with the
            reward `answer` this is RLVR.
        step_title: "given" puts the next step's title into the prompt (the paper's footnote 1).
        system_prompt: the system prompt for a step; null sends no system message. The default of
            an experiment is its environment's prompt.
        max_completion_length: the maximum length of a completion of one step, in tokens.
        few_shot: the number of worked examples before every prompt. They are steps of this many
            training problems, which are removed from training.
        step_ends_at: what ends a step besides the end of the policy's turn: "line" a line end,
            "blank_line" a blank line, "turn" nothing else.
        source_tag: a tag of expert solutions that prompts show after the problem, such as "length",
            so that one policy can learn several styles separately; null shows no tag.
    """

    targets: Literal["literal", "all", "skip_first", "whole"] = "literal"
    step_title: Literal["off", "given"] = "off"
    system_prompt: str | None = PAPER_SYSTEM_PROMPT
    max_completion_length: int = 512
    few_shot: int = 0
    step_ends_at: Literal["turn", "line", "blank_line"] = "turn"
    source_tag: str | None = None

    def check(self) -> None:
        at_least(self, max_completion_length=1, few_shot=0)
        within(self, few_shot=(0, 64))
        if self.step_ends_at != "turn" and self.targets == "whole":
            raise UsageError(
                f"step_ends_at is {self.step_ends_at}, but under targets: whole there are no "
                "steps; leave it away, or set other targets"
            )
        if self.think_budget >= self.completion_length:
            raise UsageError(
                f"think_budget is {self.think_budget}, which leaves no room for a step behind the "
                f"thought: {self.length_field} is {self.completion_length}; set it to "
                f"{self.think_budget + 128}, or think_budget to {self.completion_length // 2}"
            )

    @property
    def length_field(self) -> str:
        """Returns the name of the setting that limits a row's completion."""
        return self.limit_of(whole=self.targets == "whole")[0]

    @property
    def completion_length(self) -> int:
        """Returns the maximum length of a row's completion, in tokens."""
        return self.limit_of(whole=self.targets == "whole")[1]

    def limit_of(self, *, whole: bool) -> tuple[str, int]:
        """Returns the name and value of the setting that limits a step, or a whole solution."""
        field = "whole_max_completion_length" if whole else "max_completion_length"
        return field, int(getattr(self, field))


@dataclass
class EvaluationSettings(RewardSettings, RowSettings):
    """The settings of evaluation: solving held-out problems and comparing steps with the expert's.

    Attributes:
        validate_by: how validation problems are solved: "steps", "whole", or "auto": whole if
            `targets` is "whole".
        test_before: solve the test problems before training too.
        test_rows: the number of rows of test problems whose steps are compared with the expert's;
            1000 rows give +-3 points.
        short_steps: reports call a problem short if the expert takes at most this many steps.
        solve_max_steps: step-by-step solving gives up after this many steps of the policy.
        solve_samples: sampled attempts per test problem besides the greedy attempt; 0 is none.
        solve_whole: also solve the test problems in one completion.
        whole_samples: sampled attempts in one completion; null is `solve_samples`.
        solve_as: with `source_tag`, the tag's value in prompts of held-out problems; null is the
            value of each problem's first solution.
    """

    validate_by: Literal["auto", "steps", "whole"] = "auto"
    test_before: bool = True
    test_rows: int = 1000
    short_steps: int = 4
    solve_max_steps: int = 12
    solve_samples: int = 0
    solve_whole: bool = False
    whole_samples: int | None = None
    solve_as: str | None = None

    def check(self) -> None:
        if self.solve_as is not None and self.source_tag is None:
            raise UsageError(
                f"solve_as is {self.solve_as!r}, but source_tag is null, so prompts tell no tag; "
                "leave it away, or name the tag with source_tag"
            )
        whole = self.solve_whole or "whole" in (self.validate_by, self.targets)
        field, length = min(
            (self.limit_of(whole=kind) for kind in {False, whole}), key=lambda limit: limit[1]
        )
        if 0 < length <= self.think_budget:
            raise UsageError(
                f"think_budget is {self.think_budget}, which leaves no room behind the thought: "
                f"held-out problems are solved with {field} {length}; make that larger, or "
                "think_budget smaller"
            )
        at_least(self, test_rows=0, solve_samples=0, whole_samples=0)
        at_least(self, short_steps=1, solve_max_steps=1)
        most = ("solve_max_steps", "solve_samples", "whole_samples")
        within(self, **dict.fromkeys(most, (0, 10_000)))


@dataclass
class SplitSettings(Part):
    """The numbers of problems for training, validation and test.

    Attributes:
        train_problems: train on this many of the problems that are not held out; 0 takes all. A
            larger number takes the same problems and more.
        validation_problems: held-out problems for `eval_steps` and the best checkpoint.
        test_problems: further held-out problems, solved before and after training.
    """

    train_problems: int = 0
    validation_problems: int = 60
    test_problems: int = 0

    def check(self) -> None:
        at_least(self, train_problems=0, validation_problems=0, test_problems=0)


@dataclass
class BatchSettings(Part):
    """The settings of an optimiser step: its rows, and how many tokens it computes at once.

    Attributes:
        prompts_per_step: rows wanted for one optimiser step; in SRL each row is a group of
            rollouts.
        prompt_order: "shuffled" draws rows one by one; "trajectory" draws trajectories and takes
            their rows one after another, so that the rows share prompts (docs/prefix_tree.md).
        micro_batch_tokens: tokens of one forward and backward. They are nodes of the prefix tree;
            without a tree, they are tokens of repeated rows including padding.
    """

    prompts_per_step: int = 64
    prompt_order: Literal["shuffled", "trajectory"] = "shuffled"
    micro_batch_tokens: int = 8192

    def check(self) -> None:
        at_least(self, prompts_per_step=1, micro_batch_tokens=1)


@dataclass
class GroupSettings(Part):
    """The settings of groups: the rollouts of one prompt, and which groups are trained on.

    Attributes:
        num_generations: G, the number of rollouts of one prompt; 2 or more.
        format_failure_reward: the reward of a completion that breaks the format. The paper's -1 is
            for steps; RLVR usually uses 0. A mapping by reason is also allowed, with no value above
            0 and `default` for all other reasons: docs/rewards.md.
        dynamic_sampling: drop flat groups and draw others instead.
        dynamic_sampling_epsilon: a group is kept if the population std of its rewards is above it.
        max_sampling_rounds: how often a step may draw groups; the first draw counts.
        max_empty_steps: the run stops after this many steps in a row without a group to train on.
    """

    num_generations: int = 8
    format_failure_reward: float | dict[str, float] = FORMAT_FAILURE_REWARD
    dynamic_sampling: bool = True
    dynamic_sampling_epsilon: float = 1e-3
    max_sampling_rounds: int = 4
    max_empty_steps: int = 5

    def check(self) -> None:
        alone = ": a group of 1 has no advantage, there is nothing to compare it with"
        at_least(self, alone, num_generations=2)
        at_least(self, dynamic_sampling_epsilon=0.0, max_sampling_rounds=1, max_empty_steps=1)
        self.format_failure_reward = checked_failure_reward(self.format_failure_reward)


@dataclass
class LossSettings(Part):
    """The settings of the loss, and the number of updates on the same rollouts; docs/losses.md.

    The names and the defaults are TRL's, except for `loss_type` and `beta`.

    Attributes:
        loss_type: a name in `LOSS_TYPES`, or your own loss as file.py:name or module:name.
        multi_objective_aggregation: "sum_then_normalize" makes advantages from the weighted sum of
            the rewards; "normalize_then_sum" normalises each reward in its group, then sums.
        scale_rewards: advantages are divided by the std of the "group", of the whole "batch" of
            groups, or by nothing ("none").
        mask_truncated_completions: completions that the length limit cut do not enter the loss.
        importance_sampling_level: "token" gives each token its own ratio to the policy that
            sampled; "sequence" uses one ratio, the geometric mean of the tokens' ratios.
        epsilon: the clip range below 1, and also above 1 unless `epsilon_high` is given.
        epsilon_high: the clip range above 1; for cispo the largest ratio itself, such as 5.
        delta: the largest ratio under a negative advantage, which the clip range does not bound.
        beta: the weight of the KL term against the run's first policy; 0 needs no second model.
        use_bias_correction_kl: weight the KL term by the ratio, as TRL does.
        entropy_coef: the weight of a bonus for the mean entropy of the predictions.
        num_iterations: optimiser steps on the same rollouts; clipping matters from 2 on.
    """

    loss_type: str = "grpo"
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = (
        "sum_then_normalize"
    )
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated_completions: bool = False
    importance_sampling_level: Literal["token", "sequence"] = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    entropy_coef: float = 0.0
    num_iterations: int = 1

    def check(self) -> None:
        at_least(self, epsilon=0.0, epsilon_high=0.0, beta=0.0, num_iterations=1)
        most = dict.fromkeys(("epsilon", "epsilon_high", "delta", "beta"), (0, 1e6))
        within(self, **most, entropy_coef=(-1e6, 1e6))  # float32 can multiply such numbers
        self.loss_type = _loss_type(self.loss_type)
        if self.delta is not None and not self.delta > 1:
            raise UsageError(
                f"delta is {self.delta}; it bounds ratios, which are 1 where the policy has not "
                "changed, so it must be above 1, and better above the clip range, such as 4"
            )
        if self.loss_type == "cispo":
            if self.delta is not None or self.epsilon != LossSettings.epsilon:
                raise UsageError(
                    "loss_type cispo has no use for delta and epsilon: it bounds every ratio by "
                    "epsilon_high; take them out"
                )
            if self.epsilon_high is None:
                raise UsageError(
                    "loss_type cispo bounds every ratio by epsilon_high, which is not given; "
                    "set epsilon_high: 5.0 (a bound below 1 would shrink all gradients)"
                )
        if not -math.inf < self.entropy_coef < math.inf:
            raise UsageError(
                f"entropy_coef is {self.entropy_coef}; give a finite number, such as 0.001"
            )
        decoupled = self.multi_objective_aggregation == "normalize_then_sum"
        if decoupled and self.scale_rewards != "group":
            raise UsageError(
                f"scale_rewards is {self.scale_rewards!r}, but normalize_then_sum always divides "
                "each reward by its group's std, and the sums by the batch's; leave scale_rewards "
                "out"
            )

    @property
    def clip_high(self) -> float:
        """Returns `epsilon_high`, or `epsilon` if it is not given."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


def _loss_type(name: str) -> str:
    """Returns a built-in loss's name, or the place of another loss with its file's absolute path.

    Raises:
        UsageError: there is no such loss.
    """
    if name in LOSS_TYPES:
        return name
    if not isinstance(name, str) or ":" not in name:
        raise UsageError(
            f"loss_type is {name!r}; allowed: {', '.join(LOSS_TYPES)}; a loss of your own: "
            "file.py:name or package.module:name"
        )
    try:
        return resolve(name, what="loss_type")
    except CodeNameError as error:
        raise UsageError(str(error)) from error


@dataclass
class LoggingSettings(Part):
    """The settings of the log of rollouts.

    Attributes:
        log_completions: write steps.jsonl, one record per rollout.
    """

    log_completions: bool = True
