"""Several step rewards as one number, and what each of them said.

A weight of 0 records a reward without optimising it. Every name stands in the scores from the
start as None, so a reward that does not apply (or was never asked, because the completion broke
the format) shows as unscored and never as 0.

A function of the user's that fails stops the run, with the row saved: an exception silently read as
a reward of 0 would train the policy on the bug. `errors="record"` makes it a null that is counted.
A call that outlives its deadline is a null that is counted, for everybody; so is a built-in that
trips over what a policy wrote, because no text may stop a run.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Literal, get_args

from rewards.calling import DEADLINE, Outcome, call
from rewards.loading import (
    BUILT_INS,
    LoadedReward,
    RewardNameError,
    RewardSpec,
    bind,
    check_target,
)
from rewards.pool import RewardPool
from rewards.types import StepContext, StepReward

FORMAT_FAILURE_REWARD = -1.0
"""What a completion that breaks the format earns (arXiv 2510.25992, section 3)."""

Errors = Literal["stop", "record"]

# A check that had to be killed has verified nothing.
_AFTER_FAILURE: dict[str, float] = {"answer": 0.0}

# Every score says what the step gains over a copy of the one before it, whatever is optimised.
_LIFT = RewardSpec("(lift)", "progress")

# Steps that one worker gets at a time: neighbours share an expert's step, and with it the cache.
_CHUNK = 16

# sympy and its parsers take 0.4 GB of address space.
_BUILT_IN_MEMORY = 2 * 2**30

_log = logging.getLogger(__name__)


class RewardError(RuntimeError):
    """A reward function failed; the message names the function, the problem and the step."""


@dataclass(frozen=True)
class StepScore:
    """What one step earned.

    Attributes:
        rewards: name -> unweighted value; None where the reward does not apply or was not asked.
        reward: the weighted sum, which is what the policy is trained on.
        lift: similarity minus that of a copy of the previous step; None at the first step.
        failures: name -> "deadline" or what went wrong, for rewards that failed.
    """

    rewards: dict[str, float | None]
    reward: float
    lift: float | None = None
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardCheck:
    """A reward tried on a real row before anything is trained.

    Attributes:
        name: the reward.
        weight: its weight.
        value: what it said of the expert's own step.
        seconds: how long one step took.
    """

    name: str
    weight: float
    value: float | None
    seconds: float


class RewardSum:
    """The weighted sum of step rewards."""

    def __init__(
        self,
        rewards: Mapping[str | StepReward, object] | Mapping[str, object],
        *,
        deadline: float = 5.0,
        workers: int | None = None,
        errors: Errors = "stop",
        error_file: Path | None = None,
    ) -> None:
        """Take the rewards with their weights. Nothing is imported or started yet.

        Args:
            rewards: built-in name, `file.py:name`, `package.module:name` or function -> weight, or
                -> {weight, options, name}: then the key is what the log calls it, and `name` (by
                default the key) what it is. Weight 0 records only; a negative one punishes.
            deadline: seconds that one call may take, of one step or of a whole batch. Not for
                functions given as such, which run in this process, after one another.
            workers: processes for named rewards; None: one a core, less one, from 1 to 8.
            errors: what to do when a user's function fails: "stop" or "record".
            error_file: where rows are written on which a function failed, to reproduce it.

        Raises:
            ValueError: an unknown or doubled name, a weight that is no finite number, nothing to
                optimise, or a number that cannot be.
        """
        if not 0 < deadline < math.inf:
            raise ValueError(f"the deadline of rewards is {deadline!r}; give seconds, above 0")
        if workers is not None and workers < 1:
            raise ValueError(f"{workers!r} workers for rewards; give 1 or more, or none at all")
        if errors not in get_args(Errors):
            raise ValueError(f"errors is {errors!r}; allowed: {', '.join(get_args(Errors))}")
        self._weights: dict[str, float] = {}
        self._local: dict[str, LoadedReward] = {}
        self._specs: dict[str, RewardSpec] = {}
        for reward, settings in rewards.items():
            self._add(reward, settings)
        if not any(self._weights.values()):
            raise ValueError(
                f"nothing to optimise: the step rewards are {self._weights or 'none at all'}; "
                "give at least one of them a weight other than 0, such as similarity: 1.0"
            )
        self.deadline = float(deadline)
        self.workers = workers or max(1, min(8, _cores() - 1))
        self._errors = errors
        self.error_file = error_file
        self._saved: set[str] = set()
        # Two pools: a user's function that hangs takes no built-in down with it, and only what
        # reads hostile text is bounded in memory.
        self._pools: list[tuple[list[RewardSpec], RewardPool]] = []
        built_in = [spec for spec in self._specs.values() if spec.built_in]
        theirs = [spec for spec in self._specs.values() if not spec.built_in]
        for specs, memory in (([*built_in, _LIFT], _BUILT_IN_MEMORY), (theirs, None)):
            if specs:
                pool = RewardPool(
                    specs, workers=self.workers, deadline=self.deadline, memory_bytes=memory
                )
                self._pools.append((specs, pool))

    def _add(self, reward: str | StepReward, settings: object) -> None:
        weight: object = settings
        options: object = {}
        target = reward
        key = None
        if isinstance(settings, Mapping):
            unknown = sorted(set(map(str, settings)) - {"weight", "options", "name"})
            if unknown or "weight" not in settings:
                raise ValueError(
                    f"step reward {reward!r} is {dict(settings)}; give a weight, or "
                    "{weight: 0.5, options: {...}, name: similarity}"
                    + (f"; unknown: {', '.join(unknown)}" if unknown else "")
                )
            weight, options = settings["weight"], settings.get("options") or {}
            if "name" in settings:
                key, target = str(reward), settings["name"]
        if not isinstance(options, Mapping):
            raise ValueError(f"the options of step reward {reward!r} are {options!r}, no mapping")
        if isinstance(target, str):
            check_target(target)
            name = key or (target if target in BUILT_INS else target.rpartition(":")[2])
            spec = RewardSpec(name, target, dict(options))
        else:
            name = key or _name_of(target)
        if name in self._weights:
            raise ValueError(
                f"two step rewards are called {name!r}; the log needs one name for each: rename "
                f"one of the functions, or write a_name: {{name: {name}, weight: 1.0}}"
            )
        self._weights[name] = _finite_weight(name, weight)
        if not isinstance(target, str):
            built_in = _built_in_of(target)
            if built_in is None:
                self._local[name] = bind(target, options, f"step reward {name!r}")
                return
            spec = RewardSpec(name, built_in, dict(options))
        self._specs[name] = spec

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the rewards, in the order they were given."""
        return tuple(self._weights)

    @property
    def weights(self) -> dict[str, float]:
        """Name -> weight."""
        return dict(self._weights)

    def check(self, step: StepContext) -> list[RewardCheck]:
        """Try every reward, twice, on a real row; the second time is what a call takes.

        Raises:
            ValueError: a reward cannot be found, failed, or took longer than the deadline.
        """
        self._ask([step])
        found = self._ask([step])
        checks = []
        for name, weight in self._weights.items():
            outcome = found[name][0]
            if outcome.failure == DEADLINE:
                raise ValueError(
                    f"step reward {name!r} did not answer within {self.deadline:g} s at "
                    f"{_place(step)}; make it faster, or raise reward_deadline"
                )
            if outcome.failure is not None:
                raise ValueError(self._told(name, step, outcome))
            checks.append(RewardCheck(name, weight, outcome.value, outcome.seconds))
        return checks

    def submit(self, steps: Sequence[StepContext]) -> PendingScores:
        """Start to score steps beside whatever comes next; `result()` waits for the scores.

        Functions that were given as such are called only then, in the caller's thread.
        """
        batch = list(steps)
        chunks = [batch[i : i + _CHUNK] for i in range(0, len(batch), _CHUNK)]
        # A batched reward gets what was handed in together, whole.
        started: list[tuple[list[RewardSpec], list[Future[list[list[Outcome]]]]]] = []
        for specs, pool in self._pools:
            parts = [batch] if any(pool.batched()) and batch else chunks
            started.append((specs, [pool.submit(part) for part in parts]))
        return PendingScores(self, batch, started)

    def score(self, steps: Sequence[StepContext]) -> list[StepScore]:
        """Ask every reward about each of these steps; one score a step.

        Where no weighted reward applies, the sum is the empty one, 0.0. Whether a reward applies
        mostly depends on the problem, so such a group is flat and dynamic sampling drops it.

        Raises:
            RewardError: a user's function failed (unless errors are recorded); names the function,
                the problem and the step.
            ValueError: a reward cannot be found.
        """
        return self.submit(steps).result()

    def failed(self) -> StepScore:
        """The score of a completion that broke the format: no reward is asked."""
        return StepScore(dict.fromkeys(self._weights, None), FORMAT_FAILURE_REWARD)

    def close(self) -> None:
        """End the worker processes. Otherwise they end with the last reference to this."""
        for _, pool in self._pools:
            pool.close()

    def _ask(self, steps: list[StepContext]) -> dict[str, list[Outcome]]:
        return self.submit(steps).outcomes()

    def _call_local(self, steps: list[StepContext]) -> dict[str, list[Outcome]]:
        return {name: call(reward, steps) for name, reward in self._local.items()}

    def _combine(self, step: StepContext, outcomes: Mapping[str, Outcome]) -> StepScore:
        values: dict[str, float | None] = dict.fromkeys(self._weights, None)
        failures: dict[str, str] = {}
        for name in self._weights:
            outcome = outcomes[name]
            if outcome.failure is None:
                values[name] = outcome.value
                continue
            failures[name] = outcome.failure
            spec = self._specs.get(name)
            if spec is not None and spec.built_in:
                values[name] = _AFTER_FAILURE.get(spec.target)
            elif outcome.failure != DEADLINE:
                self._tell(name, step, outcome)
        total = sum(
            self._weights[name] * value for name, value in values.items() if value is not None
        )
        if not math.isfinite(total):
            raise RewardError(f"the weighted sum of {values} is {total} at {_place(step)}")
        return StepScore(values, float(total), outcomes[_LIFT.name].value, failures)

    def _tell(self, name: str, step: StepContext, outcome: Outcome) -> None:
        """A user's function failed: stop, or record it, with one warning."""
        if self._errors == "record" and name in self._saved:
            return
        message = self._told(name, step, outcome)
        if self._errors == "stop":
            raise RewardError(message)
        _log.warning("%s. This and further failures are counted as null", message)

    def _told(self, name: str, step: StepContext, outcome: Outcome) -> str:
        """The failure in words; the row it happened on is written down, once for each reward."""
        self._saved.add(name)
        message = f"step reward {name!r} {outcome.failure} at {_place(step)}"
        if outcome.failure and outcome.failure.startswith("returned"):
            message += "; return a finite float, or None where it does not apply, for each step"
        if self.error_file is None:
            return message
        row = {**asdict(replace(step, metadata=dict(step.metadata))), "traceback": outcome.trace}
        self.error_file.parent.mkdir(parents=True, exist_ok=True)
        self.error_file.write_text(json.dumps(row, default=str) + "\n", encoding="utf-8")
        spec = self._specs.get(name)
        again = f" --rewards.{spec.target} 1" if spec else ""
        return (
            f"{message}. The row is saved; to try again: "
            f"python -m srl score {self.error_file}{again}"
        )


