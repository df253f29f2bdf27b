"""One writer per run folder: a lock that the kernel gives back when its process ends.

The lock is `flock` on the file `.lock` in the folder, so a killed process leaves no lock behind,
only the file, which says who wrote there last. A copy of a folder copies no lock. A file of its own
rather than the folder: over NFS only a file that is open for writing can be locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from srl.errors import UsageError

LOCK = ".lock"
# What `flock` says where there are no locks: some network file systems.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextmanager
def only_writer(folder: Path, warn: Callable[[str], object]) -> Iterator[None]:
    """Holds the folder's lock; at the end its file goes, and with it a folder that is then empty.

    Args:
        folder: an existing folder.
        warn: told in one line what a lock cannot promise here.

    Raises:
        UsageError: another process writes there; or the folder cannot be written.
    """
    path = folder / LOCK
    descriptor = _take(path, warn)
    try:
        yield
    finally:
        with suppress(OSError):  # it has gone with its folder
            path.unlink()
        os.close(descriptor)
        with suppress(OSError):
            folder.rmdir()


def writer_of(folder: Path) -> str | None:
    """Who writes into the folder now, in words; None if nobody does."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor) or "another process"
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _take(path: Path, warn: Callable[[str], object]) -> int:
    """The descriptor of the locked file."""
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write into {path.parent}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read(descriptor) or "another process"
            os.close(descriptor)
            raise UsageError(
                f"{path.parent} is being written by {owner}. Wait until it has ended, or stop it; "
                "a second one would mix its files with the first one's"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            warn(
                f"warning: the file system of {path.parent} has no locks ({error.strerror}); see "
                "to it that no other process writes there"
            )
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                break
        os.close(descriptor)  # the holder before us took the file away: take the new one
    here = socket.gethostname()
    before = _read(descriptor)
    if before and f" on {here} " not in before:
        warn(
            f"warning: {path.parent} was last written by {before}, which did not end properly. If "
            "it still runs there and this file system's locks do not reach that far, stop it"
        )
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {here} since {now}".encode(), 0)
    return descriptor


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 500, 0).decode(errors="replace").strip()
