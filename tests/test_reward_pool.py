"""Rewards of the user's own, in worker processes: found, checked, called, and stopped when bad."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from rewards import RewardError, RewardSum, StepContext
from rewards.loading import RewardSpec
from rewards.pool import RewardPool, _quota

ROOT = Path(__file__).parents[1]

MINE = """
import os
import signal
import sys
import time
from dataclasses import dataclass

import neighbour


def length(step):
    return len(step.action)


def by_neighbour(step):
    return neighbour.VALUE


def whole_batch(steps):
    return [float(len(steps))] * len(steps)


def nothing(step):
    return None


def broken(step):
    if "bad" in step.action:
        raise KeyError("colour")
    return 1.0


def sleeps(step):
    time.sleep(60 if "bad" in step.action else 0)
    return 1.0


def hangs_in_c(step):
    return 1.0 if "bad" not in step.action else float(len(str(9 ** 9 ** 8)))


def dies(step):
    if "bad" in step.action:
        os._exit(3)
    return 1.0


def leaves(step):
    sys.exit(4)


def prints(step):
    print("a word of its own")
    return 1.0


def forks(step):
    return 1.0 if os.fork() else 2.0


def forks_and_hangs(step):
    if not os.fork():
        time.sleep(600)
    return 1.0


def too_few(steps):
    return [1.0]


def as_a_mapping(steps):
    return {number: 1.0 for number in range(len(steps))}


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError


def unspeakable(step):
    raise Unspeakable


def give_up(*_):
    raise TimeoutError("of its own")


signal.signal(signal.SIGALRM, give_up)  # as libraries do that have timeouts of their own


LOADED = time.time_ns()


def loaded(step):
    return float(LOADED)


def loaded_again(step):
    return float(LOADED)


def infinite(step):
    return float("inf")


def process(step):
    return float(os.getpid())


@dataclass
class Scaled:
    by: float = 1.0

    def __call__(self, step):
        return self.by * len(step.action)


def scaled(step, *, by: float):
    return by * len(step.action)


async def later(step):
    return 1.0


def two(step, other):
    return 1.0


NOT_A_FUNCTION = 3
"""


def step(action: str = "2 + 2 = 4", **changes: object) -> StepContext:
    fields: dict[str, object] = {
        "problem": "How much is 2 + 2?", "previous_steps": ("First we add.",), "action": action,
        "thought": "", "expert_step": "2 + 2 = 4", "step_index": 1, "num_steps": 2, "answer": "4",
    }  # fmt: skip
    return StepContext(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of rewards, with a module of its own beside it."""
    (tmp_path / "neighbour.py").write_text("VALUE = 7.0\n")
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return "mine.py:"


def ask(rewards: dict[str, object], *actions: str, **options: object) -> list[dict[str, object]]:
    """What the rewards say of the actions."""
    total = RewardSum({"similarity": 1.0, **rewards}, **options)  # type: ignore[arg-type]
    try:
        scores = total.score([step(action) for action in actions])
        return [{**score.rewards, "failures": score.failures} for score in scores]
    finally:
        total.close()


# ---- called --------------------------------------------------------------------------


def test_functions_of_a_file_are_called_by_name(mine: str) -> None:
    found = ask({mine + "length": 1.0, mine + "by_neighbour": 0.0, mine + "nothing": 1.0}, "abc")
    assert found[0]["length"] == 3.0
    assert found[0]["by_neighbour"] == 7.0
    assert found[0]["nothing"] is None


def test_functions_of_a_module_in_the_current_folder(mine: str) -> None:
    assert ask({"mine:length": 1.0}, "abcd")[0]["length"] == 4.0


def test_a_batched_function_gets_all_steps_together(mine: str) -> None:
    found = ask({mine + "whole_batch": 1.0}, *["a"] * 40)
    assert {row["whole_batch"] for row in found} == {40.0}


@pytest.mark.parametrize("name", ["Scaled", "scaled"])
def test_options_of_a_class_and_of_a_function(mine: str, name: str) -> None:
    twice = {"name": mine + name, "weight": 1.0, "options": {"by": 2}}
    thrice = {"name": mine + name, "weight": 0.0, "options": {"by": 3.0}}
    assert ask({"twice": twice, "thrice": thrice}, "abc")[0] == {
        "similarity": pytest.approx(0.0),
        "twice": 6.0,
        "thrice": 9.0,
        "failures": {},
    }


