"""Solving held-out problems with a policy.

*Step by step* is what SRL trains: the policy writes one step, its own step joins the prompt with
what the environment answers to it, and so on until the environment calls the attempt finished (in
mathematics: it states an answer), it breaks the format or has used up its steps. *Whole* is one
completion for the whole solution. An unfinished problem is a wrong one; nothing is left out of a
denominator.

Intervals are 95 %, over problems: attempts at one problem are not independent.
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
        steps: what the policy wrote, with what it observed; a whole solution is one step.
        answer: what it stated or came to, or None.
        correct: the environment's verdict; None, still open, until `judging` has asked mathematics.
        failure: why it was not finished: a format failure, "no_answer", "context_limit", or None.
        tokens: tokens it wrote.
        text: all it wrote, monologues and tags included, an opening tag that the prompt already had
            too; one completion behind another.
        truncated: the length limit cut its last completion.
        why: what its environment says about the verdict, or why it could not be checked.
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
        """One line of eval.jsonl; a whole solution's lines count as its steps."""
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
    """Attempts at each problem, all side by side, the policy's own steps fed back.

    Args:
        sampler: the policy.
        form: the words around a step.
        problems: what to solve; each must have an answer to be solvable.
        params: how to choose tokens; temperature 0 is greedy.
        max_steps: give up after so many steps.
        context_limit: give up on prompts that leave no room for a completion.
        num_samples: attempts at each problem.
        first_sample: number of the first of them, for the record.
        tick: told once a round how far it is.

    Returns:
        All problems' first attempts, then their second ones, and so on.
    """
    numbers = range(first_sample, first_sample + num_samples)
    attempts = [Attempt(problem, "steps", sample) for sample in numbers for problem in problems]
    with sampler.remembering():  # the prompt of a step begins with that of the step before
        active = _take_steps(sampler, form, attempts, params, max_steps, context_limit, tick)
    for place in active:
        attempts[place] = replace(attempts[place], failure="no_answer")
    return [_judged(one) for one in attempts]


def _take_steps(
    sampler: Sampler,
    form: PromptFormat,
    attempts: list[Attempt],
    params: SamplingParams,
    max_steps: int,
    context_limit: int | None,
    tick: Tick | None,
) -> list[int]:
    """Go on with all attempts, in place, until each has ended or has `max_steps` steps; which are
    the latter."""
    active = list(range(len(attempts)))
    for round_number in range(1, max_steps + 1):
        ready, prompts = [], []  # type: list[int], list[Prompt]
        for place in active:
            one, problem = attempts[place], attempts[place].trajectory
            read = context_of(problem, one.steps)
            prompt = form.encode(form.asked(problem, solving=True), read)
            if context_limit is not None and len(prompt) + params.max_new_tokens > context_limit:
                attempts[place] = replace(one, failure="context_limit")
            else:
                ready.append(place)
                key = key_of(problem.problem_id, one.sample, round_number)
                prompts.append(Prompt(prompt, key))
        active = []
        if not ready:
            break
        if tick is not None:
            tick(f"step {round_number}, {len(ready):,} of {len(attempts):,} attempts open")
        for place, (completion,) in zip(ready, complete(sampler, prompts, 1, params), strict=True):
            attempts[place], goes_on = _with_step(form, attempts[place], completion)
            if goes_on:
                active.append(place)
    return active


def _with_step(form: PromptFormat, one: Attempt, completion: Completion) -> tuple[Attempt, bool]:
    """An attempt with one step more and what the environment says to it; whether it goes on."""
    parsed = form.parse(completion.ids, completion.truncated)
    text = _with_tags(form, completion)
    one = replace(
        one,
        failure=parsed.failure,
        tokens=one.tokens + len(completion.ids),
        text=f"{one.text}\n{text}" if one.tokens else text,
        truncated=completion.truncated,
    )
    if parsed.failure is not None:
        return one, False
    step = Step(parsed.action, parsed.thought)
    before, steps = one.steps, (*one.steps, step)
    if is_finished(one.trajectory, steps):
        return replace(one, steps=steps), False
    seen = replace(step, observation=observation_of(one.trajectory, steps))
    return replace(one, steps=(*before, seen)), True


def _judged(one: Attempt) -> Attempt:
    """An attempt with the verdict of its environment."""
    verdict = verdict_on(one.trajectory, one.steps)
    return replace(one, answer=verdict.answer, correct=verdict.correct, why=verdict.why)


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
    """Attempts at each problem in one completion each; think tags may stand anywhere.

    A truncated solution counts by what it stated before it was cut: nothing, as a rule.

    Args:
        sampler, form, problems, params, context_limit: as in `solve_step_by_step`.
        num_samples, first_sample: likewise.
        keys: of each problem's prompt; by default they follow from the problem's id.

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
    """What one completion for a whole problem comes to."""
    parsed = form.parse(completion.ids, completion.truncated, whole=True)
    one = _judged(
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
    if one.answer is not None or one.correct:
        return one
    return replace(one, failure="truncated" if completion.truncated else "no_answer")


def _with_tags(form: PromptFormat, completion: Completion) -> str:
    """What was written, with its opening tag where that stands at the end of the prompt."""
    text = form.read(completion.ids)
    return OPEN + text if form.opens_thought and not text.lstrip().startswith(OPEN) else text


def solves_whole(args: EvaluationSettings) -> bool:
    """Whether validation problems are solved in one completion, rather than step by step."""
    return (args.targets if args.validate_by == "auto" else args.validate_by) == "whole"


def one_each(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The first expert solution of each problem: a problem is solved as often, however many it
    has."""
    found: dict[str, Trajectory] = {}
    for trajectory in trajectories:
        found.setdefault(trajectory.problem_id, trajectory)
    return list(found.values())


def solve_validation(
    sampler: Sampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    args: EvaluationSettings,
    *,
    context_limit: int | None,
) -> list[Attempt]:
    """One greedy attempt at each problem, in the way that `validate_by` wants."""
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
    """The share of problems solved; with several attempts at one, its mean over them."""
    return over_problems(
        [avg_at_k([bool(one.correct) for one in of]) for of in by_problem(attempts)]
    )


def by_problem(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """The attempts at each problem, in the order in which they were made."""
    found: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        found.setdefault(attempt.trajectory.problem_id, []).append(attempt)
    return list(found.values())


def by_length(attempts: Sequence[Attempt]) -> dict[int, Estimate]:
    """Accuracy by how many steps the expert takes."""
    lengths = sorted({len(attempt.trajectory.steps) for attempt in attempts})
    return {
        length: accuracy([a for a in attempts if len(a.trajectory.steps) == length])
        for length in lengths
    }
