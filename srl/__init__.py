"""Step-wise supervised reinforcement learning (SRL): the trainer and its commands.

Terms that the code uses everywhere in the same sense:

    problem      the task to solve; `problem_id` is a hash of its text
    trajectory   a whole expert solution, cut into steps
    step         one expert action
    observation  what the environment returns after a step; context for later steps, never a target
    context      the problem, the steps so far and the observations; the policy continues it
    thought      the policy's reasoning before its step; it is never scored
    action       the policy's step; it is scored against the expert's
    rollout      one completion of one prompt: a thought and an action, or a format failure
    group        the G rollouts of one prompt
    reward       the score of an action; by default -1 for a format failure
    advantage    the reward relative to the rewards of its group
    policy       the model that is trained
    kept         used in the update; the opposite is dropped (by dynamic sampling)

Shapes, as a suffix of a name or in a trailing comment: `B` rows, `G` rollouts of a group, `P`
prompt tokens, `C` completion tokens, `N` nodes of a tree, `V` vocabulary.

The public names are imported on first use, so `import srl` needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from environments import load_trajectories as load_trajectories
    from srl.config.settings import SRLConfig as SRLConfig
    from srl.training.trainer import SRLTrainer as SRLTrainer

__version__ = "0.1.0"
__all__ = ["SRLConfig", "SRLTrainer", "__version__", "load_trajectories"]

_HOMES = {
    "SRLConfig": "srl.config.settings",
    "SRLTrainer": "srl.training.trainer",
    "load_trajectories": "environments",
}


def __getattr__(name: str) -> object:
    """Returns a public name; imports it at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from srl.guard import check_packages_side_by_side

    check_packages_side_by_side()
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access finds it here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
