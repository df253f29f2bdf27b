"""Loads a user's trajectories from a file with `problem`, and `solution` or `steps`.

If a row has `steps`, a list, they are used as they are. A splitter cuts `steps` that are one text,
and the `solution` of a row without steps. `answer` is optional: without it, the answer is what the
solution states, in a box or as "The answer is 4". Every other plain column goes to the metadata.
Rows in the formats of other tools are read too (`environments/shapes.py`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from environments.answers import stated_answer
from environments.pairs import final_answer, is_gsm8k
from environments.reading import (
    NO_PROBLEM,
    NO_SOLUTION,
    ExpertRow,
    Row,
    UnusableRowError,
    answer_of,
    collect,
    read_rows,
    tags_of,
    text_of,
    texts_beside,
)
from environments.shapes import Shape, shape_of
from environments.splitting import SPLITTERS, merge_fragments
from environments.step_lists import with_steps
from environments.thought_blocks import ThinkBlocks, with_thoughts
from environments.types import DataError, LoadReport, Step, Trajectory

LABELLED_WRONG = "labelled as wrong"

_SHOWN = 8  # the most values of a column that a message lists


def load(
    path_or_hub: str | None = None,
    *,
    report: LoadReport,
    limit: int | None = None,
    split: str = "train",
    config: str | None = None,
    splitter: str = "auto",
    min_chars: int = 0,
    label: str | None = None,
    problem_column: str = "problem",
    solution_column: str = "solution",
    steps_column: str = "steps",
    answer_column: str = "answer",
    thoughts_column: str | None = None,
    observations_column: str | None = None,
    tags_column: str | None = None,
    only: dict | None = None,
    answer_step: bool = False,
    think_blocks: ThinkBlocks = "thought",
) -> list[Trajectory]:
    """Loads trajectories from a local file or a hub data set of any origin.

    Args:
        path_or_hub: a local file or a hub name; there is no default.
        report: the rows are counted in it.
        limit: stop after this many trajectories.
        split: the split of a hub data set.
        config: the configuration of a hub data set.
        splitter: how a `solution` is cut: a name in `SPLITTERS`.
        min_chars: pieces of a cut solution shorter than this are joined to a neighbour.
        label: the name in logs and mixtures; by default the file's name without its suffix.
        problem_column: the column with the problem.
        solution_column: the column with the whole solution.
        steps_column: the column with the steps, used even if the row has a solution too.
        answer_column: the column with the final answer. Rows may lack it and state the answer in
            their solution.
        thoughts_column: the column with the expert's thoughts, a list with one text for each step.
            Rows may lack it. Only fine-tuning on the expert's text reads it. None reads no column.
        observations_column: the same for the environment's replies after each step. The policy
            reads a reply before it writes the next step.
        tags_column: the column with tags, an object such as {"length": "long"}; rows may lack it.
        only: reads only the rows with these values, as column -> value, such as
            {"teacher": "gemini", "granularity": 4}.
        answer_step: adds the step "The answer is 4." to complete solutions whose last step does not
            state the answer, if the row has one.
        think_blocks: how to treat a `<think>` block at the beginning of a solution or of a step.

    Raises:
        DataError: no path, an unknown splitter, no row with the values of `only`, or a source that
            cannot be read or lacks the columns.
    """
    if not path_or_hub:
        raise DataError("The source 'files' needs a path (or a hub name) to read from.")
    if splitter not in SPLITTERS:
        raise DataError(f"splitter is {splitter!r}; it can be {', '.join(SPLITTERS)}.")
    source_name = label or Path(path_or_hub).stem
    beside = [thoughts_column, observations_column]
    optional = [column for column in (*beside, tags_column) if column is not None]
    known = [problem_column, solution_column, steps_column, answer_column]

    def cut(text: str) -> list[str]:
        return merge_fragments(SPLITTERS[splitter](text), min_chars)

    def own(row: Row) -> ExpertRow:
        """Reads a row in this source's own format."""
        problem = text_of(row, problem_column, missing=NO_PROBLEM)
        if row.get(steps_column) is None and solution_column in row:
            text = text_of(row, solution_column, missing=NO_SOLUTION)
            return ExpertRow(problem, (Step(text),), whole=True)
        return with_steps(row, problem, steps_column)

    rows = read_rows(path_or_hub, split=split, config=config)
    if only is not None:
        rows = _only(rows, only, path_or_hub)
    first, rows = _first_of(rows)
    shape = None
    if (problem_column, solution_column, steps_column) == ("problem", "solution", "steps"):
        shape = shape_of(first)
        if shape is None and is_gsm8k(first):
            raise DataError(
                f"{path_or_hub} has GSM8K's columns, question and answer, and marks of its "
                f"calculator. Read it with the source gsm8k: check-data gsm8k --path {path_or_hub},"
                f" or data: {{source: gsm8k, path: {path_or_hub}}}."
            )
    asks_for_answer = shape is None or answer_column != "answer"
    if shape is not None:
        known = [*shape.columns, *shape.answers, answer_column]
        rows = _gathered(rows, shape, path_or_hub, report)

    def build(row: Row) -> Trajectory:
        if _is_labelled_wrong(row):
            raise UnusableRowError(LABELLED_WRONG)
        expert_row = own(row) if shape is None else shape.read(row)
        steps = list(with_thoughts(expert_row.steps, cut, think_blocks, whole=expert_row.whole))
        thoughts, observations = (texts_beside(row, column, len(steps)) for column in beside)
        steps = [
            Step(step.text, thought or step.thought, observation or step.observation)
            for step, thought, observation in zip(steps, thoughts, observations, strict=True)
        ]
        answer = answer_of(row, answer_column) if asks_for_answer else None
        answer = answer or expert_row.answer
        if answer is None and shape is not None:
            answer = final_answer(row, shape.answers)
        if answer is None and expert_row.complete:
            answer = stated_answer("\n".join(step.text for step in steps), expert_row.problem)
        if answer_step and expert_row.complete and answer is not None:
            steps += _answer_step(steps, answer, expert_row.problem)
        metadata: dict[str, object] = {
            key: value
            for key, value in row.items()
            if key not in (*known, *optional) and isinstance(value, str | int | float | bool)
        }
        tags = {} if tags_column is None else tags_of(row, tags_column)
        return Trajectory(expert_row.problem, tuple(steps), answer, source_name, tags, metadata)

    needed = [[problem_column], [solution_column, steps_column]] if shape is None else []
    return collect(
        rows,
        build,
        name=path_or_hub,
        columns=[*needed, *([column] for column in optional)],
        report=report,
        limit=limit,
        advice=_advice(first),
    )


