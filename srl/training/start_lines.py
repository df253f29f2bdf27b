"""Writes the lines about a training at its start, and messages for when it cannot learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from transformers import SchedulerType

from rewards import RewardCheck
from srl.console import visible
from srl.data.rows import dropped
from srl.training.groups import Collected, Group

if TYPE_CHECKING:
    from srl.config.settings import SRLConfig, TrainerConfig

# This share of a step's rollouts counts as nearly all of them.
_MOSTLY = 0.9
# The most characters of a completion that a message shows.
_SHOWN = 160
# Rewards that would take longer than this per step are named at the start.
_SLOW_SECONDS = 1.0


def arithmetic(
    args: SRLConfig, rows: int, drops: Mapping[str, int], tree_refusal: str | None
) -> str:
    """Returns the sizes of a step, and how often the rows are seen.

    Args:
        args: the settings.
        rows: rows to train on.
        drops: why other rows were dropped -> how many.
        tree_refusal: why the update cannot run over prefix trees; None if it does.
    """
    return (
        f"{rows:,} rows{dropped(drops)}; "
        f"{args.prompts_per_step} prompts x {args.num_generations} rollouts = "
        f"{args.prompts_per_step * args.num_generations} completions a step of at most "
        f"{args.completion_length} tokens, "
        f"at most {args.max_sampling_rounds if args.dynamic_sampling else 1} sampling rounds, "
        f"micro-batches of at most {args.micro_batch_tokens:,} "
        + (
            "tree tokens; "
            if tree_refusal is None
            else f"tokens, prompts repeated for every rollout ({tree_refusal}); "
        )
        + steps_line(args, rows * args.num_iterations)
    )


def steps_line(args: TrainerConfig, rows: float) -> str:
    """Returns how long a training is, if an epoch has this many rows."""
    if args.max_expert_tokens is not None:
        return (
            f"until {args.max_expert_tokens:,} of the expert's tokens were drawn, or for "
            f"{args.max_steps:,} steps"
        )
    epochs = args.max_steps * args.prompts_per_step / rows
    return f"{args.max_steps} steps, about {epochs:.2g} epochs{_warm_up(args)}"


def _warm_up(args: TrainerConfig) -> str:
    """Returns a warning if the learning rate is still rising at the end; else nothing."""
    steps = args.get_warmup_steps(args.max_steps)
    is_constant = SchedulerType(args.lr_scheduler_type) is SchedulerType.CONSTANT
    if is_constant or steps < args.max_steps:
        return ""
    return (
        f"; the learning rate rises from 0 during the first {steps} steps (warmup_steps), so it "
        f"stays below {args.learning_rate:g}, and the first step changes nothing; to change that: "
        "--warmup_steps 0"
    )


def reward_report(args: SRLConfig, checks: Sequence[RewardCheck]) -> str:
    """Returns each reward's weight, and its value and time on an expert's own step."""
    parts, slow = [], []
    completions = args.prompts_per_step * args.num_generations
    for check in checks:
        value = "does not apply" if check.value is None else f"{check.value:.3g}"
        parts.append(f"{check.name} x {check.weight:g} ({value} in {1000 * check.seconds:.2g} ms)")
        seconds = check.seconds * completions / check.at_once
        if seconds > _SLOW_SECONDS:
            slow.append(f"{check.name} will take about {seconds:.0f} s of every step")
    line = f"rewards, tried on an expert's step: {', '.join(parts)}"
    return line + (f"; slow: {'; '.join(slow)}" if slow else "")


def broken_format(
    args: SRLConfig, collected: Collected[Group], read: Callable[[Sequence[int]], str]
) -> str | None:
    """Returns advice if nearly all rollouts break the format, else None.

    If all these rollouts earn the same, their groups are flat and teach nothing.

    Args:
        args: the settings.
        collected: the groups of a step.
        read: a completion's tokens -> its text.

    Returns:
        At most five lines: how many, the most common reason, an example, and what to try.
    """
    rollouts = [rollout for group in collected.groups for rollout in group.rollouts]
    failed = [rollout for rollout in rollouts if rollout.parsed.failure is not None]
    if not rollouts or len(failed) < _MOSTLY * len(rollouts):
        return None
    reasons = Counter(str(rollout.parsed.failure) for rollout in failed)
    reason, count = reasons.most_common(1)[0]
    example = next(rollout for rollout in failed if rollout.parsed.failure == reason)
    text = visible(read(example.completion_ids))
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    wanted = "<think>…</think> and then the step" if args.think else "the step alone"
    lines = [
        f"{len(failed)} of {len(rollouts)} rollouts break the format ({wanted}), {count} of them "
        f"as '{reason}', such as",
        f'  "{shown}"',
    ]
    if settings := _settings_against(reason, args):
        lines.append(f"  Settings that help: {'; or '.join(settings)}")
    thoughts = " (for thoughts of its own: python -m srl thoughts)" if args.think else ""
    lines.append(
        f"  Or first fine-tune on the expert's steps, method: sft{thoughts}; see docs/cold_start.md"
    )
    if len(reasons) > 1 and not isinstance(args.format_failure_reward, Mapping):
        lines.append(
            "  Or give each kind of failure its own format_failure_reward: then the rollouts of a "
            "group differ, and training can learn the format"
        )
    return "\n".join(lines)


def _settings_against(reason: str, args: SRLConfig) -> list[str]:
    """Returns unused settings that help against a format failure, the most helpful first."""
    budget = max(1, args.completion_length // 2)
    shots = [] if args.few_shot else ["few_shot: 3"]
    without = ["think: false"] if args.think else []
    longer = [f"a larger {args.length_field} (now {args.completion_length:,})"]
    ends, opens = [], []
    if args.step_ends_at == "turn" and args.targets != "whole":
        ends = ["step_ends_at: blank_line"]
    if args.think and not args.open_thought:
        opens = [f"open_thought: true with think_budget: {budget}"]
    elif args.think and not args.think_budget:
        opens = [f"think_budget: {budget}"]
    return {
        "truncated": [*ends, *opens, *longer],
        "missing_open": [*opens, *without, *shots],
        "missing_close": [*opens, *without, *shots],
        "text_before_think": [*opens, *shots],
        "unexpected_tag": ["think: true", *shots],
        "several_steps": [*ends, *shots],
    }.get(reason, [*shots, *without])


def nothing_left(args: SRLConfig, collected: Collected[Group], broken: str | None) -> str:
    """Returns why a training stops after several steps with all groups dropped.

    Args:
        args: the settings.
        collected: the groups of the last step.
        broken: the result of `broken_format` for these groups.
    """
    message = (
        f"nothing to train on: for {args.max_empty_steps} steps in a row every group was dropped, "
        f"because the rewards of its {args.num_generations} rollouts hardly differ (population std "
        f"<= dynamic_sampling_epsilon {args.dynamic_sampling_epsilon}). "
    )
    if broken is not None:
        return f"{message}In the last one {broken}"
    return message + (
        "A reward that is constant, or a policy that always writes the same, gives this; look at "
        "the records with: make inspect"
    )
