"""Reads and writes step records: one line of JSON per rollout, kept or not (schema 2).

`inspect` and reports read the log, and users grep it, so it is plain JSON lines. Lines are
appended whole and can be read while the run goes on. Every float is finite (a missing value is
null), and texts are stored as they were scored. A checkpoint stores the log's position. A resumed
run cuts the log back to it, so no rollout is recorded twice. Lines of schema 1 are read as records
of schema 2, so a log may hold both. This module does not import torch: machines without it read
logs too.
"""

from __future__ import annotations

import json
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

from srl.errors import RunError, UsageError

SCHEMA = 2
# The largest count: the index has no room for a larger one, and no real count reaches it.
MOST = 2**31 - 1
# Names, or starts of names, of the figures in metrics.jsonl that are totals over the training steps
# since the previous line. All others are means or maxima.
SUMMED = ("tokens", "masked_rollouts", "seconds/", "reward_deadlines/", "reward_errors/")

# Floats represent whole numbers up to this one exactly. A larger one is not accepted as a float.
_EXACT = 2**53
_DIGITS = 308  # a longer whole number is refused
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One rollout of one expert step; fields are written in this order.

    Attributes:
        schema: the version of this list of fields.
        train_step: the optimiser step of the rollout, counted from 1; 0 is before the first.
        phase: made for training or for an evaluation. Evaluation keeps and drops nothing.
        source: the data set or teacher of the problem.
        problem_id: the hash of the problem's text.
        tags: name -> text, what the data say about the trajectory.
        step_index: the index of the expert's step, counted from 0.
        num_steps: the number of steps in the expert's solution.
        group_id: the group within its optimiser step or evaluation, counted from 0.
        rollout: the index within the group, counted from 0.
        prompt_tokens: length of the prompt.
        completion_tokens: length of the completion, end-of-text token included.
        truncated: the completion was cut at its length limit.
        thought: the policy's monologue.
        action: the policy's step; on a format failure the part that was found, often nothing.
        observation: the environment's text after the step; empty if there is none.
        expert_step: the step that the action is compared with.
        previous_step: the step before the expert's step; None at the first step.
        format_failure: None, or the reason's name.
        rewards: every reward by name; None if it does not apply or was not scored.
        reward: the weighted sum that the advantage is computed from.
        metrics: every further figure of the rollout by name; None if it does not apply. Two of them
            are `lift`, the similarity minus that of a copy of the previous step (None at the first
            step), and `exact`, 1 if the action equals the expert's step apart from white space at
            line ends.
        group_mean: mean reward of the group.
        group_std: population standard deviation of the group's rewards.
        kept: used in the update.
        dropped_because: None, or the reason's name.
        advantage: None if the rollout was dropped.
    """

    schema: int = SCHEMA
    train_step: int
    phase: Literal["train", "eval"]
    source: str
    problem_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    step_index: int
    num_steps: int
    group_id: int
    rollout: int
    prompt_tokens: int
    completion_tokens: int
    truncated: bool
    thought: str
    action: str
    observation: str = ""
    expert_step: str
    previous_step: str | None
    format_failure: str | None
    rewards: Mapping[str, float | None]
    reward: float | None
    metrics: Mapping[str, float | None]
    group_mean: float | None
    group_std: float | None
    kept: bool
    dropped_because: str | None
    advantage: float | None


FIELDS = tuple(field.name for field in fields(StepRecord))


class RecordWriter:
    """A writer that appends rows to a JSON-lines file: each call writes whole lines and flushes.

    It writes `steps.jsonl` (step records) and the other logs of a run folder (plain mappings).
    """

    def __init__(self, path: Path) -> None:
        """Opens `path` for appending, and cuts off half a line that a killed process left.

        Raises:
            UsageError: the file cannot be written.
        """
        self.path = path
        try:
            _cut_half_line(path)
            self._file = path.open("ab")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error

    def write(self, rows: Iterable[StepRecord | Mapping[str, object]]) -> None:
        """Appends `rows` in order; if one row is bad, none is written.

        Raises:
            RunError: the file is not at its path any more.
            OSError: there is no room on the disk.
        """
        lines = b"".join(json_line(row) for row in rows)
        if lines:
            self._refuse_lost()
            self._file.write(lines)
            self._file.flush()

    def position(self) -> int:
        """Forces the log to the disk, and returns its length in bytes, which a checkpoint stores.

        Raises:
            RunError: the file is not at its path any more.
        """
        self._refuse_lost()
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _refuse_lost(self) -> None:
        """Raises RunError if the file was deleted or replaced: a write would be lost silently."""
        try:
            there = os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            there = False
        if not there:
            raise RunError(
                f"{self.path} is gone: it was deleted, moved or replaced while the run was going "
                "on, and what the run writes would be lost"
            )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def truncate_to(positions: Mapping[Path, int]) -> None:
    """Cuts logs back to positions from `RecordWriter.position`; all are checked before any is cut.

    Raises:
        UsageError: a log cannot be written, is shorter than its position, or the position is not at
            the end of a line. Then the position belongs to another log.
    """
    for path, position in positions.items():
        try:
            _check_position(path, position)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    for path, position in positions.items():
        if path.exists():
            os.truncate(path, position)


def _check_position(path: Path, position: int) -> None:
    length = path.stat().st_size if path.exists() else 0
    if not 0 <= position <= length:
        raise UsageError(
            f"{path} has {length} bytes, but the checkpoint was written at {position}: "
            "it is not the log of that checkpoint. Restore the log, or start a new run"
        )
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.seek(max(0, position - 1))
        if position and file.read(1) != b"\n":
            raise UsageError(
                f"{path}: byte {position}, where the checkpoint was written, is not the end "
                "of a line: it is not the log of that checkpoint"
            )


def read_records(path: Path) -> Iterator[StepRecord]:
    """Yields the records of a log. It ignores an incomplete last line, which is being written.

    Raises:
        UsageError: the file is missing, or a line is not a step record (the message names it).
    """
    for line, where in _lines(path):
        yield parse_record(line, where)


def read_rows(path: Path) -> Iterator[dict[str, object]]:
    """Yields the rows of another log of a run folder. It does not check their keys.

    Raises:
        UsageError: the file is missing, or a line is not a JSON object (the message names it).
    """
    for line, where in _lines(path):
        yield read_object(line, where)


def _lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """Yields each complete line, and a text that names the file and the line's number."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        for number, line in enumerate(file, start=1):  # bytes are split only at \n
            if line.endswith(b"\n"):
                yield line, f"{path}, line {number}"


