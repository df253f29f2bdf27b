"""Solves held-out problems with a policy.

*Step by step* is what SRL trains. The policy writes one step. That step and the environment's reply
are added to the prompt, and the policy writes the next step. An attempt ends when the environment
says that it is finished (in mathematics: it states an answer), when it breaks the format, or when
it has used up its steps or its context. *Whole* is one completion for the whole solution.
Unfinished attempts count in every denominator. In mathematics they are wrong.

Intervals are 95 %, over problems, because attempts at one problem are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from environments.asking import context_of, is_finished, observation_of, verdict_on
from environments.types import Step, Trajectory
from srl.data.prompts import OPEN, PromptFormat
from srl.rollout.samplers import Completion, Prompt, Sampler, SamplingParams, complete, key_of
from srl.sample_metrics import avg_at_k, over_problems
from srl.stats import Estimate

if TYPE_CHECKING:
    from srl.config.parts import EvaluationSettings

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Attempt:
    """One attempt at one problem.

    Attributes:
        trajectory: the problem, with the expert's solution.
        mode: "steps" or "whole".
        sample: 0 for greedy, else the number of the sample, from 1.
        steps: the policy's steps, with the observations; a whole solution is one step.
        answer: the answer that the attempt stated or reached, or None.
        correct: the environment's verdict; None means open, until `judging` has decided it.
        failure: why the attempt was not finished: a format failure, "no_answer", "context_limit",
            for a whole solution also "truncated"; or None.
        tokens: how many tokens the policy wrote.
        text: all that the policy wrote, one completion after another. Monologues and tags are
            included, also an opening tag at the end of the prompt.
        truncated: the length limit cut the last completion.
        why: the environment's remark on the verdict, or why the answer could not be checked.
    """

    trajectory: Trajectory
    mode: str
    sample: int
    steps: tuple[Step, ...] = ()
    answer: str | None = None
    correct: bool | None = False
    failure: str | None = None
    tokens: int = 0
    text: str = ""
    truncated: bool = False
    why: str = ""

    def to_json(self) -> dict[str, object]:
        """Returns the attempt as a line of eval.jsonl; a whole solution's lines are its steps."""
        texts = [step.text for step in self.steps]
        if self.mode == "whole":
            texts = [line for text in texts for line in text.splitlines() if line.strip()]
        observations = [step.observation for step in self.steps]
        return {
            "problem_id": self.trajectory.problem_id,
            "source": self.trajectory.source,
            "num_steps": len(self.trajectory.steps),
            "mode": self.mode,
            "sample": self.sample,
            "steps": texts,
            "text": self.text,
            "answer": self.answer,
            "gold": self.trajectory.answer,
            "correct": self.correct,
            "failure": self.failure,
            "completion_tokens": self.tokens,
            **({"observations": observations} if any(observations) else {}),
            **({"why": self.why} if self.why else {}),
        }


def solve_step_by_step(
    sampler: Sampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    *,
    params: SamplingParams,
    max_steps: int,
    context_limit: int | None,
    num_samples: int = 1,
    first_sample: int = 0,
    tick: Tick | None = None,
) -> list[Attempt]:
    """Solves problems step by step; the prompt of each step holds the policy's earlier steps.

    All attempts advance together, one step per round.

    Args:
        sampler: samples from the policy.
        form: encodes prompts and parses completions.
        problems: the problems. One without a known answer counts as unsolved, unless its
            environment judges it otherwise.
        params: how tokens are chosen; temperature 0 is greedy.
        max_steps: the largest number of steps of an attempt.
        context_limit: the most tokens of a prompt and its completion together; a longer one ends
            the attempt. None is no limit.
        num_samples: attempts at each problem.
        first_sample: the number of the first attempt.
        tick: called with the progress once per round.

    Returns:
        The first attempts at all problems, then the second ones, and so on.
    """
    numbers = range(first_sample, first_sample + num_samples)
    attempts = [Attempt(problem, "steps", sample) for sample in numbers for problem in problems]
    with sampler.remembering():  # a step's prompt begins with the previous step's prompt
        active = _take_steps(sampler, form, attempts, params, max_steps, context_limit, tick)
    for place in active:
        attempts[place] = replace(attempts[place], failure="no_answer")
    return [_judged(attempt) for attempt in attempts]


def _take_steps(
    sampler: Sampler,
    form: PromptFormat,
    attempts: list[Attempt],
    params: SamplingParams,
    max_steps: int,
    context_limit: int | None,
    tick: Tick | None,
) -> list[int]:
    """Continues all attempts, in place, until each has ended or has `max_steps` steps.

    Returns the indices of attempts that have `max_steps` steps and have not ended.
    """
    active = list(range(len(attempts)))
    for round_number in range(1, max_steps + 1):
        ready, prompts = [], []  # type: list[int], list[Prompt]
        for place in active:
            attempt, problem = attempts[place], attempts[place].trajectory
            read = context_of(problem, attempt.steps)
            prompt = form.encode(form.asked(problem, solving=True), read)
            if context_limit is not None and len(prompt) + params.max_new_tokens > context_limit:
                attempts[place] = replace(attempt, failure="context_limit")
            else:
                ready.append(place)
                key = key_of(problem.problem_id, attempt.sample, round_number)
                prompts.append(Prompt(prompt, key))
        active = []
        if not ready:
            break
        if tick is not None:
            tick(f"step {round_number}, {len(ready):,} of {len(attempts):,} attempts unfinished")
        for place, (completion,) in zip(ready, complete(sampler, prompts, 1, params), strict=True):
            attempts[place], goes_on = _with_step(form, attempts[place], completion)
            if goes_on:
                active.append(place)
    return active


