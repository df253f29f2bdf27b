"""Calls rewards in worker processes, in the background and with a deadline.

Policy text is hostile, and users' functions may have bugs. Either may hang, use up the memory or
kill its process. So rewards run in separate processes. A process that dies, or whose call takes too
long, is replaced, and the failure is recorded. A thread in the main process feeds each worker. Each
worker has its own process group, so that processes it started are killed with it.

`multiprocessing` and `concurrent.futures` do not fit. Their processes import the user's main script
again (spawn) or copy a process with threads and a GPU context (fork). They cannot end one call and
go on with the rest, and at exit they wait for work that is no longer needed.
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
"""Seconds to import a worker's rewards; on a busy machine torch alone takes 20."""

# A worker is replaced after this many calls, because libraries keep caches that only grow.
_CALLS_PER_WORKER = 20_000

# The worker's alarm ends a call at its deadline. If the alarm fails, the parent ends the call this
# many seconds later.
_GRACE_SECONDS = 2.0

# The worker starts this code, not the file, so that `rewards/types.py` does not shadow Python's
# `types`.
_START = "import sys; sys.path[:] = {path!r}; from rewards.worker import main; main({descriptor})"

Call = tuple[int, list[int]]
"""One call: (index of the reward, indices of the steps). It has one step unless batched."""


@dataclass
class _Job:
    """Steps, and the calls to make for them, for one worker."""

    steps: list[StepContext]
    calls: list[Call]
    future: Future[list[list[Outcome]]] = field(default_factory=Future)


class RewardPool:
    """Calls several rewards in worker processes.

    Args:
        specs: the rewards.
        workers: the maximum number of processes; they start when there is work.
        deadline: seconds that one call may take.
        memory_bytes: limit on the address space of a worker; None: no limit (CUDA maps more than
            the machine's memory).
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
        """Returns, for each reward, whether it takes a list of steps.

        The first call loads all rewards, in one worker.

        Raises:
            CodeNameError: a reward cannot be found or used.
        """
        if self._shared.batched is None:
            self._put(_Job([], [])).result()
        return self._shared.batched or []

    @property
    def batched_names(self) -> set[str]:
        """Returns the names of the rewards that take a list of steps."""
        return {
            spec.name for spec, batched in zip(self.specs, self.batched(), strict=True) if batched
        }

    def submit(
        self, steps: Sequence[StepContext], rewards: Sequence[int] | None = None
    ) -> Future[list[list[Outcome]]]:
        """Starts to call rewards for these steps, in one worker.

        Args:
            steps: the steps.
            rewards: indices of the rewards to call; None: all.

        Returns:
            A future of one list per reward, in the order of `specs`, with one outcome per step.
            Rewards that were not called have outcomes without a value.
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
        """Kills the workers and their current calls, as also happens when the pool is deleted."""
        self._end()

    def _put(self, job: _Job) -> Future[list[list[Outcome]]]:
        shared = self._shared
        with shared.lock:
            if shared.closed:
                raise RuntimeError("these rewards were closed; make new ones to score with")
            shared.jobs.put(job)
            shared.waiting += 1
            if shared.waiting > shared.idle and len(shared.threads) < self._most:
                # A daemon thread, so that the exit does not wait for work that nobody needs.
                thread = threading.Thread(target=_work, args=(shared,), name="rewards", daemon=True)
                shared.threads.append(thread)
                shared.idle += 1
                thread.start()
        return job.future


class _Shared:
    """The state that the threads share. They do not refer to the pool, so it can be deleted."""

    def __init__(self, specs: list[RewardSpec], deadline: float, memory_bytes: int | None) -> None:
        self.specs = specs
        self.deadline = deadline
        self.memory_bytes = memory_bytes
        self.batched: list[bool] | None = None if specs else []  # known once a worker has started
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.workers: set[_Worker] = set()
        self.waiting = 0  # jobs that no thread has taken
        self.idle = 0  # threads that wait for a job
        self.closed = False
        self.owner = os.getpid()
        # `package.module:name` may be in the current folder, as for `python -m`.
        here = os.getcwd()
        path = [entry or here for entry in sys.path if isinstance(entry, str)]
        self.path = path if here in path else [*path, here]
        self.files = {spec.file: _digest(spec.file) for spec in specs if spec.file is not None}


def _end(shared: _Shared) -> None:
    """Kills every worker and cancels the remaining work."""
    if os.getpid() != shared.owner:
        return  # in a fork of the caller: the workers belong to the caller
    with shared.lock:
        shared.closed = True
        workers = list(shared.workers)
        for _ in shared.threads:
            shared.jobs.put(None)
    for worker in workers:
        worker.end()


def _work(shared: _Shared) -> None:
    """Feeds a worker process with jobs, one after another; the body of a thread."""
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
            except Exception as error:  # noqa: BLE001 - passed on to whoever waits for the job
                job.future.set_exception(error)
                worker = None
        with shared.lock:
            shared.idle += 1
    if worker is not None:
        worker.end()


def _run(
    shared: _Shared, worker: _Worker | None, job: _Job
) -> tuple[_Worker | None, list[list[Outcome]]]:
    """Returns the worker that is left at the end, or None, and all outcomes of a job."""
    by_reward = [[Outcome()] * len(job.steps) for _ in shared.specs]
    worker = worker or _start(shared)
    calls = job.calls
    died_at: Call | None = None
    while calls:
        worker = worker or _start(shared)
        answered, failure = worker.ask(job.steps, calls)
        for (reward, places), outcomes in zip(calls, answered, strict=False):
            for place, outcome in zip(places, outcomes, strict=True):
                by_reward[reward][place] = outcome
        calls = calls[len(answered) :]
        if failure is None:
            continue
        # The worker has died or must be killed, and its current call is probably the cause. But a
        # worker may die for another reason, so after a death the call is tried once on another.
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
            by_reward[reward][place] = Outcome(failure=failure, seconds=shared.deadline)
    if worker is not None and worker.calls >= _CALLS_PER_WORKER:
        worker.end()
        worker = None
    return worker, by_reward


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
    """Returns the SHA-256 of a file's content; "" if the file cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


class _Worker:
    """One worker process and the socket to it."""

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
                stdout=2,  # the output of a reward must not mix with that of a command
                start_new_session=True,
                # The workers share the machine with each other and with the caller.
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def load(self, shared: _Shared) -> list[bool]:
        """Makes the worker import the rewards; returns, for each reward, whether it is batched.

        Raises:
            CodeNameError: a reward cannot be found or used.
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
        """Returns the outcomes of the answered calls, and how the worker failed, or None."""
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
        """Kills the process and the processes it has started. May be called again."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()
        self._socket.close()
        self._workers.discard(self)

    def _reply(self, seconds: float) -> Any:
        """Returns the next message, or a string that says why no message came."""
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
        except subprocess.TimeoutExpired:  # the process is alive, but it has closed the socket
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
    """Returns how many cores this process may use, by its affinity and its container's quota."""
    own = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        own = len(os.sched_getaffinity(0))
    quota = _quota(Path("/sys/fs/cgroup"))
    return own if quota is None else max(1, min(own, int(quota)))


def _quota(root: Path) -> float | None:
    """Returns the cores that a container's cgroup (v1 or v2) allows; None without a limit."""
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
