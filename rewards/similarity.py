"""Measures how similar the policy's step is to the expert's step: R = 2M / T over characters.

M is the number of characters in the matching blocks of `difflib.SequenceMatcher`. T is the total
length of both strings (arXiv 2510.25992, section 3). The paper leaves three choices open:

- autojunk is off. By difflib's default, the frequent characters of any string of 200 or more start
  no match, which makes the reward jump at that length.
- a is always the policy's step and b the expert's, because the ratio is not symmetric.
- Both sides pass the same `normalize`, so that a copy scores exactly 1.0.

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

# Limits on the pairs of equal elements that one comparison may visit. A visit takes 5 ns in
# cydifflib and 60 to 160 ns in difflib. Matching takes cubic time when both texts repeat a pattern,
# and sooner or later a policy does: `abc` against `acb`, 200 times each, needs 24 million visits.
# Ordinary English needs .6 times the product of the lengths, so it is matched completely up to some
# 9,000 characters on both sides.
_ALWAYS_ALLOWED = 1_000_000
_ALLOWED_PER_CELL = 3
_NEVER_MORE = 50_000_000

# A whole comparison takes at most half of (visits of the first search) x (shorter length), because
# every search removes at least one element from both sides. Only repetitive text comes near this
# bound. Where the bound is small, the library does the whole comparison in one call; this covers
# all but repetitive text up to some 400 characters. The limit is three times as high for text that
# uses a whole alphabet.
_LITTLE = 2_400_000

# A search also passes over all pairs of elements, equal or not, at .3 ns each. Its preparation
# takes .3 us per element. Where letters repeat, the visits cost more than both. In a text of
# thousands of different signs, each of which occurs once, only these two costs bound the time.
_CELLS_A_VISIT = 16
_VISITS_AN_ELEMENT = 64
_SPARSE = 10_000_000_000

# A comparison is cached if both texts together have at most this many characters. A cache of texts
# of megabytes would take gigabytes.
_REMEMBERED = 20_000

# The most pairs of characters that `indel` compares, at .04 ns each.
_INDEL_PAIRS = 10_000_000_000

_TOKEN = re.compile(r"\\[A-Za-z]+|[^\W\d_]+|\d+|\S")


def normalize(text: str) -> str:
    r"""Returns the text with ``\n`` line ends, no white space at line ends and no outer blanks."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


def similarity(
    action: str, expert_step: str, *, unit: Unit = "character", autojunk: bool = False
) -> float:
    """Returns the share of characters that the normalised steps have in common, from 0.0 to 1.0.

    Equal to ``difflib.SequenceMatcher(None, action, expert_step, autojunk=autojunk).ratio()`` for
    the normalised steps, within the budget below.

    Ambiguous cases, and what was decided:
        Two empty steps are equal and score 1.0, as in difflib. One empty step scores 0.0.
        Steps that differ only in white space at line ends are equal; inner spaces and case count.
        Text is compared by code point: a look-alike from another alphabet is another character.
        A comparison has a budget of visits, quadratic in the lengths. Repetitive text and text of
        thousands of different signs may exceed it. Pieces too costly to search then count as not
        matching, while T stays the full length, so the score is a lower bound. If both texts
        together have more than some 780,000 characters, nothing matches.

    Args:
        action: the policy's step.
        expert_step: the expert's step.
        unit: what is matched: characters (the paper's formula), words (separated by white space,
            which then does not count) or tokens (LaTeX commands, words, runs of digits, single
            signs).
        autojunk: difflib's default, for comparison only: if the expert's step has 200 elements or
            more, elements that make up more than 1 % of it start no match.

    Raises:
        ValueError: `unit` is not one of the three.
    """
    action, expert_step = normalize(action), normalize(expert_step)
    remembered = len(action) + len(expert_step) <= _REMEMBERED
    return (_ratio if remembered else _ratio.__wrapped__)(action, expert_step, unit, autojunk)


def similarity_reward(
    step: StepContext, *, unit: Unit = "character", autojunk: bool = False
) -> float:
    """Returns the step reward `similarity`: how similar the action is to the expert's step."""
    return similarity(step.action, step.expert_step, unit=unit, autojunk=autojunk)


def similarity_lift(
    step: StepContext, *, unit: Unit = "character", autojunk: bool = False
) -> float | None:
    """Returns the step reward `progress`: the action's similarity minus the previous step's.

    From -1.0 to 1.0; None at the first step, which has no previous step. On real data a copy of the
    previous step already has a similarity of about .4. So similarity alone overrates a policy that
    learned the form of a step and not its content. Here a copy earns exactly 0.0.
    """
    if not step.previous_steps:
        return None
    copied = similarity(step.previous_steps[-1], step.expert_step, unit=unit, autojunk=autojunk)
    return similarity(step.action, step.expert_step, unit=unit, autojunk=autojunk) - copied


