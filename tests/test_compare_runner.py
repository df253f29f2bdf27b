"""Comparisons as they are run: whole, killed, stopped, failing, changed, in part.

Cells are real runs of the command line, but in forks of this process, which have torch loaded
already; one test starts them as users get them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from conftest import TOY_SETTINGS, read_jsonl, same_weights, weights, write_toy_data
from rich.console import Console

from srl.cli import main
from srl.compare import runner
from srl.compare.figures import figures_of
from srl.compare.origin import cpu_name
from srl.compare.plan import Plan, load_plan
from srl.compare.results import State, state_of
from srl.compare.runner import compare, start_process
from srl.errors import UsageError
from srl.policy import load_policy
from srl.run_folder import RunFolder, describe_environment, plain

ROOT = Path(__file__).resolve().parent.parent
CELLS = ("toy.base", "toy.srl.0", "toy.two.0")
LONG = 60.0  # seconds that a condition may take which is met at once unless something is wrong


def wait_for(condition: Callable[[], object], *, said: Path | None = None) -> None:
    """Until `condition` is true; an error after `LONG` seconds, with what is in `said`."""
    end = time.monotonic() + LONG
    while not condition():
        told = said.read_text() if said is not None and said.is_file() else ""
        assert time.monotonic() < end, f"waited in vain\n{told}"
        time.sleep(0.01)


@dataclass
class Fork:
    """A process made by `os.fork`, as a cell's."""

    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self) -> int:
        wait_for(lambda: self.poll() is not None)
        return self.code or 0

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)


_forks: list[Fork] = []


@pytest.fixture(autouse=True)
def no_fork_is_left() -> Iterator[None]:
    """A failing test leaves no process behind."""
    yield
    for one in _forks:
        one.send_signal(signal.SIGKILL)
        one.wait()
    _forks.clear()


def fork(work: Callable[[], int], log: Path) -> Fork:
    pid = os.fork()
    if pid:
        _forks.append(Fork(pid))
        return _forks[-1]
    _forks.clear()  # the parent's
    code = 70
    try:
        os.setpgid(0, 0)
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = (os.fdopen(i, "w", 1, closefd=False) for i in (1, 2))
        code = work()
    finally:
        if sys.exc_info()[0]:
            traceback.print_exc()
        os._exit(code)


@dataclass
class Starter:
    """Starts cells as forks; keeps what it was asked for.

    Attributes:
        before: called in the cell's process with its words.
    """

    before: Callable[[Sequence[str]], None] = lambda words: None
    asked: list[tuple[Sequence[str], Mapping[str, str]]] = field(default_factory=list)

    def __call__(
        self, words: Sequence[str], environment: Mapping[str, str], log: Path, lock: int
    ) -> Fork:
        self.asked.append((words, environment))

        def work() -> int:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            runner.end_with_parent()
            self.before(words)
            return main(words[3:])

        return fork(work, log)

    @property
    def names(self) -> list[str]:
        """Command and run name of all that was started."""
        return [f"{words[3]} {Path(words[-1]).name}" for words, _ in self.asked]


