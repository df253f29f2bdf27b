"""A file of results: runs of the benchmark, each with its machine, its date and its rows.

Measuring some rows again replaces those rows only. The others keep the machine and the date that
they were measured on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from contest import Contest


def merge(path: Path, about: Mapping[str, object], contests: Sequence[Contest]) -> None:
    """Write `contests` as a run of their own, and drop their rows from the runs before it.

    Args:
        path: `{"runs": [{about..., "contests": [...]}]}`; made if it is not there.
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
