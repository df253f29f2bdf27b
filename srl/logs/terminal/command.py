"""Runs the command `srl inspect RUN`: reads its options, refuses invalid ones, prints a view.

All views but `--record` use the same filter. Scripts can get figures and records as JSON: `--json`
alone writes the records as they are in the log; with `--figures`, `--by` or `--record` it writes
what these show. Then nothing else is written to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from srl.console import is_unicode, visible
from srl.errors import UsageError
from srl.logs.filters import Filter, add_filters, in_order
from srl.logs.index import Log
from srl.logs.reading import reading, say
from srl.logs.run_data import RunData
from srl.logs.terminal.by_column import BY, grouped, grouped_json, grouped_table
from srl.logs.terminal.follow import follow_lines, follow_live, is_live, record_line
from srl.logs.terminal.overview import overview, overview_json
from srl.logs.terminal.overview_tables import overview_parts
from srl.logs.terminal.pen import Pen
from srl.logs.terminal.records_view import newest_note, records_table
from srl.logs.terminal.rollout_view import rollout
from srl.runs.folder import RunFolder
from srl.runs.records import finite, json_line

INTERRUPTED = 130

# Number of records under the overview: without a filter, and with one.
_A_FEW, _ASKED_FOR = 3, 20
_LATEST = 5  # lines under an overview that is redrawn
_TABLE_ROWS = 40


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `srl inspect`."""
    parser.add_argument(
        "name",
        metavar="RUN",
        help="a run folder, its name in runs/, or a steps.jsonl",
    )
    views = parser.add_argument_group("which view; without any: an overview and a few records")
    views.add_argument(
        "--by", choices=BY, metavar="COLUMN", help=f"one table by a column: {', '.join(BY)}"
    )
    views.add_argument(
        "--record", type=int, metavar="N", help="record #N in full: line N of steps.jsonl"
    )
    views.add_argument("--figures", action="store_true", help="the overview without records")
    views.add_argument(
        "--follow", action="store_true", help="a run that is going on: until it is complete"
    )
    views.add_argument(
        "--export",
        choices=("parquet",),
        help="the records as a data set: steps.parquet in export/ of the run's folder",
    )
    views.add_argument("--to", metavar="FOLDER", help="where --export writes")
    views.add_argument(
        "--json",
        action="store_true",
        help="JSON: a line for each record as in the log, with its line number; with --by or "
        "--figures one object of figures",
    )
    views.add_argument(
        "--sort",
        metavar="COLUMN",
        help="records (or, with --by, values) by this; a minus in front goes downwards, as in "
        "--sort=-reward",
    )
    views.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help=f"how many: {_A_FEW} records, {_ASKED_FOR} where a filter asks for some, "
        f"{_TABLE_ROWS} values with --by; all with --json",
    )
    add_filters(parser)


def inspect_run(path: Path, args: argparse.Namespace, console: Console) -> int:
    """Prints the view that the options ask for, and returns the exit code.

    Args:
        path: the run's folder, or its step log.
        args: the parsed options of `add_inspect`.
        console: where to print.

    Raises:
        UsageError: there is no step log, it holds something else, no record matches the filter, or
            options exclude each other.
    """
    if not is_unicode(console.encoding) and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # rich prints characters that are not ASCII
    try:
        code = _inspect(path, args, console)
        sys.stdout.flush()
        return code
    except UsageError as error:  # the message may contain a path, a reward or a source: any text
        raise UsageError("\n".join(map(visible, str(error).split("\n")))) from error
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:  # rich raises it after a BrokenPipeError
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return 0


def _inspect(path: Path, args: argparse.Namespace, console: Console) -> int:
    wanted = Filter.from_args(args)
    _check(args, wanted)
    folder = _folder(path, follow=args.follow)
    if args.follow:
        return _follow(folder, args, wanted, console)
    data = RunData.open(folder, reading())
    log, pen = data.log, Pen.of(console)
    if args.record is not None:
        return _record(data, args, console)
    rows = wanted.rows(log)
    if not len(rows):
        raise UsageError(nothing_matches(log, wanted))
    if args.export is not None:
        return _export(data, in_order(log, rows, args.sort), args)
    if args.by is not None:
        limit = args.limit or (None if args.json else _TABLE_ROWS)
        grouping = grouped(log, rows, args.by, sort=args.sort, limit=limit)
        if args.json:
            _write_object(grouped_json(data, wanted, grouping))
        else:
            console.print(grouped_table(grouping, wanted, pen))
        return 0
    if args.json and not args.figures:
        _write_lines(log, _first(in_order(log, rows, args.sort), args))
        return 0
    most = 3 if pen.short and not args.json else 5
    figures = overview(data, rows, most=most, values=100 if args.json else 5 if pen.short else 10)
    if args.json:
        _write_object(overview_json(data, wanted, figures))
        return 0
    chosen = [] if args.figures else _first(in_order(log, rows, args.sort), args, wanted).tolist()
    for part in overview_parts(data, wanted, figures, pen):
        console.print(part)
    if chosen:
        console.print()
        numbered = zip([row + 1 for row in chosen], log.read(chosen), strict=True)
        console.print(records_table(numbered, pen))
        console.print(Text(pen.say(newest_note(len(chosen), len(rows), args.sort)), style="dim"))
    return 0