def matching_blocks(action: str, expert_step: str) -> list[tuple[int, int, int]]:
    """Returns where two texts match, character by character, as `similarity` counts it.

    The texts are not normalised here. Normalise them first, so that the positions fit the text that
    you show.

    Returns:
        (start in the action, start in the expert's step, length) of each block, in order. Blocks
        neither touch in both texts nor overlap.
    """
    merged: list[tuple[int, int, int]] = []
    for i, j, size in sorted(_blocks(action, expert_step, autojunk=False)):
        if merged and size and sum(merged[-1][::2]) == i and sum(merged[-1][1:]) == j:
            merged[-1] = (*merged[-1][:2], merged[-1][2] + size)
        elif size:
            merged.append((i, j, size))
    return merged


def novelty(step: StepContext) -> float | None:
    """Returns the step reward `novelty`: one minus the similarity to the previous step, 0.0 to 1.0.

    None at the first step. The reward compares with the previous step only, so it does not detect a
    copy of an older step. It does not measure whether the new step is good. An expert's own steps
    have about .6. Where similarity is only a lower bound (repetitive text), this is an upper bound.
    """
    if not step.previous_steps:
        return None
    return 1.0 - similarity(step.action, step.previous_steps[-1])


def indel(step: StepContext) -> float:
    """Returns the step reward `indel`: rapidfuzz's normalised indel similarity, from 0.0 to 1.0.

    It uses the longest common subsequence in place of difflib's matching blocks. It is symmetric,
    never lower than `similarity` and up to .6 higher, and always quadratic. Two empty steps score
    1.0. If the product of the lengths exceeds 10^10, only the first 100,000 characters of each text
    are searched, and the result is a lower bound.
    """
    action, expert_step = normalize(step.action), normalize(step.expert_step)
    if action == expert_step or len(action) * len(expert_step) <= _INDEL_PAIRS:
        return float(Indel.normalized_similarity(action, expert_step))
    most = isqrt(_INDEL_PAIRS)
    common = LCSseq.similarity(action[:most], expert_step[:most])
    return 2.0 * common / (len(action) + len(expert_step))


# The rollouts of a group often repeat an action, and all of them have the same previous step.
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
    """Returns difflib's matching blocks, in any order, as far as `budget` visits allow."""
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
    all_blocks: list[tuple[int, int, int]] = []
    pieces = [(a, whole, 0, 0)]
    while pieces:
        a, searched, a_start, b_start = pieces.pop()
        matcher, b, counts, most = searched
        cells, shorter = len(a) * len(b), min(len(a), len(b))
        dense = len(a) * min(most, len(b) / 3) * shorter > 2 * _LITTLE
        in_one_go = not dense and cells * shorter <= _SPARSE
        if not in_one_go:
            visits = sum(count * counts[element] for element, count in Counter(a).items())
            # Repetition of a few letters is costly; text that uses a whole alphabet has none.
            little = _LITTLE if visits * 8 > cells else 3 * _LITTLE
            in_one_go = visits * shorter <= 2 * little and cells * shorter <= _SPARSE
        # Ordinary text, done in one call, costs less than this.
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
            all_blocks += blocks
            continue
        i, j, size = matcher.find_longest_match(0, len(a), 0, len(b))
        all_blocks.append((i + a_start, j + b_start, size))
        # Without autojunk, the matches within a piece do not depend on the rest of the text.
        if i and j:
            pieces.append((a[:i], _Searched.of(b[:j], False), a_start, b_start))
        i, j = i + size, j + size
        if i < len(a) and j < len(b):
            pieces.append((a[i:], _Searched.of(b[j:], False), a_start + i, b_start + j))
    return all_blocks


class _Searched(NamedTuple):
    """An expert's step, or a piece of it, prepared for comparison with actions."""

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
    """Returns a cached `_Searched`, one per thread because its matcher holds the current action."""
    return _Searched.of(b, autojunk)


def _blocks_in_ranges(
    a: Sequence[str], whole: _Searched, budget: int
) -> list[tuple[int, int, int]]:
    """Returns the blocks under autojunk. All of b decides what is frequent, so b is not cut."""
    whole.matcher.set_seq1(a)
    length = len(whole.b)
    in_b = {x: n for x, n in whole.counts.items() if n <= length // 100 + 1}
    before = [0, *accumulate(in_b.get(element, 0) for element in a)]
    blocks = []
    ranges = [(0, len(a), 0, length)]
    while ranges:
        a_low, a_high, b_low, b_high = ranges.pop()
        # The search is made even if no element starts a match: difflib may extend one from the
        # corner of the range.
        price = before[a_high] - before[a_low] + a_high - a_low
        if price > budget:
            continue
        budget -= price
        i, j, size = whole.matcher.find_longest_match(a_low, a_high, b_low, b_high)
        if size == 0:
            continue
        blocks.append((i, j, size))
        if a_low < i and b_low < j:
            ranges.append((a_low, i, b_low, j))
        if i + size < a_high and j + size < b_high:
            ranges.append((i + size, a_high, j + size, b_high))
    return blocks
