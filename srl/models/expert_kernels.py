"""Chooses the function that computes the experts of a sparse model, and computes them in bf16.

Autocast casts the inputs of matrix products. It does not know `grouped_mm`, the product of all
experts at once. So with float32 weights, `grouped_mm` computes in float32 while everything else is
in bf16. This module makes it compute in autocast's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from srl.config.parts import ExpertsImplementation
from srl.errors import UsageError
from srl.models.experts import sparse_layers

_IN_AUTOCAST = "srl_grouped_mm"

# The kernel refuses rows whose length in bytes is not a multiple of 16: 8 numbers in 16 bits.
_ALIGNED = 8


def use_experts(model: nn.Module, implementation: ExpertsImplementation = "auto") -> None:
    """Makes a sparse model compute its experts by this function; `grouped_mm` follows autocast.

    Args:
        model: a causal language model; a dense one is left as it is.
        implementation: the name of a function of transformers; "auto" keeps the model's own.

    Raises:
        UsageError: an implementation is given, but the model is not sparse or supports no choice.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    asked = implementation != "auto"
    if not sparse_layers(base):
        if asked:
            raise UsageError(
                f"experts_implementation is {implementation}, but the policy is not sparse; leave "
                "it out"
            )
        return
    base = cast(PreTrainedModel, base)
    wanted = implementation if asked else base.config._experts_implementation
    if wanted == "grouped_mm":
        wanted = _IN_AUTOCAST
    base.set_experts_implementation(wanted)
    if asked and base.config._experts_implementation != wanted:
        raise UsageError(
            f"experts_implementation is {implementation}, but a model of type "
            f"{base.config.model_type} computes its experts in one way only; leave it out"
        )


# For each weight, its version and its cast copy. The innermost context's copies are in use.
_Kept = dict[nn.Parameter, tuple[int, Tensor]]
_open: list[_Kept] = []


@contextmanager
def keeping_cast_weights() -> Iterator[None]:
    """Keeps the cast weights of forwards without gradients for later forwards in this context.

    A decoder calls the model for every token, so it would cast the weights every time.
    """
    kept: _Kept = {}
    _open.append(kept)
    try:
        yield
    finally:
        _open[:] = [copies for copies in _open if copies is not kept]


class _Cast:
    """A stand-in for a module of experts whose weights have another dtype."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype

    def __getattr__(self, name: str) -> object:
        value = getattr(self._module, name)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        # An adapter's weights are computed again at each access, so they are not kept.
        if not _open or torch.is_grad_enabled() or not isinstance(value, nn.Parameter):
            return value.to(self._dtype)
        version, cast_copy = _open[-1].get(value, (-1, value))
        if version != value._version:
            cast_copy = value.to(self._dtype)
            _open[-1][value] = value._version, cast_copy
        return cast_copy


def _grouped_mm(
    module: nn.Module, hidden_states: Tensor, *args: object, **further: object
) -> Tensor:
    """Computes the experts' output [T, H] from hidden_states [T, H]; transformers calls it."""
    function = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    device = hidden_states.device.type
    if not torch.is_autocast_enabled(device) or not _aligned(module):
        return cast(Tensor, function(module, hidden_states, *args, **further))
    dtype = torch.get_autocast_dtype(device)
    seen = _Cast(module, dtype)
    return cast(Tensor, function(seen, hidden_states.to(dtype), *args, **further))


ALL_EXPERTS_FUNCTIONS.register(_IN_AUTOCAST, _grouped_mm)


def _aligned(module: nn.Module) -> bool:
    """Returns whether the kernel accepts the module's weights in 16 bits."""
    return all(
        size % _ALIGNED == 0
        for weight in module.parameters()
        if weight.dim() == 3
        for size in weight.shape[1:]
    )
