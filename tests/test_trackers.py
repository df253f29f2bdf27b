"""Trackers get the figures of metrics.jsonl, and those with tables the rollouts behind them."""

from __future__ import annotations

import json
import logging
import math
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from conftest import read_jsonl, refused, toy_config, toy_trajectories, train
from transformers import TrainerControl, TrainerState

from srl.runs.records import FIELDS, StepRecord, read_records
from srl.training import trackers
from srl.training.trackers import MAX_ROWS, MLFLOW_TABLES, RolloutTables, rollout_table
from srl.training.trainer import SRLTrainer

RECORD = StepRecord(
    train_step=1, phase="train", source="toy", problem_id="12", step_index=0, num_steps=2,
    group_id=0, rollout=0, prompt_tokens=9, completion_tokens=5, truncated=False, thought="hm",
    action="add", expert_step="add", previous_step=None, format_failure=None,
    rewards={"similarity": 1.0}, reward=1.0, metrics={"lift": None, "exact": 1.0},
    group_mean=0.5, group_std=0.5, kept=True,
    dropped_because=None, advantage=0.7,
)  # fmt: skip

needs = {
    name: pytest.mark.skipif(
        find_spec(name) is None, reason=f"{name} is not installed: pip install {name}"
    )
    for name in ("tensorboard", "trackio")
}


def tracked_name(name: str) -> str:
    """Under which name transformers passes a figure on."""
    return f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"


def group(train_step: int, group_id: int, size: int) -> list[StepRecord]:
    return [
        replace(RECORD, train_step=train_step, group_id=group_id, rollout=number)
        for number in range(size)
    ]


def log(tables: RolloutTables, step: int, max_steps: int = 10) -> None:
    state = TrainerState(global_step=step, max_steps=max_steps)
    tables.on_log(SimpleNamespace(), state, TrainerControl())


# ---- real trackers ------------------------------------------------------------------------------


@needs["tensorboard"]
def test_tensorboard_has_every_figure(
    toy_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    args = toy_config(
        tmp_path, max_steps=2, report_to="tensorboard", eval_strategy="steps", eval_steps=2
    )
    known = toy_trajectories(24)
    SRLTrainer(str(toy_policy), args, known[:20], known[20:]).train()
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0})
    events.Reload()
    found = {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    figures = {
        (tracked_name(name), line["step"]): value
        for line in read_jsonl(tmp_path / "metrics.jsonl")
        for name, value in line.items()
        if name != "step"
    }
    assert {name for name, _ in figures} >= {"train/rewards/similarity", "eval/accuracy"}
    assert {name for name, _ in found} == {name for name, _ in figures} | {"train/epoch"}
    for key, value in figures.items():
        if value is None:  # JSON has no NaN
            assert math.isnan(found[key]), key
        else:
            assert found[key] == pytest.approx(value, rel=1e-6), key


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trackio keeps its files: it reads that once, so it is imported anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "sqlite")
    return tmp_path / "trackio"


