"""Records the experts that each token of a rollout went to during sampling.

A sampler in bf16 and an update in float32 do not always send a token to the same experts. With
recorded routes the update can count the differences, and follow the routes (rollout routing replay,
arXiv 2510.11370). Only decoders that know the places of prompt tokens (`places`) are recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from srl.models.experts import SparseLayer
from srl.models.replay import Routes
from srl.models.routing import seeing


class RouteRecorder:
    """Records the routes of n prompts with g completions each.

    Args:
        layers: the sparse layers; all choose the same number of experts.
        rows: the number of completions, n * g.
        length: the longest completion, in tokens.
    """

    def __init__(self, layers: Sequence[SparseLayer], rows: int, length: int) -> None:
        self._layers = layers
        self._shape = rows, length, len(layers), layers[0].top_k
        self._last: dict[int, Tensor] = {}
        self._prompts: list[Tensor] = []
        self._written: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Returns a context that records the routes of one forward."""

        def see(number: int, _logits: Tensor, _weights: Tensor, indices: Tensor) -> None:
            self._last[number] = indices

        self._last = {}
        with seeing(self._layers, see):
            yield

    def read(self, places: Sequence[Sequence[int]]) -> None:
        """Stores the prompts' routes after a forward; `places` are their tokens in its batch."""
        every = self._routes().cpu()
        self._prompts = [every[torch.tensor(at)] for at in places]

    def wrote(self, row_of: Tensor, position: int) -> None:
        """Stores the routes of one token of each of these rows, at `position` in its completion."""
        routes = self._routes()
        if self._written is None:  # stays on the device until `of` copies parts of it
            self._written = routes.new_full(self._shape, -1)
        self._written[row_of, position] = routes

    def of(self, row: int, prompt: int, length: int) -> Routes:
        """Returns the routes of a row that wrote `length` tokens."""
        if self._written is None:
            return Routes(self._prompts[prompt], torch.empty(0, *self._shape[2:]).to(torch.int16))
        return Routes(self._prompts[prompt], self._written[row, : length - 1].cpu())

    def _routes(self) -> Tensor:
        """Returns the routes [T, L, K] of the last forward."""
        ordered = [self._last[number] for number in range(len(self._layers))]
        return torch.stack(ordered, 1).to(torch.int16)
