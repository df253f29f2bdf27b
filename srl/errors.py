"""Errors with a complete message: the CLI prints only the message, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """Wrong use: a bad config, bad data, a missing file; exit code 2.

    The message says what was given, what is allowed and what to type.
    """


class RunError(RuntimeError):
    """A run cannot continue, for a reason outside the program; exit code 1.

    The message is complete.
    """


class DivergedError(RunError):
    """The policy computes values that are not numbers."""


class OutOfMemoryError(RunError):
    """The computation does not fit into memory with these settings."""


@contextmanager
def libraries_refuse() -> Iterator[None]:
    """Turns errors of transformers and TRL while a trainer is made into a UsageError.

    The libraries check some settings only there, such as a tracker that is not installed. A
    RuntimeError whose message does not contain "install" is a defect and passes unchanged.

    Raises:
        UsageError: the library refused; the message is the library's.
    """
    try:
        yield
    except (ImportError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "install" not in str(error):
            raise
        raise UsageError(str(error).strip()) from error
