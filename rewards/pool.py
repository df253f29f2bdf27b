"""Worker processes that call rewards: beside whatever the caller does, and with a deadline.

Policy text is hostile, and users' functions are as they are: either may hang, eat memory or kill
the process it runs in. So rewards run in processes of their own, which are killed when a call takes
too long or dies, counted and replaced. Each worker process has a thread here that feeds it, and
belongs to a process group of its own, so that what it started dies with it.

Not `multiprocessing` or `concurrent.futures`: their processes import the user's main script again
(spawn) or copy one with threads and a GPU context (fork), none of them can end one call and go on
with the rest, and at exit they wait for work that nobody wants any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rewards.by_path import CodeNameError
from rewards.calling import DEADLINE, Outcome
from rewards.loading import RewardSpec
from rewards.types import StepContext

LOADING_SECONDS = 120.0
"""How long a worker may take to import its rewards; on a busy machine torch alone takes 20."""

# A worker is replaced after so many calls: libraries keep caches that only grow.
_CALLS_PER_WORKER = 20_000

# The worker's own alarm ends a call at its deadline; should it have been tampered with, we do.
_GRACE_SECONDS = 2.0

# `rewards/types.py` must not shadow Python's `types`: never start the file itself.
_START = "import sys; sys.path[:] = {path!r}; from rewards.worker import main; main({descriptor})"

Call = tuple[int, list[int]]
"""(index of the reward, indices of the steps): one call, of one step unless batched."""


@dataclass
class _Job:
    """Steps, and the calls to make about them, for one worker."""

    steps: list[StepContext]
    calls: list[Call]
    future: Future[list[list[Outcome]]] = field(default_factory=Future)


class RewardPool:
    """Calls several rewards in worker processes.

    Args:
        specs: the rewards.
        workers: how many processes at most; they are started when there is something to do.
        deadline: seconds that one call may take.
        memory_bytes: address space of a worker; None: no bound (CUDA maps more than there is).
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        *,
        workers: int,
        deadline: float,
        memory_bytes: int | None = None,
    ) -> None:
        self.specs = list(specs)
        self._most = workers
        self._shared = _Shared(self.specs, deadline, memory_bytes)
        self._end = weakref.finalize(self, _end, self._shared)

    def batched(self) -> list[bool]:
        """Which of the rewards take a list of steps; loads them all, in one worker.

        Raises:
            CodeNameError: a reward that cannot be found or used.
        """
        if self._shared.batched is None:
            self._put(_Job([], [])).result()
        return self._shared.batched or []

    @property
    def batched_names(self) -> set[str]:
        """What the log calls those that take a list of steps."""
        return {
            spec.name for spec, batched in zip(self.specs, self.batched(), strict=True) if batched
        }

    def submit(
        self, steps: Sequence[StepContext], rewards: Sequence[int] | None = None
    ) -> Future[list[list[Outcome]]]:
        """Start to call rewards about these steps, in one worker.

        Args:
            steps: the steps.
            rewards: indices of the rewards to call; None: all.

        Returns:
            A future of one list a reward, in their order, of one outcome a step. Rewards that were
            not asked have outcomes without value.
        """
        batched = self.batched()
        calls: list[Call] = []
        for reward in range(len(batched)) if rewards is None else rewards:
            if batched[reward]:
                calls.append((reward, list(range(len(steps)))))
            else:
                calls += [(reward, [place]) for place in range(len(steps))]
        return self._put(_Job(list(steps), calls))

    def close(self) -> None:
        """Kill the workers, with what they are at. Otherwise done when nobody holds the pool."""
        self._end()

    def _put(self, job: _Job) -> Future[list[list[Outcome]]]:
        shared = self._shared
        with shared.lock:
            if shared.closed:
                raise RuntimeError("these rewards were closed; make new ones to score with")
            shared.jobs.put(job)
            shared.waiting += 1
            if shared.waiting > shared.idle and len(shared.threads) < self._most:
                # A daemon: nobody waits at exit for work that nobody wants any more.
                thread = threading.Thread(target=_work, args=(shared,), name="rewards", daemon=True)
                shared.threads.append(thread)
                shared.idle += 1
                thread.start()
        return job.future


class _Shared:
    """What the threads share; they hold no reference to the pool, so that it can be dropped."""

    def __init__(self, specs: list[RewardSpec], deadline: float, memory_bytes: int | None) -> None:
        self.specs = specs
        self.deadline = deadline
        self.memory_bytes = memory_bytes
        self.batched: list[bool] | None = None if specs else []  # known when one was started
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.workers: set[_Worker] = set()
        self.waiting = 0  # jobs that no thread has taken
        self.idle = 0  # threads that wait for one
        self.closed = False
        self.owner = os.getpid()
        # `package.module:name` may lie in the current folder, as it may for `python -m`.
        here = os.getcwd()
        path = [entry or here for entry in sys.path if isinstance(entry, str)]
        self.path = path if here in path else [*path, here]
        self.files = {spec.file: _digest(spec.file) for spec in specs if spec.file is not None}


def _end(shared: _Shared) -> None:
    """Kill every worker and give up what is still to do."""
    if os.getpid() != shared.owner:
        return  # a fork of the caller's: the workers are not its own
    with shared.lock:
        shared.closed = True
        workers = list(shared.workers)
        for _ in shared.threads:
            shared.jobs.put(None)
    for worker in workers:
        worker.end()


def _work(shared: _Shared) -> None:
    """A thread: feeds one worker process with jobs, one after another."""
    worker: _Worker | None = None
    while (job := shared.jobs.get()) is not None:
        with shared.lock:
            shared.waiting -= 1
            shared.idle -= 1
        if shared.closed:
            job.future.cancel()
        else:
            try:
                worker, outcomes = _run(shared, worker, job)
                job.future.set_result(outcomes)
            except Exception as error:  # noqa: BLE001 - told to whoever waits for the job
                job.future.set_exception(error)
                worker = None
        with shared.lock:
            shared.idle += 1
    if worker is not None:
        worker.end()


def _run(
    shared: _Shared, worker: _Worker | None, job: _Job
) -> tuple[_Worker | None, list[list[Outcome]]]:
    """All outcomes of a job, and the worker that is left at the end."""
    found = [[Outcome()] * len(job.steps) for _ in shared.specs]
    worker = worker or _start(shared)
    calls = job.calls
    died_at: Call | None = None
    while calls:
        worker = worker or _start(shared)
        answered, failure = worker.ask(job.steps, calls)
        for (reward, places), outcomes in zip(calls, answered, strict=False):
            for place, outcome in zip(places, outcomes, strict=True):
                found[reward][place] = outcome
        calls = calls[len(answered) :]
        if failure is None:
            continue
        # The worker is gone, or is made to go; the call it was at is the one to blame. But a worker
        # may have died of something else, so a call that killed one is tried on another.
        worker.end()
        worker = None
        if shared.closed:
            raise RuntimeError("these rewards were closed while they were scoring")
        if failure != DEADLINE and calls[0] != died_at:
            died_at = calls[0]
            continue
        reward, places = calls[0]
        calls = calls[1:]
        for place in places:
            found[reward][place] = Outcome(failure=failure, seconds=shared.deadline)
    if worker is not None and worker.calls >= _CALLS_PER_WORKER:
        worker.end()
        worker = None
    return worker, found


def _start(shared: _Shared) -> _Worker:
    for file, digest in shared.files.items():
        if _digest(file) != digest:
            raise CodeNameError(
                f"{file} was changed meanwhile: rewards would mean something else from here on. "
                "Put it back and resume, or start a new run"
            )
    worker = _Worker(shared)
    with shared.lock:
        shared.workers.add(worker)
        closed = shared.closed
    try:
        if closed:
            raise RuntimeError("these rewards were closed")
        shared.batched = worker.load(shared)
    except BaseException:
        worker.end()
        raise
    return worker


