"""Checks the data of a comparison before it starts: all rows must hold out the same problems."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console

from srl.compare.plan import Cell, Plan
from srl.data.splits import load_splits
from srl.errors import UsageError


def check_problems(plan: Plan, missing: Collection[Cell], console: Console) -> None:
    """Reads the data of all difficulties with missing cells, to report errors before a cell starts.

    Raises:
        UsageError: a row holds out other problems than another row, or has other answers to them.
        DataError: the data cannot be used.
    """
    begun = {cell.difficulty for cell in missing}
    seen = []
    held_out: dict[str, tuple[Cell, tuple[set[tuple[str, str | None]], ...]]] = {}
    for cell in plan.cells:
        args = cell.experiment.args
        sizes = (args.train_problems, args.validation_problems, args.test_problems)
        split = (cell.difficulty, cell.experiment.data, sizes)
        if cell.difficulty not in begun or split in seen:
            continue
        seen.append(split)
        # The numbers of dropped and remaining rows are printed once per difficulty.
        output = console if cell.difficulty not in held_out else Console(quiet=True)
        splits = load_splits(cell.experiment, output)
        problems = tuple(
            {(trajectory.problem_id, trajectory.answer) for trajectory in part}
            for part in (splits.validation, splits.test)
        )
        first, theirs = held_out.setdefault(cell.difficulty, (cell, problems))
        if problems != theirs:
            raise UsageError(
                f"{plan.source}: row {cell.row} holds out other problems than row {first.row} in "
                f"difficulty {cell.difficulty}, or has other answers to them; rows are compared on "
                "the same problems. Take out of the row what changes them: options of data such as "
                "limit or seed, validation_problems, test_problems"
            )