def test_scores_come_back_in_order_from_several_workers(mine: str) -> None:
    actions = ["x" * n for n in range(100)]
    found = ask({mine + "length": 1.0, mine + "process": 0.0}, *actions, workers=3)
    assert [row["length"] for row in found] == list(map(float, range(100)))
    assert os.getpid() not in {row["process"] for row in found}


def test_a_function_given_as_such_runs_in_this_process() -> None:
    def here(step: StepContext) -> float:
        return float(os.getpid())

    def here_batched(steps: Sequence[StepContext]) -> list[float]:
        return [float(len(steps))] * len(steps)

    scores = RewardSum({here: 1.0, here_batched: 1.0}).score([step("a"), step("b")])
    assert [score.rewards for score in scores] == [
        {"here": float(os.getpid()), "here_batched": 2.0}
    ] * 2


def test_steps_are_scored_beside_the_caller(mine: str) -> None:
    total = RewardSum({mine + "sleeps": 1.0}, deadline=4.0)
    total.check(step())
    pending = total.submit([step("bad")])
    (asked,) = [one for one in pending._asked if one.name == "sleeps"]
    assert not any(part.done() for part in asked.parts)  # it did not wait for the deadline
    assert pending.result()[0].failures == {"sleeps": "deadline"}
    assert total.score([]) == []
    total.close()


def test_slow_functions_are_spread_over_the_workers(mine: str) -> None:
    total = RewardSum({mine + "process": 1.0, mine + "whole_batch": 1.0}, workers=2)
    scores = total.score([step(f"{n}") for n in range(12)])
    # A batched function gets everything at once and takes nothing from the others.
    assert {score.rewards["whole_batch"] for score in scores} == {12.0}
    checks = {check.name: check.at_once for check in total.check(step())}
    assert checks == {"process": 2, "whole_batch": 1}
    total.close()


def test_equal_steps_are_scored_once_by_built_ins_and_each_time_by_others() -> None:
    asked: list[str] = []

    def here(step: StepContext) -> float:
        asked.append(step.action)
        return 1.0

    total = RewardSum({"similarity": 1.0, "format": 0.0, here: 0.0})
    twice = [step("2 + 2", thought="hm"), step("2 + 2", thought="so"), step("2 + 2", thought=" ")]
    pool = total._built_in
    submitted: list[int] = []
    submit = pool.submit
    pool.submit = lambda steps, rewards=None: submitted.append(len(steps)) or submit(steps, rewards)  # type: ignore[func-returns-value, method-assign]
    scores = total.score(twice)
    assert asked == ["2 + 2"] * 3
    assert submitted == [3]  # `format` looks at thoughts
    assert [score.rewards["format"] for score in scores] == [1.0, 1.0, 0.75]
    blind = RewardSum({"similarity": 1.0})
    submit = blind._built_in.submit
    blind._built_in.submit = pool.submit  # type: ignore[method-assign]
    blind.score(twice)
    assert submitted == [3, 1]


def test_a_file_is_imported_once_for_all_its_rewards(mine: str) -> None:
    rewards = ask({mine + "loaded": 1.0, mine + "loaded_again": 1.0}, "a")[0]
    assert rewards["loaded"] == rewards["loaded_again"]


def test_a_worker_that_is_killed_from_outside_is_replaced(
    mine: str, caplog: pytest.LogCaptureFixture
) -> None:
    total = RewardSum({"similarity": 1.0, mine + "length": 1.0}, workers=1)
    expected = total.score([step("2 + 2")])
    for pool in (total._built_in, total._theirs):
        for worker in list(pool._shared.workers):
            os.kill(worker._process.pid, signal.SIGKILL)
            worker._process.wait()
    assert total.score([step("2 + 2")]) == expected
    assert caplog.records == []
    total.close()


def test_metadata_of_any_mapping_but_not_of_any_value() -> None:
    total = RewardSum({"length": 1.0})
    frozen = types.MappingProxyType({"level": 3, ("a", "key"): None})
    assert total.score([step(metadata=frozen)])[0].reward == 1.0
    for value in (lambda: None, Local()):
        with pytest.raises(RewardError, match="cannot be handed to a worker.*keep metadata and o"):
            total.score([step(metadata={"value": value})])
    assert total.score([step()])[0].reward == 1.0
    total.close()


