"""Finds the environment of the source that settings name: a built-in, or the user's own code."""

from __future__ import annotations

from environments import Environment, as_environment, built_in_environment
from rewards.by_path import find, resolve
from srl.errors import UsageError


def environment_at(source: str) -> Environment:
    """Returns the environment called `source`: a built-in name, `file.py:Name` or `module:Name`.

    Raises:
        DataError: there is no such built-in, or the named object is no environment.
        UsageError: the named object does not exist, or it cannot be imported.
    """
    if ":" not in source:
        return built_in_environment(source)
    try:
        environment = find(source, what="environment")
    except ValueError as error:
        raise UsageError(f"source: {error}") from error
    return as_environment(environment, source)


def whole_source(source: str) -> str:
    """Returns the source with a file's absolute path, so that a run can resume from any folder."""
    return resolve(source, what="environment") if ":" in source else source
