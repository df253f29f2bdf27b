r"""Compares answers in words: the letter of a choice, and numbers written as words."""

from __future__ import annotations

import re

_LETTER = re.compile(r"(?:\\text ?\{ ?)?\(?([A-J])\)? ?\}?")
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer) )?(?:\\text ?\{ ?)?\(?([A-Ja-j])(?:[).:]+ ?\}?(?: .*)?| ?\}|)",
    re.IGNORECASE,
)
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])|\b(?:and|or|not|nor)\b")
_LABEL = re.compile(r"(?:\\text ?\{ ?\([A-J]\) ?\}|\([A-J]\) ) ?(?=\S)")
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: value for value, word in enumerate(_ONES.split())}
for _place, _ten in enumerate(_TENS.split(), 2):
    _NUMBERS[_ten] = 10 * _place
    _NUMBERS |= {f"{_ten}-{one}": 10 * _place + i for i, one in enumerate(_ONES.split()[1:10], 1)}


def same_choice(answer: str, gold: str) -> bool:
    r"""Returns whether the gold answer is the letter of a choice and the answer names that choice.

    The answer may add the content: ``(B) 12`` and ``option B`` are B; ``(B) or (C)`` is not.
    """
    wanted, given = _LETTER.fullmatch(gold), _CHOICE.fullmatch(answer)
    if wanted is None or given is None or given[1].upper() != wanted[1]:
        return False
    return _OTHER_CHOICE.search(answer[given.end(1) :]) is None


def without_label(text: str) -> str:
    r"""Returns the text without a choice label in front: 12 for ``\text{(B)} 12``."""
    return _LABEL.sub("", text, count=1) if _LABEL.match(text) else text


def number_in_words(text: str) -> str | None:
    """Returns a number below one hundred, written in words, as digits; None for other text."""
    words = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text).strip().lower().replace(" ", "-")
    value = _NUMBERS.get(words)
    return None if value is None else str(value)
