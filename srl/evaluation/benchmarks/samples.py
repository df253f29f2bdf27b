"""Solutions of benchmark problems: made in chunks, told apart by their place alone, and verified.

A chunk's random numbers follow from (seed, benchmark, its problems, its first sample) and from
nothing that was solved before, so a chunk made again is the same chunk (`run.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from environments.answers import stated_answer
from environments.benchmarks import BenchmarkProblem
from rewards import RewardSum, StepContext
from rewards.calling import DEADLINE
from srl.config.settings import BenchmarkSettings
from srl.data.prompts import PromptFormat
from srl.errors import UsageError
from srl.evaluation.benchmarks.figures import GREEDY
from srl.models.loading import context_limit, prompt_format
from srl.models.tree_models import refusal
from srl.rollout.samplers import (
    Completion,
    Prompt,
    SamplingParams,
    complete,
    key_of,
    make_sampler,
)


@dataclass(frozen=True)
class Chunk:
    """Solutions that are made, verified and written together.

    Attributes:
        problems: neighbours, all of one benchmark.
        first: the number of the first solution of each, `GREEDY` or a sample's.
        count: how many solutions of each problem; 1 if greedy.
    """

    problems: tuple[BenchmarkProblem, ...]
    first: int
    count: int

    @property
    def keys(self) -> list[tuple[str, int, int]]:
        """(benchmark, number of the problem, number of the sample), in the order of the lines."""
        return [
            (problem.benchmark, problem.number, self.first + i)
            for problem in self.problems
            for i in range(self.count)
        ]

    def seed(self, seed: int) -> int:
        """What torch's generator is set to before the chunk is sampled."""
        first = self.problems[0]
        parts = [str(seed), first.benchmark, str(first.number), str(self.first)]
        parts += [problem.problem_id for problem in self.problems]
        return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8]) >> 1


@dataclass(frozen=True)
class Solution:
    """What the policy wrote to one problem, not yet verified.

    Attributes:
        problem: which.
        sample: `GREEDY`, or the number of the sample.
        text: the completion, thoughts included.
        solution: the same without them; the answer is looked for here alone.
        answer: what it states, or None.
        tokens: of the completion.
        truncated: the length limit cut it.
        failure: why there is no answer, or None.
    """

    problem: BenchmarkProblem
    sample: int
    text: str
    solution: str
    answer: str | None
    tokens: int
    truncated: bool
    failure: str | None


