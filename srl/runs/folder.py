"""The run folder `runs/<name>/`: where everything that one asks about a run afterwards is kept.

It knows the names of the files, how a run starts (config, command line, versions and git commit
are written before anything is trained), which checkpoint to go on from, and that a folder in use
is never overwritten. Files that are replaced are replaced at once: a reader never sees half of one.
No torch here: versions are read from the packages' metadata.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from srl.errors import UsageError
from srl.redaction import SECRETS, without_secrets
from srl.runs.records import finite

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "cydifflib")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*")


class _File:
    """What lies in a run's folder under a fixed name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunFolder, owner: object) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. Make one with `create` (a new run) or `open` (one that exists)."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str | None = None) -> RunFolder:
        """A new, empty run folder `root/name`; without a name, the date and time are the name.

        Raises:
            UsageError: the name cannot be a folder's, the folder is in use, or cannot be written.
        """
        if name is None:
            now = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
            name = now if _is_free(root / now) else _free_name(root, now)
        elif not _NAME.fullmatch(name):
            raise UsageError(
                f"run name {name!r}: a name has letters, digits and _ . - + = only, "
                f"and starts with a letter or digit. It becomes a folder of {root}"
            )
        path = root / name
        try:
            if not _is_free(path):
                raise UsageError(
                    f"{path} is in use and is never overwritten. To go on with that run: "
                    f"make resume RUN={name}. For a new one take a free name: "
                    f"make train RUN={_free_name(root, name)}"
                )
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(None, "no write permission")
        except OSError as error:
            raise UsageError(
                f"cannot write the run folder {path}: {error.strerror or error}. "
                "Give a folder you may write to with --output-dir"
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that has started.

        Raises:
            UsageError: there is none at `path`; the message lists the runs that are there.
        """
        if (path / "config.yaml").is_file():
            return cls(path)
        found = "no such folder" if not path.exists() else "it has no config.yaml"
        names = sorted(config.parent.name for config in path.parent.glob("*/config.yaml"))
        there = f"Runs in {path.parent}: {', '.join(names)}" if names else "Start one: make train"
        raise UsageError(f"{path} is not a run folder: {found}. {there}")

    @classmethod
    def with_log(cls, path: Path) -> RunFolder:
        """The folder of a step log: of a run, or one that a trainer used from Python writes to.

        Args:
            path: the folder, or the `steps.jsonl` in it.

        Raises:
            UsageError: there is none at `path`; the message lists the runs that are there.
        """
        if path.name == "steps.jsonl" and path.is_file():
            path = path.parent
        return cls(path) if (path / "steps.jsonl").is_file() else cls.open(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def called(self) -> str:
        """What the commands take for it: its name in runs/, elsewhere its path."""
        return self.name if self.path.parent == Path("runs") else str(self.path)

    config = _File("config.yaml")
    command = _File("command.txt")
    environment = _File("environment.json")
    metrics = _File("metrics.jsonl")
    steps = _File("steps.jsonl")
    problems = _File("problems.jsonl")
    eval = _File("eval.jsonl")
    summary = _File("summary.json")
    policy = _File("policy")

    def write_start(self, config: Mapping[str, object], argv: Sequence[str]) -> None:
        """Write down how the run starts: config.yaml, command.txt and environment.json."""
        self.write_config(config)
        replace_file(self.command, _command_line(argv).encode())
        write_json(self.environment, describe_environment())

    def write_config(self, config: Mapping[str, object]) -> None:
        """Write config.yaml."""
        text = yaml.safe_dump(plain(_kept(config)), sort_keys=False, allow_unicode=True)
        replace_file(self.config, text.encode())

    def add_command(self, argv: Sequence[str]) -> None:
        """Append a later command line, a resume, to command.txt."""
        with self.command.open("a", encoding="utf-8") as file:
            file.write(_command_line(argv))

    def read_config(self) -> dict[str, object]:
        """The resolved config the run started with.

        Raises:
            UsageError: config.yaml is not a YAML mapping any more.
        """
        try:
            config = yaml.load(self.config.read_text(encoding="utf-8"), _WithoutAliases)
        except RecursionError as error:
            raise UsageError(f"cannot read {self.config}: it is nested too deeply") from error
        except (OSError, ValueError, yaml.YAMLError) as error:  # a date that is none, for one
            raise UsageError(f"cannot read {self.config}: {error}") from error
        if not isinstance(config, dict):
            raise UsageError(f"{self.config} is not a mapping of settings: the run cannot go on")
        return config

    def latest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint; one that was cut off while it was saved is passed over.

        Raises:
            UsageError: there are checkpoints, and none is whole.
        """
        numbered = sorted(
            (
                (int(match[1]), entry)
                for entry in self.path.glob("checkpoint-*")
                if (match := _CHECKPOINT.fullmatch(entry.name)) and entry.is_dir()
            ),
            reverse=True,
        )
        for _, entry in numbered:
            if not missing_from_checkpoint(entry):
                return entry
        if numbered:
            check_checkpoint(numbered[0][1])
        return None


class _WithoutAliases(yaml.SafeLoader):
    """No aliases, which we never write: nested, a few lines of them unfold to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1} has an alias (*)")
        return super().compose_node(parent, index)


def missing_from_checkpoint(path: Path) -> list[str]:
    """What `path` lacks to be a checkpoint that a run can go on from; nothing if it is one."""
    missing = [n for n in ("trainer_state.json", "srl_state.json") if not (path / n).is_file()]
    if not any((path / name).is_file() for name in WEIGHTS):
        missing.append(f"the weights ({WEIGHTS[0]})")
    return missing


def check_checkpoint(path: Path) -> None:
    """Raise UsageError unless `path` is a checkpoint of this trainer."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a checkpoint: no such folder")
    if missing := missing_from_checkpoint(path):
        raise UsageError(
            f"{path} is not a checkpoint to go on from: it lacks {', '.join(missing)}. "
            "Name a folder checkpoint-N that srl has written"
        )


