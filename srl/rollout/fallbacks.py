"""Slower decoders, for models that cannot be sampled with padded prompts and a cache of keys.

`UnpaddedDecoder` reads only prompts of one length, so nothing is padded. It passes the cache that
the model made back to the model, including the states of Mamba-like and linear-attention layers.
`UncachedDecoder` keeps no cache: it reads every row again for each token, as scoring does.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srl.models.scoring import accepted_by
from srl.rollout.decoding import rows_worth_keeping

# The names that models use for the cache in their output.
_CACHES = ("past_key_values", "cache_params")


class UnpaddedDecoder:
    """A decoder for a model with its own kind of cache; all prompts must have one length."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def start(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        ids = torch.tensor(prompts, device=self.model.device)
        output = self.model(input_ids=ids, use_cache=True, **self.last_only)
        caches = {name: output[name] for name in _CACHES if output.get(name) is not None}
        if not caches:
            raise TypeError("its forward returns no cache")
        self.name, self.cache = next(iter(caches.items()))
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(num_samples)
        if num_samples > 1:
            self.cache.reorder_cache(rows)
        return output.logits[:, -1][rows]

    def step(self, tokens: Tensor) -> Tensor:
        cache = {self.name: self.cache}
        return self.model(input_ids=tokens[:, None], use_cache=True, **cache).logits[:, -1]

    def worth_keeping(self, wanted: Tensor) -> Tensor | None:
        return rows_worth_keeping(wanted)

    def keep(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)


class UncachedDecoder:
    """A decoder for any causal model. Rows are padded on the right, which no token attends to."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self.model = model
        self.pad_id = pad_id

    def start(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        device = self.model.device
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = max(map(len, prompts))
        self.ids = torch.tensor(
            [[*prompt, *[self.pad_id] * (longest - len(prompt))] for prompt in prompts],
            device=device,
        )
        logits = self._forward()
        self.ids, self.lengths, logits = (
            tensor.repeat_interleave(num_samples, dim=0)
            for tensor in (self.ids, self.lengths, logits)
        )
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        if int(self.lengths.max()) == self.ids.shape[1]:
            self.ids = torch.cat([self.ids, self.ids.new_full((len(tokens), 1), self.pad_id)], 1)
        self.ids = self.ids.scatter(1, self.lengths[:, None], tokens[:, None])
        self.lengths = self.lengths + 1
        return self._forward()

    def worth_keeping(self, wanted: Tensor) -> Tensor | None:
        return rows_worth_keeping(wanted)

    def keep(self, rows: Tensor) -> None:
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]

    def _forward(self) -> Tensor:
        """Returns the logits [rows, V] of each row's next token."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device)
        last = self.lengths - 1
        inputs: dict[str, object] = {
            "input_ids": self.ids,
            "attention_mask": (column < self.lengths[:, None]).long(),
            "position_ids": column.expand_as(self.ids),
        }
        inputs = accepted_by(self.model.forward, inputs)
        at = last
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            # Logits of all tokens would take gigabytes, and only one token per row is used.
            inputs["logits_to_keep"] = wanted = last.unique()
            at = torch.searchsorted(wanted, last)
        logits = self.model(**inputs, use_cache=False).logits
        return logits[torch.arange(len(logits), device=logits.device), at]
