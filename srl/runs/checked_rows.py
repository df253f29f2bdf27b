"""Reads rows of a run's files and checks them, because a folder may be foreign or edited."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from srl.errors import UsageError
from srl.runs.records import read_rows

Row = Mapping[str, object]
Fields = Mapping[str, Callable[[object], bool]]


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_step(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def checked_rows(path: Path, fields: Fields) -> Iterable[Row]:
    """Yields the rows of a log; no rows if there is no file.

    Raises:
        UsageError: a row lacks one of `fields`, or has a wrong value in it (the message names the
            line).
    """
    if not path.is_file():
        return
    for number, row in enumerate(read_rows(path), start=1):
        for name, fits in fields.items():
            if name not in row:
                raise UsageError(f"{path}, line {number}: {name} is missing")
            if not fits(row[name]):
                shown = json.dumps(row[name])[:40]
                raise UsageError(f"{path}, line {number}: {name} is {shown}, which it cannot be")
        yield row
