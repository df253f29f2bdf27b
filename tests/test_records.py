from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import step_logs
from hypothesis import given, settings
from hypothesis import strategies as st

from srl.errors import RunError, UsageError
from srl.runs.records import (
    FIELDS,
    RecordWriter,
    StepRecord,
    finite,
    json_line,
    read_records,
    read_rows,
    truncate_to,
)

# The contract with users, spelt out: scripts are written against these names in this order.
SCHEMA_2 = re.findall(
    r"\w+",
    """
    schema train_step phase source problem_id tags step_index num_steps group_id rollout
    prompt_tokens completion_tokens truncated thought action observation expert_step
    previous_step format_failure
    rewards reward metrics group_mean group_std kept dropped_because advantage
    """,
)

RECORD = replace(
    step_logs.RECORD,
    train_step=3,
    source="gsm8k",
    group_id=7,
    rollout=2,
    prompt_tokens=120,
    completion_tokens=31,
    thought="3 - 1",
    action="She has 3 - 1 = 2 left.",
    expert_step="3 - 1 = 2 eggs are left.",
)


def write(path: Path, *records: StepRecord) -> int:
    with RecordWriter(path) as writer:
        writer.write(records)
        return writer.position()


def test_fields_are_schema_2_in_order(tmp_path: Path) -> None:
    assert list(FIELDS) == SCHEMA_2
    write(tmp_path / "log", RECORD)
    row = json.loads((tmp_path / "log").read_text())
    assert list(row) == SCHEMA_2
    assert row["schema"] == 2


