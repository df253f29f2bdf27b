"""Decodes several completions of each prompt, token by token, with cached keys and values.

All decoders compute the same and differ in cost. `SharedDecoder` computes shared parts of prompts
once (the nested prompts of a trajectory are one prefix tree). It keeps every prompt's keys and
values once for all its completions, and writes new keys and values into place. A prompt that
continues an earlier one can be read from the earlier one's end (`KnownPrompts`). It needs a model
whose attention can be replaced (`tree_models.refusal`). `CachedDecoder` is for most other models.
It uses the cache of transformers, which repeats the prompt for every completion and is copied
whenever it grows. `fallbacks.py` has decoders for the rest, and `choice.py` chooses the decoder
that is exact for a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from srl.models.prefix_tree import PrefixTree
from srl.models.tree_attention import How, TreePlan, wide
from srl.rollout.known_prompts import KnownPrompts, Reading

# The initial room for keys and values of completions, in tokens; it is doubled when full.
_ROOM = 64
# A start that all prompts share is kept once for all of them if it has at least so many tokens.
# Worked examples are that long, a system prompt is not, so its rounding does not change.
_WORTH_SHARING = 256
# Rows that have ended are removed from the batch if at most this share of the rows is left then.
_WORTH_A_COPY = 0.75


class Decoder(Protocol):
    """Decodes g completions of each of n prompts, as rows 0 to n * g - 1 grouped by prompt."""

    def start(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        """Reads the prompts. Returns the logits [n * g, V] of the first tokens."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Appends one token [rows] to every row. Returns logits [rows, V] of the next tokens."""
        ...

    def worth_keeping(self, wanted: Tensor) -> Tensor | None:
        """Returns the rows to keep, in order, which include the wanted rows (bool [rows]).

        Returns None if removing the others saves less than the copy costs.
        """
        ...

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows, as returned by `worth_keeping`."""
        ...


def rows_worth_keeping(wanted: Tensor) -> Tensor | None:
    """Returns the indices of the wanted rows (bool [rows]); None if too few other rows leave."""
    kept = wanted.nonzero().squeeze(1)
    return kept if len(kept) <= _WORTH_A_COPY * len(wanted) else None


class CachedDecoder:
    """A decoder for models that accept a `DynamicCache`; every row has a copy of its prompt.

    Attributes:
        places: for each prompt, the places of its tokens in the flattened batch of `start`.
    """

    places: list[list[int]] | None = None

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self.model = model
        self.pad_id = pad_id

    def start(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        device = self.model.device
        longest = max(len(prompt) for prompt in prompts)
        self.places = [
            list(range((i + 1) * longest - len(prompt), (i + 1) * longest))
            for i, prompt in enumerate(prompts)
        ]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor(
            [[self.pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts],
            device=device,
        )  # [n, P], padded on the left, so that every row's next token is in the same column
        column = torch.arange(longest, device=device)
        self.mask = column >= (longest - lengths)[:, None]
        positions = (column - (longest - lengths)[:, None]).clamp(min=0)
        self.cache = DynamicCache(config=self.model.config)
        logits = self._forward(ids, positions)
        if num_samples > 1:
            self.cache.reorder_cache(
                torch.arange(len(ids), device=device).repeat_interleave(num_samples)
            )
        logits, self.mask, self.lengths = (
            tensor.repeat_interleave(num_samples, dim=0) for tensor in (logits, self.mask, lengths)
        )
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        logits = self._forward(tokens[:, None], self.lengths[:, None])
        self.lengths = self.lengths + 1
        return logits

    def worth_keeping(self, wanted: Tensor) -> Tensor | None:
        return rows_worth_keeping(wanted)

    def keep(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Returns the logits [rows, V] of each row's next token; the cache grows by `ids`."""
        return self.model(
            input_ids=ids,
            attention_mask=self.mask.long(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


class SharedDecoder:
    """A decoder for models that attend over prefix trees.

    Call it inside `attending_over_trees(model)`. Rows stay in groups of equal size g, one group per
    prompt, so that a group reads its prompt's keys in one matrix product. A row that has ended
    leaves only if the group size that the other groups need allows it.

    Args:
        known: prompts that were read before with the same weights; new prompts are added.

    Attributes:
        places: as in `CachedDecoder`; None with `known`, as known tokens are not read again.
    """

    places: list[list[int]] | None = None

    def __init__(self, model: PreTrainedModel, known: KnownPrompts | None = None) -> None:
        self.model = model
        self.known = known

    def start(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        device = self.model.device
        tree = PrefixTree.of([(prompt, ()) for prompt in prompts])
        last = [path[-1] for path in tree.paths]
        places = None if self.known is None else self.known.places(tree, but=last)
        reading = Reading(TreePlan.of(tree, device), self.known, places)
        self.places = tree.paths if self.known is None else None
        logits = self.model(
            input_ids=torch.tensor([tree.tokens], device=device)[:, reading.fresh],
            position_ids=reading.plan.positions[None, reading.fresh],
            tree=reading,
            use_cache=False,
            logits_to_keep=reading.place_of(last),
        ).logits[0]
        if self.known is not None:
            self.known.add(tree, reading.seen)
        self.memory = _Memory(tree, reading.seen, num_samples, device)
        return logits.repeat_interleave(num_samples, dim=0)

    def step(self, tokens: Tensor) -> Tensor:
        self.memory.advance()
        return self.model(
            input_ids=tokens[:, None],
            position_ids=self.memory.positions[:, None],
            tree=self.memory,
            use_cache=False,
        ).logits[:, -1]

    def worth_keeping(self, wanted: Tensor) -> Tensor | None:
        groups = wanted.view(self.memory.n, self.memory.g)
        needed = groups.sum(1)
        size = int(needed.max())
        left = needed.nonzero().squeeze(1)
        if len(left) * size > _WORTH_A_COPY * len(wanted):
            return None
        # The wanted rows of each group, and other rows that fill up the group, in their old order.
        chosen = groups[left].to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return (left[:, None] * self.memory.g + chosen[:, :size].sort(1).values).flatten()

    def keep(self, rows: Tensor) -> None:
        prompts = rows // self.memory.g
        self.memory.keep(rows, g=len(rows) // len(prompts.unique()))


class _Memory:
    """Keeps the keys and values of n prompts and n * g completions, and attends for the next token.

    The first S tokens, which are the same in all prompts, are kept once; the rest of each prompt is
    padded on the right to P tokens. So far L tokens of each completion are written. Keys are kept
    in float32 at least, in which scores are summed. Values are kept in the model's type.
    """

    def __init__(
        self,
        tree: PrefixTree,
        seen: Mapping[int, tuple[Tensor, Tensor]],
        g: int,
        device: torch.device,
    ) -> None:
        S = _same_at_start(tree.paths)
        P = max(map(len, tree.paths)) - S
        nodes = torch.tensor(
            [path[S:] + path[-1:] * (P + S - len(path)) for path in tree.paths],
            dtype=torch.long,
            device=device,
        )
        self.lengths = torch.tensor([len(path) for path in tree.paths], device=device)  # [n]
        self.n, self.g, self.written = len(tree.paths), g, 0
        self.prompts = {
            layer: (_of_prompts(keys, nodes).to(wide(keys)), _of_prompts(values, nodes))
            for layer, (keys, values) in seen.items()
        }  # [n, H_kv, P, D] each
        start = torch.tensor(tree.paths[0][:S], dtype=torch.long, device=device)
        self.start = {
            layer: (keys[:, start].to(wide(keys)), values[:, start])
            for layer, (keys, values) in seen.items()
            if S
        }  # [H_kv, S, D] each
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # [n, H_kv, g, room, D] each
        self._masks: dict[int | None, Tensor] = {}

    @property
    def positions(self) -> Tensor:
        """Returns the positions [n * g] of the tokens that are being read."""
        return (self.lengths + self.written - 1).repeat_interleave(self.g)

    def advance(self) -> None:
        """Prepares for reading one more token of every row."""
        self.written += 1
        self._masks.clear()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        n, g, L = self.n, self.g, self.written
        heads, groups = k.shape[1], q.shape[1] // k.shape[1]
        keys, values = self._write(layer, k, v)  # [n, H_kv, g, L, D]
        prompt_keys, prompt_values = self.prompts[layer]
        # Scores are as exact as in the update: rounded to bf16, they would give another policy.
        q = q.to(wide(q)).view(n, g, heads, groups, -1).transpose(1, 2)  # [n, H_kv, g, H / H_kv, D]
        scores = torch.cat(
            [q.flatten(2, 3) @ prompt_keys.mT, (q @ keys.mT).flatten(2, 3)], dim=-1
        )  # [n, H_kv, g * H / H_kv, P + L]
        if layer in self.start:
            # The rows of all prompts go through one product, so the keys are read once.
            rows = q.flatten(2, 3).transpose(0, 1)  # [H_kv, n, g * H / H_kv, D]
            first = (rows.flatten(1, 2) @ self.start[layer][0].mT).unflatten(1, rows.shape[1:3])
            scores = torch.cat([first.transpose(0, 1), scores], dim=-1)  # [..., S + P + L]
        scores = scores * how.scale
        if how.softcap is not None:
            scores = torch.tanh(scores / how.softcap) * how.softcap
        weights = (scores + self._mask(how.window, scores)).softmax(-1).to(v.dtype)
        P = prompt_keys.shape[2]
        S = weights.shape[-1] - P - L
        out = (weights[..., S + P :].unflatten(2, (g, groups)) @ values).flatten(2, 3)
        out = out + weights[..., S : S + P] @ prompt_values
        if S:
            rows = weights[..., :S].transpose(0, 1)  # [H_kv, n, g * H / H_kv, S]
            first = (rows.flatten(1, 2) @ self.start[layer][1]).unflatten(1, rows.shape[1:3])
            out = out + first.transpose(0, 1)
        return out.unflatten(2, (g, groups)).transpose(1, 2).reshape(n * g, 1, heads * groups, -1)

    def keep(self, rows: Tensor, g: int) -> None:
        """Keeps these rows, in order: g rows of every prompt that is left."""
        prompts = rows.view(-1, g)[:, 0] // self.g
        self.prompts = {layer: (k[prompts], v[prompts]) for layer, (k, v) in self.prompts.items()}
        n = len(prompts)
        for layer, pair in self.own.items():
            k, v = (
                x[:, :, :, : self.written].transpose(1, 2).flatten(0, 1)[rows].unflatten(0, (n, g))
                for x in pair
            )
            self.own[layer] = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
        self.lengths = self.lengths[prompts]
        self.n, self.g = n, g
        self._masks.clear()

    def _write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the new token's key and value [n * g, H_kv, 1, D] to the others.

        Returns all keys and values of the completions, [n, H_kv, g, L, D] each.
        """
        new = [x.view(self.n, self.g, -1, x.shape[-1]).transpose(1, 2) for x in (k.to(wide(k)), v)]
        own = self.own.get(layer)
        if own is None or own[0].shape[3] < self.written:
            room = max(_ROOM, 2 * self.written)
            grown = [x.new_empty(*x.shape[:3], room, x.shape[3]) for x in new]
            for old, larger in zip(own or (), grown, strict=False):
                larger[:, :, :, : old.shape[3]] = old
            own = self.own[layer] = grown[0], grown[1]
        for buffer, x in zip(own, new, strict=True):
            buffer[:, :, :, self.written - 1] = x
        return own[0][:, :, :, : self.written], own[1][:, :, :, : self.written]

    def _mask(self, window: int | None, scores: Tensor) -> Tensor:
        """Returns the mask [n, 1, 1, S + P + L]: minus infinity where attention is not allowed."""
        if window in self._masks:
            return self._masks[window]
        L = self.written
        P = scores.shape[-1] - L
        column = torch.arange(P + L, device=scores.device)
        hidden = (column < P) & (column >= self.lengths[:, None])
        if window is not None:
            position = torch.where(column < P, column, column - P + self.lengths[:, None])
            hidden = hidden | (self.lengths[:, None] + L - 1 - position >= window)
        mask = scores.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None, None]
        self._masks[window] = mask
        return mask


def _same_at_start(paths: Sequence[Sequence[int]]) -> int:
    """Returns how many shared first tokens to keep once; 0 if sharing saves too little."""
    same = 0
    for nodes in zip(*paths, strict=False):
        if len(set(nodes)) > 1:
            break
        same += 1
    return same if len(paths) > 1 and same >= _WORTH_SHARING else 0


def _of_prompts(x: Tensor, nodes: Tensor) -> Tensor:
    """Returns the prompts' keys or values: [H_kv, N, D] -> [n, H_kv, P, D]."""
    lines = x.index_select(1, nodes.flatten()).unflatten(1, nodes.shape)
    return lines.transpose(0, 1).contiguous()
