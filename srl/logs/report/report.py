"""Writes one or two runs as one HTML file that needs only a browser: `srl report`.

The file has figures, curves, tables, and the rollouts to search and read. It can be sent to others
because it needs no network and no other file. Text from the policy is shown and never executed: all
of it is escaped, the data cannot end their HTML element, the script only sets text, and the page's
Content-Security-Policy lets only the script and the style run or load whose hashes it contains.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srl.console import spelt
from srl.errors import UsageError
from srl.logs.figures import rows_of
from srl.logs.index import Progress
from srl.logs.report import sections
from srl.logs.report.embedded import choose, pack, run_json
from srl.logs.report.experts import experts
from srl.logs.report.markup import part_of_page, policy_of_page, text
from srl.logs.report.sections import Named
from srl.logs.run_data import RunData
from srl.logs.tried_steps import TriedStep, extremes
from srl.redaction import told_apart
from srl.runs.folder import RunFolder, replace_file

ROLLOUTS = 20_000
OF_NOTE = 10  # how many best, worst and most improved steps are shown
# This mark is near the start of every report. A file without it is no report, and is not
# overwritten.
MARKER = "<!-- stepwise-srl report -->"


@dataclass(frozen=True)
class Report:
    """A report that was written: its path and its size in bytes."""

    path: Path
    bytes: int

    def __str__(self) -> str:
        return f"{spelt(str(self.path))}  {max(1, self.bytes // 1000):,} kB"


def write_report(
    path: Path,
    other: Path | None = None,
    *,
    output: Path | None = None,
    rollouts: int = ROLLOUTS,
    progress: Progress | None = None,
) -> Report:
    """Writes the report of the run at `path`, compared with the run at `other` if one is given.

    Args:
        path: a run's folder, or the `steps.jsonl` in it.
        other: a second run to compare it with.
        output: the file; by default `report.html` in the run's folder, or `report-OTHER.html`.
        rollouts: how many rollouts the page contains at most.
        progress: called while a log is read into its index; see `Log.open`.

    Raises:
        UsageError: there is no such run or log, both runs are the same, `rollouts` is below 1, or
            the file cannot be written or is not a report.
    """
    if rollouts < 1:
        raise UsageError(f"--rollouts {rollouts}: at least 1 rollout has to be in the page")
    folders = [RunFolder.with_log(run_path) for run_path in (path, other) if run_path is not None]
    if len(folders) > 1 and folders[0].path.resolve() == folders[1].path.resolve():
        raise UsageError(
            f"{folders[1].path} is the run itself: name another run to compare it with, "
            "or one run alone"
        )
    if output is None:
        beside = f"-{told_apart([folders[1].path])[0]}" if len(folders) > 1 else ""
        output = folders[0].path / f"report{beside}.html"
    _check_output(output)
    runs = [RunData.open(folder, progress) for folder in folders]
    page = make_page(runs, rollouts)
    try:
        replace_file(output, page.encode("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror or error}") from error
    return Report(output, output.stat().st_size)


def make_page(runs: Sequence[RunData], rollouts: int = ROLLOUTS) -> str:
    """Returns the whole page of one run or two."""
    names = told_apart([run.folder.path for run in runs])
    several = len(runs) > 1
    named = [
        Named(name, run, f" ({name})" if several else "", f"{k + 1}:" if k else "")
        for k, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    of_note = [_of_note(run) for run in runs]
    chosen = [
        choose(run.log, rollouts // len(runs), [s.row for steps in lists.values() for s in steps])
        for run, lists in zip(runs, of_note, strict=True)
    ]
    inside = [part.rows for part in chosen]
    embedded = [
        run_json(named_run.run, named_run.name, part)
        for named_run, part in zip(named, chosen, strict=True)
    ]
    style, script = part_of_page("page.css"), part_of_page("page.js")
    pieces = {
        "policy": policy_of_page(style, script),
        "marker": MARKER,
        "title": text(" and ".join(names)),
        "style": style,
        "script": script,
        "overview": sections.overview(named),
        "remarks": sections.remarks(named),
        "training": sections.training(named),
        "optimisation": sections.optimisation(named),
        "experts": experts(named),
        "index": sections.by_index(named),
        "tables": sections.tables(named),
        "sources": sections.by_source(named),
        "evaluation": sections.evaluation(named),
        "note": sections.steps_of_note(named, of_note, inside),
        "settings": sections.settings(named),
        "embedded": "; ".join(
            f"{len(rows):,} of {named_run.run.log.table.num_rows:,} rollouts are here"
            f"{text(named_run.tag)}"
            for named_run, rows in zip(named, inside, strict=True)
        ),
        "data": pack(embedded),
    }
    # All pieces are replaced in one pass, so that a text that contains {{script}} is not replaced.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: pieces[match[1]], part_of_page("page.html"))


def _of_note(run: RunData) -> dict[str, list[TriedStep]]:
    """Returns the best, worst and most improved steps of training.

    If no step of training improved, as in a short training that tries no step twice, the most
    improved steps are those of the validations.
    """
    table = run.log.table
    steps = extremes(table, rows_of(table, "train"), OF_NOTE)
    if not steps["most improved"]:
        validated = extremes(table, rows_of(table, "eval"), OF_NOTE)
        del steps["most improved"]
        steps["most improved from one validation to the last"] = validated["most improved"]
    return steps


def _check_output(path: Path) -> None:
    """Raises UsageError if the report cannot be put at `path` or would overwrite another file.

    It is called before anything is computed.
    """
    try:
        if path.is_dir():
            problem = f" is a folder; name a file, such as {path / 'report.html'}"
        elif not path.parent.is_dir():
            problem = f": there is no folder {path.parent}; make it first"
        elif path.exists() and not _is_ours(path):
            problem = " exists and is no report: it is left as it is. Name another file"
        else:
            return
    except OSError as error:  # no permission to look, a name that is too long
        problem = f": {error.strerror or error}"
    raise UsageError(f"--output {path}{problem}")


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MARKER.encode() in file.read(256)
