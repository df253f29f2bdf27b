"""Makes the steps of a solution coarser or finer, without losing text.

A policy is rewarded for matching expert steps, so the size of steps decides what a reward can show.
Two long steps are hardly ever written alike. A short step leaves nothing to decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from environments.splitting import SPLITTERS
from environments.types import DataError, Step, Trajectory

_JOINER = "\n"


@dataclass(frozen=True)
class Granularity:
    """The size that steps are to have. Steps are first cut, then joined.

    Attributes:
        split_at: cut every step by this splitter, a name in `SPLITTERS`; None cuts none.
        min_chars: join neighbours until a step has at least this many characters; 0 joins none.
        max_steps: join neighbours until a solution has at most this many steps, the shortest pair
            first; None joins none.
    """

    split_at: str | None = None
    min_chars: int = 0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            DataError: a value is not allowed.
        """
        if self.split_at is not None and (
            not isinstance(self.split_at, str) or self.split_at not in SPLITTERS
        ):
            raise DataError(
                f"granularity: split_at is {self.split_at!r}; allowed: {', '.join(SPLITTERS)}."
            )
        for name, least in (("min_chars", 0), ("max_steps", 2)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise DataError(
                    f"granularity: {name} is {value!r}; give a whole number from {least} on."
                )

    @classmethod
    def of(cls, given: object) -> Granularity:
        """Reads a `granularity` block.

        Raises:
            DataError: it is no block, or has a key or a value that is not allowed.
        """
        known = [setting.name for setting in fields(cls)]
        if not isinstance(given, Mapping):
            raise DataError(
                f"granularity is {given!r}; give a block such as {{split_at: clauses}} or "
                "{max_steps: 3}."
            )
        if unknown := [key for key in given if key not in known]:
            raise DataError(f"granularity: unknown key {unknown[0]!r}; it has {', '.join(known)}.")
        return cls(**given)

    def apply(self, trajectory: Trajectory) -> Trajectory:
        """Returns the same solution in steps of another size.

        If a step is cut, its thought goes to its first part and its observation to its last part.
        The thoughts of joined steps stand one a line. A step with an observation is never joined
        with the next step, because the next step was written after that observation.
        """
        steps = list(trajectory.steps)
        if self.split_at is not None:
            steps = [part for step in steps for part in _cut(step, self.split_at)]
        if self.min_chars:
            steps = _join_short(steps, self.min_chars)
        if self.max_steps is not None:
            steps = _join_to(steps, self.max_steps)
        return (
            trajectory
            if tuple(steps) == trajectory.steps
            else replace(trajectory, steps=tuple(steps))
        )


def _cut(step: Step, splitter: str) -> list[Step]:
    texts = SPLITTERS[splitter](step.text)
    if len(texts) < 2:
        return [step]
    parts = [Step(text) for text in texts]
    parts[0] = replace(parts[0], thought=step.thought)
    parts[-1] = replace(parts[-1], observation=step.observation)
    return parts


def _joined(steps: Sequence[Step]) -> Step:
    if len(steps) == 1:
        return steps[0]
    return Step(
        _JOINER.join(step.text for step in steps),
        _JOINER.join(step.thought for step in steps if step.thought.strip()),
        steps[-1].observation,
    )


def _join_short(steps: Sequence[Step], min_chars: int) -> list[Step]:
    groups: list[list[Step]] = []
    for step in steps:
        open_ = groups and not groups[-1][-1].observation
        if open_ and len(_joined(groups[-1]).text) < min_chars:
            groups[-1].append(step)
        else:
            groups.append([step])
    # If the last group is too short, it goes to the group before it.
    short = len(groups) > 1 and len(_joined(groups[-1]).text) < min_chars
    if short and not groups[-2][-1].observation:
        rest = groups.pop()
        groups[-1] += rest
    return [_joined(group) for group in groups]


def _join_to(steps: Sequence[Step], count: int) -> list[Step]:
    """Joins the shortest pair of neighbours until at most `count` steps are left."""
    groups = [[step] for step in steps]
    while len(groups) > count:
        pairs = [
            (sum(len(step.text) for step in groups[i] + groups[i + 1]), i)
            for i in range(len(groups) - 1)
            if not groups[i][-1].observation
        ]
        if not pairs:
            break
        _, first = min(pairs)
        groups[first] += groups.pop(first + 1)
    return [_joined(group) for group in groups]
