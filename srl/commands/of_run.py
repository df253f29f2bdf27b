"""Finds the policy and the experiment of a run, for commands that use a run's policy.

Nothing slow is imported at the top: `cli` imports this before it knows what a command needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from srl.console import say
from srl.errors import UsageError
from srl.runs.folder import RunFolder

if TYPE_CHECKING:
    from srl.config.experiment import Experiment


def policy_of(run: RunFolder, console: Console) -> str:
    """Returns the folder of a run's policy; of an unfinished run, its newest checkpoint."""
    from srl.runs.checkpoints import latest_checkpoint

    if run.policy.is_dir():
        return str(run.policy)
    newest = latest_checkpoint(run.path, lambda line: say(console, line))
    if newest is None:
        raise UsageError(f"{run.path} has neither a policy nor a checkpoint yet")
    return str(newest)


def experiment_of(
    run: RunFolder, rest: Sequence[str], console: Console, *, trust_code: bool
) -> Experiment:
    """Returns a run's experiment with the options in `rest`; in float32 if bf16 needs a GPU."""
    from srl.config.experiment import parse_experiment
    from srl.config.strict_yaml import apply_overrides
    from srl.config.trust import note, refuse_foreign

    values = apply_overrides(run.read_config(), rest)
    given = apply_overrides({}, rest)
    if not trust_code:
        refuse_foreign(values, str(run.config), named=given)
    note(values)
    if values.get("bf16") and "bf16" not in given and not values.get("use_cpu"):
        from transformers.utils import is_torch_bf16_gpu_available

        if not is_torch_bf16_gpu_available():
            say(console, f"in float32: {run.name} was trained in bf16, which needs a GPU")
            values["bf16"] = False
    return parse_experiment(values, where=str(run.config))
