"""How much of the expert's step stands in the policy's step: R = 2M / T over characters.

M is the number of characters in the matching blocks of `difflib.SequenceMatcher`, T the length of
both strings together (arXiv 2510.25992, section 3). Three choices the paper leaves open are fixed
here: autojunk is off (difflib's default drops the frequent characters of any string of 200 or more
as match seeds, a cliff in the reward), a is always the policy's step and b the expert's (the ratio
is not symmetric), and both sides pass the same `normalize`, so that a copy scores exactly 1.0.
cydifflib gives the same bits faster and is used where it is installed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from math import isqrt
from threading import get_ident
from typing import Literal, NamedTuple, get_args

from rapidfuzz.distance import Indel, LCSseq

from rewards.types import StepContext

try:
    from cydifflib import SequenceMatcher
except ImportError:
    from difflib import SequenceMatcher

Unit = Literal["character", "word", "token"]

# Pairs of equal elements that one comparison may visit, at 5 ns each in cydifflib and 60 to 160 in
# difflib. Matching is cubic when both texts loop, and a policy that loops is a matter of time:
# `abc` against `acb`, 200 times each, needs 24 million. Ordinary English needs .6 times the product
# of the lengths, so it is matched to the end up to some 9,000 characters on both sides.
_ALWAYS_ALLOWED = 1_000_000
_ALLOWED_PER_CELL = 3
_NEVER_MORE = 50_000_000

# A whole comparison takes at most half of (visits of the first search) x (shorter length), since
# every search takes at least one element from both sides; only looping text comes near it. Where
# that is little, which is all but looping text up to some 400 characters, the library does the
# comparison in one go; three times as much for text that uses a whole alphabet.
_LITTLE = 2_400_000

# A search also passes over all pairs of elements, equal or not, at .3 ns each, and is made ready at
# .3 us an element. Where letters repeat, visits cost more than both; where each of them occurs
# once, in a text that shows every sign there is, these are all that bounds the time.
_CELLS_A_VISIT = 16
_VISITS_AN_ELEMENT = 64
_SPARSE = 10_000_000_000

# Characters of both texts up to which a comparison is remembered: a cache of megabytes would be
# gigabytes.
_REMEMBERED = 20_000

# Pairs of characters that `indel` compares, at .04 ns each.
_INDEL_PAIRS = 10_000_000_000

_TOKEN = re.compile(r"\\[A-Za-z]+|[^\W\d_]+|\d+|\S")


def normalize(text: str) -> str:
    r"""Line ends become ``\n``, trailing white space of every line goes, and so do outer blanks."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


def similarity(
    action: str, expert_step: str, *, unit: Unit = "character", autojunk: bool = False
) -> float:
    """The share of characters that the two normalised steps have in common, from 0.0 to 1.0.

    Equal to ``difflib.SequenceMatcher(None, action, expert_step, autojunk=autojunk).ratio()``.

    Ambiguous cases, and what was decided:
        Two empty steps score 1.0, as in difflib: they are equal. One empty step scores 0.0.
        Steps that differ in white space at line ends only are equal; inner spaces and case count.
        Text is compared by code point: a look-alike from another alphabet is another character.
        Looping text, and text of thousands of different signs, has a budget of visits, quadratic in
        the lengths: pieces too costly to search count as not matching while T stays the full
        length, and so does everything where both texts together pass 780,000 characters. The score
        of such an action is then a lower bound, never a gift.

    Args:
        action: the policy's step.
        expert_step: the expert's.
        unit: what is matched: characters (the paper's formula), words (between white space; then
            spaces do not count) or tokens (LaTeX commands, words, runs of digits, single signs).
        autojunk: difflib's default, for comparison only: from 200 elements on, those that make up
            more than 1 % of the expert's step start no match.

    Raises:
        ValueError: `unit` is none of the three.
    """
    action, expert_step = normalize(action), normalize(expert_step)
    remembered = len(action) + len(expert_step) <= _REMEMBERED
    return (_ratio if remembered else _ratio.__wrapped__)(action, expert_step, unit, autojunk)


