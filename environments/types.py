"""Defines what an environment passes to the trainer: expert solutions, already cut into steps.

This module knows nothing of rewards, prompts or training (ARCHITECTURE.md).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from environments.environment import Environment


_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(ValueError):
    """An error in data. The message says what was given, what is allowed and what to do."""


@dataclass(frozen=True, order=True)
class Step:
    """One step of a solution, written by the expert or by the policy.

    Attributes:
        text: the step itself. The policy learns to write the expert's.
        thought: the thought before the step, exactly as it stands between the tags, with its white
            space. Rewards and contexts never see an expert's thought: only fine-tuning does.
        observation: the environment's reply after the step. It is context for the next step and
            never a target.
    """

    text: str
    thought: str = ""
    observation: str = ""


def as_steps(steps: Iterable[Step | str]) -> tuple[Step, ...]:
    """Returns the steps as a tuple; plain texts become steps without thought and observation."""
    return tuple(step if isinstance(step, Step) else Step(step) for step in steps)


@dataclass(frozen=True)
class Trajectory:
    """One expert solution.

    Attributes:
        problem: the problem's text, as the policy will read it.
        steps: the expert's steps in order. The constructor also takes plain texts, which become
            steps without thought and observation: ``Trajectory("1 + 2?", ("1 + 2 = 3", "So 3."))``.
        answer: the final answer as text, or None where the data states none.
        source: the name of the data set or of the teacher, for the logs and for mixtures.
        tags: names with values that group trajectories, such as {"length": "long"}.
        metadata: any other values that a reward or a report may use.
        environment: the environment that loaded it and judges attempts at it. `load_trajectories`
            sets it. None stands for mathematics in words.
    """

    problem: str
    steps: tuple[Step, ...]
    answer: str | None = None
    source: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)
    environment: Environment | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", as_steps(self.steps))

    @property
    def is_of_texts(self) -> bool:
        """Returns whether every value that must be text is text. A user's loader may break this."""
        return all(isinstance(text, str) for text in self._all_texts())

    @property
    def is_unicode(self) -> bool:
        """Returns whether all texts can be encoded. JSON may hold half of a surrogate pair."""
        return not any(_SURROGATE.search(text) for text in self._all_texts())

    def _all_texts(self) -> list[str]:
        steps = [(step.text, step.thought, step.observation) for step in self.steps]
        texts = [self.problem, self.source, *(text for step in steps for text in step)]
        return [
            *texts,
            *self.tags,
            *self.tags.values(),
            *([] if self.answer is None else [self.answer]),
        ]

    @property
    def texts(self) -> tuple[str, ...]:
        """Returns the texts of the steps in order."""
        return tuple(step.text for step in self.steps)

    @property
    def problem_id(self) -> str:
        """Returns 16 hexadecimal digits of the SHA-256 of the problem's text, white space folded.

        Equal problems have equal ids, whatever file they came from. So a split by id never puts one
        problem on both sides.
        """
        return hashlib.sha256(" ".join(self.problem.split()).encode()).hexdigest()[:16]


@dataclass
class LoadReport:
    """Counts what happened to the rows of a source. Loaders fill it; `check-data` prints it.

    Attributes:
        rows: rows read.
        kept: rows that became trajectories.
        dropped: reason -> number of rows dropped for it.
        drawn: whether the rows were drawn and not read, so that a dropped row is no loss.
        read_as: for sources in the format of another tool, one line each on how they were read.
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    drawn: bool = False
    read_as: list[str] = field(default_factory=list)
