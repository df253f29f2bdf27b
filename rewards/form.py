"""The outward form of a step: is it written cleanly, and is it about as long as the expert's?

Neither looks at what the step says, so neither should carry much weight: both are for seeing, in
the log, that a policy drifts into clutter or into writing far too much or too little.
"""

from __future__ import annotations

import re
import unicodedata

from rewards.similarity import normalize
from rewards.types import StepContext

_TAG = re.compile(r"</?think>|<\|[^|\s]{1,40}\|>|<(?:s|/s|bos|eos|pad|unk)>")
_CLOSING = {")": "(", "]": "[", "}": "{"}


def format_reward(step: StepContext) -> float:
    r"""The step reward `format`: the share of four checks on the written form that a step passes.

    1. There is a thought. (The parser allows an empty one.)
    2. Brackets pair up, and dollar signs come in twos; escaped ones (``\$``, ``\{``) do not count.
    3. No tags, role markers or end-of-text tokens stand in the step.
    4. No invisible or control characters, no halves of surrogate pairs, no replacement characters.

    Ambiguous cases, and what was decided:
        A completion that breaks the format altogether is no step: it earns -1 as a whole and is
        asked for no reward, this one included. A dollar sign before a digit and not closed is a
        price (``$5``) and counts as paired; intervals such as ``[0, 1)`` count as not paired, as
        they cannot be told from a slip.
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
    """The step reward `length`: 1.0 in a band around the expert's length, less outside it.

    With r the action's characters over the expert's (both normalised): 1.0 for low <= r <= high,
    r / low below the band, and high / r above it, so that it falls steadily and never below 0.0.
    An expert's step of no characters counts as one of one character.

    Args:
        step: the step.
        low: lower end of the band, in expert lengths; above 0.
        high: upper end of it.

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
