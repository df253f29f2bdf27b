"""Token after token for several completions of each prompt: what a decoder keeps between steps.

Decoders do the same and differ in what they cost. `SharedDecoder` computes what prompts share
once (the nested prompts of a trajectory are one prefix tree), keeps every prompt's keys and values
once for all its completions, and writes new ones into place. Prompts that go on where earlier ones
ended can be read from there on (`KnownPrompts`). It needs a model whose attention can
be replaced (`tree_models.refusal`). `CachedDecoder` is for most others: transformers' own cache,
which repeats the prompt for every completion and is copied whenever it grows. What remains is in
`fallbacks.py`, and `choice.py` finds which of them a model is sampled exactly by.
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

# The first room for keys and values of completions, in tokens; doubled when it is full.
_ROOM = 64
# Tokens that all prompts must begin with to be kept once for all of them: worked examples are, a
# system prompt is not, so that rounding there stays what it was.
_WORTH_SHARING = 256
# Rows that have ended are taken out of the batch when no more than this share would be left.
_WORTH_A_COPY = 0.75


class Decoder(Protocol):
    """Completions of n prompts, g each, as rows 0 to n * g - 1: a prompt's rows are neighbours."""

    def start(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        """Read the prompts; logits [n * g, V] of the first tokens."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token [rows] to every row; logits [rows, V] of the next."""
        ...

    def worth_keeping(self, wanted: Tensor) -> Tensor | None:
        """Rows to go on with so that the wanted ones (bool [rows]) are among them, in order.

        None where that saves too little to pay for the copy.
        """
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, as given by `worth_keeping`."""
        ...


def rows_worth_keeping(wanted: Tensor) -> Tensor | None:
    """The wanted rows (bool [rows]), where enough of the others leave to pay for a copy."""
    kept = wanted.nonzero().squeeze(1)
    return kept if len(kept) <= _WORTH_A_COPY * len(wanted) else None


class CachedDecoder:
    """Any model that takes a `DynamicCache`; every row has its own copy of its prompt.

    Attributes:
        places: of each prompt where its tokens stood in the flattened batch that `start` read.
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
        )  # [n, P], padded on the left: every row's next token is in the same column
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
        """Logits [rows, V] of each row's next token; the cache grows by `ids`."""
        return self.model(
            input_ids=ids,
            attention_mask=self.mask.long(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


class SharedDecoder:
    """A model that attends over prefix trees. Call it inside `attending_over_trees(model)`.

    Rows stay in groups of equal size g, one group a prompt, so that a group reads its prompt's keys
    in one matrix product: rows that have ended leave when their group's others do not need the
    place.

    Args:
        known: prompts that were read before under the same weights; these are added.

    Attributes:
        places: as of `CachedDecoder`; None where prompts were known and not read.
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
        # Of each group the wanted rows, and others to fill it up, in their old order.
        chosen = groups[left].to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return (left[:, None] * self.memory.g + chosen[:, :size].sort(1).values).flatten()

    def keep(self, rows: Tensor) -> None:
        prompts = rows // self.memory.g
        self.memory.keep(rows, g=len(rows) // len(prompts.unique()))


class _Memory:
    """Keys and values of n prompts and of their n * g completions; attention of one more token.

    The first S tokens of all prompts, where they are the same in all, are kept once; the rest of a
    prompt is padded on the right to P tokens. Of the completions, L tokens are written so far.
    Keys are kept in float32 at least, which scores are summed in; values in the model's type.
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
        """[n * g] of the token that is being read."""
        return (self.lengths + self.written - 1).repeat_interleave(self.g)

    def advance(self) -> None:
        """One more token of every row will be read."""
        self.written += 1
        self._masks.clear()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        n, g, L = self.n, self.g, self.written
        heads, groups = k.shape[1], q.shape[1] // k.shape[1]
        keys, values = self._write(layer, k, v)  # [n, H_kv, g, L, D]
        prompt_keys, prompt_values = self.prompts[layer]
        # Scores as exact as in the update: rounded to bf16 they would be another policy's.
        q = q.to(wide(q)).view(n, g, heads, groups, -1).transpose(1, 2)  # [n, H_kv, g, H / H_kv, D]
        scores = torch.cat(
            [q.flatten(2, 3) @ prompt_keys.mT, (q @ keys.mT).flatten(2, 3)], dim=-1
        )  # [n, H_kv, g * H / H_kv, P + L]
        if layer in self.start:
            # All prompts' rows in one product: the keys are read once.
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
        """Go on with these rows, g of every prompt that is left, in order."""
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
        """Put the new token's key and value [n * g, H_kv, 1, D] behind the others."""
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
        """[n, 1, 1, S + P + L], minus infinity at what may not be seen."""
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
    """How many tokens at the start of all paths to keep once; 0 where that is not worth it."""
    same = 0
    for nodes in zip(*paths, strict=False):
        if len(set(nodes)) > 1:
            break
        same += 1
    return same if len(paths) > 1 and same >= _WORTH_SHARING else 0


def _of_prompts(x: Tensor, nodes: Tensor) -> Tensor:
    """[H_kv, N, D] -> [n, H_kv, P, D]."""
    lines = x.index_select(1, nodes.flatten()).unflatten(1, nodes.shape)
    return lines.transpose(0, 1).contiguous()
