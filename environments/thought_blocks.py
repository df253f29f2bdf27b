"""Separates a solution from the block of thought that reasoning models write before it."""

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

# Some chat templates write the opening tag, so that the data has only the closing tag.
_BLOCK = re.compile(r"\s*(?:<think(?:ing)?>)?(?P<thought>.*?)</think(?:ing)?>\s*", re.DOTALL)
_OPENS = re.compile(r"\s*<think(?:ing)?>")


def split_thought(text: str) -> tuple[str, str]:
    """Splits a text into its leading think block and the rest.

    Returns:
        The thought without tags (empty if there is none), and the text after the block.

    Raises:
        UnusableRowError: the block is not closed.
    """
    block = _BLOCK.match(text)
    if block is not None and "<think" not in block["thought"]:
        return block["thought"].strip(), text[block.end() :]
    if _OPENS.match(text):
        raise UnusableRowError(OPEN_BLOCK)
    return "", text


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
        block, text = split_thought(step.text)
        thought = step.thought or block
        if thought and blocks == "trajectory":
            yield from map(Step, cut(thought))
        if not text.strip():
            if thought and blocks == "trajectory":
                continue
            if thought:
                raise UnusableRowError(ONLY_THOUGHT)
        pieces = list(cut(text)) if whole else [text]
        if not pieces:
            continue
        first = Step(pieces[0], thought if blocks == "thought" else "")
        *others, last = [first, *map(Step, pieces[1:])]
        yield from others
        yield Step(last.text, last.thought, step.observation)
