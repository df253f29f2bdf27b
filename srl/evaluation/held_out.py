"""Computes all figures of a policy on held-out problems, and the table that shows them.

Every attempt is written to `eval.jsonl`. The figures are means and shares over problems, with
intervals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from environments.types import Trajectory
from rewards import RewardSum
from srl.config.experiment import Experiment
from srl.config.parts import EvaluationSettings
from srl.console import now_and_then, say
from srl.data.prompts import PromptFormat
from srl.data.rows import Rows, dropped
from srl.evaluation.behaviour import behaviour, mean_behaviour
from srl.evaluation.judging import judged
from srl.evaluation.solving import (
    Attempt,
    Tick,
    accuracy,
    by_length,
    by_problem,
    one_each,
    solve_step_by_step,
    solve_whole,
)
from srl.models.loading import context_limit
from srl.rollout.rollouts import Rollout, sample_rollouts
from srl.rollout.samplers import Prompt, Sampler, SamplingParams, make_sampler
from srl.runs.attempts import gain, read_attempts
from srl.runs.folder import RunFolder
from srl.runs.records import RecordWriter, read_rows
from srl.sample_metrics import over_problems, sample_figures
from srl.stats import Estimate, bootstrap, share_of_rows

BEHAVIOUR = "behaviour"
HELD_OUT_STEPS = "held-out steps: "
_MODES = {"steps": "step by step", "whole": "whole solution"}


def measure(
    model: PreTrainedModel,
    form: PromptFormat,
    experiment: Experiment,
    rewards: RewardSum,
    problems: Sequence[Trajectory],
    run: RunFolder | None,
    when: str,
    console: Console,
) -> dict[str, object]:
    """Returns all figures of a policy on held-out problems; writes attempts to a run's eval.jsonl.

    The result is empty if there are no problems.
    """
    if not problems:
        return {}
    args = experiment.args
    started = time.monotonic()
    number = 0 if run is None else _next_evaluation(run.eval)
    asked = one_each(problems)
    say(console, f"{when}: solving {len(asked):,} held-out problems")
    sampler = make_sampler(model, pad_id=int(form.tokenizer.pad_token_id), settings=args)
    with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
        limit, tick = context_limit(model), now_and_then(console, when)
        attempts = _solve(sampler, form, asked, args, args.seed, limit, tick)
        steps = _steps(sampler, form, problems, args, rewards, limit, when, console)
    attempts = judged(attempts, args)
    if run is not None:
        with RecordWriter(run.eval) as writer:
            writer.write(
                {"when": when, "evaluation": number, **attempt.to_json()} for attempt in attempts
            )
    figures = _figures(attempts, args)
    say(console, f"{when}: done in {time.monotonic() - started:.0f} s")
    return {**figures, **steps}


def _next_evaluation(path: Path) -> int:
    """Returns the next evaluation's number in eval.jsonl; a repeat after a kill gets a new one."""
    if not path.is_file():
        return 0
    numbers = [row.get("evaluation") for row in read_rows(path)]
    return 1 + max((n for n in numbers if isinstance(n, int)), default=-1)


def _solve(
    sampler: Sampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    args: EvaluationSettings,
    seed: int,
    limit: int | None,
    tick: Tick,
) -> list[Attempt]:
    def params(*, whole: bool, sampled: bool) -> SamplingParams:
        longest = args.whole_max_completion_length if whole else args.max_completion_length
        params = SamplingParams.of(
            args,
            seed=seed,
            max_new_tokens=longest,
            stop_ids=form.stop_ids,
            limits=form.limits(whole=whole),
        )
        return params if sampled else replace(params, temperature=0)

    def rounds(samples: int) -> list[tuple[int, int]]:
        """Returns (first sample, number of samples) of the greedy round, then the sampled one."""
        return [(0, 1), (1, samples)] if samples else [(0, 1)]

    attempts: list[Attempt] = []
    for first, count in rounds(args.solve_samples):
        attempts += solve_step_by_step(
            sampler,
            form,
            problems,
            params=params(whole=False, sampled=first > 0),
            max_steps=args.solve_max_steps,
            context_limit=limit,
            num_samples=count,
            first_sample=first,
            tick=tick,
        )
    if args.solve_whole:
        samples = args.solve_samples if args.whole_samples is None else args.whole_samples
        for first, count in rounds(samples):
            tick(f"whole solutions, {count * len(problems):,} attempts")
            attempts += solve_whole(
                sampler,
                form,
                problems,
                params=params(whole=True, sampled=first > 0),
                context_limit=limit,
                num_samples=count,
                first_sample=first,
            )
    return attempts


