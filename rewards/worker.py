"""Runs a worker process: receives steps, calls rewards and returns outcomes. See `rewards.pool`.

Steps arrive as pickles, only from the parent. Outcomes go back as JSON, one line per call, as soon
as the call is over. So the parent knows which call was running when a worker died, and it never
unpickles data from a worker. The kernel's alarm ends a call that takes longer than its deadline,
even if the parent is gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import socket
import sys
from collections.abc import Sequence
from typing import IO

from rewards.by_path import CodeNameError
from rewards.calling import call
from rewards.loading import LoadedReward, load_reward

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>: send this process a signal when its parent ends


def main(descriptor: int) -> None:
    """Serves the parent at the other end of a socket until the socket is closed."""
    os.set_inheritable(descriptor, False)
    if sys.platform == "linux":  # elsewhere a running call ends at its deadline
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = socket.socket(fileno=descriptor)
    requests = parent.makefile("rb")
    specs, deadline, memory_bytes = pickle.load(requests)
    if memory_bytes is not None:
        _bound_memory(memory_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    rewards = []
    for spec in specs:
        try:
            rewards.append(load_reward(spec))
        except CodeNameError as error:
            _send(parent, {"refused": str(error)})
            return
    _send(parent, {"batched": [reward.batched for reward in rewards]})
    try:
        _serve(parent, requests, rewards, deadline)
    finally:
        os.killpg(0, signal.SIGKILL)  # the parent is gone: kill all that was started here


def _serve(
    parent: socket.socket, requests: IO[bytes], rewards: Sequence[LoadedReward], deadline: float
) -> None:
    home = os.getpid()
    while True:
        try:
            steps, calls = pickle.load(requests)
        except (EOFError, OSError):
            return
        except Exception as error:  # noqa: BLE001 - of a class that only the parent knows
            _send(parent, {"unreadable": f"{type(error).__name__}: {error}"})
            continue
        for reward, places in calls:
            # Set before each call, because a reward may have set a handler. The default action ends
            # the process.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, deadline)
            outcomes = call(rewards[reward], [steps[place] for place in places])
            signal.setitimer(signal.ITIMER_REAL, 0)
            if os.getpid() != home:
                os._exit(0)  # this is a child that the function forked: it must not answer
            _send(parent, [(o.value, o.failure, o.trace, o.seconds) for o in outcomes])
        _bury()


def _bury() -> None:
    """Reaps children that have ended, because zombies of rewards that fork would pile up."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _send(parent: socket.socket, message: object) -> None:
    parent.sendall(json.dumps(message).encode() + b"\n")


def _bound_memory(memory_bytes: int) -> None:
    """Limits the memory: a larger allocation raises in the call. Best effort outside Linux."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (ImportError, ValueError, OSError):
        pass
