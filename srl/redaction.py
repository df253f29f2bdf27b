"""Redacts secrets and absolute paths from anything that users may share.

A secret is a text whose key says so (`api_key`, `password`), or a text that looks like one
(`hf_...`, a URL with a password). Settings contain only its name, `${SRL_...}`, and the environment
contains its value. So nothing made from settings reveals it, and a resume needs the variable. Of an
absolute path only the last part is shown.
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

# Trainer settings that are never written to a file; the hub has its own variable, HF_TOKEN.
SECRETS = ("hub_token", "push_to_hub_token")
HIDDEN = "..."

# A key with one of these words anywhere, or one of `_LAST` at its end, names a secret.
_ANYWHERE = {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials"}
_LAST = {
    *("token", "pwd", "pass", "auth", "authorization", "bearer", "cookie"),
    *("apikey", "accesskey", "secretkey", "privatekey", "authkey"),
}
_KEYS = {"api", "access", "private", "auth", "encryption", "signing", "service", "account"}
_KEYS |= {"openai", "anthropic", "wandb", "hf", "aws", "azure", "gemini", "google"}
_COUNTED = ("token", "pass")  # numbers under such keys are counts, or token ids of a vocabulary
# A key that begins with one of these names a token of the vocabulary, not a secret.
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
# `api_key: value` inside a text, as YAML, JSON and Python write it.
_PAIR = re.compile(
    r"""(?:(?<=[{,]\s)|(?<=[{,'"(])|^[ ]*|(?<=\s)(?=[\w-]{1,64}=)|--)"""
    r"""(?P<key>[\w-]{1,64}+)['"]?\s*[:=]\s*(?P<value>'[^'\n]*'|"(?:\\.|[^"\\\n])*"|[^,}\]\s'"]+)""",
    re.MULTILINE,
)
_LONGEST = 10_000  # options with fewer characters are read as YAML

# A word as a shell reads it. An unclosed quote extends to the end of the text.
_WORD = re.compile(
    r"""(?:'[^']*(?:'|\Z)|"(?:\\(?:.|\Z)|[^"\\])*(?:"|\Z)|\\(?:.|\Z)|[^\s'"\\])+""", re.DOTALL
)
# The folders of an absolute path inside a value: {path: /home/somebody/data.jsonl}
_FOLDERS = re.compile(r"""(?<![\w.~/<-])~?/(?:[^\s/'",{}\[\]]+/)+""")


def shareable(value: object, key: object = None) -> object:
    """Returns settings without secrets and with only the last part of each absolute path."""
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
    # A prompt is not a path, although it may begin like one: /no_think
    return scrubbed(value if _is_prompt(key) else _without_place(value))


def is_secret(key: object) -> bool:
    """Returns whether a text under this key is a secret: `api_key`, `hub-token`, `dbPassword`."""
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
    """Returns a text of any kind without secrets and without what looks like a secret."""

    def pair(match: re.Match[str]) -> str:
        key, value = match.group("key", "value")
        hides = is_secret(key) and not REFERENCE.fullmatch(value.strip("'\""))
        return match[0].removesuffix(value) + HIDDEN if hides else match[0]

    return _PAIR.sub(pair, _SHAPES.sub(HIDDEN, text))


def moved_to_environment(options: Mapping[str, object], place: str) -> dict[str, object]:
    """Returns `options` with each secret moved to the environment and replaced by `${SRL_...}`.

    So child processes inherit the secret.

    Args:
        options: of a reward or of a data source.
        place: the owner of the options, which names the variables: `rewards.judge`.

    Raises:
        UsageError: a secret is a number, which the environment would return as a text.
    """

    def move(text: str, path: str) -> str:
        name = re.sub(r"[^A-Z0-9]+", "_", f"srl.{path}".upper())
        for free in chain([name], (f"{name}_{number}" for number in count(2))):
            if os.environ.setdefault(free, text) == text:
                return f"${{{free}}}"
        raise AssertionError("there is always a further number")

    return _hidden(options, None, place, move)  # type: ignore[return-value]


def _hidden(value: object, key: object, path: str, mark: Callable[[str, str], str]) -> object:
    """Returns `value` with each secret text replaced by `mark(text, path)`."""
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
    """Returns the words of a command line with the values of secret settings hidden."""
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
    """Returns the value of an option with secrets hidden, also inside a block of settings."""
    if text and is_secret(setting.rpartition(".")[2]) and not REFERENCE.fullmatch(text):
        return HIDDEN
    # A short YAML text with aliases can expand to gigabytes, so `*` excludes it.
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
    """Returns shell command lines without secrets and without the folders of absolute paths."""
    written = _WORD.findall(text)
    words = [_unquoted(word) for word in written]
    shown = []
    for before, word, hidden, asis in zip(
        ["", *words], words, without_secrets(words), written, strict=False
    ):
        cleaned = hidden if _is_prompt(_setting(before)) else _without_places(hidden)
        shown.append(asis if cleaned == word else shlex.quote(cleaned))
    rest = iter(shown)
    return _WORD.sub(lambda _: next(rest), text)


def told_apart(paths: Sequence[Path]) -> list[str]:
    """Returns each path's name with the fewest parent folders that make all names differ."""
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
    """Returns a word of a command line with the folders of absolute paths removed."""
    if not word.startswith("--"):
        cleaned = _without_place(word)
        return _FOLDERS.sub("", word) if cleaned == word else cleaned
    option, equals, value = word.partition("=")
    block, dot, name = option.partition(".")
    cleaned = value if _is_prompt(_setting(option)) else _without_places(value)
    return f"{block}{dot}{_without_place(name)}{equals}{cleaned}"


def _setting(option: str) -> str:
    """Returns the setting that an option names: `hub_token` for `--hub-token`."""
    return option[2:].replace("-", "_") if option.startswith("--") else ""


def _is_prompt(key: object) -> bool:
    return isinstance(key, str) and key.endswith("prompt")


def _unquoted(word: str) -> str:
    try:
        return "".join(shlex.split(word))
    except ValueError:  # an unclosed quote
        return word
