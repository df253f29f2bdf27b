"""Step records as a data set: a Parquet file and a card that says what is in it.

The log is for the machine it was written on; a data set is for others, so everything a reader needs
stands in its card, and nothing of the machine: of a path only its last part.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from srl.errors import UsageError
from srl.logs.card import STEPS, Survey, card, column_type
from srl.runs.folder import RunFolder
from srl.runs.records import FIELDS, StepRecord, utf8

if TYPE_CHECKING:
    pass

CARD = "README.md"

# Records of a row group, which are in memory at a time: with texts of 2 KB some 20 MB.
GROUP = 4096


def export_parquet(
    records: Callable[[], Iterable[StepRecord]], run: RunFolder, folder: Path, *, asked: str
) -> int:
    """Write `folder/steps.parquet` and its card; returns how many records are in it.

    Records are read twice, because a Parquet file begins with its columns and rewards may differ
    from record to record: first for their names, then to write them. What a log gained in between
    is left out.

    Args:
        records: gives a new iterator over the records at each call, the same ones each time.
        run: where they come from.
        folder: a new folder, or an empty one.
        asked: what was asked for, in words; empty if all records were.

    Raises:
        UsageError: the folder is in use or cannot be written, or there is nothing to write.
    """
    _check_free(folder)
    survey = Survey.of(records())
    if not survey.records:
        raise UsageError(
            f"there are no records to export from {run.steps}"
            + (f" that fit: {asked}; ask for less" if asked else ": nothing was recorded yet")
        )
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    beside = {name: folder / f".{name}.{os.getpid()}" for name in (STEPS, CARD)}
    ours = list(beside.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_steps(islice(records(), survey.records), survey, beside[STEPS])
        beside[CARD].write_text(card(survey, run, folder.resolve().name, asked), encoding="utf-8")
        if any(path not in ours for path in folder.iterdir()):
            raise _in_use(folder)  # by somebody else, meanwhile
        for name, path in beside.items():
            os.replace(path, folder / name)
            ours.append(folder / name)
    except BaseException as error:
        for path in ours:
            with suppress(OSError):
                path.unlink()
        for path in new_folders:
            with suppress(OSError):  # never made, or somebody else uses it by now
                path.rmdir()
        if isinstance(error, OSError):
            raise UsageError(
                f"cannot write {folder}: {error.strerror or error}. "
                "Give a folder you may write to, on a disk with room"
            ) from error
        raise
    return survey.records


def _check_free(folder: Path) -> None:
    """Raises UsageError: there is something at `folder`."""
    try:
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror or error}") from error
    if not free:
        raise _in_use(folder)


def _in_use(folder: Path) -> UsageError:
    number = 2
    while (other := folder.resolve().with_name(f"{folder.resolve().name}-{number}")).exists():
        number += 1
    return UsageError(
        f"{folder} is in use and is never overwritten; give a folder that is new or empty, such as "
        f"{other if folder.is_absolute() else os.path.relpath(other)}"
    )


# ---- the Parquet file ---------------------------------------------------------------------------


def _write_steps(records: Iterator[StepRecord], survey: Survey, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, column_type(name, survey)) for name in FIELDS])
    written = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(records, GROUP)):
            try:
                rows = [_row(record, survey.rewards) for record in chunk]
                table = pa.Table.from_pylist(rows, schema)
            except (pa.ArrowException, OverflowError, KeyError) as error:
                raise UsageError(
                    f"records {written + 1} to {written + len(chunk)} cannot be written as "
                    f"Parquet: {error}. The log was changed by hand, or while it was read"
                ) from error
            writer.write_table(table, row_group_size=GROUP)
            written += len(chunk)
    if written != survey.records:
        raise UsageError(
            f"the log was cut while it was read, from {survey.records:,} records to {written:,}; "
            "export it again"
        )


def _row(record: StepRecord, columns: Mapping[str, str]) -> dict[str, object]:
    row = {name: _cell(getattr(record, name)) for name in FIELDS}
    unknown = record.rewards.keys() - columns.keys()
    if unknown:
        raise KeyError(f"reward {min(unknown)} came up late")
    row["rewards"] = {
        column: _cell(record.rewards.get(name)) for name, column in columns.items()
    } or None
    return row


def _cell(value: object) -> object:
    if isinstance(value, str):
        return utf8(value)
    # As in the log, where every number is finite.
    return None if isinstance(value, float) and not math.isfinite(value) else value
