"""`srl report`: one or two runs as one HTML file that needs nothing but a browser.

Figures, curves, tables, and the rollouts themselves to search and read, in a file that can be sent
to somebody: no network, no other file. What the policy wrote is shown and never obeyed: all of it
is escaped, the data cannot end their element, the script only ever sets text, and the page's own
policy (Content-Security-Policy) lets nothing run or load but the script and the style whose hashes
it has.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from srl.console import spelt
from srl.errors import UsageError
from srl.logs.figures import rows_of
from srl.logs.index import Told
from srl.logs.report import curves, headline, sections
from srl.logs.report.curves import Named
from srl.logs.report.embedded import Chosen, choose, pack, run_json
from srl.logs.report.markup import size, text
from srl.logs.run_data import RunData
from srl.logs.tried_steps import TriedStep, extremes
from srl.redaction import told_apart
from srl.runs.folder import RunFolder, replace_file

ROLLOUTS = 20_000
OF_NOTE = 10  # best, worst, most improved steps: that many of each
# Stands near the start of every report: a file without it is not ours, and not overwritten.
MARKER = "<!-- stepwise-srl report -->"
# One script, cut into files.
_SCRIPTS = ("texts.js", "list.js", "group.js", "page.js")


@dataclass(frozen=True)
class Report:
    """A report that was written: where, and how large it is."""

    path: Path
    bytes: int

    def __str__(self) -> str:
        return f"{spelt(str(self.path))}  {size(self.bytes)}"


def write_report(
    path: Path,
    other: Path | None = None,
    *,
    output: Path | None = None,
    rollouts: int = ROLLOUTS,
    told: Told | None = None,
) -> Report:
    """Write the report of the run at `path`, beside that at `other` if there is one.

    Args:
        path: a run's folder, or the `steps.jsonl` in it.
        other: a second run to compare it with.
        output: the file; by default `report.html` in the run's folder, or `report-OTHER.html`.
        rollouts: at most so many are in the page.
        told: called while a log is read into its index, as `Log.open` does.

    Raises:
        UsageError: there is no such run or log, the two runs are one, `rollouts` is below 1, or the
            file cannot be written or is somebody else's.
    """
    if rollouts < 1:
        raise UsageError(f"--rollouts {rollouts}: at least 1 rollout has to be in the page")
    folders = [RunFolder.with_log(one) for one in (path, other) if one is not None]
    if len(folders) > 1 and folders[0].path.resolve() == folders[1].path.resolve():
        raise UsageError(
            f"{folders[1].path} is the run itself: name another run to compare it with, "
            "or one run alone"
        )
    if output is None:
        name = f"report-{_name(folders[1])}.html" if len(folders) > 1 else "report.html"
        output = folders[0].path / name
    _check_output(output)
    runs = [RunData.open(folder, told) for folder in folders]
    page = make_page(_named(runs), rollouts)
    try:
        replace_file(output, page.encode("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror or error}") from error
    return Report(output, output.stat().st_size)


def make_page(runs: Sequence[Named], rollouts: int = ROLLOUTS) -> str:
    """The whole page."""
    of_note = [_of_note(one.run) for one in runs]
    chosen = _choose(runs, of_note, rollouts)
    embedded = [run_json(one.run, one.name, part) for one, part in zip(runs, chosen, strict=True)]
    style, script = _part("page.css"), "".join(map(_part, _SCRIPTS))
    title = " and ".join(one.name for one in runs)
    pieces = {
        "policy": _policy(style, script),
        "marker": MARKER,
        "title": text(title),
        "style": style,
        "script": script,
        "header": headline.header(runs),
        "remarks": headline.remarks(runs),
        "training": curves.training(runs),
        "optimisation": curves.optimisation(runs),
        "index": curves.by_value(runs, "step_index", "step index"),
        "tables": sections.tables(runs),
        "sources": curves.by_value(runs, "source", "source"),
        "evaluation": _evaluation(runs),
        "note": sections.steps_of_note(runs, of_note, [part.rows for part in chosen]),
        "settings": sections.settings(runs),
        "embedded": _said_of(runs, chosen),
        "data": pack(embedded),
    }
    # Cut first, then filled: a text that holds {{script}} stays what it is.
    parts = _part("page.html").split("{{")
    filled = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition("}}")
        filled += [pieces[name], rest]
    return "".join(filled)


def _of_note(run: RunData) -> dict[str, list[TriedStep]]:
    """The best, worst and most improved steps of training.

    A short training tries no step twice; its validations do.
    """
    table = run.log.table
    found = extremes(table, rows_of(table, "train"), OF_NOTE)
    if not found["most improved"]:
        del found["most improved"]
        validated = extremes(table, rows_of(table, "eval"), OF_NOTE)["most improved"]
        found["most improved from one validation to the last"] = validated
    return found


def _choose(
    runs: Sequence[Named], of_note: Sequence[dict[str, list[TriedStep]]], rollouts: int
) -> list[Chosen]:
    """Each run gets an equal part; what one does not need the next one gets."""
    found, left = [], rollouts
    for k, (one, lists) in enumerate(zip(runs, of_note, strict=True)):
        wanted = [step.row for steps in lists.values() for step in steps]
        rest = sum(other.run.log.table.num_rows for other in runs[k + 1 :])
        share = max(left // (len(runs) - k), left - rest)
        found.append(choose(one.run.log, share, wanted))
        left = max(1, left - found[-1].rollouts)
    return found


def _evaluation(runs: Sequence[Named]) -> str:
    parts = [curves.evaluation(runs), sections.accuracy(runs)]
    return "".join(parts) or '<p class="none">This run has evaluated nothing yet.</p>'


def _said_of(runs: Sequence[Named], chosen: Sequence[Chosen]) -> str:
    said = []
    for one, part in zip(runs, chosen, strict=True):
        name = f"{text(one.name)}: " if len(runs) > 1 else ""
        if part.rollouts == part.whole:
            said.append(
                f"{name}{'a' if name else 'A'}ll {part.whole:,} rollouts of the log are here"
            )
        else:
            said.append(
                f"{name}{part.rollouts:,} of {part.whole:,} rollouts are here, whole groups spread "
                "evenly over the log"
            )
    return ". ".join(said) + "."


def _named(runs: Sequence[RunData]) -> list[Named]:
    names = [_name(run.folder) for run in runs]
    if len(set(names)) < len(names):  # two folders of one name
        names = told_apart([run.folder.path for run in runs])
    return [Named(name, run) for name, run in zip(names, runs, strict=True)]


def _name(folder: RunFolder) -> str:
    return folder.path.resolve().name or str(folder.path)


def _policy(style: str, script: str) -> str:
    def digest(part: str) -> str:
        return "sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _part(name: str) -> str:
    return (files("srl.logs.report") / "page" / name).read_text(encoding="utf-8")


def _check_output(path: Path) -> None:
    """Before anything is computed: that the report can be written, and overwrites nothing else."""
    try:
        if path.is_dir():
            raise UsageError(
                f"--output {path} is a folder; name a file, such as {path / 'report.html'}"
            )
        if not path.parent.is_dir():
            raise UsageError(f"--output {path}: there is no folder {path.parent}; make it first")
        if path.exists() and not _is_ours(path):
            raise UsageError(
                f"--output {path} exists and is no report: it is left as it is. Name another file"
            )
    except OSError as error:  # no permission to look, a name that is too long
        raise UsageError(f"--output {path}: {error.strerror or error}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"--output {path}: no permission to write in {path.parent}; name another file"
        )


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MARKER.encode() in file.read(256)
