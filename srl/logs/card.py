"""The card of an exported data set: what is in it, column by column, and the run it comes from.

Texts of a config stand in fenced blocks alone, so that none is read as Markdown; of paths only the
last part is told, since where things lie on a machine is nobody else's business.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

import yaml

import srl
from srl.errors import UsageError
from srl.redaction import shareable
from srl.runs.folder import RunFolder
from srl.runs.records import FIELDS, StepRecord, utf8

if TYPE_CHECKING:
    import pyarrow as pa

STEPS = "steps.parquet"


@dataclass
class Survey:
    """What must be known before the first record is written, and is told in the card."""

    records: int
    rewards: dict[str, str]  # name -> column
    problems: set[str]
    sources: set[str]
    phases: dict[str, int]
    train_steps: set[int]

    @classmethod
    def of(cls, records: Iterable[StepRecord]) -> Survey:
        """Count.

        Raises:
            UsageError: two rewards have names that no Parquet file can tell apart.
        """
        found = cls(0, {}, set(), set(), {}, set())
        for record in records:
            found.records += 1
            found.rewards |= {name: utf8(name) for name in record.rewards}
            found.problems.add(record.problem_id)
            found.sources.add(record.source)
            found.phases[record.phase] = found.phases.get(record.phase, 0) + 1
            found.train_steps.add(record.train_step)
        columns = list(found.rewards.values())
        for column in columns:
            if columns.count(column) > 1:
                raise UsageError(
                    f"several rewards would be called {column!r}, as their names differ in "
                    "characters that UTF-8 does not have; give the rewards other names"
                )
        return found


def column_type(name: str, survey: Survey) -> pa.DataType:
    """The column of a field."""
    import pyarrow as pa

    wanted = get_type_hints(StepRecord)[name]
    if get_origin(wanted) is Mapping:
        inner = [(column, pa.float64()) for column in survey.rewards.values()]
        return pa.struct(inner) if inner else pa.null()  # Parquet has no struct of nothing
    if get_origin(wanted) is Literal:
        return pa.string()
    (kind,) = {part for part in get_args(wanted) or (wanted,) if part is not NoneType}
    return {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}[kind]


_CARD = """\
---
{front}---

# Rollouts of step-wise supervised reinforcement learning

Each row is one rollout: a policy was shown a problem and an expert's steps so far, wrote a
thought and a step of its own, and was rewarded for how well that step matches the expert's.
Rollouts of the same step form a group; in training, groups that tell the policy something are
`kept`.

Records: {records}. Problems: {problems}. Optimiser steps: {train_steps}. Made for: {phases}.
They are one split, called `train`; the column `phase` says what a rollout was made for.

{asked}

```python
from datasets import load_dataset

steps = load_dataset({folder}, split="train")  # the path of this folder
```

The problems' texts, the experts' whole solutions and the final answers are in the file
`problems.jsonl` of the run's folder, by `problem_id`; they are not repeated here.

## Columns

| column | type | what it is |
|---|---|---|
{columns}

`rewards` has a field for every name that any record has; where a record lacks it, it is null.
Missing values are null everywhere, and numbers are finite. Texts are as they were scored, but for
lone halves of surrogate pairs: UTF-8 has none, so each is replaced by U+FFFD.

## The run

{run}
"""


def card(survey: Survey, run: RunFolder, name: str, asked: str) -> str:
    front: dict[str, object] = {
        "pretty_name": "Rollouts of step-wise supervised reinforcement learning",
        "tags": ["reinforcement-learning", "reasoning", "rollouts", "stepwise-srl"],
        "size_categories": [_size_category(survey.records)],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": STEPS}]},
        ],
    }
    return _CARD.format(
        front=_yaml(front),
        records=f"{survey.records:,}",
        problems=f"{len(survey.problems):,}",
        train_steps=f"{len(survey.train_steps):,}",
        phases=", ".join(f"`{phase}` {n:,}" for phase, n in sorted(survey.phases.items())),
        asked=f"Not all records of the run are here, but those asked for:\n\n{_code(asked)}"
        if asked
        else "All records that the run had written are here.",
        # Any name at all, as a literal of one line.
        folder=json.dumps(name).replace("`", "\\x60"),
        columns="\n".join(_column_rows(survey)),
        run=_code(_yaml(_about(survey, run)), "yaml"),
    )


def _about(survey: Survey, run: RunFolder) -> dict[str, object]:
    """The run in short; what its folder lacks is left out."""
    told: dict[str, object] = {"run": run.path.resolve().name}
    with suppress(UsageError):  # a trainer used from Python writes no config
        config = run.read_config()
        told |= {key: config[key] for key in ("model", "data", "rewards") if key in config}
    told["sources"] = sorted(survey.sources)
    told["reward columns"] = list(survey.rewards.values())
    with suppress(OSError, ValueError, KeyError, TypeError):
        environment = json.loads(run.environment.read_text(encoding="utf-8"))
        told["trained with"] = {"python": environment["python"], **environment["packages"]}
    told["exported with"] = f"stepwise-srl {srl.__version__}"
    return {key: shareable(value) for key, value in told.items()}


def _column_rows(survey: Survey) -> Iterator[str]:
    said = _words()
    for name in FIELDS:
        words = said.get(name, "").replace("None", "null").replace("|", "\\|")
        kind = str(column_type(name, survey)) if name != "rewards" else "struct of double"
        yield f"| `{name}` | {kind} | {words} |"


def _words() -> dict[str, str]:
    """What the step record's docstring says of each field."""
    said: dict[str, str] = {}
    field = ""
    attributes = inspect.cleandoc(StepRecord.__doc__ or "").partition("Attributes:\n")[2]
    for line in attributes.splitlines():
        if start := re.match(r" {4}(\w+): (.*)", line):
            field = start[1]
            said[field] = start[2]
        elif field:
            said[field] += f" {line.strip()}"
    return said


def _size_category(count: int) -> str:
    """As the hub has it: `1K<n<10K`."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    for power, name in enumerate(names, start=3):
        if count < 10**power:
            return f"n<{name}" if power == 3 else f"{names[power - 4]}<n<{name}"
    return "n>1B"


def _yaml(value: object) -> str:
    # Other than ASCII is escaped, so nothing here can hide itself or end a line.
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=10**9)


def _code(text: str, language: str = "") -> str:
    """`text` as a block that shows it as it is, whatever Markdown and HTML it holds."""
    shown = "".join(
        sign if sign == "\n" or sign.isprintable() else f"\\u{ord(sign):04x}"
        for sign in text.rstrip("\n")
    )
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"
