"""Comparisons of real cells: whole, killed, stopped, as users get them.

Cells are real runs of the command line, but in forks of this process, which have torch loaded
already; one test starts them as users get them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from comparing import (
    CELLS,
    LONG,
    Starter,
    fixture_file,  # noqa: F401
    fixture_no_fork_is_left,  # noqa: F401
    fork,
    run,
    wait_for,
    without_times,
    write,
)
from conftest import read_jsonl, same_weights, weights, write_toy_data

from srl.commands.cli import main
from srl.compare import runner
from srl.compare.cell_run import State, cpu_name, read_cells
from srl.compare.figures import figures_of
from srl.compare.plan_file import load_plan
from srl.errors import UsageError
from srl.models.loading import load_policy
from srl.runs.lock import only_writer

# ---- real cells ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory, toy_policy: Path
) -> tuple[Path, Starter, str]:
    """A comparison that ran through: its folder, what was started, what was shown."""
    folder, start = tmp_path_factory.mktemp("straight"), Starter()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_toy_data(folder / "data.jsonl", 24)
        write(model=str(toy_policy), seeds=[0])
        code, shown = run(start=start)
    assert code == 0, shown
    return folder, start, shown


def test_a_whole_comparison(
    straight: tuple[Path, Starter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, start, shown = straight
    assert start.names == ["train toy.srl.0", "eval toy.base", "train toy.two.0"]
    out = folder / "runs/c"
    assert {path.name for path in out.glob("toy.*")} == set(CELLS)
    assert not list(out.glob("*/checkpoint-*"))  # nobody goes on from them
    assert len(list(out.glob("*/policy/model.safetensors"))) == 2
    table = json.loads((out / "table.json").read_text())
    [part] = table["difficulties"]
    assert part["problems"] == 6
    rows = {row["name"]: row for row in part["rows"]}
    assert [row["seeds_done"] for row in rows.values()] == [[], [0], [0]]
    for row in rows.values():
        figures = row["figures"]
        assert set(figures) == {f"steps {f}" for f in ("greedy", "avg@2", "pass@2", "maj@2")}
        lines = [line for cell in row["cells"] for line in read_jsonl(out / cell / "eval.jsonl")]
        hits = [line["correct"] for line in lines if line["sample"] == 0]
        assert len(hits) == 6
        assert figures["steps greedy"]["value"] == pytest.approx(sum(hits) / len(hits))  # type: ignore[arg-type]
    [first, second] = part["contrasts"]
    assert (first["first"], first["second"], first["seeds"]) == ("srl", "base", [0])
    values = [rows[name]["figures"]["steps greedy"]["value"] for name in ("two", "srl")]
    assert second["difference"]["value"] == pytest.approx(values[0] - values[1])
    for name in CELLS:
        cell = table["cells"][name]
        assert cell["state"] == "done"
        assert cell["seconds"] > 0
        [command] = cell["commands"]
        assert command.startswith("python -m srl ")
        assert command.endswith(f"--run-name {name}")
        assert (out / "logs" / f"{name}.log").read_text().startswith("--- ")
        if name != "toy.base":
            assert cell["summary"]["tokens_written"] > 0
    [made] = table["made_with"]
    assert set(made["cells"]) == set(CELLS)
    environment = json.loads((out / "toy.srl.0/environment.json").read_text())
    assert made["torch"] == environment["packages"]["torch"]
    assert made["cpu_count"] == environment["cpu_count"]
    assert made["cpu"] == cpu_name()
    text = (out / "table.md").read_text()
    [header, _, base, srl] = text.partition("\n\n## toy")[2].split("\n")[2:6]
    assert header.endswith("| groups used | updates | tokens | time |")
    lines = read_jsonl(out / "toy.srl.0/metrics.jsonl")
    kept, tried = (
        sum(line[name] for line in lines if name in line)
        for name in ("groups_kept", "groups_tried")
    )
    assert 0 < kept <= tried
    assert srl.split("|")[-5].strip() == f"{100 * kept / tried:.0f} %"
    assert base.split("|")[-5].strip() == "-"
    assert base.split("|")[-3].strip() == "-"  # nothing was trained
    written = table["cells"]["toy.srl.0"]["summary"]["tokens_written"]
    assert srl.split("|")[-3].strip() == f"{written:,}"
    assert "over problems alone" in text
    assert "(p)" not in text  # all are
    assert re.search(
        r"^\| SRL, then none \| \d+\.\d \[\d+\.\d, \d+\.\d\] \| \d", text, re.MULTILINE
    )
    assert "SRL less base policy" in text
    assert "Incomplete" not in text
    assert re.search(
        r"\[3/3\] toy.two.0 done in 0:\d\d: steps greedy \d+\.\d%  about 0:00 left", shown
    )
    # One cell at a time: its own lines are passed on, whole and once.
    logged = (out / "logs/toy.srl.0.log").read_text().splitlines()[1:]
    assert len(logged) > 3
    ours = [line[2:] for line in shown.splitlines() if line.startswith("  ")]
    start_of = ours.index(logged[0])
    assert ours[start_of : start_of + len(logged)] == logged
    # Held-out steps beside the expert's, as the runs found them.
    summary = json.loads((out / "toy.srl.0/summary.json").read_text())["after"]
    exact = table["cells"]["toy.srl.0"]["held_out_steps"]["exact"]
    assert exact == summary["held-out steps: exact"]
    assert "| held-out steps, greedy, % | similarity | exact | format failures |" in text
    assert f"{100 * exact['value']:.1f} [{100 * exact['low']:.1f}" in text
    threads = {environment["OMP_NUM_THREADS"] for _, environment in start.asked}
    assert threads == {str(runner.cores())}

    monkeypatch.chdir(folder)
    again, before = Starter(), without_times(out / "table.json")
    assert run(start=again)[0] == 0
    assert again.asked == []
    assert without_times(out / "table.json") == before


def test_stage_two_starts_from_stage_one(
    straight: tuple[Path, Starter, str], toy_policy: Path
) -> None:
    """At a learning rate of zero its policy is that of stage one, to the last bit."""
    out = straight[0] / "runs/c"
    policies = {
        name: weights(load_policy(str(out / name / "policy"))[0])
        for name in CELLS
        if name != "toy.base"
    }
    assert same_weights(policies["toy.two.0"], policies["toy.srl.0"])
    figures = [figures_of(read_jsonl(out / name / "eval.jsonl")) for name in CELLS[1:]]
    assert figures[0]["steps greedy"] == figures[1]["steps greedy"]
    assert not same_weights(policies["toy.srl.0"], weights(load_policy(str(toy_policy))[0]))


def killed_comparison(after: int) -> None:
    """A comparison in a process of its own, killed with its cells when those have taken so many
    steps, and saved after each."""

    def waits(words: Sequence[str]) -> None:
        from srl.training.progress import ProgressReport

        def on_step_begin(self, args, state, control, **more):  # type: ignore[no-untyped-def]
            if state.global_step == after:
                print("waits to be killed", flush=True)  # noqa: T201
                time.sleep(LONG)

        ProgressReport.on_step_begin = on_step_begin  # type: ignore[method-assign]

    work = fork(lambda: run(start=Starter(before=waits))[0], Path("parent.log"))
    seen = Path("runs/c/logs")

    def there() -> bool:
        assert work.poll() is None, Path("parent.log").read_text()
        return any("waits to be killed" in log.read_text() for log in seen.glob("*.log"))

    try:
        wait_for(there)
    finally:
        children = Path(f"/proc/{work.pid}/task/{work.pid}/children").read_text().split()
        for process in (work.pid, *map(int, children)):
            os.kill(process, signal.SIGKILL)
    assert work.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="looks for child processes in /proc")
@pytest.mark.parametrize(
    ("after", "state", "goes_on"),
    [(0, State.CUT_OFF, "train toy.srl.0"), (1, State.INTERRUPTED, "resume toy.srl.0")],
)
def test_killed_and_called_again_it_ends_with_the_same_table(
    file: Path, straight: tuple[Path, Starter, str], after: int, state: State, goes_on: str
) -> None:
    write(seeds=[0], rows={"srl": {}}, contrasts=[])
    killed_comparison(after)
    out, plan = Path("runs/c"), load_plan(Path("compare.yaml"))
    assert not (out / "table.json").exists()
    assert read_cells(plan)[plan.cells[0].name].state is state
    start = Starter()
    code, shown = run(start=start)
    assert code == 0, shown
    assert start.names == [goes_on]
    cells = without_times(out / "table.json")["cells"]
    uninterrupted = without_times(straight[0] / out / "table.json")["cells"]
    assert cells["toy.srl.0"] == uninterrupted["toy.srl.0"]  # type: ignore[index]
    if state is State.CUT_OFF:
        assert (out / "unfinished" / "toy.srl.0.1" / "config.yaml").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="only there the kernel tells children")
def test_ctrl_c_saves_and_the_next_call_goes_on(
    file: Path, straight: tuple[Path, Starter, str]
) -> None:
    write(seeds=[0], rows={"srl": {}}, contrasts=[])

    def interrupted(words: Sequence[str]) -> None:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(LONG)  # its own Ctrl-C ends it

    def in_training(words: Sequence[str]) -> None:
        from srl.training.progress import ProgressReport

        def on_step_begin(self, args, state, control, **more):  # type: ignore[no-untyped-def]
            if state.global_step == 1:
                os.kill(os.getppid(), signal.SIGTERM)  # as schedulers do
                wait_for(lambda: self._signals.asked is not None)

        ProgressReport.on_step_begin = on_step_begin  # type: ignore[method-assign]

    code, shown = run(start=Starter(before=interrupted))  # before there is anything
    assert code == 130
    assert "stopping: the running cells save" in shown
    assert "toy.srl.0 stopped after" in shown
    assert not Path("runs/c/toy.srl.0").exists()
    code, shown = run(start=Starter(before=in_training))
    assert code == 143, shown
    assert Path("runs/c/toy.srl.0/checkpoint-2").is_dir()
    assert re.search(r"Incomplete, 1 of 1 cells: toy.srl.0 \(interrupted\)", shown)
    start = Starter()
    assert run(start=start)[0] == 0
    assert start.names == ["resume toy.srl.0"]
    cells = json.loads(Path("runs/c/table.json").read_text())["cells"]
    # The first was stopped before there was a run: it is none of this one's.
    assert [" train " in words for words in cells["toy.srl.0"]["commands"]] == [True, False]
    other = json.loads((straight[0] / "runs/c/table.json").read_text())["cells"]
    assert cells["toy.srl.0"]["figures"] == other["toy.srl.0"]["figures"]


def test_a_cell_that_somebody_trains_by_hand_is_not_moved_away(file: Path) -> None:
    write(seeds=[0], rows={"srl": {}}, contrasts=[])
    cell = Path("runs/c/toy.srl.0")
    cell.mkdir(parents=True)
    with only_writer(cell, print), pytest.raises(UsageError, match="is being written by process"):
        run(start=Starter())
    assert not Path("runs/c/unfinished").exists()


def test_cells_as_users_get_them(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line, cells in processes of their own."""
    monkeypatch.setenv("PYTHONPATH", "")
    words = ["compare", "--config", "compare.yaml"]
    assert main([*words, "--rows", "base", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "[1/1] toy.base done in" in shown
    assert "toy.srl.0 (to do)" in shown
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^toy.base +done$", shown, re.MULTILINE)
    assert re.search(r"^toy.two.1 +to do, from toy.srl.1$", shown, re.MULTILINE)
    assert main([*words, "--table"]) == 0
    assert "Incomplete, 4 of 5 cells" in capsys.readouterr().out
    for more, message in (
        (["--rows", "bse"], "--rows bse: .* has rows base, srl, two; did you mean base"),
        (["--seeds", "x"], "--seeds is 'x'; give whole numbers"),
        (["--jobs", "0"], "--jobs is 0; it must be 1 or more"),
        (["--job-s", "2"], "unknown words: --job-s 2; did you mean --jobs"),
        (["--quick"], "has no quick: block"),
        (
            ["--table", "--rows", "srl", "--seeds", "0"],
            "--table shows all cells; leave --rows, --s",
        ),
        (["--dry-run", "--jobs", "2"], "--dry-run starts none; leave --jobs away"),
    ):
        assert main([*words, *more]) == 2
        assert re.search(message, capsys.readouterr().err)
