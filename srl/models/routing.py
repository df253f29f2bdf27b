"""Watches which experts the routers of a sparse model choose, and steers the choice by a bias.

The balancing bias of DeepSeek-V3 (arXiv 2408.15664) is added to the probabilities when experts are
chosen. It is not part of the experts' weights. Families without a bias of their own get it by a
hook on each router. This bias is saved beside the weights, in `BIAS_FILE`, because a policy without
its bias chooses other experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srl.errors import UsageError
from srl.models.experts import SparseLayer, sparse_layers
from srl.models.prefix_tree import PrefixTree, Row

# The file beside the weights of a policy whose routers got a bias here.
BIAS_FILE = "router_bias.safetensors"
# The name of the bias that is added here, and of the bias of families that have their own.
BIAS, _OWN_BIAS = "selection_bias", "e_score_correction_bias"

Part = tuple[Sequence[Row], bool]
"""The rows of a micro-batch, and whether they go through the model as a tree."""


class LayerLoad(NamedTuple):
    """The load of one layer's router, over the tokens that count.

    Attributes:
        counts: [E] float32, the number of tokens that went to each expert.
        probability: [E] float32, the sum of the tokens' softmax probabilities, with gradient; None
            unless requested.
        z: scalar, the sum of the tokens' squared log-sum-exps, with gradient; None unless
            requested.
    """

    counts: Tensor
    probability: Tensor | None
    z: Tensor | None


@dataclass
class Watch:
    """The routing of one forward.

    Attributes:
        loads: the load of each layer in order, filled when the `watching` context ends.
    """

    loads: list[LayerLoad] = field(default_factory=list)


@contextmanager
def watching(
    layers: Sequence[SparseLayer],
    counted: Tensor,
    *,
    probability: bool = False,
    z: bool = False,
) -> Iterator[Watch]:
    """Watches the routers during one forward inside this context.

    Run the backward pass outside, so that recomputation is not watched. Inside, the routers'
    results are only stored; the loads are computed when the context ends. Under gradient
    checkpointing a layer must do the same computation when it runs again.

    Args:
        layers: the sparse layers of the model.
        counted: [T] bool for the T tokens of the flattened batch, padding included.
        probability: also sum the probabilities.
        z: also sum the squared log-sum-exps.

    Raises:
        RuntimeError: the forward did not go through every router exactly once, with T tokens.
    """
    watch = Watch()
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def see(number: int, logits: Tensor, _weights: Tensor, indices: Tensor) -> None:
        if logits.shape[0] != counted.shape[0] or number in seen:
            raise RuntimeError(
                f"router {number} read {logits.shape[0]} tokens, {counted.shape[0]} were expected"
            )
        seen[number] = (logits if probability or z else logits.detach()), indices

    with seeing(layers, see):
        yield watch
    if len(seen) != len(layers):
        raise RuntimeError(f"{len(seen)} of {len(layers)} routers were used")
    weight = counted.float()
    for number in range(len(layers)):
        logits, indices = seen.pop(number)
        watch.loads.append(
            LayerLoad(
                counts=_counts(logits.shape[1], indices, weight),
                probability=_probability(logits, weight) if probability else None,
                z=_z(logits, weight) if z else None,
            )
        )


@contextmanager
def seeing(
    layers: Sequence[SparseLayer], see: Callable[[int, Tensor, Tensor, Tensor], None]
) -> Iterator[None]:
    """Calls `see` inside this context with the result of each router: (index of the layer in
    `layers`, logits [T, E], weights [T, k], indices [T, k])."""

    def on_output(number: int, output: object) -> None:
        see(number, *cast(tuple[Tensor, Tensor, Tensor], output))

    hooks = [
        layer.router.register_forward_hook(
            lambda _m, _a, output, number=number: on_output(number, output)
        )
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# The functions below take logits [T, E], indices [T, k] and weight [T]: 1 for a token that counts,
# else 0.


def _counts(experts: int, indices: Tensor, weight: Tensor) -> Tensor:
    counts = torch.zeros(experts, device=weight.device)
    return counts.scatter_add_(0, indices.reshape(-1), weight.repeat_interleave(indices.shape[1]))


def _probability(logits: Tensor, weight: Tensor) -> Tensor:
    return (logits.float().softmax(-1) * weight[:, None]).sum(0)


def _z(logits: Tensor, weight: Tensor) -> Tensor:
    return (logits.float().logsumexp(-1).square() * weight).sum()


def token_places(parts: Sequence[Part]) -> list[tuple[int, list[list[int | None]]]]:
    """Returns the places of a step's tokens, without tokens of prefixes that earlier rows had.

    Args:
        parts: the step's micro-batches. Each is one line of its tree's nodes, or its rows padded to
            the longest row (`srl/models/scoring.py`).

    Returns:
        For each micro-batch: T, the number of tokens of its flattened batch; and for each of its
        rows, the place of each token in that batch. The place is None if an earlier row has the
        same token after the same prefix.
    """
    paths = iter(PrefixTree.of([row for rows, _ in parts for row in rows]).paths)
    seen: set[int] = set()
    batches = []
    for rows, tree in parts:
        nodes = [next(paths) for _ in rows]
        if tree:
            own = PrefixTree.of(rows)
            length, places = len(own), own.paths
        else:
            T = max(map(len, nodes))
            length = T * len(rows)
            places = [list(range(b * T, b * T + len(path))) for b, path in enumerate(nodes)]
        fresh: list[list[int | None]] = []
        for path, place in zip(nodes, places, strict=True):
            fresh.append(
                [None if node in seen else at for node, at in zip(path, place, strict=True)]
            )
            seen.update(path)
        batches.append((length, fresh))
    return batches


def first_places(parts: Sequence[Part]) -> list[Tensor]:
    """Returns a mask [T] of each micro-batch, True at the tokens that `token_places` gives."""
    masks = []
    for length, rows in token_places(parts):
        mask = torch.zeros(length, dtype=torch.bool)
        mask[[place for row in rows for place in row if place is not None]] = True
        masks.append(mask)
    return masks


def why_unreadable(layers: Sequence[SparseLayer]) -> str | None:
    """Returns why the routers' results cannot be read here; None if they can."""
    for layer in layers:
        try:
            with torch.no_grad():
                output = layer.router.forward(_some_states(layer))
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            return f"the router of {layer.name} wants more than hidden states ({error})"
        form = [tuple(part.shape) if isinstance(part, Tensor) else None for part in _parts(output)]
        if form != [(_TRIED, layer.num_experts), (_TRIED, layer.top_k), (_TRIED, layer.top_k)]:
            return (
                f"the router of {layer.name} answers otherwise than with logits, weights and "
                "experts of each token"
            )
    return None


