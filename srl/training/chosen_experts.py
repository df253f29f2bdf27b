"""Trains chosen experts of a sparse policy and nothing else (ESFT, arXiv 2407.01906).

transformers keeps all experts of a layer in one tensor, so `requires_grad` cannot choose among
them. A mask of the gradient alone would let weight decay and old momentum move the other experts.
So gradients are masked, which also keeps the other experts out of the clipped norm. After every
update the other experts get their old values back, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from srl.errors import UsageError
from srl.models.experts import SparseLayer


class ChosenExperts(TrainerCallback):
    """Lets only the chosen experts of a policy train.

    Args:
        model: the policy; its parameters are frozen, except in sparse layers with chosen experts.
        layers: the sparse layers of the policy.
        chosen: the experts that train in each of these layers.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[SparseLayer], chosen: Sequence[Sequence[int]]
    ) -> None:
        self.total = sum(parameter.numel() for parameter in model.parameters())
        self.moving = 0
        self._rest: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # other experts and their values
        model.requires_grad_(False)
        for layer, experts in zip(layers, chosen, strict=True):
            others = sorted(set(range(layer.num_experts)) - set(experts))
            for weight in layer.weights().values():
                if experts:
                    weight.requires_grad_(True)
                    self._mask(weight, others)
                    self.moving += weight.numel() // layer.num_experts * len(experts)

    def _mask(self, weight: nn.Parameter, others: Sequence[int]) -> None:
        numbers = torch.tensor(others, dtype=torch.long)

        def without_others(gradient: Tensor) -> Tensor:
            return gradient.index_fill(0, numbers.to(gradient.device), 0)

        weight.register_hook(without_others)
        self._rest.append((weight, numbers, torch.empty(0)))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Stores the values of the other experts, after a checkpoint's weights are loaded."""
        self._rest = [
            (weight, at, weight.detach()[at.to(weight.device)].clone())
            for weight, at, _ in self._rest
        ]

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Restores the values of the other experts."""
        with torch.no_grad():
            for weight, at, values in self._rest:
                weight.index_copy_(0, at.to(weight.device), values)

    def line(self) -> str:
        """Returns a line for the user at the start."""
        return (
            f"train_experts: {self.moving:,} of {self.total:,} parameters train "
            f"({self.moving / self.total:.1%}), all others stay as they are"
        )


def read_choice(path: str, layers: Sequence[SparseLayer]) -> list[list[int]]:
    """Returns the experts of each sparse layer that `experts select` wrote to a file.

    Args:
        path: a file {"layers": [[numbers of experts], …]}.
        layers: the sparse layers of the policy.

    Raises:
        UsageError: the file cannot be read, or does not fit this policy.
    """
    write = "write one with: python -m srl experts select --help"
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))["layers"]
        chosen = [[_number(expert) for expert in layer] for layer in listed]
    except OSError as error:
        raise UsageError(
            f"train_experts: cannot read {path}: {error.strerror or error}; {write}"
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(
            f"train_experts: {path} is no list of experts ({error!r:.200}); {write}"
        ) from error
    if len(chosen) != len(layers):
        raise UsageError(
            f"train_experts: {path} is for {len(chosen)} sparse layers, and the policy has "
            f"{len(layers)}; {write}"
        )
    for number, (layer, experts) in enumerate(zip(layers, chosen, strict=True)):
        if len(set(experts)) < len(experts):
            raise UsageError(
                f"train_experts: {path} names an expert of sparse layer {number} twice; {write}"
            )
        for expert in experts:
            if not 0 <= expert < layer.num_experts:
                raise UsageError(
                    f"train_experts: {path} names expert {expert} of sparse layer {number}, which "
                    f"has experts 0 to {layer.num_experts - 1}; {write}"
                )
    if not any(chosen):
        raise UsageError(f"train_experts: {path} names no expert, so nothing would train; {write}")
    return chosen


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r:.40} is no whole number")
    return value
