"""From the source that settings name to its environment: a built-in, or code of one's own."""

from __future__ import annotations

from environments import Environment, as_environment, built_in_environment
from rewards.by_path import find, resolve
from srl.errors import UsageError


def environment_at(source: str) -> Environment:
    """Returns the environment called `source`: a built-in name, `file.py:Name` or `module:Name`.

    Raises:
        DataError: no such built-in, or what stands there is no environment.
        UsageError: nothing stands there, or it cannot be imported.
    """
    if ":" not in source:
        return built_in_environment(source)
    try:
        found = find(source, what="environment")
    except ValueError as error:
        raise UsageError(f"source: {error}") from error
    return as_environment(found, source)


def whole_source(source: str) -> str:
    """The source with a file's absolute path, so that a run is resumed from any folder."""
    return resolve(source, what="environment") if ":" in source else source
