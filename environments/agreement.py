"""Expert solutions whose answer is wrong, found where there is another answer to compare with.

Solutions that models wrote are often wrong, and where several teachers solve the same problems one
need not know the answers to see it: most of them state one answer, and some another.
"""

from __future__ import annotations

from collections.abc import Sequence

from environments.answers import same_answer, stated_answer
from environments.types import Trajectory

NOT_ITS_OWN = "its solution states another answer than its row"
NOT_THE_OTHERS = "its answer is not that of most solutions of its problem"


def wrong_answers(trajectories: Sequence[Trajectory]) -> dict[int, str]:
    """Place of each solution whose answer is wrong -> how that was seen.

    A solution that states no answer, or a problem whose solutions are divided evenly, says nothing.
    Answers are compared as text and numbers (`environments.answers.same_answer`): an answer that is
    only equal by algebra counts as another one, so a group of two never decides anything.

    Args:
        trajectories: of all sources together.
    """
    wrong: dict[int, str] = {}
    by_problem: dict[str, list[int]] = {}
    for place, one in enumerate(trajectories):
        stated = stated_answer(one.steps[-1].text, one.problem) if one.steps else None
        if stated is not None and one.answer is not None and not same_answer(stated, one.answer):
            wrong[place] = NOT_ITS_OWN
        elif one.answer is not None:
            by_problem.setdefault(one.problem_id, []).append(place)
    for places in by_problem.values():
        kinds: list[list[int]] = []  # of equal answers
        for place in places:
            answer = trajectories[place].answer
            for kind in kinds:
                if same_answer(answer, trajectories[kind[0]].answer):
                    kind.append(place)
                    break
            else:
                kinds.append([place])
        kinds.sort(key=len, reverse=True)
        if len(kinds) > 1 and len(kinds[0]) > len(places) / 2:
            for kind in kinds[1:]:
                wrong |= dict.fromkeys(kind, NOT_THE_OTHERS)
    return wrong
