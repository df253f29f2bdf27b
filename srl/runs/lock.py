"""Allows one writer per run folder, by a lock that the kernel releases when its process ends.

The lock is `flock` on the file `.lock` in the folder. A killed process leaves no lock behind, only
the file, which names the last writer. A copy of a folder does not copy the lock. The lock is on a
file and not on the folder, because over NFS only a file that is open for writing can be locked.
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
# The errors of `flock` on file systems without locks, such as some network file systems.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextmanager
def only_writer(folder: Path, warn: Callable[[str], object]) -> Iterator[None]:
    """Holds the folder's lock inside this context, then removes its file, and the folder if empty.

    Args:
        folder: an existing folder.
        warn: called with a one-line warning if the lock may not keep other writers out.

    Raises:
        UsageError: another process writes to the folder, or the folder cannot be written.
    """
    path = folder / LOCK
    descriptor = _take(path, warn)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone, and the file with it
            path.unlink()
        os.close(descriptor)
        with suppress(OSError):
            folder.rmdir()


def writer_of(folder: Path) -> str | None:
    """Returns a text that names the process writing to the folder now; None if there is none."""
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
    """Locks the file, writes this process into it, and returns its descriptor."""
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
        os.close(descriptor)  # the previous holder removed the file: lock the new one
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
