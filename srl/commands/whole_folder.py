"""Writes a folder under another name first, so that it is complete under its own name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from srl.errors import UsageError
from srl.runs.lock import LOCK, only_writer

Tell = Callable[[str], None]


@contextmanager
def new_folder(folder: Path, tell: Tell) -> Iterator[Path]:
    """Yields an empty folder to write to, which becomes `folder` unless something fails.

    Raises:
        UsageError: `folder` exists and is not empty, or it cannot be written.
    """
    if not folder.name or folder.name == "..":
        raise UsageError(f"{folder} cannot be written anew; give a new folder with --output")
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            f"{folder} is there already and is never overwritten; give another folder with "
            "--output, or move that one away"
        )
    with beside(folder, tell) as scratch:
        made = scratch / "model"
        made.mkdir()
        yield made
        put_in_place(made, folder)


@contextmanager
def beside(folder: Path, tell: Tell) -> Iterator[Path]:
    """Yields an empty folder beside `folder` to write to, and removes it afterwards.

    Files that a killed process left there are removed. While another process still writes there,
    it is not disturbed and a UsageError is raised.
    """
    beside = folder.with_name(f".{folder.name}.new")
    try:
        beside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write into {folder.parent}: {error.strerror or error}. Give another folder "
            "with --output"
        ) from error
    with only_writer(beside, tell):
        _empty(beside)
        try:
            yield beside
        finally:
            _empty(beside)


def _empty(folder: Path) -> None:
    """Removes everything in the folder except its lock file."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


def put_in_place(new: Path, folder: Path) -> None:
    """Gives a complete folder its final name.

    Raises:
        UsageError: it cannot be renamed, for example because another folder has the name.
    """
    for file in (path for path in new.iterdir() if path.is_file()):
        file.chmod(0o644)  # some are readable only by their owner
    try:
        new.rename(folder)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error
