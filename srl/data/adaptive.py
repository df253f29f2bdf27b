"""Shares of sources that follow what can be learned from them at the time.

A group of attempts teaches by how far its rewards are apart, and a flat one teaches nothing. So the
signal of a source is the mean spread of its groups, those that were dropped counted as 0: the share
of groups that are kept times their spread. Shares move towards the sources with more of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from srl.config.mixture import Adaptive


class AdaptiveShares:
    """Shares that move within bounds, from those that were asked for.

    Args:
        shares: source -> the share that it begins with, and that its signal is weighed by.
        settings: how fast, and within which bounds.

    Attributes:
        shares: source -> its share now; they add up to 1.
        signals: source -> its smoothed signal; none before its first group.
    """

    def __init__(self, shares: Mapping[str, float], settings: Adaptive) -> None:
        self._asked, self._settings = dict(shares), settings
        self.shares = bounded(shares, settings.least, settings.most)
        self.signals: dict[str, float] = {}

    def update(self, sources: Sequence[str], spreads: Sequence[float]) -> None:
        """Take in the groups of an optimiser step.

        Args:
            sources: of each group.
            spreads: the standard deviation of its rewards; 0 where it was dropped.
        """
        new: dict[str, list[float]] = {}
        for source, spread in zip(sources, spreads, strict=True):
            new.setdefault(source, []).append(spread)
        for source, values in new.items():
            # A source that few groups came from says less: as much smoothing a group, not a step.
            keep = self._settings.smoothing ** len(values)
            mean = math.fsum(values) / len(values)
            self.signals[source] = keep * self.signals.get(source, mean) + (1 - keep) * mean
        if len(self.signals) < len(self._asked) or not any(self.signals.values()):
            return  # nothing to compare yet
        weighed = {name: share * self.signals[name] for name, share in self._asked.items()}
        total = math.fsum(weighed.values())
        target = {name: value / total for name, value in weighed.items()}
        self.shares = bounded(target, self._settings.least, self._settings.most)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """For a checkpoint."""
        return {"shares": dict(self.shares), "signals": dict(self.signals)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on from a checkpoint."""
        self.shares, self.signals = dict(state["shares"]), dict(state["signals"])


def bounded(shares: Mapping[str, float], least: float, most: float) -> dict[str, float]:
    """The shares with none outside of the bounds; what that takes or gives the others share.

    Args:
        shares: 0 or more, they add up to 1.
        least, most: with `least <= 1 / n <= most` for n sources.
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
        # The side that is further out is settled first: the other one may come right by it.
        under = math.fsum(least - share for share in scaled.values() if share < least)
        over = math.fsum(share - most for share in scaled.values() if share > most)
        if under <= 0 and over <= 0:
            return {name: fixed.get(name, scaled.get(name, 0.0)) for name in shares}
        for name, share in scaled.items():
            if under >= over and share < least:
                fixed[name] = least
            elif over > under and share > most:
                fixed[name] = most
