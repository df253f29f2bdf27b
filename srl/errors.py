"""Errors whose message says all there is to say: the CLI prints it alone, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """Wrong use: a bad config, bad data, a missing file; exit code 2.

    The message says what came, what is allowed and what to type.
    """


class RunError(RuntimeError):
    """A run cannot go on, for a reason outside the program; exit code 1.

    The message says all there is to say.
    """


class DivergedError(RunError):
    """The policy computes no numbers any more."""


class OutOfMemoryError(RunError):
    """What is computed does not fit into memory with these settings."""


@contextmanager
def libraries_refuse() -> Iterator[None]:
    """What transformers and TRL refuse when a trainer is made is wrong use, said in their words.

    They check some settings only there, such as a tracker nobody has installed. A RuntimeError
    that speaks of nothing to install is a defect, and passes.

    Raises:
        UsageError: the library refused.
    """
    try:
        yield
    except (ImportError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "install" not in str(error):
            raise
        raise UsageError(str(error).strip()) from error
