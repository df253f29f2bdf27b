"""Splits the data of a run into training, validation and test parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console

from environments.asking import is_finished
from environments.types import LoadReport, Trajectory
from srl.config.experiment import Experiment
from srl.console import say
from srl.data.steps import split_by_problem
from srl.errors import UsageError

# A remark is printed only if it concerns more than this share of the held-out problems.
_MANY = 0.1


@dataclass(frozen=True)
class Splits:
    """The trajectories to train on, to validate and to test; no problem is in two parts."""

    train: list[Trajectory]
    validation: list[Trajectory]
    test: list[Trajectory]


def load_splits(experiment: Experiment, console: Console) -> Splits:
    """Reads the experiment's data and holds out whole problems.

    Raises:
        DataError, UsageError: the data cannot be used, or there is too little of it.
    """
    report = LoadReport()
    trajectories = experiment.load_trajectories(report)
    args = experiment.args
    held_out: list[Trajectory] = []
    train = trajectories
    seed = args.split_seed
    wanted = args.validation_problems + args.test_problems
    distinct = len({trajectory.problem_id for trajectory in trajectories})
    if wanted and wanted >= distinct:
        raise UsageError(
            f"validation_problems {args.validation_problems} and test_problems "
            f"{args.test_problems} leave nothing to train on: the data has {distinct:,} distinct "
            f"problems; try --validation_problems {distinct // 10} --test_problems "
            f"{distinct // 5}, or give more data"
        )
    if wanted:
        train, held_out = split_by_problem(
            trajectories,
            held_out=wanted,
            seed=seed,
        )
    validation, test = held_out, []
    if args.test_problems and not args.validation_problems:
        validation, test = [], held_out
    elif args.test_problems:
        validation, test = split_by_problem(held_out, held_out=args.test_problems, seed=seed)
    left = distinct - wanted
    if args.train_problems > left:
        raise UsageError(
            f"train_problems is {args.train_problems}, but {left:,} of the data's {distinct:,} "
            f"distinct problems are left to train on; set train_problems to {left} or less (0 "
            "takes all), or give more data"
        )
    if 0 < args.train_problems < left:
        train = split_by_problem(train, held_out=args.train_problems, seed=seed)[1]
    if (mixture := experiment.mixture) is not None:  # sources of weight 0 are only held out
        train = [trajectory for trajectory in train if trajectory.source in mixture.weights]
    for line in report.read_as:
        say(console, f"data: {line}")
    drops = "".join(f", {n:,} dropped: {why}" for why, n in report.dropped.items())
    rows = f"{report.kept:,} of {report.rows:,} rows kept{drops}"
    if report.drawn and experiment.mixture is None:
        rows = f"{report.kept:,} problems drawn"
    say(
        console,
        f"data: {experiment.data_plan.name}, {rows}; "
        f"{len(train):,} trajectories to train on, {len(validation):,} to validate, "
        f"{len(test):,} to test",
    )
    for remark in _remarks([*validation, *test], args.solve_max_steps):
        say(console, remark)
    return Splits(train, validation, test)


def _remarks(held_out: Sequence[Trajectory], max_steps: int) -> Iterator[str]:
    """Yields reasons why even a copy of the expert's solution would not count as solved."""
    count = len(held_out)
    endless = sum(not is_finished(trajectory, trajectory.steps) for trajectory in held_out)
    if endless > _MANY * count:
        yield (
            f"{endless:,} of {count:,} held-out solutions do not end with a step that states the "
            "answer, and a policy that writes like them is counted as not solving the problem: end "
            'solutions with a step such as "The answer is 4." (data.answer_step: true '
            "adds it)"
        )
    longer = sum(len(trajectory.steps) > max_steps for trajectory in held_out)
    if longer > _MANY * count:
        longest = max(len(trajectory.steps) for trajectory in held_out)
        yield (
            f"{longer:,} of {count:,} held-out solutions have more than solve_max_steps "
            f"{max_steps} steps, after which an attempt is given up; the longest has {longest}"
        )
