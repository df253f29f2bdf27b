"""Runs our update, forward and backward, and compares updates of the same rows.

All implementations of the GRPO loss must compute the same gradients for the same rows and
advantages. The timed work includes cutting rows into micro-batches and building trees.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from contest import Contestant
from shapes import Shape
from torch import Tensor
from transformers import PreTrainedModel

from srl.config.parts import LossSettings
from srl.models.prefix_tree import Row
from srl.models.scoring import completion_log_probs
from srl.models.tree_models import attending_over_trees
from srl.training.advantages import step_advantages
from srl.training.batch import MicroBatch, micro_batches
from srl.training.loss import LossInputs, LossScale, load_loss, step_loss

EPSILON = 0.2
# The default of `SRLConfig.micro_batch_tokens`.
MICRO_BATCH_TOKENS = 8192

Cut = Callable[[Sequence[Row]], list[MicroBatch]]
"""Cuts rows into micro-batches."""


@dataclass(frozen=True)
class Update:
    """The results of an update.

    Attributes:
        log_probs: for each micro-batch, the indices of its rows and their [B, C]
            log-probabilities.
        gradients: the gradients of all weights.
    """

    log_probs: list[tuple[Sequence[int], Tensor]]
    gradients: list[Tensor]


def differences(expected: object, actual: object) -> dict[str, float]:
    """Returns the gradient's relative error and the largest difference of a log-probability."""
    assert isinstance(expected, Update)
    assert isinstance(actual, Update)
    apart = [
        (a.double() - b.double()).square().sum()
        for a, b in zip(actual.gradients, expected.gradients, strict=True)
    ]
    whole = [b.double().square().sum() for b in expected.gradients]
    ours, theirs = _by_row(actual), _by_row(expected)
    return {
        "gradient": (torch.stack(apart).sum() / torch.stack(whole).sum()).sqrt().item(),
        "log_prob": max((ours[row] - theirs[row]).abs().max().item() for row in theirs),
    }


def _by_row(update: Update) -> dict[int, Tensor]:
    return {
        row: line for rows, lines in update.log_probs for row, line in zip(rows, lines, strict=True)
    }


@dataclass(frozen=True)
class Case:
    """A model and the rows of an update.

    Attributes:
        model: the model, in float32.
        rows: the rows, group after group.
        group_size: the number of rows of a group.
        bf16: whether the forward pass runs under bf16 autocast, as both trainers do on a GPU.
    """

    model: PreTrainedModel
    rows: list[Row]
    group_size: int
    bf16: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel, shape: Shape, *, bf16: bool = False) -> Case:
        return cls(model, shape.rows(model.config.vocab_size), shape.G, bf16)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def advantages(self) -> list[float]:
        """Returns the advantages of random rewards, the same ones every time."""
        rng = random.Random(1)
        groups = len(self.rows) // self.group_size
        return [
            value
            for _ in range(groups)
            for value in step_advantages([[rng.random() for _ in range(self.group_size)]])[0]
        ]


def padded(tokens: int = MICRO_BATCH_TOKENS) -> Cut:
    """Returns a cut without trees, as our trainer does with `prefix_tree: false`."""
    return lambda rows: micro_batches(rows, tokens, trees=False)


def as_trained(tokens: int = MICRO_BATCH_TOKENS) -> Cut:
    """Returns a cut with trees where they pay off, as our trainer does by default."""
    return lambda rows: micro_batches(rows, tokens, trees=True)


def per_group(group_size: int) -> Cut:
    """Returns a cut with one tree per group, so that prompts share nothing."""
    return lambda rows: [
        MicroBatch(list(range(start, start + group_size)), tree=True)
        for start in range(0, len(rows), group_size)
    ]


def one_tree(rows: Sequence[Row]) -> list[MicroBatch]:
    """Returns one tree with all rows, even if it does not pay off."""
    return [MicroBatch(list(range(len(rows))), tree=True)]


def ours(case: Case, cut: Cut) -> Contestant:
    """Returns the contestant of our update, which goes through the micro-batches in turn."""
    grpo = load_loss(LossSettings(loss_type="grpo", epsilon=EPSILON))
    model, values = case.model, torch.tensor(case.advantages(), device=case.device)

    def work() -> Update:
        lengths = [len(completion) for _, completion in case.rows]
        scale = LossScale.of(lengths, max(lengths))
        log_probs = []
        for part in cut(case.rows):
            with attending_over_trees(model) if part.tree else nullcontext():
                with torch.autocast(case.device.type, torch.bfloat16, enabled=case.bf16):
                    scores = completion_log_probs(
                        model,
                        [case.rows[i] for i in part.rows],
                        pad_id=0,
                        temperature=1.0,
                        device=case.device,
                        tree=part.tree,
                    )
                    inputs = LossInputs(scores.log_probs, values[part.rows], scores.mask)
                    loss, _ = step_loss(grpo, inputs, scale)
                loss.backward()
            log_probs.append((part.rows, scores.log_probs.detach()))
        return Update(log_probs, gradients_of(model))

    return from_no_gradient(model, work)


def from_no_gradient(model: PreTrainedModel, work: Callable[[], Update]) -> Contestant:
    """Returns a contestant that clears the model's gradients, untimed, before the update."""

    def prepare() -> Callable[[], Update]:
        model.train()
        model.zero_grad(set_to_none=True)
        return work

    return prepare


def gradients_of(model: PreTrainedModel) -> list[Tensor]:
    """Returns the gradient of every weight.

    The tensors stay unchanged later, because the next contestant starts without gradients.
    """
    return [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Lets torch use `count` CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
