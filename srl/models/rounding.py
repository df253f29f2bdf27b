"""Computes how far rounding alone may move a model's logits, so that trials refuse only errors.

A model that is computed in another way (over a tree, with a cache, with an adapter merged) sums the
same numbers in another order. For most tokens this moves the logits of SmolLM2-135M by a millionth
of the largest logit. For one token in a thousand, where activations are massive, it moves them by
1e-4 and more; float32 is as far from float64 there. So a fixed bound cannot separate rounding from
errors. Instead the sensitivity of a token to its last digits is measured: the last digits of the
embeddings are changed, and the logits are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Relative size of the change of an embedding. TF32 and half precisions have fewer digits.
_LAST_DIGITS, _LAST_DIGITS_ROUNDED = 1e-6, 1e-3
# Allowed multiples of the measured change, because layers round too. Among 1,320 tokens of two
# models in float32, no error exceeded 22 such changes. Rounded models were not measured, so their
# factor is no larger than necessary.
_MOVES, _MOVES_ROUNDED = 30, 3
# Errors relative to the largest logit: a smaller one always passes, a larger one never does.
_ALWAYS, _NEVER = 1e-4, 2e-2
_ALWAYS_ROUNDED, _NEVER_ROUNDED = 5e-2, 0.15


def is_exact(model: nn.Module) -> bool:
    """Returns whether the model computes in at least float32; TF32 on a GPU does not count."""
    # Not `torch.get_float32_matmul_precision`: it raises if TF32 was set in the newer way.
    rounded = torch.backends.cuda.matmul.fp32_precision not in ("none", "ieee")
    return all(
        p.dtype == torch.float64 or (p.dtype == torch.float32 and not (rounded and p.is_cuda))
        for p in model.parameters()
    )


@torch.no_grad()
def rounding_of(model: nn.Module, logits_of: Callable[[], Tensor], logits: Tensor) -> Tensor:
    """Returns how far rounding may move each token's logits from their true values, [T].

    Args:
        model: a model with `get_input_embeddings`.
        logits_of: computes the model's logits [T, V].
        logits: the result of an earlier call of `logits_of`.
    """
    exact = is_exact(model)

    def change(_module: nn.Module, _args: object, out: Tensor) -> Tensor:
        signs = torch.arange(out.numel(), device=out.device).cos().view_as(out)
        if exact:
            return out * (1 + _LAST_DIGITS * signs)
        # A change smaller than the dtype's resolution would have no effect.
        digits = max(_LAST_DIGITS_ROUNDED, 2 * torch.finfo(out.dtype).eps)
        return (out.float() * (1 + digits * signs)).to(out.dtype)

    hook = cast(PreTrainedModel, model).get_input_embeddings().register_forward_hook(change)
    try:
        moved = (logits_of() - logits).abs().amax(-1)
        return (_MOVES if exact else _MOVES_ROUNDED) * moved
    finally:
        hook.remove()


def tolerated(model: nn.Module, logits_of: Callable[[], Tensor], logits: Tensor) -> Tensor:
    """Returns the largest allowed error of each token's logits, [T], relative to the largest logit.

    The arguments are those of `rounding_of`.
    """
    exact = is_exact(model)
    always, never = (_ALWAYS, _NEVER) if exact else (_ALWAYS_ROUNDED, _NEVER_ROUNDED)
    return (rounding_of(model, logits_of, logits) / logits.abs().max()).clamp(always, never)


@dataclass
class WorstError:
    """The token of a trial whose error is largest relative to what rounding explains.

    Attributes:
        error: the error of this token, relative to the largest logit; may be NaN.
        allowed: the error that rounding explains for this token.
        excess: `error` divided by `allowed`; infinite if either is NaN.
    """

    error: float = 0.0
    allowed: float = 0.0
    excess: float = 0.0

    def add(self, errors: Tensor, allowed: Tensor) -> None:
        """Adds more tokens: their errors [T] and the allowed error of each [T]."""
        excess = (errors / allowed).nan_to_num(nan=math.inf, posinf=math.inf)
        at = int(excess.argmax())
        if excess[at] > self.excess:
            worst = errors[at], allowed[at], excess[at]
            self.error, self.allowed, self.excess = (value.item() for value in worst)

    @property
    def fits(self) -> bool:
        """Whether rounding explains the errors of all added tokens."""
        return self.excess <= 1

    def __str__(self) -> str:
        return (
            f"by {self.error:.1e} of its largest logit, of which rounding explains "
            f"{self.allowed:.1e}"
        )
