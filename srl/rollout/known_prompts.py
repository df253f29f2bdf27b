"""Reads prompts, and reuses the keys and values of earlier prompts.

A policy that solves a problem step by step gets a new prompt after every step, which is only a few
tokens longer. Without reuse, most tokens would be read again at every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from srl.models.prefix_tree import PrefixTree
from srl.models.tree_attention import How, TreePlan

_ROOT, _NEW = -1, -2  # in place of a known token's number


class KnownPrompts:
    """Keys and values of earlier prompts, for later prompts with the same beginning.

    They are valid as long as the policy's weights do not change.

    Args:
        room: the most tokens to keep; tokens beyond it are read again.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        # (number of the known token before it, or _ROOT; token id) -> number of the known token.
        self._children: dict[tuple[int, int], int] = {}
        # Layer -> keys and values [H_kv, room of at least len(self), D] of the known tokens.
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._children)

    def places(self, tree: PrefixTree, *, but: Sequence[int] = ()) -> list[int]:
        """Returns each tree node's number as a known token, or a negative number.

        The nodes in `but` get a negative number: their logits are needed, so they are read again.
        """
        places: list[int] = []
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            before = places[parent] if parent >= 0 else _ROOT
            places.append(self._children.get((before, token), _NEW) if before != _NEW else _NEW)
        for node in but:
            places[node] = _NEW
        return places

    def read(self, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a layer's keys and values [H_kv, n, D] of known tokens [n]."""
        keys, values = self._kept[layer]
        return keys[:, places], values[:, places]

    def add(self, tree: PrefixTree, seen: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Adds a tree's new tokens, as far as there is room; `seen` is as in `Reading`."""
        first, new = len(self), []
        places: list[int] = []
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            key = (places[parent] if parent >= 0 else _ROOT, token)
            place = _NEW if key[0] == _NEW else self._children.get(key, _NEW)
            if place == _NEW and key[0] != _NEW and len(self) < self.room:
                place = self._children[key] = len(self)
                new.append(node)
            places.append(place)
        if not new:
            return
        for layer, pair in seen.items():
            kept = self._kept.get(layer)
            if kept is None or kept[0].shape[1] < len(self):
                size = min(self.room, 2 * len(self))
                larger = [x.new_empty(x.shape[0], size, x.shape[2]) for x in pair]
                for old, buffer in zip(kept or (), larger, strict=False):
                    buffer[:, :first] = old[:, :first]
                kept = self._kept[layer] = larger[0], larger[1]
            for buffer, x in zip(kept, pair, strict=True):
                buffer[:, first : len(self)] = x[:, new]


class Reading:
    """Attention over the prompts' tree that keeps every layer's keys and values.

    Only the `fresh` nodes [n] go through the model; keys and values of the others are known.
    """

    def __init__(
        self, plan: TreePlan, known: KnownPrompts | None, places: Sequence[int] | None
    ) -> None:
        self.plan = plan
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}  # [H_kv, N, D] each
        device = plan.positions.device
        self.known = known if places is not None and max(places) >= 0 else None
        where = torch.tensor(places if self.known is not None else [_NEW] * len(plan.positions))
        self.fresh = (where < 0).nonzero().squeeze(1).to(device)
        self.old = (where >= 0).nonzero().squeeze(1).to(device)
        self.places = where[where >= 0].to(device)

    def place_of(self, nodes: Sequence[int]) -> Tensor:
        """Returns the places of these nodes among the fresh nodes."""
        return torch.searchsorted(self.fresh, torch.tensor(nodes, device=self.fresh.device))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        """Returns the attention output [1, n, H, D] of the fresh nodes, from [1, H, n, D] each."""
        if self.known is None:
            self.seen[layer] = k[0], v[0]
            return self.plan.attend(layer, q, k, v, how)
        # Queries of known nodes are zeros. Their attention costs little compared with the layers.
        q, k, v = (self._of_all(x) for x in (q, k, v))
        for x, old in zip((k, v), self.known.read(layer, self.places), strict=True):
            x[0, :, self.old] = old
        self.seen[layer] = k[0], v[0]
        return self.plan.attend(layer, q, k, v, how)[:, self.fresh]

    def _of_all(self, x: Tensor) -> Tensor:
        """Returns [1, H, N, D] of all nodes from [1, H, n, D] of the fresh nodes; others are 0."""
        out = x.new_zeros(*x.shape[:2], len(self.plan.positions), x.shape[3])
        return out.index_copy(2, self.fresh, x)
