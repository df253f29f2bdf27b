"""Moves the shares of sources towards those that the policy can currently learn most from.

A policy learns from a group of attempts whose rewards differ; it learns nothing from equal rewards.
So the signal of a source is the mean spread of its groups, where a dropped group counts as 0. This
equals the share of kept groups times their mean spread. Sources with a larger signal get larger
shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from srl.config.mixture import Adaptive


class AdaptiveShares:
    """Shares that start at the configured values and move within bounds.

    Args:
        shares: source -> its first share, which also weights its signal.
        settings: the smoothing of signals, and the bounds of shares.

    Attributes:
        shares: source -> its current share; the shares add up to 1.
        signals: source -> its smoothed signal; a source is missing before its first group.
    """

    def __init__(self, shares: Mapping[str, float], settings: Adaptive) -> None:
        self._asked, self._settings = dict(shares), settings
        self.shares = bounded(shares, settings.least, settings.most)
        self.signals: dict[str, float] = {}

    def update(self, sources: Sequence[str], spreads: Sequence[float]) -> None:
        """Updates signals and shares with the groups of an optimiser step.

        Args:
            sources: the source of each group.
            spreads: the standard deviation of each group's rewards; 0 for a dropped group.
        """
        new: dict[str, list[float]] = {}
        for source, spread in zip(sources, spreads, strict=True):
            new.setdefault(source, []).append(spread)
        for source, values in new.items():
            # Smoothing is per group and not per step, so few groups move a signal less.
            keep = self._settings.smoothing ** len(values)
            mean = math.fsum(values) / len(values)
            self.signals[source] = keep * self.signals.get(source, mean) + (1 - keep) * mean
        if len(self.signals) < len(self._asked) or not any(self.signals.values()):
            return  # a source has no signal yet, or all signals are 0
        weighed = {name: share * self.signals[name] for name, share in self._asked.items()}
        total = math.fsum(weighed.values())
        target = {name: value / total for name, value in weighed.items()}
        self.shares = bounded(target, self._settings.least, self._settings.most)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Returns the state for a checkpoint."""
        return {"shares": dict(self.shares), "signals": dict(self.signals)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Continues from the state of a checkpoint."""
        self.shares, self.signals = dict(state["shares"]), dict(state["signals"])


def bounded(shares: Mapping[str, float], least: float, most: float) -> dict[str, float]:
    """Returns the shares moved into the bounds; the other shares are scaled so that the sum is 1.

    Args:
        shares: values of 0 or more that add up to 1.
        least, most: the bounds, with `least <= 1 / n <= most` for n sources.
    """
    fixed: dict[str, float] = {}
    while True:
        free = {name: share for name, share in shares.items() if name not in fixed}
        left = 1 - math.fsum(fixed.values())
        total = math.fsum(free.values())
        scaled = {
            name: left * (share / total) if total else left / len(free)
            for name, share in free.items()
        }
        # The bound that is violated more is fixed first, as this may resolve the other violations.
        under = math.fsum(least - share for share in scaled.values() if share < least)
        over = math.fsum(share - most for share in scaled.values() if share > most)
        if under <= 0 and over <= 0:
            return {name: fixed.get(name, scaled.get(name, 0.0)) for name in shares}
        for name, share in scaled.items():
            if under >= over and share < least:
                fixed[name] = least
            elif over > under and share > most:
                fixed[name] = most
