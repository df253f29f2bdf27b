"""Builds the batch of an optimiser step: kept rollouts, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from srl.models.prefix_tree import PrefixTree, Row, pack_rows, pack_trees
from srl.models.replay import Routes
from srl.rollout.rollouts import Rollout
from srl.training.loss import LossScale

# The attention of a tree runs in more pieces than that of padded rows. A tree pays off where padded
# rows have at least this many times its tokens (measured, docs/prefix_tree.md).
_WORTH_A_TREE = 1.35


@dataclass
class Batch:
    """The rollouts that one or several optimiser steps train on.

    Attributes:
        rollouts: the kept rollouts that have tokens to train on, with their advantages.
        scale: the totals that the loss is divided by.
        micro_batches: which of the rollouts go through the model together.
        old_log_probs: per micro-batch, the [B, C] log-probabilities of the policy that sampled;
            empty until the first of several passes has computed them.
    """

    rollouts: list[Rollout]
    scale: LossScale
    micro_batches: list[MicroBatch]
    old_log_probs: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        rollouts: Sequence[Rollout],
        *,
        max_completion_length: int,
        micro_batch_tokens: int,
        trees: bool,
    ) -> Batch:
        """Makes a batch of the kept rollouts, cut into micro-batches.

        A rollout without any token that counts is in no micro-batch, but `scale` counts it.
        """
        lengths = [sum(rollout.loss_mask) for rollout in rollouts]
        counted = [rollout for rollout, length in zip(rollouts, lengths, strict=True) if length]
        return cls(
            rollouts=counted,
            scale=LossScale.of(lengths, max_completion_length),
            micro_batches=micro_batches(
                [row_of(rollout) for rollout in counted], micro_batch_tokens, trees=trees
            ),
        )

    def parts(self) -> list[tuple[list[Row], bool]]:
        """Returns the rows of each micro-batch, and whether they go through the model as a tree."""
        return [
            ([row_of(self.rollouts[i]) for i in part.rows], part.tree)
            for part in self.micro_batches
        ]

    def routes(self) -> list[list[Routes | None]]:
        """Returns, for each of these rows, the experts of its tokens when it was sampled."""
        return [[self.rollouts[i].routes for i in part.rows] for part in self.micro_batches]


def without_loss(rollout: Rollout) -> Rollout:
    """Returns the same rollout with no token in the loss."""
    return replace(rollout, loss_mask=[False] * len(rollout.loss_mask))


def row_of(rollout: Rollout) -> Row:
    """Returns the tokens of a rollout in the form that the prefix tree takes."""
    return rollout.prompt_ids, rollout.completion_ids


@dataclass(frozen=True)
class MicroBatch:
    """The indices of rollouts that go through the model together, and whether as a prefix tree."""

    rows: list[int]
    tree: bool


def micro_batches(rows: Sequence[Row], max_tokens: int, *, trees: bool) -> list[MicroBatch]:
    """Puts each row into one micro-batch of at most `max_tokens`; a longer row gets its own.

    Where a tree would save too little to pay off, its rows are padded instead.
    """
    if not trees:
        return [MicroBatch(part, tree=False) for part in pack_rows(rows, max_tokens)]
    batches = []
    repeated: list[int] = []
    for part in pack_trees(rows, max_tokens):
        members = [rows[i] for i in part]
        if _padded_tokens(members, max_tokens) >= _WORTH_A_TREE * len(PrefixTree.of(members)):
            batches.append(MicroBatch(part, tree=True))
        else:
            repeated += part
    padded = pack_rows([rows[i] for i in repeated], max_tokens)
    return batches + [MicroBatch([repeated[i] for i in part], tree=False) for part in padded]


def _padded_tokens(rows: Sequence[Row], max_tokens: int) -> int:
    """Returns how many tokens the same rows take without a tree."""
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    return sum(len(part) * max(lengths[i] for i in part) for part in pack_rows(rows, max_tokens))
