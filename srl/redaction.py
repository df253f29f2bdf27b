"""Redacts secrets, and where things lie on the machine, from what people pass on.

A secret is a text whose key says so (`api_key`, `password`), or that looks like one (`hf_...`, a
URL with a password). Settings name it, as `${SRL_...}`, and the environment holds it: nothing that
is made from them can give it away, and a run is resumed with the variable set. Of a whole path only
its last part is told.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path, PurePosixPath, PureWindowsPath

import yaml

from rewards.secrets import REFERENCE
from srl.errors import UsageError

# Settings of a trainer that are never written down: the hub has a variable of its own, HF_TOKEN.
SECRETS = ("hub_token", "push_to_hub_token")
HIDDEN = "..."

# Words of a key that make it a secret's, wherever they stand in it or as its end.
_ANYWHERE = {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials"}
_LAST = {
    *("token", "pwd", "pass", "auth", "authorization", "bearer", "cookie"),
    *("apikey", "accesskey", "secretkey", "privatekey", "authkey"),
}
_KEYS = {"api", "access", "private", "auth", "encryption", "signing", "service", "account"}
_KEYS |= {"openai", "anthropic", "wandb", "hf", "aws", "azure", "gemini", "google"}
_COUNTED = ("token", "pass")  # numbers under such keys are counts, or tokens of a vocabulary
# Tokens that a text is made of.
_OF_TEXT = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "stop", "end", "start", "special"}
_SHAPES = re.compile(
    r"""(?<![A-Za-z0-9])(?:
    hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{10,} | hf_[A-Za-z0-9]{24,}
    | sk-(?=[\w-]{0,99}\d)[\w-]{12,} | sk-[\w-]{32,}
    | gh[pousr]_[A-Za-z0-9]{16,} | github_pat_\w{16,} | glpat-[\w-]{12,} | npm_[A-Za-z0-9]{24,}
    | xox[a-z]-[\w-]{10,} | AKIA[0-9A-Z]{12,} | AIza[\w-]{20,}
    | eyJ[\w-]{8,2000}\.[\w-]{8,}\.[\w-]* | (?:Bearer|Basic)[ ](?!\$\{)[\w.~+/=-]{12,}
    | -----BEGIN[ A-Z]*PRIVATE[ ]KEY-----.*
    ) | (?<=://)[^\s/@:'"]*:(?!\$\{)[^\s/@'"]+(?=@)""",
    re.VERBOSE | re.DOTALL,
)
# `api_key: value` inside of a text, as YAML, JSON and Python write it.
_PAIR = re.compile(
    r"""(?:(?<=[{,]\s)|(?<=[{,'"(])|^[ ]*|(?<=\s)(?=[\w-]{1,64}=)|--)"""
    r"""(?P<key>[\w-]{1,64}+)['"]?\s*[:=]\s*(?P<value>'[^'\n]*'|"(?:\\.|[^"\\\n])*"|[^,}\]\s'"]+)""",
    re.MULTILINE,
)
_LONGEST = 10_000  # characters of an option that are read as YAML

# A word as a shell reads it. A quote that nobody closes goes on to the end.
_WORD = re.compile(
    r"""(?:'[^']*(?:'|\Z)|"(?:\\(?:.|\Z)|[^"\\])*(?:"|\Z)|\\(?:.|\Z)|[^\s'"\\])+""", re.DOTALL
)
# The folders of a whole path inside of a value: {path: /home/somebody/data.jsonl}
_FOLDERS = re.compile(r"""(?<![\w.~/<-])~?/(?:[^\s/'",{}\[\]]+/)+""")


def shareable(value: object, key: object = None) -> object:
    """Settings without secrets and without places: of each whole path the last part."""
    if key in SECRETS and value is not None:
        return HIDDEN
    if isinstance(value, Mapping):
        return {shareable(name): shareable(inner, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if is_secret(key) and not REFERENCE.fullmatch(value):
        return HIDDEN
    # A prompt is no path, though it may begin as one: /no_think
    return scrubbed(value if _is_prompt(key) else _without_place(value))


def is_secret(key: object) -> bool:
    """Whether a text under such a key is a secret: `api_key`, `hub-token`, `dbPassword`."""
    if not isinstance(key, str):
        return False
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    words = [word for word in re.split(r"[^a-z]+", spaced) if word]
    if not words or words[0] in _OF_TEXT:
        return False
    before = words[-2] if len(words) > 1 else ""
    return (
        bool(_ANYWHERE & {*words}) or words[-1] in _LAST or (words[-1] == "key" and before in _KEYS)
    )


def scrubbed(text: str) -> str:
    """A message or another text of any kind without what is, or looks like, a secret."""

    def pair(found: re.Match[str]) -> str:
        key, value = found.group("key", "value")
        hides = is_secret(key) and not REFERENCE.fullmatch(value.strip("'\""))
        return found[0].removesuffix(value) + HIDDEN if hides else found[0]

    return _PAIR.sub(pair, _SHAPES.sub(HIDDEN, text))


def moved_to_environment(options: Mapping[str, object], place: str) -> dict[str, object]:
    """`options` with `${SRL_...}` in place of each secret, which the environment then holds.

    So the processes that this one starts have it too.

    Args:
        options: of a reward or of a data source.
        place: what they are options of, in the variables' names: `rewards.judge`.

    Raises:
        UsageError: a secret is a number, which would come back as a text.
    """

    def move(text: str, path: str) -> str:
        name = re.sub(r"[^A-Z0-9]+", "_", f"srl.{path}".upper())
        for free in chain([name], (f"{name}_{number}" for number in count(2))):
            if os.environ.setdefault(free, text) == text:
                return f"${{{free}}}"
        raise AssertionError("there is always a further number")

    return _hidden(options, None, place, move)  # type: ignore[return-value]


def _hidden(value: object, key: object, path: str, mark: Callable[[str, str], str]) -> object:
    """`value` with `mark(text, path)` in place of each text that is a secret."""
    if isinstance(value, Mapping):
        return {k: _hidden(inner, k, f"{path}.{k}", mark) for k, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(inner, key, f"{path}.{i}", mark) for i, inner in enumerate(value)]
    if type(value) in (int, float) and is_secret(key) and not str(key).endswith(_COUNTED):
        raise UsageError(f"{path} is a number, and a secret is a text: put it in quotes")
    if not isinstance(value, str) or not value:
        return value
    secret = is_secret(key) and not REFERENCE.search(value)
    return mark(value, path) if secret or _SHAPES.search(value) else value


def without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the values of secret settings hidden."""
    shown: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if word.startswith("--") and not word.startswith("---"):
            word = f"{option}{equals}{_without_secret(value, _setting(option))}"
        else:
            word = _without_secret(word, _setting(before))
        shown.append(word)
    return shown


def _without_secret(text: str, setting: str) -> str:
    """The value of an option; inside of a block of settings too."""
    if text and is_secret(setting.rpartition(".")[2]) and not REFERENCE.fullmatch(text):
        return HIDDEN
    # With an alias a few words unfold to gigabytes.
    if ":" in text and "{" in text and "*" not in text and len(text) < _LONGEST:
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            return scrubbed(text)
        hidden = _hidden(value, None, "", lambda *_: HIDDEN)
        if isinstance(value, dict) and hidden != value:
            return yaml.safe_dump(
                hidden, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True
            ).strip()
    return scrubbed(text)


def shareable_command(text: str) -> str:
    """Command lines as a shell takes them, without secrets and without places."""
    written = _WORD.findall(text)
    words = [_unquoted(word) for word in written]
    shown = []
    for before, word, hidden, asis in zip(
        ["", *words], words, without_secrets(words), written, strict=False
    ):
        told = hidden if _is_prompt(_setting(before)) else _without_places(hidden)
        shown.append(asis if told == word else shlex.quote(told))
    rest = iter(shown)
    return _WORD.sub(lambda _: next(rest), text)


def told_apart(paths: Sequence[Path]) -> list[str]:
    """For each path its name, with as many of its folders as tell it from the others."""
    parts = [path.resolve().parts[1:] for path in paths]
    for size in range(1, max(map(len, parts), default=0) + 1):
        tails = ["/".join(part[-size:]) for part in parts]
        if len(set(tails)) == len(tails):
            return tails
    return list(map(str, paths))


def _without_place(value: str) -> str:
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() or value.startswith("~"):
            return kind(value).name
    return value


def _without_places(word: str) -> str:
    """A word of a command line: a path, an option with one in its name or value, a YAML value."""
    if not word.startswith("--"):
        told = _without_place(word)
        return _FOLDERS.sub("", word) if told == word else told
    option, equals, value = word.partition("=")
    block, dot, name = option.partition(".")
    told = value if _is_prompt(_setting(option)) else _without_places(value)
    return f"{block}{dot}{_without_place(name)}{equals}{told}"


def _setting(option: str) -> str:
    """The setting that an option of a command line names: `hub_token` of `--hub-token`."""
    return option[2:].replace("-", "_") if option.startswith("--") else ""


def _is_prompt(key: object) -> bool:
    return isinstance(key, str) and key.endswith("prompt")


def _unquoted(word: str) -> str:
    try:
        return "".join(shlex.split(word))
    except ValueError:  # a quote that nobody closes
        return word
