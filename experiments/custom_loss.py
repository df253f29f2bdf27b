"""Losses of your own: copy this file, change it, give its path. docs/losses.md explains.

    make train RUN=mine ARGS="--loss_type experiments/custom_loss.py:reinforce"

A loss is a function of a micro-batch's tensors and the step's totals. It returns the micro-batch's
share of the loss, and figures for the log. With a third parameter, `settings`, it reads the
settings of the run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srl.config.parts import LossSettings
from srl.training.loss import LossInputs, LossScale


def reinforce(inputs: LossInputs, scale: LossScale) -> tuple[Tensor, dict[str, Tensor]]:
    """The plain policy gradient: no ratio, nothing is clipped."""
    losses = -inputs.advantages[:, None] * inputs.log_probs
    surprise = inputs.total(-inputs.log_probs)  # its mean per token stands in the log
    return torch.where(inputs.mask, losses, 0).sum() / scale.num_tokens, {"surprise": surprise}


def leaky(
    inputs: LossInputs, scale: LossScale, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped as dapo's, but beyond the range a hundredth of the gradient is left."""
    ratio = torch.exp(inputs.log_ratio)
    clipped = ratio.clamp(1 - settings.epsilon, 1 + settings.clip_high)
    advantage = inputs.advantages[:, None]
    leak = clipped + 0.01 * (ratio - clipped)
    losses = -torch.minimum(ratio * advantage, leak * advantage)
    figures = {"leaking": inputs.total(ratio != clipped), "max_ratio": ratio.max()}
    return torch.where(inputs.mask, losses, 0).sum() / scale.num_tokens, figures
