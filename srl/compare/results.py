"""Computes the figures of a comparison: of each row, and of the contrasts between rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from srl.compare.cell_run import CellRun
from srl.compare.figures import contrast, row_estimate, row_estimate_of_counts, verdict
from srl.compare.plan import Plan, Row
from srl.errors import UsageError
from srl.stats import Estimate


@dataclass(frozen=True)
class Contrast:
    """The difference between two rows in one figure: the first row minus the second.

    `seeds` is empty if neither row is trained, or if there is no difference yet.
    """

    figure: str
    first: str
    second: str
    seeds: tuple[int, ...]
    difference: Estimate | None

    @property
    def word(self) -> str:
        if self.difference is None:
            return "not there yet"
        return verdict(self.difference, len(self.seeds))


@dataclass
class Part:
    """The table of one difficulty."""

    difficulty: str
    problems: int  # the number of problems; 0 if no cell is done
    rows: list[tuple[Row, list[CellRun]]]
    figures: dict[str, dict[str, Estimate]]  # row -> figure -> mean over the seeds that are done
    behaviour: dict[str, dict[str, Estimate]]  # row -> aspect of whole greedy solutions -> mean
    contrasts: list[Contrast]  # all contrasts of the first metric, then of the next, and so on


def build(plan: Plan, results: Mapping[str, CellRun]) -> list[Part]:
    """Returns the figures of every difficulty.

    Raises:
        UsageError: cells of one difficulty have solved different problems.
    """
    parts = []
    for difficulty in plan.difficulties:
        rows = [
            (row, [results[cell.name] for cell in plan.cells_of(difficulty, row.name)])
            for row in plan.rows
        ]
        problems = _same_problems([cell for _, cells in rows for cell in cells], plan)
        figures, shown = {}, {}
        for row, cells in rows:
            done = [cell.values for cell in cells if cell.values]
            # A figure that only some seeds have would average other trainings than the rest do.
            names = [n for n in done[0] if all(n in values for values in done)] if done else []
            figures[row.name] = {n: row_estimate([values[n] for values in done]) for n in names}
            seen = [cell.behaviour for cell in cells if cell.behaviour]
            aspects = seen[0] if seen else ()
            shown[row.name] = {
                a: row_estimate_of_counts([values[a] for values in seen]) for a in aspects
            }
        by_row = {row.name: cells for row, cells in rows}
        contrasts = [
            _contrast(*pair, by_row, metric) for metric in plan.metrics for pair in plan.contrasts
        ]
        parts.append(Part(difficulty, problems, rows, figures, shown, contrasts))
    return parts


def _contrast(
    first: str, second: str, rows: Mapping[str, Sequence[CellRun]], metric: str
) -> Contrast:
    """Returns a contrast, paired by seed; a row without seeds is paired with every seed."""
    first_by_seed, second_by_seed = (
        {cell.cell.seed: cell.values[metric] for cell in rows[row] if metric in cell.values}
        for row in (first, second)
    )
    seeds: list[int | None] = [
        *sorted(s for s in {*first_by_seed, *second_by_seed} if s is not None)
    ] or [None]
    pairs = [
        (
            s,
            first_by_seed.get(s, first_by_seed.get(None)),
            second_by_seed.get(s, second_by_seed.get(None)),
        )
        for s in seeds
    ]
    there = [(s, a, b) for s, a, b in pairs if a is not None and b is not None]
    if not there:
        return Contrast(metric, first, second, (), None)
    difference = contrast([a for _, a, _ in there], [b for _, _, b in there])
    shared = tuple(s for s, _, _ in there if s is not None)
    return Contrast(metric, first, second, shared, difference)


def _same_problems(cells: Sequence[CellRun], plan: Plan) -> int:
    """Returns how many problems the cells were evaluated on; all must have the same problems.

    Raises:
        UsageError: two cells have different problems for one figure.
    """
    seen: dict[str, tuple[str, set[str]]] = {}
    for cell in cells:
        for figure, values in cell.values.items():
            name, problems = seen.setdefault(figure, (cell.cell.name, set(values)))
            if problems != set(values):
                raise UsageError(
                    f"{cell.cell.name} and {name} have solved different problems: the data has "
                    f"changed since one of them was made. Move both out of {plan.output} to make "
                    "them again"
                )
    return max((len(problems) for _, problems in seen.values()), default=0)
