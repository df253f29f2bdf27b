"""The step log as a table: every number of every record at hand, every text one seek away.

A log of a million records has about a gigabyte of text, which nobody filters by. So a record is
read once, and what is asked about it goes into columns; texts are fetched from the log itself when
they are shown. Whole parts of the log are kept as Arrow files in `.index/` beside it, and their
lines never read again; what came after the last whole part is read anew each time, so a log that
is being written needs no care. A part is trusted only while its last line still stands where it
stood: a resumed run cuts its log back, and parts beyond that are made again.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from rewards.similarity import normalize
from srl.errors import UsageError
from srl.records import StepRecord, parse_record, utf8

# Records of a part. A tail of nearly as many is read at every look: half a second.
PART_RECORDS = 16_384

# No record comes near it: a file without line ends is something else, and would fill the memory.
_LONGEST_LINE = 256 * 2**20

# Changes with the columns: an index of another version is made again.
_VERSION = b"2"

_WORDS = pa.dictionary(pa.int32(), pa.string())
_COLUMNS: dict[str, pa.DataType] = {
    "line": pa.int64(),
    "start": pa.int64(),
    "train_step": pa.int32(),
    "phase": _WORDS,
    "source": _WORDS,
    "problem_id": _WORDS,
    "step_index": pa.int32(),
    "num_steps": pa.int32(),
    "steps_left": pa.int32(),
    "group_id": pa.int32(),
    "rollout": pa.int32(),
    "prompt_tokens": pa.int32(),
    "completion_tokens": pa.int32(),
    "truncated": pa.bool_(),
    "format_failure": _WORDS,
    "reward": pa.float64(),
    "lift": pa.float64(),
    "group_mean": pa.float64(),
    "group_std": pa.float64(),
    "kept": pa.bool_(),
    "dropped_because": _WORDS,
    "advantage": pa.float64(),
    # What the texts say, compared as `similarity` does; null where the format is broken.
    "exact": pa.bool_(),
    "copied": pa.bool_(),
}
REWARD = "rewards/"  # the prefix of the columns with the named rewards

Told = Callable[[int, int], None]


class Log:
    """The records of a step log.

    Attributes:
        path: the log.
        table: one row a record, in the log's order: `line` (its number, from 1), `start` (its first
            byte), the numbers and names of the record, a column `rewards/NAME` for each reward,
            `steps_left` (how many of the expert's steps follow: 0 at the last),
            `exact` (the action is the expert's step, white space at line ends aside) and `copied`
            (it is the previous step; null at the first step).
        unfinished: bytes after the last line end: a record that is being written, or was cut off.
    """

    def __init__(self, path: Path, table: pa.Table, unfinished: int) -> None:
        self.path = path
        self.table = table
        self.unfinished = unfinished

    @classmethod
    def open(cls, path: Path, told: Told | None = None) -> Log:
        """Read the log, from its index as far as that goes.

        Args:
            path: a `steps.jsonl`.
            told: called now and then with the bytes read and the bytes there are, while records
                are read that no index has.

        Raises:
            UsageError: there is no log, or a line of it is no step record (names the line).
        """
        try:
            size = path.stat().st_size
            file = path.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        with file:
            parts, end, lines = _indexed(path, file, size)
            for rows, new_end, whole in _read(path, file, end, lines, size, told):
                part = _table(rows)
                if whole:
                    _keep(path, len(parts), part, file, part["start"][-1].as_py(), new_end)
                parts.append(part)
                end = new_end
        table = pa.concat_tables(parts, promote_options="default") if parts else _table([])
        return cls(path, table.unify_dictionaries().combine_chunks(), size - end)

    @property
    def reward_names(self) -> list[str]:
        """The named rewards, in the order of their first record."""
        return [n.removeprefix(REWARD) for n in self.table.column_names if n.startswith(REWARD)]

    def read(self, rows: Iterable[int]) -> Iterator[StepRecord]:
        """The whole records, texts included, of these rows of the table, in the order given.

        Raises:
            UsageError: the log was changed since it was opened.
        """
        starts, lines = self.table["start"], self.table["line"]
        with self.path.open("rb") as file:
            for row in rows:
                file.seek(starts[row].as_py())
                yield parse_record(file.readline(), f"{self.path}, line {lines[row].as_py()}")


def folder_of(path: Path) -> Path:
    """Where the index of the log at `path` lies."""
    return path.parent / ".index"


def _indexed(path: Path, file: BinaryIO, size: int) -> tuple[list[pa.Table], int, int]:
    """The parts that still describe the log, the byte after them, and how many lines they have."""
    parts: list[pa.Table] = []
    end = lines = 0
    while (kept := _part(path, len(parts))).is_file():
        try:
            with pa.OSFile(str(kept)) as source:
                table = pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowException):  # cut off, or from elsewhere: it is made again
            break
        about = table.schema.metadata or {}
        if about.get(b"srl.version") != _VERSION or not table.num_rows:
            break
        last, new_end = table["start"][-1].as_py(), int(about.get(b"srl.end", b"0"))
        file.seek(last)
        line = file.read(max(0, new_end - last)) if new_end <= size else b""
        if table["start"][0].as_py() != end or about.get(b"srl.last") != _mark(line):
            break
        parts.append(table.replace_schema_metadata(None))
        end, lines = new_end, lines + table.num_rows
    return parts, end, lines


def _read(
    path: Path,
    file: BinaryIO,
    start: int,
    lines: int,
    size: int,
    told: Told | None,
) -> Iterator[tuple[list[dict[str, object]], int, bool]]:
    """Rows from byte `start` on, a part at a time: rows, the byte after, whether it is whole."""
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
        rows.append(_row(parse_record(line, f"{path}, line {lines}"), lines, start))
        start += len(line)
        if len(rows) == PART_RECORDS:
            yield rows, start, True
            rows = []
            if told is not None:
                told(start, size)
    if rows:
        yield rows, start, False


def _row(record: StepRecord, line: int, start: int) -> dict[str, object]:
    row: dict[str, object] = {"line": line, "start": start}
    for name in _COLUMNS:
        row.setdefault(name, getattr(record, name, None))
    row["steps_left"] = record.num_steps - 1 - record.step_index
    if record.format_failure is None:
        action = normalize(record.action)
        row["exact"] = action == normalize(record.expert_step)
        if record.previous_step is not None:
            row["copied"] = action == normalize(record.previous_step)
    row["rewards"] = record.rewards
    return row


def _table(rows: Sequence[dict[str, object]]) -> pa.Table:
    columns = {
        name: pa.array([row[name] for row in rows], kind)
        if not pa.types.is_dictionary(kind)
        else pa.array([_name(row[name]) for row in rows], pa.string()).dictionary_encode()
        for name, kind in _COLUMNS.items()
    }
    names = dict.fromkeys(name for row in rows for name in row["rewards"])  # type: ignore[attr-defined]
    for name in names:
        values = [row["rewards"].get(name) for row in rows]  # type: ignore[attr-defined]
        columns[REWARD + utf8(name)] = pa.array(values, pa.float64())
    return pa.table(columns)


def _name(value: object) -> str | None:
    return None if value is None else utf8(str(value))


def _keep(path: Path, number: int, table: pa.Table, file: BinaryIO, last: int, end: int) -> None:
    """Write a whole part; where that is not allowed the log is read anew each time."""
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
