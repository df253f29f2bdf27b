"""Makes a policy's own thoughts for an expert's steps: rationalisation (STaR, arXiv 2203.14465).

The policy reads the problem, the steps so far and the expert's next step. It is asked why this is
the next step. Its answer becomes the thought before the step if it makes the step more likely: in
the prompt of the later training, the mean log-probability of the step's tokens must be higher after
`<think>explanation</think>` than after an empty thought.

Only the step's own tokens are scored, not the thought, the tags or the end token. The score is a
mean over tokens, so that one threshold serves short and long steps. At a threshold of 0 the mean
decides as the sum does. An explanation that repeats the step makes the step likely but explains
nothing. `in_thought` measures how much of the step it repeats, and `max_in_thought` bounds that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from environments.types import Trajectory
from srl.config.parts import RowSettings
from srl.config.settings import TrainerConfig
from srl.data.explaining import (
    INSTRUCTION,
    cut_around,
    in_thought,
    question,
    with_thought,
    worked_examples,
)
from srl.data.prompts import TAG
from srl.data.rows import TOO_LONG, Rows
from srl.data.steps import StepExample
from srl.errors import UsageError
from srl.models.loading import context_limit, prompt_format
from srl.models.memory import fits_into_memory
from srl.models.scoring import completion_log_probs
from srl.models.tree_models import attending_over_trees, refusal
from srl.rollout.choice import way_of
from srl.rollout.samplers import Completion, Prompt, SamplingParams, complete, key_of, make_sampler

# At most this many explanations are made and written together. An interruption can lose them.
_EXPLANATIONS_A_CHUNK = 64


@dataclass(frozen=True)
class ThoughtSettings:
    """The settings for making and choosing thoughts.

    Attributes:
        samples: explanations sampled for each step.
        max_thought_length: the longest explanation, in tokens.
        min_lift: an explanation is kept if it raises the mean log-probability of the step's tokens
            by more than this, in nats a token.
        max_in_thought: the largest share of the step that its explanation may repeat word for
            word, from 0 to 1; 1 allows everything.
        instruction: the system prompt that asks for an explanation.
    """

    samples: int = 4
    max_thought_length: int = 96
    min_lift: float = 0.0
    max_in_thought: float = 0.5
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        for name in ("samples", "max_thought_length"):
            if not 1 <= getattr(self, name) <= 10_000:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be from 1 to 10,000")
        if not 0 <= self.min_lift <= 100:
            raise UsageError(
                f"min_lift is {self.min_lift}; give nats a token, from 0 (any rise) to 100"
            )
        if not 0 <= self.max_in_thought <= 1:
            raise UsageError(
                f"max_in_thought is {self.max_in_thought}; give a share of the step, from 0 to 1"
            )
        if not self.instruction.strip():
            raise UsageError("instruction is empty; say what the policy is to write")


@dataclass(frozen=True)
class Explanation:
    """One explanation of one step, and its effect on the step's likelihood.

    Attributes:
        text: what the policy wrote, without white space around it.
        prompt_tokens: number of tokens of the prompt that asked for it.
        tokens: number of tokens that the policy wrote, including the end token.
        truncated: the length limit cut it.
        log_prob: mean log-probability of the step's tokens with this thought before them.
        log_prob_empty: the same after an empty thought.
        in_thought: the share of the step that the explanation repeats, see `in_thought`.
        length: number of tokens of thought and step as a completion.
        thought_length: how many of these tokens belong to the thought.
        dropped_because: why the explanation is not used; None if it is used.
    """

    text: str
    prompt_tokens: int
    tokens: int
    truncated: bool
    log_prob: float
    log_prob_empty: float
    in_thought: float
    length: int
    thought_length: int
    dropped_because: str | None = None

    @property
    def lift(self) -> float:
        """Returns the rise of the step's mean log-probability, in nats per token."""
        return self.log_prob - self.log_prob_empty


@dataclass(frozen=True)
class Row:
    """A step to explain: its number among the rows, and its prompt in the later training."""

    number: int
    example: StepExample
    prompt: Sequence[int]