def changed_keys(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """`key: old -> new` for every setting that differs, nested keys joined by dots, sorted."""
    before, after = flattened(plain(_kept(old))), flattened(plain(_kept(new)))
    return [
        f"{key}: {_show(before, key)} -> {_show(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if (key in before) != (key in after) or before.get(key) != after.get(key)
    ]


def _kept(config: Mapping[str, object]) -> dict[str, object]:
    """The settings that are written down, or shown."""
    return {key: value for key, value in config.items() if key not in SECRETS}


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, replacing the file at once; NaN and infinity become null."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=2)
    replace_file(path, (text + "\n").encode())


def plain(value: object) -> Any:
    """`value` in the types that YAML and JSON know: paths as text, enums as their value."""

    def known(other: object) -> object:
        if isinstance(other, Enum):
            return other.value
        if isinstance(other, Mapping):
            return dict(other)
        return (
            sorted(map(plain, other), key=str) if isinstance(other, set | frozenset) else str(other)
        )

    return json.loads(json.dumps(value, default=known))


def describe_environment() -> dict[str, object]:
    """Versions, machine and state of the code: what one needs to run the same again."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__).resolve().parent.parent),
    }


def git_state(root: Path) -> dict[str, object] | None:
    """Commit, and whether the tree was dirty; None where `root` is not the root of a checkout.

    An installed copy can lie inside somebody else's checkout, whose commit says nothing about it.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root.resolve():
        return None
    status = _git(root, "status", "--porcelain")
    return {
        "commit": _git(root, "rev-parse", "--verify", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def replace_file(path: Path, content: bytes) -> None:
    """Write beside, then put in place: after a crash there is the old file or the new one."""
    # A name may have 255 bytes, and a sign four.
    beside = path.with_name(f".{path.name[:50]}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _free_name(root: Path, name: str) -> str:
    number = 2
    while not _is_free(root / f"{name}-{number}"):
        number += 1
    return f"{name}-{number}"


def flattened(value: object, prefix: str = "") -> dict[str, object]:
    """Nested settings with their keys joined by dots."""
    if not isinstance(value, dict) or (not value and prefix):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat |= flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _command_line(argv: Sequence[str]) -> str:
    return shlex.join(without_secrets(argv)) + "\n"


def _show(flat: Mapping[str, object], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(not set)"
