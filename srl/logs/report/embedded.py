"""The rollouts that a report carries: which groups, what the viewer is told of them, their packing.

A log can have a million rollouts, a page cannot. So whole groups go in, those that the report links
to and then an even spread over the log, until a number of rollouts or an amount of text is reached.
All that a text needs before it is shown is done here, where `similarity` is at hand: white space as
it compares it, the blocks that match the expert's step. The data travel as gzipped JSON in base64,
which no text can end early.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa

from rewards.similarity import matching_blocks, normalize
from srl.logs.figures import codes
from srl.logs.index import METRIC, REWARD, Log
from srl.logs.run_data import RunData
from srl.runs.records import StepRecord

# Of one text. A step of a solution has some hundred characters, a long thought some ten thousand.
LONGEST_TEXT = 200_000
# Of one pair of texts: more would be seen by nobody, and are slow to draw.
MOST_BLOCKS = 5_000
# Of all records that are embedded, in bytes as they stand in the log: what a browser still opens.
MOST_BYTES = 100_000_000


@dataclass(frozen=True)
class Chosen:
    """The rollouts of one run that go into the page.

    Attributes:
        groups: rows of the log's table, group by group, in the log's order.
        rollouts: how many that are.
        whole: how many the log has.
    """

    groups: list[np.ndarray]
    whole: int

    @property
    def rollouts(self) -> int:
        return sum(map(len, self.groups))

    @property
    def rows(self) -> set[int]:
        return {int(row) for group in self.groups for row in group}


def choose(log: Log, most: int, wanted: Sequence[int], most_bytes: int = MOST_BYTES) -> Chosen:
    """Whole groups of at most `most` rollouts: those of the rows in `wanted`, then an even spread.

    One group is taken however large it is: a page without any would be of no use.
    """
    groups = groups_of(log)
    starts = log.table["start"].to_numpy()
    ends = np.append(starts[1:], log.path.stat().st_size - log.unfinished)
    sizes = np.minimum(ends - starts, 5 * LONGEST_TEXT)
    group_of = np.empty(log.table.num_rows, dtype=np.int64)
    for k, rows in enumerate(groups):
        group_of[rows] = k
    taken: set[int] = set()
    rollouts = count = 0
    for k in dict.fromkeys([*(int(group_of[row]) for row in wanted), *evenly(len(groups))]):
        more, more_bytes = len(groups[k]), int(sizes[groups[k]].sum())
        if taken and (rollouts + more > most or count + more_bytes > most_bytes):
            if rollouts >= most or count >= most_bytes:
                break
            continue
        taken.add(k)
        rollouts, count = rollouts + more, count + more_bytes
    return Chosen([groups[k] for k in sorted(taken)], log.table.num_rows)


def groups_of(log: Log) -> list[np.ndarray]:
    """The rows of each group, in the log's order."""
    table = log.table
    columns = [table[name].to_numpy().astype(np.int64) for name in ("train_step", "group_id")]
    columns += [codes(table[name])[0] for name in ("phase", "problem_id", "step_index")]
    changes = np.zeros(table.num_rows, dtype=bool)
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.split(np.arange(table.num_rows), np.flatnonzero(changes))


def evenly(count: int) -> Iterator[int]:
    """All numbers below `count`, in an order of which every beginning is spread evenly.

    The van der Corput sequence: numbers by their bits read backwards.
    """
    bits = max(0, count - 1).bit_length()
    for k in range(1 << bits):
        number = int(format(k, f"0{bits}b")[::-1], 2) if bits else 0
        if number < count:
            yield number