@needs["trackio"]
def test_trackio_has_every_figure_and_the_rollouts_and_needs_no_network(
    toy_policy: Path, tmp_path: Path, trackio_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        requests.append(address)
        raise OSError("no network here")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    args = toy_config(
        tmp_path,
        max_steps=2,
        report_to="trackio",
        run_name="one",
        project="toys",
        eval_strategy="steps",
        eval_steps=2,
    )
    known = toy_trajectories(24)
    SRLTrainer(str(toy_policy), args, known[:20], known[20:]).train()
    from trackio.sqlite_storage import SQLiteStorage

    stored = SQLiteStorage.get_logs("toys", "one")
    assert (trackio_folder / "toys.db").is_file()
    assert requests == []
    once = {"step", "train_runtime", "train_samples_per_second", "train_steps_per_second",
            "total_flos", "train_loss"}  # fmt: skip
    for line in read_jsonl(tmp_path / "metrics.jsonl"):
        figures = {tracked_name(name): value for name, value in line.items() if name not in once}
        if not figures:
            continue
        entry = next(
            entry
            for entry in stored
            if entry["train/global_step"] == line["step"] and figures.keys() <= entry.keys()
        )
        for name, value in figures.items():
            assert math.isnan(entry[name]) if value is None else entry[name] == value, name
    tables = [entry for entry in stored if "rollouts" in entry]
    assert [entry["train/global_step"] for entry in tables] == [1, 2]
    records = [r for r in read_records(tmp_path / "steps.jsonl") if r.phase == "train"]
    for entry in tables:
        columns, rows = rollout_table(
            [r for r in records if r.train_step == entry["train/global_step"]]
        )
        written = [dict(zip(columns, row, strict=True)) for row in rows]
        assert entry["rollouts"]["_value"] == written[:MAX_ROWS]


# ---- wandb and mlflow, which are large: stand-ins that record what they are told ----------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MagicMock]:
    """A module of the name, that has the inner modules and the attributes."""

    def make(name: str, *inner: str, **attributes: object) -> MagicMock:
        module = MagicMock(name=name, __spec__=ModuleSpec(name, None), **attributes)
        monkeypatch.setitem(sys.modules, name, module)
        for path in inner:
            monkeypatch.setitem(sys.modules, f"{name}.{path}", MagicMock())
        return module

    return make


def test_wandb_gets_a_table_after_the_figures(
    toy_policy: Path, tmp_path: Path, stand_in: Callable[..., MagicMock]
) -> None:
    wandb = stand_in("wandb", "sdk", "sdk.lib", "sdk.lib.config_util", run=None)
    wandb.init.side_effect = lambda **_: setattr(wandb, "run", MagicMock())
    args = toy_config(tmp_path, max_steps=3, logging_steps=2, report_to="wandb")
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    calls = [call for call in wandb.mock_calls if call[0] in ("init", "Table", "log")]
    told = [call[0] if call[0] != "log" else ("log", *call[1][0]) for call in calls]
    assert told[0] == "init"
    assert told.index("Table") > next(i for i, one in enumerate(told) if "train/loss" in one)
    logged = [call[1][0] for call in calls if call[0] == "log" and "rollouts" in call[1][0]]
    assert [one["train/global_step"] for one in logged] == [2, 3]
    assert all(one["rollouts"] is wandb.Table.return_value for one in logged)
    records = list(read_records(tmp_path / "steps.jsonl"))
    for call, steps in zip(wandb.Table.call_args_list, ((2, 1), (3,)), strict=True):
        newest_first = [r for step in steps for r in records if r.train_step == step]
        columns, rows = rollout_table(newest_first)
        assert call.kwargs == {"columns": columns, "data": rows[:MAX_ROWS]}


def test_mlflow_gets_a_table_in_a_file_of_its_own(
    toy_policy: Path, tmp_path: Path, stand_in: Callable[..., MagicMock]
) -> None:
    mlflow = stand_in("mlflow", __version__="3.17.2")
    mlflow.utils.validation = SimpleNamespace(
        MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100
    )
    mlflow.active_run.side_effect = lambda: MagicMock() if mlflow.start_run.called else None
    args = toy_config(tmp_path, max_steps=2, report_to="mlflow")
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    order = [call[0] for call in mlflow.mock_calls]
    assert order.index("start_run") < order.index("log_metrics") < order.index("log_table")
    files = [call.kwargs["artifact_file"] for call in mlflow.log_table.call_args_list]
    assert files == ["rollouts/step-000001.json", "rollouts/step-000002.json"]
    data = mlflow.log_table.call_args.args[0]
    records = [r for r in read_records(tmp_path / "steps.jsonl") if r.train_step == 2]
    columns, rows = rollout_table(records)
    assert list(data) == columns
    assert [list(row) for row in zip(*data.values(), strict=True)] == rows[:MAX_ROWS]


@pytest.mark.parametrize("max_steps", [99, 100, 101, 1000, 12345])
def test_mlflow_gets_no_more_tables_than_it_can_list(
    stand_in: Callable[..., MagicMock], max_steps: int
) -> None:
    mlflow = stand_in("mlflow")
    tables = RolloutTables(["mlflow"])
    for step in range(1, max_steps + 1):
        tables.keep([replace(RECORD, train_step=step)])
        log(tables, step, max_steps)
    assert MLFLOW_TABLES / 2 <= mlflow.log_table.call_count <= MLFLOW_TABLES
    assert mlflow.log_table.call_args_list[0].kwargs["artifact_file"].endswith("-000001.json")


# ---- the table ----------------------------------------------------------------------------------


def test_a_table_has_whole_groups_the_newest_first(stand_in: Callable[..., MagicMock]) -> None:
    wandb = stand_in("wandb")
    tables = RolloutTables(["wandb"])

    def sent() -> Sequence[tuple[object, object]]:
        log(tables, 3)
        columns, rows = wandb.Table.call_args.kwargs.values()
        at = [columns.index(name) for name in ("train_step", "group_id")]
        return [(row[at[0]], row[at[1]]) for row in rows]

    for step in (1, 2):
        tables.keep([record for number in range(3) for record in group(step, number, 12)])
    assert sent() == [
        *[(2, 0)] * 12,
        *[(2, 1)] * 12,
        *[(2, 2)] * 12,
        *[(1, 0)] * 12,
        *[(1, 1)] * 12,
    ]
    tables.keep(group(3, 0, MAX_ROWS + 1) + group(3, 1, 2))
    assert sent() == [(3, 0)] * (MAX_ROWS + 1)
    calls = wandb.log.call_count
    log(tables, 3)  # figures of an evaluation: nothing new
    assert wandb.log.call_count == calls


def test_a_table_has_texts_numbers_and_nothing_else() -> None:
    odd = replace(
        RECORD,
        thought="a\x00\x1b[31m\u2028 \ud800",
        action="\udfff",
        rewards={"own": math.nan, "\udc00": None},
        reward=math.inf,
    )
    columns, rows = rollout_table([RECORD, odd])
    assert {name for name in columns if "/" not in name} <= set(FIELDS)
    assert [name for name in columns if "/" in name] == [
        "rewards/similarity",
        "rewards/own",
        "rewards/\ufffd",
        "metrics/lift",
        "metrics/exact",
    ]
    first, second = (dict(zip(columns, row, strict=True)) for row in rows)
    assert (first["thought"], first["reward"], first["metrics/lift"]) == ("hm", 1.0, None)
    assert (first["rewards/similarity"], first["rewards/own"]) == (1.0, None)
    # Control characters stay, they are what the policy wrote; UTF-8 has no lone surrogates.
    assert (second["thought"], second["action"]) == ("a\x00\x1b[31m\u2028 \ufffd", "\ufffd")
    assert (second["rewards/own"], second["reward"]) == (None, None)
    json.dumps(rows, allow_nan=False, ensure_ascii=False).encode()


def test_no_records_no_table(
    toy_policy: Path, tmp_path: Path, stand_in: Callable[..., MagicMock]
) -> None:
    wandb = stand_in("wandb", "sdk", "sdk.lib", "sdk.lib.config_util")
    args = toy_config(tmp_path, max_steps=1, log_completions=False, report_to="wandb")
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    wandb.log.assert_called()
    wandb.Table.assert_not_called()


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(
    stand_in: Callable[..., MagicMock], caplog: pytest.LogCaptureFixture
) -> None:
    wandb, trackio = stand_in("wandb"), stand_in("trackio")
    wandb.log.side_effect = OSError("no space left\nand many more lines")
    tables = RolloutTables(["wandb", "trackio"])
    with caplog.at_level(logging.WARNING, logger=trackers.__name__):
        for step in (1, 2, 3):
            tables.keep(group(step, 0, 2))
            log(tables, step)
    assert [record.getMessage() for record in caplog.records] == [
        "wandb gets no more tables of rollouts, as one could not be sent: OSError: no space left"
    ]
    assert wandb.log.call_count == 1
    assert trackio.log.call_count == 3


# ---- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(trackers._AVAILABLE, name, lambda: False)
    message = f"report_to asks for {name}, which is not installed; type: pip install {name}"
    refused(capsys, train("--report_to", name), re.escape(message))


def test_a_tracker_nobody_knows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, train("--report_to", "foo"), "foo is not supported, only .*mlflow.*wandb")