def _with_step(
    form: PromptFormat, attempt: Attempt, completion: Completion
) -> tuple[Attempt, bool]:
    """Returns an attempt with one more step and its observation, and whether it continues."""
    parsed = form.parse(completion.ids, completion.truncated)
    text = _with_tags(form, completion)
    attempt = replace(
        attempt,
        failure=parsed.failure,
        tokens=attempt.tokens + len(completion.ids),
        text=f"{attempt.text}\n{text}" if attempt.tokens else text,
        truncated=completion.truncated,
    )
    if parsed.failure is not None:
        return attempt, False
    step = Step(parsed.action, parsed.thought)
    before, steps = attempt.steps, (*attempt.steps, step)
    if is_finished(attempt.trajectory, steps):
        return replace(attempt, steps=steps), False
    seen = replace(step, observation=observation_of(attempt.trajectory, steps))
    return replace(attempt, steps=(*before, seen)), True


def _judged(attempt: Attempt) -> Attempt:
    """Returns an attempt with the verdict of its environment."""
    verdict = verdict_on(attempt.trajectory, attempt.steps)
    return replace(attempt, answer=verdict.answer, correct=verdict.correct, why=verdict.why)


def solve_whole(
    sampler: Sampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    *,
    params: SamplingParams,
    context_limit: int | None,
    num_samples: int = 1,
    first_sample: int = 0,
    keys: Sequence[int] | None = None,
) -> list[Attempt]:
    """Solves each problem in one completion per attempt; think tags may stand anywhere.

    A truncated solution is judged by what it stated before the cut, which is usually nothing.

    Args:
        sampler, form, problems, params, context_limit: as in `solve_step_by_step`.
        num_samples, first_sample: likewise.
        keys: the key of each problem's prompt; by default it is made from the problem's id.

    Returns:
        All attempts at the first problem, then those at the second, and so on.
    """
    keys = keys or [key_of(problem.problem_id, "whole") for problem in problems]
    asked, prompts = [], []
    for place, (trajectory, key) in enumerate(zip(problems, keys, strict=True)):
        prompt = form.encode_whole(form.asked(trajectory, solving=True))
        if context_limit is None or len(prompt) + params.max_new_tokens <= context_limit:
            asked.append(place)
            prompts.append(Prompt(prompt, key))
    completions = complete(sampler, prompts, num_samples, params, first_sample=first_sample)
    written = dict(zip(asked, completions, strict=True))
    return [
        Attempt(trajectory, "whole", sample, failure="context_limit")
        if place not in written
        else whole_attempt(form, trajectory, written[place][i], sample=sample)
        for place, trajectory in enumerate(problems)
        for i, sample in enumerate(range(first_sample, first_sample + num_samples))
    ]


def whole_attempt(
    form: PromptFormat, trajectory: Trajectory, completion: Completion, *, sample: int
) -> Attempt:
    """Returns the judged attempt that one completion for a whole problem makes."""
    parsed = form.parse(completion.ids, completion.truncated, whole=True)
    attempt = _judged(
        Attempt(
            trajectory,
            "whole",
            sample,
            steps=(Step(parsed.action, parsed.thought),) if parsed.action else (),
            tokens=len(completion.ids),
            text=_with_tags(form, completion),
            truncated=completion.truncated,
        )
    )
    if attempt.answer is not None or attempt.correct:
        return attempt
    return replace(attempt, failure="truncated" if completion.truncated else "no_answer")


def _with_tags(form: PromptFormat, completion: Completion) -> str:
    """Returns the completion's text, with the opening tag if the prompt ends in it."""
    text = form.read(completion.ids)
    return OPEN + text if form.opens_thought and not text.lstrip().startswith(OPEN) else text


def solves_whole(args: EvaluationSettings) -> bool:
    """Returns whether validation problems are solved in one completion, not step by step."""
    return (args.targets if args.validate_by == "auto" else args.validate_by) == "whole"


def one_each(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Returns the first expert solution of each problem.

    So the number of expert solutions does not change how often a problem is solved.
    """
    first_by_problem: dict[str, Trajectory] = {}
    for trajectory in trajectories:
        first_by_problem.setdefault(trajectory.problem_id, trajectory)
    return list(first_by_problem.values())


def solve_validation(
    sampler: Sampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    args: EvaluationSettings,
    *,
    context_limit: int | None,
) -> list[Attempt]:
    """Returns one greedy attempt at each problem, made in the way that `validate_by` sets."""
    problems = one_each(problems)
    if solves_whole(args):
        longest = args.whole_max_completion_length
        params = SamplingParams(
            longest, temperature=0, stop_ids=form.stop_ids, limits=form.limits(whole=True)
        )
        return solve_whole(sampler, form, problems, params=params, context_limit=context_limit)
    return solve_step_by_step(
        sampler,
        form,
        problems,
        params=SamplingParams(
            args.max_completion_length,
            temperature=0,
            stop_ids=form.stop_ids,
            limits=form.limits(),
        ),
        max_steps=args.solve_max_steps,
        context_limit=context_limit,
    )


def accuracy(attempts: Sequence[Attempt]) -> Estimate:
    """Returns the share of problems solved; several attempts at one problem are averaged first."""
    return over_problems(
        [avg_at_k([bool(attempt.correct) for attempt in of]) for of in by_problem(attempts)]
    )


def by_problem(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """Returns the attempts at each problem, in their order in `attempts`."""
    groups: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.trajectory.problem_id, []).append(attempt)
    return list(groups.values())


def by_length(attempts: Sequence[Attempt]) -> dict[int, Estimate]:
    """Returns the accuracy for each number of steps that the expert takes."""
    lengths = sorted({len(attempt.trajectory.steps) for attempt in attempts})
    return {
        length: accuracy([a for a in attempts if len(a.trajectory.steps) == length])
        for length in lengths
    }
