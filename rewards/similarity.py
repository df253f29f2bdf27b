"""How much of the expert's step stands in the policy's step: R = 2M / T over characters.

M is the number of characters in the matching blocks of `difflib.SequenceMatcher`, T the length of
both strings together (arXiv 2510.25992, section 3). Three choices the paper leaves open are fixed
here: autojunk is off (difflib's default drops the frequent characters of any string of 200 or more
as match seeds, a cliff in the reward), a is always the policy's step and b the expert's (the ratio
is not symmetric), and both sides pass the same `normalize`, so that a copy scores exactly 1.0.
cydifflib gives the same bits faster and is used where it is installed.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import accumulate

from rewards.types import StepContext

try:
    from cydifflib import SequenceMatcher
except ImportError:
    from difflib import SequenceMatcher

MAX_COMPARISONS = 50_000_000
"""Character pairs one comparison may visit: 0.3 s in cydifflib, 3 to 8 s in difflib.

Two ordinary English texts of 8,000 characters need 40 million. Matching is cubic when both texts
loop, and a policy that loops is a matter of time: `abc` against `acb`, 600 times each, needs 730.
"""


def normalize(text: str) -> str:
    r"""Line ends become ``\n``, trailing white space of every line goes, and so do outer blanks."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


def similarity(action: str, expert_step: str) -> float:
    """The share of characters that the two normalised steps have in common, from 0.0 to 1.0.

    Equal to ``difflib.SequenceMatcher(None, action, expert_step, autojunk=False).ratio()``.

    Ambiguous cases, and what was decided:
        Two empty steps score 1.0, as in difflib: they are equal. One empty step scores 0.0.
        Steps that differ in white space at line ends only are equal; inner spaces and case count.
        Past `MAX_COMPARISONS`, pieces too costly to search count as not matching while T stays
        the full length: the score of a looping action is then a lower bound, never a gift.
    """
    return _ratio(normalize(action), normalize(expert_step))


def similarity_reward(step: StepContext) -> float:
    """The step reward `similarity`: the action against the expert's step."""
    return similarity(step.action, step.expert_step)


def similarity_lift(step: StepContext) -> float | None:
    """What the action gains over repeating the step before it; None at the first step.

    A copy of the previous step already scores about .38 on real data, so similarity alone flatters
    a policy that learned the shape of a step and not its content.
    """
    if not step.previous_steps:
        return None
    copied = similarity(step.previous_steps[-1], step.expert_step)
    return similarity(step.action, step.expert_step) - copied


# The rollouts of a group often repeat an action, and all of them share one previous step.
@lru_cache(maxsize=8192)
def _ratio(a: str, b: str) -> float:
    if a == b:
        return 1.0
    return 2.0 * _matched_characters(a, b, MAX_COMPARISONS) / (len(a) + len(b))


def _matched_characters(a: str, b: str, budget: int) -> int:
    """Characters in difflib's matching blocks, as far as `budget` character pairs reach.

    The search for one longest block visits every pair of equal characters in its two ranges, or a
    few more; `pairs` holds how many there are before each place of a, so the price of a search is
    known before it is paid.
    """
    in_b = Counter(b)
    pairs = [0, *accumulate(in_b[character] for character in a)]
    longest = SequenceMatcher(None, a, b, autojunk=False).find_longest_match
    matched = 0
    ranges = [(0, len(a), 0, len(b))]
    while ranges:
        a_low, a_high, b_low, b_high = ranges.pop()
        price = pairs[a_high] - pairs[a_low]
        if price == 0 or price > budget:
            continue
        budget -= price
        i, j, size = longest(a_low, a_high, b_low, b_high)
        if size == 0:
            continue
        matched += size
        if a_low < i and b_low < j:
            ranges.append((a_low, i, b_low, j))
        if i + size < a_high and j + size < b_high:
            ranges.append((i + size, a_high, j + size, b_high))
    return matched
