"""Runs `srl demo`: shows one expert step, some attempts at it, their scores and advantages.

Nothing is trained. The demo shows the method on one step: how a step is scored by its similarity to
the expert's step, and how a group of scores becomes advantages.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

import torch
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from transformers import set_seed

from rewards.similarity import matching_blocks, normalize
from srl.config.experiment import Experiment
from srl.config.parts import LossSettings
from srl.console import say
from srl.data.prompts import PromptFormat
from srl.data.rows import Rows, dropped
from srl.data.shots import draw_shots
from srl.data.splits import load_splits
from srl.data.steps import StepExample
from srl.data.stream import PromptStream
from srl.errors import UsageError
from srl.logs.terminal.pen import Pen, number
from srl.logs.terminal.rollout_view import marked
from srl.models.loading import context_limit, load_policy, prompt_format
from srl.rollout.rollouts import Rollout, sample_rollouts
from srl.rollout.samplers import Prompt, Sampler, SamplingParams, key_of, make_sampler
from srl.training.advantages import ScaleRewards, group_stats, step_advantages

# The most steps that are tried to find a clear group, and how many are sampled together.
_TRIED, _AT_ONCE = 64, 8
_SHORT = 4  # the most steps of a solution that is easy to read


def demo(experiment: Experiment, *, attempts: int, console: Console) -> None:
    """Shows one step of a held-out problem with some attempts of the policy.

    Args:
        experiment: gives the policy, the data and the rewards.
        attempts: attempts at the step, 2 or more.
        console: where to print.

    Raises:
        UsageError, DataError: something given cannot be used.
    """
    if attempts < 2:
        raise UsageError(f"--attempts is {attempts}; a group has 2 or more, such as 4")
    args = experiment.args
    set_seed(args.seed)
    splits = load_splits(experiment, console)
    problems = splits.test or splits.validation or splits.train
    shots, _ = draw_shots(splits.train, args, seed=args.split_seed)
    model, tokenizer = load_policy(experiment.model, experts=args.experts_implementation)
    model.to(args.device)
    form = prompt_format(model, tokenizer, args, shots=shots)
    rows = Rows.of(problems, form, args, context_limit(model))
    if not rows.examples:
        raise UsageError(f"there are no steps to show{dropped(rows.dropped)}; give other data")
    sampler = make_sampler(model, pad_id=int(form.tokenizer.pad_token_id), settings=args)
    with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
        group = _worth_showing(sampler, form, rows, experiment, attempts)
    scale: ScaleRewards = args.scale_rewards if isinstance(args, LossSettings) else "group"
    _show(group, scale, console)


def _worth_showing(
    sampler: Sampler, form: PromptFormat, rows: Rows, experiment: Experiment, attempts: int
) -> list[Rollout]:
    """Returns the first valid group with exact and other steps, else that of largest spread."""
    args = experiment.args
    params = SamplingParams.of(
        args,
        seed=args.seed,
        max_new_tokens=args.completion_length,
        stop_ids=form.stop_ids,
        limits=form.limits(whole=args.targets == "whole"),
    )
    rewards = experiment.sum_rewards()
    short = [i for i, example in enumerate(rows.examples) if _is_short(example)]
    places = short or list(range(len(rows.examples)))
    order = PromptStream(len(places), args.seed).take(min(_TRIED, len(places)))
    best: list[Rollout] = []
    try:
        for start in range(0, len(order), _AT_ONCE):
            some = [places[i] for i in order[start : start + _AT_ONCE]]
            groups = sample_rollouts(
                sampler,
                form,
                [rows.examples[i] for i in some],
                [Prompt(rows.prompts[i], key_of("demo", i)) for i in some],
                rewards=rewards,
                params=params,
                num_samples=attempts,
            )
            for group in groups:
                if _is_telling(group):
                    return list(group)
                if not best or _spread(group) > _spread(best):
                    best = list(group)
    finally:
        rewards.close()
    return best


def _is_short(row: StepExample) -> bool:
    """Returns whether the step is inside a short solution, neither its first nor its last."""
    return row.step_index in range(1, row.num_steps - 1) and row.num_steps <= _SHORT


def _is_telling(group: Sequence[Rollout]) -> bool:
    exact = [
        normalize(rollout.parsed.action) == normalize(rollout.example.expert_step)
        for rollout in group
    ]
    return any(exact) and not all(exact) and all(rollout.is_valid for rollout in group)


def _spread(group: Sequence[Rollout]) -> float:
    return group_stats([rollout.reward for rollout in group])[1]


def _show(group: Sequence[Rollout], scale: ScaleRewards, console: Console) -> None:
    pen = Pen.of(console)
    narrow = Pen(min(pen.width, 100) - 2, pen.height, pen.encoding, pen.colour)
    example, expert = group[0].example, normalize(group[0].example.expert_step)

    def part(title: str, text: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        say(console, pen.say(title))
        console.print(Padding(marked(text, ranges, narrow), (0, 0, 0, 2), expand=False))

    part("problem", example.problem)
    for place, step in enumerate(example.previous, 1):
        part(f"expert's step {place}", step.text)
    part(f"expert's step {example.step_index + 1}, to be found", expert)
    rewards = [rollout.reward for rollout in group]
    advantages = step_advantages([rewards], scale=scale)[0]
    how = "in green" if pen.colour else "marked ^"
    for place, (rollout, advantage) in enumerate(zip(group, advantages, strict=True), 1):
        console.print()
        if rollout.parsed.thought:
            part(f"attempt {place}: thought", rollout.parsed.thought)
        if rollout.is_valid:
            action = normalize(rollout.parsed.action)
            shared = [(i, i + n) for i, _, n in matching_blocks(action, expert)]
            part(f"attempt {place}: step, what it shares with the expert's {how}", action, shared)
        else:
            part(
                f"attempt {place}: no step, because of {rollout.parsed.failure}",
                rollout.parsed.action,
            )
        named = ", ".join(f"{pen.say(n)} {number(v)}" for n, v in rollout.score.rewards.items())
        console.print(
            Text(f"  {named or 'format failure'}; reward {number(rollout.reward)}, advantage "),
            Text(number(advantage, sign=True), style="bold"),
            sep="",
        )
    console.print()
    mean, spread = fmean(rewards), stdev(rewards)
    divided = "" if scale == "none" else ", divided by the standard deviation"
    say(
        console,
        f"mean reward {number(mean)}, standard deviation {number(spread)}. An advantage is the "
        f"reward less the mean{divided}. A training step makes attempts "
        "above the mean more likely and those below it less. A group whose attempts all earn the "
        "same teaches nothing and is left out.",
    )
