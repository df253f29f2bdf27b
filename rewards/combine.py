"""Combines several step rewards into one number and keeps the value of each.

A weight of 0 records a reward without optimising it. The scores contain every reward's name, with
None as the initial value. So a reward that does not apply, or was not called because the completion
broke the format, appears as unscored and never as 0.

- If a user's function fails, the run stops, and `failed_rows` says where the row is saved. An
  exception that silently counts as a reward of 0 would train the policy on the bug. With
  `errors="record"` the failure becomes a null and is counted.
- Any call that exceeds its deadline becomes a null and is counted.
- A built-in that fails on a policy's text becomes a null and is counted, because no text may stop a
  run.

A null adds nothing to the sum. Exception: a failed `answer` is 0, because nothing was verified.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from rewards.by_path import CodeNameError
from rewards.calling import DEADLINE, Outcome, call, short
from rewards.loading import READS, LoadedReward, RewardSpec
from rewards.pool import RewardPool, cores
from rewards.settings import read_settings
from rewards.types import StepContext, StepReward

FORMAT_FAILURE_REWARD = -1.0
"""The reward of a completion that breaks the format (arXiv 2510.25992, section 3)."""

Errors = Literal["stop", "record"]

# The key, in a mapping from reason to reward, for all reasons that are not named.
_OTHERS = "default"

# The value of a built-in that failed: an `answer` check that failed has verified nothing.
_AFTER_FAILURE: dict[str, float] = {"answer": 0.0}

# Every score records the gain over a copy of the previous step, whatever is optimised.
_LIFT = RewardSpec("(lift)", "progress")

# The most steps that one worker gets at a time. Neighbouring steps share an expert step.
_CHUNK = 16

# A week, in seconds. Timers refuse much larger values.
_LONGEST_DEADLINE = 604_800.0

# The largest absolute value of the weighted sum of a step.
_LARGEST = 1e30

# sympy and its parsers take 0.4 GB of address space.
_BUILT_IN_MEMORY = 2 * 2**30

_log = logging.getLogger(__name__)


class RewardError(RuntimeError):
    """A reward function failed. The message names the function, the problem and the step."""


@dataclass(frozen=True)
class StepScore:
    """The scores of one step."""

    rewards: dict[str, float | None]
    """Name -> unweighted value; None where the reward does not apply, failed or was not called."""
    reward: float
    """The weighted sum, on which the policy is trained."""
    lift: float | None = None
    """The similarity minus that of a copy of the previous step; None at the first step."""
    failures: dict[str, str] = field(default_factory=dict)
    """Name -> "deadline" or a description of the failure, for rewards that failed."""


@dataclass(frozen=True)
class RewardCheck:
    """The result of a reward tried on a real row, the expert's own step, before training."""

    name: str
    weight: float
    value: float | None
    seconds: float  # duration of one step
    at_once: int  # steps scored in parallel: 1 if batched or in this process, else `workers`