def json_line(row: StepRecord | Mapping[str, object]) -> bytes:
    """Returns a row as one line of JSON in UTF-8, line end included; keys keep their order."""
    if isinstance(row, StepRecord):
        row = {name: getattr(row, name) for name in FIELDS}
    try:
        return (json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:
        # A lone surrogate cannot be written in UTF-8. An escaped one reads back as the same text.
        return (json.dumps(finite(row), allow_nan=False) + "\n").encode()


def finite(value: object) -> object:
    """Returns `value` with None for NaN and infinity; mappings become dicts, sequences lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [finite(inner) for inner in value]
    return value


def utf8(text: str) -> str:
    """Returns `text` with lone surrogates replaced by U+FFFD, so that UTF-8 can encode it."""
    return _SURROGATE.sub("\ufffd", text)


def _cut_half_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:  # backwards, a block at a time: a log can be large
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def _constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _decimal(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is beyond every float")
    return value


# Made once, because json.loads would make a new decoder for every line.
_DECODER = json.JSONDecoder(parse_constant=_constant, parse_int=_whole, parse_float=_decimal)


def read_object(line: bytes, where: str) -> dict[str, object]:
    """Returns the JSON object in one line of a log; `where` names the line in messages.

    Raises:
        UsageError: the line is not JSON, or not an object.
    """
    try:
        row = _DECODER.decode(line.decode())  # json would guess the encoding of bytes
    except (ValueError, RecursionError) as error:  # bad UTF-8 as well as bad JSON
        raise UsageError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a record is a JSON object, not {_kind(row)}")
    return row


def parse_record(line: bytes, where: str) -> StepRecord:
    """Returns the record in one line of the log; `where` names the line in messages.

    Raises:
        UsageError: the line is not a record of schema 1 or 2.
    """
    row = read_object(line, where)
    if row.get("schema") not in (1, SCHEMA):
        raise UsageError(
            f"{where}: schema {row.get('schema')!r}; this version of srl reads schemas 1 and "
            f"{SCHEMA}"
        )
    if row["schema"] == 1 and "lift" in row and not row.keys() & _ADDED:
        row |= {"schema": SCHEMA, "tags": {}, "observation": "", "metrics": {"lift": row["lift"]}}
        del row["lift"]
    if row.keys() != _TYPES.keys():
        missing = [name for name in FIELDS if name not in row]
        unknown = [name for name in row if name not in FIELDS]
        differences = [f"missing: {', '.join(missing)}"] if missing else []
        differences += [f"unknown: {', '.join(unknown)}"] if unknown else []
        raise UsageError(f"{where}: not a step record of schema {SCHEMA}; {'; '.join(differences)}")
    for name, fits in _TYPES.items():
        if not fits(row[name]):
            raise UsageError(f"{where}: {name} is {_kind(row[name])}, which it cannot be")
    return StepRecord(**row)  # type: ignore[arg-type]


def _fitting(wanted: object) -> Callable[[object], bool]:
    """Returns a function that tests whether a JSON value has a record field's type.

    The function is made once per field and called often. JSON has no subclasses, so types are
    compared exactly, and a boolean is not a number. A whole number is a count, from 0 to `MOST`. In
    place of a float, it must be a number that a float represents exactly.
    """
    origin = get_origin(wanted)
    if origin is Literal:
        return get_args(wanted).__contains__
    if origin is Mapping:
        inner = _fitting(get_args(wanted)[1])
        return lambda value: type(value) is dict and all(map(inner, value.values()))
    types_of = _json_types(wanted)
    if int not in types_of:
        return lambda value: type(value) in types_of
    low, high = (-_EXACT, _EXACT) if float in types_of else (0, MOST)
    return lambda value: (
        type(value) in types_of and (type(value) is not int or low <= value <= high)
    )


def _json_types(wanted: object) -> frozenset[object]:
    parts = get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)
    kinds = frozenset(parts)
    return kinds | {int} if float in kinds else kinds


_ADDED = {"tags", "observation", "metrics"}  # new in schema 2, which replaced the field `lift`
_TYPES = {name: _fitting(wanted) for name, wanted in get_type_hints(StepRecord).items()}


def _kind(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else f"{text[:37]}..."