def _steps(
    sampler: Sampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    args: EvaluationSettings,
    rewards: RewardSum,
    limit: int | None,
    when: str,
    console: Console,
) -> dict[str, object]:
    """Returns figures that compare greedy steps on held-out rows with the expert's steps."""
    if not args.test_rows:
        return {}
    # The problems are ordered by a hash, so the first rows are a fair sample.
    rows = Rows.of(problems, form, args, limit, most=args.test_rows)
    if rows.dropped:
        say(console, f"{when}: held-out steps{dropped(rows.dropped)}")
    if not rows.examples:
        return {}
    groups = sample_rollouts(
        sampler,
        form,
        rows.examples,
        [Prompt(prompt, key=0) for prompt in rows.prompts],
        rewards=rewards,
        params=SamplingParams(
            args.completion_length,
            temperature=0,
            stop_ids=form.stop_ids,
            limits=form.limits(whole=args.targets == "whole"),
        ),
        num_samples=1,
    )
    steps = [group[0] for group in groups]
    valid = [step for step in steps if step.is_valid]
    estimates = {
        f"{HELD_OUT_STEPS}{name}": _mean_of(valid, _reward_called(name)) for name in rewards.names
    }
    estimates[f"{HELD_OUT_STEPS}exact"] = share_of_rows(
        [step.metrics["exact"] == 1.0 for step in valid],
        [step.example.problem_id for step in valid],
    )
    estimates[f"{HELD_OUT_STEPS}format failures"] = share_of_rows(
        [not step.is_valid for step in steps],
        [step.example.problem_id for step in steps],
    )
    estimates[f"{HELD_OUT_STEPS}lift"] = _mean_of(valid, lambda step: step.metrics["lift"])
    return {name: estimate.to_json() for name, estimate in estimates.items() if estimate.n}


def _mean_of(steps: Sequence[Rollout], figure: Callable[[Rollout], float | None]) -> Estimate:
    """Returns the mean of a figure over the steps that it applies to."""
    pairs = [(step.example.problem_id, v) for step in steps if (v := figure(step)) is not None]
    return bootstrap([v for _, v in pairs], [problem for problem, _ in pairs])


def _reward_called(name: str) -> Callable[[Rollout], float | None]:
    return lambda step: step.score.rewards.get(name)


def _figures(attempts: Sequence[Attempt], args: EvaluationSettings) -> dict[str, object]:
    figures: dict[str, object] = {}
    for mode, words in _MODES.items():
        for sampled in (False, True):
            chosen = [a for a in attempts if a.mode == mode and (a.sample > 0) == sampled]
            if not chosen:
                continue
            name = f"{words}, {'sampled' if sampled else 'greedy'}"
            figures[name] = accuracy(chosen).to_json()
            figures |= _of_samples(name, chosen)
            short = [a for a in chosen if len(a.trajectory.steps) <= args.short_steps]
            long = [a for a in chosen if len(a.trajectory.steps) > args.short_steps]
            for part, label in ((short, "short"), (long, "long")):
                if part:
                    figures[f"{name}, {label}"] = accuracy(part).to_json()
            if mode == "steps" and not sampled:
                figures["by expert steps"] = {
                    str(length): estimate.to_json()
                    for length, estimate in by_length(chosen).items()
                }
            # Step by step, every step must open with a thought, so there is nothing to count.
            if mode == "whole" and not sampled:
                shown = [behaviour(a.text, a.tokens) for a in chosen]
                means = mean_behaviour(shown, [a.trajectory.problem_id for a in chosen])
                figures[f"{words}: {BEHAVIOUR}"] = {
                    aspect: estimate.to_json() for aspect, estimate in means.items()
                }
    return figures


