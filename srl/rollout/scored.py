"""Sampling steps beside the expert's: each rollout parsed, scored, and what they come to.

The trainer and the evaluation share it; solving whole problems is `srl/evaluation/solving.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards import PendingScores, RewardCheck, RewardSum, StepScore, normalize
from rewards.calling import DEADLINE
from srl.data.prompts import ParsedStep, PromptFormat
from srl.data.steps import StepExample
from srl.errors import UsageError
from srl.rollout.local import Completion, Sampler, SamplingParams


@dataclass(frozen=True)
class ScoredStep:
    """One rollout of one row, scored; the trainer and the evaluation share it.

    Attributes:
        example: the row.
        parsed: thought, action, failure.
        score: what it earned.
        lift: similarity minus that of copying the previous step; None at a first step or a failure.
        exact: the action is the expert's step, white space aside.
        prompt_tokens: length of the prompt.
        completion_ids: what the policy wrote.
        truncated: the length limit cut it.
    """

    example: StepExample
    parsed: ParsedStep
    score: StepScore
    lift: float | None
    exact: bool
    prompt_tokens: int
    completion_ids: list[int]
    truncated: bool

    @property
    def metrics(self) -> dict[str, float | None]:
        """Every further figure of the rollout by name; None does not apply."""
        return {
            "lift": self.lift,
            "exact": float(self.exact) if self.parsed.failure is None else None,
        }


def sample_steps(
    sampler: Sampler,
    form: PromptFormat,
    examples: Sequence[StepExample],
    prompts: Sequence[Sequence[int]],
    *,
    rewards: RewardSum,
    params: SamplingParams,
    num_samples: int,
) -> list[list[ScoredStep]]:
    """`num_samples` rollouts of each row, parsed and scored; scored beside the generation."""
    parsed: dict[int, list[ParsedStep]] = {}
    pending: list[tuple[list[int], PendingScores]] = []

    def ready(completions: Mapping[int, list[Completion]]) -> None:
        for row, written in completions.items():
            whole = examples[row].whole
            parsed[row] = [form.parse(one.ids, one.truncated, whole=whole) for one in written]
        valid = [(row, s) for row in completions for s in parsed[row] if s.failure is None]
        contexts = [examples[row].context(step.action, step.thought) for row, step in valid]
        pending.append(([row for row, _ in valid], rewards.submit(contexts)))

    groups = []
    sampled = sampler(prompts, num_samples, params, ready)
    scores: dict[int, list[StepScore]] = {row: [] for row in range(len(examples))}
    for rows, waiting in pending:
        for row, score in zip(rows, waiting.result(), strict=True):
            scores[row].append(score)
    for row, (example, prompt, completions) in enumerate(
        zip(examples, prompts, sampled, strict=True)
    ):
        in_turn = iter(scores[row])
        group = []
        for step, completion in zip(parsed[row], completions, strict=True):
            score = rewards.failed() if step.failure is not None else next(in_turn)
            group.append(
                ScoredStep(
                    example=example,
                    parsed=step,
                    score=score,
                    lift=score.lift,
                    exact=step.failure is None
                    and normalize(step.action) == normalize(example.expert_step),
                    prompt_tokens=len(prompt),
                    completion_ids=completion.ids,
                    truncated=completion.truncated,
                )
            )
        groups.append(group)
    return groups


def try_rewards(rewards: RewardSum, example: StepExample) -> list[RewardCheck]:
    """What every reward gives the expert's own step at `example`, before anything rests on it.

    Raises:
        UsageError: a reward cannot be found, failed, or took too long.
    """
    try:
        return rewards.check(example.context(example.expert_step, thought=""))
    except ValueError as error:
        raise UsageError(f"rewards: {error}") from error


def step_metrics(steps: Sequence[ScoredStep]) -> dict[str, float]:
    """Means over rollouts. Reward counts failures; similarity, lift and exact count the valid ones
    apart from them, because a few -1 would hide what the steps are worth."""
    valid = [step for step in steps if step.parsed.failure is None]
    metrics = {
        "reward": _mean([step.score.reward for step in steps]),
        "format_failures": _mean([float(step.parsed.failure is not None) for step in steps]),
        "exact": _mean([float(step.exact) for step in valid]),
        "lift": _mean([step.lift for step in valid if step.lift is not None]),
        "completion_tokens": _mean([float(len(step.completion_ids)) for step in steps]),
    }
    names = valid[0].score.rewards if valid else {}
    for name in names:
        values = [step.score.rewards[name] for step in valid]
        metrics[f"rewards/{name}"] = _mean([value for value in values if value is not None])
        # Only where there are any: most rewards never fail.
        failures = [why for step in valid if (why := step.score.failures.get(name))]
        if failures:
            late = failures.count(DEADLINE)
            metrics[f"reward_deadlines/{name}"] = float(late)
            metrics[f"reward_errors/{name}"] = float(len(failures) - late)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
