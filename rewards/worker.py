"""A worker process: takes steps, calls rewards, sends back what came of it. See `rewards.pool`.

Steps come as pickles, from the parent alone. Results go back as JSON, a line for each call as soon
as it is over: so the parent, which reads nothing else from here, knows which call was going on when
a worker died. A call that takes longer
than its deadline is ended by the kernel's own alarm, whatever it is doing, and even if the parent
is gone.
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

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>: a signal to this process when its parent ends


def main(descriptor: int) -> None:
    """Serve the parent at the other end of a socket until it is closed."""
    os.set_inheritable(descriptor, False)
    if sys.platform == "linux":  # elsewhere a call that is going on ends at its deadline
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = socket.socket(fileno=descriptor)
    requests = parent.makefile("rb")
    specs, deadline, memory_bytes = pickle.load(requests)
    if memory_bytes is not None:
        _bound_memory(memory_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
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
        os.killpg(0, signal.SIGKILL)  # the parent is gone: so goes all that was started here


def _serve(
    parent: socket.socket, requests: IO[bytes], rewards: Sequence[LoadedReward], deadline: float
) -> None:
    home = os.getpid()
    while True:
        try:
            steps, calls = pickle.load(requests)
        except (EOFError, OSError):
            return
        except Exception as error:  # noqa: BLE001 - of a class that is known to the parent alone
            _send(parent, {"unreadable": f"{type(error).__name__}: {error}"})
            continue
        for reward, places in calls:
            # Each time, since a reward may have set a handler; the default action ends the process.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, deadline)
            outcomes = call(rewards[reward], [steps[place] for place in places])
            signal.setitimer(signal.ITIMER_REAL, 0)
            if os.getpid() != home:
                os._exit(0)  # the function forked, and this is the child: it must not answer
            _send(parent, [(o.value, o.failure, o.trace, o.seconds) for o in outcomes])
        _bury()


def _bury() -> None:
    """Take note of children that have ended: those of rewards that fork would pile up."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _send(parent: socket.socket, message: object) -> None:
    parent.sendall(json.dumps(message).encode() + b"\n")


def _bound_memory(memory_bytes: int) -> None:
    """Beyond it an allocation fails, which is an exception in the call; best effort off Linux."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (ImportError, ValueError, OSError):
        pass
