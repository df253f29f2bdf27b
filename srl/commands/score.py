"""Runs `srl score`: computes rewards without a model, for one pair of steps or for a file.

A pair is shown with every reward's value and with both steps aligned, so that the matches are
visible. A file contains JSON lines with an action and an expert step each. A run's `steps.jsonl` is
such a file, so a new reward can be tried on an old run, and a failed row again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rewards import BUILT_INS, RewardSum, StepContext, StepScore, normalize
from rewards.settings import name_of
from rewards.similarity import matching_blocks
from srl.console import say, visible
from srl.errors import UsageError
from srl.runs.records import read_object

# The most rows of a file that are shown one by one; a table shows the distribution of all.
SHOWN_ROWS = 3
_BATCH = 256

_TEXTS = ("problem", "thought", "answer", "source")


def built_ins_and(asked: Mapping[str, object]) -> dict[str, object]:
    """Returns built-in rewards with weight 1 and `asked`, which has priority if names are equal."""
    names = {key if isinstance(how, Mapping) else name_of(key) for key, how in asked.items()}
    return {**{name: 1.0 for name in BUILT_INS if name not in names}, **asked}


def make_rewards(weights: Mapping[str, object], *, deadline: float = 5.0) -> RewardSum:
    """Returns the loaded rewards; they record their failures instead of raising.

    Raises:
        UsageError: a name is unknown, or a weight is invalid.
    """
    try:
        rewards = RewardSum(weights, deadline=deadline, errors="record", for_training=False)
        rewards.load()
    except ValueError as error:
        raise UsageError(f"rewards: {error}") from error
    return rewards


def score_file(path: Path, rewards: RewardSum, console: Console, *, as_json: bool) -> int:
    """Scores every row of a file; returns on how many rows a reward failed.

    Args:
        path: a file of JSON lines.
        rewards: the rewards.
        console: where to print.
        as_json: prints one line of JSON per row, for scripts, instead of tables.

    Raises:
        UsageError: the file cannot be read, a row is invalid, or there are no steps to score.
    """
    columns: dict[str, list[float | None]] = {name: [] for name in rewards.names}
    failures = rows = skipped = 0
    from_a_run = False
    lines = _read(path)
    while batch := list(islice(lines, _BATCH)):
        from_a_run = from_a_run or any("schema" in row for _, row in batch)
        steps = [
            (number, step_from(row, f"{path}, line {number}"))
            for number, row in batch
            if row.get("format_failure") is None
        ]
        skipped += len(batch) - len(steps)
        scores = rewards.score([step for _, step in steps])
        for (number, step), score in zip(steps, scores, strict=True):
            rows += 1
            failures += bool(score.failures)
            for name, value in score.rewards.items():
                columns[name].append(value)
            if as_json:
                say(console, json.dumps({"line": number, **asdict(score)}, allow_nan=False))
            elif rows <= SHOWN_ROWS:
                say(console, f"line {number}:")
                show(step, score, rewards, console)
    if not rows:
        raise UsageError(f"{path} has no steps to score ({skipped} broke the format)")
    if as_json:
        return failures
    if rows > 1:
        console.print(distributions(columns, title=f"{rows:,} steps of {path}"))
    if skipped:
        console.print(f"{skipped:,} completions broke the format and were not scored")
    if failures:
        console.print(f"steps with a reward that failed: {failures:,}; --json tells how")
    if from_a_run:
        say(
            console,
            "A run's log holds no problems, no answers, no metadata and only the step before: "
            "a reward that looks at them sees nothing",
        )
    return failures


def show(step: StepContext, score: StepScore, rewards: RewardSum, console: Console) -> None:
    """Prints one step: its rewards, and the two texts aligned."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("reward")
    table.add_column("value", justify="right")
    table.add_column("weight", justify="right")
    for name, value in score.rewards.items():
        cell = "does not apply" if value is None else f"{value:.4f}"
        if name in score.failures:
            cell = visible(score.failures[name])
        table.add_row(visible(name), Text(cell), f"{rewards.weights[name]:g}")
    table.add_row("sum", f"{score.reward:.4f}", "")
    texts = aligned(step.action, step.expert_step, width=console.width)
    console.print(Group(table, Text(), texts, Text()), highlight=False)


