"""How good is a policy? Solving held-out problems, and steps beside the expert's.

*Step by step* is what SRL trains: the policy writes one step, its own step joins the prompt, and so
on until it states an answer, breaks the format or has used up its steps. *Whole* is one completion
for the whole solution. An unanswered problem is a wrong one; nothing is left out of a denominator.

Intervals are 95 %: Wilson's for a share of problems, a bootstrap over problems where each problem
has several samples or several rows (those of one problem are not independent).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from environments.answers import same_answer, stated_answer
from environments.types import Trajectory
from rewards import PendingScores, RewardCheck, RewardSum, StepScore, normalize
from rewards.calling import DEADLINE
from srl.errors import UsageError
from srl.estimates import Estimate, bootstrap, wilson
from srl.prompts import CLOSE, OPEN, ParsedStep, PromptFormat
from srl.rollouts import Completion, Sampler, SamplingParams
from srl.steps import StepExample

_THOUGHT = re.compile(f"{OPEN}.*?(?:{CLOSE}|\\Z)", re.DOTALL)

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Attempt:
    """One attempt at one problem.

    Attributes:
        trajectory: the problem, with the expert's solution.
        mode: "steps" or "whole".
        sample: 0 for greedy, else the number of the sample, from 1.
        steps: what the policy wrote, without its monologues.
        answer: what it stated, or None.
        correct: the answer is the expert's.
        failure: why there is no answer: a format failure, "no_answer", "context_limit", or None.
        tokens: tokens it wrote.
    """

    trajectory: Trajectory
    mode: str
    sample: int
    steps: tuple[str, ...]
    answer: str | None
    correct: bool
    failure: str | None
    tokens: int

    def to_json(self) -> dict[str, object]:
        """One line of eval.jsonl."""
        return {
            "problem_id": self.trajectory.problem_id,
            "source": self.trajectory.source,
            "num_steps": len(self.trajectory.steps),
            "mode": self.mode,
            "sample": self.sample,
            "steps": list(self.steps),
            "answer": self.answer,
            "gold": self.trajectory.answer,
            "correct": self.correct,
            "failure": self.failure,
            "completion_tokens": self.tokens,
        }


@dataclass
class _State:
    """A problem while it is being solved step by step."""

    trajectory: Trajectory
    steps: tuple[str, ...] = ()
    answer: str | None = None
    failure: str | None = None
    tokens: int = 0


def solve_step_by_step(
    sampler: Sampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    *,
    params: SamplingParams,
    max_steps: int,
    context_limit: int | None,
    sample: int = 0,
    tick: Tick | None = None,
) -> list[Attempt]:
    """One attempt at each problem, the policy's own steps fed back.

    Args:
        sampler: the policy.
        form: the words around a step.
        problems: what to solve; each must have an answer to be solvable.
        params: how to choose tokens; temperature 0 is greedy.
        max_steps: give up after so many steps.
        context_limit: give up on prompts that leave no room for a completion.
        sample: number of the attempt, for the record.
        tick: told once a round how far it is.
    """
    states = [_State(trajectory) for trajectory in problems]
    active = list(states)
    for round_number in range(1, max_steps + 1):
        ready, prompts = [], []
        for state in active:
            prompt = form.encode(state.trajectory.problem, state.steps)
            if context_limit is not None and len(prompt) + params.max_new_tokens > context_limit:
                state.failure = "context_limit"
            else:
                ready.append(state)
                prompts.append(prompt)
        if not ready:
            break
        if tick is not None:
            tick(f"step {round_number}, {len(ready)} of {len(states)} problems open")
        active = []
        for state, completions in zip(ready, sampler(prompts, 1, params), strict=True):
            completion = completions[0]
            parsed = form.parse(completion.ids, completion.truncated)
            state.tokens += len(completion.ids)
            if parsed.failure is not None:
                state.failure = parsed.failure
                continue
            state.steps = (*state.steps, parsed.action)
            state.answer = stated_answer(parsed.action)
            if state.answer is None:
                active.append(state)
    for state in active:
        state.failure = state.failure or "no_answer"
    return [
        Attempt(
            trajectory=state.trajectory,
            mode="steps",
            sample=sample,
            steps=state.steps,
            answer=state.answer,
            correct=same_answer(state.answer, state.trajectory.answer),
            failure=state.failure,
            tokens=state.tokens,
        )
        for state in states
    ]


def solve_whole(
    sampler: Sampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    *,
    params: SamplingParams,
    context_limit: int | None,
    num_samples: int = 1,
    first_sample: int = 0,
) -> list[Attempt]:
    """Attempts at each problem in one completion each; think tags may stand anywhere.

    A truncated solution counts by what it stated before it was cut: nothing, as a rule.
    """
    attempts: list[Attempt] = []
    prompts, asked = [], []
    for trajectory in problems:
        prompt = form.encode_whole(trajectory.problem)
        if context_limit is not None and len(prompt) + params.max_new_tokens > context_limit:
            failed = Attempt(trajectory, "whole", first_sample, (), None, False, "context_limit", 0)
            attempts += [replace(failed, sample=first_sample + i) for i in range(num_samples)]
        else:
            prompts.append(prompt)
            asked.append(trajectory)
    for trajectory, completions in zip(
        asked, sampler(prompts, num_samples, params) if prompts else [], strict=True
    ):
        for number, completion in enumerate(completions):
            text = form.parse(completion.ids, completion.truncated, whole=True)
            written = form.read(completion.ids)
            if form.opens_thought and not written.lstrip().startswith(OPEN):
                written = OPEN + written
            solution = _THOUGHT.sub("", written)
            answer = stated_answer(solution)
            failure = None
            if answer is None:
                failure = text.failure if text.failure == "truncated" else "no_answer"
            attempts.append(
                Attempt(
                    trajectory=trajectory,
                    mode="whole",
                    sample=first_sample + number,
                    steps=tuple(line for line in solution.splitlines() if line.strip()),
                    answer=answer,
                    correct=same_answer(answer, trajectory.answer),
                    failure=failure,
                    tokens=len(completion.ids),
                )
            )
    return attempts


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
        parsed.update(
            (row, [form.parse(one.ids, one.truncated) for one in written])
            for row, written in completions.items()
        )
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


def accuracy(attempts: Sequence[Attempt]) -> Estimate:
    """The share of problems solved; with several samples a problem, its mean over the samples."""
    by_problem: dict[int, list[bool]] = {}
    for attempt in attempts:
        by_problem.setdefault(id(attempt.trajectory), []).append(attempt.correct)
    shares = [sum(hits) / len(hits) for hits in by_problem.values()]
    if all(len(hits) == 1 for hits in by_problem.values()):
        return wilson(round(sum(shares)), len(shares))
    return bootstrap(shares)


def by_length(attempts: Sequence[Attempt]) -> dict[int, Estimate]:
    """Accuracy by how many steps the expert takes."""
    lengths = sorted({len(attempt.trajectory.steps) for attempt in attempts})
    return {
        length: accuracy([a for a in attempts if len(a.trajectory.steps) == length])
        for length in lengths
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
