"""Completions from the current policy, with `transformers` models and nothing else.

A prompt is prefilled once for all its completions, and rows that have ended leave the batch, so a
step costs about what its longest completions cost. The sampling parameters are those passed in and
no others: `model.generate` would inherit top_p, top_k and a repetition penalty from the model's own
`generation_config`, and sampling would silently be off-policy.

Random numbers come from torch's global generator: it is what a checkpoint saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# Rows that have ended are taken out of the batch once so large a share has ended: every time costs
# a copy of the cache.
_COMPACT_AT = 0.25


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: the longest completion, in tokens.
        temperature: 0 is greedy decoding.
        top_p: 1.0 is off.
        top_k: 0 is off.
        min_p: None is off.
        stop_ids: every token that ends a completion; the token stays in the completion.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    stop_ids: frozenset[int] = frozenset()

    def warpers(self) -> LogitsProcessorList:
        """The library's logits processors for these parameters; empty for greedy decoding."""
        warpers = LogitsProcessorList()
        if self.temperature == 0:
            return warpers
        if self.temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            warpers.append(TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            warpers.append(MinPLogitsWarper(self.min_p))
        return warpers


@dataclass(frozen=True)
class Completion:
    """What the policy wrote.

    Attributes:
        ids: the tokens, the one that ended it included.
        truncated: True if the length limit ended it.
    """

    ids: list[int]
    truncated: bool


OnReady = Callable[[Mapping[int, list[Completion]]], None]
"""Told some completions: index of the prompt -> all of its completions."""


class Sampler(Protocol):
    """A generation back end."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        params: SamplingParams,
        on_ready: OnReady | None = None,
    ) -> list[list[Completion]]:
        """`num_samples` completions for each prompt, in the order of the prompts.

        `on_ready` is told every prompt's completions once, those that are ready together in one
        call, so that they can be scored beside the generation of the others.
        """
        ...


class LocalSampler:
    """Samples from a model in this process.

    Args:
        model: a causal language model that takes a `DynamicCache`.
        pad_id: any token id; padding is masked out.
        token_budget: prompts are sampled together while their completions' prompt and completion
            tokens, at full length, stay within it. Bounds the memory of the cache.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int, token_budget: int) -> None:
        self.model = model
        self.pad_id = pad_id
        self.token_budget = token_budget

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        params: SamplingParams,
        on_ready: OnReady | None = None,
    ) -> list[list[Completion]]:
        # Dropout off, and gradient checkpointing out of the way of the cache.
        was_training = self.model.training
        self.model.eval()
        try:
            done: dict[int, list[Completion]] = {}
            for chunk in _chunks(prompts, num_samples, params.max_new_tokens, self.token_budget):
                rows = self._sample([prompts[i] for i in chunk], num_samples, params)
                for place, index in enumerate(chunk):
                    done[index] = rows[place * num_samples : (place + 1) * num_samples]
                if on_ready is not None:
                    on_ready({index: done[index] for index in chunk})
        finally:
            self.model.train(was_training)
        return [done[index] for index in range(len(prompts))]

    def _sample(
        self, prompts: list[Sequence[int]], num_samples: int, params: SamplingParams
    ) -> list[Completion]:
        """All completions of prompts that fit into memory together."""
        device = self.model.device
        longest = max(len(prompt) for prompt in prompts)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor(
            [[self.pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts],
            device=device,
        )  # [B, P], padded on the left: every row's next token is in the same column
        column = torch.arange(longest, device=device)
        mask = column >= (longest - lengths)[:, None]
        positions = (column - (longest - lengths)[:, None]).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        logits = self._forward(ids, mask, positions, cache)

        if num_samples > 1:
            cache.batch_repeat_interleave(num_samples)
            logits, mask, lengths = (
                tensor.repeat_interleave(num_samples, dim=0) for tensor in (logits, mask, lengths)
            )
        stop = torch.tensor(sorted(params.stop_ids), device=device)
        warpers = params.warpers()
        # No processor in use looks at the tokens so far.
        no_ids = torch.empty(0, dtype=torch.long, device=device)
        written: list[list[int]] = [[] for _ in range(len(prompts) * num_samples)]
        row_of = torch.arange(len(written), device=device)  # [rows in the batch] -> completion
        ended = torch.zeros_like(row_of, dtype=torch.bool)
        for length in range(1, params.max_new_tokens + 1):
            scores = warpers(no_ids, logits.float())
            if params.temperature == 0:
                token = scores.argmax(-1)
            else:
                token = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
            for row, value, over in zip(
                row_of.tolist(), token.tolist(), ended.tolist(), strict=True
            ):
                if not over:
                    written[row].append(value)
            ended = ended | torch.isin(token, stop)
            if length == params.max_new_tokens or bool(ended.all()):
                break
            if ended.float().mean() >= _COMPACT_AT:
                keep = (~ended).nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                token, mask, lengths, row_of, ended = (
                    tensor[keep] for tensor in (token, mask, lengths, row_of, ended)
                )
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self._forward(token[:, None], mask, lengths[:, None], cache)
            lengths = lengths + 1
        return [Completion(row, row[-1] not in params.stop_ids) for row in written]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Logits [B, V] of each row's next token; `cache` grows by `ids`."""
        return self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


def _chunks(
    prompts: Sequence[Sequence[int]], num_samples: int, max_new_tokens: int, token_budget: int
) -> Iterator[list[int]]:
    """Indices of prompts to sample together: of like length, within the budget, one at least."""
    chunk: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        # The first one is the longest: the others are padded to it.
        longest = len(prompts[chunk[0] if chunk else index])
        if chunk and (len(chunk) + 1) * num_samples * (longest + max_new_tokens) > token_budget:
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk
