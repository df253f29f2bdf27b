"""Records of a log, three lines each: where it stands, how it scored, the policy's step above the
expert's.

The texts were written by a model: they are shown with every control character spelt out and are
never read as markup, so that no completion moves the cursor, hides text or sets colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from srl.logs.terminal.pen import Pen, number
from srl.runs.records import StepRecord

_ID_SHOWN = 8  # characters of a problem's id: enough to tell apart, and to type


def records_table(records: Iterable[tuple[int, StepRecord]], pen: Pen) -> Table:
    """Three lines a record, narrow enough for 60 columns; only the last column is ever clipped.

    Args:
        records: each with its number, the line of the log that it stands in.
        pen: for what to write it.
    """
    table = Table(show_lines=True)
    table.add_column("record\nstep", justify="right", no_wrap=True)
    table.add_column("problem\nk/N group", no_wrap=True)
    table.add_column("reward\nlift", justify="right", no_wrap=True)
    table.add_column("fate\nadvantage", no_wrap=True)
    # Its texts do not wrap, but the column says it may: rich narrows such columns first.
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
    """Kept with its advantage, dropped with the reason, or of an evaluation."""
    if record.phase == "eval":
        return Text("eval")
    if record.kept:
        return Text(f"kept\n{number(record.advantage, sign=True)}")
    return Text(f"dropped\n{pen.say(record.dropped_because or '')}", style="dim")


def _texts(record: StepRecord, pen: Pen) -> Text:
    style, written = "bold", record.action
    if record.format_failure is not None:
        # What was written in place of a step is the interesting part.
        style, written = "red", f"[{record.format_failure}] {record.action or record.thought}"
    text = pen.line(written, style)
    text.append("\n").append_text(pen.line(record.expert_step, "not bold default"))
    parts = f"{named(record.rewards)}  {named(record.metrics, but='lift')}".strip()
    return text.append("\n").append_text(pen.line(parts, "not bold dim default"))


def named(values: Mapping[str, float | None], *, but: str = "") -> str:
    """Every reward or metric by name, as in the log; `but` stands elsewhere."""
    return "  ".join(f"{name} {number(value)}" for name, value in values.items() if name != but)


def newest_note(shown: int, matched: int, sort: str | None) -> str:
    """What the table of records leaves out, and how to see more."""
    if matched == shown:
        return "One in full: --record N"
    which = "The newest" if sort is None else f"By {sort}, the first"
    return f"{which} {shown:,} of {matched:,} records; --limit shows more, --record N one in full"
