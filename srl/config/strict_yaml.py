"""YAML that people write, strictly read: files, values on a command line, fields of settings."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar, Union

import yaml

from srl.errors import UsageError

T = TypeVar("T")

_FEW = 12  # So many words can be listed in a message.
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


def refuse_unknown(keys: Iterable[object], known: Collection[str], where: str) -> None:
    """Raise UsageError for a key that is not known; it names the nearest one, or a few that are."""
    for key in keys:
        if key not in known:
            few = f"; allowed: {', '.join(known)}" if len(known) <= _FEW else ""
            raise UsageError(f"{where}: unknown key {key!r}{nearest(key, known) or few}")


def nearest(word: object, known: Collection[str]) -> str:
    """The known word that was perhaps meant, as the end of a message; or nothing."""
    near = get_close_matches(str(word), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def build(kind: type[T], values: Mapping[str, object], where: str) -> T:
    """The dataclass `kind` with `values`, each of them of its field's type.

    Raises:
        UsageError: a wrong type, or what the class itself refuses; `where` names the origin.
    """
    hints = typing.get_type_hints(kind)
    fitting = {key: fit(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    try:
        return kind(**fitting)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except (ValueError, TypeError, ImportError) as error:  # transformers' checks, in its words
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{where}: {reason}") from error


def fit(value: object, hint: object, where: str) -> object:
    """`value` if it is of type `hint`, a whole number as float where one is asked for.

    Raises:
        UsageError: it is not; `where` names it.
    """
    if value is False and where.endswith("_strategy"):
        value = "no"  # YAML 1.1 reads a bare `no` as False: eval_strategy: no
    if type(value) is date and hint is str:
        value = value.isoformat()  # prompt_date: 2024-07-26, without quotes
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        if value in allowed:
            return value
        raise UsageError(f"{where} is {value!r}; allowed: {', '.join(map(str, allowed))}")
    options = typing.get_args(hint) if origin in (Union, types.UnionType) else (hint,)
    plain = [option for option in options if option is not type(None)]
    if value is None and len(plain) < len(options):
        return None
    for option in plain:
        base = typing.get_origin(option) or option
        if base not in (bool, int, float, str, list, dict):
            return value  # an enum or a class of transformers, which checks it itself
        if type(value) is base or (base is float and type(value) is int):
            return float(value) if base is float else value  # type: ignore[arg-type]
        # YAML 1.1 reads 1e-4 as text.
        if base is float and isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    names = names.replace("NoneType", "null")
    raise UsageError(f"{where} is {value!r} ({type(value).__name__}); it must be of type {names}")


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
