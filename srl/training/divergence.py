"""Checks that a policy's numbers are finite, in every step and before anything is saved.

A NaN or an infinity in gradients or weights spreads in one update and stays. So a step that has one
ends the run, and no checkpoint is saved with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from srl.errors import DivergedError

# The logits of this many tokens are enough for the check.
_TOKENS = 16
_SO = ": training has diverged, and nothing is saved"


def refuse_step(model: nn.Module, loss: Tensor, step: int) -> None:
    """Raises DivergedError unless a step's loss and gradient are finite.

    Args:
        model: after the backward passes, before the gradients are clipped.
        loss: the loss of the whole step.
        step: the number of the step, from 1.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = float(get_total_norm(gradients)) if gradients else 0.0
    if not (math.isfinite(norm) and bool(loss.isfinite())):
        raise DivergedError(
            f"step {step} has loss {float(loss):.3g} and gradient norm {norm:.3g}: "
            "training has diverged"
        )


def refuse_policy(model: nn.Module, optimizer: Optimizer | None, prompt: list[int]) -> None:
    """Raises DivergedError unless weights, optimiser state and logits are finite.

    Args:
        model: the policy.
        optimizer: None if there is none yet.
        prompt: token ids of a prompt, for the logits.
    """
    for name, value in model.named_parameters():
        if not _finite([value]):
            raise DivergedError(f"the weights are not finite ({name}){_SO}")
    states = [] if optimizer is None else list(optimizer.state.values())
    if not _finite(value for state in states for value in state.values()):
        raise DivergedError(f"the optimiser's state is not finite{_SO}")
    training = model.training
    model.eval()
    with torch.no_grad():
        ids = torch.tensor([prompt[:_TOKENS]], device=next(model.parameters()).device)
        logits = model(input_ids=ids).logits
    model.train(training)
    if not _finite([logits]):
        raise DivergedError(f"the policy's logits are not finite{_SO}")


def _finite(values: Iterable[object]) -> bool:
    finite = [value.isfinite().all() for value in values if isinstance(value, Tensor)]
    return not finite or bool(torch.stack([flag.to(finite[0].device) for flag in finite]).all())
