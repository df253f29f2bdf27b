"""Worker processes that call rewards: beside whatever the caller does, and with a deadline.

Policy text is hostile, and users' functions are as they are: either may hang, eat memory or kill
the process it runs in. So rewards run in processes of their own, which are killed when a call takes
too long or dies, counted and replaced. Each worker process has a thread here that feeds it, and
belongs to a process group of its own, so that what it started dies with it.

Not `multiprocessing` or `concurrent.futures` processes: both import the user's main script again in
the child (spawn) or copy a process with threads and a GPU context (fork), and neither can end one
call and go on with the rest.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rewards.calling import DEADLINE, Outcome
from rewards.loading import RewardNameError, RewardSpec
from rewards.types import StepContext

LOADING_SECONDS = 120.0
"""How long a worker may take to import its rewards; on a busy machine torch alone takes 20."""

# A worker is replaced after so many calls: libraries keep caches that only grow.
_CALLS_PER_WORKER = 20_000

# The worker's own alarm ends a call at its deadline; should it have been tampered with, we do.
_GRACE_SECONDS = 2.0

# `rewards/types.py` must not shadow Python's `types`: never start the file itself.
_START = "import sys; sys.path[:] = {path!r}; from rewards.worker import main; main({descriptor})"


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
        self._specs = list(specs)
        self._deadline = deadline
        self._memory_bytes = memory_bytes
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="rewards")
        self._batched: list[bool] | None = None
        self._end = weakref.finalize(self, _end_all, self._threads, self._idle)

    def batched(self) -> list[bool]:
        """Which of the rewards take a list of steps; loads them all, in one worker.

        Raises:
            RewardNameError: a reward that cannot be found or used.
        """
        if self._batched is None:
            self._batched = self._threads.submit(self._load).result()
        return self._batched

    def submit(self, steps: Sequence[StepContext]) -> Future[list[list[Outcome]]]:
        """Start to call every reward about these steps, in one worker.

        Returns:
            A future of one list a reward, in their order, of one outcome a step.
        """
        batched = self.batched()
        calls: list[tuple[int, list[int]]] = []
        for reward, takes_all in enumerate(batched):
            if takes_all:
                calls.append((reward, list(range(len(steps)))))
            else:
                calls += [(reward, [place]) for place in range(len(steps))]
        return self._threads.submit(self._run, list(steps), calls)

    def close(self) -> None:
        """End the workers; what is going on is waited for. Otherwise done when nobody is left."""
        self._end()

    def _load(self) -> list[bool]:
        worker = self._take()
        self._idle.put(worker)
        return worker.batched

    def _take(self) -> _Worker:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return _Worker(self._specs, self._deadline, self._memory_bytes)

    def _run(
        self, steps: list[StepContext], calls: list[tuple[int, list[int]]]
    ) -> list[list[Outcome]]:
        found = [[Outcome()] * len(steps) for _ in self._specs]
        while calls:
            worker = self._take()
            answered, failure = worker.ask(steps, calls)
            for (reward, places), outcomes in zip(calls, answered, strict=False):
                for place, outcome in zip(places, outcomes, strict=True):
                    found[reward][place] = outcome
            calls = calls[len(answered) :]
            if failure is None:
                if worker.calls < _CALLS_PER_WORKER:
                    self._idle.put(worker)
                else:
                    worker.end()
                continue
            # The worker is gone. The call it was at is the one to blame; the rest goes on.
            reward, places = calls.pop(0)
            for place in places:
                found[reward][place] = Outcome(failure=failure, seconds=self._deadline)
        return found


def _end_all(threads: ThreadPoolExecutor, idle: queue.SimpleQueue[_Worker]) -> None:
    threads.shutdown(cancel_futures=True)
    while not idle.empty():
        idle.get().end()


class _Worker:
    """One process and the socket to it."""

    def __init__(
        self, specs: Sequence[RewardSpec], deadline: float, memory_bytes: int | None
    ) -> None:
        self.calls = 0
        self._deadline = deadline
        ours, theirs = socket.socketpair()
        path = [entry or os.getcwd() for entry in sys.path]
        # `package.module:name` may lie in the current folder, as it may for `python -m`.
        if os.getcwd() not in path:
            path.append(os.getcwd())
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    _START.format(path=path, descriptor=theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a reward prints must not mix with what a command prints
                start_new_session=True,
                # The workers share the machine with each other and with the caller.
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._socket = ours
        self._received = b""
        self._socket.sendall(pickle.dumps((list(specs), deadline, memory_bytes)))
        reply = self._reply(LOADING_SECONDS)
        if isinstance(reply, str):
            self.end()
            why = "importing them took too long" if reply == DEADLINE else reply
            raise RewardNameError(
                f"the rewards {', '.join(spec.target for spec in specs)} could not be loaded: {why}"
            )
        if "refused" in reply:
            self.end()
            raise RewardNameError(str(reply["refused"]))
        self.batched: list[bool] = reply["batched"]

    def ask(
        self, steps: list[StepContext], calls: list[tuple[int, list[int]]]
    ) -> tuple[list[list[Outcome]], str | None]:
        """The outcomes of the calls that were answered, and how the worker died, or None."""
        answered: list[list[Outcome]] = []
        try:
            self._socket.sendall(pickle.dumps((steps, calls)))
        except OSError:
            self.end()
            return answered, "the worker process died"
        for _ in calls:
            reply = self._reply(self._deadline + _GRACE_SECONDS)
            if isinstance(reply, str):
                self.end()
                return answered, reply
            answered.append([Outcome(*outcome) for outcome in reply])
            self.calls += 1
        return answered, None

    def end(self) -> None:
        """Kill the process and what it has started."""
        self._socket.close()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()

    def _reply(self, seconds: float) -> Any:
        """The next message, or in words (a text) how the worker ended without one."""
        self._socket.settimeout(seconds)
        try:
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
            return "the worker process does not answer any more"
        if code == -signal.SIGALRM:
            return DEADLINE
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the worker process died ({how})"
