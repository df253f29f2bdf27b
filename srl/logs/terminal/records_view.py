"""Shows records of a log in three lines each: place, scores, and the policy's and expert's steps.

A model wrote the texts. So every control character is spelt out and no text is read as markup: no
completion can move the cursor, hide text or set colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from srl.logs.terminal.pen import Pen, number
from srl.runs.records import StepRecord

_ID_SHOWN = 8  # characters of a problem's id: enough to distinguish problems, and short to type


def records_table(records: Iterable[tuple[int, StepRecord]], pen: Pen) -> Table:
    """Returns a table with three lines for each record.

    The table fits into 60 columns, and only its last column is ever clipped.

    Args:
        records: pairs of a record's line number in the log and the record.
        pen: what the terminal can show.
    """
    table = Table(show_lines=True)
    table.add_column("record\nstep", justify="right", no_wrap=True)
    table.add_column("problem\nk/N group", no_wrap=True)
    table.add_column("reward\nlift", justify="right", no_wrap=True)
    table.add_column("fate\nadvantage", no_wrap=True)
    # The texts in this column do not wrap. The column is declared as wrapping because rich narrows
    # such columns first.
    table.add_column("policy's step\nexpert's step")
    for line, record in records:
        problem = pen.say(record.problem_id[:_ID_SHOWN])
        place = f"{record.step_index + 1}/{record.num_steps} {record.group_id}/{record.rollout}"
        table.add_row(
            Text(f"#{line}\n{record.train_step}"),
            Text(f"{problem}\n{place}"),
            Text(f"{number(record.reward)}\n{number(record.metrics.get('lift'), sign=True)}"),
            fate(record, pen),
            _texts(record, pen),
        )
    return table


def fate(record: StepRecord, pen: Pen) -> Text:
    """Returns `kept` with the advantage, `dropped` with the reason, or `eval`."""
    if record.phase == "eval":
        return Text("eval")
    if record.kept:
        return Text(f"kept\n{number(record.advantage, sign=True)}")
    return Text(f"dropped\n{pen.say(record.dropped_because or '')}", style="dim")


def _texts(record: StepRecord, pen: Pen) -> Text:
    style, written = "bold", record.action
    if record.format_failure is not None:
        # Shows what the policy wrote in place of a valid step.
        style, written = "red", f"[{record.format_failure}] {record.action or record.thought}"
    text = pen.line(written, style)
    text.append("\n").append_text(pen.line(record.expert_step, "not bold default"))
    parts = f"{named(record.rewards)}  {named(record.metrics, but='lift')}".strip()
    return text.append("\n").append_text(pen.line(parts, "not bold dim default"))


def named(values: Mapping[str, float | None], *, but: str = "") -> str:
    """Returns all rewards or metrics with their names as in the log, except the one named `but`."""
    return "  ".join(f"{name} {number(value)}" for name, value in values.items() if name != but)


def newest_note(shown: int, matched: int, sort: str | None) -> str:
    """Returns a note on what the table of records leaves out, and how to see more."""
    if matched == shown:
        return "One in full: --record N"
    which = "The newest" if sort is None else f"By {sort}, the first"
    return f"{which} {shown:,} of {matched:,} records; --limit shows more, --record N one in full"
