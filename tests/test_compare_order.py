"""The order of a comparison's cells, made-up ones: failing, changed, in part, one at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from comparing import (
    LONG,
    Fork,
    MadeUp,
    Starter,
    fixture_file,  # noqa: F401
    fixture_no_fork_is_left,  # noqa: F401
    fixture_quick_looks,  # noqa: F401
    fork,
    run,
    wait_for,
    write,
)
from conftest import read_jsonl
from rich.console import Console

from srl.compare import runner
from srl.compare.cell_run import State, read_cells
from srl.compare.plan_file import load_plan
from srl.compare.processes import start_process
from srl.config.settings import SRLConfig
from srl.errors import UsageError


def test_rows_are_compared_on_the_same_held_out_problems(file: Path) -> None:
    rows = {"srl": {}, "other": {"like": "srl", "data": {"label": "mine"}}}
    write(rows=rows, contrasts=[], seeds=[0])
    starter = Starter(before=lambda words: sys.exit(3))  # nothing is trained here
    assert run(start=starter, rows=["other"])[0] == 1
    assert starter.names == ["train toy.other.0"]
    changes: list[dict[str, object]] = [
        *({"data": {"limit": 12}}, {"test_problems": 5}, {"validation_problems": 1}),
        {"data": {"answer_column": "problem"}},
    ]
    for change in changes:
        write(rows={"srl": {}, "other": {"like": "srl", **change}})
        with pytest.raises(UsageError) as refused:
            run(start=starter, rows=["other"])  # though the other row is not asked for
        assert "compare.yaml: row other holds out other problems than row srl" in str(refused.value)
        assert "Take out of the row what changes them" in str(refused.value)
    assert len(starter.names) == 1
    # Also where another difficulty has what the row makes of its own.
    data = {"source": "files", "path": "data.jsonl"}
    write(
        rows={"srl": {}, "other": {"like": "srl", "data": {"limit": 12}}},
        difficulties={"a": {"data": {**data, "limit": 12}}, "b": {"data": data}},
    )
    with pytest.raises(UsageError, match="than row srl in difficulty b"):
        run(start=starter, difficulties=["a", "b"])
    # And a training set that there is not is told before anything starts.
    write(rows={"srl": {}, "other": {"train_problems": 1000}}, difficulties={"b": {"data": data}})
    with pytest.raises(UsageError, match="train_problems is 1000, but"):
        run(start=starter)
    assert len(starter.names) == 1


@pytest.mark.usefixtures("quick_looks")
def test_a_failing_cell_stops_only_those_that_wait_for_it(file: Path) -> None:
    start = MadeUp({"toy.srl.0": 3})
    code, shown = run(start=start)
    assert code == 1
    assert start.names == [
        *("train toy.srl.0", "train toy.srl.1", "eval toy.base", "train toy.two.1"),
    ]
    why = (
        r"toy.srl.0: failed \(exit code 3\): srl: toy.srl.0 has a reason; its log: .*toy.srl.0.log"
    )
    assert re.search(why, shown)
    assert "toy.two.0: not started, for toy.srl.0 failed" in shown
    text = Path("runs/c/table.md").read_text()
    assert "Incomplete, 2 of 5 cells: toy.srl.0 (failed), toy.two.0 (to do)" in text
    assert re.search(r"\| SRL \| 100.0 .* \(1 of 2 cells\) \| failed \| 100.0 \|", text)
    assert "one seed" in text  # no verdict from one
    # Put right, the next call makes what is missing and no more.
    start = MadeUp()
    assert run(start=start)[0] == 0
    assert start.names == ["train toy.srl.0", "train toy.two.0"]
    assert Path("runs/c/logs/toy.srl.0.log").read_text().count("--- ") == 2


@pytest.mark.usefixtures("quick_looks")
def test_a_cell_that_is_killed_or_leaves_nothing_has_failed(file: Path) -> None:
    class Strange(MadeUp):
        def __call__(self, words: Sequence[str], *more: object) -> Fork:  # type: ignore[override]
            self.asked.append((words, {}))
            kill = words[-1].endswith("0")
            work = (lambda: os.kill(os.getpid(), signal.SIGKILL) or 0) if kill else (lambda: 0)
            return fork(work, Path("log"))  # type: ignore[arg-type]

    code, shown = run(start=Strange(), rows=["srl"])
    assert code == 1
    assert "toy.srl.0: failed (killed by signal 9)" in shown
    assert "toy.srl.1: failed (exit code 0, but its run is not done (to do))" in shown


@pytest.mark.usefixtures("quick_looks")
def test_a_choice_is_run_and_the_rest_is_told(file: Path) -> None:
    start = MadeUp()
    assert run(start=start, rows=["two"], seeds=[1])[0] == 0
    assert start.names == ["train toy.srl.1", "train toy.two.1"]
    start = MadeUp()
    assert run(start=start, rows=["base", "srl"], seeds=[1])[0] == 0
    assert start.names == ["eval toy.base"]


@pytest.mark.usefixtures("quick_looks")
def test_as_many_at_a_time_as_asked_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "cores", lambda: 6)
    logs = Path("runs/c/logs")

    def together(number: int) -> bool:
        """The first two wait for each other."""
        begun = sum("at work" in log.read_text() for log in logs.glob("*.log"))
        return number > 2 or begun > 1

    start = MadeUp(until=together)
    assert run(start=start, jobs=2)[0] == 0
    assert max(start.at_once) == 2
    assert {environment["OMP_NUM_THREADS"] for _, environment in start.asked} == {"3"}
    assert set(start.names[:2]) == {"train toy.srl.0", "train toy.srl.1"}
    [part] = json.loads(Path("runs/c/table.json").read_text())["difficulties"]
    assert [row["seeds_done"] for row in part["rows"]] == [[], [0, 1], [0, 1]]
    for pair in part["contrasts"]:  # the base is the partner of both seeds
        assert (pair["seeds"], pair["verdict"]) == ([0, 1], "not told apart")


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize(("device", "at_once"), [("cpu", 3), ("cuda", 1)])
def test_how_many_run_at_a_time(
    file: Path, monkeypatch: pytest.MonkeyPatch, device: str, at_once: int
) -> None:
    """A cell a core; but on a GPU they would share its memory."""
    monkeypatch.setattr(runner, "cores", lambda: 3)
    monkeypatch.setattr(SRLConfig, "device", torch.device(device))
    given = []
    monkeypatch.setattr(runner, "Queue", lambda plan, cells, jobs, *_: given.append(jobs) or Idle())
    run(start=MadeUp(), jobs=None)
    run(start=MadeUp(), jobs=2)
    assert given == [at_once, 2]


class Idle:
    """A queue in which nothing is done."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def run(self) -> int:
        return 0


