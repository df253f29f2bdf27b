"""What a text is made of: whether it is Unicode at all, and whether there is anything to read."""

from __future__ import annotations

import unicodedata

# Letters and a symbol that show nothing: Hangul fillers and the empty Braille cell.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800")
# Symbols that draw a rule, a fence or the edge of a table.
_RULES = frozenset("`~|=")


def is_unicode(text: str) -> bool:
    r"""Whether it can be written down: JSON's ``\\ud800`` is half a character."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_visible(text: str) -> bool:
    """Whether it shows anything: not only white space, control characters and zero widths."""
    return any(one not in _BLANK and unicodedata.category(one)[0] not in "ZCM" for one in text)


def says_something(text: str) -> bool:
    """Whether it has a letter, a digit or a symbol, and not only punctuation, rules and fences."""
    return any(
        one not in _BLANK and one not in _RULES and unicodedata.category(one)[0] in "LNS"
        for one in text
    )
