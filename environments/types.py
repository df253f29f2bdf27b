"""What an environment hands to the trainer: an expert's solution, already cut into steps.

It knows nothing of rewards, prompts or training (ARCHITECTURE.md).
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
    """Data that cannot be used. The message says what came, what is allowed and what to do."""


@dataclass(frozen=True, order=True)
class Step:
    """One step of a solution, the expert's or the policy's.

    Attributes:
        text: the step itself; an expert's is what the policy is to write.
        thought: what was thought before it, word for word as it stands between the tags, white
            space too. Rewards and contexts never see an expert's: only fine-tuning does.
        observation: what the world said after it. It is context for the next step and never a
            target.
    """

    text: str
    thought: str = ""
    observation: str = ""


def as_steps(steps: Iterable[Step | str]) -> tuple[Step, ...]:
    """The steps, plain texts among them made steps without thought and observation."""
    return tuple(one if isinstance(one, Step) else Step(one) for one in steps)


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
        metadata: anything a reward or a report may want.
        environment: what loaded it and judges attempts at it (`load_trajectories` sets it); None is
            mathematics in words.
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
        """Whether what must be text is: a user's loader may have put anything there."""
        return all(isinstance(text, str) for text in self._all_texts())

    @property
    def is_unicode(self) -> bool:
        """Whether all texts can be written: JSON may hold half of a pair of surrogates."""
        return not any(_SURROGATE.search(text) for text in self._all_texts())

    def _all_texts(self) -> list[str]:
        steps = [(one.text, one.thought, one.observation) for one in self.steps]
        texts = [self.problem, self.source, *(text for step in steps for text in step)]
        return [
            *texts,
            *self.tags,
            *self.tags.values(),
            *([] if self.answer is None else [self.answer]),
        ]

    @property
    def texts(self) -> tuple[str, ...]:
        """The steps' texts; joined, they give the solution back up to white space."""
        return tuple(step.text for step in self.steps)

    @property
    def problem_id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the problem's text, white space folded.

        Equal problems have equal ids whatever file they came from, so a split by id can never put
        one problem on both sides.
        """
        return hashlib.sha256(" ".join(self.problem.split()).encode()).hexdigest()[:16]


@dataclass
class LoadReport:
    """What became of the rows of a source. Filled by the loaders, printed by `check-data`.

    Attributes:
        rows: rows read.
        kept: rows that became trajectories.
        dropped: reason -> rows dropped for it.
        read_as: of sources in a shape of other tools, how they were read, a line each.
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    read_as: list[str] = field(default_factory=list)
