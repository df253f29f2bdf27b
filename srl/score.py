"""`srl score`: rewards without a model, for one pair of steps or for a file of them.

One pair is shown with what every reward says and with both steps aligned, so that one sees what
matched. A file may be any JSON lines with an action and an expert's step, a run's own `steps.jsonl`
among them: a new reward can be tried on an old run, and a row that a reward failed on again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rewards import BUILT_INS, RewardSum, StepContext, StepScore, normalize
from rewards.similarity import matching_blocks
from srl.errors import UsageError
from srl.inspect import visible
from srl.records import finite

# So many rows of a file are shown one by one; more of them as a table of their distribution.
SHOWN_ROWS = 3
_BATCH = 256

_TEXTS = ("problem", "thought", "answer", "source")


def all_built_ins() -> dict[str, object]:
    """Every built-in reward with weight 1."""
    return dict.fromkeys(BUILT_INS, 1.0)


def make_rewards(asked: Mapping[str, object], *, deadline: float) -> RewardSum:
    """The rewards asked for, or all built-ins where none was.

    Raises:
        UsageError: an unknown name, or a weight that is none.
    """
    weights = dict(asked) or all_built_ins()
    try:
        rewards = RewardSum(weights, deadline=deadline, errors="record")
        rewards.score([])  # finds and loads them
    except ValueError as error:
        raise UsageError(f"rewards: {error}") from error
    return rewards


def score_pair(step: StepContext, rewards: RewardSum, console: Console) -> None:
    """Print what every reward says of one step, and how the two steps match."""
    show(step, rewards.score([step])[0], rewards, console)


def score_file(path: Path, rewards: RewardSum, console: Console, *, as_json: bool) -> None:
    """Score every row of a file.

    Args:
        path: JSON lines.
        rewards: the rewards.
        console: where to print.
        as_json: one line of JSON a row, for scripts, in place of tables.

    Raises:
        UsageError: no such file, or a row that is none.
    """
    columns: dict[str, list[float | None]] = {name: [] for name in rewards.names}
    failures = rows = skipped = 0
    for batch, without in _batches(_read(path)):
        skipped += without
        for step, score in zip(batch, rewards.score(batch), strict=True):
            rows += 1
            failures += bool(score.failures)
            for name, value in score.rewards.items():
                columns[name].append(value)
            if as_json:
                told = {"rewards": score.rewards, "reward": score.reward, "lift": score.lift}
                line = json.dumps(finite({**told, "failures": score.failures}), allow_nan=False)
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            elif rows <= SHOWN_ROWS:
                show(step, score, rewards, console)
    if not rows:
        raise UsageError(f"{path} has no steps to score ({skipped} broke the format)")
    if not as_json and rows > 1:
        console.print(distributions(columns, title=f"{rows:,} steps of {path}"))
    if not as_json and skipped:
        console.print(f"{skipped:,} completions broke the format and were not scored")
    if not as_json and failures:
        console.print(f"{failures:,} steps had a reward that failed; --json tells how")


def show(step: StepContext, score: StepScore, rewards: RewardSum, console: Console) -> None:
    """One step: its rewards, and the two texts aligned."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("reward")
    table.add_column("value", justify="right")
    table.add_column("weight", justify="right")
    for name, value in score.rewards.items():
        said = "does not apply" if value is None else f"{value:.4f}"
        if name in score.failures:
            said = visible(score.failures[name])
        table.add_row(visible(name), Text(said), f"{rewards.weights[name]:g}")
    table.add_row("sum", f"{score.reward:.4f}", "")
    texts = aligned(step.action, step.expert_step, width=console.width)
    console.print(Group(table, Text(), texts, Text()), highlight=False)


def aligned(action: str, expert_step: str, *, width: int = 100) -> Text:
    """Both steps under one another, gaps where only one of them has text.

    The third line marks what counts as matching; colours say the same. Both are normalised, and
    control characters spelt out, so no text moves the cursor.
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


def distributions(columns: Mapping[str, Sequence[float | None]], *, title: str) -> Table:
    """Each reward's values: how many there are, their mean and quantiles."""
    table = Table(title=title, title_justify="left")
    table.add_column("reward")
    for head in ("n", "no value", "mean", "5 %", "median", "95 %"):
        table.add_column(head, justify="right")
    for name, values in columns.items():
        known = sorted(value for value in values if value is not None)
        cells = [f"{len(known):,}", f"{len(values) - len(known):,}"]
        if known:
            cells.append(f"{statistics.fmean(known):.3f}")
            cells += [f"{known[round(q * (len(known) - 1))]:.3f}" for q in (0.05, 0.5, 0.95)]
        table.add_row(visible(name), *cells)
    return table


def step_from(row: object, where: str) -> StepContext:
    """A row of a file as what a reward sees.

    Wanted are `action` and `expert_step`; `previous_steps` or `previous_step`, `problem`,
    `thought`, `answer`, `step_index`, `num_steps`, `source` and `metadata` as far as there are.

    Raises:
        UsageError: it is no such row.
    """
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a row is a JSON object with action and expert_step, not {row}")
    for name in ("action", "expert_step"):
        if not isinstance(row.get(name), str):
            raise UsageError(
                f"{where}: {name} is {row.get(name)!r}; a row needs the text of action and of "
                "expert_step"
            )
    previous = row.get("previous_steps")
    if previous is None:
        previous = [] if row.get("previous_step") is None else [row["previous_step"]]
    if not isinstance(previous, list) or not all(isinstance(one, str) for one in previous):
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
        problem=texts["problem"] or "",
        previous_steps=tuple(previous),
        action=row["action"],
        thought=texts["thought"] or "",
        expert_step=row["expert_step"],
        step_index=index,
        num_steps=count,
        answer=texts["answer"],
        source=texts["source"] or "",
        metadata=metadata,
    )


def _read(path: Path) -> Iterator[StepContext | None]:
    """The steps of a file; None for a completion that broke the format."""
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        try:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UsageError(f"{where}: not JSON ({error})") from error
                failed = isinstance(row, dict) and row.get("format_failure") is not None
                yield None if failed else step_from(row, where)
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text: {error}") from error


def _batches(steps: Iterable[StepContext | None]) -> Iterator[tuple[list[StepContext], int]]:
    """Steps to score together, and how many failures were passed over."""
    batch: list[StepContext] = []
    without = 0
    for step in steps:
        if step is None:
            without += 1
        else:
            batch.append(step)
        if len(batch) == _BATCH:
            yield batch, without
            batch, without = [], 0
    yield batch, without


def _wrapped(rows: Sequence[Text], heads: Sequence[str], width: int) -> Text:
    """Lines of equal length cut into pieces of `width`, those of one piece under one another."""
    found = Text()
    for start in range(0, max(1, len(rows[0])), width):
        for row, head in zip(rows, heads, strict=True):
            found.append(head).append(row[start : start + width]).append("\n")
    found.rstrip()
    return found
