r"""Loads s1K-1.1: 1,000 hard problems solved by a strong reasoner (Muennighoff et al., 2501.19393).

The SRL paper (section 4.1) takes DeepSeek's solution, column `deepseek_attempt`. It keeps the rows
whose solution is a list of steps ``N. **Title** text``, and drops the rest. If a row has `steps`,
they are read as they are.
"""

from __future__ import annotations

from environments.answers import boxed_answer
from environments.reading import (
    NO_PROBLEM,
    NO_SOLUTION,
    Row,
    UnusableRowError,
    collect,
    read_rows,
    text_of,
)
from environments.splitting import split_numbered
from environments.step_lists import steps_of
from environments.types import LoadReport, Step, Trajectory

HUB_NAME = "simplescaling/s1K-1.1"
SOURCE = "s1k"
NOT_NUMBERED = "not in the numbered format"


def load(
    path_or_hub: str | None = None,
    *,
    report: LoadReport,
    limit: int | None = None,
    split: str = "train",
    config: str | None = None,
    titles: bool = True,
) -> list[Trajectory]:
    r"""Loads rows with `steps` or `deepseek_attempt`, and `problem` or `question`, as trajectories.

    The answer is the content of ``\boxed{}``, where there is one.

    Args:
        path_or_hub: a local file or a hub name.
        report: the rows are counted in it.
        limit: stop after this many trajectories.
        split: the split of a hub data set.
        config: the configuration of a hub data set.
        titles: whether the steps of `deepseek_attempt` need bold titles, as in the paper. False
            also takes plain numbered steps.

    Raises:
        DataError: the source cannot be read or has other columns.
    """
    name = path_or_hub or HUB_NAME

    def build(row: Row) -> Trajectory:
        column = "problem" if row.get("problem") is not None else "question"
        problem = text_of(row, column, missing=NO_PROBLEM)
        steps = _steps(row, titles)
        answer = boxed_answer("\n".join(steps), problem)
        return Trajectory(problem, tuple(map(Step, steps)), answer, SOURCE)

    return collect(
        read_rows(name, split=split, config=config),
        build,
        name=name,
        columns=[["problem", "question"], ["steps", "deepseek_attempt"]],
        report=report,
        limit=limit,
    )


def _steps(row: Row, titles: bool) -> tuple[str, ...]:
    if row.get("steps") is not None or "deepseek_attempt" not in row:
        return tuple(step.text for step in steps_of(row, "steps"))
    solution = text_of(row, "deepseek_attempt", missing=NO_SOLUTION)
    steps = split_numbered(solution, titles=titles)
    if len(steps) < 2:
        raise UnusableRowError(NOT_NUMBERED)
    return tuple(steps)
