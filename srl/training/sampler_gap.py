"""Measures how far the sampler's log-probabilities are from the update's, token by token.

Both are of the same policy, so they differ by arithmetic only: about 1e-6 in float32. In bf16, with
another engine or with routed experts, the policy that samples is not exactly the policy that is
trained. This figure measures the difference. It also includes dropout, which is on in the update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from srl.models.scoring import CompletionScores


class SamplerGap:
    """Collects the gap over the micro-batches of a step without waiting for the device."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []  # [3] each: sum, largest, tokens

    def add(
        self,
        scores: CompletionScores,
        sampled: Sequence[Sequence[float]],
        counted: Sequence[Sequence[bool]] | None = None,
    ) -> None:
        """Adds one micro-batch.

        Args:
            scores: the scores of the update.
            sampled: the sampler's log-probabilities of the same tokens.
            counted: for each token, whether the policy wrote it; None counts every token.
        """
        with torch.no_grad():
            mask = scores.mask if counted is None else scores.padded(counted)
            gap = torch.where(mask.bool(), scores.log_probs - scores.padded(sampled), 0).abs()
            self._parts.append(torch.stack([gap.sum(), gap.max(), mask.sum()]))

    def metrics(self) -> dict[str, float]:
        """Returns the mean over tokens and the largest gap, in nats; empty if none was added."""
        if not self._parts:
            return {}
        parts = torch.stack(self._parts)
        total, tokens = parts[:, 0].sum().item(), parts[:, 2].sum().item()
        mean = total / tokens if tokens else math.nan
        return {"sampler_gap": mean, "max_sampler_gap": parts[:, 1].max().item()}
