"""Runs `srl solve`: gives one problem to a policy and shows what it writes."""

from __future__ import annotations

from dataclasses import replace

import torch
from rich.console import Console
from transformers import set_seed

from environments import ENVIRONMENTS
from environments.types import Trajectory
from srl.config.experiment import Experiment
from srl.config.settings import TrainerConfig
from srl.console import say_titled
from srl.data.shots import draw_shots
from srl.data.splits import load_splits
from srl.errors import UsageError
from srl.evaluation.solving import Attempt, solve_step_by_step, solve_whole
from srl.models.loading import context_limit, load_policy, prompt_format
from srl.rollout.samplers import SamplingParams, make_sampler

_SHOWN = 300  # characters of a line that breaks the format


def solve(
    experiment: Experiment, model_name: str, problem: str, *, whole: bool, console: Console
) -> Attempt:
    """Solves one problem greedily and prints the solution.

    Args:
        experiment: gives the prompts and the limits.
        model_name: the policy: a folder or a hub name.
        problem: the problem's text.
        whole: whether the policy writes the whole solution at once, instead of step by step.
        console: where to print.

    Returns:
        The attempt. Its verdict means nothing, because the right answer is unknown.

    Raises:
        UsageError: the problem is empty, the experiment has an environment of its own, or the
            policy cannot be used.
        DataError: the data for the worked examples of `few_shot` cannot be read.
    """
    if not problem.strip():
        raise UsageError('there is no problem; give its text: --problem "How much is 2 + 2?"')
    if any("\ud800" <= sign <= "\udfff" for sign in problem):
        raise UsageError("the problem is not UTF-8 text")
    for source in experiment.data_plan.sources:
        if source.environment not in ENVIRONMENTS:
            raise UsageError(
                f"solve asks problems in words, and the environment {source.environment} has its "
                "own; solve its held-out problems with: make eval"
            )
    args = experiment.args
    set_seed(args.seed)
    train = load_splits(experiment, console).train if args.few_shot else []
    shots, _ = draw_shots(train, args, seed=args.split_seed)
    model, tokenizer = load_policy(model_name, experts=args.experts_implementation)
    model.to(args.device)
    form = prompt_format(model, tokenizer, args, shots=shots)
    sampler = make_sampler(model, pad_id=int(form.tokenizer.pad_token_id), settings=args)
    params = SamplingParams.of(
        args,
        seed=args.seed,
        max_new_tokens=args.whole_max_completion_length if whole else args.max_completion_length,
        stop_ids=form.stop_ids,
        limits=form.limits(whole=whole),
    )
    params = replace(params, temperature=0)
    asked, limit = [Trajectory(problem, (), None)], context_limit(model)
    with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
        [attempt] = (
            solve_whole(sampler, form, asked, params=params, context_limit=limit)
            if whole
            else solve_step_by_step(
                sampler,
                form,
                asked,
                params=params,
                context_limit=limit,
                max_steps=args.solve_max_steps,
            )
        )
    _show(attempt, experiment, console)
    return attempt


def _show(attempt: Attempt, experiment: Experiment, console: Console) -> None:
    for number, step in enumerate(attempt.steps, start=1):
        if step.thought:
            say_titled(console, "thought", step.thought)
        say_titled(console, "solution" if attempt.mode == "whole" else f"step {number}", step.text)
    if attempt.failure is None:
        say_titled(console, "answer", attempt.answer or "none")
        return
    say_titled(console, "no answer", _why(attempt, experiment.args))
    written = attempt.text.splitlines()
    if attempt.failure != "no_answer" and written:
        line = written[-1]
        say_titled(console, "its last line", line if len(line) <= _SHOWN else f"{line[:_SHOWN]} …")


def _why(attempt: Attempt, args: TrainerConfig) -> str:
    """Returns why an attempt has no answer, with the setting that may help."""
    if attempt.failure == "no_answer" and attempt.mode == "steps":
        return f"none is stated in solve_max_steps = {args.solve_max_steps} steps"
    if attempt.failure == "no_answer":
        return "none is stated"
    name = "whole_max_completion_length" if attempt.mode == "whole" else "max_completion_length"
    if attempt.failure == "context_limit":
        return f"the policy's context has no room for {name} = {getattr(args, name):,} more tokens"
    if attempt.failure == "truncated":
        return f"the text was cut off at {name} = {getattr(args, name):,} tokens"
    return f"the text breaks the format: {attempt.failure}"