def _digest(file: Path) -> str:
    """Of its content; "" if it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


class _Worker:
    """One process and the socket to it."""

    def __init__(self, shared: _Shared) -> None:
        self.calls = 0
        self._deadline, self._workers = shared.deadline, shared.workers
        self._socket, theirs = socket.socketpair()
        self._received = b""
        start = _START.format(path=shared.path, descriptor=theirs.fileno())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", start],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a reward prints must not mix with what a command prints
                start_new_session=True,
                # The workers share the machine with each other and with the caller.
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def load(self, shared: _Shared) -> list[bool]:
        """Import the rewards; which of them are batched.

        Raises:
            CodeNameError: one of them cannot be found or used.
        """
        message = (shared.specs, shared.deadline, shared.memory_bytes)
        self._socket.sendall(_pickled(message, "the options of rewards"))
        reply = self._reply(LOADING_SECONDS)
        if isinstance(reply, str):
            why = reply
            if reply == DEADLINE:
                why = f"importing them took more than {LOADING_SECONDS:.0f} s"
            raise CodeNameError(
                f"the rewards {', '.join(spec.target for spec in shared.specs)} could not be "
                f"loaded: {why}"
            )
        if "refused" in reply:
            raise CodeNameError(str(reply["refused"]))
        batched: list[bool] = reply["batched"]
        return batched

    def ask(
        self, steps: list[StepContext], calls: list[Call]
    ) -> tuple[list[list[Outcome]], str | None]:
        """The outcomes of the calls that were answered, and how the worker ended, or None."""
        answered: list[list[Outcome]] = []
        message = _pickled((steps, calls), "a step")
        try:
            self._socket.settimeout(None)
            self._socket.sendall(message)
        except OSError:
            return answered, self._how_it_ended()
        for _ in calls:
            reply = self._reply(self._deadline + _GRACE_SECONDS)
            if isinstance(reply, str):
                return answered, reply
            if isinstance(reply, dict):
                raise _unplain("a step", str(reply["unreadable"]))
            answered.append([Outcome(*outcome) for outcome in reply])
            self.calls += 1
        return answered, None

    def end(self) -> None:
        """Kill the process and what it has started. May be called again."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()
        self._socket.close()
        self._workers.discard(self)

    def _reply(self, seconds: float) -> Any:
        """The next message, or in words (a text) how the worker ended without one."""
        try:
            self._socket.settimeout(seconds)
            while b"\n" not in self._received:
                more = self._socket.recv(65536)
                if not more:
                    return self._how_it_ended()
                self._received += more
        except TimeoutError:
            return DEADLINE
        except OSError:
            return self._how_it_ended()
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:  # alive, but it has closed the socket
            return "keeps its worker process from answering"
        if code == -signal.SIGALRM:
            return DEADLINE
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"ended its worker process ({how})"


def _pickled(message: object, what: str) -> bytes:
    try:
        return pickle.dumps(message)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise _unplain(what, str(error)) from error


def _unplain(what: str, why: str) -> CodeNameError:
    return CodeNameError(
        f"{what} cannot be handed to a worker process: {why}; keep metadata and options to texts, "
        "numbers, lists and mappings"
    )


def cores() -> int:
    """The cores that this process may use: by its affinity, and by the quota of its container."""
    own = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        own = len(os.sched_getaffinity(0))
    quota = _quota(Path("/sys/fs/cgroup"))
    return own if quota is None else max(1, min(own, int(quota)))


def _quota(root: Path) -> float | None:
    """Cores that a container's control group allows, of either version; None without a bound."""
    try:
        words = (root / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            words = [
                (root / "cpu" / name).read_text(encoding="ascii").strip()
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            ]
        except (OSError, ValueError):
            return None
    try:
        quota, period = map(float, words)
    except ValueError:  # "max 100000"
        return None
    return quota / period if quota > 0 and period > 0 else None
