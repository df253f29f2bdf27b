"""What a training may do with the routers of a sparse policy (docs/experts.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, cast

from srl.config.parts import Part, within
from srl.config.strict_yaml import fit, refuse_unknown
from srl.errors import UsageError

SelectBy = Literal["gate_score", "token_share"]
"""How an expert is scored: by its mean routing weight, or by the share of tokens it gets."""


@dataclass
class RouterSettings(Part):
    """How the load of a sparse policy's experts is balanced; a dense policy takes none of these.

    Attributes:
        router_balancing: "loss" adds the load-balancing loss of each layer (Switch Transformer,
            arXiv 2101.03961), "library_loss" that of transformers, which sums over the layers
            first, "bias" moves a bias that only chooses experts and is no part of the loss
            (arXiv 2408.15664), "none" does nothing.
        router_balancing_coef: weight of either loss.
        router_bias_rate: how far an update moves the bias of an expert.
        router_z_loss_coef: weight of the squared log-sum-exp of the router's logits (ST-MoE, arXiv
            2202.08906), which keeps them small; 0 is off.
        freeze_router: leave the routers' weights as they are. Routes still move, because what the
            routers read does.
        train_experts: only these experts train, and nothing else: those in a file that `experts
            select` wrote, or {by, threshold, rows} to choose them when the run starts, as that
            command does; null trains all.
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
        """Those of these settings that are not at their defaults."""
        given = {one.name: getattr(self, one.name) for one in fields(RouterSettings)}
        return {name: x for name, x in given.items() if x != getattr(RouterSettings, name)}


# How experts are chosen where nothing else is said.
SELECTION: dict[str, object] = {"by": "gate_score", "threshold": 0.2, "rows": 400}


def _selection(given: Mapping[str, object]) -> dict[str, object]:
    """How experts are chosen, with what is not said filled in.

    Raises:
        UsageError: an unknown key, or a value that cannot be.
    """
    at = "train_experts"
    refuse_unknown(given, SELECTION, at)
    found = {**SELECTION, **given}
    found["by"] = fit(found["by"], SelectBy, f"{at}.by")
    threshold = found["threshold"] = fit(found["threshold"], float, f"{at}.threshold")
    rows = found["rows"] = fit(found["rows"], int, f"{at}.rows")
    if not 0 < cast(float, threshold) <= 1:
        raise UsageError(f"{at}.threshold is {threshold}; it must be above 0 and at most 1")
    if cast(int, rows) < 1:
        raise UsageError(f"{at}.rows is {rows}; it must be 1 or more")
    return found


@dataclass
class ReplaySettings(Part):
    """What an update of a sparse policy takes over from the sampler.

    Attributes:
        replay_routes: send every token to the experts that it went to when it was sampled. In bf16
            the sampler's routes are not always those of the update.
    """

    replay_routes: bool = False
