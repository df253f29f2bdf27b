"""Chooses the next row as a function of (seed, epoch, cursor), in pure Python.

Refills draw from the same stream, and its state goes into the checkpoint. So a resumed run sees the
same rows as an uninterrupted run. The state holds a digest of the rows' content, so that a resumed
run notices an edited data file.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from environments.types import Trajectory
from srl.data.steps import StepExample
from srl.errors import UsageError


class PromptStream:
    """An endless stream of row indices. Every epoch is a new permutation of all rows.

    Args:
        num_rows: how many rows there are.
        seed: the seed of the order.
        cursor: how many rows were already handed out.
        units: the number of each row's unit. The units are permuted, and the rows of a unit follow
            one another in their own order. By default every row is a unit.
        data: a digest of the rows, as `digest_of` returns it.

    Attributes:
        takes_any_state: whether the stream accepts the state of other rows or another seed.
        is_over: whether there are no more rows; always False, because the stream starts again.
    """

    is_over = False

    @property
    def rows_an_epoch(self) -> int:
        """Returns the number of rows in an epoch."""
        return self.num_rows

    def __init__(
        self,
        num_rows: int,
        seed: int,
        cursor: int = 0,
        units: Sequence[int] | None = None,
        data: str = "",
    ) -> None:
        if num_rows < 1:
            raise UsageError(
                f"a prompt stream over {num_rows} rows; training needs at least 1 row: "
                "check the data's path and how many rows were held out or dropped"
            )
        if cursor < 0:
            raise UsageError(f"a stream cursor of {cursor}; it counts rows handed out, from 0")
        if units is not None and len(units) != num_rows:
            raise UsageError(f"{len(units)} units for {num_rows} rows; give every row's unit")
        self.num_rows = num_rows
        self.seed = seed
        self.cursor = cursor
        self.data = data
        self.units = range(num_rows) if units is None else units
        self.takes_any_state = False
        self._cached_epoch = -1
        self._order: list[int] = []

    @property
    def epoch(self) -> int:
        """Returns the epoch of the next row, from 0."""
        return self.cursor // self.num_rows

    def count(
        self, rows: Sequence[int], kept: Sequence[bool], spreads: Sequence[float] = ()
    ) -> dict[str, float]:
        """Returns no figures, because the stream does not distinguish sources."""
        return {}

    def take(self, n: int) -> list[int]:
        """Returns the indices of the next `n` rows, which may cross into the next epoch."""
        if n < 0:
            raise UsageError(f"{n} rows asked of the prompt stream; ask for 0 or more")
        rows = []
        for _ in range(n):
            rows.append(self._epoch_order(self.epoch)[self.cursor % self.num_rows])
            self.cursor += 1
        return rows

    def state_dict(self) -> dict[str, int | str]:
        """Returns the state for a checkpoint, as JSON values."""
        return {
            "num_rows": self.num_rows,
            "seed": self.seed,
            "cursor": self.cursor,
            "data": self.data,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` stopped.

        Raises:
            UsageError: the state is of another data set or another seed, so that its cursor would
                point at different rows, and `takes_any_state` is False; or it is incomplete, or
                its cursor is negative.
        """
        check_state(
            state,
            {"num_rows": self.num_rows, "seed": self.seed, "data": self.data},
            unless=self.takes_any_state,
        )
        if state["cursor"] < 0:
            raise UsageError(f"the saved stream cursor is {state['cursor']}; it counts from 0")
        self.cursor = state["cursor"]

    def _epoch_order(self, epoch: int) -> list[int]:
        if epoch != self._cached_epoch:
            keys = _random_numbers(max(self.units) + 1, f"{self.seed}-{epoch}")
            # The sort is stable, so the rows of a unit stay in their order.
            self._order = sorted(range(self.num_rows), key=lambda row: keys[self.units[row]])
            self._cached_epoch = epoch
        return self._order


def permuted(count: int, seed: str) -> list[int]:
    """Returns the numbers below `count`, in an order that the seed determines."""
    return sorted(range(count), key=_random_numbers(count, seed).__getitem__)


def _random_numbers(count: int, seed: str) -> list[float]:
    # Rows are sorted by random() and not shuffled by shuffle(). A run may be resumed under another
    # Python version, and Python promises a stable sequence for a seed only for random().
    rng = random.Random(seed)
    return [rng.random() for _ in range(count)]


def check_state(state: Mapping[str, Any], ours: Mapping[str, object], *, unless: bool) -> None:
    """Refuses a saved stream of other rows, because its cursor would point at different rows.

    Args:
        state: the saved state.
        ours: the values that must be the same.
        unless: different values are allowed.

    Raises:
        UsageError: a value is missing, or it is different and this is not allowed.
    """
    for key in ("cursor", *ours):
        if key not in state:
            raise UsageError(
                f"the saved prompt stream has no {key!r} (it has {', '.join(sorted(state))}): "
                "another version or kind of run saved it. Start a new run from its policy: "
                "--model FOLDER"
            )
    for key, value in ours.items():
        if state[key] != value and not unless:
            what = "rows of digest" if key == "data" else key
            raise UsageError(
                f"the checkpoint's prompt stream has {what} {state[key]}, this run has {value}; "
                "resume with the data and the seed the run was started with"
            )


def digest_of(examples: Iterable[StepExample]) -> str:
    """Returns 16 hexadecimal digits that change with the content or the order of the rows."""
    digest = hashlib.sha256()
    numbers: dict[int, int] = {}
    for example in examples:
        trajectory = example.trajectory
        if id(trajectory) not in numbers:
            numbers[id(trajectory)] = len(numbers)
            digest.update(_content(trajectory))
        place = numbers[id(trajectory)], example.step_index, example.title, example.whole
        digest.update(repr(place).encode())
    return digest.hexdigest()[:16]


def digest_of_trajectories(trajectories: Iterable[Trajectory]) -> str:
    """Returns 16 hexadecimal digits that depend on the trajectories' content and order."""
    digest = hashlib.sha256()
    for trajectory in trajectories:
        digest.update(_content(trajectory))
    return digest.hexdigest()[:16]


def _content(trajectory: Trajectory) -> bytes:
    steps = [astuple(step) for step in trajectory.steps]
    parts = (trajectory.problem, steps, trajectory.answer, trajectory.source)
    named = (dict(trajectory.tags), dict(trajectory.metadata))
    return json.dumps([parts, named], default=_plain, skipkeys=True).encode()


def _plain(value: object) -> object:
    """Returns a NumPy value as Python values; for others the type's name, as texts may change."""
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__
