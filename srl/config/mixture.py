"""Defines how several sources are mixed: their weights, the measure of shares, and adaptation.

`srl/data/mixing.py` chooses the source of each row. `srl/config/data.py` reads the rest of `data`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from srl.config.strict_yaml import fit
from srl.errors import UsageError

MixBy = Literal["row", "trajectory", "token"]
SameProblem = Literal["all", "once", "in_turn"]
WhenExhausted = Literal["repeat", "drop", "stop"]

# Preset -> a tag, the tag's value that gets one part, and the value that gets four parts
# (Li et al., arXiv 2502.12143, section 3.3; shares of trajectories).
PRESETS = {
    "mix_long": ("length", "long", "short"),
    "mix_large": ("teacher", "large", "small"),
}
_PARTS = (1.0, 4.0)
_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class Adaptive:
    """The settings of shares that follow the signals of sources (`srl/data/adaptive.py`).

    Attributes:
        smoothing: the weight of a source's old signal when a group of its attempts updates it.
        least, most: bounds of every share.
    """

    smoothing: float = 0.98
    least: float = 0.05
    most: float = 0.95

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            UsageError: a value is not allowed.
        """
        if not 0 <= self.smoothing < 1:
            raise UsageError(
                f"adaptive: smoothing is {self.smoothing}; it must be from 0 to below 1"
            )
        if not 0 < self.least <= self.most <= 1:
            raise UsageError(
                f"adaptive: least is {self.least} and most is {self.most}; they must be above 0, "
                "at most 1, and in this order"
            )

    def check(self, sources: int) -> None:
        """Raises UsageError if this number of sources cannot keep the bounds.

        Raises:
            UsageError: the shares cannot add up to 1 within the bounds.
        """
        if self.least * sources > 1 or self.most * sources < 1:
            raise UsageError(
                f"adaptive: {sources} sources cannot all have shares from {self.least} to "
                f"{self.most}; give a least of 1/{sources} at most, and a most of 1/{sources} or "
                "more"
            )


@dataclass(frozen=True)
class Mixture:
    """The share of each source in a run.

    Attributes:
        weights: source -> weight, above 0. A source's share is its weight divided by the sum of all
            weights.
        mix_by: the measure of shares: "row", a step to write, which is what an optimiser step
            counts; "trajectory", an expert solution; "token", the expert's tokens.
        same_problem: which sources provide a problem that several sources solve: "all" of them,
            only one ("once", drawn by their weights), or each "in_turn": with n such sources, each
            source provides the problem in every n-th of its own epochs.
        when_exhausted: what happens when all rows of a source have been drawn: the source starts
            again ("repeat"); or it waits until the other sources are exhausted too, which share its
            part ("drop"); or the training ends ("stop").
        adaptive: shares move towards the sources whose groups' rewards differ most; None keeps the
            shares constant.
    """

    weights: Mapping[str, float]
    mix_by: MixBy = "row"
    same_problem: SameProblem = "all"
    when_exhausted: WhenExhausted = "repeat"
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            UsageError: a word that is not allowed, or weights that give no shares.
        """
        words = {"mix_by": MixBy, "same_problem": SameProblem, "when_exhausted": WhenExhausted}
        for name, kind in words.items():
            fit(getattr(self, name), kind, name)
        if not self.weights:
            raise UsageError("a mixture without sources; name one or more, each with a weight")
        for source, weight in self.weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not _LEAST_WEIGHT <= weight <= 1 / _LEAST_WEIGHT:
                raise UsageError(
                    f"the weight of source {source!r} is {weight!r}; it must be a number from "
                    f"{_LEAST_WEIGHT:f} to {1 / _LEAST_WEIGHT:,.0f}, such as 0.2, or 0 for a "
                    "source that is not trained on"
                )
        if self.adaptive is not None:
            self.adaptive.check(len(self.weights))

    @property
    def shares(self) -> dict[str, float]:
        """Returns source -> share; the shares add up to 1."""
        total = math.fsum(self.weights.values())
        return {source: weight / total for source, weight in self.weights.items()}


def preset_weights(
    preset: object, tags: Mapping[str, Mapping[str, str]], weights: Mapping[str, object]
) -> dict[str, float]:
    """Returns the weights of a preset: one part to four, each divided among the sources of a tag.

    Args:
        preset: the preset's name.
        tags: source -> its tags.
        weights: the weights that sources have themselves; there must be none.

    Raises:
        UsageError: there is no such preset, a source has a weight itself, or the tags do not fit
            the preset.
    """
    fit(preset, Literal[tuple(PRESETS)], "preset")
    if weights:
        raise UsageError(
            f"preset {preset} gives the weights, and source {next(iter(weights))} has one of its "
            "own; leave one of them away"
        )
    tag, *values = PRESETS[str(preset)]
    shares: dict[str, float] = {}
    for value, part in zip(values, _PARTS, strict=True):
        names = [name for name, own in tags.items() if own.get(tag) == value]
        if not names:
            raise UsageError(
                f"preset {preset} mixes sources with tags {{{tag}: {values[0]}}} and "
                f"{{{tag}: {values[1]}}}, and no source has {{{tag}: {value}}}"
            )
        shares |= dict.fromkeys(names, part / len(names))
    if left := [name for name in tags if name not in shares]:
        raise UsageError(
            f"preset {preset} gives source {left[0]} no weight, for its tag {tag} is neither "
            f"{values[0]} nor {values[1]}; tag it, or give weights in place of the preset"
        )
    return {name: shares[name] for name in tags}
