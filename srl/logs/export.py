"""Step records as a data set: a Parquet file and a card that says what is in it.

The log is for the machine it was written on; a data set is for others, so everything a reader needs
stands in its card, and nothing of the machine: of a path only its last part.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import NoneType
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

import yaml

import srl
from srl.errors import UsageError
from srl.records import FIELDS, StepRecord, utf8
from srl.run_folder import RunFolder

if TYPE_CHECKING:
    import pyarrow as pa

STEPS = "steps.parquet"
CARD = "README.md"

# Records of a row group, which are in memory at a time: with texts of 2 KB some 20 MB.
GROUP = 4096


def export_parquet(
    records: Callable[[], Iterable[StepRecord]], run: RunFolder, folder: Path, *, asked: str
) -> int:
    """Write `folder/steps.parquet` and its card; returns how many records are in it.

    Records are read twice, because a Parquet file begins with its columns and rewards may differ
    from record to record: first for their names, then to write them. What a log gained in between
    is left out.

    Args:
        records: gives a new iterator over the records at each call, the same ones each time.
        run: where they come from.
        folder: a new folder, or an empty one.
        asked: what was asked for, in words; empty if all records were.

    Raises:
        UsageError: the folder is in use or cannot be written, or there is nothing to write.
    """
    _check_free(folder)
    survey = _Survey.of(records())
    if not survey.records:
        raise UsageError(
            f"there are no records to export from {run.steps}"
            + (f" that fit: {asked}; ask for less" if asked else ": nothing was recorded yet")
        )
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    beside = {name: folder / f".{name}.{os.getpid()}" for name in (STEPS, CARD)}
    ours = list(beside.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_steps(islice(records(), survey.records), survey, beside[STEPS])
        beside[CARD].write_text(_card(survey, run, folder.resolve().name, asked), encoding="utf-8")
        if any(path not in ours for path in folder.iterdir()):
            raise _in_use(folder)  # by somebody else, meanwhile
        for name, path in beside.items():
            os.replace(path, folder / name)
            ours.append(folder / name)
    except BaseException as error:
        for path in ours:
            with suppress(OSError):
                path.unlink()
        for path in new_folders:
            with suppress(OSError):  # never made, or somebody else uses it by now
                path.rmdir()
        if isinstance(error, OSError):
            raise UsageError(
                f"cannot write {folder}: {error.strerror or error}. "
                "Give a folder you may write to, on a disk with room"
            ) from error
        raise
    return survey.records


@dataclass
class _Survey:
    """What must be known before the first record is written, and is told in the card."""

    records: int
    rewards: dict[str, str]  # name -> column
    problems: set[str]
    sources: set[str]
    phases: dict[str, int]
    train_steps: set[int]

    @classmethod
    def of(cls, records: Iterable[StepRecord]) -> _Survey:
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


def _check_free(folder: Path) -> None:
    """Raises UsageError: there is something at `folder`."""
    try:
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror or error}") from error
    if not free:
        raise _in_use(folder)


def _in_use(folder: Path) -> UsageError:
    number = 2
    while (other := folder.resolve().with_name(f"{folder.resolve().name}-{number}")).exists():
        number += 1
    return UsageError(
        f"{folder} is in use and is never overwritten; give a folder that is new or empty, such as "
        f"{other if folder.is_absolute() else os.path.relpath(other)}"
    )


# ---- the Parquet file ---------------------------------------------------------------------------


def _write_steps(records: Iterator[StepRecord], survey: _Survey, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _type(name, survey)) for name in FIELDS])
    written = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(records, GROUP)):
            try:
                rows = [_row(record, survey.rewards) for record in chunk]
                table = pa.Table.from_pylist(rows, schema)
            except (pa.ArrowException, OverflowError, KeyError) as error:
                raise UsageError(
                    f"records {written + 1} to {written + len(chunk)} cannot be written as "
                    f"Parquet: {error}. The log was changed by hand, or while it was read"
                ) from error
            writer.write_table(table, row_group_size=GROUP)
            written += len(chunk)
    if written != survey.records:
        raise UsageError(
            f"the log was cut while it was read, from {survey.records:,} records to {written:,}; "
            "export it again"
        )


def _type(name: str, survey: _Survey) -> pa.DataType:
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


def _row(record: StepRecord, columns: Mapping[str, str]) -> dict[str, object]:
    row = {name: _cell(getattr(record, name)) for name in FIELDS}
    unknown = record.rewards.keys() - columns.keys()
    if unknown:
        raise KeyError(f"reward {min(unknown)} came up late")
    row["rewards"] = {
        column: _cell(record.rewards.get(name)) for name, column in columns.items()
    } or None
    return row


def _cell(value: object) -> object:
    if isinstance(value, str):
        return utf8(value)
    # As in the log, where every number is finite.
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- the card -----------------------------------------------------------------------------------

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


def _card(survey: _Survey, run: RunFolder, name: str, asked: str) -> str:
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


def _about(survey: _Survey, run: RunFolder) -> dict[str, object]:
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
    return {key: _without_places(value) for key, value in told.items()}


def _without_places(value: object) -> object:
    """Of whole paths the last part: where things lie on a machine is nobody else's business."""
    if isinstance(value, Mapping):
        return {_without_places(key): _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(inner) for inner in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute() or value.startswith("~"):
                return kind(value).name
    return value


def _column_rows(survey: _Survey) -> Iterator[str]:
    said = _words()
    for name in FIELDS:
        words = said.get(name, "").replace("None", "null").replace("|", "\\|")
        kind = str(_type(name, survey)) if name != "rewards" else "struct of double"
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
