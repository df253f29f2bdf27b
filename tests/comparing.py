"""What the tests of `srl compare` share: cells as forks of this process, real and made up.

A test file imports the fixtures it needs by the names of their functions; the first cleans up after
every test of the file.
"""

from __future__ import annotations

import json
import os
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
from conftest import TOY_SETTINGS, write_toy_data
from rich.console import Console

from srl.commands.cli import main
from srl.compare import processes, runner
from srl.compare.plan import Plan
from srl.compare.plan_file import load_plan
from srl.compare.runner import compare
from srl.runs.folder import RunFolder, describe_environment, plain

ROOT = Path(__file__).resolve().parent.parent
CELLS = ("toy.base", "toy.srl.0", "toy.two.0")
LONG = 180.0  # seconds that a condition may take which is met at once unless something is wrong


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


@pytest.fixture(name="no_fork_is_left", autouse=True)
def fixture_no_fork_is_left() -> Iterator[None]:
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
            processes.end_with_parent()
            self.before(words)
            return main(words[3:])

        return fork(work, log)

    @property
    def names(self) -> list[str]:
        """Command and run name of all that was started."""
        return [f"{words[3]} {Path(words[-1]).name}" for words, _ in self.asked]


@pytest.fixture(name="file")
def fixture_file(tmp_path: Path, toy_policy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def run(*, start: Starter, jobs: int | None = 1, **choice: object) -> tuple[int, str]:
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


@pytest.fixture(name="quick_looks")
def fixture_quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_PAUSE", 0.01)
    monkeypatch.setattr(runner, "check_problems", lambda plan, missing, console: None)