@pytest.mark.usefixtures("quick_looks")
def test_a_finished_cell_with_other_settings_is_refused(file: Path) -> None:
    assert run(start=MadeUp())[0] == 0
    rows = yaml.safe_load(file.read_text())["rows"]
    write(rows={**rows, "srl": {**rows["srl"], "learning_rate": 0.5, "temperature": 0.7}})
    start = MadeUp()
    with pytest.raises(UsageError) as caught:
        run(start=start)
    message = str(caught.value)
    assert "These runs are not what compare.yaml asks for now" in message
    assert (
        "  runs/c/toy.srl.0, runs/c/toy.srl.1:\n"
        "    learning_rate: 0.001 -> 0.5\n    temperature: 1.0 -> 0.7\n"
    ) in message
    assert "  runs/c/toy.two.0, runs/c/toy.two.1:\n    temperature: 1.0 -> 0.7\n" in message
    assert "  mv runs/c/toy.srl.0 runs/c/toy.srl.0.old" in message
    assert start.asked == []
    assert Path("runs/c/toy.srl.0/summary.json").is_file()
    # How fast it was made is no other setting.
    write(rows=rows, settings={**yaml.safe_load(file.read_text())["settings"], "reward_workers": 2})
    assert run(start=start)[0] == 0
    assert start.asked == []
    write(rows={**rows, "srl": {**rows["srl"], "learning_rate": 0.5, "temperature": 0.7}})
    # The table shows it, and uses no number of it.
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    runner.show_table(load_plan(file), console)
    assert "toy.srl.0 (other settings)" in console.export_text()
    # Rows that are not concerned can still be run.
    assert run(start=start, rows=["base"])[0] == 0
    # Stage two of a policy that is to be made anew is not what it says.
    write(rows=rows)
    Path("runs/c/toy.srl.0").rename("runs/c/toy.srl.0.old")
    message = (
        r"toy.two.0:\n    toy.srl.0, whose policy it started from, is not done \(to do\)\n(.|\n)*"
    )
    for rows_asked in (["srl"], ["two"], None):  # also if only the first is asked for
        with pytest.raises(UsageError, match=message + "  mv runs/c/toy.two.0 runs/c/toy.two.0.o"):
            run(start=start, rows=rows_asked)
    runner.show_table(load_plan(file), console)
    assert "toy.srl.0 (to do), toy.two.0 (other start)." in console.export_text()
    assert run(start=start, rows=["srl"], seeds=[1])[0] == 0  # nor is this concerned


