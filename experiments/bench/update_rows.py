"""Measures rows 3 and 4: one update beside TRL's, where rollouts share their prompts.

    3  the rollouts of one prompt, and shapes with little to share
    4  the prompts of one trajectory, each the beginning of the next

All contestants train the same small model on the same rows with the same advantages.
"""

from __future__ import annotations

from collections.abc import Sequence

from contest import Contest, Contestant, run
from shapes import Shape, tiny_model
from transformers import PreTrainedModel
from trl_update import trl_trainer, trls
from update import (
    Case,
    as_trained,
    differences,
    one_tree,
    ours,
    padded,
    per_group,
)

from srl.models.prefix_tree import PrefixTree

ROW_3 = Shape(K=1, Q=512, s=0, G=8, C=64)
ROW_4 = Shape(K=6, Q=256, s=64, G=8, C=48)
LOSING = tuple(Shape(K=1, Q=P, s=0, G=2, C=2 * P) for P in (32, 64, 250))

TRL_WHOLE, TRL_GROUPS = "TRL, one batch", "TRL, {} rows at a time"
PADDED, PER_GROUP, TRAINED = "ours, rows repeated", "ours, a tree per prompt", "ours, as trained"
TREE = "ours, a tree all the same"


def update_row(
    repeats: int, *, shape: Shape = ROW_3, losing: Sequence[Shape] = LOSING
) -> list[Contest]:
    """Runs row 3: the rollouts of one prompt, and the shapes in `losing`."""
    model = tiny_model()
    contests = [update_contest(3, shape, model, repeats, goal=">= 3.8x TRL, gradient <= 1e-5")]
    for small in losing:
        goal = ">= 0.95x TRL and our own repeated rows"
        contests.append(update_contest(3, small, model, repeats, goal=goal, forced=True))
    return contests


def nested_row(repeats: int, *, shape: Shape = ROW_4) -> list[Contest]:
    """Runs row 4: the nested prompts of one trajectory."""
    goal = ">= 6.0x TRL, >= 1.4x a tree per prompt, gradient <= 1e-5"
    return [update_contest(4, shape, tiny_model(), repeats, goal=goal)]


def update_contest(
    row: int | str,
    shape: Shape,
    model: PreTrainedModel,
    repeats: int,
    *,
    goal: str = "",
    forced: bool = False,
) -> Contest:
    """Runs all contestants on one shape.

    Args:
        row: the number or name of the row.
        shape: the shape of the rows.
        model: the model. All contestants compute gradients for the same weights.
        repeats: the number of timed rounds; one untimed round goes before them.
        goal: the goal, in words.
        forced: adds a contestant with all rows in one tree, even if our trainer would not make it.
    """
    case = Case.of(model, shape)
    with trl_trainer(case) as trainer:
        contestants: dict[str, Contestant] = {TRL_WHOLE: trls(case, trainer, len(case.rows))}
        if len(case.rows) > shape.G:
            name = TRL_GROUPS.format(shape.G)
            contestants[name] = trls(case, trainer, shape.G)
        peers = list(contestants)
        contestants[PADDED] = ours(case, padded())
        if len(case.rows) > shape.G:
            contestants[PER_GROUP] = ours(case, per_group(shape.G))
        contestants[TRAINED] = ours(case, as_trained())
        if forced:
            contestants[TREE] = ours(case, one_tree)
        contest = Contest(row, shape.title, goal=goal, ours=TRAINED)
        run(contest, contestants, repeats, compare=differences, peers=peers, warm_up=True)
    # TRL's padding on the left already changes the last digits of float32. So our tree is also
    # compared with our own repeated rows.
    rows, tree = (ours(case, cut)()() for cut in (padded(), as_trained()))
    nodes = len(PrefixTree.of(case.rows))
    contest.figures = {
        "tokens": {"repeated": shape.repeated, "in the tree": nodes},
        "ceiling": shape.repeated / nodes,
        f"{TRAINED}, against {PADDED}": differences(rows, tree),
        "speed of ours, as trained": {
            f"over {name}": contest.speed(TRAINED, name)
            for name in [contest.base, *(n for n in (PADDED, PER_GROUP) if n in contestants)]
        },
    }
    return contest
