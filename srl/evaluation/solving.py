"""Solving held-out problems with a policy.

*Step by step* is what SRL trains: the policy writes one step, its own step joins the prompt, and so
on until it states an answer, breaks the format or has used up its steps. *Whole* is one completion
for the whole solution. An unanswered problem is a wrong one; nothing is left out of a denominator.

Intervals are 95 %, over problems: attempts at one problem are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from environments.answers import same_answer, stated_answer
from environments.types import Trajectory
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
        steps: what the policy wrote, without its monologues.
        text: all it wrote, monologues and tags included, an opening tag that the prompt already had
            too; one completion behind another.
        answer: what it stated, or None.
        correct: the answer is the expert's; by text and exact numbers, until `judging` has looked.
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
    text: str = ""

    def to_json(self) -> dict[str, object]:
        """One line of eval.jsonl."""
        return {
            "problem_id": self.trajectory.problem_id,
            "source": self.trajectory.source,
            "num_steps": len(self.trajectory.steps),
            "mode": self.mode,
            "sample": self.sample,
            "steps": list(self.steps),
            "text": self.text,
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
    sample: int
    steps: tuple[str, ...] = ()
    answer: str | None = None
    failure: str | None = None
    tokens: int = 0
    texts: list[str] = field(default_factory=list)


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
    states = [_State(trajectory, sample) for sample in numbers for trajectory in problems]
    active = list(states)
    for round_number in range(1, max_steps + 1):
        ready, prompts = [], []  # type: list[_State], list[Prompt]
        for state in active:
            prompt = form.encode(state.trajectory.problem, state.steps)
            if context_limit is not None and len(prompt) + params.max_new_tokens > context_limit:
                state.failure = "context_limit"
            else:
                ready.append(state)
                key = key_of(state.trajectory.problem_id, state.sample, round_number)
                prompts.append(Prompt(prompt, key))
        if not ready:
            break
        if tick is not None:
            tick(f"step {round_number}, {len(ready):,} of {len(states):,} attempts open")
        active = []
        for state, completions in zip(ready, complete(sampler, prompts, 1, params), strict=True):
            completion = completions[0]
            parsed = form.parse(completion.ids, completion.truncated)
            state.tokens += len(completion.ids)
            state.texts.append(_with_tags(form, completion))
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
            sample=state.sample,
            steps=state.steps,
            answer=state.answer,
            correct=same_answer(state.answer, state.trajectory.answer),
            failure=state.failure,
            tokens=state.tokens,
            text="\n".join(state.texts),
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
            prompts.append(Prompt(prompt, key_of(trajectory.problem_id, "whole")))
            asked.append(trajectory)
    written = complete(sampler, prompts, num_samples, params, first_sample=first_sample)
    for trajectory, completions in zip(asked, written, strict=True):
        attempts += [
            whole_attempt(form, trajectory, completion, sample=first_sample + number)
            for number, completion in enumerate(completions)
        ]
    return attempts


def whole_attempt(
    form: PromptFormat, trajectory: Trajectory, completion: Completion, *, sample: int
) -> Attempt:
    """What one completion for a whole problem comes to."""
    parsed = form.parse(completion.ids, completion.truncated, whole=True)
    answer = stated_answer(parsed.action)
    failure = None
    if answer is None:
        failure = "truncated" if completion.truncated else "no_answer"
    return Attempt(
        trajectory=trajectory,
        mode="whole",
        sample=sample,
        steps=tuple(line for line in parsed.action.splitlines() if line.strip()),
        answer=answer,
        correct=same_answer(answer, trajectory.answer),
        failure=failure,
        tokens=len(completion.ids),
        text=_with_tags(form, completion),
    )


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
        params = SamplingParams(longest, temperature=0, stop_ids=form.stop_ids)
        return solve_whole(sampler, form, problems, params=params, context_limit=context_limit)
    return solve_step_by_step(
        sampler,
        form,
        problems,
        params=SamplingParams(args.max_completion_length, temperature=0, stop_ids=form.stop_ids),
        max_steps=args.solve_max_steps,
        context_limit=context_limit,
    )


def accuracy(attempts: Sequence[Attempt]) -> Estimate:
    """The share of problems solved; with several attempts at one, its mean over them."""
    return over_problems([avg_at_k([one.correct for one in of]) for of in by_problem(attempts)])


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
