"""Computes digests of a run's inputs beside its settings: data, user code and model files.

`inputs.json` contains the digests. A run that is resumed with other inputs would not equal an
uninterrupted one, so a resume compares them. Every byte is read, which takes about a second for a
gigabyte of weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from srl.config.code_files import code_file, with_imports
from srl.config.experiment import Experiment
from srl.config.parts import LOSS_TYPES, LossSettings
from srl.data.splits import Splits
from srl.data.stream import digest_of_trajectories
from srl.errors import UsageError
from srl.models.loading import model_files
from srl.models.lora import base_of, is_adapter_folder
from srl.runs.folder import RunFolder, describe_environment

Inputs = Mapping[str, Mapping[str, str]]
"""Kind of input -> its name -> its digest."""


def inputs_of(experiment: Experiment, splits: Splits) -> Inputs:
    """Returns the digests of all inputs of a run whose model has been loaded.

    Args:
        experiment: the run's settings.
        splits: the run's data.
    """
    code: dict[str, str] = {}  # by name only, so that a moved project can be resumed
    for path in _named_files(experiment):
        code[path.name] = code.get(path.name, "") + _digest(path)
    data = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        "data": {name: digest_of_trajectories(rows) for name, rows in data.items()},
        "code": code,
        "model": _model(experiment.model),
    }


def changes_since_start(run: RunFolder, inputs: Inputs) -> list[str]:
    """Returns a line per input that differs from inputs.json; no lines if the file is missing."""
    try:
        before = json.loads(run.inputs.read_text(encoding="utf-8"))
        changes = []
        for kind, digests in inputs.items():
            old = before[kind]
            for name in sorted(old.keys() | digests.keys()):
                if old.get(name) != digests.get(name):
                    changes.append(f"{kind}: {name} {_how(name in old, name in digests)}")
        return changes
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"cannot read {run.inputs}: {error!r}") from error


def versions_since_start(run: RunFolder) -> str | None:
    """Returns a line on versions that changed since the run started; None if no change is known."""
    try:
        before = json.loads(run.environment.read_text(encoding="utf-8"))
        now = describe_environment()
        old, new = (_versions(environment) for environment in (before, now))
        pairs = [(name, old[name], new.get(name)) for name in old]
        changed = [f"{name} {was} -> {is_now}" for name, was, is_now in pairs if was != is_now]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not changed:
        return None
    return f"warning: versions have changed since the run started: {', '.join(changed)}"


def _versions(environment: Mapping[str, Any]) -> dict[str, object]:
    code = environment["git"] or {}
    return {
        "python": environment["python"],
        **environment["packages"],
        "srl's commit": str(code.get("commit"))[:7],
    }


def _how(was: bool, is_there: bool) -> str:
    if was and is_there:
        return "has changed"
    return "is new" if is_there else "has gone"


def _model(name: str) -> dict[str, str]:
    """Returns the digests of a model's files, cached hub files and an adapter's base included."""
    folder = Path(name)
    if not folder.is_dir():
        cached = try_to_load_from_cache(name, "config.json")
        if not isinstance(cached, str):
            return {}
        folder = Path(cached).parent
    own = [path for path in model_files(str(folder)) if path.parent == folder]
    base = _model(base_of(folder)) if is_adapter_folder(folder) else {}
    return {**{f"{name}/{path.name}": _digest(path) for path in own}, **base}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _named_files(experiment: Experiment) -> list[Path]:
    """Returns files that settings name: code, with local files that it imports, and others."""
    words = list(_texts({"data": experiment.data, "rewards": experiment.rewards}))
    if isinstance(experiment.args, LossSettings) and experiment.args.loss_type not in LOSS_TYPES:
        words.append(experiment.args.loss_type)
    experts = getattr(experiment.args, "train_experts", None)
    if isinstance(experts, str):
        words.append(experts)
    # Data files are left out: the digest of their rows is more exact.
    data_files = {source.options.get("path") for source in experiment.data_plan.sources}
    files: set[Path] = set()
    for word in words:
        place, colon, name = word.rpartition(":")
        if colon and name.isidentifier() and (code := code_file(place)) is not None:
            files |= with_imports(code)
        elif word not in data_files and _is_file(word):
            files.add(Path(word).resolve())
    return sorted(files)


def _texts(value: object) -> Iterator[str]:
    """Yields all texts in nested settings, keys included, because a reward is a key."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # a text, not a path
        return False
