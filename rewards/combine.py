"""Several step rewards as one number, and what each of them said.

A weight of 0 records a reward without optimising it. Every name stands in the scores from the
start as None, so a reward that does not apply (or was never asked, because the completion broke
the format) shows as unscored and never as 0.

A function of the user's that fails stops the run, with the row saved: an exception silently read as
a reward of 0 would train the policy on the bug. `errors="record"` makes it a null that is counted.
A call that outlives its deadline is a null that is counted, for everybody; so is a built-in that
trips over what a policy wrote, because no text may stop a run. A null adds nothing to the sum.
But `answer` is 0 then: a check that had to be killed has verified nothing.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
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
"""What a completion that breaks the format earns (arXiv 2510.25992, section 3)."""

Errors = Literal["stop", "record"]

# In what broken formats earn by reason: all reasons that are not named.
_OTHERS = "default"

# A check that had to be killed has verified nothing.
_AFTER_FAILURE: dict[str, float] = {"answer": 0.0}

# Every score says what the step gains over a copy of the one before it, whatever is optimised.
_LIFT = RewardSpec("(lift)", "progress")

# Steps that one worker gets at a time, at most: neighbours share an expert's step.
_CHUNK = 16

# A week, in seconds; timers refuse far larger ones.
_LONGEST_DEADLINE = 604_800.0

# The largest sum that a step may earn.
_LARGEST = 1e30

# sympy and its parsers take 0.4 GB of address space.
_BUILT_IN_MEMORY = 2 * 2**30

_log = logging.getLogger(__name__)


class RewardError(RuntimeError):
    """A reward function failed; the message names the function, the problem and the step."""


@dataclass(frozen=True)
class StepScore:
    """What one step earned."""

    rewards: dict[str, float | None]
    """Name -> unweighted value; None where the reward does not apply or was not asked."""
    reward: float
    """The weighted sum, which is what the policy is trained on."""
    lift: float | None = None
    """Similarity minus that of a copy of the previous step; None at the first step."""
    failures: dict[str, str] = field(default_factory=dict)
    """Name -> "deadline" or what went wrong, for rewards that failed."""


@dataclass(frozen=True)
class RewardCheck:
    """A reward tried on a real row, the expert's own step, before anything is trained."""

    name: str
    weight: float
    value: float | None
    seconds: float  # how long one step took
    at_once: int  # steps asked about at a time: 1 if batched or in this process, else the workers


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
        """Take the rewards with their weights. Nothing is imported or started yet.

        Args:
            rewards: built-in name, `file.py:name`, `package.module:name` or function -> weight, or
                -> {weight, options, name}: then the key is what the log calls it, and `name` (by
                default the key) what it is. Weight 0 records only; a negative one punishes.
            deadline: seconds that one call may take, of one step or of a whole batch. Not for
                functions given as such, which run in this process, one call after another.
            workers: processes for named rewards; None: one a core, less one, from 1 to 8.
            errors: what to do when a user's function fails: "stop" or "record".
            failed_rows: where rows are saved on which a function failed, for each function its own
                file: `runs/one.failed` makes `runs/one.failed.NAME.jsonl`.
            for_training: refuse weights that are all 0.
            format_failure: what a completion that breaks the format earns as a whole: one number,
                or reason -> number, with `default` for all other reasons (-1 where it is absent).

        Raises:
            ValueError: an unknown or doubled name, a weight that is no finite number, nothing to
                optimise, or a number that cannot be.
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
            one = read_settings(key, settings)
            if one.name in self._weights:
                raise ValueError(
                    f"two step rewards are called {one.name!r}; the log needs one name for each: "
                    f"rename one of the functions, or write a_name: {{name: {one.shown}, "
                    "weight: 1.0}"
                )
            self._weights[one.name] = one.weight
            if isinstance(one.reward, RewardSpec):
                self._specs[one.name] = one.reward
            else:
                self._local[one.name] = one.reward
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
        self._told_of: set[str] = set()
        self._start_pools()

    def _start_pools(self) -> None:
        """Two of them: a user's function that hangs takes no built-in down with it, and only what
        reads hostile text is bounded in memory. No process is started yet."""
        built_in = [*(spec for spec in self._specs.values() if spec.built_in), _LIFT]
        read = {one for spec in built_in for one in READS.get(spec.target, ("metadata",))}
        # Metadata cannot be compared, so a built-in that may look at them is asked about each step.
        self._read = None if "metadata" in read else sorted(read)
        theirs = [spec for spec in self._specs.values() if not spec.built_in]
        self._built_in = RewardPool(
            built_in, workers=self.workers, deadline=self.deadline, memory_bytes=_BUILT_IN_MEMORY
        )
        self._theirs = RewardPool(theirs, workers=self.workers, deadline=self.deadline)

    def __getstate__(self) -> dict[str, object]:
        """Without the workers: another process starts its own."""
        own = vars(self).items()
        return {name: value for name, value in own if name not in ("_built_in", "_theirs")}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        vars(self).update(state)
        self._start_pools()

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
        self.submit([step]).outcomes()
        found = self.submit([step]).outcomes()
        one_at_a_time = set(self._local) | self._theirs.batched_names
        checks = []
        for name, weight in self._weights.items():
            outcome = found[name][0]
            if outcome.failure == DEADLINE:
                raise ValueError(
                    f"step reward {name!r} did not answer within {self.deadline:g} s at "
                    f"{_place(step)}; make it faster, or raise reward_deadline"
                )
            if outcome.failure is not None:
                raise ValueError(self._told(name, [step], [outcome], 0))
            at_once = 1 if name in one_at_a_time else self.workers
            checks.append(RewardCheck(name, weight, outcome.value, outcome.seconds, at_once))
        return checks

    def load(self) -> None:
        """Find and import every reward now rather than with the first step.

        Raises:
            ValueError: one of them cannot be found or used.
        """
        for pool in (self._built_in, self._theirs):
            pool.batched()

    def submit(self, steps: Sequence[StepContext]) -> PendingScores:
        """Start to score steps beside whatever comes next; `result()` waits for the scores.

        Functions that were given as such are called only then, in the caller's thread.

        Raises:
            ValueError: a reward cannot be found.
        """
        # Plain mappings: others may not survive the way to another process.
        batch = [replace(step, metadata=dict(step.metadata)) for step in steps]
        # Rollouts often repeat a step: what is equal to all built-ins here is scored once.
        places: dict[object, int] = {}
        once: list[StepContext] = []
        which: list[int] = []
        for place, step in enumerate(batch):
            key = place if self._read is None else tuple(getattr(step, one) for one in self._read)
            if key not in places:
                places[key] = len(once)
                once.append(step)
            which.append(places[key])
        # Evenly, since these may be slow.
        chunk = max(1, min(_CHUNK, math.ceil(len(batch) / self.workers)))
        asked = _ask(self._built_in, once, which, _CHUNK)
        asked += _ask(self._theirs, batch, range(len(batch)), chunk)
        return PendingScores(self, batch, asked)

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

    def failed(self, reason: str) -> StepScore:
        """The score of a completion that broke the format: no reward is asked.

        Args:
            reason: how it broke the format.
        """
        others = self._by_reason.get(_OTHERS, FORMAT_FAILURE_REWARD)
        earned = self._by_reason.get(reason, others)
        return StepScore(dict.fromkeys(self._weights, None), earned)

    def forget_failed_rows(self) -> None:
        """Remove what an earlier run with these rewards has saved of rows that one failed on."""
        for name in self._weights:
            if (file := self._failed_file(name)) is not None and file.is_file():
                file.unlink()

    def close(self) -> None:
        """Kill the worker processes. Otherwise done with the last reference to this."""
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

    def _notice(self, name: str, steps: Sequence[StepContext], said: Sequence[Outcome]) -> None:
        """A reward failed: stop, or record it, with one warning."""
        failed = [place for place, outcome in enumerate(said) if outcome.failure is not None]
        stops = [place for place in failed if said[place].failure != DEADLINE]
        if stops and self._errors == "stop" and not self._is_built_in(name):
            raise RewardError(self._told(name, steps, said, stops[0]))
        if failed and name not in self._told_of:
            message = self._told(name, steps, said, failed[0])
            worth = self._specs[name].target if self._is_built_in(name) else ""
            shown = "nulls" if worth not in _AFTER_FAILURE else f"{_AFTER_FAILURE[worth]:g}"
            _log.warning(
                "%s. This and further failures are %s, counted in the metrics", message, shown
            )

    def _failed_file(self, name: str) -> Path | None:
        """Where the rows are saved that a reward failed on."""
        if self._failed_rows is None:
            return None
        ending = f"{re.sub(r'[^0-9A-Za-z_-]', '_', name)}.jsonl"
        return self._failed_rows.with_name(f"{self._failed_rows.name}.{ending}")

    def _told(
        self, name: str, steps: Sequence[StepContext], said: Sequence[Outcome], place: int
    ) -> str:
        """The failure at `place` in words; the first of each reward is saved, to be repeated."""
        self._told_of.add(name)
        step, outcome = steps[place], said[place]
        failure = outcome.failure or ""
        if failure == DEADLINE:
            failure = f"did not answer within {self.deadline:g} s"
        message = f"step reward {name!r} {failure} at {_place(step)}"
        if failure.startswith("returned"):
            message += "; return a finite float, or None where it does not apply, for each step"
        file = self._failed_file(name)
        if file is None:
            return message
        # A batched function fails with all that it was given.
        batched = name in self._theirs.batched_names
        rows = (
            [vars(one) for one in steps] if batched else [vars(step) | {"traceback": outcome.trace}]
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        # Keys of JSON are texts; what else there is in the metadata does not matter here.
        lines = [json.dumps(row, default=str, skipkeys=True) + "\n" for row in rows]
        file.write_text("".join(lines), encoding="utf-8")
        saved = f"{message}. The {'rows are' if batched else 'row is'} saved"
        spec = self._specs.get(name)
        if spec is None:
            return f"{saved} in {file}"
        settings = json.dumps({"name": spec.target, "weight": 1, "options": dict(spec.options)})
        words = ["python", "-m", "srl", "score", str(file), f"--rewards.{name}", settings]
        return f"{saved}; to try again: {shlex.join(words)}"


class _Asked(NamedTuple):
    """One reward under way: its place in its pool, its calls, and what each step asked for."""

    name: str
    place: int
    parts: list[Future[list[list[Outcome]]]]
    which: Sequence[int]

    def outcomes(self) -> list[Outcome]:
        said = [outcome for part in self.parts for outcome in part.result()[self.place]]
        return [said[place] for place in self.which]


def _ask(
    pool: RewardPool, steps: list[StepContext], which: Sequence[int], chunk: int
) -> list[_Asked]:
    """Single rewards in chunks over the workers, each batched one as a job of its own."""
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
    """Scores on their way."""

    def __init__(self, rewards: RewardSum, steps: list[StepContext], asked: list[_Asked]) -> None:
        self._rewards, self._steps, self._asked = rewards, steps, asked

    def outcomes(self) -> dict[str, list[Outcome]]:
        """Name -> one outcome a step; waits for them.

        Raises:
            RewardError: the steps cannot be handed over, or a worker had to be replaced and a
                reward is not what it was.
        """
        local = self._rewards._local
        found = {name: call(reward, self._steps) for name, reward in local.items()}
        try:
            return found | {asked.name: asked.outcomes() for asked in self._asked}
        except CodeNameError as error:  # it was there at the start
            raise RewardError(str(error)) from error

    def result(self) -> list[StepScore]:
        """One score a step; waits for them.

        Raises:
            RewardError: see `RewardSum.score`.
        """
        found = self.outcomes()
        for name in self._rewards.names:
            self._rewards._notice(name, self._steps, found[name])
        return [
            self._rewards._combine(step, {name: said[place] for name, said in found.items()})
            for place, step in enumerate(self._steps)
        ]


def _place(step: StepContext) -> str:
    if not step.problem:
        return f"the step {short(step.action)!r}"
    return f"step {step.step_index + 1} of {step.num_steps} of problem {short(step.problem)!r}"
