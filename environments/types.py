"""What an environment hands to the trainer: an expert's solution, already cut into steps.

An environment answers two questions only: where do problems and expert steps come from, and how is
an answer verified? It knows nothing of rewards, prompts or training (ARCHITECTURE.md).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


class DataError(ValueError):
    """Data that cannot be used. The message says what came, what is allowed and what to do."""


@dataclass(frozen=True)
class Trajectory:
    """One expert solution.

    Attributes:
        problem: the problem's text, as the policy will read it.
        steps: the expert's steps in order; joined, they give the solution back up to white space.
        answer: the final answer as text, or None where the data states none.
        source: the name of the data set or of the teacher, for the logs and for mixtures.
        metadata: anything a reward or a report may want (difficulty, subject, ...).
        thoughts: what the expert thought before each step, word for word as it is to stand between
            the tags, white space too; none where the data has none. Rewards and contexts never see
            them: only fine-tuning on the expert's text does.

    Raises:
        DataError: there are thoughts, but not as many as steps.
    """

    problem: str
    steps: tuple[str, ...]
    answer: str | None = None
    source: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    thoughts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.thoughts and len(self.thoughts) != len(self.steps):
            raise DataError(
                f"{len(self.thoughts)} thoughts for {len(self.steps)} steps; give one for each "
                "step, an empty text where there is none, or no thoughts at all"
            )

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
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
