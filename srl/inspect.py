"""`srl inspect`: the per-step reward log of a run, in the terminal.

First what the whole log says (how much was kept, mean reward, similarity among the valid, format
failures by reason), then the newest records that were asked for, the policy's step above the
expert's. The texts were written by a model: they are shown with every control character spelt out
and are never read as markup, so that no completion moves the cursor, hides text or sets colours.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from srl.errors import UsageError
from srl.records import StepRecord, read_records
from srl.run_folder import RunFolder

_MARKS = {"\n": "⏎", "\t": "⇥"}
_ID_SHOWN = 8  # characters of a problem's id: enough to tell apart, and to type


@dataclass
class LogSummary:
    """Counts and sums over a log, one `add` at a time: a log need not fit in memory."""

    records: int = 0
    train: int = 0
    kept: int = 0
    reward_sum: float = 0.0
    rewarded: int = 0
    similarity_sum: float = 0.0
    similar: int = 0
    rewards: dict[str, list[float]] = field(default_factory=dict)  # name -> [sum, how many]
    failures: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, record: StepRecord) -> None:
        self.records += 1
        if record.phase == "train":  # an evaluation keeps and drops nothing
            self.train += 1
            self.kept += record.kept
            if record.dropped_because is not None:
                self.dropped[record.dropped_because] += 1
        if record.reward is not None:
            self.rewarded += 1
            self.reward_sum += record.reward
        for name, value in record.rewards.items():
            total = self.rewards.setdefault(name, [0.0, 0])
            if value is not None:
                total[0] += value
                total[1] += 1
        if record.format_failure is not None:
            self.failures[record.format_failure] += 1
        elif (similarity := record.rewards.get("similarity")) is not None:
            self.similar += 1
            self.similarity_sum += similarity

    @property
    def mean_reward(self) -> float | None:
        return self.reward_sum / self.rewarded if self.rewarded else None

    @property
    def mean_similarity(self) -> float | None:
        """Among valid rollouts only; read it beside the failures, never alone."""
        return self.similarity_sum / self.similar if self.similar else None


def inspect_run(
    run_folder: RunFolder,
    *,
    step: int | None = None,
    problem: str | None = None,
    failures_only: bool = False,
    phase: Literal["train", "eval", "all"] = "train",
    limit: int = 20,
    console: Console,
) -> None:
    """Print the summary of a run's log and the newest `limit` records that were asked for.

    Args:
        run_folder: the run.
        step: only records of this training step.
        problem: only records of the problem whose id begins so.
        failures_only: only format failures.
        phase: only records of training, of evaluations, or both.
        limit: how many records to show at most.
        console: where to print.

    Raises:
        UsageError: the log is missing, empty or broken, or nothing in it was asked for.
    """
    if limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 record has to be shown")
    path = run_folder.steps
    if not path.is_file():
        raise UsageError(f"{path} does not exist: this run has recorded no rollouts yet")

    summary = LogSummary()
    newest: deque[StepRecord] = deque(maxlen=limit)
    matched = 0
    train_steps: set[int] = set()
    for record in read_records(path):
        summary.add(record)
        train_steps.add(record.train_step)
        if (
            (step is None or record.train_step == step)
            and (problem is None or record.problem_id.startswith(problem))
            and (not failures_only or record.format_failure is not None)
            and phase in (record.phase, "all")
        ):
            matched += 1
            newest.append(record)

    if summary.records == 0:
        raise UsageError(f"{path} is empty: this run has recorded no rollouts yet")
    console.print(_header(run_folder.path, summary))
    if not newest:
        raise UsageError(
            f"no record in {path} matches {_asked(step, problem, failures_only, phase)}; it holds "
            f"training steps {min(train_steps)} to {max(train_steps)}"
        )
    console.print(_table(newest))
    if matched > len(newest):
        console.print(Text(f"The newest {len(newest)} of {matched} records; --limit shows more."))


def visible(text: str) -> str:
    """One line of `text` that a terminal shows as it is: control characters are spelt out."""
    return "".join(_MARKS.get(sign) or _spelt(sign) for sign in text)


def _spelt(sign: str) -> str:
    # C*: controls, direction overrides, surrogates, unassigned; Zl and Zp end lines in some places.
    category = unicodedata.category(sign)
    if category.startswith("C") or category in ("Zl", "Zp"):
        return f"\\u{{{ord(sign):x}}}"
    return sign


def _header(path: Path, summary: LogSummary) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("run"), Text(visible(str(path))))
    evaluated = summary.records - summary.train
    grid.add_row(Text("records"), Text(f"{summary.records} ({evaluated} of evaluations)"))
    grid.add_row(Text("kept"), Text(_share(summary.kept, summary.train)))
    grid.add_row(Text("dropped"), Text(_reasons(summary.dropped)))
    grid.add_row(Text("mean reward"), Text(_number(summary.mean_reward)))
    similarity = f"{_number(summary.mean_similarity)} among {summary.similar} valid"
    grid.add_row(Text("similarity"), Text(similarity))
    for name, (total, count) in summary.rewards.items():
        if name != "similarity":
            mean = _number(total / count if count else None)
            grid.add_row(Text(visible(name)), Text(f"{mean} where it applies, {count:.0f} times"))
    failed = _share(summary.failures.total(), summary.records)
    grid.add_row(Text("format failures"), Text(f"{failed}: {_reasons(summary.failures)}"))
    return grid


def _table(records: Iterable[StepRecord]) -> Table:
    """Three lines a record, narrow enough for 80 columns; only the last column is ever clipped."""
    table = Table(show_lines=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("problem\nk/N group", no_wrap=True)
    table.add_column("reward\nlift", justify="right", no_wrap=True)
    table.add_column("fate\nadvantage", no_wrap=True)
    # Its texts do not wrap, but the column says it may: rich narrows such columns first.
    table.add_column("policy's step\nexpert's step")
    for record in records:
        problem = visible(record.problem_id[:_ID_SHOWN])
        place = f"{record.step_index + 1}/{record.num_steps} {record.group_id}/{record.rollout}"
        table.add_row(
            Text(str(record.train_step)),
            Text(f"{problem}\n{place}"),
            Text(f"{_number(record.reward)}\n{_number(record.lift, sign=True)}"),
            _fate(record),
            _texts(record),
        )
    return table


def _fate(record: StepRecord) -> Text:
    if record.phase == "eval":
        return Text("eval")
    if record.kept:
        return Text(f"kept\n{_number(record.advantage, sign=True)}")
    return Text(f"dropped\n{visible(record.dropped_because or '')}", style="dim")


def _texts(record: StepRecord) -> Text:
    policy = visible(record.action)
    if record.format_failure is not None:
        # What was written in place of a step is the interesting part.
        policy = f"[{visible(record.format_failure)}] {policy or visible(record.thought)}"
    parts = "  ".join(f"{visible(name)} {_number(v)}" for name, v in record.rewards.items())
    style = "bold" if record.format_failure is None else "red"
    text = Text(policy, style=style, no_wrap=True, overflow="ellipsis")
    text.append(f"\n{visible(record.expert_step)}", style="not bold default")
    return text.append(f"\n{parts}", style="not bold dim default")


def _asked(step: int | None, problem: str | None, failures_only: bool, phase: str) -> str:
    asked = [] if step is None else [f"--step {step}"]
    asked += [] if problem is None else [f"--problem {visible(problem)}"]
    asked += ["--failures-only"] if failures_only else []
    asked += [f"--phase {phase}"]
    return " ".join(asked)


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "-"


def _reasons(counts: Counter[str]) -> str:
    if not counts:
        return "none"
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{visible(reason)} {count}" for reason, count in ordered)
