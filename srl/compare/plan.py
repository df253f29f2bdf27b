"""Defines the plan of a comparison: its difficulties, rows and seeds, and the runs they need.

A cell is one run of one difficulty, one row and one seed. The base policy is not trained and has no
seed. `plan_file` reads the plan from a file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from srl.config.experiment import Experiment
from srl.config.strict_yaml import nearest
from srl.errors import UsageError


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    name: str
    title: str
    trained: bool  # False for the base policy, which is only evaluated, once
    after: str | None  # the row whose policies this row starts from


@dataclass(frozen=True)
class Cell:
    """One run of the plan."""

    name: str  # the name of its folder: `hard.srl.0`, or `hard.base` without a seed
    difficulty: str
    row: str
    seed: int | None  # the seed of its training; None if it is not trained
    after: str | None  # the cell whose policy this cell starts from
    settings: Mapping[str, object]  # the content of its experiment file
    experiment: Experiment  # the same content, checked

    @property
    def trained(self) -> bool:
        return self.seed is not None


@dataclass(frozen=True)
class Plan:
    """The plan of a comparison."""

    source: Path  # its file
    quick: bool  # whether it is the small comparison of `--quick`
    output: Path  # the folder of all runs
    difficulties: tuple[str, ...]
    rows: tuple[Row, ...]  # in the table's order
    seeds: tuple[int, ...]  # the seeds of every trained row
    contrasts: tuple[tuple[str, str], ...]  # pairs of rows: the first minus the second
    metrics: tuple[str, ...]  # the figures of the contrasts; the first is the main figure
    cells: tuple[Cell, ...]  # each cell comes after the cell whose policy it starts from
    given: tuple[str, ...] = ()  # words of the command line that changed the file's plan
    across: bool = False  # contrasts are also shown side by side for all difficulties
    keep_checkpoints: bool = False  # whether finished cells keep their checkpoints

    @property
    def metric(self) -> str:
        """Returns the name of the main figure."""
        return self.metrics[0]

    def cells_of(self, difficulty: str, row: str) -> list[Cell]:
        """Returns the cells of a row: one per seed, or the one cell without a seed."""
        return [c for c in self.cells if (c.difficulty, c.row) == (difficulty, row)]

    def choose(
        self,
        *,
        rows: Collection[str] | None = None,
        seeds: Collection[int] | None = None,
        difficulties: Collection[str] | None = None,
    ) -> tuple[Cell, ...]:
        """Returns the chosen cells and all cells whose policies they start from; None is all.

        A row that is not trained has no seed, so a choice of seeds never excludes it.

        Raises:
            UsageError: a name or a seed that the plan does not have.
        """
        for asked, there, what in (
            (rows, [row.name for row in self.rows], "--rows"),
            (seeds, self.seeds, "--seeds"),
            (difficulties, self.difficulties, "--difficulties"),
        ):
            for choice in asked or ():
                if choice not in there:
                    names = [str(name) for name in there]
                    add = f"; choose among them, or add {choice} to `{what[2:]}` in the file"
                    if self.quick:
                        add = "; choose among them, or leave --quick away"
                    raise UsageError(
                        f"{what} {choice}: {self.source}{' with --quick' * self.quick} has "
                        f"{what[2:]} {', '.join(names)}{nearest(choice, names) or add}"
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
    """Returns the name of a cell's folder: `hard.srl.0`, or `hard.base` without a seed."""
    return ".".join([difficulty, row] if seed is None else [difficulty, row, str(seed)])
