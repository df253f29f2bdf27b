"""Defines the settings for the routers of a sparse policy (docs/experts.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, cast

from srl.config.parts import Part, within
from srl.config.strict_yaml import fit, refuse_unknown
from srl.errors import UsageError

SelectBy = Literal["gate_score", "token_share"]
"""The score of an expert: its mean routing weight, or the share of tokens that it gets."""


@dataclass
class RouterSettings(Part):
    """The settings of routers and experts; a dense policy accepts none of them.

    Attributes:
        router_balancing: how the load of the experts is balanced. "loss" adds the load-balancing
            loss of each layer (Switch Transformer, arXiv 2101.03961). "library_loss" adds the loss
            of transformers, which averages over the layers first. "bias" moves a bias that only
            chooses experts and is not part of the loss (arXiv 2408.15664). "none" does nothing.
        router_balancing_coef: the weight of either loss.
        router_bias_rate: how far an update moves the bias of an expert.
        router_z_loss_coef: the weight of the squared log-sum-exp of the router's logits (ST-MoE,
            arXiv 2202.08906), which keeps the logits small; 0 is off.
        freeze_router: do not train the routers' weights. Routes still change, because the inputs of
            the routers change.
        train_experts: train only these experts and nothing else: the experts in a file that
            `experts select` wrote, or {by, threshold, rows} to choose them at the start of the run,
            as that command does; null trains everything.
    """

    router_balancing: Literal["none", "loss", "library_loss", "bias"] = "none"
    router_balancing_coef: float = 0.01
    router_bias_rate: float = 0.001
    router_z_loss_coef: float = 0.0
    freeze_router: bool = False
    train_experts: str | dict[str, object] | None = None

    def check(self) -> None:
        within(self, router_balancing_coef=(0, 1e6), router_z_loss_coef=(0, 1e6))
        within(self, router_bias_rate=(0, 1))
        if isinstance(self.train_experts, dict):
            self.train_experts = _selection(self.train_experts)
        by_loss = self.router_balancing in ("loss", "library_loss")
        for name, used, needs in (
            ("router_balancing_coef", by_loss, "router_balancing: loss or library_loss"),
            ("router_bias_rate", self.router_balancing == "bias", "router_balancing: bias"),
        ):
            value = getattr(self, name)
            if not used and value != getattr(RouterSettings, name):
                raise UsageError(
                    f"{name} is {value}, but router_balancing is {self.router_balancing}, so it "
                    f"would do nothing; set {needs}, or leave {name} out"
                )
            if used and not value:
                raise UsageError(
                    f"{name} is 0, so router_balancing: {self.router_balancing} would do nothing; "
                    "set it above 0, or router_balancing: none"
                )
        if self.freeze_router and self.train_experts is not None:
            raise UsageError(
                "freeze_router is true, but with train_experts nothing but experts trains; leave "
                "freeze_router out"
            )
        frozen = "freeze_router" if self.freeze_router else "train_experts"
        if getattr(self, frozen) and (by_loss or self.router_z_loss_coef):
            what = "router_z_loss_coef" if self.router_z_loss_coef else "router_balancing"
            raise UsageError(
                f"{frozen} is {getattr(self, frozen)}, but {what} is {getattr(self, what)}, a loss "
                "that teaches the routers; leave one of them out (router_balancing: bias moves no "
                "weights)"
            )

    @property
    def router_choices(self) -> dict[str, object]:
        """Returns the settings of this part that differ from their defaults."""
        given = {field.name: getattr(self, field.name) for field in fields(RouterSettings)}
        return {name: x for name, x in given.items() if x != getattr(RouterSettings, name)}


# The default selection of experts.
SELECTION: dict[str, object] = {"by": "gate_score", "threshold": 0.2, "rows": 400}


def _selection(given: Mapping[str, object]) -> dict[str, object]:
    """Returns the selection of experts, with defaults for missing keys.

    Raises:
        UsageError: a key is unknown, or a value is not allowed.
    """
    at = "train_experts"
    refuse_unknown(given, SELECTION, at)
    selection = {**SELECTION, **given}
    selection["by"] = fit(selection["by"], SelectBy, f"{at}.by")
    threshold = selection["threshold"] = fit(selection["threshold"], float, f"{at}.threshold")
    rows = selection["rows"] = fit(selection["rows"], int, f"{at}.rows")
    if not 0 < cast(float, threshold) <= 1:
        raise UsageError(f"{at}.threshold is {threshold}; it must be above 0 and at most 1")
    if cast(int, rows) < 1:
        raise UsageError(f"{at}.rows is {rows}; it must be 1 or more")
    return selection


@dataclass
class ReplaySettings(Part):
    """The settings of what an update of a sparse policy copies from the sampler.

    Attributes:
        replay_routes: send every token to the experts to which it was sent in sampling. In bf16 the
            sampler's routes can differ from those of the update.
    """

    replay_routes: bool = False
