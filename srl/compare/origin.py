"""What a cell started from: its policy's weights, by their digest, and the processor it ran on.

A cell names the policy it starts from by a folder, and another may lie there later: a base that was
made again, or a first stage that was. `starts.jsonl` in the output folder has a line for every time
that a cell was started anew. A run that is there is the last one of its name that was started
before its `environment.json` was written. Without such a line, and for a model by its hub name,
nothing is known, which is no difference.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from srl.compare.plan import Cell
from srl.models.loading import fingerprint
from srl.models.lora import is_adapter_folder
from srl.runs.folder import RunFolder
from srl.runs.records import RecordWriter, read_rows

STARTS = "starts.jsonl"
"""In the output folder: a line for every time that a cell was started anew, not resumed."""


def write_start(cell: Cell, output: Path, started: str, *, threads: int) -> None:
    """Write down what `cell` starts from now.

    Args:
        cell: which.
        output: the comparison's folder.
        started: date and time, ISO 8601.
        threads: how many it computes with, on which the rounding of its sums depends.
    """
    model = cell.experiment.model
    stamp = _stamp(model)
    line = {
        "cell": cell.name,
        "started": started,
        "model": model,
        "weights": _digest(model, stamp),
        "stamp": stamp,
        "cpu": cpu_name(),
        "threads": threads,
    }
    with RecordWriter(output / STARTS) as writer:
        writer.write([line])


def read_start(name: str, output: Path) -> Mapping[str, object]:
    """The line of the cell `name` as it is there; empty if none is known."""
    path, began = output / STARTS, began_at(RunFolder(output / name))
    found: Mapping[str, object] = {}
    for line in read_rows(path) if path.is_file() else ():
        started = time_of(line.get("started"))
        if line.get("cell") != name or started is None or began is None:
            continue
        if started.replace(microsecond=0) <= began:  # which has whole seconds
            found = line
    return found


def other_weights(cell: Cell, output: Path) -> tuple[str, str] | None:
    """The digest of what `cell` started from and of what is there now, where they are known and
    differ."""
    start, model = read_start(cell.name, output), cell.experiment.model
    before, stamp = start.get("weights"), _stamp(model)
    if not isinstance(before, str) or (stamp is not None and stamp == start.get("stamp")):
        return None
    now = _digest(model, stamp)
    return None if now is None or now == before else (before, now)


def began_at(run: RunFolder) -> datetime | None:
    """When a run began, by its environment.json, in whole seconds; None if that says nothing."""
    return time_of(read_json(run.environment).get("started"))


def time_of(text: object) -> datetime | None:
    """A date and time as logs have it; None if it is none."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in a file; an empty one if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def cpu_name() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _stamp(model: str) -> str | None:
    """Names, sizes and times of a model folder's files, as one word: while they stay, the weights
    do, and need not be read. None where there is no folder, and for an adapter, whose base is
    elsewhere."""
    folder = Path(model)
    if not folder.is_dir() or is_adapter_folder(folder):
        return None
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    shown = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return hashlib.sha256(shown.encode()).hexdigest()[:16]


def _digest(model: str, stamp: str | None) -> str | None:
    return fingerprint(model) if stamp is None else _digest_once(model, stamp)


@cache
def _digest_once(model: str, stamp: str) -> str | None:
    """Read once a process: every row starts from the same base, which may have gigabytes."""
    return fingerprint(model)