_TRIED = 16  # number of tokens in a trial of a router


def _some_states(layer: SparseLayer) -> Tensor:
    """Returns random hidden states [16, H] for a router, always the same for one size."""
    weight = next(parameter for parameter in layer.router.parameters() if parameter.dim() == 2)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(_TRIED, weight.shape[1], generator=generator)
    return states.to(weight.device, weight.dtype)


def _parts(output: object) -> tuple[object, ...]:
    return output if isinstance(output, tuple) else (output,)


# -- the bias --------------------------------------------------------------------------------------


_NEEDED = "router_balancing: bias"


def add_bias(layers: Sequence[SparseLayer]) -> None:
    """Gives each router a bias of zeros, [E] float32, unless it has a bias.

    Raises:
        UsageError: a router chooses or weighs experts in an unknown way (`sums_to_one`).
    """
    for layer in layers:
        router = layer.router
        if _bias_name(router) is None:
            router._sums_to_one = sums_to_one(layer, _NEEDED)  # type: ignore[assignment]
            weight = next(router.parameters())
            router.register_buffer(
                BIAS, torch.zeros(layer.num_experts, device=weight.device), persistent=False
            )
            router.register_forward_hook(_choose_by_bias)


def biases(layers: Sequence[SparseLayer]) -> list[Tensor]:
    """Returns the bias [E] of each router that has one; callers change it in place."""
    routers = [(layer.router, _bias_name(layer.router)) for layer in layers]
    return [getattr(router, name) for router, name in routers if name is not None]


def save_bias(model: nn.Module, folder: Path) -> None:
    """Writes the biases that `add_bias` added, beside the weights; does nothing without such."""
    held = {_key(layer): getattr(layer.router, BIAS, None) for layer in sparse_layers(model)}
    tensors = {name: bias.contiguous() for name, bias in held.items() if bias is not None}
    if tensors:
        save_file(tensors, str(folder / BIAS_FILE))


def load_bias(model: nn.Module, folder: Path) -> None:
    """Reads the biases beside the weights into the routers, if the file exists.

    Raises:
        UsageError: the biases do not fit this model.
    """
    path = folder / BIAS_FILE
    if not path.is_file():
        return
    layers = sparse_layers(model)
    tensors = load_file(str(path))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != (needed := {_key(layer): (layer.num_experts,) for layer in layers}):
        raise UsageError(
            f"{path} is of another model: it has {len(shapes)} biases, and the model "
            f"{len(needed)} sparse layers; put the policy's own there, or remove it to route "
            "without"
        )
    add_bias(layers)
    for layer, bias in zip(layers, biases(layers), strict=True):
        bias.copy_(tensors[_key(layer)])


def _key(layer: SparseLayer) -> str:
    return f"{layer.name}.{BIAS}"


def _bias_name(router: nn.Module) -> str | None:
    return next((name for name in (BIAS, _OWN_BIAS) if hasattr(router, name)), None)


def _choose_by_bias(router: nn.Module, _args: object, output: object) -> tuple[Tensor, ...]:
    """Replaces a router's result by the one with its bias: [T, E], [T, k], [T, k]."""
    logits, weights, indices = cast(tuple[Tensor, Tensor, Tensor], output)
    probabilities = logits.float().softmax(-1)
    biased = probabilities + cast(Tensor, getattr(router, BIAS))
    chosen = biased.topk(indices.shape[1], dim=-1).indices
    return logits, weighed(probabilities, chosen, router._sums_to_one).to(weights.dtype), chosen


def weighed(probabilities: Tensor, chosen: Tensor, sums_to_one: object) -> Tensor:
    """Returns the weights of the chosen experts, [T, k]."""
    weights = probabilities.gather(1, chosen)
    return weights / weights.sum(-1, keepdim=True) if sums_to_one else weights


def sums_to_one(layer: SparseLayer, what: str) -> bool:
    """Returns True if the weights of a token's experts sum to 1, False if they are probabilities.

    Args:
        layer: the layer of the router.
        what: the setting that needs the answer.

    Raises:
        UsageError: the weights are neither, or the router does not choose the experts with the
            largest probabilities.
    """
    with torch.no_grad():
        logits, weights, indices = layer.router.forward(_some_states(layer))
    probabilities = logits.float().softmax(-1)
    likeliest = probabilities.topk(indices.shape[1], dim=-1).indices
    if likeliest.sort(-1).values.equal(indices.sort(-1).values):
        for rule in (True, False):
            if torch.allclose(weighed(probabilities, indices, rule), weights.float(), atol=1e-3):
                return rule
    raise UsageError(
        f"{what} needs a router that takes the experts of the largest softmax probabilities and "
        f"weighs them by these, or by these over their sum; that of {layer.name} does not, so "
        f"leave {what.partition(':')[0]} out"
    )
