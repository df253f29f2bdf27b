"""Reads the `data` block of an experiment: one source, or several sources that are mixed.

data:
  sources:
    long:  {source: files, path: long.jsonl,  weight: 1, tags: {length: long}}
    short: {source: files, path: short.jsonl, weight: 4, tags: {length: short}}
  mix_by: row
"""

from __future__ import annotations

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
from srl.config.mixture import PRESETS, Adaptive, Mixture, preset_weights
from srl.config.sources import environment_at, whole_source
from srl.config.strict_yaml import build, fit, refuse_unknown
from srl.errors import UsageError

WrongAnswers = Literal["drop", "keep"]

# Keys that only a mixture has; `_WORDS` are those that are passed to `Mixture` unchanged.
_WORDS = ("mix_by", "same_problem", "when_exhausted")
_MIXTURE_KEYS = ("sources", "preset", *_WORDS, "adaptive", "wrong_answers")
# The name of a source is used in figures (`kept_share/row/long`) and on command lines.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")


@dataclass(frozen=True)
class Source:
    """One source of expert solutions.

    Attributes:
        name: the name in a mixture; None if it is the only source, whose name the loader sets.
        environment: a built-in name, `file.py:Name` or `module:Name`.
        options: `path`, `limit` and the environment's own options.
        granularity: the size that the steps are to have.
        tags: tags that are added to the tags of each trajectory.
        gold_answers: the answers of this source are right, whatever other sources state.
    """

    name: str | None
    environment: str
    options: Mapping[str, object]
    granularity: Granularity = field(default_factory=Granularity)
    tags: Mapping[str, str] = field(default_factory=dict)
    gold_answers: bool = False

    @property
    def teacher(self) -> tuple[str, ...]:
        """Returns a key of who wrote the solutions.

        Two sources that differ only in limit, granularity or keys of the mixture have the same key.
        """
        options = {key: value for key, value in self.options.items() if key != "limit"}
        return self.environment, repr(sorted(options.items()))

    def load(self, report: LoadReport) -> list[Trajectory]:
        """Returns the trajectories of this source.

        Raises:
            DataError, UsageError: something cannot be read or used; the message says what.
        """
        called = "" if self.name is None else f"source {self.name}: "
        try:
            trajectories = load_trajectories(
                environment_at(self.environment),
                report=report,
                **revealed(self.options),  # type: ignore[arg-type]
            )
        except DataError as error:
            raise DataError(called + concealed(str(error), self.options)) from None
        except CodeNameError as error:
            raise UsageError(f"data: {called}{error}") from error
        changed = [self.granularity.apply(trajectory) for trajectory in trajectories]
        # Only solutions that the granularity reduced to one step are dropped. Solutions that had
        # one step before are usable, because the loader has kept them.
        shrunk = [
            len(after.steps) < 2 <= len(before.steps)
            for before, after in zip(trajectories, changed, strict=True)
        ]
        if any(shrunk):
            report.kept -= sum(shrunk)
            report.dropped["granularity leaves one step"] += sum(shrunk)
        kept = [trajectory for trajectory, gone in zip(changed, shrunk, strict=True) if not gone]
        if self.name is None:
            return kept
        tags: Mapping[str, str] = revealed(self.tags)  # type: ignore[assignment]
        return [
            replace(trajectory, source=self.name, tags={**trajectory.tags, **tags})
            for trajectory in kept
        ]


@dataclass(frozen=True)
class DataPlan:
    """The content of a `data` block.

    Attributes:
        sources: all sources.
        mixture: how the sources are mixed; None if there is only one source. A source with weight 0
            is not in the mixture: its problems can be held out, but it is not trained on.
        wrong_answers: what to do with solutions in a mixture whose answer is found to be wrong:
            "drop" or "keep".
    """

    sources: tuple[Source, ...]
    mixture: Mixture | None
    wrong_answers: WrongAnswers = "drop"

    @classmethod
    def of(cls, data: object, where: str) -> DataPlan:
        """Reads a `data` block; `where` names its origin in messages.

        Raises:
            UsageError: a key, a value or a source is not allowed.
        """
        several = isinstance(data, Mapping) and "sources" in data
        if not several:
            return cls((_source_of(data, f"{where}: data"),), None)
        return _mixed(data, f"{where}: data")  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """Returns the names of the sources, joined by " + ", for messages."""
        return " + ".join(source.name or source.environment for source in self.sources)

    @property
    def environments(self) -> list[Environment]:
        """Returns the environment that loads each source.

        Raises:
            UsageError, DataError: there is no environment of that name.
        """
        return [environment_at(source.environment) for source in self.sources]

    def load(self, report: LoadReport) -> list[Trajectory]:
        """Returns the trajectories of all sources.

        Raises:
            DataError, UsageError: something cannot be read or used; the message says what.
        """
        loaded = [
            (source, trajectory) for source in self.sources for trajectory in source.load(report)
        ]
        trajectories = [trajectory for _, trajectory in loaded]
        if self.mixture is None or self.wrong_answers == "keep":
            return trajectories
        wrong = wrong_answers(
            trajectories,
            [source.teacher for source, _ in loaded],
            {source.teacher for source in self.sources if source.gold_answers},
        )
        for place, why in wrong.items():
            report.kept -= 1
            report.dropped[f"{trajectories[place].source}: {why}"] += 1
        return [trajectory for place, trajectory in enumerate(trajectories) if place not in wrong]

    def whole(self, data: Mapping[str, object]) -> dict[str, object]:
        """Returns `data` with absolute paths of code, so that a run can resume from any folder."""
        if self.mixture is None:
            return {**data, "source": whole_source(self.sources[0].environment)}
        blocks: Mapping[str, Mapping[str, object]] = data["sources"]  # type: ignore[assignment]
        return {
            **data,
            "sources": {
                str(source.name): {
                    **blocks[str(source.name)],
                    "source": whole_source(source.environment),
                }
                for source in self.sources
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
        source = _source_of(block, place)
        own = source.options.get("tags") or {}
        if not isinstance(own, Mapping) or not all(
            isinstance(text, str) for pair in own.items() for text in pair
        ):
            raise UsageError(f"{place}.tags is {own!r}; give texts, such as {{length: long}}")
        if "weight" in source.options:
            weights[name] = cast(float, fit(source.options["weight"], float, f"{place}.weight"))
        gold = fit(source.options.get("gold_answers", False), bool, f"{place}.gold_answers")
        beside = ("weight", "tags", "gold_answers")
        options = {key: value for key, value in source.options.items() if key not in beside}
        sources.append(
            replace(source, name=name, options=options, tags=dict(own), gold_answers=bool(gold))
        )
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
            tags = {str(source.name): source.tags for source in sources}
            weights = preset_weights(data["preset"], tags, weights)
            words.setdefault("mix_by", "trajectory")
        elif missing := [source.name for source in sources if source.name not in weights]:
            raise UsageError(
                f"source {missing[0]} has no weight; give each one, or a preset "
                f"({', '.join(PRESETS)}) for all"
            )
        aside = [name for name, weight in weights.items() if weight == 0]
        mixture = Mixture(
            {name: weight for name, weight in weights.items() if name not in aside},
            **words,  # type: ignore[arg-type]
        )
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    drop = fit(data.get("wrong_answers", "drop"), WrongAnswers, f"{where}.wrong_answers")
    return DataPlan(tuple(sources), mixture, cast(WrongAnswers, drop))
