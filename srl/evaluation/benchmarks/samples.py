"""Makes and verifies solutions of benchmark problems, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from environments.benchmarks import BenchmarkProblem
from environments.extraction import (
    exact_match,
    flexible_extract,
    last_expression,
    strict_match,
)
from environments.few_shot import FewShot
from environments.types import Step, Trajectory
from rewards import RewardSum
from srl.config.settings import BenchmarkSettings
from srl.data.prompts import PromptFormat
from srl.errors import UsageError
from srl.evaluation.benchmarks.asking import FewShotFormat
from srl.evaluation.benchmarks.figures import GREEDY
from srl.evaluation.judging import verified
from srl.evaluation.solving import Attempt, solve_whole
from srl.models.loading import context_limit, prompt_format, stop_ids
from srl.rollout.choice import way_of
from srl.rollout.samplers import SamplingParams, key_of, make_sampler


@dataclass(frozen=True)
class Chunk:
    """A group of solutions that are made, verified and written together.

    Attributes:
        problems: neighbouring problems of one benchmark.
        first: the number of each problem's first solution: `GREEDY`, or that of a sample.
        count: how many solutions of each problem; 1 if greedy.
    """

    problems: tuple[BenchmarkProblem, ...]
    first: int
    count: int

    @property
    def benchmark(self) -> str:
        """Returns the name of the benchmark."""
        return self.problems[0].benchmark

    @property
    def asked(self) -> list[BenchmarkProblem]:
        """Returns the problem of each solution, in the order of the lines in samples.jsonl."""
        return [problem for problem in self.problems for _ in range(self.count)]

    @property
    def keys(self) -> list[tuple[str, int, int]]:
        """Returns (benchmark, problem's number, sample's number) of each line, in their order."""
        return [
            (problem.benchmark, problem.number, self.first + i)
            for problem in self.problems
            for i in range(self.count)
        ]


class Solver:
    """A policy with its prompt, which solves chunks of problems."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: BenchmarkSettings,
        samples: int,
        few_shot: FewShot | None = None,
    ) -> None:
        """Prepares the prompt and the sampler of a policy.

        Args:
            model: the policy, already on its device.
            tokenizer: the policy's tokenizer.
            args: prompt, sampling, lengths, budget, seed.
            samples: K, the number of sampled solutions of a problem, besides the greedy one.
            few_shot: worked examples before each problem; None uses only the settings' prompt.
        """
        self.args = args
        self.samples = samples
        self.few_shot = few_shot
        self.form: PromptFormat
        if few_shot is None:
            self.form = prompt_format(model, tokenizer, args)
        else:
            ends = stop_ids(model, tokenizer)
            self.form = FewShotFormat(tokenizer, few_shot, args, stop_ids=ends)
        self.limit = context_limit(model)
        # Whether the solutions of a problem in a chunk share one copy of their prompt.
        self.shares = way_of(model, share=args.prefix_tree).shared
        self.sampler = make_sampler(model, pad_id=int(tokenizer.pad_token_id), settings=args)
        self.sampled = SamplingParams.of(
            args,
            seed=args.seed,
            max_new_tokens=args.whole_max_completion_length,
            stop_ids=self.form.stop_ids,
            limits=self.form.limits(whole=True),
        )
        self.greedy = replace(self.sampled, temperature=0)
        self._prompts: dict[str, list[int]] = {}

    def prompt(self, problem: BenchmarkProblem) -> list[int]:
        """Returns the token ids of a problem's prompt."""
        if problem.problem not in self._prompts:
            self._prompts[problem.problem] = self.form.encode_whole(problem.problem)
        return self._prompts[problem.problem]

    def fits(self, problem: BenchmarkProblem) -> bool:
        """Returns whether the context has room for a whole solution after the prompt."""
        most = len(self.prompt(problem)) + self.args.whole_max_completion_length
        return self.limit is None or most <= self.limit

    def chunks(self, problems: Sequence[BenchmarkProblem]) -> Iterator[Chunk]:
        """Yields all chunks of one benchmark.

        Raises:
            UsageError: no prompt leaves room for a solution.
        """
        if not any(map(self.fits, problems)):
            shortest = min(len(self.prompt(problem)) for problem in problems)
            raise UsageError(
                f"no problem of {problems[0].benchmark} fits: the policy reads {self.limit} tokens "
                f"at most, the shortest prompt has {shortest}, and whole_max_completion_length is "
                f"{self.args.whole_max_completion_length}; set it to "
                f"{max(1, (self.limit or 0) - 2 * shortest)} or less"
                + ("" if self.few_shot is None else ", or num_fewshot lower")
            )
        yield from self._cut(problems, GREEDY, 1)
        most = min(self._in_budget(problem) for problem in problems if self.fits(problem))
        first = GREEDY + 1
        while first <= self.samples:
            count = min(most, self.samples + 1 - first)
            yield from self._cut(problems, first, count)
            first += count

    def _in_budget(self, problem: BenchmarkProblem) -> int:
        """Returns how many solutions of one problem fit into the budget; at least 1."""
        prompt, solution = len(self.prompt(problem)), self.args.whole_max_completion_length
        if self.shares:
            return max(1, (self.args.rollout_token_budget - prompt) // solution)
        return max(1, self.args.rollout_token_budget // (prompt + solution))

    def _cut(self, problems: Sequence[BenchmarkProblem], first: int, count: int) -> Iterator[Chunk]:
        """Yields chunks of neighbouring problems within the budget.

        Every prompt counts as long as the longest one of the chunk.
        """
        chunk: list[BenchmarkProblem] = []
        for problem in problems:
            longest = max(len(self.prompt(member)) for member in [*chunk, problem])
            copies = 1 if self.shares else count
            each = count * self.args.whole_max_completion_length + copies * longest
            if chunk and (len(chunk) + 1) * each > self.args.rollout_token_budget:
                yield Chunk(tuple(chunk), first, count)
                chunk = []
            chunk.append(problem)
        if chunk:
            yield Chunk(tuple(chunk), first, count)

    def solve(self, chunk: Chunk) -> list[Attempt]:
        """Returns the solutions of a chunk, in the order of its keys; not yet verified."""
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=bool(self.args.bf16)):
            return solve_whole(
                self.sampler,
                self.form,
                [
                    Trajectory(problem.problem, (), source=problem.benchmark)
                    for problem in chunk.problems
                ],
                params=self.greedy if chunk.first == GREEDY else self.sampled,
                context_limit=self.limit,
                num_samples=chunk.count,
                first_sample=chunk.first,
                keys=[
                    key_of(problem.benchmark, problem.number, problem.problem_id)
                    for problem in chunk.problems
                ],
            )


def verdicts(
    problems: Sequence[BenchmarkProblem],
    attempts: Sequence[Attempt],
    verifier: RewardSum,
    *,
    numbers: bool = False,
) -> list[dict[str, object]]:
    """Returns the lines of samples.jsonl: each solution with its verdict from worker processes.

    `verdict` is right, wrong, no_answer, or unverified. Unverified means that no check found the
    answer right, and at least one was killed at its deadline or failed. It counts as not right, and
    `failure` says why.

    A line also holds `strict_match` and `flexible_extract`, and whether they are right. If the
    answers are numbers, both are the harness's (`environments.extraction`). Otherwise the strict
    one is `answer`. The flexible one is `answer` too, or the last expression if there is no
    `answer`. The verifier checks it.

    Args:
        problems: the problem of each solution.
        attempts: the solutions.
        verifier: the reward `answer`; it checks an answer against each of a problem's golds.
        numbers: the answers of this benchmark are numbers.
    """
    guesses = [
        last_expression(_text(attempt)) if attempt.answer is None and not numbers else None
        for attempt in attempts
    ]
    pairs = [
        (place, replace(asked, trajectory=replace(attempt.trajectory, answer=gold), correct=None))
        for place, (problem, attempt, guess) in enumerate(
            zip(problems, attempts, guesses, strict=True)
        )
        for asked in [
            attempt if guess is None else replace(attempt, steps=(Step(f"\\boxed{{{guess}}}"),))
        ]
        if attempt.answer is not None or guess is not None
        for gold in problem.golds
    ]
    judged = verified([attempt for _, attempt in pairs], verifier)
    checked: dict[int, list[Attempt]] = {}
    for (place, _), attempt in zip(pairs, judged, strict=True):
        checked.setdefault(place, []).append(attempt)
    lines = []
    for place, (problem, attempt, guess) in enumerate(
        zip(problems, attempts, guesses, strict=True)
    ):
        own = checked.get(place, [])
        line = _line(problem, attempt, own if attempt.answer is not None else [])
        if numbers:
            strict, flexible = strict_match(_text(attempt)), flexible_extract(_text(attempt))
            right = [_matches(problem, strict), _matches(problem, flexible)]
        else:
            strict, flexible = attempt.answer, attempt.answer if guess is None else guess
            right = [line["verdict"] == "right", any(check.correct for check in own)]
        line |= {"strict_match": strict, "strict_right": right[0]}
        line |= {"flexible_extract": flexible, "flexible_right": right[1]}
        lines.append(line)
    return lines


def _text(attempt: Attempt) -> str:
    """Returns the text of a solution outside of its thoughts."""
    return "\n".join(step.text for step in attempt.steps)


def _matches(problem: BenchmarkProblem, answer: str | None) -> bool:
    return answer is not None and any(exact_match(answer, gold) for gold in problem.golds)


def _line(
    problem: BenchmarkProblem, attempt: Attempt, checked: Sequence[Attempt]
) -> dict[str, object]:
    """Returns one line of samples.jsonl without the extracted answers.

    Args:
        problem: the problem.
        attempt: the solution.
        checked: the attempt checked against each gold; empty if it states no answer.
    """
    verdict, failure = "wrong" if checked else "no_answer", attempt.failure
    if any(check.correct for check in checked):
        verdict = "right"
    elif failed := [check.why for check in checked if check.why]:
        verdict, failure = "unverified", failed[0]
    return {
        "benchmark": problem.benchmark,
        "number": problem.number,
        "problem_id": problem.problem_id,
        "problem": problem.problem,
        "gold": list(problem.golds),
        "sample": attempt.sample,
        "completion": attempt.text,
        "answer": attempt.answer,
        "verdict": verdict,
        "failure": failure,
        "completion_tokens": attempt.tokens,
        "truncated": attempt.truncated,
    }
