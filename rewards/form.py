"""Rewards the form of a step: clean writing, and a length close to the expert's.

Neither reward looks at the content of the step, so neither should have a large weight. Both make
drift visible in the log: a policy that writes clutter, or far too much or too little.
"""

from __future__ import annotations

import re
import unicodedata

from rewards.similarity import normalize
from rewards.types import StepContext

_TAG = re.compile(r"</?think>|<\|[^|\s]{1,40}\|>|<(?:s|/s|bos|eos|pad|unk)>")
_CLOSING = {")": "(", "]": "[", "}": "{"}


def format_reward(step: StepContext) -> float:
    r"""Returns the step reward `format`: the share of four checks that the step passes.

    1. There is a thought. (The parser allows an empty one.)
    2. Brackets pair up, and dollar signs come in twos; escaped ones (``\$``, ``\{``) do not count.
    3. The step contains no tags, role markers or end-of-text tokens.
    4. The step contains no invisible, control, private-use or unassigned characters, no halves of
       surrogate pairs and no replacement characters. Line ends and tabs are allowed.

    Ambiguous cases, and what was decided:
        A completion that breaks the required format is not a step: it earns -1 by default, and
        no reward is computed for it. An unclosed dollar sign before a digit is a price (``$5``)
        and counts as paired. An interval such as ``[0, 1)`` counts as not paired, because it
        cannot be distinguished from a mistake.
    """
    text = step.action
    checks = (
        bool(step.thought.strip()),
        _paired(text),
        _TAG.search(text) is None,
        not any(_is_invisible(sign) for sign in text),
    )
    return sum(checks) / len(checks)


def length_reward(step: StepContext, *, low: float = 0.5, high: float = 2.0) -> float:
    """Returns the step reward `length`: 1.0 in a band around the expert's length, less outside.

    Let r be the action's length divided by the expert's, in characters, both normalised. The
    reward is 1.0 for low <= r <= high, r / low below the band, and high / r above it. It falls
    steadily and is never below 0.0. An empty expert step counts as one character long.

    Args:
        step: the step.
        low: lower end of the band, in expert lengths; above 0.
        high: upper end of the band.

    Raises:
        ValueError: not 0 < low <= high.
    """
    if not 0 < low <= high:
        raise ValueError(f"low is {low} and high {high}; it must be 0 < low <= high")
    ratio = len(normalize(step.action)) / max(1, len(normalize(step.expert_step)))
    if ratio < low:
        return ratio / low
    return 1.0 if ratio <= high else high / ratio


def _paired(text: str) -> bool:
    text = re.sub(r"\\.", "", text, flags=re.DOTALL)
    open_: list[str] = []
    for sign in text:
        if sign in "([{":
            open_.append(sign)
        elif sign in _CLOSING and (not open_ or open_.pop() != _CLOSING[sign]):
            return False
    prices = len(re.findall(r"\$(?=\d)", text))
    dollars = text.count("$")
    return not open_ and (dollars % 2 == 0 or prices > 0)


def _is_invisible(sign: str) -> bool:
    if sign in "\n\t":
        return False
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Cn") or sign == "\ufffd"
