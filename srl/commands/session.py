"""Guards work in a run's folder: one writer, signals, and disk errors.

Only one process writes into the folder. Signals stop the work. A disk error becomes one message
that says how to continue.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console
from safetensors import SafetensorError
from transformers import PreTrainedModel

from srl.console import say
from srl.errors import RunError, UsageError
from srl.runs.checkpoints import latest_checkpoint
from srl.runs.commands import command_again, resume_command
from srl.runs.folder import RunFolder
from srl.runs.lock import only_writer
from srl.runs.stopping import Stopped, StopSignals

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_FILES = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
}
# Torch's errors when a file could not be written; they do not give the reason.
_TORCH_WROTE_LESS = re.compile(
    r"inline_container|PytorchStreamWriter|file write failed|iostream error|"
    r"Parent directory .* does not exist"
)
# Bytes per trained weight in a checkpoint (float32 and Adam's two moments), and per weight saved.
_CHECKPOINT_BYTES, _WEIGHT_BYTES = 12, 4


@dataclass
class Session:
    """Work in a run's folder.

    Attributes:
        signals: the signals that may stop it.
        accept_changes: a resume continues although its inputs have changed.
        needs: bytes that the next checkpoint and policy take; 0 if not known yet.
    """

    signals: StopSignals = field(default_factory=StopSignals)
    accept_changes: bool = False
    needs: int = 0

    def will_save(self, model: PreTrainedModel, run: RunFolder, console: Console) -> None:
        """Records the size of a checkpoint with the policy; warns if the disk lacks room."""
        trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        self.needs = _CHECKPOINT_BYTES * trained + _WEIGHT_BYTES * model.num_parameters()
        with suppress(OSError):
            free = shutil.disk_usage(run.path).free
            if free < self.needs:
                say(
                    console,
                    f"warning: a checkpoint and the policy take about {_size(self.needs)}, and "
                    f"{run.path} has room for {_size(free)}",
                )


@contextmanager
def session(
    run: RunFolder,
    console: Console,
    *,
    argv: Sequence[str] | None = None,
    accept_changes: bool = False,
    go_on: str | None = None,
) -> Iterator[Session]:
    """Holds a run's folder during work there; messages of errors say how to continue.

    Args:
        run: the folder.
        console: where to print warnings.
        argv: the command line that starts the run; None takes it from command.txt.
        accept_changes: as in `Session`.
        go_on: how to continue, in whole sentences, for work that has no checkpoints.

    Raises:
        UsageError: another process writes into the folder, or something in it is a link.
        Stopped: a signal stopped the work at once.
        RunError: something could not be written.
    """
    entered = Session(accept_changes=accept_changes)
    try:
        with entered.signals, only_writer(run.path, lambda line: say(console, line)):
            run.refuse_links()
            yield entered
    except Stopped as stop:
        raise Stopped(stop.number, f"stopped. {go_on or _go_on(run, argv)}") from None
    except (OSError, RuntimeError, SafetensorError) as error:
        # A trainer's error names the checkpoint that was not saved; its cause has the reason.
        cause = error.__cause__ if isinstance(error, RunError) else None
        cause = cause if isinstance(cause, OSError | RuntimeError | SafetensorError) else error
        if (why := _trouble(cause, run.path, entered.needs)) is None:
            raise
        raise RunError(f"{why}. {go_on or _go_on(run, argv)}") from error


def _go_on(run: RunFolder, argv: Sequence[str] | None) -> str:
    """Returns how to continue from the files in the folder, in whole sentences."""
    checkpoint = None
    with suppress(UsageError, OSError):  # no checkpoint is complete
        checkpoint = latest_checkpoint(run.path, lambda _: None)
    if run.summary.is_file():
        return f"The run in {run.path} is complete"
    if checkpoint is not None:
        return f"Go on from {checkpoint.name} with: {resume_command(run)}"
    words = []
    if argv is None or argv[3] == "train":
        kept = f"; the records stay in {run.path}" if run.config.is_file() else ""
        words.append(f"No checkpoint was saved yet{kept}")
    if again := command_again(run, argv):
        words.append(f"Start again with: {again}")
    return ". ".join(words)


def _trouble(error: Exception, folder: Path, needs: int) -> str | None:
    """Returns what is wrong with the disk, in words; None if the error has another cause."""
    if not isinstance(error, OSError):
        if not isinstance(error, SafetensorError) and not _TORCH_WROTE_LESS.search(str(error)):
            return None
        error = _asked_again(folder, needs) or error
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL:
        free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
        words = f"about {_size(needs)} are needed, and " if needs else ""
        return (
            f"no room left for {folder}: {words}the disk has {_size(free)} free, of which a quota "
            "may allow less. Make room"
        )
    if not folder.is_dir():
        return f"{folder} has gone while this ran, so nothing could be written"
    if not isinstance(error, OSError):
        return f"cannot write into {folder}: {str(error).splitlines()[0]}"
    if number in _OF_FILES:
        return f"cannot read or write {error.filename or folder}: {error.strerror}"
    return None


def _asked_again(folder: Path, needs: int) -> OSError | None:
    """Returns the system's error for reserving `needs` bytes; the libraries do not pass it on."""
    try:
        with TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, max(1, needs))
    except OSError as error:
        return error
    return None


def _size(count: float) -> str:
    """Returns a size as `1.5 GB`, in units of 1000."""
    power = next((power for power in (4, 3, 2, 1) if count >= 1000**power), 0)
    return f"{count / 1000**power:.1f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
