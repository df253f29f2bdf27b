"""Encodes text piece by piece, so that text from data never becomes a control token.

A problem may hold `<|im_end|>`, in a question about chat formats or in an attack. Tokenizers turn
such text into the token of that name. That token would end the user's turn in the middle of a
prompt, or a step in the middle of a target. Only where that happens, the text of the token is split
before it is encoded, so that the policy reads the same characters as ordinary tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The most texts in the cache: more than a solution has steps.
_MOST_KNOWN = 4096


class PlainText:
    """Encodes the pieces of prompts and completions for one tokenizer.

    Args:
        tokenizer: the policy's.
        control: ids of the tokens that data must not hold.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._control = frozenset(control)
        texts = sorted(filter(None, map(self._text_of, self._control)), key=len, reverse=True)
        self._texts = re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None
        # Llama 2 and similar tokenizers put a space before each text they encode, so each piece.
        self._adds_space = " " in tokenizer.decode(self._ids("a") * 2)
        # A cache: the prompt of every later step holds the earlier steps again.
        self._known: dict[str, tuple[int, ...]] = {}

    def first(self, frame: str, data: str) -> list[int]:
        """Returns the ids of a prompt's beginning: a template's words, then data."""
        ids = self._ids(frame + data)
        if not data or self._controls(ids) == self._controls(framed := self._ids(frame)):
            return ids
        return [*framed, *self.data(data)]

    def next(self, text: str) -> list[int]:
        """Returns the ids of a template's words after other text, without an added space."""
        if not text or not self._adds_space:
            return self._ids(text)
        line_end = self._ids("\n")
        ids = self._ids("\n" + text)
        if ids[: len(line_end)] == line_end:
            return ids[len(line_end) :]
        return self._ids(text)

    def data(self, text: str) -> tuple[int, ...]:
        """Returns the ids of data after other text, without control tokens."""
        if text not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[text] = self._encoded(text)
        return self._known[text]

    def holds_control(self, text: str) -> bool:
        """Returns whether the tokenizer finds a control token in a text."""
        return bool(text) and self._controls(self._ids(text)) > 0

    def _encoded(self, text: str) -> tuple[int, ...]:
        ids = self.next(text)
        if not self._controls(ids):
            return tuple(ids)
        pieces = self._texts.split(text) if self._texts is not None else [text]
        if len(pieces) > 1:
            # Every second piece is the text of a token: its first character is encoded alone.
            parts = (
                (*self.next(piece[:1]), *self.data(piece[1:])) if place % 2 else self.data(piece)
                for place, piece in enumerate(pieces)
            )
            ids = [token for part in parts for token in part]
        if self._controls(ids):  # the tokenizer maps other characters to the token, or folds case
            ids = list(
                self._tokenizer.encode(
                    text, add_special_tokens=False, verbose=False, split_special_tokens=True
                )
            )
        return tuple(ids)

    def _controls(self, ids: Sequence[int]) -> int:
        return sum(token in self._control for token in ids)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _text_of(self, token: int) -> str:
        added = self._tokenizer.added_tokens_decoder.get(token)
        return added.content if added is not None else ""


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens, such as a BOS, that the tokenizer itself puts before a text."""
    bare = list(tokenizer.encode("a", add_special_tokens=False))
    full = list(tokenizer.encode("a", add_special_tokens=True))
    starts = range(len(full) - len(bare) + 1)
    return full[: next((n for n in starts if full[n : n + len(bare)] == bare), 0)]
