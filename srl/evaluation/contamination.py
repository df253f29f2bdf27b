"""What a model was trained on, stage by stage: no problem to solve may be among it.

A run's policy lies in its folder, and config.yaml there names the model that it started from, which
may be another run's policy. A later stage with another seed holds other problems out, so problems
that are new to it may be old to the policy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from environments.types import DataError, Trajectory
from srl.config.experiment import parse_experiment, short_path
from srl.config.trust import refuse_foreign
from srl.data.splits import load_splits
from srl.errors import UsageError
from srl.models.lora import base_of, is_adapter_folder
from srl.runs.folder import RunFolder
from srl.runs.records import read_rows

_POLICY = re.compile(r"policy|adapter|checkpoint-\d+")


def stages_of(model: str, say: Callable[[str], None] = lambda _: None) -> Iterator[RunFolder]:
    """The runs that `model` went through, the last one first; none of a model from elsewhere.

    Args:
        model: a model's folder or hub name.
        say: told where the way back ends at a folder that has gone.
    """
    seen: set[Path] = set()
    while (path := Path(model).resolve()) not in seen:
        seen.add(path)
        if _POLICY.fullmatch(path.name) and (path.parent / "config.yaml").is_file():
            run = RunFolder(path.parent)
            yield run
            model = str(run.read_config().get("model", ""))
        elif is_adapter_folder(path):
            model = base_of(path)
        else:
            if _POLICY.fullmatch(path.name):
                say(f"not checked: what {model} was trained on; its run's config.yaml is not there")
            return


def trained_on(model: str, say: Callable[[str], None]) -> Iterator[tuple[RunFolder, set[str]]]:
    """Each stage of a model with the ids of the problems that it trained on.

    Args:
        model: a model's folder or hub name.
        say: told of a stage whose problems cannot be found out any more, which is left out.
    """
    for run in stages_of(model, say):
        try:
            yield run, _problems_of(run)
        except (UsageError, DataError) as error:
            say(f"not checked: whether {short_path(run.path)} trained on these problems: {error}")


def refuse_trained_on(
    problems: Sequence[Trajectory],
    model: str,
    say: Callable[[str], None],
    *,
    validation: Sequence[Trajectory] = (),
) -> None:
    """Refuse to measure a model on problems that it was trained on, in whichever stage.

    Args:
        problems: what is to be solved.
        model, say: as in `trained_on`.
        validation: what picks the checkpoint. That is not measured, so it is told, not refused.

    Raises:
        UsageError: a stage trained on some of them.
    """
    asked, picking = ({one.problem_id for one in few} for few in (problems, validation))
    for run, trained in trained_on(model, say):
        if seen := len(trained & picking):
            say(
                f"{seen} of the {len(picking)} validation problems were trained on in "
                f"{short_path(run.path)}: the checkpoint that they pick may be one that remembers"
            )
        if seen := len(trained & asked):
            config = run.read_config()
            seed = config.get("data_seed")
            raise UsageError(
                f"{seen} of the {len(asked)} problems to solve were trained on in "
                f"{short_path(run.path)}; keep that run's data, its data_seed "
                f"({config.get('seed', 42) if seed is None else seed}) and its "
                f"validation_problems ({config.get('validation_problems')}), and ask for no more "
                f"test_problems than the {config.get('test_problems')} it held out"
            )


def _problems_of(run: RunFolder) -> set[str]:
    """Ids of the problems of a run's rollouts; without a log of them, of all it could train on."""
    if run.steps.is_file():
        lines = read_rows(run.steps)  # two fields of a line: no record need be checked for them
        return {str(line.get("problem_id")) for line in lines if line.get("phase") == "train"}
    config = run.read_config()
    refuse_foreign(config, str(run.config))
    experiment = parse_experiment(config, where=str(run.config))
    return {one.problem_id for one in load_splits(experiment, Console(quiet=True)).train}