class PendingScores:
    """Scores on their way."""

    def __init__(
        self,
        rewards: RewardSum,
        steps: list[StepContext],
        started: list[tuple[list[RewardSpec], list[Future[list[list[Outcome]]]]]],
    ) -> None:
        self._rewards = rewards
        self._steps = steps
        self._started = started

    def outcomes(self) -> dict[str, list[Outcome]]:
        """Name -> one outcome a step; waits for them."""
        found = self._rewards._call_local(self._steps)
        for specs, futures in self._started:
            parts = [future.result() for future in futures]
            for number, spec in enumerate(specs):
                found[spec.name] = [outcome for part in parts for outcome in part[number]]
        return found

    def result(self) -> list[StepScore]:
        """One score a step; waits for them.

        Raises:
            RewardError: see `RewardSum.score`.
        """
        found = self.outcomes()
        return [
            self._rewards._combine(step, {name: said[place] for name, said in found.items()})
            for place, step in enumerate(self._steps)
        ]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # what this process may use; not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _built_in_of(function: StepReward) -> str | None:
    """The name of a built-in that was passed as a function."""
    place = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    return next((name for name, target in BUILT_INS.items() if target == place), None)


def _name_of(function: object) -> str:
    """A function's own name; for a `partial` that of the function inside, else that of the class.

    A built-in keeps the name it has in `BUILT_INS`, however it was passed.
    """
    if not callable(function):
        raise RewardNameError(
            f"a step reward is a name or a function of a StepContext, not {function!r}; "
            f"built in: {', '.join(BUILT_INS)}"
        )
    built_in = _built_in_of(function)
    if built_in is not None:
        return built_in
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _finite_weight(name: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise ValueError(
            f"the weight of step reward {name!r} is {weight!r}; "
            "give a finite number (0 records without optimising)"
        )
    return float(weight)


def _place(step: StepContext) -> str:
    problem = step.problem if len(step.problem) <= 80 else step.problem[:77] + "..."
    return f"step {step.step_index + 1} of {step.num_steps} of problem {problem!r}"