def similarity_reward(
    step: StepContext, *, unit: Unit = "character", autojunk: bool = False
) -> float:
    """The step reward `similarity`: the action against the expert's step."""
    return similarity(step.action, step.expert_step, unit=unit, autojunk=autojunk)


def similarity_lift(
    step: StepContext, *, unit: Unit = "character", autojunk: bool = False
) -> float | None:
    """The step reward `progress`: what the action gains over repeating the step before it.

    From -1.0 to 1.0; None at the first step, which has nothing to repeat. A copy of the previous
    step already scores about .4 on real data, so similarity alone flatters a policy that learned
    the shape of a step and not its content; here a copy earns exactly 0.0.
    """
    if not step.previous_steps:
        return None
    copied = similarity(step.previous_steps[-1], step.expert_step, unit=unit, autojunk=autojunk)
    return similarity(step.action, step.expert_step, unit=unit, autojunk=autojunk) - copied


def matching_blocks(action: str, expert_step: str) -> list[tuple[int, int, int]]:
    """Where two texts match, character for character, in the way `similarity` counts it.

    Neither is normalised: do that first, so that the places are those of the text you show.

    Returns:
        (start in the action, start in the expert's step, length) of each block, in order; blocks do
        not touch or overlap.
    """
    merged: list[tuple[int, int, int]] = []
    for i, j, size in sorted(_blocks(action, expert_step, autojunk=False)):
        if merged and size and sum(merged[-1][::2]) == i and sum(merged[-1][1:]) == j:
            merged[-1] = (*merged[-1][:2], merged[-1][2] + size)
        elif size:
            merged.append((i, j, size))
    return merged


def novelty(step: StepContext) -> float | None:
    """The step reward `novelty`: one minus the similarity to the previous step, from 0.0 to 1.0.

    None at the first step. Only the step just before counts: going back to an older one is not
    seen, and neither is whether the new step is any good. An expert's own steps have about .6.
    Where both steps loop, similarity is a lower bound, and this an upper one.
    """
    if not step.previous_steps:
        return None
    return 1.0 - similarity(step.action, step.previous_steps[-1])


def indel(step: StepContext) -> float:
    """The step reward `indel`: rapidfuzz's normalised indel similarity, from 0.0 to 1.0.

    The longest common subsequence in place of difflib's matching blocks: symmetric, never lower
    than `similarity` and up to .6 higher, and always quadratic. Two empty steps score 1.0. Of texts
    that both have more than 100,000 characters the beginnings alone are searched: a lower bound.
    """
    action, expert_step = normalize(step.action), normalize(step.expert_step)
    if action == expert_step or len(action) * len(expert_step) <= _INDEL_PAIRS:
        return float(Indel.normalized_similarity(action, expert_step))
    most = isqrt(_INDEL_PAIRS)
    common = LCSseq.similarity(action[:most], expert_step[:most])
    return 2.0 * common / (len(action) + len(expert_step))


# The rollouts of a group often repeat an action, and all of them share one previous step.
@lru_cache(maxsize=8192)
def _ratio(action: str, expert_step: str, unit: Unit, autojunk: bool) -> float:
    if action == expert_step:
        return 1.0
    a, b = _cut(action, unit), _cut(expert_step, unit)
    if not a and not b:
        return 1.0
    matched = sum(size for _, _, size in _blocks(a, b, autojunk))
    return 2.0 * matched / (len(a) + len(b))


def _cut(text: str, unit: Unit) -> Sequence[str]:
    if unit == "character":
        return text
    if unit == "word":
        return text.split()
    if unit == "token":
        return _TOKEN.findall(text)
    raise ValueError(f"unit is {unit!r}; allowed: {', '.join(get_args(Unit))}")


