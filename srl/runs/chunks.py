"""Cuts a log that is written in chunks back to its whole chunks when the work resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from srl.errors import UsageError
from srl.runs.records import read_object, truncate_to


def keep_whole_chunks(
    path: Path,
    chunks: Sequence[Sequence[object]],
    key_of: Callable[[Mapping[str, object]], object],
) -> int:
    """Cuts a log after its last whole chunk, and returns how many whole chunks it holds.

    Args:
        path: the log; it may be missing.
        chunks: for each chunk, the keys of its lines, in order.
        key_of: a line -> its key.

    Raises:
        UsageError: a line has another key than the line that this work writes there.
    """
    if not path.is_file():
        return 0
    keys = [key for chunk in chunks for key in chunk]
    ends = {end: number for number, end in enumerate(accumulate(map(len, chunks)), 1)}
    whole = position = kept = 0
    with path.open("rb") as file:
        for count, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            where = f"{path}, line {count + 1}"
            line_key = key_of(read_object(line, where))
            if count >= len(keys) or line_key != keys[count]:
                raise UsageError(
                    f"{where}: {line_key} stands where this command writes something else; give "
                    "another --run-name"
                )
            position += len(line)
            if count + 1 in ends:
                whole, kept = ends[count + 1], position
    truncate_to({path: kept})
    return whole