texts = st.text(st.characters(codec=None), max_size=40)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(
    rows=st.lists(
        st.builds(
            replace,
            st.just(RECORD),
            action=texts,
            thought=texts,
            previous_step=st.none() | texts,
            rewards=st.dictionaries(texts, numbers, max_size=3),
            reward=numbers,
            advantage=numbers,
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[StepRecord]
) -> None:
    """Any text at all: line separators, control characters, even lone surrogates."""
    path = tmp_path_factory.mktemp("records") / "steps.jsonl"
    write(path, *rows)
    assert list(read_records(path)) == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_text_stays_readable_and_bytes_are_reproducible() -> None:
    record = replace(RECORD, action="π ≈ 3\u2028⏎")
    assert "π ≈ 3\u2028⏎".encode() in json_line(record)
    assert json_line(record) == json_line(replace(record))


def test_non_finite_floats_become_null(tmp_path: Path) -> None:
    bad = replace(
        RECORD,
        reward=math.nan,
        metrics={"lift": math.inf},
        rewards={"a": -math.inf, "b": 1.0},
        advantage=None,
    )
    write(tmp_path / "log", bad)
    (read,) = read_records(tmp_path / "log")
    assert (read.reward, read.metrics, read.rewards) == (
        None,
        {"lift": None},
        {"a": None, "b": 1.0},
    )
    assert finite({"x": [math.nan, (1, math.inf)]}) == {"x": [None, [1, None]]}


def test_other_logs_of_the_run_use_the_same_writer(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write([{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5}])
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "loss": null}\n{"step": 2, "loss": 0.5}\n'


def test_a_bad_row_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "log") as writer:
        writer.write([RECORD])
        with pytest.raises(TypeError):
            writer.write([RECORD, {"not JSON": object()}])
    assert list(read_records(tmp_path / "log")) == [RECORD]


def test_lines_can_be_read_while_the_writer_is_open(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "log") as writer:
        writer.write([RECORD, RECORD])
        assert len(list(read_records(tmp_path / "log"))) == 2


def test_resume_cuts_the_log_back_to_the_checkpoint(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    records = [replace(RECORD, train_step=n) for n in range(6)]
    write(straight, *records)

    position = write(resumed, *records[:3])
    write(resumed, *records[3:5])  # after the checkpoint: done again by the resumed run
    truncate_to({resumed: position})
    write(resumed, *records[3:])
    assert resumed.read_bytes() == straight.read_bytes()


def test_position_counts_what_was_there_before(tmp_path: Path) -> None:
    first = write(tmp_path / "log", RECORD)
    assert write(tmp_path / "log", RECORD) == 2 * first == (tmp_path / "log").stat().st_size


def test_truncate_refuses_the_log_of_another_run(tmp_path: Path) -> None:
    position = write(tmp_path / "log", RECORD)
    before = (tmp_path / "log").read_bytes()
    with pytest.raises(UsageError, match=f"has {position} bytes.* written at {position + 1}"):
        truncate_to({tmp_path / "log": position + 1})
    with pytest.raises(UsageError, match=f"byte {position - 1}.*not the end of a line"):
        truncate_to({tmp_path / "log": position - 1})
    assert (tmp_path / "log").read_bytes() == before
    with pytest.raises(UsageError, match="has 0 bytes"):
        truncate_to({tmp_path / "missing": 5})
    with pytest.raises(UsageError, match="has 0 bytes"):
        truncate_to({tmp_path / "log": 0, tmp_path / "missing": 5})
    assert (tmp_path / "log").read_bytes() == before  # all logs are cut, or none
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot write .*folder: Is a directory"):
        truncate_to({tmp_path / "folder": 0})
    truncate_to({tmp_path / "missing": 0})
    truncate_to({tmp_path / "log": 0})
    assert (tmp_path / "log").read_bytes() == b""


def test_what_would_be_lost_is_not_written(tmp_path: Path) -> None:
    """A folder that is deleted or moved while its log is open: no error would ever say so."""
    path = tmp_path / "run" / "log"
    path.parent.mkdir()
    with RecordWriter(path) as writer:
        writer.write([RECORD])
        path.parent.rename(tmp_path / "moved")
        for _ in range(2):
            with pytest.raises(RunError, match="log is gone: it was deleted, moved or replaced"):
                writer.write([RECORD])
            with pytest.raises(RunError, match="is gone"):
                writer.position()
            path.parent.mkdir(exist_ok=True)
            path.write_text("")  # another one in its place is not it either
    assert len(list(read_records(tmp_path / "moved" / "log"))) == 1


@pytest.mark.parametrize("half", [b'{"schema": 1, "train', b"x" * 200_000])
def test_half_a_last_line_is_ignored_and_never_written_after(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "log"
    write(path, RECORD)
    whole = path.read_bytes()
    path.write_bytes(whole + half)
    assert list(read_records(path)) == [RECORD]
    write(path, RECORD)
    assert path.read_bytes() == 2 * whole

    path.write_bytes(half)
    assert list(read_records(path)) == []
    write(path, RECORD)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("reward"), "missing: reward"),
        (lambda row: row.update(colour="red"), "unknown: colour"),
        (lambda row: row.update(schema=3), "schema 3; this version of srl reads schemas 1 and 2"),
        (lambda row: row.update(phase="test"), 'phase is "test"'),
        (lambda row: row.update(kept=1), "kept is 1"),
        (lambda row: row.update(rollout=True), "rollout is true"),
        (lambda row: row.update(rewards={"similarity": "high"}), "rewards is "),
        (lambda row: row.update(action=None), "action is null"),
        (lambda row: row.update(group_id=2**31), "group_id is 2147483648"),
        (lambda row: row.update(rollout=-1), "rollout is -1"),
        (lambda row: row.update(metrics={"lift": -(2**60)}), "metrics is ..lift.: -11529"),
        (lambda row: row.update(reward=math.inf), "not JSON .Infinity is no number of JSON"),
        (lambda row: row.update(rewards={"a": math.nan}), "not JSON .NaN is no number of JSON"),
    ],
)
def test_a_line_that_is_no_record_is_named(
    tmp_path: Path, change: Callable[[dict[str, object]], object], said: str
) -> None:
    row = json.loads(json_line(RECORD))
    change(row)
    path = tmp_path / "steps.jsonl"
    path.write_bytes(json_line(RECORD) + json.dumps(row).encode() + b"\n")
    with pytest.raises(UsageError, match=f"steps.jsonl, line 2: .*{said}"):
        list(read_records(path))


@pytest.mark.parametrize(
    "line",
    [
        b"{\n",
        b"\n",
        b"\xff\n",
        b"[1]\n",
        b'"text"\n',
        b"[" * 99_999 + b"\n",
        b'{"a": NaN}\n',
        b'{"a": -Infinity}\n',
        b'{"a": -1e999}\n',
        b'{"a": ' + b"7" * 400 + b"}\n",
    ],
)
def test_lines_that_are_not_objects(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "log").write_bytes(line)
    with pytest.raises(UsageError, match="line 1: (not JSON|a record is a JSON object)"):
        list(read_records(tmp_path / "log"))
    with pytest.raises(UsageError, match="line 1: (not JSON|a record is a JSON object)"):
        list(read_rows(tmp_path / "log"))


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read .*missing"):
        list(read_records(tmp_path / "missing"))
    with pytest.raises(UsageError, match="cannot write"):
        RecordWriter(tmp_path / "no folder" / "log")
