r"""Reads answers as lm-evaluation-harness does: `strict-match` and `flexible-extract`.

These are the definitions of its task gsm8k (version 3): two regular expressions over the whole
completion, and a comparison of texts without commas, dollar signs and a last full stop. They know
no mathematics, so 0.50 is not 0.5. This project's own verdicts use `environments.answers` instead.
The definitions here make figures comparable with published ones.

The harness has no such definition for answers that are not numbers. `last_expression` is ours.
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
    """Returns the first number after `#### `, or None if there is none."""
    match = _STRICT.search(text)
    return None if match is None else match[1].strip()


def flexible_extract(text: str) -> str | None:
    """Returns the last text that looks like a number, wherever it stands, or None."""
    last = _last(_FLEXIBLE, text)
    return None if last is None else last[0].strip()


def exact_match(answer: str, gold: str) -> bool:
    """Returns whether two answers are the same text, without case and what the harness ignores."""
    return _bare(answer) == _bare(gold)


def last_expression(text: str) -> str | None:
    """Returns the last formula or number; of an equation, the part after its last `=`.

    Returns None if there is neither. A number in a formula belongs to the formula.
    """
    last = _last(_EXPRESSION, text)
    if last is None:
        return None
    expression = next(group for group in last.groups() if group is not None)
    return expression.rpartition("=")[2].strip(" .,\n") or None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = deque(pattern.finditer(text), maxlen=1)
    return matches[0] if matches else None


def _bare(text: str) -> str:
    # Same as the harness's pattern (?s).*####, which takes quadratic time on text without hashes.
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return _FULL_STOP.sub("", text).lower()
