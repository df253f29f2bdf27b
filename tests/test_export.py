"""A log as a data set: everything comes back, and the card says what it is."""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from srl.errors import UsageError
from srl.logs import card, export
from srl.logs.export import export_parquet
from srl.runs.folder import RunFolder
from srl.runs.records import FIELDS, StepRecord

RECORD = StepRecord(
    train_step=3, phase="train", source="gsm8k", problem_id="00ff00ff00ff00ff", step_index=1,
    num_steps=4, group_id=7, rollout=2, prompt_tokens=120, completion_tokens=31, truncated=False,
    thought="3 - 1", action="She has 2 left.", expert_step="2 eggs are left.",
    previous_step="She has 3 eggs.", format_failure=None,
    rewards={"similarity": 0.75, "equation": None}, reward=0.75, lift=0.25, group_mean=0.5,
    group_std=0.25, kept=True, dropped_because=None, advantage=1.0,
)  # fmt: skip
FIRST_STEP = replace(
    RECORD,
    phase="eval",
    step_index=0,
    previous_step=None,
    format_failure="empty_step",
    rewards={"similarity": None},
    lift=None,
    group_mean=None,
    group_std=None,
    kept=False,
    advantage=None,
)

CONFIG = {
    "model": "/home/somebody/models/tiny",
    "data": {"source": "files", "path": "/home/somebody/data.jsonl"},
    "rewards": {"similarity": 1.0, "/home/somebody/mine.py:own": 0.5},
    "learning_rate": 1e-6,
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "runs", "one")
    folder.write_start(CONFIG, ["srl", "train"])
    return folder


def write(records: Sequence[StepRecord], run: RunFolder, folder: Path, asked: str = "") -> str:
    """Export; returns the card."""
    assert export_parquet(lambda: iter(records), run, folder, asked=asked) == len(records)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "steps.parquet"]
    return (folder / "README.md").read_text(encoding="utf-8")


def expected(records: Sequence[StepRecord]) -> list[dict[str, object]]:
    """The records as a reader of the data set finds them."""
    names = dict.fromkeys(clean(name) for record in records for name in record.rewards)
    rows = []
    for record in records:
        row = {name: clean(getattr(record, name)) for name in FIELDS}
        rewards = {clean(name): value for name, value in record.rewards.items()}
        rows.append({**row, "rewards": {name: rewards.get(name) for name in names} or None})
    return rows


def clean(value: object) -> object:
    if not isinstance(value, str):
        return value
    return "".join("\ufffd" if "\ud800" <= sign <= "\udfff" else sign for sign in value)


