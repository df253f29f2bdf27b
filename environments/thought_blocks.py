"""Separates steps from the blocks of thought that reasoning models write before them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from environments.reading import UnusableRowError
from environments.types import Step

ThinkBlocks = Literal["thought", "trajectory", "drop"]
"""How to treat a `<think>` block: keep it as the thought of the next step, turn it into steps of
its own before that step, or drop it."""

OPEN_BLOCK = "a think block without an end"
ONLY_THOUGHT = "nothing but a think block"

# A block starts a line. The second pair is that of OpenThoughts and Bespoke-Stratos.
_BLOCK = re.compile(
    r"^[ \t]*<(think|thinking|thought|reasoning)>(?P<one>.*?)</\1>"
    r"|^[ \t]*<\|begin_of_thought\|>(?P<two>.*?)<\|end_of_thought\|>",
    re.DOTALL | re.MULTILINE,
)
_OPENS = re.compile(
    r"^[ \t]*(?:<(?:think|thinking|thought|reasoning)>|<\|begin_of_thought\|>)", re.MULTILINE
)
# Some chat templates write the opening tag, so that the data has only the closing tag.
_CLOSED = re.compile(
    r"\A(?P<one>.*?)^[ \t]*(?:</think(?:ing)?>|<\|end_of_thought\|>)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
_AROUND_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>")


def segments(text: str, *, everywhere: bool) -> list[tuple[str, str]]:
    """Splits a text at its think blocks.

    Args:
        text: a solution or a step.
        everywhere: also at blocks that start a later line; otherwise at a leading block only.

    Returns:
        For each part its thought, without tags and empty if there is none, and the text after it.

    Raises:
        UnusableRowError: a block is not closed.
    """
    text = _AROUND_SOLUTION.sub("", text)
    parts: list[tuple[str, str]] = []
    thought, at = "", 0
    closed = _CLOSED.match(text)
    if closed is not None and not _OPENS.search(closed["one"]):
        thought, at = closed["one"].strip(), closed.end()
    for block in _BLOCK.finditer(text, at):
        before = text[at : block.start()]
        if before.strip() and not everywhere:
            break
        if before.strip() or thought:
            parts.append((thought, before))
        thought, at = (block["one"] or block["two"] or "").strip(), block.end()
    rest = text[at:]
    opening = _OPENS.search(rest)
    if opening is not None and (everywhere or not rest[: opening.start()].strip()):
        raise UnusableRowError(OPEN_BLOCK)
    return [*parts, (thought, rest)]


def with_thoughts(
    steps: Iterable[Step],
    cut: Callable[[str], Iterable[str]],
    blocks: ThinkBlocks,
    *,
    whole: bool,
) -> Iterator[Step]:
    """Yields the steps without think blocks in their texts.

    Args:
        steps: the steps of a row; a solution that is still to be cut is one step.
        cut: a text -> its steps.
        blocks: how to treat the blocks.
        whole: cut the steps' texts too.

    Raises:
        UnusableRowError: a block is not closed, or no text follows a block that is not turned into
            steps.
    """
    for step in steps:
        parts = list(_parts(step, cut, blocks, whole=whole))
        if not parts and not whole:
            raise UnusableRowError(ONLY_THOUGHT)
        if parts:
            *others, last = parts
            yield from others
            yield Step(last.text, last.thought, step.observation)


def _parts(
    step: Step, cut: Callable[[str], Iterable[str]], blocks: ThinkBlocks, *, whole: bool
) -> Iterator[Step]:
    """Yields the steps in one step's text, with thoughts and without observations."""
    parts = segments(step.text, everywhere=whole)
    if step.thought:
        parts[0] = (step.thought, parts[0][1])
    if len(parts) == 1 and not parts[0][0] and not whole:
        yield Step(parts[0][1])  # as it stands, also an empty one
        return
    waiting: list[str] = []
    empty = True
    for thought, text in parts:
        if thought and blocks == "trajectory":
            yield from map(Step, cut(thought))
            empty = False
        elif thought and blocks == "thought":
            waiting.append(thought)
        pieces = list(cut(text)) if whole else [text.lstrip()] * bool(text.strip())
        for piece in pieces:
            yield Step(piece, "\n\n".join(waiting))
            waiting, empty = [], False
    if empty and any(thought for thought, _ in parts):
        raise UnusableRowError(ONLY_THOUGHT)