class Local:
    """Of a module that no worker can import."""

    def __reduce__(self) -> tuple[object, ...]:
        return (getattr, (os, "no_such_name"))


def test_what_is_closed_or_dropped_leaves_nothing_behind(
    mine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = children()
    started = time.perf_counter()
    total = RewardSum({mine + "sleeps": 1.0}, deadline=60)
    total.score([step("good")])
    assert children() - before  # so that one would be seen
    pending = total.submit([step("bad")] * 3)
    total.close()
    with pytest.raises((RuntimeError, CancelledError)):
        pending.result()
    with pytest.raises(RuntimeError, match="were closed; make new ones"):
        total.score([step()])
    dropped = RewardSum({mine + "sleeps": 1.0}, deadline=60)
    dropped.submit([step("bad")] * 3)
    del dropped
    gc.collect()
    # Well before the first of them would wake up.
    while children() - before and time.perf_counter() - started < 50:
        time.sleep(0.05)
    assert children() - before == set()
    assert "Traceback" not in capfd.readouterr().err


def test_a_script_that_is_stopped_does_not_wait_for_its_rewards(mine: str) -> None:
    script = (
        "import sys, pathlib; sys.path.append(pathlib.Path('.'))\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from rewards import RewardSum, StepContext\n"
        "rewards = RewardSum({'mine.py:sleeps': 1.0}, deadline=60)\n"
        "steps = [StepContext('p', (), 'bad', '', 'x', 0, 2)] * 8\n"
        "rewards.submit(steps)\n"
        "raise KeyboardInterrupt\n"
    )
    # Less than one of them sleeps.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=58)
    assert b"KeyboardInterrupt" in done.stderr
    assert b"rewards/pool.py" not in done.stderr


def test_every_score_has_its_lift() -> None:
    total = RewardSum({"length": 1.0})
    copy = step("First we add.")
    assert [score.lift for score in total.score([copy, step(previous_steps=())])] == [0.0, None]


# ---- stopped -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "broken",
            r"raised KeyError: 'colour' \(mine.py, line \d+\) at step 2 of 2 of problem 'How",
        ),
        ("leaves", "'leaves' raised SystemExit: 4"),
        ("too_few", "'too_few' returned 1 values for 2 steps at .*; return a finite float"),
        ("as_a_mapping", "'as_a_mapping' returned {.* for 2 steps at"),
        ("unspeakable", "'unspeakable' raised Unspeakable at step 2"),
        ("infinite", "'infinite' returned inf at .*; return a finite float, or None"),
        ("dies", r"'dies' ended its worker process \(exit code 3\)"),
    ],
)
def test_a_function_that_fails_stops_with_the_row_saved(
    mine: str, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        ask({mine + name: 0.0}, "good", "bad", failed_rows=tmp_path / "runs" / "one.failed")
    saved = tmp_path / "runs" / f"one.failed.{name}.jsonl"
    spec = f'{{"name": "{tmp_path}/mine.py:{name}", "weight": 1, "options": {{}}}}'
    again = f"-m srl score {saved} --rewards.{name} '{spec}'"
    assert re.search(r"\. The rows? (is|are) saved; to try again: ", str(caught.value))
    assert str(caught.value).endswith(again)
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    assert rows[0]["problem"] == "How much is 2 + 2?"
    if name in ("too_few", "as_a_mapping"):  # all that it was given
        assert [row["action"] for row in rows] == ["good", "bad"]
        return
    assert len(rows) == 1
    assert rows[0]["action"] in ("good", "bad")
    assert ("mine.py" in rows[0]["traceback"]) == (name in ("broken", "leaves"))


@pytest.mark.parametrize("name", ["broken", "dies", "infinite"])
def test_or_is_recorded_and_counted(mine: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    found = ask({mine + name: 1.0}, "bad", "bad", "good", errors="record")
    assert [row[name] for row in found] == [None, None, None if name == "infinite" else 1.0]
    assert [bool(row["failures"]) for row in found] == [True, True, name == "infinite"]
    assert len(caplog.records) == 1  # not one for each


@pytest.mark.parametrize("name", ["sleeps", "hangs_in_c"])
def test_a_call_past_its_deadline_is_ended_and_the_rest_goes_on(
    mine: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = ask({mine + name: 1.0}, "good", "bad", "fine", deadline=3)
    assert [record.getMessage() for record in caplog.records] == [
        f"step reward {name!r} did not answer within 3 s at step 2 of 2 of problem "
        "'How much is 2 + 2?'. This and further failures are nulls, counted in the metrics"
    ]
    assert [row[name] for row in found] == [1.0, None, 1.0]
    assert [row["failures"] for row in found] == [{}, {name: "deadline"}, {}]


def test_an_answer_that_could_not_be_verified_earns_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (found,) = ask({"answer": 1.0, "equation": 0.1}, "so x(x+1)", deadline=1e-5)
    assert found["answer"] == 0.0  # others are nulls
    assert found["similarity"] is found["equation"] is None
    said = {record.getMessage().split("'")[1]: record.getMessage() for record in caplog.records}
    assert "This and further failures are 0, counted" in said["answer"]
    assert "This and further failures are nulls, counted" in said["equation"]


def test_what_a_function_prints_stays_out_of_the_output(
    mine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ask({mine + "prints": 1.0}, "a")[0]["prints"] == 1.0
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "a word of its own" in shown.err


def test_a_function_that_forks_answers_once(mine: str) -> None:
    found = ask({mine + "forks": 1.0, mine + "length": 1.0}, "a", "bb", "ccc")
    assert [(row["forks"], row["length"]) for row in found] == [(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]


def test_what_a_function_started_ends_with_its_worker(mine: str) -> None:
    before = children()
    assert ask({mine + "forks_and_hangs": 1.0}, "a")[0]["forks_and_hangs"] == 1.0
    deadline = time.perf_counter() + 120
    while children() - before and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert children() - before == set()


def children() -> set[int]:
    """Processes that started as one of our workers, by the command line, which forks inherit; not
    those of tests that run beside these in another process, by the environment."""
    names = ("PYTEST_XDIST_TESTRUNUID", "PYTEST_XDIST_WORKER")
    ours = {f"{name}={os.environ[name]}".encode() for name in names if name in os.environ}
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            environment = (entry.parent / "environ").read_bytes().split(b"\0")
            if b"rewards.worker" in entry.read_bytes() and ours <= {*environment}:
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_a_worker_is_replaced_after_its_share(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewards.pool._CALLS_PER_WORKER", 10)
    pool = RewardPool([RewardSpec("p", mine + "process")], workers=1, deadline=5)
    pids = set()
    for _ in range(4):
        outcomes = pool.submit([step()] * 6).result(timeout=60)
        pids |= {outcome.value for outcome in outcomes[0]}
    pool.close()
    assert len(pids) == 2


def test_a_file_that_changes_meanwhile_is_not_taken_for_the_same(mine: str, tmp_path: Path) -> None:
    total = RewardSum({mine + "sleeps": 1.0}, deadline=2, workers=1)
    assert total.score([step("good")])[0].reward == 1.0
    (tmp_path / "mine.py").write_text(MINE + "\n# another version\n")
    assert total.score([step("good")])[0].reward == 1.0  # the same worker
    with pytest.raises(RewardError, match=r"mine.py was changed meanwhile.*Put it back and resume"):
        total.score([step("bad"), step("good")])
    total.close()


# ---- refused before anything is trained ----------------------------------------------


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("mine.py:lenght", "mine.py has no 'lenght'; it has: length, .*Scaled.*mean 'length'"),
        ("mine.py:NOT_A_FUNCTION", "is 3, which is neither a function nor a class"),
        ("mine.py:later", "is async; a step reward is called and answers at once"),
        ("mine.py:two", r"takes \(step, other\); it is called with one StepContext.*options: oth"),
        ("mine.py", "no step reward is called 'mine.py'.*write mine.py:NAME"),
        ("mine.py:", "'' is not the name of a function or class; write mine.py:NAME"),
        ("gone.py:f", "there is no file gone.py in"),
        ("no-such:f", "'no-such' is neither a file.py nor a package.module"),
        ("no_such:f", "no_such cannot be imported: ModuleNotFoundError"),
        ("faulty.py:f", r"faulty.py cannot be imported: ZeroDiv.* \(faulty.py, line 1\)"),
        ("mine.py:broken", "'broken' raised KeyError: 'colour' .* at step 2 of 2"),
        ("mine.py:infinite", "'infinite' returned inf"),
        ("mine.py:sleeps", "did not answer within 2 s at .*; make it faster, or raise reward_de"),
    ],
)
def test_a_reward_is_tried_on_a_real_row(mine: str, reward: str, message: str) -> None:
    Path("faulty.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=message):
        RewardSum({"similarity": 1.0, reward: 1.0}, deadline=2).check(step("bad"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 1.0, "option": {}}, "option in it is unknown; give a number, or {weight: 0.5"),
        ({"options": {"unit": "word"}}, "it has no weight; give a number, or {weight: 0.5"),
        ({"weight": 1.0, "options": [1]}, r"options of step reward 'similarity' are \[1\]"),
        ({"weight": 1.0, "options": {"unit": "wrd"}}, "'unit' is 'wrd'; allowed: character, word"),
        ({"weight": 1.0, "options": {"autojunk": 1}}, "'autojunk' is 1; it must be of type bool"),
        ({"weight": 1.0, "options": {"units": "word"}}, "no option 'units'; it has unit, .*'unit'"),
        ({"weight": "lots"}, "weight of step reward 'similarity' is 'lots'"),
        ({"weight": 10**400}, "weight of step reward 'similarity' is 1000"),
    ],
)
def test_wrong_settings_are_refused(settings: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSum({"similarity": settings}).check(step())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": 0}, "deadline of rewards is 0; give seconds"),
        ({"deadline": float("nan")}, "deadline of rewards is nan"),
        ({"deadline": 1e10}, "deadline of rewards is 1.*at most 604800"),
        ({"workers": 0}, "0 workers for rewards; give 1 or more"),
        ({"errors": "ignore"}, "errors is 'ignore'; allowed: stop, record"),
    ],
)
def test_numbers_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSum({"similarity": 1.0}, **options)  # type: ignore[arg-type]


def test_two_rewards_of_one_name_need_a_name_each(mine: str) -> None:
    Path("other.py").write_text("def length(step): return 1.0\n")
    with pytest.raises(
        ValueError, match="two step rewards are called 'length'.*a_name: {name: other.py:length"
    ):
        RewardSum({"mine.py:length": 1.0, "other.py:length": 1.0})
    other = {"name": "other.py:length", "weight": 1.0}
    assert RewardSum({"mine.py:length": 1.0, "other": other}).names == ("length", "other")


def test_the_check_tells_what_each_reward_says_and_takes(mine: str) -> None:
    checks = RewardSum({"similarity": 1.0, mine + "nothing": 0.5}).check(step())
    assert [(c.name, c.weight, c.value) for c in checks] == [
        ("similarity", 1.0, 1.0),
        ("nothing", 0.5, None),
    ]
    assert all(0 <= c.seconds < 1 for c in checks)


@pytest.mark.skipif(sys.platform != "linux", reason="only there the kernel tells children")
def test_a_worker_dies_with_its_parent_in_the_middle_of_a_call(tmp_path: Path) -> None:
    """Whatever the call is at, and however long it may take."""
    (tmp_path / "mine.py").write_text(
        "import os, time\n\n\ndef hangs(step):\n    if step.action == 'now':\n"
        "        open('pid', 'w').write(str(os.getpid()))\n        time.sleep(600)\n"
    )
    code = (
        "from rewards import RewardSum, StepContext\n"
        "step = StepContext(problem='p', previous_steps=(), action='now', thought='', "
        "expert_step='e', step_index=0, num_steps=1, answer=None)\n"
        "RewardSum({'mine.py:hangs': 1.0}, deadline=600, workers=1).score([step])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    pid = tmp_path / "pid"
    wait_until(lambda: pid.is_file() and pid.read_text() != "")
    process.kill()
    process.wait()
    wait_until(lambda: not Path("/proc", pid.read_text()).exists())


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": ""}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_bounds_the_cores(
    files: dict[str, str], cores: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _quota(tmp_path) == cores
