"""Finds the routers and experts of sparse models, and computes what the experts cost.

A layer of a Mixture-of-Experts model has a router and experts. The router chooses `top_k` of E
experts for each token. transformers keeps the experts' weights in tensors with E as the first
dimension. Both are found by what the architecture declares, not by its name. `why_unreadable`
(`routing.py`) checks that a router returns (logits [T, E], weights [T, k], indices [T, k]).
Checked with Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, Granite-MoE and GPT-OSS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from srl.errors import UsageError


class SparseLayer(NamedTuple):
    """A layer whose feed-forward part is a choice among experts.

    Attributes:
        name: the name of `block`, such as "model.layers.0.mlp".
        router: the module that chooses the experts of each token.
        experts: the module that holds the weights of all experts.
        block: the module that holds the router and the experts.
        num_experts: E.
        top_k: the number of experts for each token.
    """

    name: str
    router: nn.Module
    experts: nn.Module
    num_experts: int
    top_k: int
    block: nn.Module

    @property
    def number(self) -> int:
        """The number of the layer among all layers of the model, dense ones included, from 0."""
        return int(next(part for part in self.name.split(".") if part.isdecimal()))

    def freeze_router(self) -> None:
        """Excludes the weights of the router, and of an adapter on it, from training."""
        for part in self.block.children():
            if self.router in part.modules():
                part.requires_grad_(False)

    def weights(self) -> dict[str, nn.Parameter]:
        """Returns the parameters of the experts, each [E, ...], by their names in `experts`."""
        return {
            name: weight
            for name, weight in self.experts.named_parameters()
            if weight.dim() >= 2 and weight.shape[0] == self.num_experts
        }


def sparse_layers(model: nn.Module) -> list[SparseLayer]:
    """Returns the sparse layers of a model in their order; a dense model has none.

    Args:
        model: a causal language model of transformers, bare or with an adapter.
    """
    if hasattr(model, "get_base_model"):  # so that names are those of the model without the adapter
        model = model.get_base_model()  # type: ignore[operator]
    kinds = _router_kinds(model)
    modules = dict(model.named_modules())
    layers = []
    for name, router in modules.items():
        if not isinstance(router, kinds):
            continue
        parent = name.rpartition(".")[0]
        while parent.endswith((".gate", ".router", ".base_layer")):  # an adapter's wrappers
            parent = parent.rpartition(".")[0]
        block = modules[parent]
        experts: object = getattr(block, "experts", None)
        while isinstance(inner := getattr(experts, "base_layer", None), nn.Module):
            experts = inner
        if not isinstance(experts, nn.Module):
            continue
        sizes = {weight.shape[0] for weight in experts.parameters() if weight.dim() == 3}
        top_k = getattr(router, "top_k", None)
        if len(sizes) == 1 and isinstance(top_k, int):
            layers.append(SparseLayer(parent, router, experts, sizes.pop(), top_k, block))
    return layers


def _router_kinds(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Returns the classes of the routers, which the architecture lists for recording logits."""
    kinds = set()
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            recorded = getattr(module, "_can_record_outputs", None) or {}
            listed = recorded.get("router_logits", [])
            for recorder in listed if isinstance(listed, Sequence) else [listed]:
                kind = getattr(recorder, "target_class", recorder)
                if isinstance(kind, type) and issubclass(kind, nn.Module):
                    kinds.add(kind)
    return tuple(kinds)


def need_sparse(model: nn.Module, name: str) -> list[SparseLayer]:
    """Returns the sparse layers of the model; `name` is its name in messages.

    Raises:
        UsageError: the model has no sparse layers.
    """
    layers = sparse_layers(model)
    if not layers:
        config = getattr(model, "config", None)
        kind = getattr(config, "model_type", type(model).__name__)
        raise UsageError(
            f"{name} is not sparse: a model of type {kind} has no experts that could be read here "
            "(Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, Granite-MoE and GPT-OSS have); a dense one "
            f"becomes sparse with: python -m srl experts upcycle --model {name} --output FOLDER"
        )
    return layers


@dataclass(frozen=True)
class Cost:
    """The cost of a model in parameters and in arithmetic.

    Attributes:
        total: the number of parameters, each counted once.
        active: the number of parameters that one token uses: all but those of the experts that
            were not chosen for it.
        embeddings: the number of active parameters that are looked up, not multiplied.
    """

    total: int
    active: int
    embeddings: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Cost:
        """Counts the cost of `model`, which may be on the meta device."""
        total = sum(parameter.numel() for parameter in model.parameters())
        idle = sum(
            weight.numel() // layer.num_experts * (layer.num_experts - layer.top_k)
            for layer in sparse_layers(model)
            for weight in layer.weights().values()
        )
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head is not None and _weight(head) is _weight(table)
        embeddings = 0 if table is None or tied else sum(x.numel() for x in table.parameters())
        return cls(total, total - idle, embeddings)

    @property
    def flops(self) -> int:
        """The operations of a forward of one token: a multiplication and an addition for each
        multiplied weight. Attention over earlier tokens is not included."""
        return 2 * (self.active - self.embeddings)

    def bytes_to_read(self, width: int = 4) -> int:
        """Returns the memory of the weights in bytes, at `width` bytes for each weight."""
        return self.total * width

    @property
    def bytes_to_train(self) -> int:
        """The bytes of float32 weights, gradients and Adam's two moments, without activations."""
        return self.total * 16


def _weight(module: nn.Module | None) -> Tensor | None:
    return getattr(module, "weight", None)
