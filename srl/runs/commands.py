"""What to type to go on with a run or to start it again, quoted for a shell.

Where our Makefile started this process, `train` is written as make takes it.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise

from srl.runs.folder import RunFolder, free_name

# Words that make hands to the shell as they are.
_PLAIN = re.compile(r"[\w./+=@:,-]+", re.ASCII)


def resume_command(run: RunFolder) -> str:
    """The command that goes on with the run."""
    return f"make resume RUN={_for_make(run.called)}"


def command_again(run: RunFolder, words: Sequence[str] | None = None) -> str:
    """The command that started the run, under a free name if its own is in use; empty if unknown.

    Args:
        run: the folder, which may have gone.
        words: the command line that started it; by default that of command.txt.
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
    """The first command line in command.txt, whose words may hold line ends."""
    try:
        words = shlex.split(run.command.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    pairs = enumerate(pairwise(words))
    starts = [place - 1 for place, pair in pairs if pair == ("-m", "srl")]
    return words[starts[0] : starts[1]] if len(starts) > 1 else words


def _without_name(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --run-name, and the other words."""
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
    """`make train …`; empty where make could not hand the words on."""
    if list(words[:1]) != ["--config"] or not all(map(_PLAIN.fullmatch, [words[1], name or "-"])):
        return ""
    config, *options = words[1:]
    given = [f"CONFIG={config}", *([] if name is None else [f"RUN={name}"])]
    if options:
        if any("\n" in word for word in options):  # it would end a line of the recipe
            return ""
        given.append(f"ARGS={_for_make(shlex.join(options))}")
    return " ".join(["make", "train", *given])


def _for_make(text: str) -> str:
    return shlex.quote(text.replace("$", "$$"))