def aligned(action: str, expert_step: str, *, width: int = 100) -> Text:
    """Returns both steps, one below the other, with gaps where only one has text.

    The third line marks what counts as matching; colours show the same. Both texts are normalised
    and their control characters are written as codes, so no text moves the cursor.
    """
    a, b = normalize(action), normalize(expert_step)
    pieces: list[tuple[str, str, bool]] = []
    i = j = 0
    for start_a, start_b, size in [*matching_blocks(a, b), (len(a), len(b), 0)]:
        pieces.append((a[i:start_a], b[j:start_b], False))
        pieces.append((a[start_a : start_a + size], b[start_b : start_b + size], True))
        i, j = start_a + size, start_b + size
    rows = [Text(), Text(), Text()]
    for ours, theirs, match in pieces:
        ours, theirs = visible(ours), visible(theirs)
        cells = max(cell_len(ours), cell_len(theirs))
        rows[0].append(ours + " " * (cells - cell_len(ours)), "green" if match else "red")
        rows[1].append(theirs + " " * (cells - cell_len(theirs)), "green" if match else "yellow")
        rows[2].append(("=" if match else " ") * cells, "dim")
    return _wrapped(rows, ("policy  ", "expert  ", "        "), max(20, width - 9))


@dataclass(frozen=True)
class Values:
    """The distribution of a reward over some steps; None if it applies to none of them."""

    n: int  # steps that it applies to
    without: int  # steps that it does not apply to
    mean: float | None = None
    low: float | None = None  # 5 % quantile
    median: float | None = None
    high: float | None = None  # 95 % quantile

    @classmethod
    def of(cls, given: Iterable[float | None]) -> Values:
        values = list(given)
        known = sorted(value for value in values if value is not None)
        without = len(values) - len(known)
        if not known:
            return cls(0, without)
        low, median, high = (known[round(q * (len(known) - 1))] for q in (0.05, 0.5, 0.95))
        return cls(len(known), without, statistics.fmean(known), low, median, high)


def distributions(columns: Mapping[str, Sequence[float | None]], *, title: str) -> Table:
    """Returns a table of each reward's values: their number, mean and quantiles."""
    table = Table(title=title, title_justify="left")
    table.add_column("reward")
    for head in ("n", "no value", "mean", "5 %", "median", "95 %"):
        table.add_column(head, justify="right")
    for name, values in columns.items():
        summary = Values.of(values)
        figures = (summary.mean, summary.low, summary.median, summary.high)
        cells = ["-" if figure is None else f"{figure:.3f}" for figure in figures]
        table.add_row(visible(name), f"{summary.n:,}", f"{summary.without:,}", *cells)
    return table


def step_from(row: Mapping[str, Any], where: str) -> StepContext:
    """Returns a row of a file as the context that a reward reads.

    Required are `action` and `expert_step`. Optional are `previous_steps` or `previous_step`,
    `problem`, `thought`, `answer`, `step_index`, `num_steps`, `source` and `metadata`.

    Raises:
        UsageError: the row is invalid.
    """
    for name in ("action", "expert_step"):
        if not isinstance(row.get(name), str):
            raise UsageError(
                f"{where}: {name} is {row.get(name)!r}; a row needs the text of action and of "
                "expert_step"
            )
    previous = row.get("previous_steps")
    if previous is None:
        previous = [] if row.get("previous_step") is None else [row["previous_step"]]
    if not isinstance(previous, list) or not all(isinstance(step, str) for step in previous):
        raise UsageError(f"{where}: previous_steps is {previous!r}; it must be a list of texts")
    texts = {name: row.get(name) for name in _TEXTS}
    for name, text in texts.items():
        if not isinstance(text, str | None):
            raise UsageError(f"{where}: {name} is {text!r}; it must be a text")
    index = row.get("step_index", len(previous))
    count = row.get("num_steps", index + 1 if isinstance(index, int) else 1)
    if not (type(index) is int and type(count) is int and 0 <= index < count):
        raise UsageError(
            f"{where}: step_index is {index!r} of num_steps {count!r}; steps count from 0"
        )
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UsageError(f"{where}: metadata is {metadata!r}; it must be a JSON object")
    return StepContext(
        **{name: text or "" for name, text in texts.items()} | {"answer": texts["answer"]},
        previous_steps=tuple(previous),
        action=row["action"],
        expert_step=row["expert_step"],
        step_index=index,
        num_steps=count,
        metadata=metadata,
    )


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the rows of a file with their line numbers."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, read_object(line, f"{path}, line {number}")


def _wrapped(rows: Sequence[Text], heads: Sequence[str], width: int) -> Text:
    """Returns lines of equal length in pieces of `width`; the lines of one piece are together."""
    text = Text()
    for start in range(0, max(1, len(rows[0])), width):
        for row, head in zip(rows, heads, strict=True):
            text.append(head).append(row[start : start + width]).append("\n")
    text.rstrip()
    return text