class RewardSum:
    """The weighted sum of step rewards."""

    def __init__(
        self,
        rewards: Mapping[str | StepReward, object] | Mapping[str, object],
        *,
        deadline: float = 5.0,
        workers: int | None = None,
        errors: Errors = "stop",
        failed_rows: Path | None = None,
        for_training: bool = True,
        format_failure: float | Mapping[str, float] = FORMAT_FAILURE_REWARD,
    ) -> None:
        """Takes the rewards with their weights. Nothing is imported or started yet.

        Args:
            rewards: a mapping. A key is a built-in name, `file.py:name`, `package.module:name` or a
                function. A value is a weight or {weight, options, name}. If `name` is given, it is
                the reward, and the key is its name in the log. Weight 0 records only; a negative
                weight is a penalty.
            deadline: seconds that one call may take, for one step or for a whole batch. It does not
                apply to functions given directly, which run in this process one after another.
            workers: processes for named rewards; None: the number of cores less one, from 1 to 8.
            errors: what to do when a user's function fails: "stop" or "record".
            failed_rows: where to save rows on which a function failed, in one file per function:
                `runs/one.failed` makes `runs/one.failed.NAME.jsonl`.
            for_training: refuse weights that are all 0.
            format_failure: the reward of a completion that breaks the format: one number, or
                reason -> number, with `default` for all other reasons (-1 where it is absent).

        Raises:
            ValueError: a name is unknown or used twice, a weight is not a finite number, there is
                nothing to optimise, or another number is invalid.
        """
        if not isinstance(rewards, Mapping):
            raise ValueError(f"rewards are {rewards!r}; give names with weights: {{name: 1.0}}")
        if not 0 < deadline <= _LONGEST_DEADLINE:
            raise ValueError(
                f"the deadline of rewards is {deadline!r}; give seconds, above 0 and at most "
                f"{_LONGEST_DEADLINE:.0f}"
            )
        if workers is not None and workers < 1:
            raise ValueError(f"{workers!r} workers for rewards; give 1 or more, or none at all")
        if errors not in get_args(Errors):
            raise ValueError(f"errors is {errors!r}; allowed: {', '.join(get_args(Errors))}")
        self._weights: dict[str, float] = {}
        self._local: dict[str, LoadedReward] = {}
        self._specs: dict[str, RewardSpec] = {}
        for key, settings in rewards.items():
            weighted = read_settings(key, settings)
            if weighted.name in self._weights:
                raise ValueError(
                    f"two step rewards are called {weighted.name!r}; the log needs one name for "
                    f"each: rename one of the functions, or write a_name: "
                    f"{{name: {weighted.shown}, weight: 1.0}}"
                )
            self._weights[weighted.name] = weighted.weight
            if isinstance(weighted.reward, RewardSpec):
                self._specs[weighted.name] = weighted.reward
            else:
                self._local[weighted.name] = weighted.reward
        if not self._weights or (for_training and not any(self._weights.values())):
            raise ValueError(
                f"nothing to optimise: the step rewards are {self._weights or 'none at all'}; "
                "give at least one of them a weight other than 0, such as similarity: 1.0"
            )
        self.deadline = float(deadline)
        self.workers = workers or max(1, min(8, cores() - 1))
        self._errors = errors
        by_reason = format_failure if isinstance(format_failure, Mapping) else {}
        self._by_reason = {reason: float(earned) for reason, earned in by_reason.items()}
        if not isinstance(format_failure, Mapping):
            self._by_reason[_OTHERS] = float(format_failure)
        self._failed_rows = failed_rows
        self._reported: set[str] = set()
        self._start_pools()

    def _start_pools(self) -> None:
        """Makes one pool for built-ins and one for users' functions; starts no process yet.

        So a user's function that hangs does not affect the built-ins, and only the built-ins have a
        memory limit."""
        built_in = [*(spec for spec in self._specs.values() if spec.built_in), _LIFT]
        read = {
            attribute for spec in built_in for attribute in READS.get(spec.target, ("metadata",))
        }
        # Metadata cannot be compared. If a built-in may read them, every step is scored separately.
        self._read = None if "metadata" in read else sorted(read)
        theirs = [spec for spec in self._specs.values() if not spec.built_in]
        self._built_in = RewardPool(
            built_in, workers=self.workers, deadline=self.deadline, memory_bytes=_BUILT_IN_MEMORY
        )
        self._theirs = RewardPool(theirs, workers=self.workers, deadline=self.deadline)

    def __getstate__(self) -> dict[str, object]:
        """Returns the state without the worker pools; another process makes its own."""
        own = vars(self).items()
        return {name: value for name, value in own if name not in ("_built_in", "_theirs")}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        vars(self).update(state)
        self._start_pools()

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the rewards, in the order in which they were given."""
        return tuple(self._weights)

    @property
    def weights(self) -> dict[str, float]:
        """Returns the weights: name -> weight."""
        return dict(self._weights)

    def check(self, step: StepContext) -> list[RewardCheck]:
        """Tries every reward twice on a real row, and returns the value and time of the second try.

        Raises:
            ValueError: a reward cannot be found, failed, or took longer than the deadline.
        """
        self.submit([step]).outcomes()
        by_reward = self.submit([step]).outcomes()
        one_at_a_time = set(self._local) | self._theirs.batched_names
        checks = []
        for name, weight in self._weights.items():
            outcome = by_reward[name][0]
            if outcome.failure == DEADLINE:
                raise ValueError(
                    f"step reward {name!r} did not answer within {self.deadline:g} s at "
                    f"{_place(step)}; make it faster, or raise reward_deadline"
                )
            if outcome.failure is not None:
                raise ValueError(self._failure_message(name, [step], [outcome], 0))
            at_once = 1 if name in one_at_a_time else self.workers
            checks.append(RewardCheck(name, weight, outcome.value, outcome.seconds, at_once))
        return checks

    def load(self) -> None:
        """Finds and imports every named reward now instead of with the first step.

        Raises:
            ValueError: a reward cannot be found or used.
        """
        for pool in (self._built_in, self._theirs):
            pool.batched()

    def submit(self, steps: Sequence[StepContext]) -> PendingScores:
        """Starts to score steps in the background; `result()` waits for the scores.

        Functions that were given directly are called only by `result()`, in the caller's thread.

        Raises:
            ValueError: a reward cannot be found.
        """
        # A plain dict can be sent to another process; other mappings may fail.
        batch = [replace(step, metadata=dict(step.metadata)) for step in steps]
        # Rollouts often repeat a step. Built-ins score steps with equal input only once.
        places: dict[object, int] = {}
        once: list[StepContext] = []
        which: list[int] = []
        for place, step in enumerate(batch):
            key = (
                place
                if self._read is None
                else tuple(getattr(step, attribute) for attribute in self._read)
            )
            if key not in places:
                places[key] = len(once)
                once.append(step)
            which.append(places[key])
        # Users' functions may be slow, so their steps are spread evenly over the workers.
        chunk = max(1, min(_CHUNK, math.ceil(len(batch) / self.workers)))
        asked = _ask(self._built_in, once, which, _CHUNK)
        asked += _ask(self._theirs, batch, range(len(batch)), chunk)
        return PendingScores(self, batch, asked)

    def score(self, steps: Sequence[StepContext]) -> list[StepScore]:
        """Returns one score per step, from all rewards.

        If no weighted reward applies, the sum is 0.0. Whether a reward applies mostly depends on
        the problem, so all rollouts of such a group earn the same and dynamic sampling drops it.

        Raises:
            RewardError: a user's function failed (unless errors are recorded). The message names
                the function, the problem and the step.
            ValueError: a reward cannot be found.
        """
        return self.submit(steps).result()

    def failed(self, reason: str) -> StepScore:
        """Returns the score of a completion that broke the format; no reward is called.

        Args:
            reason: how the completion broke the format.
        """
        others = self._by_reason.get(_OTHERS, FORMAT_FAILURE_REWARD)
        earned = self._by_reason.get(reason, others)
        return StepScore(dict.fromkeys(self._weights, None), earned)

    def forget_failed_rows(self) -> None:
        """Removes the files of failed rows that an earlier run with these rewards saved."""
        for name in self._weights:
            if (file := self._failed_file(name)) is not None and file.is_file():
                file.unlink()

    def close(self) -> None:
        """Kills the worker processes, as also happens when the object is garbage-collected."""
        for pool in (self._built_in, self._theirs):
            pool.close()

    def _combine(self, step: StepContext, outcomes: Mapping[str, Outcome]) -> StepScore:
        values: dict[str, float | None] = dict.fromkeys(self._weights, None)
        failures: dict[str, str] = {}
        for name in self._weights:
            outcome = outcomes[name]
            values[name] = outcome.value
            if outcome.failure is not None:
                failures[name] = outcome.failure
                if self._is_built_in(name):
                    values[name] = _AFTER_FAILURE.get(self._specs[name].target)
        total = sum(
            self._weights[name] * value for name, value in values.items() if value is not None
        )
        if not abs(total) <= _LARGEST:
            raise RewardError(
                f"the weighted sum of {values} is {total} at {_place(step)}; it must be a number "
                f"of at most {_LARGEST:g}, which is squared and computed with in float32"
            )
        return StepScore(values, float(total), outcomes[_LIFT.name].value, failures)

    def _is_built_in(self, name: str) -> bool:
        return name in self._specs and self._specs[name].built_in

    def _notice(self, name: str, steps: Sequence[StepContext], outcomes: Sequence[Outcome]) -> None:
        """Raises RewardError if a failure stops the run; otherwise warns once per reward."""
        failed = [place for place, outcome in enumerate(outcomes) if outcome.failure is not None]
        stops = [place for place in failed if outcomes[place].failure != DEADLINE]
        if stops and self._errors == "stop" and not self._is_built_in(name):
            raise RewardError(self._failure_message(name, steps, outcomes, stops[0]))
        if failed and name not in self._reported:
            message = self._failure_message(name, steps, outcomes, failed[0])
            worth = self._specs[name].target if self._is_built_in(name) else ""
            shown = "nulls" if worth not in _AFTER_FAILURE else f"{_AFTER_FAILURE[worth]:g}"
            _log.warning(
                "%s. This and further failures are %s, counted in the metrics", message, shown
            )

    def _failed_file(self, name: str) -> Path | None:
        """Returns the file for rows on which a reward failed; None if rows are not saved."""
        if self._failed_rows is None:
            return None
        ending = f"{re.sub(r'[^0-9A-Za-z_-]', '_', name)}.jsonl"
        return self._failed_rows.with_name(f"{self._failed_rows.name}.{ending}")

    def _failure_message(
        self, name: str, steps: Sequence[StepContext], outcomes: Sequence[Outcome], place: int
    ) -> str:
        """Returns a message about the failure at `place`; saves its rows, to repeat the failure."""
        self._reported.add(name)
        step, outcome = steps[place], outcomes[place]
        failure = outcome.failure or ""
        if failure == DEADLINE:
            failure = f"did not answer within {self.deadline:g} s"
        message = f"step reward {name!r} {failure} at {_place(step)}"
        if failure.startswith("returned"):
            message += "; return a finite float, or None where it does not apply, for each step"
        file = self._failed_file(name)
        if file is None:
            return message
        # A batched function fails on the whole batch, so all of its rows are saved.
        batched = name in self._theirs.batched_names
        rows = (
            [vars(context) for context in steps]
            if batched
            else [vars(step) | {"traceback": outcome.trace}]
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        # JSON keys are strings. Metadata that do not fit do not matter here.
        lines = [json.dumps(row, default=str, skipkeys=True) + "\n" for row in rows]
        file.write_text("".join(lines), encoding="utf-8")
        saved = f"{message}. The {'rows are' if batched else 'row is'} saved"
        spec = self._specs.get(name)
        if spec is None:
            return f"{saved} in {file}"
        settings = json.dumps({"name": spec.target, "weight": 1, "options": dict(spec.options)})
        words = [_python(), "-m", "srl", "score", str(file), f"--rewards.{name}", settings]
        return f"{saved}; to try again: {shlex.join(words)}"


def _python() -> str:
    """Returns how to call this interpreter: `python`, or its path where that is another one."""
    if not sys.executable or shutil.which("python") == sys.executable:
        return "python"
    inside = os.path.relpath(sys.executable)
    return sys.executable if inside.startswith(os.pardir) else inside


class _Asked(NamedTuple):
    """A submitted reward: its index in the pool, its jobs, and which result each step uses."""

    name: str
    place: int
    parts: list[Future[list[list[Outcome]]]]
    which: Sequence[int]

    def outcomes(self) -> list[Outcome]:
        outcomes = [outcome for part in self.parts for outcome in part.result()[self.place]]
        return [outcomes[place] for place in self.which]


def _ask(
    pool: RewardPool, steps: list[StepContext], which: Sequence[int], chunk: int
) -> list[_Asked]:
    """Submits single rewards in chunks over the workers, and each batched reward as one job."""
    batched = pool.batched() if steps else [False] * len(pool.specs)
    single = [place for place, takes_all in enumerate(batched) if not takes_all]
    starts = range(0, len(steps), chunk) if single else ()
    parts = [pool.submit(steps[start : start + chunk], single) for start in starts]
    whole = {n: [pool.submit(steps, [n])] for n, takes_all in enumerate(batched) if takes_all}
    return [
        _Asked(spec.name, place, whole.get(place, parts), which)
        for place, spec in enumerate(pool.specs)
    ]


class PendingScores:
    """Scores that are being computed."""

    def __init__(self, rewards: RewardSum, steps: list[StepContext], asked: list[_Asked]) -> None:
        self._rewards, self._steps, self._asked = rewards, steps, asked

    def outcomes(self) -> dict[str, list[Outcome]]:
        """Waits for the outcomes and returns them: name -> one outcome per step.

        Raises:
            RewardError: the steps cannot be sent to a worker, or a worker had to be replaced and a
                reward could not be loaded again or has changed.
        """
        local = self._rewards._local
        by_reward = {name: call(reward, self._steps) for name, reward in local.items()}
        try:
            return by_reward | {asked.name: asked.outcomes() for asked in self._asked}
        except CodeNameError as error:  # the reward could be loaded at the start
            raise RewardError(str(error)) from error

    def result(self) -> list[StepScore]:
        """Waits for the scores and returns one per step.

        Raises:
            RewardError: see `RewardSum.score`.
        """
        by_reward = self.outcomes()
        for name in self._rewards.names:
            self._rewards._notice(name, self._steps, by_reward[name])
        return [
            self._rewards._combine(
                step, {name: outcomes[place] for name, outcomes in by_reward.items()}
            )
            for place, step in enumerate(self._steps)
        ]


def _place(step: StepContext) -> str:
    if not step.problem:
        return f"the step {short(step.action)!r}"
    return f"step {step.step_index + 1} of {step.num_steps} of problem {short(step.problem)!r}"
