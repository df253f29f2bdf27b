"""Chooses the rollouts that a report contains, and packs their data for the viewer.

A log can have a million rollouts, but a page cannot. So whole groups are embedded, first those that
the report links to and then a random sample, until a number of rollouts or an amount of text is
reached. The data are gzipped JSON in base64, so no text in them can end their HTML element.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rewards.similarity import matching_blocks, normalize
from srl.logs.figures import codes
from srl.logs.index import METRIC, Log
from srl.logs.run_data import Problem, RunData
from srl.runs.records import StepRecord

# Limit of one text, in characters. A step of a solution has some hundred characters, a long thought
# some ten thousand.
LONGEST_TEXT = 200_000
# Limit of one pair of texts. Nobody would look at more blocks, and they are slow to draw.
MOST_BLOCKS = 5_000
# Limit of all embedded records, in bytes of the log. A browser can still open a page of this size.
MOST_BYTES = 100_000_000


@dataclass(frozen=True)
class Chosen:
    """The rollouts of one run that the page contains: rows of the log's table, group by group."""

    groups: list[np.ndarray]

    @property
    def rows(self) -> list[int]:
        return [int(row) for group in self.groups for row in group]


def choose(log: Log, most: int, wanted: Sequence[int]) -> Chosen:
    """Chooses whole groups with at most `most` rollouts and MOST_BYTES bytes in all.

    The groups of the rows in `wanted` come first, then others at random (seeded). The first group
    is taken whatever its size, because a page without any would be of no use.
    """
    groups = groups_of(log)
    ends = np.append(log.table["start"].to_numpy()[1:], log.end)
    sizes = np.minimum(ends - log.table["start"].to_numpy(), 5 * LONGEST_TEXT)
    first = np.array([rows[0] for rows in groups])
    linked = np.searchsorted(first, np.array(wanted, dtype=np.int64), side="right") - 1
    others = np.random.default_rng(0).permutation(len(groups))
    order = np.array(list(dict.fromkeys([*linked.tolist(), *others.tolist()])))
    rollouts = np.cumsum([len(groups[k]) for k in order])
    written = np.cumsum([sizes[groups[k]].sum() for k in order])
    fits = (rollouts <= most) & (written <= MOST_BYTES)
    fits[0] = True
    return Chosen([groups[k] for k in np.sort(order[fits])])


def groups_of(log: Log) -> list[np.ndarray]:
    """Returns the rows of each group, in the log's order; a group's rows have the same prompt."""
    names = ("train_step", "group_id", "step_index", "step_text")
    columns = [log.table[name].to_numpy() for name in names]
    columns += [codes(log.table[name])[0] for name in ("phase", "problem_id")]
    changes = np.zeros(log.table.num_rows, dtype=bool)
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.split(np.arange(log.table.num_rows), np.flatnonzero(changes))


def run_json(run: RunData, name: str, chosen: Chosen) -> dict[str, object]:
    """Returns the data of one run in the form that the viewer reads."""
    records = run.log.read(chosen.rows)
    problems: dict[int, tuple[int, Problem]] = {}  # identity -> (index, problem)
    groups = []
    for rows in chosen.groups:
        group = [next(records) for _ in rows]
        problem = run.problem_of(group[0])
        if problem is not None:
            problems.setdefault(id(problem), (len(problems), problem))
        where = None if problem is None else problems[id(problem)][0]
        lines = (int(row) + 1 for row in rows)
        rollouts = [_rollout(record, line) for record, line in zip(group, lines, strict=True)]
        groups.append(_group(group[0], len(group)) | {"problem": where, "rollouts": rollouts})
    problem_rows = [
        {
            "text": cut(problem.text),
            "steps": [*map(cut, problem.steps)],
            "answer": cut(problem.answer),
        }
        for _, problem in problems.values()
    ]
    return {"name": name, "problems": problem_rows, "groups": groups}


def pack(runs: Sequence[Mapping[str, object]]) -> str:
    """Returns all runs as text that is safe in a script element."""
    written = json.dumps({"runs": runs}, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(written.encode("ascii"), 6, mtime=0)).decode("ascii")


def cut(text: str | None) -> str | None:
    """Returns `text`, or the beginning of a long text with a note that it was cut."""
    if text is None or len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n[cut here: {len(text):,} characters, see the log]"


@lru_cache(maxsize=64)  # the attempts of a group are often the same
def marks(action: str, expert_step: str) -> list[tuple[int, int, int]]:
    """Returns where two normalised texts match: (place in action, place in expert step, length).

    Places and lengths count characters.
    """
    blocks = []
    for i, j, length in matching_blocks(action, expert_step)[:MOST_BLOCKS]:
        length = min(length, LONGEST_TEXT - i, LONGEST_TEXT - j)
        if length > 0:
            blocks.append((i, j, length))
    return blocks


def _group(first: StepRecord, size: int) -> dict[str, object]:
    return {
        "phase": first.phase,
        "step": first.train_step,
        "group": first.group_id,
        "source": cut(first.source),
        "id": cut(first.problem_id),
        "index": first.step_index,
        "of": first.num_steps,
        "expert": cut(normalize(first.expert_step)),
        "previous": None if first.previous_step is None else cut(normalize(first.previous_step)),
        # The groups of an evaluation have one rollout, and the log has no mean for them.
        "mean": _short(first.reward if size == 1 else first.group_mean),
        "std": _short(first.group_std),
        "kept": first.kept,
        "dropped": cut(first.dropped_because),
        "tags": [(cut(name), cut(value)) for name, value in first.tags.items()],
    }


def _rollout(record: StepRecord, line: int) -> dict[str, object]:
    action, failure = normalize(record.action), record.format_failure
    figures = [
        *record.rewards.items(),
        # A metric with the name of a reward gets the prefix `metrics/`, as everywhere else.
        *((METRIC * (k in record.rewards) + k, value) for k, value in record.metrics.items()),
        ("advantage", record.advantage),
    ]
    return {
        "line": line,
        "thought": cut(record.thought),
        "action": cut(action),
        "marks": marks(action, normalize(record.expert_step)) if failure is None else [],
        "observation": cut(record.observation),
        "failure": cut(failure),
        "truncated": record.truncated,
        "reward": _short(record.reward),
        "tokens": record.completion_tokens,
        "figures": [(cut(name), _short(value)) for name, value in figures],
    }


def _short(value: float | None) -> float | None:
    """Returns a value rounded to six digits: more than is shown, in a third of the bytes."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
