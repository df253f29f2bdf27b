"""The `data` block of an experiment: one source, or several that are mixed.

    data:
      sources:
        long:  {source: files, path: long.jsonl,  weight: 1, tags: {length: long}}
        short: {source: files, path: short.jsonl, weight: 4, tags: {length: short}}
      mix_by: row

Whose row comes when is in `srl/data/mixing.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from environments import Environment, load_trajectories
from environments.agreement import wrong_answers
from environments.granularity import Granularity
from environments.types import DataError, LoadReport, Trajectory
from rewards.by_path import CodeNameError
from rewards.secrets import concealed, revealed
from srl.config.sources import environment_at, whole_source
from srl.config.strict_yaml import build, fit, refuse_unknown
from srl.errors import UsageError

MixBy = Literal["row", "trajectory", "token"]
SameProblem = Literal["all", "once", "in_turn"]
WhenExhausted = Literal["repeat", "drop", "stop"]
WrongAnswers = Literal["drop", "keep"]

# What a mixture has of its own.
_WORDS = ("mix_by", "same_problem", "when_exhausted")
_MIXTURE_KEYS = ("sources", "preset", *_WORDS, "adaptive", "wrong_answers")
# A name stands in figures (`kept/long`) and on command lines.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")

# Preset -> the tag that it goes by, its value of which there is one part, and that of which there
# are four (Li et al., arXiv 2502.12143, section 3.3; shares of trajectories).
PRESETS = {
    "mix_long": ("length", "long", "short"),
    "mix_large": ("teacher", "large", "small"),
}
_PARTS = (1.0, 4.0)


@dataclass(frozen=True)
class Adaptive:
    """How shares follow the signal of sources (`srl/data/adaptive.py`).

    Attributes:
        smoothing: how much of a source's signal a group of its attempts leaves as it was.
        least, most: bounds of every share.
    """

    smoothing: float = 0.98
    least: float = 0.05
    most: float = 0.95

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UsageError: one that cannot be.
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
        """Refuse bounds that so many sources cannot keep.

        Raises:
            UsageError: they cannot.
        """
        if self.least * sources > 1 or self.most * sources < 1:
            raise UsageError(
                f"adaptive: {sources} sources cannot all have shares from {self.least} to "
                f"{self.most}; give a least of 1/{sources} at most, and a most of 1/{sources} or "
                "more"
            )


@dataclass(frozen=True)
class Mixture:
    """How much of a run is whose.

    Attributes:
        weights: source -> weight, above 0. Its share is its weight over the sum of them all.
        mix_by: what shares are of: "row", a step to write, which is what an optimiser step counts;
            "trajectory", an expert solution; "token", what the expert wrote.
        same_problem: a problem that several sources solve is told by "all" of them, by one of them
            alone ("once", drawn by their weights), or by each "in_turn", another one every epoch.
        when_exhausted: when a source has been seen whole it starts again ("repeat"), or waits until
            the others have been too, who share its part ("drop"), or ends the training ("stop").
        adaptive: shares move towards the sources whose groups differ most; None keeps them.
    """

    weights: Mapping[str, float]
    mix_by: MixBy = "row"
    same_problem: SameProblem = "all"
    when_exhausted: WhenExhausted = "repeat"
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        """Check every value.

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
            if not number or not 0 < weight < math.inf:
                raise UsageError(
                    f"the weight of source {source!r} is {weight!r}; it must be a number above 0, "
                    "such as 0.2 (leave a source out that is not to be trained on)"
                )
        if self.adaptive is not None:
            self.adaptive.check(len(self.weights))

    @property
    def shares(self) -> dict[str, float]:
        """Source -> its share; they add up to 1."""
        total = math.fsum(self.weights.values())
        return {source: weight / total for source, weight in self.weights.items()}


@dataclass(frozen=True)
class Source:
    """One source of expert solutions.

    Attributes:
        name: what it is called in a mixture; None where it is the only one, and calls itself
            something.
        environment: a built-in name, `file.py:Name` or `module:Name`.
        options: `path`, `limit` and the environment's own.
        granularity: how large its steps are made.
        tags: for each of its trajectories, beside those that they have.
    """

    name: str | None
    environment: str
    options: Mapping[str, object]
    granularity: Granularity = field(default_factory=Granularity)
    tags: Mapping[str, str] = field(default_factory=dict)

    def load(self, report: LoadReport) -> list[Trajectory]:
        """Its trajectories.

        Raises:
            DataError, UsageError: what cannot be read or used, in words.
        """
        called = "" if self.name is None else f"source {self.name}: "
        try:
            found = load_trajectories(
                environment_at(self.environment),
                report=report,
                **revealed(self.options),  # type: ignore[arg-type]
            )
        except DataError as error:
            raise DataError(called + concealed(str(error), self.options)) from None
        except CodeNameError as error:
            raise UsageError(f"data: {called}{error}") from error
        found = [self.granularity.apply(one) for one in found]
        if self.name is None:
            return found
        return [replace(one, source=self.name, tags={**one.tags, **self.tags}) for one in found]


