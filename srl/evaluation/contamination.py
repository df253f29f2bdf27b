"""Finds the problems that a model was trained on in each stage, so that it is not measured on them.

A run's policy is in the run's folder. The config.yaml there names the model that the run started
from, which may be another run's policy. A later stage with another seed holds out other problems,
so an earlier stage may have trained on problems that the later stage holds out.
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
    """Yields the runs that trained `model`, the last run first; none for a model without a run.

    Args:
        model: a model's folder or hub name.
        say: called with a message if a stage's config.yaml is missing, so earlier runs are unknown.
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
            if _POLICY.fullmatch(path.name) and (len(seen) > 1 or path.is_dir()):
                say(f"not checked: what {model} was trained on; its run's config.yaml is not there")
            return


def trained_on(model: str, say: Callable[[str], None]) -> Iterator[tuple[RunFolder, set[str]]]:
    """Yields each stage of a model with the ids of the problems that it trained on.

    Args:
        model: a model's folder or hub name.
        say: called with a message on each stage that is left out, because its problems cannot be
            found any more.
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
    """Raises UsageError if any stage of a model was trained on a problem that it is to solve.

    Args:
        problems: the problems to solve.
        model, say: as in `trained_on`.
        validation: the problems that choose the checkpoint. They give no final figure, so a message
            reports them and no error is raised.

    Raises:
        UsageError: a stage trained on some of the problems to solve.
    """
    asked, picking = ({problem.problem_id for problem in group} for group in (problems, validation))
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
    """Returns the ids of the problems of a run's training rollouts.

    Without a log of rollouts, these are all problems that the run could train on.
    """
    if run.steps.is_file():
        lines = read_rows(run.steps)  # only two fields are needed, so records are not checked
        return {str(line.get("problem_id")) for line in lines if line.get("phase") == "train"}
    config = run.read_config()
    refuse_foreign(config, str(run.config))
    experiment = parse_experiment(config, where=str(run.config))
    return {
        trajectory.problem_id for trajectory in load_splits(experiment, Console(quiet=True)).train
    }
