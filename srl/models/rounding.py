"""How far rounding alone may move a model's logits, so that trials refuse only what is wrong.

A model that is computed in another way (over a tree, with a cache, with an adapter merged) sums the
same numbers in another order. At most tokens that moves the logits of SmolLM2-135M by a millionth
of the largest; at one in a thousand, where activations are massive, by 1e-4 and more, and float32
is as far from float64 there. So no fixed bound tells the two apart: how much a token hangs on last
digits is measured, by a change of the embeddings in theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# A change of an embedding in its last digits, relative. TF32 and the half precisions have fewer.
_LAST_DIGITS, _LAST_DIGITS_ROUNDED = 1e-6, 1e-3
# Layers round as well. Of 1,320 tokens of two models in float32 none was off by more than 22 of
# these moves. Of rounded models nothing was measured, so no more is allowed than has to be.
_MOVES, _MOVES_ROUNDED = 30, 3
# Relative to the largest logit: what is always allowed, and what never is.
_ALWAYS, _NEVER = 1e-4, 2e-2
_ALWAYS_ROUNDED, _NEVER_ROUNDED = 5e-2, 0.15


def is_exact(model: nn.Module) -> bool:
    """Whether the model computes in float32 at least; TF32's products on a GPU do not."""
    # Not `torch.get_float32_matmul_precision`: it raises where the newer way has set TF32.
    rounded = torch.backends.cuda.matmul.fp32_precision not in ("none", "ieee")
    return all(
        p.dtype == torch.float64 or (p.dtype == torch.float32 and not (rounded and p.is_cuda))
        for p in model.parameters()
    )


@torch.no_grad()
def rounding_of(model: nn.Module, logits_of: Callable[[], Tensor], logits: Tensor) -> Tensor:
    """How far rounding may leave each token's logits from what they should be, [T].

    Args:
        model: any that `get_input_embeddings` has an answer for.
        logits_of: computes the logits [T, V] once more.
        logits: what it gave.
    """
    exact = is_exact(model)

    def change(_module: nn.Module, _args: object, out: Tensor) -> Tensor:
        signs = torch.arange(out.numel(), device=out.device).cos().view_as(out)
        if exact:
            return out * (1 + _LAST_DIGITS * signs)
        # A smaller change than a type can hold would be none.
        digits = max(_LAST_DIGITS_ROUNDED, 2 * torch.finfo(out.dtype).eps)
        return (out.float() * (1 + digits * signs)).to(out.dtype)

    hook = cast(PreTrainedModel, model).get_input_embeddings().register_forward_hook(change)
    try:
        moved = (logits_of() - logits).abs().amax(-1)
        return (_MOVES if exact else _MOVES_ROUNDED) * moved
    finally:
        hook.remove()


def tolerated(model: nn.Module, logits_of: Callable[[], Tensor], logits: Tensor) -> Tensor:
    """How far off each token's logits may be, [T], relative to the largest of them all.

    Arguments as in `rounding_of`.
    """
    exact = is_exact(model)
    always, never = (_ALWAYS, _NEVER) if exact else (_ALWAYS_ROUNDED, _NEVER_ROUNDED)
    return (rounding_of(model, logits_of, logits) / logits.abs().max()).clamp(always, never)


@dataclass
class WorstError:
    """Of the tokens of a trial the one whose error exceeds most what rounding explains.

    Attributes:
        error: how far it is off, relative to the largest logit; may be no number.
        allowed: what rounding explains there.
        excess: the one over the other; infinite where either is no number.
    """

    error: float = 0.0
    allowed: float = 0.0
    excess: float = 0.0

    def add(self, errors: Tensor, allowed: Tensor) -> None:
        """More tokens: their errors [T], and what is allowed of each [T]."""
        excess = (errors / allowed).nan_to_num(nan=math.inf, posinf=math.inf)
        at = int(excess.argmax())
        if excess[at] > self.excess:
            found = errors[at], allowed[at], excess[at]
            self.error, self.allowed, self.excess = (value.item() for value in found)

    @property
    def fits(self) -> bool:
        """Whether rounding explains all of them."""
        return self.excess <= 1

    def __str__(self) -> str:
        return (
            f"by {self.error:.1e} of its largest logit, of which rounding explains "
            f"{self.allowed:.1e}"
        )
