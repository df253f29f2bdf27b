"""Finds expert solutions whose answer is wrong, by comparing it with another answer.

Solutions that models wrote are often wrong. Where several teachers solve the same problems, wrong
answers show without a gold answer: most teachers state one answer, and some state another.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

from environments.answers import is_number, may_be_rounded, same_answer, stated_answer
from environments.types import Trajectory

NOT_ITS_OWN = "its solution states another answer than its row"
NOT_GOLD = "its answer is not the gold one"
NOT_THE_OTHERS = "its answer is not that of most teachers of its problem"


def wrong_answers(
    trajectories: Sequence[Trajectory],
    teachers: Sequence[Hashable],
    gold: Collection[Hashable] = (),
) -> dict[int, str]:
    """Returns the index of each solution whose answer is wrong -> the reason.

    Only numbers can count as different, because two formulas may be equal though they are written
    differently. A number and its rounded form do not count as different. A problem with neither a
    gold answer nor a majority among its teachers is skipped.

    Args:
        trajectories: the trajectories of all sources together.
        teachers: the teacher of each trajectory. A teacher that solves a problem several times has
            one vote for each answer that it gives.
        gold: the teachers whose answers are right.
    """
    wrong: dict[int, str] = {}
    by_problem: dict[str, list[int]] = {}
    for place, trajectory in enumerate(trajectories):
        stated = (
            stated_answer(trajectory.steps[-1].text, trajectory.problem)
            if trajectory.steps
            else None
        )
        if trajectory.answer is None or not is_number(trajectory.answer):
            continue
        if stated is not None and is_number(stated) and not _alike(stated, trajectory.answer):
            wrong[place] = NOT_ITS_OWN
        else:
            by_problem.setdefault(trajectory.problem_id, []).append(place)
    for places in by_problem.values():
        answers = {place: str(trajectories[place].answer) for place in places}
        if known := [answers[place] for place in places if teachers[place] in gold]:
            right, why = known[0], NOT_GOLD
        else:
            votes = {
                answer: {teachers[p] for p in places if _alike(answers[p], answer)}
                for answer in answers.values()
            }
            right, voters = max(votes.items(), key=lambda vote: len(vote[1]))
            why = NOT_THE_OTHERS
            if 2 * len(voters) <= len({teachers[place] for place in places}):
                continue
        for place, answer in answers.items():
            if teachers[place] not in gold and not _alike(answer, right):
                wrong[place] = why
    return wrong


def _alike(answer: str, other: str) -> bool:
    return same_answer(answer, other) or may_be_rounded(answer, other)