class Solver:
    """The policy with its prompt; chunks in, solutions out."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: BenchmarkSettings,
        samples: int,
    ) -> None:
        """Take a policy and how to ask it.

        Args:
            model: where it is to compute already.
            tokenizer: its own.
            args: prompt, sampling, lengths, budget, seed.
            samples: K, sampled solutions a problem beside the greedy one.
        """
        self.args = args
        self.samples = samples
        self.form: PromptFormat = prompt_format(
            model,
            tokenizer,
            template=args.template,
            think=args.think,
            system_prompt=None,
            whole_system_prompt=args.whole_system_prompt,
        )
        self.limit = context_limit(model)
        # Whether the solutions of a chunk hold their prompt once.
        self.shares = args.prefix_tree and refusal(model) is None
        self.sampler = make_sampler(model, pad_id=int(tokenizer.pad_token_id), settings=args)
        self.greedy = SamplingParams(
            args.whole_max_completion_length, temperature=0, stop_ids=self.form.stop_ids
        )
        self.sampled = replace(
            self.greedy,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
        )
        self._prompts: dict[str, list[int]] = {}

    def prompt(self, problem: BenchmarkProblem) -> list[int]:
        """The prompt's tokens."""
        if problem.problem not in self._prompts:
            self._prompts[problem.problem] = self.form.encode_whole(problem.problem)
        return self._prompts[problem.problem]

    def fits(self, problem: BenchmarkProblem) -> bool:
        """Whether a whole solution has room behind the prompt."""
        most = len(self.prompt(problem)) + self.args.whole_max_completion_length
        return self.limit is None or most <= self.limit

    def chunks(self, problems: Sequence[BenchmarkProblem]) -> Iterator[Chunk]:
        """All chunks of one benchmark.

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
            )
        yield from self._cut(problems, GREEDY, 1)
        most = min(self._in_budget(problem) for problem in problems if self.fits(problem))
        first = GREEDY + 1
        while first <= self.samples:
            count = min(most, self.samples + 1 - first)
            yield from self._cut(problems, first, count)
            first += count

    def _in_budget(self, problem: BenchmarkProblem) -> int:
        """How many solutions of one problem fit into the budget; one at least."""
        prompt, solution = len(self.prompt(problem)), self.args.whole_max_completion_length
        if self.shares:
            return max(1, (self.args.rollout_token_budget - prompt) // solution)
        return max(1, self.args.rollout_token_budget // (prompt + solution))

    def _cut(self, problems: Sequence[BenchmarkProblem], first: int, count: int) -> Iterator[Chunk]:
        """Neighbours together, within the budget; each as long as the longest of them."""
        chunk: list[BenchmarkProblem] = []
        for problem in problems:
            longest = max(len(self.prompt(one)) for one in [*chunk, problem])
            copies = 1 if self.shares else count
            each = count * self.args.whole_max_completion_length + copies * longest
            if chunk and (len(chunk) + 1) * each > self.args.rollout_token_budget:
                yield Chunk(tuple(chunk), first, count)
                chunk = []
            chunk.append(problem)
        if chunk:
            yield Chunk(tuple(chunk), first, count)

    def solve(self, chunk: Chunk) -> list[Solution]:
        """The solutions of a chunk, in the order of its keys."""
        params = self.greedy if chunk.first == GREEDY else self.sampled
        asked = [problem for problem in chunk.problems if self.fits(problem)]
        kind = self.args.device.type
        written: Iterator[list[Completion]] = iter(())
        if asked:
            torch.manual_seed(chunk.seed(self.args.seed))
            with torch.autocast(kind, torch.bfloat16, enabled=bool(self.args.bf16)):
                prompts = [
                    Prompt(self.prompt(one), key_of(one.benchmark, one.number)) for one in asked
                ]
                written = iter(
                    complete(self.sampler, prompts, chunk.count, params, first_sample=chunk.first)
                )
        solutions = []
        for problem in chunk.problems:
            fits = self.fits(problem)
            group = next(written) if fits else [None] * chunk.count
            for i, completion in enumerate(group):
                solutions.append(self._solution(problem, chunk.first + i, completion))
        return solutions

    def _solution(
        self, problem: BenchmarkProblem, sample: int, completion: Completion | None
    ) -> Solution:
        if completion is None:
            return Solution(problem, sample, "", "", None, 0, False, "context_limit")
        text = self.form.read(completion.ids)
        solution = self.form.parse(completion.ids, completion.truncated, whole=True).action
        answer = stated_answer(solution)
        failure = None
        if answer is None:
            failure = "truncated" if completion.truncated else "no_answer"
        return Solution(
            problem,
            sample,
            text,
            solution,
            answer,
            len(completion.ids),
            completion.truncated,
            failure,
        )


def verified(solutions: Sequence[Solution], verifier: RewardSum) -> list[dict[str, object]]:
    """The lines of samples.jsonl: each solution with its verdict, asked for in worker processes.

    `verdict` is right, wrong, no_answer, or unverified: no check said that it is right, and one was
    killed at its deadline or failed. That counts as not right; `failure` says why.
    """
    asked = [
        (place, _as_step(solution, gold))
        for place, solution in enumerate(solutions)
        if solution.answer is not None
        for gold in solution.problem.golds
    ]
    scores = verifier.score([step for _, step in asked])
    right: set[int] = set()
    failed: dict[int, str] = {}
    for (place, _), score in zip(asked, scores, strict=True):
        if score.rewards["answer"] == 1.0:
            right.add(place)
        elif why := score.failures.get("answer"):
            failed.setdefault(place, "deadline" if why == DEADLINE else why)
    lines: list[dict[str, object]] = []
    for place, solution in enumerate(solutions):
        failure = solution.failure
        if place in right:
            verdict = "right"
        elif place in failed:
            verdict, failure = "unverified", failed[place]
        else:
            verdict = "wrong" if solution.answer is not None else "no_answer"
        problem = solution.problem
        lines.append(
            {
                "benchmark": problem.benchmark,
                "number": problem.number,
                "problem_id": problem.problem_id,
                "problem": problem.problem,
                "gold": list(problem.golds),
                "sample": solution.sample,
                "completion": solution.text,
                "answer": solution.answer,
                "verdict": verdict,
                "failure": failure,
                "completion_tokens": solution.tokens,
                "truncated": solution.truncated,
            }
        )
    return lines


def _as_step(solution: Solution, gold: str) -> StepContext:
    return StepContext(
        problem=solution.problem.problem,
        previous_steps=(),
        action=solution.solution,
        thought="",
        expert_step="",
        step_index=0,
        num_steps=1,
        answer=gold,
    )
