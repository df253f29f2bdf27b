"""Step-wise supervised reinforcement learning (SRL): the trainer, and what stands around it.

Words, used everywhere in the same sense:

    problem      what is to be solved; `problem_id` is a hash of its text
    trajectory   an expert's whole solution, cut into steps
    step         one expert action
    observation  what the world said after a step; context for the next one, never a target
    context      the problem, the steps so far and what was observed: what the policy continues
    thought      the policy's monologue; it is never scored
    action       the policy's step; it is scored against the expert's
    rollout      one completion of one prompt: a thought and an action, or a format failure
    group        the G rollouts of one prompt
    reward       the number an action earned, -1 on a format failure
    advantage    the reward relative to its group's
    policy       the model being trained
    kept         used in the update; its opposite is dropped (by dynamic sampling)

Shapes, as a suffix of a name or in a trailing comment: `B` rows, `G` rollouts of a group, `P`
prompt tokens, `C` completion tokens, `N` nodes of a tree, `V` vocabulary.

Names are looked up on first use, so that `import srl` needs neither torch nor transformers.
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
    """The public names, each imported when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from srl.guard import check_packages_side_by_side

    check_packages_side_by_side()
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