@dataclass(frozen=True)
class DataPlan:
    """What `data` says.

    Attributes:
        sources: each of them.
        mixture: how they are mixed; None where there is only one, which is all there is.
        wrong_answers: what becomes of solutions in a mixture whose answer is seen to be wrong: they
            are left out ("drop") or not ("keep").
    """

    sources: tuple[Source, ...]
    mixture: Mixture | None
    wrong_answers: WrongAnswers = "drop"

    @classmethod
    def of(cls, data: object, where: str) -> DataPlan:
        """Read a `data` block; `where` names its origin in messages.

        Raises:
            UsageError: a key, a value or a source that cannot be.
        """
        several = isinstance(data, Mapping) and "sources" in data
        if not several:
            return cls((_source_of(data, f"{where}: data"),), None)
        return _mixed(data, f"{where}: data")  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """For a line of words."""
        return " + ".join(one.name or one.environment for one in self.sources)

    @property
    def environments(self) -> list[Environment]:
        """What loads each of the sources.

        Raises:
            UsageError, DataError: there is none of that name.
        """
        return [environment_at(one.environment) for one in self.sources]

    def load(self, report: LoadReport) -> list[Trajectory]:
        """The trajectories of all sources.

        Raises:
            DataError, UsageError: what cannot be read or used, in words.
        """
        found = [trajectory for one in self.sources for trajectory in one.load(report)]
        if self.mixture is None or self.wrong_answers == "keep":
            return found
        wrong = wrong_answers(found)
        for place, why in wrong.items():
            report.kept -= 1
            report.dropped[f"{found[place].source}: {why}"] += 1
        return [one for place, one in enumerate(found) if place not in wrong]

    def whole(self, data: Mapping[str, object]) -> dict[str, object]:
        """`data` with absolute paths of code, so that a run is resumed from any folder."""
        if self.mixture is None:
            return {**data, "source": whole_source(self.sources[0].environment)}
        blocks: Mapping[str, Mapping[str, object]] = data["sources"]  # type: ignore[assignment]
        return {
            **data,
            "sources": {
                str(one.name): {**blocks[str(one.name)], "source": whole_source(one.environment)}
                for one in self.sources
            },
        }


def _source_of(data: object, where: str) -> Source:
    if not isinstance(data, Mapping) or not isinstance(data.get("source"), str):
        raise UsageError(
            f"{where} is {data!r}; give a source, such as data: {{source: word_problems}}, or "
            "several under sources, each with a name and a weight (docs/mixtures.md)"
        )
    if not isinstance(data.get("path"), str | None):
        raise UsageError(f"{where}.path is {data['path']!r}; give a file or a hub name, as text")
    beside = ("source", "granularity")
    options = {key: value for key, value in data.items() if key not in beside}
    try:
        granularity = Granularity.of(data.get("granularity", {}))
    except DataError as error:
        raise UsageError(f"{where}: {error}") from error
    return Source(None, data["source"], options, granularity)


def _mixed(data: Mapping[str, object], where: str) -> DataPlan:
    refuse_unknown(data, _MIXTURE_KEYS, where)
    blocks = data["sources"]
    if not isinstance(blocks, Mapping) or not blocks:
        raise UsageError(
            f"{where}.sources is {blocks!r}; give names with a block each, such as "
            "long: {source: files, path: long.jsonl, weight: 1}"
        )
    sources: list[Source] = []
    weights: dict[str, float] = {}
    for name, block in blocks.items():
        place = f"{where}.sources.{name}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"{where}.sources: the name {name!r}; use letters, digits, _, + and -, such as long"
            )
        one = _source_of(block, place)
        tags = one.options.get("tags", {})
        if not isinstance(tags, Mapping) or not all(
            isinstance(text, str) for pair in tags.items() for text in pair
        ):
            raise UsageError(f"{place}.tags is {tags!r}; give texts, such as {{length: long}}")
        if "weight" in one.options:
            weights[name] = cast(float, fit(one.options["weight"], float, f"{place}.weight"))
        beside = ("weight", "tags")
        options = {key: value for key, value in one.options.items() if key not in beside}
        sources.append(replace(one, name=name, options=options, tags=dict(tags)))
    words = {key: data[key] for key in _WORDS if key in data}
    try:
        if (adaptive := data.get("adaptive", False)) is not False:
            given = {} if adaptive is True else adaptive
            if not isinstance(given, Mapping):
                raise UsageError(
                    f"adaptive is {adaptive!r}; give true, false or a block of settings"
                )
            words["adaptive"] = build(Adaptive, given, f"{where}.adaptive")
        if "preset" in data:
            weights = _preset(data["preset"], sources, weights)
            words.setdefault("mix_by", "trajectory")
        elif missing := [one.name for one in sources if one.name not in weights]:
            raise UsageError(
                f"source {missing[0]} has no weight; give each one, or a preset "
                f"({', '.join(PRESETS)}) for all"
            )
        mixture = Mixture(weights, **words)  # type: ignore[arg-type]
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    drop = fit(data.get("wrong_answers", "drop"), WrongAnswers, f"{where}.wrong_answers")
    return DataPlan(tuple(sources), mixture, cast(WrongAnswers, drop))


def _preset(
    preset: object, sources: list[Source], weights: Mapping[str, object]
) -> dict[str, float]:
    """The weights of a preset: one part to four, each shared by the sources with its tag."""
    fit(preset, Literal[tuple(PRESETS)], "preset")
    if weights:
        raise UsageError(
            f"preset {preset} gives the weights, and source {next(iter(weights))} has one of its "
            "own; leave one of them away"
        )
    tag, *values = PRESETS[str(preset)]
    found: dict[str, float] = {}
    for value, part in zip(values, _PARTS, strict=True):
        names = [str(one.name) for one in sources if one.tags.get(tag) == value]
        if not names:
            raise UsageError(
                f"preset {preset} mixes sources with tags {{{tag}: {values[0]}}} and "
                f"{{{tag}: {values[1]}}}, and no source has {{{tag}: {value}}}"
            )
        found |= dict.fromkeys(names, part / len(names))
    if left := [one.name for one in sources if one.name not in found]:
        raise UsageError(
            f"preset {preset} gives source {left[0]} no weight, for its tag {tag} is neither "
            f"{values[0]} nor {values[1]}; tag it, or give weights in place of the preset"
        )
    return {str(one.name): found[str(one.name)] for one in sources}
