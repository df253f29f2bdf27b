"""Loads the step log as a table: the table holds the numbers, and the log itself holds the texts.

A log of a million records has about a gigabyte of text, and no filter uses it. So each record is
read once and its numbers and names go into columns; the texts are read from the log when they are
shown. Whole parts of the log are kept as Arrow files in `.index/` beside it, and their lines are
not read again. The records after the last whole part are read every time, so a log that is still
being written needs no special care. A part is reused only while its last line is unchanged: a
resumed run cuts its log back, and the parts beyond the cut are made again. A part that is damaged,
or that another program wrote, is also made again: its columns are checked before they are used.

One change is not noticed: an edit in place that leaves the last line of a part unchanged. After you
edit a log, remove the folder `.index` beside it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from rewards.similarity import normalize
from srl.errors import UsageError
from srl.runs.records import StepRecord, parse_record, utf8

# Records in a part. Nearly as many records can follow the last whole part. They are read each time
# the log is opened, which takes half a second.
PART_RECORDS = 16_384

# The limit on a line, in bytes; records are much shorter. A file without line ends is no step log,
# and reading it would fill the memory.
_LONGEST_LINE = 256 * 2**20

# Increase it when the columns change. An index of another version is made again.
_VERSION = b"5"

_WORDS = pa.dictionary(pa.int32(), pa.string())
_COLUMNS: dict[str, pa.DataType] = {
    "start": pa.int64(),
    "train_step": pa.int32(),
    "phase": _WORDS,
    "source": _WORDS,
    "problem_id": _WORDS,
    "step_index": pa.int32(),
    "num_steps": pa.int32(),
    "steps_left": pa.int32(),
    "step_text": pa.int64(),
    "group_id": pa.int32(),
    "rollout": pa.int32(),
    "prompt_tokens": pa.int32(),
    "completion_tokens": pa.int32(),
    "truncated": pa.bool_(),
    "format_failure": _WORDS,
    "reward": pa.float64(),
    "group_mean": pa.float64(),
    "group_std": pa.float64(),
    "kept": pa.bool_(),
    "dropped_because": _WORDS,
    "advantage": pa.float64(),
    # A comparison of the texts, normalised as in `similarity`; null where the format is broken.
    "copied": pa.bool_(),
}
# The prefixes of the columns of the named rewards, and of all other figures that have a name.
REWARD, METRIC = "rewards/", "metrics/"
# The columns that may be null. The columns of named rewards and metrics may be null too.
_OPTIONAL = {
    "format_failure", "reward", "group_mean", "group_std", "dropped_because", "advantage", "copied",
}  # fmt: skip

Progress = Callable[[int, int], None]


class LogChangedError(UsageError):
    """A log was changed after it was opened."""


class Log:
    """The records of a step log.

    Attributes:
        path: the path of the log.
        table: one row for each record, in the log's order, so that row k is line k + 1. Columns:
            `start` (the offset of its first byte), the numbers and names of the record,
            `rewards/NAME` for each reward, `metrics/NAME` for each metric (`exact` is computed
            where a log of schema 1 lacks it), `steps_left` (how many expert steps follow: 0 at the
            last), `step_text` (a checksum of the expert's step, which distinguishes two solutions)
            and `copied` (the action equals the previous step; null at the first step and where the
            format is broken).
        end: the byte after the last whole record.
        unfinished: how many bytes follow it: a record that is being written, or was cut off.
    """

    def __init__(self, path: Path, table: pa.Table, end: int, unfinished: int) -> None:
        self.path = path
        self.table = table
        self.end = end
        self.unfinished = unfinished

    @classmethod
    def open(cls, path: Path, progress: Progress | None = None) -> Log:
        """Reads a log: the indexed part from the index, the rest from the file.

        Args:
            path: a `steps.jsonl`.
            progress: called with the bytes read so far and the size of the log, after each whole
                part that no index has.

        Raises:
            UsageError: there is no log, or a line is not a step record (the message names it).
        """
        try:
            size = path.stat().st_size
            file = path.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        with file:
            parts, end, lines = _indexed(path, file, size)
            for rows, new_end, whole in _read(path, file, end, lines, size, progress):
                part = _table(rows)
                if whole:
                    _keep(path, len(parts), part, file, part["start"][-1].as_py(), new_end)
                parts.append(part)
                end = new_end
        table = pa.concat_tables(parts, promote_options="default") if parts else _table([])
        # A line that was incomplete when the size was taken may be complete when it is read. Then
        # `end` is beyond `size`, and the difference is negative.
        return cls(path, table.unify_dictionaries().combine_chunks(), end, max(0, size - end))

    @property
    def reward_names(self) -> list[str]:
        """The named rewards, in the order of their first record."""
        return self._named(REWARD)

    @property
    def metric_names(self) -> list[str]:
        """The other figures of a rollout, in the order of their first record."""
        return self._named(METRIC)

    def _named(self, prefix: str) -> list[str]:
        return [n.removeprefix(prefix) for n in self.table.column_names if n.startswith(prefix)]

    def read(self, rows: Iterable[int]) -> Iterator[StepRecord]:
        """Yields the whole records of these rows of the table, with texts, in the given order.

        Raises:
            LogChangedError: the log was changed since it was opened.
        """
        table = self.table
        starts, steps = table["start"], table["train_step"]
        problems, rollouts = table["problem_id"], table["rollout"]
        with self._file() as file:
            for row in rows:
                file.seek(starts[row].as_py())
                where = f"{self.path}, line {row + 1}"
                try:
                    record = parse_record(file.readline(), where)
                except UsageError as error:
                    raise _changed(where) from error
                # A log that was cut back and has grown again holds other records in these places.
                identity = record.train_step, utf8(record.problem_id), record.rollout
                if identity != (steps[row].as_py(), problems[row].as_py(), rollouts[row].as_py()):
                    raise _changed(where)
                yield record

    def _file(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise LogChangedError(f"cannot read {self.path}: {error.strerror or error}") from error


def _changed(where: str) -> LogChangedError:
    return LogChangedError(
        f"{where}: the log was changed since it was opened; ask again. If it was edited by hand, "
        "remove the folder .index beside it"
    )


def folder_of(path: Path) -> Path:
    """Returns the folder of the index of the log at `path`."""
    return path.parent / ".index"


def _indexed(path: Path, file: BinaryIO, size: int) -> tuple[list[pa.Table], int, int]:
    """Returns the parts that still match the log, the byte after them, and their line count."""
    parts: list[pa.Table] = []
    end = lines = 0
    while (kept := _part(path, len(parts))).is_file():
        try:
            table, new_end, mark = _stored(kept)
        except (OSError, ValueError, pa.ArrowException):  # cut off, or written by another program
            break
        first, last = table["start"][0].as_py(), table["start"][-1].as_py()
        if first != end or not last < new_end <= min(size, last + _LONGEST_LINE):
            break
        file.seek(last)
        if mark != _mark(file.read(new_end - last)):
            break
        parts.append(table)
        end, lines = new_end, lines + table.num_rows
    return parts, end, lines


def _stored(kept: Path) -> tuple[pa.Table, int, bytes]:
    """Loads a part from its file: its table, the byte after its last line, the mark of that line.

    Anybody may have written the file, and Arrow does not check the offsets in it. So everything
    that later code relies on is checked here.

    Raises:
        ValueError: the file is not a part of this version, or it is damaged.
    """
    with pa.OSFile(str(kept)) as source:
        table = pa.ipc.open_file(source).read_all()
    about = table.schema.metadata or {}
    if about.get(b"srl.version") != _VERSION or not table.num_rows:
        raise ValueError("another version, or empty")
    named = table.column_names[len(_COLUMNS) :]
    kinds = _COLUMNS | dict.fromkeys(named, pa.float64())
    if not all(name.startswith((REWARD, METRIC)) for name in named) or not table.schema.equals(
        pa.schema(kinds)
    ):
        raise ValueError("other columns")
    table = table.replace_schema_metadata(None)
    table.validate(full=True)
    for name in _COLUMNS.keys() - _OPTIONAL:
        if table[name].null_count:
            raise ValueError(f"{name} is missing somewhere")
    for name, kind in _COLUMNS.items():
        if kind == _WORDS and any(chunk.dictionary.null_count for chunk in table[name].chunks):
            raise ValueError(f"a name of {name} is missing")
    starts = table["start"].to_numpy()
    if starts[0] < 0 or (np.diff(starts) <= 0).any():
        raise ValueError("records out of order")
    return table, int(about.get(b"srl.end", b"")), about.get(b"srl.last", b"")


def _read(
    path: Path,
    file: BinaryIO,
    start: int,
    lines: int,
    size: int,
    progress: Progress | None,
) -> Iterator[tuple[list[dict[str, object]], int, bool]]:
    """Yields the rows from byte `start` on by part: rows, the byte after, whether it is whole."""
    file.seek(start)
    rows: list[dict[str, object]] = []
    while start < size:
        line = file.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            if len(line) == _LONGEST_LINE:
                raise UsageError(
                    f"{path}, line {lines + 1}: longer than {_LONGEST_LINE // 2**20} MiB: "
                    "this is not a step log"
                )
            break
        lines += 1
        rows.append(_row(parse_record(line, f"{path}, line {lines}"), start))
        start += len(line)
        if len(rows) == PART_RECORDS:
            yield rows, start, True
            rows = []
            if progress is not None:
                progress(start, size)
    if rows:
        yield rows, start, False


def _row(record: StepRecord, start: int) -> dict[str, object]:
    row: dict[str, object] = {"start": start}
    for name in _COLUMNS:
        row.setdefault(name, getattr(record, name, None))
    row["step_text"] = zlib.crc32(record.expert_step.encode("utf-8", "replace"))
    row["steps_left"] = record.num_steps - 1 - record.step_index
    metrics = dict(record.metrics)
    if record.format_failure is None:
        action = normalize(record.action)
        if "exact" not in metrics:  # schema 1
            metrics["exact"] = float(action == normalize(record.expert_step))
        if record.previous_step is not None:
            row["copied"] = action == normalize(record.previous_step)
    row["named"] = {REWARD + utf8(name): value for name, value in record.rewards.items()} | {
        METRIC + utf8(name): value for name, value in metrics.items()
    }
    return row


def _table(rows: Sequence[dict[str, object]]) -> pa.Table:
    columns = {
        name: pa.array([row[name] for row in rows], kind)
        if not pa.types.is_dictionary(kind)
        else pa.array([_name(row[name]) for row in rows], pa.string()).dictionary_encode()
        for name, kind in _COLUMNS.items()
    }
    names = dict.fromkeys(name for row in rows for name in row["named"])  # type: ignore[attr-defined]
    for name in names:
        values = [row["named"].get(name) for row in rows]  # type: ignore[attr-defined]
        columns[name] = pa.array(values, pa.float64())
    return pa.table(columns)


def _name(value: object) -> str | None:
    return None if value is None else utf8(str(value))


def _keep(path: Path, number: int, table: pa.Table, file: BinaryIO, last: int, end: int) -> None:
    """Writes a whole part to the index.

    If the file cannot be written, nothing is kept, and the log is read again each time.
    """
    place = file.tell()
    file.seek(last)
    line = file.read(end - last)
    file.seek(place)
    about = {b"srl.version": _VERSION, b"srl.end": str(end).encode(), b"srl.last": _mark(line)}
    target = _part(path, number)
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(exist_ok=True)
        schema = table.schema.with_metadata(about)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            pa.OSFile(str(beside), "wb") as sink,
            pa.ipc.new_file(sink, schema, options=options) as to,
        ):
            to.write_table(table)
        os.replace(beside, target)
    except OSError:
        with suppress(OSError):
            beside.unlink()


def _part(path: Path, number: int) -> Path:
    return folder_of(path) / f"{path.stem}-{number:05}.arrow"


def _mark(line: bytes) -> bytes:
    return f"{len(line)}:{zlib.crc32(line)}".encode()
