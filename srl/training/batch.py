"""What an optimiser step trains on: the kept groups as rows, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from srl.models.prefix_tree import PrefixTree, Row, pack_rows, pack_trees
from srl.models.replay import Routes
from srl.rollout.rollouts import Rollout
from srl.training.loss import LossScale

# A tree's attention is in more pieces than that of padded rows. It pays where padded rows have so
# many times its tokens; measured, docs/prefix_tree.md.
_WORTH_A_TREE = 1.35


@dataclass
class Batch:
    """What one or several optimiser steps train on.

    Attributes:
        rollouts: the kept rollouts that have tokens to train on, with their advantages.
        scale: the totals that the loss is divided by.
        micro_batches: which of them go through the model together.
        old_log_probs: a micro-batch's [B, C] log-probabilities when it was sampled; empty until
            the first pass has computed them.
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
        """The kept rollouts, cut into micro-batches.

        A rollout without any token that counts stands in no micro-batch, but counts as a rollout.
        """
        lengths = [sum(one.loss_mask) for one in rollouts]
        counted = [one for one, length in zip(rollouts, lengths, strict=True) if length]
        return cls(
            rollouts=counted,
            scale=LossScale.of(lengths, max_completion_length),
            micro_batches=micro_batches(
                [row_of(one) for one in counted], micro_batch_tokens, trees=trees
            ),
        )

    def parts(self) -> list[tuple[list[Row], bool]]:
        """The rows of each micro-batch, and whether they are a tree."""
        return [
            ([row_of(self.rollouts[i]) for i in part.rows], part.tree)
            for part in self.micro_batches
        ]

    def routes(self) -> list[list[Routes | None]]:
        """Of each of these rows the experts that its tokens went to when it was sampled."""
        return [[self.rollouts[i].routes for i in part.rows] for part in self.micro_batches]


def without_loss(rollout: Rollout) -> Rollout:
    """The same rollout, none of whose tokens enters the loss."""
    return replace(rollout, loss_mask=[False] * len(rollout.loss_mask))


def row_of(rollout: Rollout) -> Row:
    """Its tokens, as the prefix tree takes them."""
    return rollout.prompt_ids, rollout.completion_ids


@dataclass(frozen=True)
class MicroBatch:
    """Rollouts that go through the model together, as indices, and whether as a prefix tree."""

    rows: list[int]
    tree: bool


def micro_batches(rows: Sequence[Row], max_tokens: int, *, trees: bool) -> list[MicroBatch]:
    """Every row once, in micro-batches of at most `max_tokens`; a longer row has one of its own.

    Where a tree saves too little to pay for its upkeep, its rows are padded instead.
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
    """What the same rows would take without a tree."""
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    return sum(len(part) * max(lengths[i] for i in part) for part in pack_rows(rows, max_tokens))
