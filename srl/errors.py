"""The one error that means "used wrongly": the CLI prints its message alone and exits with 2."""

from __future__ import annotations


class UsageError(ValueError):
    """Wrong use: a bad config, bad data, a missing file.

    The message says what came, what is allowed and what to type.
    """