@pytest.fixture
def file(tmp_path: Path, toy_policy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A comparison of the toy policy in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_toy_data(tmp_path / "data.jsonl", 24)
    write(model=str(toy_policy))
    return tmp_path / "compare.yaml"


def write(**changes: object) -> None:
    path = Path("compare.yaml")
    old = yaml.safe_load(path.read_text()) if path.is_file() else {}
    plan: dict[str, object] = {
        "output": "runs/c",
        "settings": {
            **TOY_SETTINGS,
            "validation_problems": 0,
            "test_problems": 6,
            "solve_samples": 2,
            "max_steps": 2,
            "save_steps": 1,
            "learning_rate": 1e-3,
            "reward_workers": 1,
        },
        "difficulties": {"toy": {"data": {"source": "files", "path": "data.jsonl"}}},
        "rows": {
            "base": {"train": False, "title": "base policy"},
            "srl": {"title": "SRL"},
            # Its policy must then be that of the row it starts from.
            "two": {"like": "srl", "after": "srl", "learning_rate": 0.0, "title": "SRL, then none"},
        },
        "contrasts": [["srl", "base"], ["two", "srl"]],
        "seeds": [0, 1],
    }
    path.write_text(yaml.safe_dump({**plan, **old, **changes}, sort_keys=False))


def run(*, start: Starter, jobs: int = 1, **choice: object) -> tuple[int, str]:
    plan = load_plan(Path("compare.yaml"))
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    cells = plan.choose(**choice)  # type: ignore[arg-type]
    return compare(plan, console, cells=cells, jobs=jobs, start=start), console.export_text()


def without_times(path: Path) -> dict[str, object]:
    table = json.loads(path.read_text())
    del table["made_with"]
    for cell in table["cells"].values():
        del cell["seconds"], cell["commands"]
        cell["summary"] = {k: v for k, v in cell["summary"].items() if "seconds" not in k}
    return table


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
        assert len(cell["commands"]) == 1
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
    assert header.endswith("| tokens | time |")
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


def killed_comparison(at: str) -> None:
    """A comparison in a process of its own, killed with its cells once `at` is in a cell's log."""
    work = fork(lambda: run(start=Starter())[0], Path("parent.log"))
    seen = Path("runs/c/logs")

    def there() -> bool:
        assert work.poll() is None, Path("parent.log").read_text()
        return any(at in log.read_text() for log in seen.glob("*.log"))

    try:
        wait_for(there)
    finally:
        children = Path(f"/proc/{work.pid}/task/{work.pid}/children").read_text().split()
        for process in (work.pid, *map(int, children)):
            os.kill(process, signal.SIGKILL)
    assert work.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="looks for child processes in /proc")
def test_killed_and_called_again_it_ends_with_the_same_table(
    file: Path, straight: tuple[Path, Starter, str]
) -> None:
    write(seeds=[0], rows={"srl": {}}, contrasts=[])
    killed_comparison("step 1/2")
    out, plan = Path("runs/c"), load_plan(Path("compare.yaml"))
    assert not (out / "table.json").exists()
    state = state_of(plan.cells[0], plan)
    assert state in (State.INTERRUPTED, State.CUT_OFF)
    start = Starter()
    code, shown = run(start=start)
    assert code == 0, shown
    first = "resume toy.srl.0" if state is State.INTERRUPTED else "train toy.srl.0"
    assert start.names == [first]
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
        from srl.progress import ProgressReport

        def on_step_begin(self, args, state, control, **more):  # type: ignore[no-untyped-def]
            if state.global_step == 1:
                os.kill(os.getppid(), signal.SIGINT)
                wait_for(lambda: self._asked_to_stop)

        ProgressReport.on_step_begin = on_step_begin  # type: ignore[method-assign]

    code, shown = run(start=Starter(before=interrupted))  # before there is anything
    assert code == 130
    assert "stopping: the running cells save" in shown
    assert "toy.srl.0 stopped after" in shown
    assert not Path("runs/c/toy.srl.0").exists()
    code, shown = run(start=Starter(before=in_training))
    assert code == 130, shown
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
        (["--rows", "bse"], "--rows bse: .*it has base, srl, two"),
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


# ---- the order of things, with made-up cells ----------------------------------------------------


ENVIRONMENT = describe_environment()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def finish(words: Sequence[str], plan: Plan, *, correct: bool = True) -> None:
    """What a cell leaves behind, without the work."""
    cell = next(cell for cell in plan.cells if cell.name == Path(words[-1]).name)
    run = RunFolder(plan.output / cell.name)
    run.path.mkdir(exist_ok=True)
    run.config.write_text(yaml.safe_dump(plain(cell.experiment.resolved())))
    run.environment.write_text(json.dumps(ENVIRONMENT | {"started": now()}))
    lines = [
        {"when": "after", "evaluation": 0, "problem_id": p, "mode": "steps", "sample": sample}
        | {"correct": correct, "answer": "4"}
        for p in "abc"
        for sample in range(1 + cell.experiment.args.solve_samples)
    ]
    run.eval.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if cell.trained:  # so that the next one starts from something
        run.policy.mkdir(exist_ok=True)
        (run.policy / "model.safetensors").write_bytes(os.urandom(8))
    run.summary.write_text("{}")


