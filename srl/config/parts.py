"""Settings by part: what belongs together, and what each value may be.

A method's settings are parts put together (`srl/config/settings.py`). A part that builds on
another's values extends it. A function that needs one part takes that part, so that its signature
says what it depends on.
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

# Logits divided by it stay numbers of float32.
_COLDEST, _HOTTEST = 1e-4, 1e4

ExpertsImplementation = Literal["auto", "eager", "batched_mm", "grouped_mm"]
"""How transformers compute the experts of a sparse model: expert by expert, token by token, or all
at once; "auto" is the model's own way."""

# The built-in losses (`srl/training/loss.py`).
LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "cispo")


@dataclass
class Part:
    """Some settings; each subclass checks in `check` those that it adds."""

    def __post_init__(self) -> None:
        """Check all parts, those that others build on first.

        Raises:
            UsageError: a value that cannot be.
        """
        for part in parts_of(type(self)):
            _check_words(self, part)
            if "check" in vars(part):
                part.check(self)

    def check(self) -> None:
        """Raise UsageError for a value that cannot be."""


def parts_of(kind: type) -> list[type[Part]]:
    """The parts that a settings class is made of, those that others build on first."""
    return [one for one in reversed(kind.__mro__) if issubclass(one, Part)]


def own_settings(kind: type) -> set[str]:
    """The settings that its parts name; the others are transformers', with its defaults."""
    return {name for part in parts_of(kind) for name in inspect.get_annotations(part)}


def setting_names(kind: type) -> list[str]:
    """All settings that `kind` takes."""
    return [one.name for one in fields(kind) if one.init]


def at_least(settings: Part, why: str = "", **least: float) -> None:
    """Refuse a number below its least value; None is no number, and NaN is refused.

    Raises:
        UsageError: it names the setting, and `why`.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:  # not `<`, which NaN would pass
            raise UsageError(f"{name} is {value}; it must be {bound} or more{why}")


def within(settings: Part, **ranges: tuple[float, float]) -> None:
    """Refuse a number outside of its range, ends included; None is no number.

    Raises:
        UsageError: it names the setting.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name} is {value}; it must be from {low:,} to {high:,}")


def check_seeds(**seeds: int | None) -> None:
    """Refuse what torch and numpy do not both take as a seed.

    Raises:
        UsageError: it names the setting.
    """
    for name, value in seeds.items():
        if value is not None and not 0 <= value < 2**32:
            raise UsageError(f"{name} is {value}; it must be from 0 to {2**32 - 1}")


def _check_words(settings: Part, part: type[Part]) -> None:
    """Words and switches; a file's were checked where it was read, Python's were not."""
    hints = typing.get_type_hints(part)
    for name in inspect.get_annotations(part):
        if hints[name] is bool or typing.get_origin(hints[name]) is Literal:
            fit(getattr(settings, name), hints[name], name)


@dataclass
class PromptSettings(Part):
    """How a policy is asked.

    Attributes:
        template: "chat", "plain" text, or "auto": chat if the tokenizer has a chat template.
        think: the policy writes a monologue in think tags before its step.
        whole_system_prompt: what the policy is told for a whole problem, to be solved in one
            completion; null sends no system message. An experiment that does not give it takes its
            environment's.
        open_thought: prompts end in `<think>`, so that a policy which was never taught the format
            starts inside its thought; a chat template that writes the tag itself does so anyway.
        think_budget: tokens after which a thought that is still open is closed by writing the tag
            for the policy; 0 is never. What is written for it carries no loss.
        prompt_date: the day that a chat template which asks for the date is told, YYYY-MM-DD; it is
            never today's, so that a run resumed tomorrow reads the same prompts.
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
            told = date.fromisoformat(self.prompt_date).isoformat()
        except (TypeError, ValueError):
            told = None
        if told != self.prompt_date:
            raise UsageError(
                f"prompt_date is {self.prompt_date!r}; allowed: a day as YYYY-MM-DD, such as "
                f"{PROMPT_DATE}"
            )


@dataclass
class SamplingSettings(Part):
    """How completions are drawn.

    Attributes:
        temperature, top_p, top_k, min_p: top_p 1.0, top_k 0 and min_p null are off.
        whole_max_completion_length: the longest whole solution, in tokens.
        rollout_token_budget: prompt and completion tokens sampled together, at full length. While
            problems are solved step by step on a CPU, half as many are remembered beside them.
        prefix_tree: compute tokens that rollouts share once, in the update and when sampling.
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
    """How rewards are asked, the check of a final answer among them.

    Attributes:
        reward_deadline: seconds that one call of a named reward may take; then it is stopped, its
            value is null, and the metrics count it.
        reward_workers: processes that score beside generation; null is the cores less one, 1 to 8.
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
    """How rewards of one's own are asked.

    Attributes:
        reward_errors: what happens when a reward function of yours fails: "stop" ends the run and
            saves the row, "record" makes it a null and counts it.
    """

    reward_errors: Literal["stop", "record"] = "stop"


@dataclass
class RowSettings(SamplingSettings, PromptSettings):
    """What a row is: the context that the policy reads, and the completion that follows it.

    Attributes:
        targets: which expert steps are targets. "literal" is 1..N-1 as the paper writes, "all" is
            1..N, "skip_first" is 2..N. "whole" makes the whole solution the one target: with the
            reward `answer` that is RLVR.
        step_title: "given" puts the next step's title into the prompt (the paper's footnote 1).
        system_prompt: what the policy is told for a step; null sends no system message. An
            experiment that does not give it takes its environment's.
        max_completion_length: the longest completion of one step, in tokens.
        few_shot: worked examples in front of every prompt: steps of so many training problems,
            which are then not trained on.
        step_ends_at: what ends a step beside the end of the policy's turn: "line" a line end,
            "blank_line" a blank line, "turn" nothing else.
        source_tag: a tag of expert solutions that prompts tell behind the problem, such as
            "length", so that one policy keeps several styles apart; null tells none.
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
        """The field that limits a row's completion: a step's, or a whole solution's."""
        return self.limit_of(whole=self.targets == "whole")[0]

    @property
    def completion_length(self) -> int:
        """The longest completion of a row, in tokens."""
        return self.limit_of(whole=self.targets == "whole")[1]

    def limit_of(self, *, whole: bool) -> tuple[str, int]:
        """The field that limits a completion of a step, or of a whole solution; its value."""
        field = "whole_max_completion_length" if whole else "max_completion_length"
        return field, int(getattr(self, field))


