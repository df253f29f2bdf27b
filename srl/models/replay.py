"""Compares the routes of the sampler with those of the update, and can make the update follow them.

A followed route determines the chosen experts. The weights of these experts come from the update's
own probabilities, so the router still learns (rollout routing replay, arXiv 2510.11370).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from srl.models.experts import SparseLayer
from srl.models.prefix_tree import PrefixTree, Row
from srl.models.routing import weighed


class Routes(NamedTuple):
    """The experts chosen in L sparse layers, K for each token; int16 on the CPU.

    Attributes:
        prompt: [P, L, K]; rollouts of one prompt share it.
        written: [C - 1, L, K] for a completion of C tokens; the model never read the last token.
    """

    prompt: Tensor
    written: Tensor


@dataclass
class Disagreement:
    """Counts of tokens for which the update would have chosen other experts.

    Attributes:
        differ: [L], the number of tokens whose sets of experts differ; on the model's device.
        compared: the number of tokens with a recorded route.
    """

    differ: Tensor
    compared: int


def laid_out(rows: Sequence[Row], routes: Sequence[Routes | None], *, tree: bool) -> Tensor | None:
    """Arranges routes in the token order of a flattened micro-batch.

    Args:
        rows: the B rows of the micro-batch.
        routes: the routes of each row, or None.
        tree: True if the batch is one line of the rows' tree, False if the rows are padded to the
            longest.

    Returns:
        [T, L, K], -1 where no route is known; None if no row has routes.
    """
    shape = next(
        (row_routes.prompt.shape[1:] for row_routes in routes if row_routes is not None), None
    )
    if shape is None:
        return None
    if tree:
        paths = PrefixTree.of(rows)
        length, places = len(paths), paths.paths
    else:
        longest = max(len(prompt) + len(written) for prompt, written in rows)
        length, places = (
            longest * len(rows),
            [
                list(range(b * longest, b * longest + len(prompt) + len(written)))
                for b, (prompt, written) in enumerate(rows)
            ],
        )
    token_routes = torch.full((length, *shape), -1, dtype=torch.int16)
    # Backwards, so that where rows share a token the route of the first row remains.
    for at, row_routes in zip(reversed(places), reversed(routes), strict=True):
        if row_routes is not None:
            known = torch.cat([row_routes.prompt, row_routes.written])
            token_routes[torch.tensor(at[: len(known)])] = known
    return token_routes


@contextmanager
def following(
    layers: Sequence[SparseLayer], routes: Tensor, rules: Sequence[bool] | None
) -> Iterator[Disagreement]:
    """Compares forwards inside this context with `routes`; with `rules`, they follow the routes.

    Run the backward pass inside too, because gradient checkpointing runs the forward again.

    Args:
        layers: the sparse layers of the model.
        routes: [T, L, K] of the flattened batch, -1 for unknown; on the model's device.
        rules: for each layer, whether the weights of a token's experts sum to 1 (`sums_to_one`).
            With None, routes are only compared.
    """
    known = routes[:, 0, 0] >= 0
    result = Disagreement(torch.zeros(len(layers), device=routes.device), int(known.sum()))
    compared = set()

    def look(number: int, output: object) -> tuple[Tensor, ...] | None:
        logits, weights, own = cast(tuple[Tensor, Tensor, Tensor], output)
        if logits.shape[0] != routes.shape[0]:
            raise RuntimeError(
                f"router {number} read {logits.shape[0]} tokens, {routes.shape[0]} were recorded"
            )
        recorded = routes[:, number].long()
        if number not in compared:  # only once: a backward pass may run the forward again
            compared.add(number)
            other = (recorded.sort(-1).values != own.sort(-1).values).any(-1)
            result.differ[number] = (other & known).sum()
        if rules is None:
            return None
        chosen = torch.where(known[:, None], recorded, own)
        probabilities = logits.float().softmax(-1)
        return logits, weighed(probabilities, chosen, rules[number]).to(weights.dtype), chosen

    def hooked(number: int, router: nn.Module):  # type: ignore[no-untyped-def]
        return router.register_forward_hook(lambda _m, _a, output: look(number, output))

    hooks = [hooked(number, layer.router) for number, layer in enumerate(layers)]
    try:
        yield result
    finally:
        for hook in hooks:
            hook.remove()
