"""A user's own trajectories: JSONL, JSON or Parquet with `problem`, and `solution` or `steps`.

Where a row has `steps` (a list of texts) they are taken as they stand; otherwise its `solution` is
cut by a splitter. `answer` is optional: without it the answer is what the solution states, in a
box or as "The answer is 4". Every other plain column goes to the metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from environments.answers import stated_answer
from environments.reading import (
    NO_PROBLEM,
    NO_SOLUTION,
    Row,
    answer_of,
    collect,
    read_rows,
    steps_of,
    tags_of,
    text_of,
    texts_beside,
)
from environments.splitting import SPLITTERS, merge_fragments
from environments.types import DataError, LoadReport, Step, Trajectory

_SHOWN = 8  # values of a column in a message


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
) -> list[Trajectory]:
    """Trajectories from a local file or a hub data set of any origin.

    Args:
        path_or_hub: a local file or a hub name; there is no default.
        report: counted into.
        limit: stop after so many trajectories.
        split: the split of a hub data set.
        config: the configuration of a hub data set.
        splitter: how a `solution` is cut: a name in `SPLITTERS`.
        min_chars: pieces of a cut solution shorter than this are joined to a neighbour.
        label: the name in logs and mixtures; by default the file's name without its suffix.
        problem_column: the column with the problem.
        solution_column: the column with the whole solution.
        steps_column: the column with the list of steps; wins over the solution.
        answer_column: the column with the final answer; rows may lack it, and state it in their
            solution.
        thoughts_column: the column with what the expert thought before each step, a list as long as
            the steps; rows may lack it. Only fine-tuning on the expert's text reads it. None reads
            none.
        observations_column: the same, with what the world said after each step; the policy reads it
            before it writes the next one.
        tags_column: the column with tags, an object such as {"length": "long"}; rows may lack it.
        only: of a file with several kinds of rows those to read, as column -> value, such as
            {"teacher": "gemini", "granularity": 4}.

    Raises:
        DataError: no path, an unknown splitter, a source that cannot be read or lacks the columns.
    """
    if not path_or_hub:
        raise DataError("The source 'files' needs a path (or a hub name) to read from.")
    if splitter not in SPLITTERS:
        raise DataError(f"splitter is {splitter!r}; it can be {', '.join(SPLITTERS)}.")
    split_text = SPLITTERS[splitter]
    source_name = label or Path(path_or_hub).stem
    beside = [thoughts_column, observations_column]
    optional = [column for column in (*beside, tags_column) if column is not None]
    known = (problem_column, solution_column, steps_column, answer_column, *optional)

    def build(row: Row) -> Trajectory:
        problem = text_of(row, problem_column, missing=NO_PROBLEM)
        if row.get(steps_column) is not None or solution_column not in row:
            texts = steps_of(row, steps_column)
        else:
            solution = text_of(row, solution_column, missing=NO_SOLUTION)
            texts = tuple(merge_fragments(split_text(solution), min_chars))
        thoughts, observations = (texts_beside(row, column, len(texts)) for column in beside)
        metadata: dict[str, object] = {
            key: value
            for key, value in row.items()
            if key not in known and isinstance(value, str | int | float | bool)
        }
        return Trajectory(
            problem,
            tuple(map(Step, texts, thoughts, observations)),
            answer_of(row, answer_column) or stated_answer("\n".join(texts), problem),
            source_name,
            {} if tags_column is None else tags_of(row, tags_column),
            metadata,
        )

    rows = read_rows(path_or_hub, split=split, config=config)
    return collect(
        rows if only is None else _only(rows, only, path_or_hub),
        build,
        name=path_or_hub,
        columns=[
            [problem_column],
            [solution_column, steps_column],
            *([column] for column in optional),
        ],
        report=report,
        limit=limit,
    )


def _only(rows: Iterable[Row], only: Mapping[str, object], name: str) -> Iterator[Row]:
    """The rows with these values.

    Raises:
        DataError: there is none; the message says which values there are.
    """
    if not only:
        raise DataError(
            f"{name}: only is empty; give columns with their values, such as {{teacher: gemini}}, "
            "or leave it away."
        )
    values: dict[str, set[str]] = {column: set() for column in only}
    found = False
    for row in rows:
        for column, seen in values.items():
            if column in row and len(seen) <= _SHOWN:
                seen.add(repr(row[column]))
        if all(column in row and row[column] == value for column, value in only.items()):
            found = True
            yield row
    if not found:
        there = "; ".join(
            f"{column} is {', '.join(sorted(seen)[:_SHOWN])}{', …' * (len(seen) > _SHOWN)}"
            if seen
            else f"no row has a column {column!r}"
            for column, seen in values.items()
        )
        raise DataError(f"{name}: no row has the values of only: {dict(only)}; {there}.")
