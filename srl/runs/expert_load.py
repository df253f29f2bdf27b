"""Computes how evenly a sparse policy's tokens were spread over its experts, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

# A layer has collapsed if its top_k busiest experts get at least this share of what it routes,
# although it has more than twice as many experts.
_COLLAPSED = 0.9


def load_figures(counts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Returns figures of how evenly tokens were spread over experts.

    Args:
        counts: for each layer, how many tokens went to each expert.

    Returns:
        `router/violation`, the mean over layers of (max - mean) / mean, and `max_router_violation`,
        the largest; `router/cv`, the mean coefficient of variation; `router/entropy`, the mean
        entropy of the load divided by the entropy of an even load; `router/idle`, the share of
        experts without a token.
    """
    violations, variations, entropies, idle, experts = [], [], [], 0, 0
    for layer in counts:
        total, E = sum(layer), len(layer)
        mean = total / E
        even = math.log(E) if E > 1 else 1.0
        violations.append(max(layer) / mean - 1)
        variations.append(math.sqrt(sum((x - mean) ** 2 for x in layer) / E) / mean)
        entropies.append(-sum(x / total * math.log(x / total) for x in layer if x) / even)
        idle += layer.count(0)
        experts += E
    L = len(counts)
    return {
        "router/violation": sum(violations) / L,
        "max_router_violation": max(violations),
        "router/cv": sum(variations) / L,
        "router/entropy": sum(entropies) / L,
        "router/idle": idle / experts,
    }


def is_collapsed(counts: Sequence[int], top_k: int) -> bool:
    """Returns whether a layer has collapsed: its `top_k` busiest experts get 90 % or more.

    A layer with at most twice as many experts never counts as collapsed.
    """
    busiest = sum(sorted(counts)[-top_k:])
    return len(counts) > 2 * top_k and busiest >= _COLLAPSED * sum(counts)


Layers = Sequence[Sequence[int]]
"""For each sparse layer, how many tokens went to each of its experts."""


def is_load(value: object) -> bool:
    """Returns whether a value of experts.jsonl is a valid `Layers`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(layer, list)
            and bool(layer)
            and all(type(count) is int and 0 <= count < 2**63 for count in layer)
            for layer in value
        )
    )


def added(loads: Sequence[Layers]) -> list[list[int]]:
    """Returns the sum of the loads of several steps, which must have the same shape."""
    return [
        [sum(counts) for counts in zip(*layers, strict=True)] for layers in zip(*loads, strict=True)
    ]
