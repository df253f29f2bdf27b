"""How the experts of a sparse model are computed: by which of transformers' functions, and in bf16.

Autocast casts what goes into a matrix product. `grouped_mm`, the product of all experts at once, is
unknown to it: over float32 weights it computes in float32 where all else is in bf16. Here it
computes in autocast's dtype.
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

# The kernel refuses rows whose length in bytes is no multiple of 16.
_ALIGNED = 8


def use_experts(model: nn.Module, implementation: ExpertsImplementation = "auto") -> None:
    """Compute a sparse model's experts by this function, and in bf16 under bf16's autocast.

    Args:
        model: a causal language model; a dense one is left as it is.
        implementation: one of transformers' functions; "auto" keeps the model's own.

    Raises:
        UsageError: an implementation is asked of a model that is not sparse, or has no choice.
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


# Of weights their version, and what they were cast to; those of the innermost context are in use.
_Kept = dict[nn.Parameter, tuple[int, Tensor]]
_open: list[_Kept] = []


@contextmanager
def keeping_cast_weights() -> Iterator[None]:
    """Inside, weights that were cast for a forward without gradients are kept for the next one.

    A decoder calls the model for every token.
    """
    kept: _Kept = {}
    _open.append(kept)
    try:
        yield
    finally:
        _open[:] = [one for one in _open if one is not kept]


class _Cast:
    """A module of experts as its forward sees it, with weights of another dtype."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype

    def __getattr__(self, name: str) -> object:
        value = getattr(self._module, name)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        # An adapter's weights are made anew at each look.
        if not _open or torch.is_grad_enabled() or not isinstance(value, nn.Parameter):
            return value.to(self._dtype)
        version, found = _open[-1].get(value, (-1, value))
        if version != value._version:
            found = value.to(self._dtype)
            _open[-1][value] = value._version, found
        return found


def _grouped_mm(
    module: nn.Module, hidden_states: Tensor, *args: object, **further: object
) -> Tensor:
    """As transformers calls it: hidden_states [T, H] of tokens -> [T, H]."""
    function = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    device = hidden_states.device.type
    if not torch.is_autocast_enabled(device) or not _aligned(module):
        return cast(Tensor, function(module, hidden_states, *args, **further))
    dtype = torch.get_autocast_dtype(device)
    seen = _Cast(module, dtype)
    return cast(Tensor, function(seen, hidden_states.to(dtype), *args, **further))


ALL_EXPERTS_FUNCTIONS.register(_IN_AUTOCAST, _grouped_mm)


def _aligned(module: nn.Module) -> bool:
    """Whether the kernel takes its weights in 16 bits."""
    return all(
        size % _ALIGNED == 0
        for one in module.parameters()
        if one.dim() == 3
        for size in one.shape[1:]
    )
