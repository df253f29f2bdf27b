"""Expert solutions whose answer is wrong, found where there is another answer to compare with.

Solutions that models wrote are often wrong, and where several teachers solve the same problems one
need not know the answers to see it: most of them state one answer, and some another.
"""

from __future__ import annotations

from collections.abc import Sequence

from environments.answers import is_number, same_answer, stated_answer
from environments.types import Trajectory

NOT_ITS_OWN = "its solution states another answer than its row"
NOT_THE_OTHERS = "its answer is not that of most solutions of its problem"


def wrong_answers(trajectories: Sequence[Trajectory]) -> dict[int, str]:
    """Place of each solution whose answer is wrong -> how that was seen.

    Only numbers are found to differ, for two formulas may be equal though they are written
    differently. A problem whose solutions are divided evenly says nothing.

    Args:
        trajectories: of all sources together.
    """
    wrong: dict[int, str] = {}
    by_problem: dict[str, list[int]] = {}
    for place, one in enumerate(trajectories):
        stated = stated_answer(one.steps[-1].text, one.problem) if one.steps else None
        if not _is_number(one.answer):
            continue
        if _is_number(stated) and not same_answer(stated, one.answer):
            wrong[place] = NOT_ITS_OWN
        else:
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


def _is_number(answer: str | None) -> bool:
    return answer is not None and is_number(answer)
