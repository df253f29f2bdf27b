"""Code of one's own by the name of its place: `file.py:name` or `package.module:name`."""

from __future__ import annotations

from rewards.loading import _import, found_target


class CodeNameError(ValueError):
    """Code that cannot be found; the message says what there is instead."""


def find(target: str, *, what: str, example: str) -> object:
    """Returns what stands at `target`.

    Raises:
        CodeNameError: nothing stands there, or it cannot be imported.
    """
    try:
        place, _, name = found_target(target).rpartition(":")
        module = _import(place)
    except ValueError as error:
        raise CodeNameError(str(error)) from error
    if not hasattr(module, name):
        raise CodeNameError(f"{place} has no {name!r}")
    return getattr(module, name)
