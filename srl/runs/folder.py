"""Manages the run folder `runs/<name>/`, which keeps the files of one run.

This module defines the names of the files. At the start of a run it writes the config, the command
line, the versions and the git state, before anything is trained. A folder in use is never
overwritten. Files are replaced atomically, so a reader never sees half of one.
This module does not import torch: it reads versions from the packages' metadata.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from srl.config.strict_yaml import nearest
from srl.errors import UsageError
from srl.redaction import SECRETS, without_secrets
from srl.runs.lock import LOCK, writer_of
from srl.runs.records import finite

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "cydifflib")
# The file that lists the experts that a run chose to train.
CHOSEN = "chosen_experts.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*")
_FILES = (".yaml", ".txt", ".json", ".jsonl")
# The names that a run writes beside its checkpoints; trackers write into its subfolder `runs`.
_OURS = {
    *("config.yaml", "command.txt", "environment.json", "inputs.json", "before.json"),
    *("metrics.jsonl", "steps.jsonl", "problems.jsonl", "eval.jsonl", "samples.jsonl"),
    *("experts.jsonl", CHOSEN, "trajectories.jsonl", "summary.json", "policy", "adapter", "runs"),
}


class _File:
    """The path of a file or folder with a fixed name in a run's folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunFolder, owner: object) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. Make one with `create` (a new run) or `open` (an existing run)."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str | None = None) -> RunFolder:
        """Creates an empty run folder `root/name`; the default name is the date and time.

        Raises:
            UsageError: the name is not allowed, or the folder is in use or cannot be written.
        """
        if name is None:
            now = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
            name = free_name(root, now)
        elif not _NAME.fullmatch(name):
            raise UsageError(
                f"run name {name!r}: a name has letters, digits and _ . - + = only, "
                f"and starts with a letter or digit. It becomes a folder of {root}"
            )
        run = cls(root / name)
        path = run.path
        try:
            run.refuse_used()
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(None, "no write permission")
        except OSError as error:
            raise UsageError(
                f"cannot write the run folder {path}: {error.strerror or error}. "
                "Give a folder you may write to with --output-dir"
            ) from error
        return run

    def refuse_used(self) -> None:
        """Raises UsageError if the folder is not empty, or if another process writes to it.

        Raises:
            UsageError: the folder is in use; the message suggests a free name.
        """
        if _is_free(self.path):
            return
        if (owner := writer_of(self.path)) is not None:
            raise UsageError(
                f"{self.path} is being written by {owner}. Look at it with: "
                f"make inspect RUN={self.called}. For a new run take a free name: "
                f"make train RUN={free_name(self.path.parent, self.name)}"
            )
        free = f"make train RUN={free_name(self.path.parent, self.name)}"
        if _is_file(self.summary):
            look = f" Look at it with: make inspect RUN={self.called}." * _is_file(self.steps)
            raise UsageError(
                f"{self.path} is complete and is never overwritten.{look} For a new run take a "
                f"free name: {free}"
            )
        raise UsageError(
            f"{self.path} is in use and is never overwritten. To go on with that run: "
            f"make resume RUN={self.called}. For a new one take a free name: {free}"
        )

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Returns the folder of a run that has started.

        Raises:
            UsageError: `path` is not a run folder, or it cannot be read. The message lists the runs
                beside it.
        """
        try:
            if (path / "config.yaml").is_file():
                return cls(path)
            reason = "it has no config.yaml"
            if not path.exists():
                reason = "its link leads nowhere" if path.is_symlink() else "no such folder"
        except OSError as error:  # the name is too long, or a folder may not be read
            reason = error.strerror or str(error)
        names = sorted(config.parent.name for config in path.parent.glob("*/config.yaml"))
        there = f"Runs in {path.parent}: {', '.join(names)}" if names else "Start one: make train"
        raise UsageError(
            f"{path} is not a run folder: {reason}. {there}{nearest(path.name, names)}"
        )

    @classmethod
    def with_log(cls, path: Path) -> RunFolder:
        """Returns the folder of a step log: a run's, or one that a trainer in Python writes to.

        Args:
            path: the folder, or the `steps.jsonl` in it.

        Raises:
            UsageError: there is no such folder at `path`; the message lists the runs beside it.
        """
        if path.name == "steps.jsonl" and _is_file(path):
            path = path.parent
        return cls(path) if _is_file(path / "steps.jsonl") else cls.open(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def called(self) -> str:
        """Returns the run's name as commands accept it: the folder's name in runs/, else a path."""
        return self.name if self.path.parent == Path("runs") else str(self.path)

    def refuse_links(self) -> None:
        """Raises UsageError if a write could follow a link out of the folder.

        A run folder from somebody else may contain such links.

        Raises:
            UsageError: an entry of the run is a link, or is not a file although it must be one.
        """
        for entry in self._entries():
            kind = entry.lstat().st_mode
            if stat.S_ISLNK(kind):
                raise UsageError(
                    f"{entry} is a link to {os.readlink(entry)}, and this would write there. If "
                    f"that is meant, put the thing itself in its place; else remove the link: "
                    f"rm {shlex.quote(str(entry))}"
                )
            if not stat.S_ISREG(kind) and not (stat.S_ISDIR(kind) and entry.suffix not in _FILES):
                raise UsageError(f"{entry} is no file: this is not a run folder to write to")

    def _entries(self) -> Iterator[Path]:
        """Yields the entries with a run's own names, and all that their subfolders contain."""
        for entry in self.path.iterdir():
            if entry.name in _OURS or CHECKPOINT.fullmatch(entry.name):
                yield entry
                if entry.is_dir() and not entry.is_symlink():
                    yield from entry.rglob("*")

    def take_away(self) -> None:
        """Removes the run's own files and folders except checkpoints; other entries stay."""
        for name in _OURS:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    config = _File("config.yaml")
    command = _File("command.txt")
    environment = _File("environment.json")
    metrics = _File("metrics.jsonl")
    steps = _File("steps.jsonl")
    problems = _File("problems.jsonl")
    eval = _File("eval.jsonl")
    experts = _File("experts.jsonl")
    before = _File("before.json")
    inputs = _File("inputs.json")
    summary = _File("summary.json")
    policy = _File("policy")

    def write_start(self, config: Mapping[str, object], argv: Sequence[str]) -> None:
        """Writes the files that describe the start: config.yaml, command.txt, environment.json."""
        self.write_config(config)
        replace_file(self.command, _command_line(argv).encode())
        write_json(self.environment, describe_environment())

    def write_config(self, config: Mapping[str, object]) -> None:
        """Writes config.yaml."""
        text = yaml.safe_dump(plain(_kept(config)), sort_keys=False, allow_unicode=True)
        replace_file(self.config, text.encode())

    def add_command(self, argv: Sequence[str]) -> None:
        """Appends the command line of a resume to command.txt."""
        with self.command.open("a", encoding="utf-8") as file:
            file.write(_command_line(argv))

    def read_environment(self) -> dict[str, object]:
        """Returns the content of environment.json; empty if it cannot be read."""
        try:
            environment = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return environment if isinstance(environment, dict) else {}

    def read_config(self) -> dict[str, object]:
        """Returns the resolved config from config.yaml.

        Raises:
            UsageError: config.yaml cannot be read, or is not a YAML mapping.
        """
        try:
            config = yaml.load(self.config.read_text(encoding="utf-8"), _WithoutAliases)
        except RecursionError as error:
            raise UsageError(f"cannot read {self.config}: it is nested too deeply") from error
        except (OSError, ValueError, yaml.YAMLError) as error:  # an impossible date, for example
            raise UsageError(f"cannot read {self.config}: {error}") from error
        if not isinstance(config, dict):
            raise UsageError(f"{self.config} is not a mapping of settings: the run cannot go on")
        return config


