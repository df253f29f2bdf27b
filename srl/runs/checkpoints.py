"""Checks checkpoints on the disk, finds the one that a run resumes from, and deletes old ones.

The last file of a checkpoint is its manifest: the size and SHA-256 of every other file. It is
written after those files are safe on the disk. A checkpoint without a manifest was cut off while it
was saved. A checkpoint whose files differ from its manifest is damaged. This module does not import
torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePath

from srl.errors import UsageError
from srl.runs.folder import CHECKPOINT, replace_file

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
STATE_FILE = "srl_state.json"
# A whole checkpoint has one of `WEIGHTS` and all of `NEEDED`. transformers does not report it if
# some of them are missing.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
NEEDED = (TRAINER_STATE, STATE_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth")


def seal(checkpoint: Path) -> None:
    """Completes a checkpoint: forces its files to the disk, then writes their manifest."""
    files = {}
    for path in _on_disk(checkpoint):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(checkpoint).as_posix()
        files[name] = {"size": path.stat().st_size, "sha256": sha256}
    replace_file(checkpoint / MANIFEST, json.dumps({"files": files}, indent=1).encode())
    _sync(checkpoint)
    _sync(checkpoint.parent)


def damage(checkpoint: Path) -> str | None:
    """Returns a text that says what is wrong with a checkpoint; None if it is whole."""
    try:
        path = checkpoint / MANIFEST
        if path.name not in os.listdir(checkpoint):
            return (
                f"it has no {MANIFEST}, the last file that is written: it was cut off while it was "
                "saved, or an earlier version of srl saved it"
            )
        files = {
            str(name): (int(entry["size"]), str(entry["sha256"]))
            for name, entry in json.loads(path.read_bytes())["files"].items()
        }
    except FileNotFoundError:
        return "no such folder"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    wrong = [f"it lacks {name}" for name in NEEDED if name not in files]
    if not any(name in files for name in WEIGHTS):
        wrong.append(f"it lacks the weights ({WEIGHTS[0]})")
    reasons = (_damage(checkpoint, name, *described) for name, described in files.items())
    wrong += [why for why in reasons if why is not None]
    return "; ".join(wrong) or None


def _damage(checkpoint: Path, name: str, size: int, sha256: str) -> str | None:
    path = checkpoint / name
    try:
        if not path.exists():
            return f"{name} is missing"
        if not path.is_file():
            return f"{name} is not a file"
        if (actual_size := path.stat().st_size) != size:
            return f"{name} has {actual_size:,} of {size:,} bytes"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return f"{name} is not what was saved: its SHA-256 is another one"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    return None


def best_so_far(checkpoint: Path) -> Path | None:
    """Returns the best checkpoint at the time of a whole checkpoint; None if there is none.

    The path is beside the whole checkpoint, so it stays right when their folder is moved.
    """
    state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    return None if best is None else checkpoint.parent / PurePath(best).name


def why_not(checkpoint: Path, *, with_best: bool = False) -> str | None:
    """Returns a text that says why a run cannot resume from a checkpoint; None if it can.

    Args:
        checkpoint: the checkpoint's folder.
        with_best: the run ends with the best checkpoint, so that one must be whole as well.
    """
    if (why := damage(checkpoint)) or not with_best:
        return why
    best = best_so_far(checkpoint)
    if best is None or best == checkpoint or (why := damage(best)) is None:
        return None
    return f"the best checkpoint until then, {best.name}, is not whole: {why}"


def check_checkpoint(path: Path, *, with_best: bool = False) -> None:
    """Raises UsageError unless a run can resume from the checkpoint `path`."""
    if why := why_not(path, with_best=with_best):
        raise UsageError(f"{path} is not a checkpoint to go on from: {why}.{_advice(with_best)}")


def latest_checkpoint(
    folder: Path, tell: Callable[[str], object], *, with_best: bool = False
) -> Path | None:
    """Returns the newest checkpoint that a run can resume from; None if there is no checkpoint.

    Args:
        folder: the run's folder.
        tell: called with one line for each newer checkpoint that is skipped.
        with_best: see `why_not`.

    Raises:
        UsageError: there are checkpoints, but a run can resume from none of them.
    """
    passed: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        why = why_not(checkpoint, with_best=with_best)
        if why is None:
            for line in passed:
                tell(f"passed over {line}")
            return checkpoint
        passed.append(f"{checkpoint}: {why}")
    if passed:
        raise UsageError(
            f"{folder} has no checkpoint to go on from.{_advice(with_best)}\n  "
            + "\n  ".join(passed)
        )
    return None


def _advice(with_best: bool) -> str:
    if not with_best:
        return " Restore its files, or start a new run"
    return (
        " Restore its files, or start a new run; where the best checkpoint alone is damaged, the "
        "run can do without: --accept-changes --load_best_model_at_end false"
    )


def checkpoints(folder: Path) -> list[Path]:
    """Returns all checkpoints in a run's folder, whole or not, ordered by step.

    Raises:
        UsageError: the folder cannot be read.
    """
    try:
        numbered = [
            (int(match[1]), path)
            for path in (folder.iterdir() if folder.exists() else ())
            if (match := CHECKPOINT.fullmatch(path.name)) and path.is_dir()
        ]
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror or error}") from error
    return [path for _, path in sorted(numbered)]


def rotate(newest: Path, *, limit: int | None, best: Path | None) -> None:
    """Deletes the oldest checkpoints beyond `limit`, but never the newest or the best one.

    Args:
        newest: the checkpoint that was just completed.
        limit: how many checkpoints are kept; None or 0 deletes none.
        best: the best checkpoint; None if there is none.
    """
    kept = {newest.name, *([best.name] if best is not None else [])}
    there = checkpoints(newest.parent)
    beyond = len(there) - max(limit, len(kept)) if limit else 0
    removable = [path for path in there if path.name not in kept]
    for path in removable[: max(0, beyond)]:
        remove(path)


def remove(path: Path) -> None:
    """Deletes a folder. The folder is renamed first, so no reader sees it half deleted."""
    aside = path.with_name(f".{path.name}.deleted.{os.getpid()}")
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Finishes the deletion of folders that a killed process had begun to delete."""
    for aside in folder.glob(".*.deleted.*"):
        shutil.rmtree(aside, ignore_errors=True)


def put_in_place(written: Path, place: Path) -> None:
    """Renames the folder `written` to `place`, and replaces a folder there; both on one disk."""
    _on_disk(written)
    if place.exists():
        remove(place)
    written.rename(place)
    _sync(place.parent)


def _on_disk(folder: Path) -> list[Path]:
    """Forces a folder and all that it contains to the disk; returns its files."""
    inside = sorted(folder.rglob("*"))
    for path in (*inside, folder):
        _sync(path)
    return [path for path in inside if path.is_file()]


def _sync(path: Path) -> None:
    """Forces the content of a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
