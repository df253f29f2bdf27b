"""What an optimiser step trains on: the kept groups as rows, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from srl.evaluate import ScoredStep
from srl.loss import LossScale


@dataclass(frozen=True)
class Group:
    """The G rollouts of one prompt.

    Attributes:
        prompt: the prompt's token ids.
        steps: the rollouts, scored.
    """

    prompt: list[int]
    steps: list[ScoredStep]

    @property
    def rewards(self) -> list[float]:
        """One reward a rollout, for dynamic sampling."""
        return [step.score.reward for step in self.steps]


@dataclass
class Batch:
    """What one or several optimiser steps train on.

    Attributes:
        rows: (prompt ids, completion ids) of every kept rollout.
        advantages: one a row.
        scale: the totals that the loss is divided by.
        micro_batches: indices of rows that go through the model together.
        old_log_probs: a micro-batch's [B, C] log-probabilities when it was sampled; empty until
            the first pass has computed them.
    """

    rows: list[tuple[list[int], list[int]]]
    advantages: list[float]
    scale: LossScale
    micro_batches: list[list[int]]
    old_log_probs: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        advantages: Sequence[Sequence[float] | None],
        *,
        max_completion_length: int,
        micro_batch_tokens: int,
    ) -> Batch:
        """The groups with advantages as rows, one after another; None is a dropped group."""
        rows: list[tuple[list[int], list[int]]] = []
        flat: list[float] = []
        for group, values in zip(groups, advantages, strict=True):
            if values is not None:
                rows += [(group.prompt, step.completion_ids) for step in group.steps]
                flat += values
        lengths = [len(completion) for _, completion in rows]
        return cls(
            rows=rows,
            advantages=flat,
            scale=LossScale.of(lengths, max_completion_length),
            micro_batches=pack_rows(rows, micro_batch_tokens),
        )


def pack_rows(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], max_tokens: int
) -> list[list[int]]:
    """Indices of rows for each micro-batch: rows of like length, so that padding is small.

    A micro-batch is padded to its own longest row and stays within `max_tokens`, padding included;
    a single row longer than that makes a micro-batch of its own.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]) - len(rows[i][1]), i))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        length = len(rows[index][0]) + len(rows[index][1])
        if not batches or (len(batches[-1]) + 1) * longest > max_tokens:
            batches.append([])
            longest = length
        batches[-1].append(index)
    return batches
