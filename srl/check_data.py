"""A check of trajectories without a model: what `check-data` shows before anyone trains.

It counts what was kept and why the rest was dropped, tests that every expert step scores exactly
1.0 against itself, and measures the floors of the similarity reward on this very data: what a step
of another problem scores, a copy of the previous step, and the right step with one step too many. A
reward is only readable beside its floors (paper section 3.2 gives the reward, not the floors).
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from environments.types import LoadReport, Trajectory
from rewards.similarity import similarity
from srl.errors import UsageError


@dataclass(frozen=True)
class Spread:
    """The smallest, the middle and the largest of some counts."""

    low: int
    median: float
    high: int


@dataclass(frozen=True)
class DataCheck:
    """What the check found.

    Attributes:
        rows: rows read.
        kept: rows that became trajectories.
        dropped: reason -> rows dropped for it.
        notes: what the loader did to rows it kept -> rows.
        trajectories: trajectories checked.
        problems: different problems among them.
        steps: expert steps.
        steps_per_trajectory: their spread over trajectories.
        step_chars: characters of a step.
        with_answer: trajectories that state a final answer.
        repeated_steps: steps equal to the one before them (copying would score 1.0).
        self_score_min: the smallest score of an expert step against itself; must be 1.0.
        self_score_failures: steps that do not score exactly 1.0 against themselves.
        pairs: places at which the floors were measured.
        floor_unrelated: mean similarity of a step of another problem; None with one problem only.
        floor_previous: mean similarity of a copy of the previous step.
        floor_extra: mean similarity of the right step followed by one more step.
    """

    rows: int
    kept: int
    dropped: Counter[str]
    notes: Counter[str] = field(repr=False)
    trajectories: int
    problems: int
    steps: int
    steps_per_trajectory: Spread
    step_chars: Spread
    with_answer: int
    repeated_steps: int
    self_score_min: float
    self_score_failures: int
    pairs: int
    floor_unrelated: float | None
    floor_previous: float | None
    floor_extra: float | None


def check_data(
    trajectories: Sequence[Trajectory],
    report: LoadReport,
    *,
    seed: int = 0,
    max_pairs: int = 500,
) -> DataCheck:
    """Checks every step against itself, and the floors at up to `max_pairs` places.

    The places are drawn without repeats from all neighbouring steps; equal seeds give equal floors.

    Raises:
        UsageError: there are no trajectories, or `max_pairs` is not positive.
    """
    if not trajectories:
        raise UsageError("There are no trajectories to check; see the reasons in the load report.")
    if max_pairs < 1:
        raise UsageError(f"max_pairs is {max_pairs}; it must be 1 or more.")
    self_scores = [similarity(step, step) for one in trajectories for step in one.steps]
    places = [
        (row, index) for row, one in enumerate(trajectories) for index in range(1, len(one.steps))
    ]
    rng = random.Random(seed)
    drawn = rng.sample(places, min(max_pairs, len(places)))
    notes: Counter[str] = Counter()
    for one in trajectories:
        noted = one.metadata.get("notes")
        if isinstance(noted, tuple):
            notes.update(str(note) for note in noted)
    return DataCheck(
        rows=report.rows,
        kept=report.kept,
        dropped=Counter(report.dropped),
        notes=notes,
        trajectories=len(trajectories),
        problems=len({one.problem_id for one in trajectories}),
        steps=len(self_scores),
        steps_per_trajectory=_spread(len(one.steps) for one in trajectories),
        step_chars=_spread(len(step) for one in trajectories for step in one.steps),
        with_answer=sum(one.answer is not None for one in trajectories),
        repeated_steps=sum(
            trajectories[row].steps[index] == trajectories[row].steps[index - 1]
            for row, index in places
        ),
        self_score_min=min(self_scores, default=1.0),
        self_score_failures=sum(score != 1.0 for score in self_scores),
        pairs=len(drawn),
        floor_unrelated=_unrelated(trajectories, drawn, rng),
        floor_previous=_mean(
            similarity(trajectories[row].steps[index - 1], trajectories[row].steps[index])
            for row, index in drawn
        ),
        floor_extra=_mean(
            similarity("\n".join(trajectories[row].steps[index - 1 : index + 1]), expert)
            for row, index in drawn
            for expert in [trajectories[row].steps[index - 1]]
        ),
    )


def _unrelated(
    trajectories: Sequence[Trajectory], drawn: Sequence[tuple[int, int]], rng: random.Random
) -> float | None:
    """The mean similarity of a random step of another problem to the step at each drawn place."""
    ids = [one.problem_id for one in trajectories]
    if len(set(ids)) < 2:
        return None
    scores: list[float] = []
    for row, index in drawn:
        other = rng.randrange(len(trajectories))
        while ids[other] == ids[row] or not trajectories[other].steps:
            other = rng.randrange(len(trajectories))
        scores.append(
            similarity(rng.choice(trajectories[other].steps), trajectories[row].steps[index])
        )
    return _mean(scores)


def _mean(scores: Iterable[float]) -> float | None:
    found = list(scores)
    return statistics.fmean(found) if found else None


def _spread(counts: Iterable[int]) -> Spread:
    found = list(counts) or [0]
    return Spread(min(found), statistics.median(found), max(found))


def render(check: DataCheck) -> str:
    """The check as a plain text table of two columns."""
    lines: list[tuple[str, str]] = [
        ("rows read", f"{check.rows:,}"),
        ("rows kept", f"{check.kept:,}"),
        ("rows dropped", f"{check.dropped.total():,}"),
        *((f"  {reason}", f"{count:,}") for reason, count in check.dropped.most_common()),
        *((f"note: {note}", f"{count:,}") for note, count in check.notes.most_common()),
        ("trajectories", f"{check.trajectories:,}"),
        ("different problems", f"{check.problems:,}"),
        ("with a final answer", f"{check.with_answer:,}"),
        ("expert steps", f"{check.steps:,}"),
        ("steps per trajectory", _render_spread(check.steps_per_trajectory)),
        ("characters per step", _render_spread(check.step_chars)),
        ("steps that repeat the one before", f"{check.repeated_steps:,}"),
        ("expert step against itself", _render_self_score(check)),
        (f"floors over {check.pairs:,} places:", ""),
        ("  a step of another problem", _render_floor(check.floor_unrelated)),
        ("  a copy of the previous step", _render_floor(check.floor_previous)),
        ("  the right step and one more", _render_floor(check.floor_extra)),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)


def _render_spread(spread: Spread) -> str:
    return f"{spread.low:,} to {spread.high:,}, median {spread.median:g}"


def _render_self_score(check: DataCheck) -> str:
    if check.self_score_failures == 0:
        return "exactly 1.0 for every step"
    return (
        f"FAILS for {check.self_score_failures:,} steps, lowest {check.self_score_min:.4f}: "
        "they can never be fully rewarded"
    )


def _render_floor(floor: float | None) -> str:
    return "-" if floor is None else f"{floor:.3f}"