def _first(rows: np.ndarray, args: argparse.Namespace, wanted: Filter | None = None) -> np.ndarray:
    """Returns the rows to show: the first ones if they are sorted, else the newest ones."""
    limit = args.limit
    if limit is None:
        if wanted is None:
            return rows
        limit = _ASKED_FOR if narrows(wanted) else _A_FEW
    return rows[-limit:] if args.sort is None else rows[:limit]


def narrows(wanted: Filter) -> bool:
    """Returns whether a filter has a condition besides the phase."""
    return bool(
        wanted.ranges or wanted.names or wanted.truths or wanted.failure or wanted.comparisons
    )


def _check(args: argparse.Namespace, wanted: Filter) -> None:
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}: at least 1 has to be shown")
    given = {
        f"--{name}": getattr(args, name) not in (None, False)
        for name in ("by", "record", "figures", "follow", "export", "to", "json", "sort", "limit")
    }
    every = ("--by", "--record", "--figures", "--follow", "--export")
    views = [name for name in every if given[name]]
    if len(views) > 1:
        raise UsageError(f"{' and '.join(views)} exclude each other: each is a view of its own")
    without = {
        "--record": ("--sort", "--limit"),
        "--figures": ("--sort", "--limit"),
        "--follow": ("--sort",),
        "--export": ("--json",),
    }
    for view in views:
        if both := [option for option in without.get(view, ()) if given[option]]:
            raise UsageError(f"{view} has no use for {' and '.join(both)}")
    if given["--to"] and not given["--export"]:
        raise UsageError("--to says where --export writes: add --export parquet")
    if args.record is not None and narrows(wanted):
        raise UsageError(
            f"--record {args.record} shows that one record: a filter ({wanted.words}) has no use"
        )


def _folder(path: Path, *, follow: bool) -> RunFolder:
    if path.is_file() and path.name != "steps.jsonl":
        raise UsageError(
            f"{path} is no run folder: name a folder with a steps.jsonl in it, or that file"
        )
    if follow and not path.exists() and path.name == "steps.jsonl" and path.parent.is_dir():
        return RunFolder(path.parent)  # a trainer used from Python writes no config before its log
    return RunFolder.with_log(path)


def nothing_matches(log: Log, wanted: Filter) -> str:
    """Returns the message that no record matches the filter, with what the log contains."""
    steps = log.table["train_step"].to_numpy()
    phases = pc.value_counts(pc.cast(log.table["phase"], "string")).to_pylist()
    held = ", ".join(f"{phase['counts']:,} of phase {phase['values']}" for phase in phases)
    return (
        f"no record in {log.path} matches {wanted.words}; it holds training steps "
        f"{int(steps.min())} to {int(steps.max())}: {held}"
    )


# ---- one record, one run ------------------------------------------------------------------------


def _record(data: RunData, args: argparse.Namespace, console: Console) -> int:
    count, row = data.log.table.num_rows, args.record - 1
    if not 0 <= row < count:
        raise UsageError(f"--record {args.record}: {data.log.path} holds records 1 to {count}")
    if args.json:
        _write_lines(data.log, np.array([row]))
    else:
        record = next(data.log.read([row]))
        console.print(rollout(data, row, record, Pen.of(console)))
    return 0


def _export(data: RunData, rows: np.ndarray, args: argparse.Namespace) -> int:
    from srl.logs.export import export_parquet

    rows = _first(rows, args)
    folder = Path(args.to) if args.to else data.folder.path / "export"
    path = export_parquet(data.log, rows, folder)
    sys.stdout.write(
        f"{len(rows):,} records: {visible(str(path))}\n"
        f"read them with: datasets.load_dataset({json.dumps(str(folder))}, split='train')\n"
    )
    return 0


def _follow(folder: RunFolder, args: argparse.Namespace, wanted: Filter, console: Console) -> int:
    pen = Pen.of(console)

    def write(log: Log, rows: np.ndarray) -> None:
        if args.json:
            lines = list(_json_lines(log, rows))
        else:
            records = zip(rows.tolist(), log.read(rows.tolist()), strict=True)
            lines = [record_line(row + 1, record, pen) for row, record in records]
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        if is_live(console) and not args.json:
            follow_live(folder, wanted, console, limit=args.limit or _LATEST)
        else:
            before = args.limit if args.limit or args.json else 10
            follow_lines(folder, wanted, write, say, before=before)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


# ---- JSON ---------------------------------------------------------------------------------------


def _write_object(content: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(finite(content), allow_nan=False) + "\n")
    sys.stdout.flush()


def _write_lines(log: Log, rows: np.ndarray) -> None:
    for line in _json_lines(log, rows):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _json_lines(log: Log, rows: np.ndarray) -> Iterator[str]:
    """Yields the records as JSON with their line numbers.

    The output is ASCII on a terminal, which obeys control characters, and where the encoding
    cannot show every character.
    """
    plain = sys.stdout.isatty() or not is_unicode(sys.stdout.encoding or "")
    for row, record in zip(rows.tolist(), log.read(rows.tolist()), strict=True):
        line = f'{{"line": {row + 1}, {json_line(record).decode().strip()[1:]}'
        yield json.dumps(json.loads(line)) if plain else line