@pytest.mark.usefixtures("quick_looks")
def test_a_setting_that_a_method_has_no_use_for_is_no_difference(file: Path) -> None:
    """An earlier version wrote more of them down."""
    settings = yaml.safe_load(file.read_text())["settings"]
    del settings["num_generations"]
    write(settings=settings, rows={"sft": {"method": "sft"}}, contrasts=[], seeds=[0])
    assert run(start=MadeUp())[0] == 0
    path = Path("runs/c/toy.sft.0/config.yaml")
    path.write_text(path.read_text() + "beta: 0.0\n")
    start = MadeUp()
    assert run(start=start)[0] == 0
    assert start.asked == []
    path.write_text(path.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    with pytest.raises(UsageError, match=r"toy.sft.0:\n    learning_rate: 0.002 -> 0.001\n"):
        run(start=start)


@pytest.mark.usefixtures("quick_looks")
def test_a_policy_that_others_started_from_was_made_again(file: Path) -> None:
    assert run(start=MadeUp(), seeds=[0])[0] == 0
    old = Path("runs/c/toy.srl.0")
    content = (old / "policy/model.safetensors").read_bytes()
    (old / "policy/model.safetensors").write_bytes(b"other")
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    runner.show_table(load_plan(file), console)
    assert "toy.two.0 (other start)" in console.export_text()
    start = MadeUp()
    with pytest.raises(UsageError, match=r"toy.srl.0/policy has other weights now \(\w+ -> \w+\)"):
        run(start=start, seeds=[0])
    runner.list_cells(load_plan(file), load_plan(file).cells, console)
    assert re.search(r"two.0 +other start.*\n +runs/c/toy.srl.0/policy has", console.export_text())
    # Written again they have another time, and are the same weights.
    (old / "policy/model.safetensors").write_bytes(content)
    assert run(start=start, seeds=[0])[0] == 0
    # A cell without a digest, made by an earlier version, is taken as it is.
    starts = Path("runs/c/starts.jsonl")
    lines = starts.read_text()
    starts.unlink()
    (old / "policy/model.safetensors").write_bytes(b"other")
    assert run(start=start, seeds=[0])[0] == 0
    assert start.asked == []
    # A later start of the name, not that of the run which is there, says nothing about it.
    later = lines.replace('"started":"2', '"started":"3').replace('"started": "2', '"started": "3')
    assert later != lines
    starts.write_text(later)
    assert run(start=start, seeds=[0])[0] == 0


@pytest.mark.usefixtures("quick_looks")
def test_a_base_that_was_made_again(file: Path, toy_policy: Path) -> None:
    shutil.copytree(toy_policy, "base")
    write(model="base")
    assert run(start=MadeUp(), rows=["base", "srl"], seeds=[0])[0] == 0
    weights_file = Path("base/model.safetensors")
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"x")
    start = MadeUp()
    with pytest.raises(UsageError, match="base has other weights now") as caught:
        run(start=start)
    assert "mv runs/c/toy.base runs/c/toy.base.old\n  mv runs/c/toy.srl.0 " in str(caught.value)
    assert start.asked == []
    plan = load_plan(file)
    assert [run.state for run in read_cells(plan).values() if run.cell.row == "base"] == [
        State.OTHER_START
    ]


