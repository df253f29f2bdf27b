"""Ends a completion by its text, and closes a thought that has become too long.

A model that was not trained on steps rarely writes its end token after one step: it continues with
the whole solution. A model that thinks may think until the length limit cuts it. This module
detects both cases in the text, so the tokenizer may encode line ends and tags in any way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from srl.data.templates import CLOSE, OPEN

StepEnd = Literal["turn", "line", "blank_line"]

# Each pattern starts with visible text, so that blank lines before a step do not end it.
_ENDS = {
    "line": re.compile(r"\S[^\S\n]*\n"),
    "blank_line": re.compile(r"\S[^\S\n]*\n[^\S\n]*\n"),
}


@dataclass(frozen=True)
class TextLimits:
    """The limits of a completion besides its end tokens and its length in tokens.

    Attributes:
        read: token ids -> text.
        ends_at: where a step ends; "turn" is at an end token only.
        end_ids: the tokens after which a text can end: those that hold a line end, or the last
            character of a stop string.
        think: a thought comes first, and the step begins after `</think>`.
        opens_thought: the prompt ends in `<think>`.
        think_budget: tokens after which a thought that is still open is closed; 0 is never.
        close_ids: the tokens that close a thought.
        stop_strings: strings that end a completion wherever they stand in it.
    """

    read: Callable[[Sequence[int]], str]
    ends_at: StepEnd
    end_ids: frozenset[int]
    think: bool
    opens_thought: bool
    think_budget: int
    close_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()

    def cut(self, text: str) -> str:
        """Returns the text up to the end of its step; all of it if the step has not ended."""
        match = self._end(text)
        return text if match is None else text[: match.start() + 1]

    def is_over(self, ids: Sequence[int]) -> bool:
        """Returns whether the text of the completion ends it."""
        text = self.read(ids)
        return any(stop in text for stop in self.stop_strings) or self._end(text) is not None

    def is_open(self, ids: Sequence[int]) -> bool:
        """Returns whether the thought has not been closed yet."""
        return CLOSE not in self.read(ids)

    def _end(self, text: str) -> re.Match[str] | None:
        if self.ends_at == "turn":
            return None
        start = 0
        # Where a thought is missing, the format is broken already: all text is read as the step.
        if self.think and (self.opens_thought or OPEN in text):
            start = text.find(CLOSE)
            if start < 0:
                return None
            start += len(CLOSE)
        return _ENDS[self.ends_at].search(text, start)
