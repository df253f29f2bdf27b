"""What is compared: difficulties, rows and seeds, and the runs that they ask for.

One run, a cell, is one difficulty, one row and one seed; the base policy, which is not trained, has
no seed. The file that says all this is read in `plan_file`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from srl.config.experiment import Experiment
from srl.errors import UsageError


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    title: str
    trained: bool  # false for the policy that every row starts from, which is evaluated once
    after: str | None  # the row whose policies this one starts from


@dataclass(frozen=True)
class Cell:
    """One run of the plan."""

    name: str  # of its folder: `hard.srl.0`, or `hard.base` without a seed
    difficulty: str
    row: str
    seed: int | None  # of its training; None is not trained
    after: str | None  # the cell whose policy it starts from
    settings: Mapping[str, object]  # its experiment file
    experiment: Experiment  # the same, checked

    @property
    def trained(self) -> bool:
        return self.seed is not None


@dataclass(frozen=True)
class Plan:
    """A comparison."""

    source: Path  # its file
    quick: bool  # it is the small one, of `--quick`
    output: Path  # the folder of all runs
    difficulties: tuple[str, ...]
    rows: tuple[Row, ...]  # in the table's order
    seeds: tuple[int, ...]  # of every trained row
    contrasts: tuple[tuple[str, str], ...]  # pairs of rows: the first less the second
    metrics: tuple[str, ...]  # the figures that contrasts are about; the first is the main one
    cells: tuple[Cell, ...]  # each behind the one whose policy it starts from
    given: tuple[str, ...] = ()  # words of the command line that changed the file's plan
    across: bool = False  # contrasts are also shown side by side for all difficulties
    keep_checkpoints: bool = False  # of cells that have finished

    @property
    def metric(self) -> str:
        """The main figure."""
        return self.metrics[0]

    def cells_of(self, difficulty: str, row: str) -> list[Cell]:
        """One cell for each seed, or the one that has none."""
        return [c for c in self.cells if (c.difficulty, c.row) == (difficulty, row)]

    def choose(
        self,
        *,
        rows: Collection[str] | None = None,
        seeds: Collection[int] | None = None,
        difficulties: Collection[str] | None = None,
    ) -> tuple[Cell, ...]:
        """The cells that are asked for, and those whose policies they start from; None is all.

        A row that is not trained has no seed, so no choice of seeds leaves it out.

        Raises:
            UsageError: a name or a seed that the plan does not have.
        """
        for asked, there, what in (
            (rows, [row.name for row in self.rows], "--rows"),
            (seeds, self.seeds, "--seeds"),
            (difficulties, self.difficulties, "--difficulties"),
        ):
            for one in asked or ():
                if one not in there:
                    raise UsageError(
                        f"{what} {one}: {self.source} has no such one; it has "
                        f"{', '.join(map(str, there))}"
                    )
        chosen: set[str | None] = set()
        for cell in reversed(self.cells):
            if cell.name in chosen or (
                (rows is None or cell.row in rows)
                and (seeds is None or cell.seed is None or cell.seed in seeds)
                and (difficulties is None or cell.difficulty in difficulties)
            ):
                chosen |= {cell.name, cell.after}
        return tuple(cell for cell in self.cells if cell.name in chosen)


def cell_name(difficulty: str, row: str, seed: int | None) -> str:
    """The folder of a cell: `hard.srl.0`; without a seed `hard.base`."""
    return ".".join([difficulty, row] if seed is None else [difficulty, row, str(seed)])