def run_json(run: RunData, name: str, chosen: Chosen) -> dict[str, object]:
    """One run as the viewer reads it."""
    problems: dict[int, tuple[int, object]] = {}  # by identity: where, and what
    flat = [int(row) for group in chosen.groups for row in group]
    table = run.log.table.take(pa.array(flat, pa.int64()))
    # Figures from the table: it knows what a log of schema 1 does not say.
    rewards, metrics = (
        _by_row(table, [prefix + name for name in names])
        for prefix, names in ((REWARD, run.log.reward_names), (METRIC, run.log.metric_names))
    )
    figures = [
        {"line": row + 1, "copied": bool(copied), "rewards": by_reward, "metrics": by_metric}
        for row, copied, by_reward, by_metric in zip(
            flat, table["copied"].to_pylist(), rewards, metrics, strict=True
        )
    ]
    records = zip(run.log.read(flat), figures, strict=True)
    groups: list[dict[str, object]] = []
    for rows in chosen.groups:
        told = [next(records) for _ in rows]
        # One group has one prompt, unless somebody else than the trainer wrote the log.
        for _, part in groupby(told, key=lambda r: (r[0].expert_step, r[0].previous_step)):
            group = list(part)
            first = group[0][0]
            problem = run.problem_of(first)
            if problem is not None and id(problem) not in problems:
                said = {
                    "text": cut(problem.text),
                    "steps": [cut(step) for step in problem.steps],
                    "answer": None if problem.answer is None else cut(problem.answer),
                }
                problems[id(problem)] = len(problems), said
            where = None if problem is None else problems[id(problem)][0]
            groups.append(_group(group, where))
    return {
        "name": name,
        "whole": chosen.whole,
        "rewards": [cut(name) for name in run.log.reward_names],
        "metrics": [cut(name) for name in run.log.metric_names],
        "problems": [said for _, said in problems.values()],
        "groups": groups,
    }


def pack(runs: Sequence[dict[str, object]]) -> str:
    """All runs as text that may stand in a script element."""
    written = json.dumps({"runs": runs}, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(written.encode("ascii"), 6, mtime=0)).decode("ascii")


def cut(text: str) -> str:
    """`text`, or its beginning with a word about the rest."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n[cut here: {len(text):,} characters, see the log]"


def marks(action: str, expert_step: str) -> list[int]:
    """Where the two match: place in the action, in the expert's step, length, again and again.

    Places count UTF-16 units, as JavaScript does. Both texts are normalised ones.
    """
    # Few texts have a sign beyond the first 65,536, and of those most have few.
    here, there = (
        [] if text.isascii() else [k for k, sign in enumerate(text) if sign > "\uffff"]
        for text in (action, expert_step)
    )
    found: list[int] = []
    for i, j, length in matching_blocks(action, expert_step)[:MOST_BLOCKS]:
        end = i + min(length, LONGEST_TEXT - i, LONGEST_TEXT - j)
        if end > i:
            place = i + bisect_left(here, i)
            found += [place, j + bisect_left(there, j), end + bisect_left(here, end) - place]
    return found


def _group(
    group: Sequence[tuple[StepRecord, Mapping[str, object]]],
    problem: int | None,
) -> dict[str, object]:
    first = group[0][0]
    expert = normalize(first.expert_step)
    # The attempts of a group are often the same.
    valid = {normalize(r.action) for r, _ in group if r.format_failure is None}
    found = {action: marks(action, expert) for action in valid}
    return {
        "phase": first.phase,
        "step": first.train_step,
        "group": first.group_id,
        "source": cut(first.source),
        "id": cut(first.problem_id),
        "problem": problem,
        "index": first.step_index,
        "of": first.num_steps,
        "prompt": first.prompt_tokens,
        "expert": cut(expert),
        "previous": None if first.previous_step is None else cut(normalize(first.previous_step)),
        # An evaluation has groups of one, and writes no mean for them.
        "mean": _short(first.reward if len(group) == 1 else first.group_mean),
        "std": _short(first.group_std),
        "kept": first.kept,
        "dropped": first.dropped_because and cut(first.dropped_because),
        "rollouts": [_rollout(record, figures, found) for record, figures in group],
    }


def _by_row(table: pa.Table, columns: Sequence[str]) -> list[list[float | None]]:
    """The values of some columns, row by row."""
    values = [[_short(value) for value in table[name].to_pylist()] for name in columns]
    return [[column[k] for column in values] for k in range(table.num_rows)]


def _rollout(
    record: StepRecord, figures: Mapping[str, object], found: Mapping[str, list[int]]
) -> dict[str, object]:
    action = normalize(record.action)
    return {
        **figures,
        "rollout": record.rollout,
        "tokens": record.completion_tokens,
        "truncated": record.truncated,
        "thought": cut(record.thought),
        "action": cut(action),
        "marks": found[action] if record.format_failure is None else [],
        "failure": record.format_failure and cut(record.format_failure),
        "reward": _short(record.reward),
        "advantage": _short(record.advantage),
        "observation": cut(record.observation),
    }


def _short(value: float | None) -> float | None:
    """Six digits, which is more than is shown and a third of the bytes."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
