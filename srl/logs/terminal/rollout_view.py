"""Shows one rollout in full: the problem, the expert's steps so far, the thought, and both steps.

The policy's step is above the expert's, and the parts that both have in common are marked. These
are the parts that the reward `similarity` counts: the matching blocks of both texts after its
normalisation. They are coloured, or marked by signs beneath the text where there is no colour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rewards.similarity import matching_blocks, normalize
from srl.logs.index import Log
from srl.logs.run_data import Problem, RunData
from srl.logs.terminal.pen import Pen, number
from srl.runs.records import StepRecord

# Characters of one text that are shown. A longer text would scroll for minutes; --json has all.
SHOWN = 100_000
_MATCH = "green"
_INDENT = 2

Range = tuple[int, int]


@dataclass(frozen=True)
class Section:
    """A part of the view: its title and its content."""

    title: str
    body: RenderableType


def sections(data: RunData, row: int, record: StepRecord, pen: Pen) -> list[Section]:
    """Returns the sections: figures, problem, steps so far, thought, both steps, observation.

    Args:
        data: the run.
        row: the record's row in the log's table.
        record: the record.
        pen: what the terminal can show; its width is that of the whole view.
    """
    narrow = Pen(pen.width - _INDENT, pen.height, pen.encoding, pen.colour)
    problem = data.problem_of(record)
    action, expert = normalize(record.action), normalize(record.expert_step)
    blocks = matching_blocks(action, expert)
    return [
        Section(heading(data.log, row, record, pen), _figures(record, pen)),
        Section("problem", _problem(problem, record, narrow)),
        Section("expert's steps so far", _steps(problem, record, narrow)),
        Section("thought", marked(record.thought, (), narrow)),
        Section(
            "policy's step",
            _action(record, marked(action, [(i, i + n) for i, _, n in blocks], narrow), narrow),
        ),
        Section(
            f"expert's step{_legend(blocks, narrow)}",
            marked(expert, [(j, j + n) for _, j, n in blocks], narrow),
        ),
        *(
            [Section("observation", marked(record.observation, (), narrow))]
            if record.observation
            else []
        ),
    ]


def heading(log: Log, row: int, record: StepRecord, pen: Pen) -> str:
    """Returns a title with the record's number, problem, training step, group and attempt."""
    size = len(group_rows(log, row))
    made = "training" if record.phase == "train" else "an evaluation after training"
    return (
        f"record #{row + 1}: step {record.step_index + 1} of {record.num_steps} of problem "
        f"{pen.say(record.problem_id)} ({pen.say(record.source)}), {made} step "
        f"{record.train_step}, group {record.group_id}, attempt {record.rollout + 1} of {size}"
    )


def rollout(data: RunData, row: int, record: StepRecord, pen: Pen) -> Group:
    """Returns the view for the terminal: the sections, then a table of the group."""
    parts: list[RenderableType] = []
    for section in sections(data, row, record, pen):
        parts += [
            Text(section.title, style="bold"),
            Padding(section.body, (0, 0, 0, _INDENT)),
            Text(),
        ]
    return Group(*parts, Text("the group", style="bold"), group_table(data.log, row, pen))


def group_rows(log: Log, row: int) -> np.ndarray:
    """Returns the rows of the table in the same group, in the log's order."""
    table = log.table
    same = [
        pc.equal(table[column], table[column][row])
        for column in ("train_step", "group_id", "phase")
    ]
    return np.flatnonzero(pc.and_(pc.and_(same[0], same[1]), same[2]).to_numpy())


