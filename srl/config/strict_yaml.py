"""YAML that people write: files of settings, and values on a command line, strictly read."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import yaml

from srl.errors import UsageError

_MERGE = "tag:yaml.org,2002:merge"
# What YAML cannot read, in whichever words: a date that is none is a ValueError, brackets in
# thousands are a RecursionError.
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)


class _StrictLoader(yaml.SafeLoader):
    """A key that stands twice in a block is refused: its first value would be lost."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        # What `<<:` merges in may be overridden: that is what it is for.
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key!r} stands twice in the block of line {line}")
        return super().construct_mapping(node, deep)


def read_settings(path: Path) -> dict[str, object]:
    """A file of `key: value` lines.

    Raises:
        UsageError: it cannot be read, is no YAML, holds a key twice, or is no mapping of
            texts.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except _UNREADABLE as error:
        raise UsageError(f"{path} is not YAML: {_reason(error)}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold settings as `key: value` lines, it holds {values!r}")
    for key in values:
        if not isinstance(key, str):
            raise UsageError(f"{path}: the key {key!r} is no text; put it in quotes")
    return values


def read_value(text: str, option: str) -> object:
    """The value of an option on the command line; `option` names it in the message.

    Raises:
        UsageError: it is no YAML.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except _UNREADABLE as error:
        raise UsageError(f"{option}: {text[:200]!r} cannot be read: {_reason(error)}") from error


def apply_overrides(values: Mapping[str, object], words: Sequence[str]) -> dict[str, object]:
    """`--key value`, `--key=value` and `--block.key value` put into a copy of `values`.

    Dashes in a key may stand for underscores. Values are read as YAML.

    Raises:
        UsageError: a word that is no option, or an option without its value.
    """
    result = {key: dict(v) if isinstance(v, dict) else v for key, v in values.items()}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UsageError(f"{word!r} is not an option; settings are given as --key value")
        key, has_value, text = word[2:].partition("=")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{key} has no value; write --{key} VALUE")
            text = rest.pop(0)
        value = read_value(text, f"--{key}")
        block, _, inner = key.partition(".")
        block = block.replace("-", "_")
        if not inner:
            result[block] = value
            continue
        target = result.setdefault(block, {})
        if not isinstance(target, dict):
            raise UsageError(f"--{key}: {block} is one value, {target!r}, and has no parts")
        target[inner if block == "rewards" else inner.replace("-", "_")] = value
    return result


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
