"""The index of a step log: what it says is what the log says, however much of it was kept."""

from __future__ import annotations

import gzip
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from step_logs import RECORD, random_records, write_log

from rewards.similarity import normalize
from srl.errors import UsageError
from srl.logs import index
from srl.logs.index import Log, LogChangedError, folder_of
from srl.runs.records import StepRecord, json_line, read_records

# Not of the record: where it stands, and what the texts say.
OWN = {"start", "step_text", "steps_left", "copied"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PART_RECORDS", 32)


def told(log: Log) -> list[dict[str, object]]:
    names = [
        name for name in log.table.column_names if name.startswith((index.REWARD, index.METRIC))
    ]
    return log.table.select([*index._COLUMNS, *names]).to_pylist()


def expected(path: Path, records: list[StepRecord]) -> list[dict[str, object]]:
    lines = path.read_bytes().splitlines(keepends=True)
    found, start = [], 0
    for record, line in zip(records, lines, strict=False):
        row: dict[str, object] = {"start": start}
        row |= {n: getattr(record, n) for n in index._COLUMNS if n not in OWN}
        row["steps_left"] = record.num_steps - record.step_index - 1
        row["step_text"] = zlib.crc32(record.expert_step.encode())
        valid, action = record.format_failure is None, normalize(record.action)
        before = record.previous_step
        row["copied"] = action == normalize(before) if valid and before is not None else None
        row |= {f"rewards/{n}": record.rewards.get(n) for n in ("similarity", "equation")}
        row |= {f"metrics/{n}": record.metrics[n] for n in ("lift", "exact")}
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


def stored(part: Path) -> tuple[pa.Table, dict[bytes, bytes]]:
    table = pa.ipc.open_file(str(part)).read_all()
    return table, dict(table.schema.metadata)


def store(part: Path, table: pa.Table, about: dict[bytes, bytes]) -> None:
    schema = table.schema.with_metadata(about)
    with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)


def put(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def crafted(table: pa.Table, how: str) -> pa.Table:
    n = table.num_rows
    starts = table["start"].to_pylist()
    if how == "offset":  # one name of a source ends far beyond the memory there is
        return put(table, "source", pa.array(["x" * 77] * n).dictionary_encode())
    if how == "index":
        indices = pa.array([99] * n, pa.int32())
        column = pa.DictionaryArray.from_arrays(indices, pa.array(["x"]), safe=False)
        return put(table, "problem_id", column)
    if how == "not utf-8":
        names = pa.array([b"\xff"]).view(pa.string())
        column = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), names)
        return put(table, "source", column)
    if how == "null name":
        column = pa.DictionaryArray.from_arrays(
            pa.array([0] * n, pa.int32()), pa.array([None], pa.string())
        )
        return put(table, "source", column)
    if how == "missing column":
        return table.drop_columns(["kept"])
    if how == "another column":
        return table.append_column("more", pa.array([0.5] * n))
    if how == "text for a reward":
        return put(table, "rewards/similarity", pa.array(["x"] * n))
    if how == "floats for steps":
        return put(table, "train_step", pa.array([1.5] * n))
    if how == "null start":
        return put(table, "start", pa.array([*starts[:3], None, *starts[4:]]))
    if how == "null step":
        return put(table, "train_step", pa.array([None] * n, pa.int32()))
    if how == "order":
        return put(table, "start", pa.array([starts[0], starts[2], starts[1], *starts[3:]]))
    assert how == "negative"
    return put(table, "start", pa.array([-5, *starts[1:]]))


