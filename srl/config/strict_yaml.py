"""Reads YAML strictly: files, values on a command line, and fields of settings."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar, Union

import yaml

from srl.errors import UsageError

T = TypeVar("T")

# Errors that a library's settings class raises for values that it does not accept.
_REFUSALS = (ValueError, TypeError, ImportError, OSError, ArithmeticError, LookupError)

# What other programs call some settings.
_USUAL = {
    "lr": "learning_rate",
    "batch_size": "prompts_per_step",
    "train_batch_size": "prompts_per_step",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
    "group_size": "num_generations",
    "rollouts": "num_generations",
    "num_rollouts": "num_generations",
    "generations": "num_generations",
    "max_tokens": "max_completion_length",
    "max_new_tokens": "max_completion_length",
}
_EXAMPLES = {
    bool: ": true or false",
    int: ", such as 3",
    float: ", such as 0.5",
    list: ", such as [a, b]",
    dict: ", such as {name: value}",
}
_FEW = 12  # a message lists at most this many words
_MERGE = "tag:yaml.org,2002:merge"
_TYPES_OF_1_1 = ("int", "float", "timestamp")
_DEEPEST, _MOST_VALUES = 50, 10_000  # limits of a file, or of an option
_LARGEST = 2**53  # a float can represent all whole numbers up to this one
# Errors for text that YAML cannot read. Too many digits raise a ValueError; thousands of nested
# brackets raise a RecursionError.
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that refuses ambiguous and harmful text; the module's tests show all cases.

    A key that occurs twice in a block would lose its first value. Tags create types that settings
    do not have. Nested aliases can unfold to gigabytes. Numbers are those of YAML 1.2: 1e-4 is a
    number, and 010, 1:30 and 2026-01-01 are texts.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._unfolded = 0
        self._sizes: dict[int, int] = {}  # id of a node -> its size with all aliases unfolded

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event, before = self.peek_event(), self._unfolded
        line = event.start_mark.line + 1
        if (tag := getattr(event, "tag", None)) is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.YAMLError(f"line {line} has a tag ({shown}); put a text in quotes")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.YAMLError(f"line {line}: it is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._unfolded += 1
            self._sizes[id(node)] = self._unfolded - before
        elif id(node) in self._sizes:
            self._unfolded += self._sizes[id(node)]
        else:
            raise yaml.YAMLError(f"line {line}: *{event.anchor} stands inside of itself")
        if self._unfolded > _MOST_VALUES:
            raise yaml.YAMLError(f"line {line}: these are more than {_MOST_VALUES:,} values")
        return node

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        # Keys that `<<:` merges in are not checked here, because a block may override them.
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        line = node.start_mark.line + 1
        for key in keys:
            if not isinstance(key, str):
                raise yaml.YAMLError(
                    f"the key {key!r} is no text; put it in quotes (the block of line {line})"
                )
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands twice in the block of line {line}")
        return super().construct_mapping(node, deep)


_NUMBERS = {
    "int": r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in pairs if tag.rpartition(":")[2] not in _TYPES_OF_1_1]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _type, _regexp in _NUMBERS.items():
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_type}", re.compile(f"(?:{_regexp})\\Z"), list("-+.0123456789")
    )


def read_settings(path: Path) -> dict[str, object]:
    """Returns the settings of a file of `key: value` lines.

    Raises:
        UsageError: the file cannot be read, is no YAML, has a key twice, or is no mapping whose
            keys are texts.
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
    """Returns the value of an option on the command line; `option` names it in the message.

    Raises:
        UsageError: the text is no YAML.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except _UNREADABLE as error:
        raise UsageError(f"{option}: {text[:200]!r} cannot be read: {_reason(error)}") from error


def refuse_unknown(keys: Iterable[object], known: Collection[str], where: str) -> None:
    """Raises UsageError for an unknown key; it names the nearest known key, or all of a few."""
    for key in keys:
        if key not in known:
            allowed = "; docs/commands.md says where all settings are described"
            if len(known) <= _FEW:
                allowed = f"; allowed: {', '.join(known)}"
            raise UsageError(f"{where}: unknown key {key!r}{nearest(key, known) or allowed}")


def nearest(word: object, known: Collection[str]) -> str:
    """Returns the end of a message that suggests the most similar known word; empty if none is."""
    usual = _USUAL.get(str(word))
    near = [usual] if usual in known else get_close_matches(str(word), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def build(kind: type[T], values: Mapping[str, object], where: str) -> T:
    """Returns the dataclass `kind` with `values`, after a check of each value's type.

    Raises:
        UsageError: a value has the wrong type, or the class refuses it; `where` names the origin.
    """
    hints = typing.get_type_hints(kind)
    fitting = {key: fit(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    try:
        return kind(**fitting)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except _REFUSALS as error:  # transformers' own checks; the message keeps its words
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{where}: {reason}") from error


def fit(value: object, hint: object, where: str) -> object:
    """Returns `value` if it has the type `hint`; a whole number becomes a float if needed.

    Raises:
        UsageError: the value has another type; `where` names the value.
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
            return value  # an enum or a class of transformers, which checks the value itself
        if base is float and isinstance(value, str):  # a run's config.yaml has 1e-4 as a text
            with suppress(ValueError):
                value = float(value)
        if type(value) is int and base in (int, float) and abs(value) > _LARGEST:
            raise UsageError(f"{where} is a number of {len(str(value))} digits, which is too large")
        if type(value) is base or (base is float and type(value) is int):
            if base is float and not math.isfinite(value):  # type: ignore[arg-type]
                raise UsageError(f"{where} is {value}; give a finite number")
            return float(value) if base is float else value  # type: ignore[arg-type]
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    names = names.replace("NoneType", "null")
    example = _EXAMPLES.get(typing.get_origin(plain[0]) or plain[0], "")
    raise UsageError(
        f"{where} is {value!r} ({type(value).__name__}); it must be of type {names}{example}"
    )


def apply_overrides(values: Mapping[str, object], words: Sequence[str]) -> dict[str, object]:
    """Returns a copy of `values` with the options of a command line applied.

    Options are `--key value`, `--key=value` and `--block.key value`. A key may use dashes in place
    of underscores. Values are read as YAML.

    Raises:
        UsageError: a word is no option, or an option has no value.
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
        if block == "format_failure_reward" and isinstance(target, int | float):
            target = result[block] = {"default": target}  # one number stands for all reasons
        if not isinstance(target, dict):
            raise UsageError(f"--{key}: {block} is one value, {target!r}, and has no parts")
        target[inner if block == "rewards" else inner.replace("-", "_")] = value
    return result


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
