"""A worker process: takes steps, calls rewards, sends back what came of it. See `rewards.pool`.

Results go back as JSON, one line of it a call, as soon as there is one: so the parent, which reads
nothing else from here, knows which call was going on when a worker died. A call that takes longer
than its deadline is ended by the kernel's own alarm, whatever it is doing, and even if the parent
is gone.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection

from rewards.calling import call
from rewards.loading import LoadedReward, RewardNameError, load_reward


def main(descriptor: int) -> None:
    """Serve the parent at the other end of a socket until it is closed."""
    os.set_inheritable(descriptor, False)
    connection: Connection = Connection(descriptor)
    specs, deadline, memory_bytes = connection.recv()
    if memory_bytes is not None:
        _bound_memory(memory_bytes)
    # A parent's handler would be inherited; the default action ends the process.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    rewards = []
    for spec in specs:
        try:
            rewards.append(load_reward(spec))
        except RewardNameError as error:
            _send(connection, {"refused": str(error)})
            return
    _send(connection, {"batched": [reward.batched for reward in rewards]})
    _serve(connection, rewards, deadline)


def _serve(connection: Connection, rewards: Sequence[LoadedReward], deadline: float) -> None:
    home = os.getpid()
    while True:
        try:
            steps, calls = connection.recv()
        except (EOFError, OSError):
            return
        for reward, places in calls:
            signal.setitimer(signal.ITIMER_REAL, deadline)
            outcomes = call(rewards[reward], [steps[place] for place in places])
            signal.setitimer(signal.ITIMER_REAL, 0)
            if os.getpid() != home:
                os._exit(0)  # the function forked, and this is the child: it must not answer
            _send(connection, {"outcomes": [asdict(outcome) for outcome in outcomes]})


def _send(connection: Connection, message: Mapping[str, object]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _bound_memory(memory_bytes: int) -> None:
    """Beyond it an allocation fails, which is an exception in the call; best effort off Linux."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (ImportError, ValueError, OSError):
        pass
