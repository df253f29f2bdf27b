"""Watches, balances and freezes the routers of a sparse policy during training.

The load of an expert is the share of tokens that go to it. A token in a prefix that several rows of
a step share counts once. Padding never counts. The way in which the step was cut into micro-batches
does not matter.

Let f_i be the share of the step's tokens that go to expert i of a layer (the f_i sum to top_k), and
P_i the mean of its softmax probability. With E experts and L layers, the losses are

    loss           (1 / L) sum over layers of E sum_i f_i P_i
    library_loss   E sum_i mean_l(f_i) mean_l(P_i)        transformers' load_balancing_loss_func

Both are top_k if all experts are used alike. The second is also top_k if every layer has collapsed
on different experts, because it uses means over the layers; the first is E then. f has no gradient,
so a step needs its own f before its first gradient. If a step has several micro-batches, they go
through the model once more for this, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from srl.config.router import ReplaySettings, RouterSettings
from srl.errors import UsageError
from srl.models.experts import sparse_layers
from srl.models.replay import Disagreement, Routes, following, laid_out
from srl.models.routing import (
    LayerLoad,
    Part,
    add_bias,
    biases,
    first_places,
    sums_to_one,
    watching,
    why_unreadable,
)
from srl.runs.expert_load import is_collapsed, load_figures
from srl.training.chosen_experts import ChosenExperts, read_choice


class Routers:
    """The routers of one policy in training; for a dense policy every method does nothing.

    A step first calls `begin`. For each micro-batch it enters `following` around forward and
    backward, enters `watching` around the forward, and calls `add_loss`. It ends with `end`.

    Args:
        model: the policy, bare or with an adapter.
        settings: the settings of the routers.

    Attributes:
        layers: the sparse layers that are watched; a dense policy has none.
        chosen: a callback that lets only chosen experts train; None if no choice is made.

    Raises:
        UsageError: a setting does not apply to this policy, or needs routers that can be read.
    """

    def __init__(self, model: nn.Module, settings: RouterSettings) -> None:
        self.settings = settings
        self.layers = sparse_layers(model)
        given = settings.router_choices
        self.replays = isinstance(settings, ReplaySettings) and settings.replay_routes
        if self.replays:
            given["replay_routes"] = True
        if given and not self.layers:
            name, value = next(iter(given.items()))
            raise UsageError(
                f"{name} is {value}, but the policy is dense: it has no routers; leave {name} out, "
                "or make it sparse: python -m srl experts upcycle --help"
            )
        self._unread = why_unreadable(self.layers)
        if self._unread is not None:
            if given:
                name, value = next(iter(given.items()))
                raise UsageError(f"{name} is {value}, but {self._unread}; leave {name} out")
            self.layers = []
        by_loss = settings.router_balancing in ("loss", "library_loss")
        if by_loss:
            for layer in self.layers:
                sums_to_one(layer, f"router_balancing: {settings.router_balancing}")
        self._rules = None
        if self.replays:
            self._rules = [sums_to_one(layer, "replay_routes: true") for layer in self.layers]
        if settings.freeze_router:
            for layer in self.layers:
                layer.freeze_router()
        self.chosen: ChosenExperts | None = None
        self._model = model
        if settings.train_experts is not None:
            if hasattr(model, "active_peft_config"):
                raise UsageError(
                    f"train_experts is {settings.train_experts}, but the policy has an adapter, "
                    "and only that trains; leave lora or train_experts out"
                )
            if isinstance(settings.train_experts, str):
                experts = read_choice(settings.train_experts, self.layers)
                self.chosen = ChosenExperts(model, self.layers, experts)
        if settings.router_balancing == "bias":
            add_bias(self.layers)
        self._counted: list[Tensor] = []
        self._tokens = 0
        self._loads: list[list[LayerLoad]] = []
        self._shares: list[Tensor] | None = None
        self._wanted = {"probability": by_loss, "z": bool(settings.router_z_loss_coef)}
        self._parts: Sequence[Part] = ()
        self._routes: Sequence[Sequence[Routes | None]] = ()
        self._device: object = None
        self._fresh = True
        self._disagreements: list[Disagreement] = []
        self._losses: dict[str, float] = {}
        self._warned: set[int] = set()

    @property
    def selection(self) -> Mapping[str, Any] | None:
        """Returns how experts are still to be chosen: by, threshold, rows; None if they are not."""
        wanted = self.settings.train_experts
        return wanted if isinstance(wanted, dict) and self.chosen is None else None

    def choose(self, experts: Sequence[Sequence[int]]) -> None:
        """Lets only these experts of each layer train."""
        self.chosen = ChosenExperts(self._model, self.layers, experts)

    def line(self) -> str:
        """Returns a line for the user at the start; it is empty for a dense policy."""
        if self._unread is not None:
            return f"sparse, but {self._unread}, so its load is not watched"
        if not self.layers:
            return ""
        first, settings = self.layers[0], self.settings
        what = {
            "none": "their load is watched, not balanced (router_balancing)",
            "loss": f"balanced by the loss of each layer, times {settings.router_balancing_coef:g}",
            "library_loss": "balanced by the library's loss over all layers, times "
            f"{settings.router_balancing_coef:g}",
            "bias": f"balanced by a bias that moves by {settings.router_bias_rate:g} an update",
        }[settings.router_balancing]
        if settings.router_z_loss_coef:
            what += f"; router z-loss, times {settings.router_z_loss_coef:g}"
        if settings.freeze_router:
            what += "; the routers' weights are frozen"
        if self.replays:
            what += "; the sampler's routes are replayed"
        if self.chosen is not None:
            what += f"; {self.chosen.line()}"
        return (
            f"sparse: {len(self.layers)} layers of {first.num_experts} experts, {first.top_k} of "
            f"them for a token; {what}"
        )

    def begin(
        self,
        parts: Sequence[Part],
        look: Callable[[int], object],
        device: object,
        routes: Sequence[Sequence[Routes | None]] = (),
        *,
        fresh: bool = True,
    ) -> None:
        """Starts a step.

        Args:
            parts: the micro-batches of the step.
            look: puts one of them through the model; it is called without gradients.
            device: the device of the model.
            routes: the sampler's routes of each row of each micro-batch.
            fresh: the policy is still the one that sampled. Then a different route comes from the
                computation, not from another policy.
        """
        self._loads, self._losses, self._shares, self._disagreements = [], {}, None, []
        self._parts, self._routes, self._device, self._fresh = parts, routes, device, fresh
        if not self.layers:
            return
        masks = first_places(parts)
        self._counted = [mask.to(device) for mask in masks]  # type: ignore[call-overload]
        self._tokens = sum(int(mask.sum()) for mask in masks)
        if self._wanted["probability"] and len(parts) > 1:
            seen = []
            for number in range(len(parts)):
                with (
                    torch.no_grad(),
                    self._following(number),
                    watching(self.layers, self._counted[number]) as watch,
                ):
                    look(number)
                seen.append(watch.loads)
            self._shares = self._share(seen)

    @contextmanager
    def following(self, number: int) -> Iterator[None]:
        """Compares the sampler's routes of micro-batch `number` with the update's, if recorded.

        It also replays them if the settings ask for it. Enter it around forward and backward.
        """
        with self._following(number) as disagreement:
            yield
        if disagreement is not None and self._fresh:
            self._disagreements.append(disagreement)

    @contextmanager
    def _following(self, number: int) -> Iterator[Disagreement | None]:
        routes = None
        if self.layers and self._routes and (self._fresh or self.replays):
            rows, tree = self._parts[number]
            routes = laid_out(rows, self._routes[number], tree=tree)
        if routes is None:
            yield None
            return
        on_device = routes.to(self._device)  # type: ignore[call-overload]
        with following(self.layers, on_device, self._rules) as disagreement:
            yield disagreement

    @contextmanager
    def watching(self, number: int) -> Iterator[None]:
        """Watches the routers in the forward of micro-batch `number`; enter it around that."""
        if not self.layers:
            yield
            return
        with watching(self.layers, self._counted[number], **self._wanted) as watch:
            yield
        self._loads.append(watch.loads)
        if self._wanted["probability"] and self._shares is None:  # there is one micro-batch
            self._shares = self._share(self._loads)

    def add_loss(self, loss: Tensor) -> Tensor:
        """Returns the loss of the micro-batch that was watched last, plus its routing losses."""
        if not self.layers:
            return loss
        settings, loads = self.settings, self._loads[-1]
        if self._shares is not None:
            experts = [layer.num_experts for layer in self.layers]
            means = [cast(Tensor, load.probability) / self._tokens for load in loads]
            by_layer = settings.router_balancing == "loss"
            of = per_layer_loss if by_layer else over_layers_loss
            balance = self._taught(of(self._shares, means, experts))
            loss = loss + self._noted("balancing_loss", balance) * settings.router_balancing_coef
        if self._wanted["z"]:
            z = torch.stack([cast(Tensor, load.z) for load in loads]).mean() / self._tokens
            z = self._taught(z)
            loss = loss + self._noted("z_loss", z) * settings.router_z_loss_coef
        # Only the counts are needed later, so the graphs of the other values are freed.
        self._loads[-1] = [LayerLoad(load.counts, None, None) for load in loads]
        return loss

    def end(self) -> tuple[dict[str, float], list[list[int]]]:
        """Ends a step: moves the biases.

        Returns:
            The figures of the step, and for each layer how many tokens went to each expert. Both
            are empty if nothing was routed.
        """
        if not self._loads:
            return {}, []
        counts = self._counts(self._loads)
        if self.settings.router_balancing == "bias":
            for bias, count in zip(biases(self.layers), counts, strict=True):
                bias += self.settings.router_bias_rate * (count.mean() - count).sign()
        whole = [[round(x) for x in count.tolist()] for count in counts]
        losses = {f"router/{name}": value for name, value in self._losses.items()}
        compared = sum(disagreement.compared for disagreement in self._disagreements) * len(
            self.layers
        )
        if compared:
            differ = sum(float(disagreement.differ.sum()) for disagreement in self._disagreements)
            losses["router/disagreement"] = differ / compared
        return {**load_figures(whole), **losses}, whole

    def collapsed(self, counts: Sequence[Sequence[int]]) -> list[int]:
        """Returns the layers, from 0, that have collapsed and were not reported before."""
        numbers = [
            number
            for number, (layer, count) in enumerate(zip(self.layers, counts, strict=True))
            if number not in self._warned and is_collapsed(count, layer.top_k)
        ]
        self._warned.update(numbers)
        return numbers

    def collapse(self, number: int, counts: Sequence[int]) -> str:
        """Returns a message about a layer that has collapsed: its load, and what to do."""
        layer = self.layers[number]
        order = sorted(range(len(counts)), key=lambda expert: -counts[expert])[: layer.top_k]
        share = sum(counts[expert] for expert in order) / sum(counts)
        names = " and ".join(map(str, sorted(order)))
        return (
            f"the routing of sparse layer {number} ({layer.name}) has collapsed: {share:.0%} of "
            f"what it routes goes to {layer.top_k} of {layer.num_experts} experts ({names}). "
            + (
                "Balance it with router_balancing: loss, or bias (docs/experts.md)"
                if self.settings.router_balancing == "none"
                else f"router_balancing is {self.settings.router_balancing}: give it more weight "
                "(router_balancing_coef, router_bias_rate), or time"
            )
        )

    def _taught(self, value: Tensor) -> Tensor:
        """Returns a loss of the routers after a check that it has a gradient.

        Raises:
            UsageError: it has no gradient although gradients are enabled.
        """
        if torch.is_grad_enabled() and not value.requires_grad:
            raise UsageError(
                "the loss of the routers has no gradient: gradient_checkpointing with "
                "use_reentrant: true computes layers without one; set "
                "gradient_checkpointing_kwargs: {use_reentrant: false}"
            )
        return value

    def _noted(self, name: str, value: Tensor) -> Tensor:
        self._losses[name] = self._losses.get(name, 0.0) + float(value.detach())
        return value

    def _counts(self, loads: Sequence[Sequence[LayerLoad]]) -> list[Tensor]:
        """Returns [E] for each layer: the number of tokens that went to each expert."""
        return [
            torch.stack([load.counts for load in parts]).sum(0)
            for parts in zip(*loads, strict=True)
        ]

    def _share(self, loads: Sequence[Sequence[LayerLoad]]) -> list[Tensor]:
        return [count / self._tokens for count in self._counts(loads)]


def per_layer_loss(
    shares: Sequence[Tensor], means: Sequence[Tensor], experts: Sequence[int]
) -> Tensor:
    """Returns the mean of the layers' load-balancing losses.

    Args:
        shares: f of each layer, [E]; they sum to top_k.
        means: P of each layer, [E], with gradient.
        experts: E of each layer.
    """
    each = [E * (f * P).sum() for f, P, E in zip(shares, means, experts, strict=True)]
    return torch.stack(each).mean()


def over_layers_loss(
    shares: Sequence[Tensor], means: Sequence[Tensor], experts: Sequence[int]
) -> Tensor:
    """Returns the loss of transformers, from means over all layers; Args as `per_layer_loss`."""
    return experts[0] * (torch.stack(list(shares)).mean(0) * torch.stack(list(means)).mean(0)).sum()
