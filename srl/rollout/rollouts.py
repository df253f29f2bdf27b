"""A rollout: one completion of one row, parsed and scored; training and evaluation share it.

Solving whole problems is `srl/evaluation/solving.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from environments.asking import is_finished, observation_of
from environments.types import Step
from rewards import PendingScores, RewardCheck, RewardSum, StepContext, StepScore, normalize
from rewards.calling import DEADLINE
from srl.data.prompts import ParsedStep, PromptFormat
from srl.data.steps import StepExample
from srl.errors import UsageError
from srl.models.replay import Routes
from srl.rollout.samplers import Completion, Prompt, Sampler, SamplingParams

# So many steps at least are handed to the rewards at once, if there are as many.
_STEPS_AT_ONCE = 16


@dataclass(frozen=True)
class Rollout:
    """One completion of one row, from the sampler to the loss.

    Attributes:
        example: the row.
        prompt_ids: the prompt's tokens.
        completion_ids: what the policy wrote, the token that ended it included.
        log_probs: the sampler's log-probability of each token; none for greedy decoding.
        loss_mask: of each token whether the loss counts it.
        policy_version: optimiser steps that the policy had taken when it wrote this.
        truncated: the length limit cut it.
        parsed: thought, action, failure.
        score: what it earned, and each reward's value.
        metrics: any further figure of it by name; None where the figure does not apply.
        observation: what the environment says after the step; empty for nothing.
        advantage: its reward relative to its group's; None before that is known, or when dropped.
        routes: of a sparse policy the experts that its tokens went to, where they were recorded.
    """

    example: StepExample
    prompt_ids: Sequence[int]
    completion_ids: list[int]
    log_probs: list[float]
    loss_mask: list[bool]
    policy_version: int
    truncated: bool
    parsed: ParsedStep
    score: StepScore
    metrics: dict[str, float | None]
    observation: str = ""
    advantage: float | None = None
    routes: Routes | None = field(default=None, compare=False)

    @property
    def reward(self) -> float:
        """The weighted sum of the rewards, or what a format failure earns."""
        return self.score.reward

    @property
    def is_valid(self) -> bool:
        """Whether the completion kept to the format."""
        return self.parsed.failure is None


def sample_rollouts(
    sampler: Sampler,
    form: PromptFormat,
    examples: Sequence[StepExample],
    prompts: Sequence[Prompt],
    *,
    rewards: RewardSum,
    params: SamplingParams,
    num_samples: int,
    policy_version: int = 0,
) -> list[list[Rollout]]:
    """`num_samples` rollouts of each row, in the order of the rows; scored beside the generation.

    Args:
        sampler: the policy.
        form: the words around a step.
        examples: the rows.
        prompts: each row's prompt.
        rewards: what steps are worth.
        params: how tokens are chosen.
        num_samples: rollouts of each row.
        policy_version: optimiser steps that the policy has taken.
    """
    written: dict[int, list[tuple[Completion, ParsedStep]]] = {}
    waiting: list[StepContext] = []
    pending: list[PendingScores] = []

    def submit() -> None:
        pending.append(rewards.submit(waiting))
        waiting.clear()

    for row, completions in sampler.sample(prompts, num_samples, params):
        example = examples[row]
        written[row] = [
            (one, form.parse(one.ids, one.truncated, whole=example.whole)) for one in completions
        ]
        waiting += [
            example.context(parsed.action, parsed.thought)
            for _, parsed in written[row]
            if parsed.failure is None
        ]
        if len(waiting) >= _STEPS_AT_ONCE:
            submit()
    submit()
    # Scores come in the order of the submissions: that in which the rows were ready.
    scores = (score for part in pending for score in part.result())
    groups = {
        row: [
            _rollout(
                examples[row],
                prompts[row],
                completion,
                parsed,
                next(scores) if parsed.failure is None else rewards.failed(parsed.failure),
                policy_version,
            )
            for completion, parsed in group
        ]
        for row, group in written.items()
    }
    return [groups[row] for row in range(len(examples))]


def _rollout(
    example: StepExample,
    prompt: Prompt,
    completion: Completion,
    parsed: ParsedStep,
    score: StepScore,
    policy_version: int,
) -> Rollout:
    return Rollout(
        example=example,
        prompt_ids=prompt.ids,
        completion_ids=completion.ids,
        log_probs=completion.log_probs,
        loss_mask=[not forced for forced in completion.forced] or [True] * len(completion.ids),
        policy_version=policy_version,
        truncated=completion.truncated,
        parsed=parsed,
        score=score,
        metrics=_metrics(example, parsed, score),
        observation="" if parsed.failure is not None else _observe(example, parsed),
        routes=completion.routes,
    )


def _metrics(example: StepExample, parsed: ParsedStep, score: StepScore) -> dict[str, float | None]:
    """A new figure of a rollout is one line here: the record holds it, and every view shows it."""
    exact = float(normalize(parsed.action) == normalize(example.expert_step))
    return {
        "lift": score.lift,
        "exact": exact if parsed.failure is None else None,
    }


def _observe(example: StepExample, parsed: ParsedStep) -> str:
    """What the environment says after the policy's step; a finished solution gets no answer."""
    trajectory = example.trajectory
    steps = (*trajectory.steps[: example.step_index], Step(parsed.action, parsed.thought))
    return "" if is_finished(trajectory, steps) else observation_of(trajectory, steps)


def try_rewards(rewards: RewardSum, example: StepExample) -> list[RewardCheck]:
    """What every reward gives the expert's own step at `example`, before anything rests on it.

    Raises:
        UsageError: a reward cannot be found, failed, or took too long.
    """
    try:
        return rewards.check(example.context(example.expert_step, thought=""))
    except ValueError as error:
        raise UsageError(f"rewards: {error}") from error


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over rollouts.

    Reward counts failures. Rewards by name and `metrics` count the valid ones that have a value,
    because a few -1 would hide what the steps are worth.
    """
    valid = [one for one in rollouts if one.is_valid]
    metrics = {
        "reward": _mean([one.reward for one in rollouts]),
        "format_failures": _mean([float(not one.is_valid) for one in rollouts]),
        "completion_tokens": _mean([float(len(one.completion_ids)) for one in rollouts]),
    }
    for name in rollouts[0].metrics if rollouts else ():
        values = [one.metrics[name] for one in valid]
        metrics[name] = _mean([value for value in values if value is not None])
    names = valid[0].score.rewards if valid else {}
    for name in names:
        values = [one.score.rewards[name] for one in valid]
        metrics[f"rewards/{name}"] = _mean([value for value in values if value is not None])
        # Only where there are any: most rewards never fail.
        failures = [why for one in valid if (why := one.score.failures.get(name))]
        if failures:
            late = failures.count(DEADLINE)
            metrics[f"reward_deadlines/{name}"] = float(late)
            metrics[f"reward_errors/{name}"] = float(len(failures) - late)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
