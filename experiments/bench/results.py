"""Writes the file of results: runs of the benchmark, each with its machine, date and rows.

Measuring some rows again replaces only those rows. The others keep the machine and the date of
their own measurement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from contest import Contest


def merge(path: Path, about: Mapping[str, object], contests: Sequence[Contest]) -> None:
    """Writes `contests` as a new run, and drops their rows from the earlier runs.

    Args:
        path: the file, `{"runs": [{about..., "contests": [...]}]}`; created if it is absent.
        about: the machine, the date and the settings.
        contests: all contests of the rows that were measured.
    """
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    again = {contest.row for contest in contests}
    for run in runs:
        run["contests"] = [entry for entry in run["contests"] if entry["row"] not in again]
    runs.append({**about, "contests": [contest.to_json() for contest in contests]})
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"runs": [run for run in runs if run["contests"]]}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