def group_table(log: Log, row: int, pen: Pen) -> Table:
    """Returns a table of all attempts in the group; a mark shows which one the view is about."""
    rows = group_rows(log, row)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for title in ("", "record", "reward", "lift", "advantage", "tokens"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("policy's step")
    for member, record in zip(rows.tolist(), log.read(rows.tolist()), strict=True):
        step = pen.line(record.action)
        if record.format_failure is not None:
            step = pen.line(f"[{record.format_failure}] {record.action or record.thought}", "red")
        table.add_row(
            Text(">" if member == row else ""),
            Text(f"#{member + 1}"),
            Text(number(record.reward)),
            Text(number(record.metrics.get("lift"), sign=True)),
            Text(number(record.advantage, sign=True)),
            Text(f"{record.completion_tokens:,}"),
            step,
        )
    return table


def _figures(record: StepRecord, pen: Pen) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    named = ", ".join(f"{pen.say(name)} {number(v)}" for name, v in record.rewards.items())
    spread = f"group mean {number(record.group_mean)}, std {number(record.group_std)}"
    fate = "kept" if record.kept else f"dropped: {pen.say(record.dropped_because or '-')}"
    if record.phase == "eval":
        fate = "none: an evaluation keeps and drops nothing"
    cut = ", cut at the allowed length" if record.truncated else ""
    failure = record.format_failure
    rows = [
        ("reward", f"{number(record.reward)}  ({named or 'no named rewards'})"),
        ("advantage", f"{number(record.advantage, sign=True)}  ({spread})"),
        *(
            (pen.clip(name, 24), number(value, sign=name == "lift"))
            for name, value in record.metrics.items()
            if value is not None
        ),
        ("tokens", f"{record.prompt_tokens:,} read, {record.completion_tokens:,} written{cut}"),
        ("fate", fate),
    ]
    if record.tags:
        rows.append(("tags", pen.say(", ".join(f"{k}: {v}" for k, v in record.tags.items()))))
    if failure is not None:
        rows.append(("format failure", pen.say(failure)))
    for label, text in rows:
        grid.add_row(Text(label), Text(text, style="red" if label == "format failure" else ""))
    return grid


def _problem(problem: Problem | None, record: StepRecord, pen: Pen) -> RenderableType:
    if problem is None:
        return Text("problems.jsonl does not tell it: this log was written without", style="dim")
    body = marked(problem.text, (), pen)
    if problem.answer is None:
        return body
    return Group(body, Text(f"answer: {pen.say(problem.answer[:SHOWN])}"))


def _steps(problem: Problem | None, record: StepRecord, pen: Pen) -> RenderableType:
    if record.step_index == 0:
        return Text("none: this is the first step", style="dim")
    if problem is not None:
        steps, first = problem.steps[: record.step_index], 1
    else:  # the record itself holds only the last of these steps
        steps, first = (record.previous_step or "",), record.step_index
    narrow = Pen(pen.width - 4, pen.height, pen.encoding, pen.colour)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True, min_width=3)
    grid.add_column(overflow="fold")
    for number_, step in enumerate(steps, start=first):
        grid.add_row(Text(str(number_)), marked(step, (), narrow))
    return grid


def _action(record: StepRecord, shown: RenderableType, pen: Pen) -> RenderableType:
    if record.format_failure is None:
        return shown
    why = pen.say(record.format_failure)
    if not record.action:
        return Text(f"none was found: {why}", style="red")
    return Group(Text(f"not scored: {why}", style="red"), shown)


def _legend(blocks: Sequence[tuple[int, int, int]], pen: Pen) -> str:
    how = f"in {_MATCH}" if pen.colour else "marked ^"
    common = sum(n for _, _, n in blocks)
    return f" ({common:,} characters in common, {how})" if blocks else " (nothing in common)"


# ---- texts --------------------------------------------------------------------------------------


def marked(text: str, ranges: Sequence[Range], pen: Pen) -> Text:
    """Returns a text with some ranges of its characters marked, over as many lines as it needs.

    Args:
        text: any text; its line ends are shown as characters and also end the line.
        ranges: (start, end) of each marked range, in order.
        pen: decides how ranges are marked: by colour, or by a line of ^ beneath a line of text.
    """
    left = len(text) - SHOWN
    pieces = list(_pieces(text[:SHOWN], ranges))
    if pen.colour or not ranges:
        shown = Text(overflow="fold")
        for piece, hit in pieces:
            printable = pen.say(piece)
            if piece == "\n":
                printable += "\n"
            shown.append(printable, style=_MATCH if hit else "")
    else:
        shown = Text(_underlined(pieces, pen), no_wrap=True, overflow="crop")
    if left > 0:
        shown.append(f"\n({left:,} more characters; --json has them all)", style="dim")
    elif not text:
        shown.append("(empty)", style="dim")
    return shown


def _pieces(text: str, ranges: Sequence[Range]) -> Iterator[tuple[str, bool]]:
    """Yields the text in pieces, each marked or not marked; every line end is its own piece."""
    at = 0
    for start, end in (*ranges, (len(text), len(text))):
        for first, last, hit in ((at, start, False), (start, end, True)):
            for k, line in enumerate(text[first:last].split("\n")):
                if k:
                    yield "\n", hit
                if line:
                    yield line, hit
        at = max(at, end)


def _underlined(pieces: Sequence[tuple[str, bool]], pen: Pen) -> str:
    """Returns lines of at most the pen's width, with a line of ^ beneath each that has a mark."""
    lines: list[str] = []
    signs: list[tuple[str, bool]] = []

    def flush(upto: int) -> None:
        part, signs[:] = signs[:upto], signs[upto:]
        lines.append("".join(sign for sign, _ in part))
        marks = "".join(("^" if hit else " ") * cell_len(sign) for sign, hit in part).rstrip()
        if marks:
            lines.append(marks)

    width = 0
    for piece, hit in pieces:
        for sign in piece:
            shown = pen.say(sign)
            cells = cell_len(shown)
            if width + cells > pen.width and signs:
                space = max((k for k, (s, _) in enumerate(signs) if s == " "), default=-1)
                flush(space + 1 if space > len(signs) // 2 else len(signs))
                width = sum(cell_len(s) for s, _ in signs)
            signs.append((shown, hit))
            width += cells
        if piece == "\n":
            flush(len(signs))
            width = 0
    if signs:
        flush(len(signs))
    return "\n".join(lines)
