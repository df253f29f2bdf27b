"""Turns the weights that an optimiser updates into float32, whatever dtype they were loaded in."""

from __future__ import annotations

import torch
from torch import nn

from srl.errors import UsageError
from srl.models.trial import named

_HALF = (torch.bfloat16, torch.float16)
_WHOLE = (torch.float32, torch.float64)


def use_float32(model: nn.Module) -> str:
    """Turns bf16 and fp16 weights into float32, in place; returns a line that says so, or "".

    With 8 to 11 bits of precision, a small update of a large weight rounds to zero.

    Raises:
        UsageError: the weights are quantised, so no optimiser can update them.
    """
    config = getattr(model, "config", None)
    kinds = {tensor.dtype for tensor in model.parameters()}
    others = kinds - {*_HALF, *_WHOLE}
    if others or getattr(config, "quantization_config", None) is not None:
        what = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in others or kinds))
        raise UsageError(
            f"{named(model)} is quantised (weights in {what}), and its weights cannot be trained; "
            "load it without quantization_config, in float32"
        )
    half = sorted(str(kind).removeprefix("torch.") for kind in kinds & {*_HALF})
    if not half:
        return ""
    model.float()
    return (
        f"the model came in {' and '.join(half)} and is trained in float32: small updates would "
        "round to nothing (bf16: true computes in bf16 over float32 weights)"
    )