def run_path(name: str) -> Path:
    """Returns the path of the run called `name`: a folder of runs/, or the path itself.

    A word without a slash names a folder of runs/. It names a run folder in the current directory
    only if runs/ has no entry of that name.
    """
    path = Path(os.path.expanduser(name))
    if not path.name or path.name == "..":  # `.`, `..` and `/` have no name of their own
        return Path(os.path.abspath(path))
    if len(path.parts) > 1:
        return path
    named = Path("runs") / name
    is_run = any(_is_file(path / log) for log in ("config.yaml", "steps.jsonl"))
    return path if is_run and not named.exists() else named


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long, or a folder may not be read
        return False


class _WithoutAliases(yaml.SafeLoader):
    """A YAML loader that refuses aliases and tags, which this project never writes.

    A few lines of nested aliases can expand to gigabytes. A tag on a text that does not fit the
    tag's type can raise any exception.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        for what, is_there in (
            ("an alias (*)", isinstance(event, yaml.AliasEvent)),
            ("a tag (!)", getattr(event, "tag", None) is not None),
        ):
            if is_there:
                raise yaml.YAMLError(f"line {event.start_mark.line + 1} has {what}")
        return super().compose_node(parent, index)


def changed_keys(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Returns `key: old -> new` for each changed setting, sorted; dots join nested keys."""
    before, after = flattened(plain(_kept(old))), flattened(plain(_kept(new)))
    return [
        f"{key}: {_show(before, key)} -> {_show(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if (key in before) != (key in after) or before.get(key) != after.get(key)
    ]


def _kept(config: Mapping[str, object]) -> dict[str, object]:
    """Returns the settings that may be written to a file or shown: all except `SECRETS`."""
    return {key: value for key, value in config.items() if key not in SECRETS}


def write_json(path: Path, value: object) -> None:
    """Replaces a file atomically with `value` as indented JSON; NaN and infinity become null."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=2)
    replace_file(path, (text + "\n").encode())


def plain(value: object) -> Any:
    """Returns `value` with types of YAML and JSON only: paths as text, enums as their value."""

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
    """Returns the versions, the machine and the git state, which are needed to repeat a run."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _code_state(),
    }


@cache
def _code_state() -> dict[str, object] | None:
    """Returns the git state of this project, read once: later changes are not in this process."""
    return git_state(Path(__file__).resolve().parents[2])


def git_state(root: Path) -> dict[str, object] | None:
    """Returns the commit and whether the tree is dirty; None if `root` is not a checkout's root.

    An installed copy can lie inside another project's checkout, whose commit says nothing about it.
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
    """Replaces a file atomically: after a crash, the old file or the new file is there.

    The content is written to a temporary file beside it, which is then renamed.
    """
    # A file name has at most 255 bytes, and a character at most four.
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
    """Returns whether a run may start there; a lock file that a killed run left is ignored."""
    if not path.exists():
        return not path.is_symlink()
    return path.is_dir() and all(entry.name == LOCK for entry in path.iterdir())


def free_name(root: Path, name: str) -> str:
    """Returns `name` if it is free in `root`, else the first free one of name-2, name-3, …."""
    free, number = name, 2
    while not _is_free(root / free):
        free, number = f"{name}-{number}", number + 1
    return free


def flattened(value: object, prefix: str = "") -> dict[str, object]:
    """Returns nested settings as one flat mapping, with keys joined by dots."""
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