def front(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def about(card: str) -> dict[str, object]:
    return yaml.safe_load(re.findall(r"```+yaml\n(.*?)\n```", card, re.DOTALL)[-1])


# ---- what comes back ----------------------------------------------------------------------------


def test_records_come_back_through_parquet_in_row_groups(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "GROUP", 10)
    records = [replace(RECORD, rollout=number, reward=number / 7) for number in range(24)]
    records.append(FIRST_STEP)
    write(records, run, tmp_path / "set")
    file = pq.ParquetFile(tmp_path / "set" / "steps.parquet")
    assert file.metadata.num_row_groups == 3
    assert file.schema_arrow.names == list(FIELDS)
    assert file.schema_arrow.field("rewards").type == pa.struct(
        [("similarity", pa.float64()), ("equation", pa.float64())]
    )
    assert file.read().to_pylist() == expected(records)


def test_records_come_back_through_datasets_as_the_card_shows_it(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    records = [RECORD, FIRST_STEP, replace(RECORD, rewards={"own": 0.1})]
    card = write(records, run, tmp_path / 'a `set`\'s "name"')
    assert datasets.load_dataset(str(tmp_path / 'a `set`\'s "name"')).keys() == {"train"}
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found: dict[str, object] = {}
    exec(example, found)
    assert list(found["steps"]) == expected(records)  # type: ignore[call-overload]


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
            rewards=st.dictionaries(names, any_number, max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
    any_text,
)
@settings(max_examples=60)
def test_any_text_comes_back_but_for_lone_surrogates(records: list[StepRecord], asked: str) -> None:
    with TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        card = write(records, run, Path(folder) / "set", asked=asked)
        found = pq.read_table(Path(folder) / "set" / "steps.parquet").to_pylist()
    assert found == expected(records)
    assert front(card)["size_categories"] == ["n<1K"]
    assert about(card)["sources"] == sorted({record.source for record in records})


def test_numbers_that_are_none_and_rewards_that_are_none(run: RunFolder, tmp_path: Path) -> None:
    write([replace(RECORD, reward=math.nan, rewards={})], run, tmp_path / "set")
    (row,) = pq.read_table(tmp_path / "set" / "steps.parquet").to_pylist()
    assert (row["reward"], row["rewards"]) == (None, None)


def test_rewards_that_utf8_cannot_tell_apart(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several rewards would be called '\ufffd'"):
        write([replace(RECORD, rewards=dict.fromkeys("\ud800\udfff", 1.0))], run, tmp_path / "set")
    assert not (tmp_path / "set").exists()


# ---- the card -----------------------------------------------------------------------------------


def test_the_card_says_what_the_record_says(run: RunFolder, tmp_path: Path) -> None:
    other = replace(RECORD, problem_id="11", train_step=4)
    card = write([RECORD, FIRST_STEP, other], run, tmp_path / "set")
    assert front(card)["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "steps.parquet"}]}
    ]
    assert "Records: 3. Problems: 2. Optimiser steps: 2. Made for: `eval` 1, `train` 2." in card
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| (.+) \|$", card, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(FIELDS)
    docstring = " ".join(inspect.cleandoc(StepRecord.__doc__ or "").split())
    for name, _, words in rows:
        assert f"{name}: {words}".replace("null", "None") in docstring
    assert [kind for name, kind, _ in rows if name == "advantage"] == ["double"]
    assert "problems.jsonl" in card
    assert "U+FFFD" in card
    assert "All records" in card


def test_the_card_has_the_run_in_short_and_no_places(run: RunFolder, tmp_path: Path) -> None:
    card = write([RECORD], run, tmp_path / "set", asked="--kept true --phase train")
    told = about(card)
    assert told["run"] == "one"
    assert told["model"] == "tiny"
    assert told["data"] == {"source": "files", "path": "data.jsonl"}
    assert told["rewards"] == {"similarity": 1.0, "mine.py:own": 0.5}
    assert told["reward columns"] == ["similarity", "equation"]
    assert "torch" in told["trained with"]  # type: ignore[operator]
    assert "somebody" not in card
    assert str(tmp_path) not in card
    assert "```\n--kept true --phase train\n```" in card


def test_texts_cannot_leave_their_place_in_the_card(run: RunFolder, tmp_path: Path) -> None:
    hostile = "x\n---\n```\n# <img src=x onerror=alert(1)>\n````\x1b[31m\u202e| a |\n{front}"
    run.write_start({**CONFIG, "model": hostile, "data": {hostile: [hostile]}}, ["srl"])
    card = write([replace(RECORD, source=hostile)], run, tmp_path / "set", asked=hostile)
    assert set(front(card)) == {"pretty_name", "tags", "size_categories", "configs"}
    assert card.isascii()
    # What is left without the blocks of code, whose fences are longer than any in them.
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", card, flags=re.DOTALL | re.MULTILINE)
    assert "img" not in prose
    assert re.findall(r"^# .*", prose, re.MULTILINE) == [
        "# Rollouts of step-wise supervised reinforcement learning"
    ]


@pytest.mark.parametrize("damage", ["gone", "[1", "[1]"])
def test_a_run_that_lacks_its_files_is_exported(
    run: RunFolder, tmp_path: Path, damage: str
) -> None:
    for path in (run.config, run.environment):
        path.unlink() if damage == "gone" else path.write_text(damage)
    told = about(write([RECORD], run, tmp_path / "set"))
    assert set(told) == {"run", "sources", "reward columns", "exported with"}


@pytest.mark.parametrize(
    ("count", "name"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (123_456, "100K<n<1M"), (10**9, "n>1B")],
)
def test_size_categories_are_those_of_the_hub(count: int, name: str) -> None:
    assert card._size_category(count) == name


# ---- refusals, and what is left after them ------------------------------------------------------


def test_a_folder_in_use_is_never_overwritten(run: RunFolder, tmp_path: Path) -> None:
    write([RECORD], run, tmp_path / "set")
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    with pytest.raises(UsageError, match=r"set is in use and is never overwritten.*set-2$"):
        write([FIRST_STEP], run, tmp_path / "set")
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file is in use"):
        write([RECORD], run, tmp_path / "file")


def test_an_empty_folder_will_do(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    card = write([RECORD], run, Path())
    assert 'load_dataset("set"' in card
    with pytest.raises(UsageError, match=r"such as ../set-2$"):
        write([RECORD], run, Path())


def failing(count: int, error: BaseException) -> Callable[[], Iterator[StepRecord]]:
    """Whole when it is read first, broken when it is read again."""
    calls: list[None] = []

    def records() -> Iterator[StepRecord]:
        calls.append(None)
        yield from [RECORD] * (3 if len(calls) == 1 else count)
        if len(calls) > 1:
            raise error

    return records


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [UsageError("line 3: not JSON"), KeyboardInterrupt("now")])
def test_nothing_is_left_after_a_failure(
    run: RunFolder, tmp_path: Path, error: BaseException, exists: bool
) -> None:
    folder = tmp_path / "deep" / "set"
    if exists:
        folder.mkdir(parents=True)
    with pytest.raises(type(error), match=str(error)):
        export_parquet(failing(2, error), run, folder, asked="")
    assert (tmp_path / "deep").exists() is exists
    assert not exists or not list(folder.iterdir())


def test_a_folder_that_is_filled_meanwhile_is_kept(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "set"

    def records() -> Iterator[StepRecord]:
        if folder.is_dir():
            (folder / "README.md").write_text("mine")
        yield RECORD

    with pytest.raises(UsageError, match="is in use"):
        export_parquet(records, run, folder, asked="")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"README.md": "mine"}


def test_a_log_that_changes_while_it_is_read(run: RunFolder, tmp_path: Path) -> None:
    reads = iter([[RECORD] * 2, [RECORD] * 3, [RECORD] * 2, [RECORD]])
    folder = tmp_path / "set"
    assert export_parquet(lambda: next(reads), run, folder, asked="") == 2
    assert pq.read_metadata(folder / "steps.parquet").num_rows == 2
    with pytest.raises(UsageError, match="cut while it was read, from 2 records to 1"):
        export_parquet(lambda: next(reads), run, tmp_path / "other", asked="")


def test_no_records_no_data_set(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no records to export from .*that fit: --kept true"):
        write([], run, tmp_path / "set", asked="--kept true")
    with pytest.raises(UsageError, match="steps.jsonl: nothing was recorded yet"):
        write([], run, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_number_that_is_too_large(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="records 1 to 1 cannot be written as Parquet"):
        write([replace(RECORD, train_step=2**70)], run, tmp_path / "set")


def test_a_place_that_cannot_be_written(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"cannot write .*file/set: .*Give a folder"):
        write([RECORD], run, tmp_path / "file" / "set")


def test_neither_torch_nor_pyarrow_is_imported_with_it() -> None:
    code = (
        "import json, sys, srl.logs.export\n"
        "print(json.dumps(sorted({'torch', 'pyarrow', 'datasets'} & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout) == [], done.stderr
