"""Builds the commands that resume a run or start it again, quoted for a shell.

If the project's Makefile started this process, `train` is written as a make command.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise

from srl.runs.folder import RunFolder, free_name

# Words that make passes to the shell unchanged.
_PLAIN = re.compile(r"[\w./+=@:,-]+", re.ASCII)


def resume_command(run: RunFolder) -> str:
    """Returns the command that resumes the run."""
    return f"make resume RUN={_for_make(run.called)}"


def command_again(run: RunFolder, words: Sequence[str] | None = None) -> str:
    """Returns the command that started the run, with a free name if its own name is in use.

    The command is empty if it is unknown.

    Args:
        run: the run's folder, which may be gone.
        words: the command line that started the run; by default the first one in command.txt.
    """
    words = _first_command(run) if words is None else list(words)
    if words[1:3] != ["-m", "srl"] or words[3:4] not in (["train"], ["eval"]):
        return ""
    command, (name, others) = words[3], _without_name(words[4:])
    if name is not None:
        name = free_name(run.path.parent, name)
    by_make = command == "train" and os.environ.get("SRL_STARTED_BY") == "make"
    make = _make_command(name, others) if by_make else ""
    named = [] if name is None else ["--run-name", name]
    return make or shlex.join([sys.executable, "-m", "srl", command, *others, *named])


def _first_command(run: RunFolder) -> list[str]:
    """Returns the words of the first command line in command.txt; words may hold line ends."""
    try:
        words = shlex.split(run.command.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    pairs = enumerate(pairwise(words))
    starts = [place - 1 for place, pair in pairs if pair == ("-m", "srl")]
    return words[starts[0] : starts[1]] if len(starts) > 1 else words


def _without_name(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the value of --run-name, and the other words."""
    name, others = None, list(words)
    for place, word in enumerate(others):
        option, equals, value = word.partition("=")
        if option == "--run-name":
            count = 1 if equals else 2
            name = value if equals else "".join(others[place + 1 : place + 2])
            del others[place : place + count]
            break
    return name, others


def _make_command(name: str | None, words: Sequence[str]) -> str:
    """Returns `make train …`; empty if make cannot pass the words on."""
    if list(words[:1]) != ["--config"] or not all(map(_PLAIN.fullmatch, [words[1], name or "-"])):
        return ""
    config, *options = words[1:]
    given = [f"CONFIG={config}", *([] if name is None else [f"RUN={name}"])]
    if options:
        if any("\n" in word for word in options):  # a line end would end the recipe's line
            return ""
        given.append(f"ARGS={_for_make(shlex.join(options))}")
    return " ".join(["make", "train", *given])


def _for_make(text: str) -> str:
    return shlex.quote(text.replace("$", "$$"))
