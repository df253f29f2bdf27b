"""Finds the finished cells of a comparison's folder, for the scripts beside this file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from srl.runs.folder import RunFolder

# hard.srl.0, or hard.base without a seed. A folder that was moved away (hard.srl.0.old) is no cell.
_CELL = re.compile(r"([^.]+)\.([^.]+)(\.\d+)?")


def finished(output: Path) -> Iterator[tuple[str, str, RunFolder]]:
    """Yields the difficulty, row and run folder of each finished cell, in the order of names."""
    for path in sorted(output.glob("*/summary.json")):
        if match := _CELL.fullmatch(path.parent.name):
            yield match[1], match[2], RunFolder(path.parent)
