"""A log as a data set: everything comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_logs import RECORD, write_log

from srl.errors import UsageError
from srl.logs import export
from srl.logs.export import export_parquet
from srl.logs.index import Log
from srl.runs.records import FIELDS, StepRecord

FIRST_STEP = replace(
    RECORD,
    phase="eval",
    previous_step=None,
    format_failure="empty_step",
    rewards={"similarity": None},
    metrics={"lift": None, "exact": None},
    tags={"level": "3"},
    group_mean=None,
)


def write(records: Sequence[StepRecord], folder: Path) -> Path:
    """A log of these records, exported to `folder/set`."""
    log = Log.open(write_log(folder, records))
    return export_parquet(log, np.arange(len(records)), folder / "set")


def expected(records: Sequence[StepRecord]) -> list[dict[str, object]]:
    """The records as a reader of the data set finds them."""
    rows = []
    for record in records:
        row = {name: clean(getattr(record, name)) for name in FIELDS}
        for kind in ("rewards", "metrics"):
            names = dict.fromkeys(n for other in records for n in getattr(other, kind))
            if kind == "metrics":
                names["exact"] = None
            row[kind] = {name: getattr(record, kind).get(name) for name in names}
        rows.append({**row, "tags": json.dumps(record.tags)})
    return rows


def clean(value: object) -> object:
    if not isinstance(value, str):
        return value
    return "".join("\ufffd" if "\ud800" <= sign <= "\udfff" else sign for sign in value)


def test_records_come_back_through_parquet_in_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "GROUP", 10)
    records = [replace(RECORD, rollout=number, reward=number / 7) for number in range(24)]
    records.append(FIRST_STEP)
    file = pq.ParquetFile(write(records, tmp_path))
    assert file.metadata.num_row_groups == 3
    assert file.schema_arrow.names == list(FIELDS)
    assert file.schema_arrow.field("rewards").type == pa.struct(
        [("similarity", pa.float64()), ("equation", pa.float64())]
    )
    assert file.read().to_pylist() == expected(records)


def test_records_come_back_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    records = [RECORD, FIRST_STEP, replace(RECORD, rewards={"own": 0.1})]
    folder = write(records, tmp_path).parent
    assert list(datasets.load_dataset(str(folder), split="train")) == expected(records)


any_text = st.text(st.characters(exclude_categories=()), max_size=30)
any_number = st.none() | st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)


@given(
    st.lists(
        st.builds(
            replace,
            st.just(RECORD),
            thought=any_text,
            action=any_text,
            source=any_text,
            previous_step=st.none() | any_text,
            reward=any_number,
            rewards=st.dictionaries(names, any_number, min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_but_for_lone_surrogates(records: list[StepRecord]) -> None:
    with TemporaryDirectory() as folder:
        found = pq.read_table(write(records, Path(folder))).to_pylist()
    for row, wanted in zip(found, expected(records), strict=True):
        assert row | {"metrics": None} == wanted | {"metrics": None}


def test_a_log_without_rewards(tmp_path: Path) -> None:
    (row,) = pq.read_table(write([replace(RECORD, rewards={})], tmp_path)).to_pylist()
    assert row["rewards"] == {"": None}


def test_a_folder_in_use_is_never_overwritten(tmp_path: Path) -> None:
    path = write([RECORD], tmp_path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"set is in use and is never overwritten.*--to FOLDER$"):
        write([FIRST_STEP], tmp_path)
    assert path.read_bytes() == before
    log = Log.open(tmp_path / "steps.jsonl")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file is in use"):
        export_parquet(log, np.arange(1), tmp_path / "file")
    with pytest.raises(UsageError, match=r"cannot write .*file/set: .*Give a folder"):
        export_parquet(log, np.arange(1), tmp_path / "file" / "set")


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    path = write_log(tmp_path, [RECORD] * 3)
    log = Log.open(path)
    path.write_bytes(path.read_bytes().replace(b'"train_step": 1', b'"train_step": 2'))
    with pytest.raises(UsageError, match="was changed since it was opened"):
        export_parquet(log, np.arange(3), tmp_path / "set")
    assert not list((tmp_path / "set").iterdir())


def test_neither_torch_nor_datasets_is_imported_with_it() -> None:
    code = (
        "import json, sys, srl.logs.export\n"
        "print(json.dumps(sorted({'torch', 'datasets'} & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout) == [], done.stderr
