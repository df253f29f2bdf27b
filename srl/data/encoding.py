"""Text to token ids, part by part; words of the data never become control tokens.

A tokenizer takes the text of a control token for the token itself, wherever it stands. What a
template writes is meant so. In a problem or a step it would forge the end of a turn, so there it is
spelled: cut after its first character, and encoded in two.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from environments.characters import is_unicode
from environments.types import DataError
from srl.data.templates import CLOSE, OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEMBERED = 1 << 14  # texts: a step is part of the prompts of all steps after it


class TextEncoder:
    """Encodes the parts of prompts and completions for one tokenizer.

    Attributes:
        special_ids: every special token but the think tags, which belong to the format.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template_tokens: Collection[str]
    ) -> None:
        """Find out which texts are control tokens.

        Args:
            tokenizer: the policy's.
            template_tokens: texts of added tokens that its template writes, marked special or not.
        """
        self._tokenizer = tokenizer
        self.special_ids = _special_ids(tokenizer)
        control = {*template_tokens, *_special_texts(tokenizer)} - {OPEN, CLOSE}
        # Ahead, so that texts which overlap are all found.
        parts = "|".join(re.escape(text) for text in sorted(control) if text.strip())
        self._control = re.compile(f"(?={parts})" if parts else "(?!)")
        # Unknown words become the unknown token, which controls nothing.
        written = {tokenizer.convert_tokens_to_ids(text) for text in template_tokens}
        self._control_ids = (self.special_ids | written) - {tokenizer.unk_token_id}
        # Llama 2 and its kin put a space before every text they encode, so before every segment.
        self._adds_space = " " in tokenizer.decode(self.ids("a") * 2)
        self.data = lru_cache(maxsize=_REMEMBERED)(self._data)
        self._head = lru_cache(maxsize=2)(lambda head: self._start(_marked(head)))

    def ids(self, text: str) -> list[int]:
        """The tokens of a text as it stands, control tokens among them.

        Raises:
            DataError: the text is no Unicode.
        """
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))
        except (TypeError, UnicodeEncodeError):
            if is_unicode(text):
                raise
        raise DataError(
            "a text holds half a character (a lone surrogate), which is no Unicode; mend it where "
            f"it comes from: {text!r:.200}"
        )

    def following(self, text: str) -> list[int]:
        """The same of a text after other text: no space of the tokenizer's own before it."""
        if not text or not self._adds_space:
            return self.ids(text)
        line_end = self.ids("\n")
        ids = self.ids("\n" + text)
        if ids[: len(line_end)] == line_end:
            return ids[len(line_end) :]
        return self.ids(text)

    def start(self, head: tuple[str, ...], words: str) -> list[int]:
        """The tokens of a prompt's beginning.

        Args:
            head: pieces that the template wrote, and at odd places words that it was given.
            words: what follows them; words of the data.
        """
        ids, bare = self._start((*_marked(head), (words, True))), self._head(head)
        forged = self._marks(ids) != self._marks(bare)  # in spite of the cuts, as in `_data`
        return [*bare, *self.data(words)] if forged else ids

    def _start(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        for text in self._cut(pieces):
            ids += self.following(text) if ids else self.ids(text)
        return ids

    def _marks(self, ids: Sequence[int]) -> int:
        return sum(token in self._control_ids for token in ids)

    def _data(self, text: str) -> tuple[int, ...]:
        """The tokens of words of the data that follow other text, control tokens spelled."""
        ids = [token for part in self._cut([(text, True)]) for token in self.following(part)]
        if not self._marks(ids):
            return tuple(ids)
        # Such as a full-width bracket that a normalizer makes a plain one.
        spelled = [token for character in text for token in self.following(character)]
        return tuple(token for token in spelled if token not in self._control_ids)

    def _cut(self, pieces: Sequence[tuple[str, bool]]) -> Iterator[str]:
        """All pieces as one text, cut inside the control tokens of those that are data."""
        places, end = [0], 0
        for text, is_data in pieces:
            if is_data:
                places += (end + found.start() + 1 for found in self._control.finditer(text))
            end += len(text)
        whole = "".join(text for text, _ in pieces)
        return (whole[start:stop] for start, stop in pairwise([*places, end]) if stop > start)


def _marked(head: tuple[str, ...]) -> list[tuple[str, bool]]:
    """The pieces of a head, each with whether it is data."""
    return [(text, place % 2 == 1) for place, text in enumerate(head)]


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens, a BOS if any, that the tokenizer puts before a text of its own accord."""
    bare = list(tokenizer.encode("a", add_special_tokens=False))
    full = list(tokenizer.encode("a", add_special_tokens=True))
    starts = range(len(full) - len(bare) + 1)
    return full[: next((n for n in starts if full[n : n + len(bare)] == bare), 0)]


def _special_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    marked = {one.content for one in tokenizer.added_tokens_decoder.values() if one.special}
    return {*marked, *map(str, tokenizer.all_special_tokens)}


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    marked = {number for number, one in tokenizer.added_tokens_decoder.items() if one.special}
    tags = {tokenizer.convert_tokens_to_ids(tag) for tag in (OPEN, CLOSE)}
    unknown = {tokenizer.unk_token_id}  # what a tag is called by a tokenizer that lacks it
    return frozenset({*marked, *tokenizer.all_special_ids} - (tags - unknown))
