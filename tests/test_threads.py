"""Threads are left out for the cores that other work takes, and a run goes on with as many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from srl.threads import Threads, busy_elsewhere, choose_threads


@pytest.mark.parametrize(
    ("busy", "count"),
    [(0.0, None), (0.4, None), (0.6, 3), (1.0, 3), (2.2, 2), (3.4, 1), (4.0, 1), (9.0, 1)],
)
def test_as_many_threads_as_cores_are_free(
    busy: float, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    found = choose_threads(cores=4, busy=busy, recorded=None, environ={})
    assert found.count == count
    assert bool(found.why) is (count is not None)
    if found.why:
        assert f"{busy:.1f} of the machine's 4 cores" in found.why
        assert f"computes with {count} thread" in found.why
        assert "OMP_NUM_THREADS=4" in found.why


def test_a_large_machine_of_which_few_cores_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert choose_threads(cores=2, busy=50.0, recorded=None, environ={}).count is None
    assert choose_threads(cores=2, busy=63.0, recorded=None, environ={}).count == 1


def test_what_the_user_or_the_run_says_wins() -> None:
    asked = {"OMP_NUM_THREADS": "2"}
    assert choose_threads(cores=4, busy=4.0, recorded=1, environ=asked) == Threads(None)
    # Another number adds in another order: the resumed run would round otherwise.
    assert choose_threads(cores=4, busy=0.0, recorded=1, environ={}).count == 1
    assert choose_threads(cores=4, busy=4.0, recorded=4, environ={}) == Threads(4)
    assert choose_threads(cores=4, busy=None, recorded=None, environ={}) == Threads(None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_other_processes_are_seen_and_ones_own_work_is_not(tmp_path: Path) -> None:
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        # In a process of its own, which begins to look when it begins.
        script = (
            "import time, json, os\n"
            "import srl.threads\n"
            "end = time.monotonic() + 60\n"
            "while time.process_time() < 1.5 or srl.threads.busy_elsewhere() is None:\n"
            "    assert time.monotonic() < end\n"
            "print(json.dumps([srl.threads.busy_elsewhere(), os.cpu_count()]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
        )
    finally:
        burner.kill()
        burner.wait()
    busy, cores = json.loads(done.stdout)
    # The burner at least, for its share of a machine on which other tests run as well.
    assert 0.2 < busy < cores
    assert busy_elsewhere() is not None