class ThoughtWriter:
    """Asks a policy for explanations, and scores them.

    Args:
        model: the policy, already on its device.
        tokenizer: the policy's tokenizer.
        args: the settings of the training that the thoughts are for: prompts, sampling, seed.
        settings: how thoughts are made and chosen.
        shots: worked examples in front of every prompt of that training.

    Raises:
        UsageError: `think` is false, or `targets` is whole.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: TrainerConfig,
        settings: ThoughtSettings,
        shots: Sequence[StepExample] = (),
    ) -> None:
        refuse_unthinking(args)
        self.model, self.args, self.settings = model, args, settings
        self.form = prompt_format(model, tokenizer, args, shots=shots)
        asking = RowSettings(
            template=args.template,
            think=False,
            system_prompt=settings.instruction,
            step_ends_at="blank_line",  # a small model does not stop
            prompt_date=args.prompt_date,
        )
        self.asking = prompt_format(model, tokenizer, asking, shots=worked_examples())
        self.limit = context_limit(model)
        self._pad_id = int(tokenizer.pad_token_id)
        self._sampler = make_sampler(model, pad_id=self._pad_id, settings=args)
        self._shares = way_of(model, share=args.prefix_tree).shared
        self._trees = args.prefix_tree and refusal(model) is None
        self._params = SamplingParams.of(
            args,
            seed=args.seed,
            max_new_tokens=settings.max_thought_length,
            stop_ids=self.asking.stop_ids,
            limits=self.asking.limits(),
        )

    def rows(
        self, trajectories: Sequence[Trajectory], *, most: int | None = None
    ) -> tuple[list[Row], Counter[str]]:
        """Returns the rows to explain, as in the later training, and why others are left out.

        Args:
            trajectories: the expert solutions to train on.
            most: explain at most this many rows; None is all.

        Raises:
            UsageError: no row fits the policy's context.
        """
        candidates = Rows.of(trajectories, self.form, self.args, self.limit, most=most)
        rows: list[Row] = []
        for example, prompt in zip(candidates.examples, candidates.prompts, strict=True):
            row = Row(len(rows), example, prompt)
            whole = self.form.encode_expert(example, thoughts=False)
            if not self._fits(row):
                candidates.dropped[TOO_LONG] += 1
            elif cut_around(whole, example.expert_step, self.form.read) is None:
                candidates.dropped["the tokenizer does not give the step back as it stands"] += 1
            else:
                rows.append(row)
        return rows, candidates.dropped

    def prompt(self, example: StepExample) -> list[int]:
        """Returns the token ids of the prompt that asks for an explanation."""
        so_far = [part for step in example.previous for part in (step.text, step.observation)]
        return self.asking.encode(question(example.problem, so_far, example.expert_step), ())

    def _fits(self, row: Row) -> bool:
        """Returns whether an explanation has room behind the prompt that asks for it."""
        most = len(self.prompt(row.example)) + self.settings.max_thought_length
        return self.limit is None or most <= self.limit

    def chunks(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Yields neighbouring rows that fit into `rollout_token_budget` together, at least one."""
        settings, budget = self.settings, self.args.rollout_token_budget
        most = max(1, _EXPLANATIONS_A_CHUNK // settings.samples)
        chunk: list[Row] = []
        longest = 0
        for row in rows:
            longest = max(longest, len(self.prompt(row.example)))
            prompts = longest if self._shares else longest * settings.samples
            each = settings.samples * settings.max_thought_length + prompts
            if chunk and (len(chunk) == most or (len(chunk) + 1) * each > budget):
                yield chunk
                chunk, longest = [], len(self.prompt(row.example))
            chunk.append(row)
        if chunk:
            yield chunk

    def explain(self, chunk: Sequence[Row]) -> list[list[Explanation]]:
        """Returns all explanations of each row: first those that may be used, then the others.

        Each part has the highest lift first. So the first explanation is the used one, if any is.
        """
        prompts = [
            Prompt(
                self.prompt(row.example),
                key_of("thought", row.number, row.example.problem_id, row.example.step_index),
            )
            for row in chunk
        ]
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=bool(self.args.bf16)):
            written = complete(self._sampler, prompts, self.settings.samples, self._params)
        # The scores are in float32, because a rounding error of bf16 could look like a rise.
        return [
            self._ranked(self._scored(row, len(prompt.ids), completions))
            for row, prompt, completions in zip(chunk, prompts, written, strict=True)
        ]

    def _scored(
        self, row: Row, prompt_tokens: int, completions: Sequence[Completion]
    ) -> list[Explanation]:
        texts = [
            self.asking.parse(completion.ids, completion.truncated).action
            for completion in completions
        ]
        ends = [with_thought(row.example, text) for text in ("", *texts)]
        without, *others = [self.form.encode_expert(example) for example in ends]
        step = row.example.expert_step
        empty, *values = self._step_log_probs(
            [(row.prompt, *self._cut(whole, step)) for whole in (without, *others)]
        )
        return [
            Explanation(
                text=text,
                prompt_tokens=prompt_tokens,
                tokens=len(completion.ids),
                truncated=completion.truncated,
                log_prob=value,
                log_prob_empty=empty,
                in_thought=in_thought(step, text),
                length=len(whole),
                thought_length=len(whole) - len(without),
            )
            for text, completion, value, whole in zip(
                texts, completions, values, others, strict=True
            )
        ]

    def _cut(self, whole: list[int], step: str) -> tuple[list[int], list[int]]:
        """Returns the tokens before the step and the step's own.

        If the step is not found, all tokens count as its own. A thought before the step may change
        how the step is tokenized; `rows` has checked it only behind an empty thought.
        """
        return cut_around(whole, step, self.form.read) or ([], whole)

    @torch.no_grad()
    def _step_log_probs(
        self, parts: Sequence[tuple[Sequence[int], list[int], list[int]]]
    ) -> list[float]:
        """Returns each step's mean log-probability; a part is prompt, tokens before step, step."""
        was_training = self.model.training
        self.model.eval()
        sizes = {"max_thought_length": self.settings.max_thought_length}
        advice = "a step is scored with all its explanations together, so fewer samples help too"
        try:
            with (
                fits_into_memory("scoring thoughts", self.args.device, sizes, advice),
                attending_over_trees(self.model) if self._trees else nullcontext(),
            ):
                scores = completion_log_probs(
                    self.model,
                    [([*prompt, *before], step) for prompt, before, step in parts],
                    pad_id=self._pad_id,
                    temperature=1.0,
                    device=self.args.device,
                    tree=self._trees,
                )
        finally:
            self.model.train(was_training)
        sums = scores.log_probs.cpu().double().sum(1).tolist()
        return [total / len(step) for total, (_, _, step) in zip(sums, parts, strict=True)]

    def _ranked(self, explanations: Sequence[Explanation]) -> list[Explanation]:
        """Returns them sorted; all but the valid one with the highest lift are dropped."""
        judged = [
            replace(explanation, dropped_because=self._why_dropped(explanation))
            for explanation in explanations
        ]
        judged.sort(
            key=lambda explanation: (explanation.dropped_because is not None, -explanation.lift)
        )
        return [
            replace(explanation, dropped_because="another_is_better")
            if rank and explanation.dropped_because is None
            else explanation
            for rank, explanation in enumerate(judged)
        ]

    def _why_dropped(self, explanation: Explanation) -> str | None:
        if explanation.truncated:
            return "truncated"
        if not explanation.text:
            return "empty"
        if TAG.search(explanation.text):
            return "tag"
        if explanation.length > self.args.max_completion_length:
            return "too_long"
        if 0 < self.args.think_budget < explanation.thought_length:
            return "too_long"  # the budget would cut it off
        if explanation.in_thought > self.settings.max_in_thought:
            return "repeats_the_step"
        return None if explanation.lift > self.settings.min_lift else "no_lift"


def refuse_unthinking(args: TrainerConfig) -> None:
    """Refuses settings under which a thought before a step would not be trained on.

    Raises:
        UsageError: `think` is false, or `targets` is whole.
    """
    if not args.think:
        raise UsageError(
            "think is false, so a training with these settings leaves thoughts out; set think: true"
        )
    if args.targets == "whole":
        raise UsageError(
            "targets is whole, but thoughts are written for single steps; set targets: all, "
            "literal or skip_first"
        )
