"""Reads rows from a local file or from the hub, and turns them into counted trajectories.

A fault of a *file* (missing, empty, malformed, without the columns) raises a DataError. A fault of
a *row* drops the row and counts it by reason in the LoadReport. Every built-in loader of rows uses
`collect`, so that a reason has the same text for every data set.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import chain
from pathlib import Path

from environments.splitting import shows_something
from environments.types import DataError, LoadReport, Step, Trajectory

Row = Mapping[str, object]

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
# A list of texts, objects or numbers, or an object, as JSON and Python write them.
_STRUCTURE = re.compile(
    r"""\s*(\[\s*((['"{\[\d-]|(true|false|null|True|False|None)\b).*)?\]|\{\s*['"].*\})\s*""",
    re.DOTALL,
)
_OF_TEXTS = re.compile(r"""\s*(\[\s*['"{]|\{\s*['"])""")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HINT = (
    f"Give a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, "
    "or a hub name such as owner/name."
)

NO_PROBLEM = "no problem"
NO_SOLUTION = "no solution"
NO_STEPS = "no steps"
NOT_TEXT = "not text"
EMPTY_STEP = "empty step"
ONE_STEP = "only one step"
NOTHING_TO_COMPARE = "a step that shows nothing"
_EXACT = 2**53  # floats hold every whole number up to this one
MOST_STEPS = 1000
MANY_STEPS = f"more than {MOST_STEPS:,} steps"
NOT_UNICODE = "text that is not Unicode (a lone surrogate)"
DUPLICATE = "duplicate row"


@dataclass(frozen=True)
class ExpertRow:
    """An expert's solution as a row holds it.

    Attributes:
        problem: the problem's text.
        steps: the steps; a solution that is to be cut is one step with all of its text.
        whole: whether the solution is to be cut.
        answer: the final answer, where the shape has a place of its own for it.
        complete: whether the steps reach the end of the solution.
    """

    problem: str
    steps: tuple[Step, ...]
    whole: bool = False
    answer: str | None = None
    complete: bool = True


class UnusableRowError(Exception):
    """A row makes no trajectory. The error's text is the reason that the report counts."""


def read_rows(
    path_or_hub: str, *, split: str = "train", config: str | None = None
) -> Iterator[Row]:
    """Reads the rows of a local file of one of the `SUFFIXES`, or of the hub.

    A .json file holds a list of objects. The first line of a .csv or .tsv file names the columns.

    Args:
        path_or_hub: an existing file, or `owner/name` on the hub.
        split: the split of a hub data set; a local file has none.
        config: the configuration of a hub data set, where it has several.

    Raises:
        DataError: there is nothing to read, or it cannot be read.
    """
    path = Path(path_or_hub).expanduser()
    try:
        if path.is_dir():
            raise DataError(f"{path_or_hub} is a folder, not a file. {_HINT}")
        exists = path.exists()
    except OSError as error:
        raise DataError(f"{path_or_hub} cannot be read: {error}. {_HINT}") from error
    suffix = path.suffix.lower()
    if exists and suffix not in SUFFIXES:
        raise DataError(
            f"{path_or_hub}: files of kind {suffix or '(none)'} are not read. {_HINT}"
            + (" For an environment of your own write FILE:NAME." if suffix == ".py" else "")
        )
    if exists:
        rows = _READERS[suffix](path)
    elif suffix in SUFFIXES:
        near = get_close_matches(path.name, _names_in(path.parent), n=1, cutoff=0.8)
        meant = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise DataError(f"{path_or_hub}: no such file (looked from {Path.cwd()}).{meant}")
    elif _HUB_NAME.fullmatch(path_or_hub):
        rows = _read_hub(path_or_hub, split=split, config=config)
    else:
        raise DataError(f"{path_or_hub!r} is neither an existing file nor a hub name. {_HINT}")
    return _not_empty(rows, path_or_hub)


def _names_in(folder: Path) -> list[str]:
    """Returns the names of the files in a folder; none if it cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _not_empty(rows: Iterator[Row], name: str) -> Iterator[Row]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(
            f"{name} holds no rows. A row is an object such as "
            '{"problem": "...", "solution": "..."}.'
        )


def _read_jsonl(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                yield _json_object(line, f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, after line {number}: not UTF-8 text ({error.reason}).") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _json_object(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: malformed JSON ({error}). Each line must be one JSON object."
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{place}: expected a JSON object, found {type(row).__name__}. Each line must be one "
            'object such as {"problem": "...", "solution": "..."}.'
        )
    return row


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: malformed JSON ({error}). If it has one object a line, name it .jsonl."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, found {type(rows).__name__}.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {number}: expected an object, found {type(row).__name__}."
            )
        yield row


@dataclass(frozen=True)
class Unreadable:
    """A cell that looks like a list or an object and cannot be read as one; no text, so no step."""

    text: str


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    """Reads a table of text: .csv with commas or semicolons, or .tsv with tabs.

    An empty cell is null. A cell with a list or an object, as JSON or Python writes it, becomes
    that. All other cells stay text.
    """
    csv.field_size_limit(2**31 - 1)  # the limit that Python sets is shorter than some solutions
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            head = lines.readline()
            if head.startswith("sep=") and len(head.rstrip("\r\n")) == 5:  # Excel's own hint
                delimiter, number, head = head[4], 1, lines.readline()
            elif delimiter == "," and "," not in head and ";" in head:
                delimiter = ";"
            table = csv.reader(chain([head], lines), delimiter=delimiter, strict=True)
            names = next(table, [])
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError(f"{path}: two columns are called {twice!r}; rename one.")
            for cells in table:
                if len(cells) > len(names):
                    raise DataError(
                        f"{path}, line {number + table.line_num}: more values than the first line "
                        f"has columns ({', '.join(names)}). Put a text with the separator "
                        f"{delimiter!r} into quotes."
                    )
                if cells:
                    yield dict(zip(names, map(_cell, cells), strict=False))
    except csv.Error as error:
        line = number + table.line_num
        raise DataError(f"{path}, after line {line}: malformed table ({error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason}). Save it as UTF-8 (in Excel: CSV UTF-8)."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _cell(text: str) -> object:
    """Returns the value of a table's cell."""
    if not _STRUCTURE.fullmatch(text):
        return text or None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict):
            return value
    return Unreadable(text) if _OF_TEXTS.match(text) else text  # [1/2, 3] is an answer


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # installed with datasets; imported here because JSONL needs neither
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}.") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": partial(_read_table, delimiter=","),
    ".tsv": partial(_read_table, delimiter="\t"),
}


def _read_hub(name: str, *, split: str, config: str | None) -> Iterator[Row]:
    import datasets  # slow to import, and needed for the hub only

    # The hub, the network, the cache and file formats raise dozens of unrelated classes here. All
    # of them mean the same to the user, and the message gives the cause.
    try:
        data = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        cause = " ".join(str(error).split())[:300]
        raise DataError(
            f"{name} (split {split!r}, config {config!r}) could not be loaded from the hub: "
            f"{type(error).__name__}: {cause}. Check the name and the network, or give a local "
            f"file that ends in {', '.join(SUFFIXES)}: --data.path FILE for train, --path FILE for "
            "check-data."
        ) from error
    yield from data


def collect(
    rows: Iterable[Row],
    build: Callable[[Row], Trajectory],
    *,
    name: str,
    columns: Sequence[Sequence[str]],
    report: LoadReport,
    limit: int | None = None,
    advice: str = "",
) -> list[Trajectory]:
    """Builds a trajectory from each row. Drops and counts the rows that make none.

    A row is dropped when `build` raises UnusableRowError, when its trajectory cannot be trained on
    (`why_unusable`), or when it equals an earlier one in problem and steps, thoughts and
    observations included. Two different solutions of one problem are both kept.

    Args:
        rows: the rows as read.
        build: a row -> its trajectory; raises UnusableRowError.
        name: what the rows were read from, for messages.
        columns: groups of column names; at least one column of each group must occur in some row.
        report: the rows are counted in it.
        limit: stop after this many trajectories, 1 or more.
        advice: the end of the message about a missing column.

    Raises:
        DataError: a column is missing from every row.
    """
    kept: list[Trajectory] = []
    seen: set[tuple[str, tuple[Step, ...]]] = set()
    column_names: dict[str, None] = {}  # column names in order
    for row in rows:
        column_names.update(dict.fromkeys(row))
        report.rows += 1
        try:
            trajectory = build(row)
            if why := why_unusable(trajectory):
                raise UnusableRowError(why)
            key = (trajectory.problem, trajectory.steps)
            if key in seen:
                raise UnusableRowError(DUPLICATE)
        except UnusableRowError as reason:
            report.dropped[str(reason)] += 1
            continue
        seen.add(key)
        kept.append(trajectory)
        report.kept += 1
        if len(kept) == limit:
            break
    for group in columns:
        if not any(column in column_names for column in group):
            raise DataError(
                f"{name}: column {' or '.join(map(repr, group))} is missing from every row; the "
                f"columns are {', '.join(map(repr, column_names)) or '(none)'}.{advice}"
            )
    return kept


def why_unusable(trajectory: Trajectory) -> str | None:
    """Returns why a solution cannot be trained on, or None if it can."""
    steps = trajectory.texts
    if not steps:
        return NO_STEPS
    if not all(step.strip() for step in steps):
        return EMPTY_STEP
    if not trajectory.is_unicode:
        return NOT_UNICODE  # no tokenizer reads it, and no log can hold it
    if not shows_something(trajectory.problem):
        return NO_PROBLEM
    if not all(map(shows_something, steps)):
        return NOTHING_TO_COMPARE
    # The prompt of each later step repeats every step.
    if len(steps) > MOST_STEPS:
        return MANY_STEPS
    # With one step the problem is the only context: that is RLVR or SFT, not SRL.
    return ONE_STEP if len(steps) == 1 else None


def text_of(row: Row, column: str, *, missing: str) -> str:
    """Returns the text in a column.

    Raises UnusableRowError(`missing`) if the column is absent, null or blank.
    """
    value = row.get(column)
    if value is None:
        raise UnusableRowError(missing)
    if not isinstance(value, str):
        raise UnusableRowError(f"{column} is {NOT_TEXT}")
    if not value.strip():
        raise UnusableRowError(missing)
    return value


def tags_of(row: Row, column: str) -> dict[str, str]:
    """Returns the tags in a column, names with texts; absent or null gives none.

    Raises UnusableRowError if the column holds anything else.
    """
    value = row.get(column)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(tag, str) for tag in value.values()):
        raise UnusableRowError(f"{column} is not an object of texts")
    return {str(name): text for name, text in value.items()}


