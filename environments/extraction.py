r"""Reads answers as lm-evaluation-harness does: `strict-match` and `flexible-extract`.

These are the definitions of its task gsm8k (version 3): two regular expressions over the whole
completion, and a comparison of texts without commas, dollar signs and a last full stop. They know
no mathematics, so 0.50 is not 0.5. `environments.answers` reads answers for this project's own
verdicts; these two stand beside them, so that figures can be compared with published ones.

Answers that are no numbers have no such definition there. `last_expression` is ours.
"""

from __future__ import annotations

import re
from collections import deque

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_FULL_STOP = re.compile(r"\.$")
_EXPRESSION = re.compile(
    r"\$\$(?P<display>[^$]{1,400})\$\$|\$(?P<inline>[^$\n]{1,200})\$"
    r"|\\\[(?P<bracket>(?:(?!\\[\[\]]).){1,400})\\\]|\\\((?P<paren>(?:(?!\\[()]).){1,200})\\\)"
    r"|(?P<number>-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?)",
    re.DOTALL,
)


def strict_match(text: str) -> str | None:
    """The first number behind `#### `; None where there is none."""
    found = _STRICT.search(text)
    return None if found is None else found[1].strip()


def flexible_extract(text: str) -> str | None:
    """The last thing that looks like a number, wherever it stands; None where there is none."""
    last = _last(_FLEXIBLE, text)
    return None if last is None else last[0].strip()


def exact_match(answer: str, gold: str) -> bool:
    """Whether two answers are the same text, without case and what the harness ignores."""
    return _bare(answer) == _bare(gold)


def last_expression(text: str) -> str | None:
    """The formula or number that stands last; of an equation, what stands behind its last `=`.

    None where there is neither. A number in a formula belongs to it.
    """
    last = _last(_EXPRESSION, text)
    if last is None:
        return None
    found = next(group for group in last.groups() if group is not None)
    return found.rpartition("=")[2].strip(" .,\n") or None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


def _bare(text: str) -> str:
    # As its pattern (?s).*####, which takes the square of the length where there are no hashes.
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return _FULL_STOP.sub("", text).lower()
