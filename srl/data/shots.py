"""Draws the worked examples of `few_shot` from the training problems.

The examples stand in front of every prompt. So their problems are neither held out nor trained on:
a row whose own step is shown in its prompt would teach copying.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from environments.types import Trajectory
from srl.config.parts import RowSettings
from srl.data.prompts import why_uncopyable
from srl.data.steps import StepExample, build_examples, split_by_problem
from srl.errors import UsageError


def draw_shots(
    trajectories: Sequence[Trajectory], args: RowSettings, *, seed: int
) -> tuple[list[StepExample], list[Trajectory]]:
    """Returns the worked examples, and the trajectories of all other problems.

    Each example is of another problem. The first example shows the first usable step of its
    solution. The second shows the second usable step if its solution has one, and so on. So a
    policy sees how solutions begin and continue.

    Args:
        trajectories: the expert solutions to train on.
        args: `few_shot` is the number of examples; `targets`, `step_title` and `think` determine
            which steps are usable.
        seed: chooses the problems.

    Raises:
        UsageError: there are too few problems.
    """
    if not args.few_shot:
        return [], list(trajectories)
    usable = {
        trajectory.problem_id: trajectory
        for trajectory in reversed(_in_turn(trajectories, args, seed))
        if _rows(trajectory, args)
    }
    if args.few_shot >= len(usable):
        raise UsageError(
            f"few_shot is {args.few_shot}, but there are {len(usable):,} training problems with "
            "steps to show, and some must be left to train on; set few_shot to "
            f"{len(usable) // 10}, or give more data"
        )
    _, drawn = split_by_problem(usable.values(), held_out=args.few_shot, seed=seed)
    shots = []
    for number, trajectory in enumerate(drawn):
        rows = _rows(trajectory, args)
        shots.append(rows[min(number, len(rows) - 1)])
    shown = {shot.problem_id for shot in shots}
    return shots, [trajectory for trajectory in trajectories if trajectory.problem_id not in shown]


def _in_turn(
    trajectories: Sequence[Trajectory], args: RowSettings, seed: int
) -> Sequence[Trajectory]:
    """Returns the solutions, ordered so that the first of each problem is the one to show.

    With several sources, solutions of the style `solve_as` come first, if it is set, and a hash
    then chooses the source for each problem.
    """
    wanted = getattr(args, "solve_as", None)
    if wanted is None and len({trajectory.source for trajectory in trajectories}) < 2:
        return trajectories

    def place(trajectory: Trajectory) -> tuple[bool, bytes]:
        other_style = wanted is not None and trajectory.tags.get(args.source_tag or "") != wanted
        key = f"{seed}:{trajectory.problem_id}:{trajectory.source}".encode()
        return other_style, hashlib.sha256(key).digest()

    return sorted(trajectories, key=place)


def _rows(trajectory: Trajectory, args: RowSettings) -> list[StepExample]:
    """Returns the rows of a solution that a policy could copy without a format failure."""
    if not trajectory.is_unicode:
        return []
    return [
        row
        for row in build_examples([trajectory], targets=args.targets, step_title=args.step_title)
        if row.whole or why_uncopyable(row.expert_step, think=args.think) is None
    ]