def _of_samples(name: str, attempts: Sequence[Attempt]) -> dict[str, object]:
    """Returns pass@k and maj@k, where k is all samples; empty if a problem has only one."""
    samples = [
        [(bool(attempt.correct), attempt.answer) for attempt in of] for of in by_problem(attempts)
    ]
    if min(map(len, samples)) < 2:
        return {}
    return {
        f"{name}, {figure}": over_problems(values).to_json()
        for figure, values in sample_figures(samples, only_most=True).items()
        if not figure.startswith("avg@")  # avg@k is `accuracy`, which the figures already hold
    }


def comparison(before: Mapping[str, object], after: Mapping[str, object] | None) -> Table:
    """Returns a table of figures, side by side, with 95 % intervals.

    All values but counts of behaviour are multiplied by 100, so shares are in percent.
    """
    table = Table(title="held-out problems, 95 % intervals", title_justify="left")
    table.add_column("")
    table.add_column("n", justify="right")
    table.add_column("before" if after is not None else "value", justify="right")
    if after is not None:
        table.add_column("after", justify="right")
        table.add_column("change", justify="right")
    later = after or {}
    for name in [*before, *(name for name in later if name not in before)]:
        value, other = before.get(name), later.get(name)
        if name == "by expert steps":
            parts = [part if isinstance(part, dict) else {} for part in (value, other)]
            for length in sorted({*parts[0], *parts[1]}, key=int):
                old, new = parts[0].get(length), parts[1].get(length)
                _row(table, f"  expert takes {length} steps", old, new)
        elif name.endswith(BEHAVIOUR):
            parts = [part if isinstance(part, dict) else {} for part in (value, other)]
            for aspect in {**parts[0], **parts[1]}:
                old, new = parts[0].get(aspect), parts[1].get(aspect)
                percent = aspect == "thought_share"
                words = aspect.replace("_", " ") + ("" if percent else ", a solution")
                _row(table, name.removesuffix(BEHAVIOUR) + words, old, new, percent=percent)
        else:
            _row(table, name, value, other)
    return table


def _row(table: Table, name: str, before: object, after: object, *, percent: bool = True) -> None:
    counts = [str(figure["n"]) for figure in (before, after) if isinstance(figure, dict)]
    n = "/".join(dict.fromkeys(counts))
    scale = 100 if percent else 1
    cells = [name, n, _cell(before, scale)]
    if len(table.columns) > 3:
        cells += [_cell(after, scale), _change(before, after, scale)]
    table.add_row(*cells)


def _cell(figure: object, scale: int) -> str:
    if isinstance(figure, dict):
        value, low, high = (scale * figure[part] for part in ("value", "low", "high"))
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"
    return f"{scale * figure:.1f}" if isinstance(figure, float) else "-"


def _change(before: object, after: object, scale: int) -> str:
    old = before["value"] if isinstance(before, dict) else before
    new = after["value"] if isinstance(after, dict) else after
    if isinstance(old, float) and isinstance(new, float):
        return f"{scale * (new - old):+.1f}"
    return "-"


def paired_changes(run: RunFolder) -> str | None:
    """Returns a line on the change of greedy accuracies, with 95 % intervals.

    Returns None unless there is a before and an after. The change is paired by problem, so its
    interval is narrower than the intervals of before and after suggest.
    """
    logged = read_attempts(run.eval)
    changes = {
        f"{words}, greedy": gain([a for a in logged if a.mode == mode and a.sample == 0])
        for mode, words in _MODES.items()
    }
    parts = [
        f"{name} {100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
        for name, change in changes.items()
        if change is not None
    ]
    return f"changed, problem by problem, in points: {'; '.join(parts)}" if parts else None
