"""Errors whose message says all there is to say: the CLI prints it alone, without a traceback."""

from __future__ import annotations


class UsageError(ValueError):
    """Wrong use: a bad config, bad data, a missing file; exit code 2.

    The message says what came, what is allowed and what to type.
    """


class DivergedError(RuntimeError):
    """The policy computes no numbers any more; exit code 1."""