def texts_of(row: Row, column: str) -> tuple[str, ...]:
    """Returns the list of texts in a column; absent or null gives an empty one.

    Raises UnusableRowError if the column holds anything else.
    """
    value = row.get(column)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise UnusableRowError(f"{column} is not a list of texts")
    return tuple(value)


def texts_beside(row: Row, column: str | None, steps: int) -> tuple[str, ...]:
    """Returns a text for each step from a column; empty texts if there is no column or text.

    Raises UnusableRowError if the column holds anything but one text for each step.
    """
    texts = () if column is None else texts_of(row, column)
    if texts and len(texts) != steps:
        raise UnusableRowError(f"not as many {column} as steps")
    return texts or ("",) * steps


def answer_of(row: Row, column: str) -> str | None:
    """Returns the final answer in a column as text, a number too; null or blank gives None."""
    value = row.get(column)
    if value is None or value != value:  # NaN: a missing number in a table
        return None
    if isinstance(value, list) and value and _is_numbers(value):
        return json.dumps(value)  # a point or an interval, such as [0, 1]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnusableRowError(f"{column} is {NOT_TEXT}")
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)  # tables with a missing number have 4.0 for 4
    return str(value).strip() or None


def _is_numbers(value: object) -> bool:
    """Returns whether a value is a number, or a list of numbers and of such lists."""
    if isinstance(value, list):
        return all(map(_is_numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)
