"""Exports step records as a data set: `steps.parquet` in its own folder, which `datasets` loads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

import numpy as np

from srl.errors import UsageError
from srl.logs.index import METRIC, REWARD, Log
from srl.runs.records import FIELDS, StepRecord, utf8

if TYPE_CHECKING:
    import pyarrow as pa

# Records in a row group. All of them are in memory at a time: about 20 MB with texts of 2 KB.
GROUP = 4096
_PREFIXES = {"rewards": REWARD, "metrics": METRIC}


def export_parquet(log: Log, rows: np.ndarray, folder: Path) -> Path:
    """Writes the records in these rows of the log to `folder/steps.parquet` and returns that path.

    Each field of the record is a column. `rewards` and `metrics` are structs with a field for each
    name in the log, and `tags` are JSON text. Lone halves of surrogate pairs become U+FFFD.

    Raises:
        UsageError: the folder is not empty or cannot be written, or the log was changed meanwhile.
    """
    import pyarrow.parquet as pq

    schema = _schema(log)
    path = folder / "steps.parquet"
    beside = folder / f".steps.{os.getpid()}"
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"{folder} is in use and is never overwritten; give a folder that is new or empty: "
                "--to FOLDER"
            )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            records = log.read(rows.tolist())
            with pq.ParquetWriter(beside, schema, compression="zstd") as writer:
                for table in _tables(records, schema):
                    writer.write_table(table)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror or error}. "
            "Give a folder you may write to, on a disk with room"
        ) from error
    return path


def _schema(log: Log) -> pa.Schema:
    import pyarrow as pa

    kinds = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}

    def kind(name: str, wanted: object) -> pa.DataType:
        if (prefix := _PREFIXES.get(name)) is not None:
            names = [n for n in log.table.column_names if n.startswith(prefix)]
            # Parquet has no struct without fields.
            return pa.struct(
                [(n.removeprefix(prefix), pa.float64()) for n in names] or [("", pa.null())]
            )
        if get_origin(wanted) in (Literal, Mapping):  # the mapping is `tags`
            return pa.string()
        parts = get_args(wanted) or (wanted,)
        return next(kinds[part] for part in parts if part in kinds)

    hints = get_type_hints(StepRecord)
    return pa.schema([(name, kind(name, hints[name])) for name in FIELDS])


def _tables(records: Iterator[StepRecord], schema: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa

    while chunk := list(islice(records, GROUP)):
        rows = [{name: _cell(getattr(record, name), name) for name in FIELDS} for record in chunk]
        yield pa.Table.from_pylist(rows, schema)


def _cell(value: object, name: str) -> object:
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, Mapping):
        if name == "tags":
            return json.dumps(value)
        return {utf8(key): _cell(inner, name) for key, inner in value.items()}
    # The log also has only finite numbers.
    return None if isinstance(value, float) and not math.isfinite(value) else value
