"""The index of a step log: what it says is what the log says, however much of it was kept."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from step_logs import RECORD, random_records, write_log

from rewards.similarity import normalize
from srl.errors import UsageError
from srl.logs import index
from srl.logs.index import Log, folder_of
from srl.records import StepRecord, json_line, read_records

# Not of the record: where it stands, and what the texts say.
OWN = {"line", "start", "steps_left", "exact", "copied"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PART_RECORDS", 32)


def told(log: Log) -> list[dict[str, object]]:
    return log.table.to_pylist()


def expected(path: Path, records: list[StepRecord]) -> list[dict[str, object]]:
    lines = path.read_bytes().splitlines(keepends=True)
    found, start = [], 0
    for number, (record, line) in enumerate(zip(records, lines, strict=False), start=1):
        row: dict[str, object] = {"line": number, "start": start}
        row |= {n: getattr(record, n) for n in index._COLUMNS if n not in OWN}
        row["steps_left"] = record.num_steps - record.step_index - 1
        valid, action = record.format_failure is None, normalize(record.action)
        row["exact"] = action == normalize(record.expert_step) if valid else None
        before = record.previous_step
        row["copied"] = action == normalize(before) if valid and before is not None else None
        row |= {f"rewards/{n}": record.rewards.get(n) for n in ("similarity", "equation")}
        found.append(row)
        start += len(line)
    return found


def test_every_number_of_every_record(tmp_path: Path) -> None:
    records = random_records(0)
    path = write_log(tmp_path, records)
    assert len(records) > 4 * 32
    first = Log.open(path)
    assert told(first) == expected(path, records)
    assert first.reward_names == ["similarity", "equation"]
    parts = sorted(folder_of(path).iterdir())
    assert len(parts) == len(records) // 32
    again = Log.open(path)
    assert told(again) == told(first)
    assert sorted(folder_of(path).iterdir()) == parts
    rows = [len(records) - 1, 0, 40, 40]
    assert list(again.read(rows)) == [records[row] for row in rows]


def test_whole_parts_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = random_records(1)
    path = write_log(tmp_path, records)
    Log.open(path)
    read = []
    parse = index.parse_record
    monkeypatch.setattr(index, "parse_record", lambda *a: read.append(a) or parse(*a))
    assert told(Log.open(path)) == expected(path, records)
    assert len(read) == len(records) % 32


def test_a_log_that_grows(tmp_path: Path) -> None:
    records = random_records(2)
    path = write_log(tmp_path, records[:50])
    assert Log.open(path).table.num_rows == 50
    write_log(tmp_path, records[50:])
    assert told(Log.open(path)) == expected(path, records)


def test_a_log_that_was_cut_back_and_went_on_otherwise(tmp_path: Path) -> None:
    records = random_records(3)
    path = write_log(tmp_path, records)
    Log.open(path)
    other = [*records[:70], *(replace(r, reward=0.125) for r in records[70:])]
    path.unlink()
    write_log(tmp_path, other)  # the first two parts stand, the third does not
    assert told(Log.open(path)) == expected(path, other)
    assert told(Log.open(path)) == expected(path, other)
    path.unlink()
    write_log(tmp_path, records[:40])
    assert told(Log.open(path)) == expected(path, records[:40])


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "older"])
def test_a_damaged_index_is_made_again(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = random_records(4)
    path = write_log(tmp_path, records)
    if damage == "older":
        monkeypatch.setattr(index, "_VERSION", b"0")
    Log.open(path)
    monkeypatch.undo()
    part = sorted(folder_of(path).iterdir())[1]
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-30])
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "foreign":
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, pa.schema([])) as writer:
            writer.write_table(pa.table({}))
    assert told(Log.open(path)) == expected(path, records)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    records = random_records(5)
    path = write_log(tmp_path, records)
    folder_of(path).write_text("in the way")
    assert told(Log.open(path)) == expected(path, records)
    assert folder_of(path).read_text() == "in the way"
    assert {entry.name for entry in tmp_path.iterdir()} == {"steps.jsonl", ".index"}


def test_half_a_line_at_the_end_is_not_read(tmp_path: Path) -> None:
    path = write_log(tmp_path, [RECORD, RECORD])
    half = json_line(RECORD)[:100]
    with path.open("ab") as file:
        file.write(half)
    log = Log.open(path)
    assert (log.table.num_rows, log.unfinished) == (2, 100)
    path.write_bytes(half)
    log = Log.open(path)
    assert (log.table.num_rows, log.unfinished) == (0, 100)
    path.write_bytes(b"")
    assert Log.open(path).table.num_rows == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"step,reward\n1,0.5\n", "line 1: not JSON"),
        (gzip.compress(json_line(RECORD)) + b"\n", "line 1: not JSON"),
        (b"\x00" * 50 + b"\n", "line 1: not JSON"),
        (json_line(RECORD) + json_line(RECORD)[200:], "line 2: not JSON"),
        (b'{"step": 1, "loss": 0.5}\n', "line 1: schema None; this version of srl reads schema 1"),
        (json_line(RECORD) + b"[1]\n", "line 2: a record is a JSON object, not"),
        (b"x" * 3000, "line 1: longer than"),
    ],
)
def test_files_that_are_no_step_log(
    tmp_path: Path, content: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_LONGEST_LINE", 2000)
    path = tmp_path / "steps.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"steps.jsonl, {said}"):
        Log.open(path)
    with pytest.raises(UsageError, match="cannot read .*gone"):
        Log.open(tmp_path / "gone")
    with pytest.raises(UsageError, match="cannot read"):
        Log.open(tmp_path)


def test_names_that_have_no_utf8_and_rewards_that_come_later(tmp_path: Path) -> None:
    odd = replace(RECORD, source="\ud83d", problem_id="\udc00", rewards={"late \ud83d": 0.5})
    path = write_log(tmp_path, [*[RECORD] * 40, *[odd] * 40])
    for _ in range(2):
        log = Log.open(path)
        assert log.reward_names == ["similarity", "equation", "late \ufffd"]
        last = log.table.slice(79).to_pylist()[0]
        assert (last["source"], last["problem_id"]) == ("\ufffd", "\ufffd")
        assert (last["rewards/late \ufffd"], last["rewards/similarity"]) == (0.5, None)
        assert log.table["rewards/late \ufffd"].null_count == 40
        assert next(log.read([79])) == odd


def test_what_is_read_is_told(tmp_path: Path) -> None:
    records = random_records(6)
    path = write_log(tmp_path, records)
    seen: list[tuple[int, int]] = []
    Log.open(path, lambda done, size: seen.append((done, size)))
    assert len(seen) == len(records) // 32
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {size for _, size in seen} == {os.path.getsize(path)}
    seen.clear()
    Log.open(path, lambda done, size: seen.append((done, size)))
    assert seen == []


def test_the_index_agrees_with_the_reader_of_records(tmp_path: Path) -> None:
    path = write_log(tmp_path, random_records(7))
    log = Log.open(path)
    assert list(log.read(range(log.table.num_rows))) == list(read_records(path))
    assert json.loads(path.read_bytes().splitlines()[0])["reward"] == log.table["reward"][0].as_py()