@pytest.mark.usefixtures("quick_looks")
def test_ctrl_c_while_a_cell_is_being_started(file: Path) -> None:
    """It is told all the same."""

    class Interrupting(MadeUp):
        def __call__(self, words: Sequence[str], *more: object) -> Fork:  # type: ignore[override]
            self.asked.append((words, {}))

            def work() -> int:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                try:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                    time.sleep(LONG)
                except KeyboardInterrupt:
                    return 130
                return 0

            # No Ctrl-C gets lost between the fork and the handler.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            process = fork(work, Path("log"))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.kill(os.getpid(), signal.SIGINT)
            return process

    start = Interrupting()
    began = time.monotonic()
    code, shown = run(start=start, jobs=2)
    assert code == 130
    assert time.monotonic() - began < LONG / 2
    assert len(start.asked) == 1
    assert "stopping: the running cells save" in shown
    assert "toy.srl.0 stopped after" in shown
    assert read_jsonl(Path("runs/c/sessions.jsonl"))[0]["exit"] == 130


@pytest.mark.usefixtures("quick_looks")
def test_what_was_cut_off_is_moved_aside_and_never_deleted(file: Path) -> None:
    for name in ("toy.base", "toy.srl.0"):
        Path("runs/c", name).mkdir(parents=True)
        Path("runs/c", name, "eval.jsonl").write_text("half\n")
    Path("runs/c/unfinished/toy.srl.0.1").mkdir(parents=True)
    assert run(start=MadeUp())[0] == 0
    assert Path("runs/c/unfinished/toy.base.1/eval.jsonl").read_text() == "half\n"
    assert Path("runs/c/unfinished/toy.srl.0.2/eval.jsonl").read_text() == "half\n"


@pytest.mark.usefixtures("quick_looks")
def test_one_call_at_a_time_in_a_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = MadeUp(until=lambda number: Path("go").exists())
    first = fork(lambda: run(start=start, rows=["base"])[0], Path("parent.log"))
    log = Path("runs/c/logs/toy.base.log")
    wait_for(lambda: log.is_file() and "at work" in log.read_text(), said=Path("parent.log"))
    with pytest.raises(UsageError, match=f"another comparison runs in runs/c .process {first.pid}"):
        run(start=MadeUp())
    # Looking on is allowed, and says so.
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    plan = load_plan(file)
    runner.list_cells(plan, plan.cells, console)
    runner.show_table(plan, console)
    told = f"process {first.pid} is making cells in runs/c now; those it works on are shown as if"
    assert console.export_text().count(told) == 2
    # Killed, it leaves a cell running, which keeps the lock until it ends.
    first.send_signal(signal.SIGKILL)
    first.wait()
    start, say = MadeUp(), runner._say

    def then_go(console: Console, text: str) -> None:
        say(console, text)
        if text.startswith("waiting"):
            Path("go").touch()

    monkeypatch.setattr(runner, "_say", then_go)
    code, shown = run(start=start, rows=["base"])
    assert code == 0
    assert "waiting for cells that an earlier call left running" in shown
    assert start.asked == []  # it was done by then


@pytest.mark.skipif(sys.platform != "linux", reason="only there the kernel tells children")
def test_a_process_of_ours_keeps_the_lock_and_is_told_when_we_die(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def told(*_):\n    print('told', flush=True)\n    sys.exit(5)\n"
        "signal.signal(signal.SIGTERM, told)\n"
        f"print('ready', flush=True)\ntime.sleep({LONG})\n"
    )
    log = tmp_path / "log"

    def parent() -> int:
        with (tmp_path / "lock").open("w") as lock:
            start_process([sys.executable, "-c", code], os.environ, log, lock.fileno())
            time.sleep(LONG)
        return 0

    process = fork(parent, tmp_path / "parent.log")
    wait_for(lambda: log.is_file() and "ready" in log.read_text(), said=tmp_path / "parent.log")
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: "told" in log.read_text())


class WithCheckpoint(MadeUp):
    """Cells that leave a checkpoint behind."""

    def __call__(
        self, words: Sequence[str], environment: Mapping[str, str], log: Path, lock: int
    ) -> Fork:
        cell = super().__call__(words, environment, log, lock)
        cell.wait()
        Path(f"runs/c/{Path(words[-1]).name}/checkpoint-2").mkdir()
        return cell


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("keep", [True, False])
def test_checkpoints_of_finished_cells(file: Path, keep: bool) -> None:
    write(rows={"srl": {}}, contrasts=[], seeds=[0], keep_checkpoints=keep)
    assert run(start=WithCheckpoint())[0] == 0
    assert Path("runs/c/toy.srl.0/checkpoint-2").is_dir() == keep
    again = MadeUp()
    assert run(start=again)[0] == 0
    assert again.asked == []
