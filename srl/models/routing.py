"""Which experts the routers of a sparse model choose: watched in a forward, and steered by a bias.

The balancing bias of DeepSeek-V3 (arXiv 2408.15664) is added to the probabilities when experts are
chosen, and not when they are weighed. Families without one of their own get it by a hook on each
router; it is saved beside the weights, in `BIAS_FILE`, because a policy without its bias routes
otherwise.
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

# Beside the weights of a policy whose routers have a bias.
BIAS_FILE = "router_bias.safetensors"
# The bias of a router without one of its own, and that of the families that have one.
BIAS, _OWN_BIAS = "selection_bias", "e_score_correction_bias"

Part = tuple[Sequence[Row], bool]
"""Rows of a micro-batch, and whether they go through the model as a tree."""


class LayerLoad(NamedTuple):
    """What the router of one layer did with the tokens that count.

    Attributes:
        counts: [E] float32, how many of them went to each expert.
        probability: [E] float32, the sum of their softmax probabilities, with gradient; None
            unless asked for.
        z: scalar, the sum of their squared log-sum-exps, with gradient; None unless asked for.
    """

    counts: Tensor
    probability: Tensor | None
    z: Tensor | None


@dataclass
class Watch:
    """One forward's routing.

    Attributes:
        loads: of each layer in their order, once the forward is over.
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
    """Inside, one forward of the model is watched; recomputation in a backward pass is not.

    What routers answered is only taken down inside, and computed with afterwards: under gradient
    checkpointing a layer must do the same when it is run again.

    Args:
        layers: of the model.
        counted: [T] bool for the T tokens of the flattened batch, padding included.
        probability: add up probabilities too.
        z: and squared log-sum-exps.

    Raises:
        RuntimeError: the forward did not go through every router once, with T tokens.
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
    """Inside, `see` is told what each router answers: (number of the layer, logits [T, E], weights
    [T, k], indices [T, k])."""

    def told(number: int, output: object) -> None:
        see(number, *cast(tuple[Tensor, Tensor, Tensor], output))

    hooks = [
        layer.router.register_forward_hook(
            lambda _m, _a, output, number=number: told(number, output)
        )
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# Of logits [T, E], indices [T, k], and weight [T]: 1 for a token that counts, else 0.


def _counts(experts: int, indices: Tensor, weight: Tensor) -> Tensor:
    found = torch.zeros(experts, device=weight.device)
    return found.scatter_add_(0, indices.reshape(-1), weight.repeat_interleave(indices.shape[1]))


def _probability(logits: Tensor, weight: Tensor) -> Tensor:
    return (logits.float().softmax(-1) * weight[:, None]).sum(0)


def _z(logits: Tensor, weight: Tensor) -> Tensor:
    return (logits.float().logsumexp(-1).square() * weight).sum()


def token_places(parts: Sequence[Part]) -> list[tuple[int, list[list[int | None]]]]:
    """Where the tokens of a step stand that no row had before.

    Args:
        parts: its micro-batches; each is a line of its tree's nodes, or of its rows padded to the
            longest of them (`srl/models/scoring.py`).

    Returns:
        Of each micro-batch T, the tokens of its flattened batch, and of each of its rows the place
        of each token among them; None for a token that a row before begins with too.
    """
    paths = iter(PrefixTree.of([row for rows, _ in parts for row in rows]).paths)
    seen: set[int] = set()
    found = []
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
        found.append((length, fresh))
    return found


def first_places(parts: Sequence[Part]) -> list[Tensor]:
    """The same as a mask [T] of each micro-batch, True at the tokens that count."""
    masks = []
    for length, rows in token_places(parts):
        mask = torch.zeros(length, dtype=torch.bool)
        mask[[place for row in rows for place in row if place is not None]] = True
        masks.append(mask)
    return masks


def why_unreadable(layers: Sequence[SparseLayer]) -> str | None:
    """Why what the routers answer cannot be read here; None if it can."""
    for layer in layers:
        try:
            with torch.no_grad():
                output = layer.router.forward(_some_states(layer))
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            return f"the router of {layer.name} wants more than hidden states ({error})"
        form = [tuple(one.shape) if isinstance(one, Tensor) else None for one in _parts(output)]
        if form != [(_TRIED, layer.num_experts), (_TRIED, layer.top_k), (_TRIED, layer.top_k)]:
            return (
                f"the router of {layer.name} answers otherwise than with logits, weights and "
                "experts of each token"
            )
    return None


_TRIED = 16  # tokens that a router is tried with


def _some_states(layer: SparseLayer) -> Tensor:
    """[16, H] made-up hidden states for a router, the same ones each time."""
    weight = next(one for one in layer.router.parameters() if one.dim() == 2)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(_TRIED, weight.shape[1], generator=generator)
    return states.to(weight.device, weight.dtype)


def _parts(output: object) -> tuple[object, ...]:
    return output if isinstance(output, tuple) else (output,)


# -- the bias --------------------------------------------------------------------------------------


_NEEDED = "router_balancing: bias"


def add_bias(layers: Sequence[SparseLayer]) -> None:
    """Give each router a bias of zeros, [E] float32, unless it has one.

    Raises:
        UsageError: a router weighs the chosen experts in a way that is not known.
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
    """The bias of each router that has one, [E], to be changed in place."""
    found = [(layer.router, _bias_name(layer.router)) for layer in layers]
    return [getattr(router, name) for router, name in found if name is not None]


def save_bias(model: nn.Module, folder: Path) -> None:
    """Write the biases beside the weights, if there are any that the weights do not hold."""
    held = {_key(layer): getattr(layer.router, BIAS, None) for layer in sparse_layers(model)}
    tensors = {name: bias.contiguous() for name, bias in held.items() if bias is not None}
    if tensors:
        save_file(tensors, str(folder / BIAS_FILE))


def load_bias(model: nn.Module, folder: Path) -> None:
    """Read the biases beside the weights, if there are any.

    Raises:
        UsageError: they are not those of this model.
    """
    path = folder / BIAS_FILE
    if not path.is_file():
        return
    layers = sparse_layers(model)
    tensors = load_file(str(path))
    shapes = {name: tuple(one.shape) for name, one in tensors.items()}
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
    """A router's answer with the experts that its bias chooses; [T, E], [T, k], [T, k]."""
    logits, weights, indices = cast(tuple[Tensor, Tensor, Tensor], output)
    probabilities = logits.float().softmax(-1)
    biased = probabilities + cast(Tensor, getattr(router, BIAS))
    chosen = biased.topk(indices.shape[1], dim=-1).indices
    return logits, weighed(probabilities, chosen, router._sums_to_one).to(weights.dtype), chosen


def weighed(probabilities: Tensor, chosen: Tensor, sums_to_one: object) -> Tensor:
    """The weights of the chosen experts, [T, k]."""
    weights = probabilities.gather(1, chosen)
    return weights / weights.sum(-1, keepdim=True) if sums_to_one else weights


def sums_to_one(layer: SparseLayer, what: str) -> bool:
    """Whether the weights of a token's experts sum to 1, or are their probabilities.

    Args:
        layer: whose router it is.
        what: the setting that needs to know.

    Raises:
        UsageError: they are neither, or the experts are not those of the largest probabilities.
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
