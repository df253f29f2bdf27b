"""Calls the methods of an environment, and checks the values that they return.

An environment may be a user's own code. If it raises an error or returns a wrong value, one message
names the method, before that value can reach a log or a prompt.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from environments.environment import Environment, Verdict, environment_of
from environments.types import DataError, Step, Trajectory


def context_of(trajectory: Trajectory, steps: Sequence[Step]) -> tuple[Step, ...]:
    """Returns the steps that the policy reads before it writes the next one.

    Raises:
        DataError: the environment raised an error, or returned no steps. The other functions here
            that call an environment raise it likewise.
    """
    environment = environment_of(trajectory)
    with asking(environment, "context"):
        context = tuple(environment.context(trajectory, steps))
    if not all(isinstance(step, Step) for step in context):
        raise _wrong(environment, "context", context, "a sequence of Step")
    return context


def reads_all_steps(trajectory: Trajectory) -> bool:
    """Returns whether the policy reads all steps before the next one. Then contexts only grow."""
    context = environment_of(trajectory).context
    return getattr(context, "__func__", None) is Environment.context


def is_finished(trajectory: Trajectory, steps: Sequence[Step]) -> bool:
    """Returns whether an attempt ends with the last of these steps."""
    environment = environment_of(trajectory)
    with asking(environment, "finished"):
        return bool(environment.finished(trajectory, steps))


def observation_of(trajectory: Trajectory, steps: Sequence[Step]) -> str:
    """Returns the environment's reply to the last of these steps."""
    environment = environment_of(trajectory)
    with asking(environment, "observe"):
        observation: object = environment.observe(trajectory, steps)
    if not isinstance(observation, str):
        raise _wrong(environment, "observe", observation, "a text, '' where the world says nothing")
    return observation


def verdict_on(trajectory: Trajectory, steps: Sequence[Step]) -> Verdict:
    """Returns the environment's verdict on an attempt."""
    environment = environment_of(trajectory)
    with asking(environment, "judge"):
        verdict: object = environment.judge(trajectory, steps)
    if (
        not isinstance(verdict, Verdict)
        or not isinstance(verdict.correct, bool | None)
        or not isinstance(verdict.answer, str | None)
        or not isinstance(verdict.why, str)
    ):
        wanted = "Verdict(correct, answer, why): True, False or None; a text or None; a text"
        raise _wrong(environment, "judge", verdict, wanted)
    return verdict


def try_environment(trajectory: Trajectory) -> None:
    """Calls the methods on the expert's first step and on its whole solution.

    A fault shows here, before other code relies on the results.
    """
    for steps in (trajectory.steps[:1], trajectory.steps):
        context_of(trajectory, steps)
        verdict_on(trajectory, steps)
        if not is_finished(trajectory, steps):
            observation_of(trajectory, steps)
    verdict_on(trajectory, ())  # no steps: the attempt broke the format at once


@contextmanager
def asking(environment: Environment, method: str) -> Iterator[None]:
    """Turns whatever error the method raises into a DataError that names it and the line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a user's code may raise anything
        *_, own = traceback.extract_tb(error.__traceback__)
        raise DataError(
            f"environment {type(environment).__name__}: its method {method} raised "
            f"{type(error).__name__}: {error} ({Path(own.filename).name}, line {own.lineno})"
        ) from error


def _wrong(environment: Environment, method: str, returned: object, wanted: str) -> DataError:
    return DataError(
        f"environment {type(environment).__name__}: its method {method} returned "
        f"{returned!r:.200}; it must return {wanted}"
    )