@pytest.mark.parametrize(
    "how",
    [
        "offset",
        "index",
        "not utf-8",
        "null name",
        "missing column",
        "another column",
        "text for a reward",
        "floats for steps",
        "null start",
        "null step",
        "order",
        "negative",
    ],
)
def test_a_crafted_index_is_made_again(tmp_path: Path, how: str) -> None:
    records = random_records(4)
    path = write_log(tmp_path, records)
    Log.open(path)
    part = sorted(folder_of(path).iterdir())[0]
    table, about = stored(part)
    store(part, crafted(table, how), about)
    if how == "offset":
        # The last of them are the offsets, the others lengths of buffers.
        before, _, after = part.read_bytes().rpartition(struct.pack("<ii", 0, 77))
        part.write_bytes(before + struct.pack("<ii", 0, 2**31 - 1) + after)
    # In a process of its own: what is trusted wrongly may end it without a word.
    code = (
        "import sys; from pathlib import Path; from srl.logs import index;"
        "index.PART_RECORDS = 32; found = index.Log.open(Path(sys.argv[1]));"
        "print(found.table['source'].to_pylist().count('teacher 1'), len(found.table))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert (done.returncode, done.stderr) == (0, "")
    ours = sum(record.source == "teacher 1" for record in records)
    assert done.stdout == f"{ours} {len(records)}\n"
    assert told(Log.open(path)) == expected(path, records)


@pytest.mark.parametrize("end", [b"abc", b"", b"-7", b"1", b"9" * 30, b"9" * 5000, None])
def test_an_index_that_ends_nowhere_is_made_again(tmp_path: Path, end: bytes | None) -> None:
    records = random_records(4)
    path = write_log(tmp_path, records)
    Log.open(path)
    part = sorted(folder_of(path).iterdir())[0]
    table, about = stored(part)
    if end is None:
        del about[b"srl.end"]
    else:
        about[b"srl.end"] = end
    store(part, table, about)
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


def changed(**values: object) -> bytes:
    row = json.loads(json_line(RECORD)) | values
    return json.dumps(row).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"step,reward\n1,0.5\n", "line 1: not JSON"),
        (gzip.compress(json_line(RECORD), mtime=0) + b"\n", "line 1: not JSON"),
        (b"\x00" * 50 + b"\n", "line 1: not JSON"),
        (json_line(RECORD) + json_line(RECORD)[200:], "line 2: not JSON"),
        (
            b'{"step": 1, "loss": 0.5}\n',
            "line 1: schema None; this version of srl reads schemas 1 and 2",
        ),
        (json_line(RECORD) + b"[1]\n", "line 2: a record is a JSON object, not"),
        (b"x" * 3000, "line 1: longer than"),
        (changed(train_step=3_000_000_000), "line 1: train_step is 3000000000, which it cannot"),
        (json_line(RECORD) + changed(rollout=10**30), "line 2: rollout is 1000000"),
        (changed(step_index=-1), "line 1: step_index is -1, which it cannot be"),
        (changed(reward=10**400), "line 1: not JSON .a number of 401 digits"),
        (changed(reward=10**300), "line 1: reward is 1000000.*, which it cannot be"),
        (changed(rewards={"similarity": 2**53 + 1}), "line 1: rewards is"),
        (changed(reward=math.inf), "line 1: not JSON .Infinity is no number"),
        (changed(reward=math.nan), "line 1: not JSON .NaN is no number"),
        (changed(reward=0.5).replace(b"0.5", b"1e400"), "line 1: not JSON .1e400 is beyond"),
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


def test_a_line_that_is_finished_while_the_log_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_log(tmp_path, [RECORD])
    half, rest = json_line(RECORD)[:100], json_line(RECORD)[100:]
    with path.open("ab") as file:
        file.write(half)
    indexed = index._indexed

    def finished(*args):  # type: ignore[no-untyped-def]
        with path.open("ab") as file:
            file.write(rest)
        return indexed(*args)

    monkeypatch.setattr(index, "_indexed", finished)
    log = Log.open(path)
    assert (log.table.num_rows, log.unfinished, log.end) == (2, 0, path.stat().st_size)


def test_a_log_that_changes_between_opening_and_reading(tmp_path: Path) -> None:
    records = [replace(RECORD, train_step=n + 1) for n in range(6)]
    path = write_log(tmp_path, records)
    log = Log.open(path)
    lines = path.read_bytes().splitlines(keepends=True)
    said = "line 6: the log was changed since it was opened"
    other = json_line(replace(records[5], rollout=7))  # of the same length
    for content in (lines[:3], [b"x", *lines], [*lines[:5], other], [*lines[:5], b"{}\n"]):
        path.write_bytes(b"".join(content))
        with pytest.raises(LogChangedError, match=said):
            list(log.read([5]))
    path.unlink()
    with pytest.raises(LogChangedError, match="cannot read"):
        list(log.read([5]))


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