class MadeUp(Starter):
    """Cells that end at once, or when `until` is true in them with their number, counted from 1;
    `codes` gives exit codes other than 0."""

    def __init__(
        self,
        codes: Mapping[str, int] | None = None,
        until: Callable[[int], bool] = lambda number: True,
    ) -> None:
        super().__init__()
        self.codes, self.until = codes or {}, until
        self.at_once: list[int] = []
        self._running: list[Fork] = []

    def __call__(
        self, words: Sequence[str], environment: Mapping[str, str], log: Path, lock: int
    ) -> Fork:
        self.asked.append((words, environment))
        name, plan = Path(words[-1]).name, load_plan(Path("compare.yaml"))
        number = len(self.asked)

        def work() -> int:
            print("at work")  # noqa: T201
            wait_for(lambda: self.until(number))
            if code := self.codes.get(name, 0):
                print(f"something\nsrl: {name} has a reason")  # noqa: T201
                return code
            finish(words, plan)
            return 0

        self._running = [one for one in self._running if one.poll() is None]
        self._running.append(fork(work, log))
        self.at_once.append(len(self._running))
        return self._running[-1]


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_PAUSE", 0.01)
    monkeypatch.setattr(runner, "check_problems", lambda plan, missing, console: None)


def test_rows_are_compared_on_the_same_held_out_problems(file: Path) -> None:
    rows = {"srl": {}, "other": {"like": "srl", "data": {"label": "mine"}}}
    write(rows=rows, contrasts=[], seeds=[0])
    starter = Starter(before=lambda words: sys.exit(3))  # nothing is trained here
    assert run(start=starter, rows=["other"])[0] == 1
    assert starter.names == ["train toy.other.0"]
    changes: list[dict[str, object]] = [
        *({"data": {"limit": 12}}, {"test_problems": 5}, {"validation_problems": 1}),
        {"data": {"answer_column": "none"}},
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
def test_a_finished_cell_with_other_settings_is_refused(file: Path) -> None:
    assert run(start=MadeUp())[0] == 0
    rows = yaml.safe_load(file.read_text())["rows"]
    write(rows={**rows, "srl": {**rows["srl"], "learning_rate": 0.5, "temperature": 0.7}})
    start = MadeUp()
    with pytest.raises(UsageError) as caught:
        run(start=start)
    message = str(caught.value)
    assert "runs/c/toy.srl.0 was made with other settings than compare.yaml has now" in message
    assert "  learning_rate: 0.001 -> 0.5\n  temperature: 1.0 -> 0.7\n" in message
    assert "So are toy.srl.1, toy.two.0, toy.two.1." in message
    assert "  mv runs/c/toy.srl.0 runs/c/toy.srl.0.old" in message
    assert start.asked == []
    assert Path("runs/c/toy.srl.0/summary.json").is_file()
    # The table shows it, and uses no number of it.
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    runner.show_table(load_plan(file), console)
    assert "toy.srl.0 (other settings)" in console.export_text()
    # Rows that are not concerned can still be run.
    assert run(start=start, rows=["base"])[0] == 0
    # Stage two of a policy that is to be made anew is not what it says.
    write(rows=rows)
    Path("runs/c/toy.srl.0").rename("runs/c/toy.srl.0.old")
    message = r"toy.two.0: toy.srl.0, whose policy it started from, is not done \(to do\)\n(.|\n)*"
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
    with pytest.raises(UsageError, match=r"has now:\n  learning_rate: 0.002 -> 0.001\n"):
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
    assert [state_of(cell, plan) for cell in plan.cells if cell.row == "base"] == [
        State.OTHER_START
    ]


@pytest.mark.usefixtures("quick_looks")
def test_a_table_tells_what_its_cells_were_made_with(file: Path) -> None:
    assert run(start=MadeUp())[0] == 0
    path = Path("runs/c/toy.srl.1/environment.json")
    other = json.loads(path.read_text())
    other["packages"]["torch"] = "1.0"
    other["git"] = {"commit": "f" * 40, "dirty": True}
    path.write_text(json.dumps(other))
    assert run(start=MadeUp())[0] == 0
    table = json.loads(Path("runs/c/table.json").read_text())
    assert [made["cells"] for made in table["made_with"] if made["torch"] == "1.0"] == [
        ["toy.srl.1"]
    ]
    text = Path("runs/c/table.md").read_text()
    assert "torch 1.0 (1 cells)" in text
    assert f"commit {'f' * 10} with changes" in text
    assert "so not all cells were made alike" in text


@pytest.mark.usefixtures("quick_looks")
def test_only_what_the_run_that_is_there_took_is_counted(file: Path) -> None:
    write(rows={"srl": {}}, contrasts=[], seeds=[0])
    assert run(start=MadeUp())[0] == 0
    path = Path("runs/c/sessions.jsonl")
    [line] = read_jsonl(path)
    earlier = {**line, "started": "2020-01-01T00:00:00+00:00", "seconds": 5000.0}
    path.write_text(json.dumps(earlier) + "\n" + path.read_text())
    for _ in range(2):
        assert run(start=MadeUp())[0] == 0
        cell = json.loads(Path("runs/c/table.json").read_text())["cells"]["toy.srl.0"]
        assert len(cell["commands"]) == 1
        assert cell["seconds"] < 5000
        Path("runs/c/starts.jsonl").unlink(missing_ok=True)  # as an earlier version left it


@pytest.mark.usefixtures("quick_looks")
def test_contrasts_of_two_figures(file: Path) -> None:
    write(metric=["steps greedy", "steps avg@2"])
    assert run(start=MadeUp())[0] == 0
    [part] = json.loads(Path("runs/c/table.json").read_text())["difficulties"]
    assert [(c["figure"], c["first"]) for c in part["contrasts"]] == [
        *(("steps greedy", "srl"), ("steps greedy", "two")),
        *(("steps avg@2", "srl"), ("steps avg@2", "two")),
    ]
    text = Path("runs/c/table.md").read_text()
    assert text.index("difference in steps greedy") < text.index("difference in steps avg@2")
    # Both with intervals, and what contrasts are not about without.
    assert re.search(
        r"^\| SRL \| 100.0 \[[^]]+\] \|( 100.0 \|){2} 100.0 \[[^]]+\] \| 100.0 \|",
        text,
        re.MULTILINE,
    )


@pytest.mark.usefixtures("quick_looks")
def test_intervals_over_problems_alone_are_marked(file: Path) -> None:
    rows = yaml.safe_load(file.read_text())["rows"]
    rows["more"] = {"train": False, "temperature": 0.5}
    write(rows=rows, contrasts=[["srl", "base"], ["more", "base"]])
    assert run(start=MadeUp({"toy.srl.1": 3}))[0] == 1
    text = Path("runs/c/table.md").read_text()
    assert re.search(r"\| SRL \| 100.0 \[[\d., ]+\] \(p\) \(1 of 2 cells\) \|", text)
    assert "those with (p) over problems alone" in text
    assert run(start=MadeUp())[0] == 0
    text = Path("runs/c/table.md").read_text()
    assert re.search(r"\| SRL \| 100.0 \[[\d., ]+\] \| 100.0 \|", text)
    assert re.search(r"\| base policy \| 100.0 \[[\d., ]+\] \(p\) \|", text)
    assert re.search(r"\| SRL less base policy \| \+0.0 \[[-+\d., ]+\] \| 0, 1 \|", text)
    # Of two that are not trained the problems are all that is drawn.
    assert re.search(
        r"\| more less base policy \| \+0.0 \[[-+\d., ]+\] \(p\) \| - \| not told apart", text
    )


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


def test_a_process_of_ours_keeps_the_lock_and_is_told_when_we_die(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only there the kernel tells children")
    code = (
        "import signal, sys, time\n"
        "def told(*_):\n    print('told', flush=True)\n    sys.exit(5)\n"
        "signal.signal(signal.SIGINT, told)\n"
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


@pytest.mark.usefixtures("quick_looks")
def test_problems_that_are_not_the_same_are_not_compared(file: Path) -> None:
    assert run(start=MadeUp())[0] == 0
    path = Path("runs/c/toy.srl.1/eval.jsonl")
    path.write_text(path.read_text().replace('"problem_id": "a"', '"problem_id": "z"'))
    with pytest.raises(UsageError, match=r"toy.srl.1 and toy.base have solved different problems"):
        run(start=MadeUp())


def test_the_titles_of_a_table_cannot_break_it(file: Path, quick_looks: None) -> None:
    write(rows={"a": {"title": "x | [bold]y\x1b[2J"}}, contrasts=[], seeds=[0])
    code, shown = run(start=MadeUp())
    assert code == 0
    assert r"x | [bold]y\u{1b}[2J" in shown
    assert r"| x \| [bold]y\u{1b}[2J | 100.0" in Path("runs/c/table.md").read_text()
