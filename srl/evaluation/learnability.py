"""Measures what a policy could learn from each source, before any training.

Three things are measured on held-out steps of each source: how likely the expert's step is under
the policy, how similar the policy's attempts are to it, and how often the rewards of attempts at
one step differ. SRL learns only from these differences. Texts of strong teachers can be out of a
small policy's reach (Li et al., arXiv 2502.12143). Then few tokens are likely, attempts are no more
similar to the expert's step than to a step of another problem, and a group's rewards are equal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import torch
from transformers import PreTrainedModel

from rewards import RewardSum
from rewards.similarity import similarity
from srl.config.parts import EvaluationSettings
from srl.data.explaining import cut_around
from srl.data.prompts import PromptFormat
from srl.data.rows import Rows
from srl.data.steps import StepExample
from srl.models.memory import fits_into_memory
from srl.models.prefix_tree import Row, pack_rows, pack_trees
from srl.models.scoring import completion_log_probs
from srl.models.tree_models import attending_over_trees, refusal
from srl.rollout.rollouts import Rollout, sample_rollouts
from srl.rollout.samplers import Prompt, Sampler, SamplingParams, key_of
from srl.stats import Estimate, bootstrap, share_of_rows

UNLIKELY = 0.01
"""A token of the expert's step with a lower probability counts as out of the policy's reach."""

# Each step is compared with this many steps of other problems. They are drawn from the steps with
# the nearest lengths, which are twice as many.
_NEAREST = 8
# With fewer problems than this, a mean has no interval.
_FEW = 5


@dataclass(frozen=True)
class Learned:
    """The measurements at one held-out step.

    Attributes:
        rollouts: the policy's attempts at the step.
        log_probs: the log-probability of each token of the expert's step, given its context, in
            nats.
        floor: mean similarity of the valid attempts with steps of other problems that are about as
            long; None if there are no valid attempts or no other problems.
        std: population standard deviation of the attempts' rewards.
        is_kept: whether dynamic sampling would train on the attempts.
    """

    rollouts: list[Rollout]
    log_probs: list[float]
    floor: float | None
    std: float
    is_kept: bool

    @property
    def example(self) -> StepExample:
        """Returns the row of the step."""
        return self.rollouts[0].example

    @property
    def similarity(self) -> float | None:
        """Returns the mean similarity of the valid attempts; None if there are none."""
        values = [
            similarity(rollout.parsed.action, self.example.expert_step) for rollout in self.valid
        ]
        return fmean(values) if values else None

    @property
    def valid(self) -> list[Rollout]:
        """Returns the attempts without a format failure."""
        return [rollout for rollout in self.rollouts if rollout.is_valid]


def attempt_rows(
    model: PreTrainedModel,
    sampler: Sampler,
    form: PromptFormat,
    rows: Rows,
    args: EvaluationSettings,
    rewards: RewardSum,
    *,
    samples: int,
    epsilon: float,
    seed: int,
) -> list[Learned]:
    """Samples and scores attempts at each row, and returns the measurements of each row.

    Args:
        model: the policy.
        sampler: samples from the same policy.
        form: encodes prompts and parses completions.
        rows: held-out steps of one source.
        args: temperature and lengths of the attempts.
        rewards: the rewards of the attempts.
        samples: attempts at each step, as many as a group would have.
        epsilon: a group is kept only if its rewards' standard deviation is larger.
        seed: the seed of the attempts and of the choice of unrelated steps.
    """
    keys = [
        key_of("learnability", example.source, example.problem_id, example.step_index)
        for example in rows.examples
    ]
    groups = sample_rollouts(
        sampler,
        form,
        rows.examples,
        [Prompt(ids, key) for ids, key in zip(rows.prompts, keys, strict=True)],
        rewards=rewards,
        params=SamplingParams.of(
            args,
            seed=seed,
            max_new_tokens=args.completion_length,
            stop_ids=form.stop_ids,
            limits=form.limits(whole=args.targets == "whole"),
        ),
        num_samples=samples,
    )
    likely = step_log_probs(model, form, rows, args)
    others = unrelated_steps(rows.examples, seed)
    learned = []
    for group, log_probs, near in zip(groups, likely, others, strict=True):
        actions = [rollout.parsed.action for rollout in group if rollout.is_valid]
        floors = [similarity(action, step) for action in actions for step in near]
        std = pstdev([rollout.reward for rollout in group])
        learned.append(
            Learned(group, log_probs, fmean(floors) if floors else None, std, std > epsilon)
        )
    return learned


@torch.no_grad()
def step_log_probs(
    model: PreTrainedModel, form: PromptFormat, rows: Rows, args: EvaluationSettings
) -> list[list[float]]:
    """Returns the log-probability of each token of each row's expert step, after an empty thought.

    Tags and the end token are not scored, because they say nothing about the step.
    """
    parts: list[Row] = []
    for example, prompt in zip(rows.examples, rows.prompts, strict=True):
        whole = form.encode_expert(example, thoughts=False)
        before, step = cut_around(whole, example.expert_step, form.read) or ([], whole)
        parts.append(([*prompt, *before], step))
    tree = args.prefix_tree and refusal(model) is None
    log_probs: list[list[float]] = [[] for _ in parts]
    was_training = model.training
    model.eval()
    pack, budget = pack_trees if tree else pack_rows, args.rollout_token_budget // 8
    sizes = {"rollout_token_budget": args.rollout_token_budget}
    advice = "shorter steps take less"
    try:
        with (
            fits_into_memory("scoring steps", model.device, sizes, advice),
            attending_over_trees(model) if tree else nullcontext(),
        ):
            for batch in pack(parts, budget):
                scores = completion_log_probs(
                    model,
                    [parts[place] for place in batch],
                    pad_id=int(form.tokenizer.pad_token_id),
                    temperature=1.0,
                    device=model.device,
                    tree=tree,
                )
                for place, values, mask in zip(batch, scores.log_probs, scores.mask, strict=True):
                    log_probs[place] = values[mask].tolist()
    finally:
        model.train(was_training)
    return log_probs


def unrelated_steps(examples: Sequence[StepExample], seed: int) -> list[list[str]]:
    """Returns for each row some expert steps of other problems, about as long as its own.

    The similarity of two texts depends on their lengths. So the similarity of a policy's step to
    these unrelated steps is a floor for its similarity to the expert's own step.
    """
    by_length = sorted(
        examples, key=lambda example: (len(example.expert_step), example.expert_step)
    )
    rng = random.Random(seed)
    unrelated = []
    for example in examples:
        length = len(example.expert_step)
        others = [other for other in by_length if other.problem_id != example.problem_id]
        others.sort(key=lambda other: abs(len(other.expert_step) - length))
        near = [other.expert_step for other in others[: 2 * _NEAREST]]
        unrelated.append(rng.sample(near, min(_NEAREST, len(near))))
    return unrelated


Figure = Callable[[Learned], float | None]


def _above_floor(step: Learned) -> float | None:
    value = step.similarity
    return None if value is None or step.floor is None else value - step.floor


def _lift(step: Learned) -> float | None:
    lifts = [lift for rollout in step.valid if (lift := rollout.metrics["lift"]) is not None]
    return fmean(lifts) if lifts else None


FIGURES: Mapping[str, Figure] = {
    "log_prob": lambda step: fmean(step.log_probs),
    "unlikely": lambda step: fmean(p < math.log(UNLIKELY) for p in step.log_probs),
    "similarity": lambda step: step.similarity,
    "floor": lambda step: step.floor,
    "above_floor": _above_floor,
    "lift": _lift,
    "std": lambda step: step.std,
}
"""Name -> a function that returns the figure of one step; None if the step has no such figure."""


def figures_of(steps: Sequence[Learned]) -> dict[str, Estimate]:
    """Returns name -> mean over steps, with an interval over problems; omits figures without value.

    Over fewer than five problems a mean has no interval (NaN), because a bootstrap of so few would
    make it too narrow. `kept` and `format_failures` are shares and always have an interval.
    """
    result = {}
    attempts = [rollout for step in steps for rollout in step.rollouts]
    for name, figure in {**FIGURES, "kept": lambda step: step.is_kept}.items():
        pairs = [
            (value, step.example.problem_id)
            for step in steps
            if (value := figure(step)) is not None
        ]
        values, problems = [float(value) for value, _ in pairs], [problem for _, problem in pairs]
        if not values:
            continue
        if name == "kept":
            result[name] = share_of_rows([value > 0 for value in values], problems)
        else:
            mean = bootstrap(values, problems)
            too_few = len(set(problems)) < _FEW
            result[name] = replace(mean, low=math.nan, high=math.nan) if too_few else mean
    result["format_failures"] = share_of_rows(
        [not attempt.is_valid for attempt in attempts],
        [attempt.example.problem_id for attempt in attempts],
    )
    return result


def bands(steps: Sequence[Learned], count: int = 4) -> list[tuple[str, list[Learned]]]:
    """Returns the steps in bands by the expert step's number of tokens, with a label for each band.

    Bands have about equally many steps. Bands with the same label are joined.
    """
    ordered = sorted(steps, key=lambda step: len(step.log_probs))
    result: list[tuple[str, list[Learned]]] = []
    for number in range(count):
        part = ordered[len(ordered) * number // count : len(ordered) * (number + 1) // count]
        if not part:
            continue
        low, high = len(part[0].log_probs), len(part[-1].log_probs)
        label = f"{low}" if low == high else f"{low}-{high}"
        if result and result[-1][0] == label:
            result[-1][1].extend(part)
        else:
            result.append((label, part))
    return result


def rollouts_of(step: Learned) -> list[Rollout]:
    """Returns the attempts, with some figures of their step added to their metrics."""
    beside = {name: FIGURES[name](step) for name in ("log_prob", "unlikely", "floor")}
    return [replace(rollout, metrics={**rollout.metrics, **beside}) for rollout in step.rollouts]
