"""Examples of your own losses: copy this file, change it, give its path. See docs/losses.md.

    make train RUN=mine ARGS="--loss_type experiments/custom_loss.py:reinforce"

A loss is a function of a micro-batch's tensors and the step's totals. It returns the micro-batch's
share of the loss and figures for the log. With a third parameter, `settings`, it also receives the
settings of the run's loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srl.config.parts import LossSettings
from srl.training.loss import LossInputs, LossScale


def reinforce(inputs: LossInputs, scale: LossScale) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the plain policy-gradient loss, without a ratio and without clipping."""
    losses = -inputs.advantages[:, None] * inputs.log_probs
    surprise = inputs.total(-inputs.log_probs)  # the log shows its mean per token
    return torch.where(inputs.mask, losses, 0).sum() / scale.num_tokens, {"surprise": surprise}


def leaky(
    inputs: LossInputs, scale: LossScale, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns a loss like dapo's, but a hundredth of the gradient is left where dapo clips it."""
    ratio = torch.exp(inputs.log_ratio)
    clipped = ratio.clamp(1 - settings.epsilon, 1 + settings.clip_high)
    advantage = inputs.advantages[:, None]
    leak = clipped + 0.01 * (ratio - clipped)
    losses = -torch.minimum(ratio * advantage, leak * advantage)
    figures = {"leaking": inputs.total(ratio != clipped), "max_ratio": ratio.max()}
    return torch.where(inputs.mask, losses, 0).sum() / scale.num_tokens, figures