def _blocks(
    a: Sequence[str], b: Sequence[str], autojunk: bool, budget: int | None = None
) -> list[tuple[int, int, int]]:
    """difflib's matching blocks, in any order, as far as `budget` visits reach."""
    if budget is None:
        budget = min(max(_ALWAYS_ALLOWED, _ALLOWED_PER_CELL * len(a) * len(b)), _NEVER_MORE)
    if _VISITS_AN_ELEMENT * (len(a) + len(b)) > _NEVER_MORE:
        return []
    if isinstance(b, str) and len(b) <= _REMEMBERED:
        whole = _searched(b, autojunk, get_ident())
    else:
        whole = _Searched.of(b, autojunk)
    if autojunk and len(b) >= 200:  # difflib's rule
        return _blocks_in_ranges(a, whole, budget)
    found: list[tuple[int, int, int]] = []
    pieces = [(a, whole, 0, 0)]
    while pieces:
        a, searched, a_start, b_start = pieces.pop()
        matcher, b, counts, most = searched
        cells, shorter = len(a) * len(b), min(len(a), len(b))
        dense = len(a) * min(most, len(b) / 3) * shorter > 2 * _LITTLE
        in_one_go = not dense and cells * shorter <= _SPARSE
        if not in_one_go:
            visits = sum(count * counts[element] for element, count in Counter(a).items())
            # A whole alphabet makes no loop of a few letters, and those are the costly ones.
            little = _LITTLE if visits * 8 > cells else 3 * _LITTLE
            in_one_go = visits * shorter <= 2 * little and cells * shorter <= _SPARSE
        # In one go ordinary text takes less than that.
        price = cells
        if not in_one_go:
            price = visits + cells // _CELLS_A_VISIT + _VISITS_AN_ELEMENT * (len(a) + len(b))
        if price > budget:
            continue
        budget -= price
        matcher.set_seq1(a)
        if in_one_go:
            blocks = matcher.get_matching_blocks()
            if a_start or b_start:
                blocks = [(i + a_start, j + b_start, size) for i, j, size in blocks]
            found += blocks
            continue
        i, j, size = matcher.find_longest_match(0, len(a), 0, len(b))
        found.append((i + a_start, j + b_start, size))
        # Autojunk off, the matches within a piece depend on nothing outside it.
        if i and j:
            pieces.append((a[:i], _Searched.of(b[:j], False), a_start, b_start))
        i, j = i + size, j + size
        if i < len(a) and j < len(b):
            pieces.append((a[i:], _Searched.of(b[j:], False), a_start + i, b_start + j))
    return found


class _Searched(NamedTuple):
    """An expert's step, or a piece of it, made ready for actions."""

    matcher: SequenceMatcher
    b: Sequence[str]
    counts: Mapping[str, int]
    most: int  # how often its most frequent element occurs

    @classmethod
    def of(cls, b: Sequence[str], autojunk: bool) -> _Searched:
        counts = Counter(b)
        matcher = SequenceMatcher(None, "", b, autojunk=autojunk)
        return cls(matcher, b, counts, max(counts.values(), default=0))


@lru_cache(maxsize=256)
def _searched(b: str, autojunk: bool, thread: int) -> _Searched:
    """The rollouts of a group share it. One a thread: the matcher holds an action as it works."""
    return _Searched.of(b, autojunk)


def _blocks_in_ranges(
    a: Sequence[str], whole: _Searched, budget: int
) -> list[tuple[int, int, int]]:
    """The same under autojunk: what is frequent follows from all of b, so b cannot be cut."""
    whole.matcher.set_seq1(a)
    length = len(whole.b)
    in_b = {x: n for x, n in whole.counts.items() if n <= length // 100 + 1}
    before = [0, *accumulate(in_b.get(element, 0) for element in a)]
    found = []
    ranges = [(0, len(a), 0, length)]
    while ranges:
        a_low, a_high, b_low, b_high = ranges.pop()
        # Also where nothing starts a match: difflib then extends one from the corner.
        price = before[a_high] - before[a_low] + a_high - a_low
        if price > budget:
            continue
        budget -= price
        i, j, size = whole.matcher.find_longest_match(a_low, a_high, b_low, b_high)
        if size == 0:
            continue
        found.append((i, j, size))
        if a_low < i and b_low < j:
            ranges.append((a_low, i, b_low, j))
        if i + size < a_high and j + size < b_high:
            ranges.append((i + size, a_high, j + size, b_high))
    return found
