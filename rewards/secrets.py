"""Reads secrets from the environment: settings hold only the reference `${SRL_NAME}`.

The name of the variable must begin with `SRL_`, so that settings from another person cannot read
other secrets of the machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from rewards.by_path import CodeNameError

REFERENCE = re.compile(r"\$\{(SRL_[A-Z0-9_]+)\}")


def revealed(value: object) -> object:
    """Returns `value` with every `${SRL_NAME}` in its strings replaced by that variable's value.

    Raises:
        CodeNameError: the environment has no such variable.
    """
    if isinstance(value, Mapping):
        return {key: revealed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [revealed(inner) for inner in value]
    return REFERENCE.sub(_read, value) if isinstance(value, str) else value


def concealed(text: str, value: object) -> str:
    """Returns `text` with each secret that `value` names replaced by its `${SRL_NAME}`."""
    for name in set(_names(value)):
        if secret := os.environ.get(name):
            text = text.replace(secret, f"${{{name}}}")
    return text


def _read(match: re.Match[str]) -> str:
    try:
        return os.environ[match[1]]
    except KeyError:
        raise CodeNameError(
            f"the secret {match[1]} is missing: it is not kept with the settings; set it in the "
            f"environment, as in: export {match[1]}=..."
        ) from None


def _names(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _names(inner)
    elif isinstance(value, str):
        yield from REFERENCE.findall(value)