@dataclass
class EvaluationSettings(RewardSettings, RowSettings):
    """How held-out problems are solved, and their rows compared with the expert's.

    Attributes:
        validate_by: how validation problems are solved: "steps", "whole", or "auto": whole if
            `targets` is.
        test_before: solve the test problems before training too.
        test_rows: rows of theirs whose steps are compared with the expert's; 1000 give +-3 points.
        short_steps: problems whose expert takes at most so many steps are called short in reports.
        solve_max_steps: own steps after which step-by-step solving gives up.
        solve_samples: sampled attempts per test problem beside the greedy one; 0 is none.
        solve_whole: also solve the test problems in one completion.
        whole_samples: sampled attempts in one completion; null is `solve_samples`.
        solve_as: with `source_tag`, the value that prompts tell when held-out problems are solved;
            null is that of each problem's first solution.
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
    """How many problems there are for what.

    Attributes:
        train_problems: train on so many of the problems that are not held out, the same ones and
            more where it is larger; 0 takes all.
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
    """Which rows an optimiser step takes, and how many tokens it computes at once.

    Attributes:
        prompts_per_step: rows wanted for one optimiser step; in SRL each is a group of rollouts.
        prompt_order: "shuffled" draws rows one by one; "trajectory" draws trajectories, and their
            rows one after another, so that they share prompts (docs/prefix_tree.md).
        micro_batch_tokens: tokens of one forward and backward: nodes of the prefix tree, or, where
            there is none, tokens of repeated rows with their padding.
    """

    prompts_per_step: int = 64
    prompt_order: Literal["shuffled", "trajectory"] = "shuffled"
    micro_batch_tokens: int = 8192

    def check(self) -> None:
        at_least(self, prompts_per_step=1, micro_batch_tokens=1)


@dataclass
class GroupSettings(Part):
    """The rollouts of one prompt, and which groups of them are trained on.

    Attributes:
        num_generations: G, rollouts of one prompt; 2 or more.
        format_failure_reward: what a completion that breaks the format earns; the paper's -1 is for
            steps, RLVR is usually given 0. Or a mapping by reason, none above 0, with `default` for
            the others: docs/rewards.md.
        dynamic_sampling: drop flat groups and draw others instead.
        dynamic_sampling_epsilon: a group is kept if the population std of its rewards is above it.
        max_sampling_rounds: draws in one step at most, the first included.
        max_empty_steps: so many steps in a row without any group to train on stop the run.
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
    """What an update minimises, and how often on the same rollouts; docs/losses.md.

    The names and the defaults are TRL's, except for `loss_type` and `beta`.

    Attributes:
        loss_type: a name in `LOSS_TYPES`, or a loss of one's own by file.py:name or module:name.
        multi_objective_aggregation: "sum_then_normalize" makes advantages from the weighted sum of
            the rewards; "normalize_then_sum" normalises each reward in its group, then sums.
        scale_rewards: advantages are divided by the std of the "group", of the whole "batch" of
            groups, or by nothing ("none").
        mask_truncated_completions: completions that the length limit cut do not enter the loss.
        importance_sampling_level: the ratio to the policy that sampled belongs to each "token", or
            is one for the "sequence": the geometric mean of its tokens' ratios.
        epsilon: the clip range below 1, and above it too unless `epsilon_high` is given.
        epsilon_high: the clip range above 1; of cispo the largest ratio itself, such as 5.
        delta: the largest ratio under a negative advantage, which the clip range leaves unbounded.
        beta: weight of the KL term against the run's first policy; 0 needs no second model.
        use_bias_correction_kl: weigh the KL term by the ratio, as TRL does.
        entropy_coef: weight of a bonus for the mean entropy of the predictions.
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
        within(self, **most, entropy_coef=(-1e6, 1e6))  # what float32 can multiply
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
        """`epsilon_high`, or `epsilon` where it is not given."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


def _loss_type(name: str) -> str:
    """A built-in loss, or the place of another, with a file's absolute path."""
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
    """What a training writes down of its rollouts.

    Attributes:
        log_completions: write steps.jsonl, one record per rollout.
    """

    log_completions: bool = True