def _is_labelled_wrong(row: Row) -> bool:
    """Returns whether a row says of itself that its solution is wrong.

    TRL's unpaired preference data have `label: false`, graded samples `correct: false`. Tables have
    the word.
    """
    values = [row.get(column) for column in ("label", "correct", "is_correct")]
    words = [str(value).strip().lower() for value in values if isinstance(value, bool | str)]
    graded = [row.get(column) for column in ("correct", "is_correct")]  # a label may be a class
    return "false" in words or any(type(value) in (int, float) and value == 0 for value in graded)


def _answer_step(steps: Sequence[Step], answer: str, problem: str) -> list[Step]:
    """Returns a step that states the answer, if there are steps and the last one states none."""
    if not steps or "\n" in answer or stated_answer(steps[-1].text, problem) is not None:
        return []
    return [Step(f"The answer is {answer.removesuffix('.')}.")]


def _advice(row: Row) -> str:
    """Returns the end of a message about a missing column, with columns of the row as examples.

    The examples are the two longest texts, in the order of the columns.
    """
    texts = {
        name: len(value)
        for name, value in row.items()
        if isinstance(value, str) and " " in value.strip() and name not in ("chosen", "rejected")
    }
    longest = sorted(texts, key=lambda name: texts[name], reverse=True)[:2]
    if len(longest) < 2:
        return " SRL needs a problem and the expert's solution or steps; docs/environments.md."
    problem, solution = (shlex.quote(name) for name in texts if name in longest)
    return (
        f" Say which is which, for example --problem_column {problem} --solution_column {solution} "
        "(--steps_column for a list of steps) with check-data, and --data.problem_column "
        f"{problem} --data.solution_column {solution} with train; docs/environments.md has all."
    )


def _first_of(rows: Iterator[Row]) -> tuple[Row, Iterator[Row]]:
    """Returns the first row, and an iterator over all rows."""
    first = next(rows)  # raises DataError if there are no rows
    return first, chain([first], rows)


def _gathered(rows: Iterator[Row], shape: Shape, name: str, report: LoadReport) -> Iterator[Row]:
    """Returns the rows of solutions; notes in the report how they were read."""
    if shape.gather is None:
        report.read_as.append(f"{name} is read as {shape.name}: {shape.reading}")
        return rows
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    solutions = list(shape.gather(counted()))
    report.read_as.append(
        f"{name} is read as {shape.name}: {shape.reading}; {count:,} rows, "
        f"{len(solutions):,} solutions"
    )
    return iter(solutions)


def _equals(cell: object, value: object) -> bool:
    """Returns whether a cell has a value; a table's cells are texts, so 4 equals "4"."""
    return cell == value or (isinstance(cell, str) and cell == str(value))


def _only(rows: Iterable[Row], only: Mapping[str, object], name: str) -> Iterator[Row]:
    """Yields the rows that have the values of `only`.

    Raises:
        DataError: `only` is empty, or no row has its values; the message lists values that occur.
    """
    if not only:
        raise DataError(
            f"{name}: only is empty; give columns with their values, such as {{teacher: gemini}}, "
            "or leave it away."
        )
    values: dict[str, set[str]] = {column: set() for column in only}
    matched = False
    for row in rows:
        for column, seen in values.items():
            if column in row and len(seen) <= _SHOWN:
                seen.add(repr(row[column]))
        if all(column in row and _equals(row[column], value) for column, value in only.items()):
            matched = True
            yield row
    if not matched:
        there = "; ".join(
            f"{column} is {', '.join(sorted(seen)[:_SHOWN])}{', …' * (len(seen) > _SHOWN)}"
            if seen
            else f"no row has a column {column!r}"
            for column, seen in values.items()
        )
        raise DataError(f"{name}: no row has the values of only: {dict(only)}; {there}.")
