"""What a run keeps to itself when its folder, its report or its records are passed on: tokens, and
where things lie on the machine. Of a whole path only its last part is told.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

# Never written to config.yaml or command.txt: a run folder is shared more easily than one thinks.
SECRETS = ("hub_token", "push_to_hub_token")
HIDDEN = "..."

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
        return [shareable(inner) for inner in value]
    # A prompt is no path, though it may begin as one: /no_think
    return _without_place(value) if isinstance(value, str) and not _is_prompt(key) else value


def without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the values of secret settings hidden."""
    shown: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, _ = word.partition("=")
        if equals and _setting(option) in SECRETS:
            word = f"{option}={HIDDEN}"
        elif _setting(before) in SECRETS and not word.startswith("--"):
            word = HIDDEN
        shown.append(word)
    return shown


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
    for count in range(1, max(map(len, parts), default=0) + 1):
        tails = ["/".join(part[-count:]) for part in parts]
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
