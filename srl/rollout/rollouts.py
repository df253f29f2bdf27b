"""Samples, parses and scores rollouts, for training and for evaluation.

A rollout is one completion of one row. `srl/evaluation/solving.py` solves whole problems.
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

# The smallest number of steps to send to the rewards at once; the last batch may be smaller.
_STEPS_AT_ONCE = 16


@dataclass(frozen=True)
class Rollout:
    """One completion of one row, from the sampler to the loss.

    Attributes:
        example: the row.
        prompt_ids: the prompt's tokens.
        completion_ids: the completion's tokens, including the token that ended it.
        log_probs: the sampler's log-probability of each token; empty for greedy decoding.
        loss_mask: whether the loss counts each token.
        policy_version: optimiser steps that the policy had taken when it wrote the completion.
        truncated: the length limit cut the completion.
        parsed: thought, action, failure.
        score: the total reward, and each reward's value.
        metrics: further figures by name; None where a figure does not apply.
        observation: the environment's text after the step; empty if there is none.
        advantage: the reward relative to the group's rewards; None until it is known, and for a
            dropped rollout.
        routes: the experts of each token of a sparse policy, if they were recorded.
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
        """Returns the weighted sum of the rewards, or the reward of a format failure."""
        return self.score.reward

    @property
    def is_valid(self) -> bool:
        """Returns whether the completion has no format failure."""
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
    """Returns `num_samples` rollouts of each row, in the order of the rows.

    Finished completions are scored while others are still being generated.

    Args:
        sampler: samples from the policy.
        form: encodes prompts and parses completions.
        examples: the rows.
        prompts: each row's prompt.
        rewards: the rewards of steps.
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
            (completion, form.parse(completion.ids, completion.truncated, whole=example.whole))
            for completion in completions
        ]
        waiting += [
            example.context(parsed.action, parsed.thought)
            for _, parsed in written[row]
            if parsed.failure is None
        ]
        if len(waiting) >= _STEPS_AT_ONCE:
            submit()
    submit()
    # Scores come in the order of the submissions, which is the order in which rows were ready.
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
    """Returns the figures of a rollout. The record and every view show each figure added here."""
    exact = float(normalize(parsed.action) == normalize(example.expert_step))
    return {
        "lift": score.lift,
        "exact": exact if parsed.failure is None else None,
    }


def _observe(example: StepExample, parsed: ParsedStep) -> str:
    """Returns the environment's text after the policy's step; "" if the solution is finished."""
    trajectory = example.trajectory
    steps = (*trajectory.steps[: example.step_index], Step(parsed.action, parsed.thought))
    return "" if is_finished(trajectory, steps) else observation_of(trajectory, steps)


def try_rewards(rewards: RewardSum, example: StepExample) -> list[RewardCheck]:
    """Returns each reward's result for the expert's own step, as a check before a run.

    Raises:
        UsageError: a reward cannot be found, failed, or took too long.
    """
    try:
        return rewards.check(example.context(example.expert_step, thought=""))
    except ValueError as error:
        raise UsageError(f"rewards: {error}") from error


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Returns means over rollouts.

    The mean of `reward` includes format failures. Means of rewards by name and of `metrics` include
    only valid rollouts that have a value, because a few -1 would hide the rewards of the steps.
    """
    valid = [rollout for rollout in rollouts if rollout.is_valid]
    metrics = {
        "reward": _mean([rollout.reward for rollout in rollouts]),
        "format_failures": _mean([float(not rollout.is_valid) for rollout in rollouts]),
        "completion_tokens": _mean([float(len(rollout.completion_ids)) for rollout in rollouts]),
    }
    for name in rollouts[0].metrics if rollouts else ():
        values = [rollout.metrics[name] for rollout in valid]
        metrics[name] = _mean([value for value in values if value is not None])
    names = valid[0].score.rewards if valid else {}
    for name in names:
        values = [rollout.score.rewards[name] for rollout in valid]
        metrics[f"rewards/{name}"] = _mean([value for value in values if value is not None])
        # These figures exist only if a reward has failed; most rewards never fail.
        failures = [why for rollout in valid if (why := rollout.score.failures.get(name))]
        if failures:
            late = failures.count(DEADLINE)
            metrics[f"reward_deadlines/{name}"] = float(late)
            metrics[f"reward_errors/{name}"] = float(len(failures) - late)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
