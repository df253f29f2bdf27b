"""Similarity, bit for bit that of CPython's difflib, and the measures beside it."""

from __future__ import annotations

import difflib
import importlib
import json
import math
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import StepContext, normalize, similarity, similarity_lift, similarity_reward
from rewards.form import format_reward, length_reward
from rewards.similarity import _blocks, indel, matching_blocks, novelty

MODULE = importlib.import_module("rewards.similarity")  # the package's name for it is a function
GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_train.jsonl"


def step(
    action: str = "2 + 2 = 4", expert_step: str = "2 + 2 = 4", **changes: object
) -> StepContext:
    fields: dict[str, object] = {
        "problem": "How much is 2 + 2?", "previous_steps": (), "action": action, "thought": "",
        "expert_step": expert_step, "step_index": 0, "num_steps": 2,
    }  # fmt: skip
    return StepContext(**{**fields, **changes})  # type: ignore[arg-type]


def oracle(a: str, b: str, autojunk: bool = False) -> float:
    return difflib.SequenceMatcher(None, normalize(a), normalize(b), autojunk=autojunk).ratio()


few_letters = st.text(alphabet="ab \n", max_size=60)


@given(few_letters | st.text(max_size=60), few_letters | st.text(max_size=60))
def test_similarity_is_difflib_on_the_normalised_strings(a: str, b: str) -> None:
    assert similarity(a, b) == oracle(a, b)


def test_similarity_is_difflib_on_long_text() -> None:
    rng = random.Random(0)
    words = ["the", "of", "price", "apples", "then", "is", "12", "3.5", "+", "=", "per", "hour"]
    for _ in range(20):
        a, b = (" ".join(rng.choices(words, k=rng.randint(40, 150))) for _ in range(2))
        assert similarity(a, b) == oracle(a, b)


def test_autojunk_is_off() -> None:
    rng = random.Random(1)
    words = rng.choices(["the", "total", "price", "of", "apples", "is"], k=80)
    changed = [w if rng.random() > 0.3 else "xyzzy" for w in words]
    a, b = " ".join(changed), " ".join(words)
    with_autojunk = difflib.SequenceMatcher(None, a, b).ratio()
    assert similarity(a, b) == oracle(a, b) > with_autojunk + 0.1


def test_the_first_argument_is_the_action() -> None:
    a, b = "tide", "diet"  # the example of difflib's own documentation
    assert oracle(a, b) == 0.25
    assert oracle(b, a) == 0.5
    assert similarity_reward(step(action=a, expert_step=b)) == 0.25


@given(st.text(max_size=80))
def test_a_copy_scores_exactly_one(text: str) -> None:
    assert similarity(text, text) == 1.0
    assert similarity(f"\n  {text} \r\n", text) == 1.0


@given(st.text(max_size=80))
def test_normalize_is_idempotent(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


def test_normalize_touches_only_line_ends_and_the_outside() -> None:
    assert normalize(" a  b\t\r\n  c \rd \n\n") == "a  b\n  c\nd"


def test_empty_steps() -> None:
    assert similarity("", " \n") == 1.0
    assert similarity("", "x") == similarity("x", "") == 0.0


def test_looping_text_is_bounded_and_never_overrated() -> None:
    start = time.process_time()
    looping = similarity("abc" * 2000, "acb" * 2000)  # minutes without the bound
    assert time.process_time() - start < 20
    assert 0.0 < looping < 0.5


@given(few_letters, few_letters, st.integers(0, 400))
def test_a_smaller_budget_never_raises_the_score(a: str, b: str, budget: int) -> None:
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    exact = sum(block.size for block in blocks)
    assert sum(size for _, _, size in _blocks(a, b, False)) == exact
    assert 0 <= sum(size for _, _, size in _blocks(a, b, False, budget)) <= exact
    assert matching_blocks(a, b) == [tuple(block) for block in blocks if block.size]


def test_lift_is_over_a_copy_of_the_previous_step() -> None:
    assert similarity_lift(step()) is None
    second = step("3 + 1 = 4", "3 + 1 = 4", previous_steps=("x", "3 + 1 = 5"), step_index=1)
    assert similarity_lift(second) == pytest.approx(1.0 - 16 / 18)
    copy = step("3 + 1 = 5", "3 + 1 = 4", previous_steps=("x", "3 + 1 = 5"), step_index=1)
    assert similarity_lift(copy) == 0.0


@pytest.mark.skipif(not GSM8K.exists(), reason="needs ../shared/data/gsm8k_train.jsonl")
def test_real_steps_score_one_against_themselves_and_as_difflib_against_each_other() -> None:
    with GSM8K.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["answer"] for line, _ in zip(lines, range(40), strict=False)]
    for a, b in pairwise(texts):
        assert similarity(a, a) == 1.0
        assert similarity(a, b) == oracle(a, b)


# ---- bit for bit -----------------------------------------------------------------------------

ALPHABETS = (
    "ab",
    "abc \n",
    "etaoin shrdlu",
    "0123456789+-*/=().,",
    "".join(map(chr, range(32, 127))),
    "αβγδ∑∫√≤≥≠∞",
    "".join(map(chr, range(0x1F600, 0x1F640))),  # beyond the BMP
    "".join(map(chr, range(0x20000, 0x20400))) + "x",
    "a\u0301e\u0308\ud800\udfff",  # combining, and halves of pairs
)
LENGTHS = (0, 1, 2, 198, 199, 200, 201, 202)


def generated_pairs(count: int) -> Iterator[tuple[str, str]]:
    """Short, middling and at difflib's limit of 200; unrelated, edited and repeated texts."""
    rng = random.Random(0)
    for number in range(count):
        alphabet = ALPHABETS[number % len(ALPHABETS)]
        kind = rng.random()
        if kind < 0.6:
            sizes = [rng.randint(0, 12), rng.randint(0, 12)]
        elif kind < 0.88:
            sizes = [rng.randint(0, 60), rng.randint(0, 60)]
        else:
            sizes = [rng.choice(LENGTHS), rng.choice(LENGTHS)]
        b = "".join(rng.choices(alphabet, k=sizes[1]))
        if rng.random() < 0.3 and b:  # an edit of it
            place, end = sorted(rng.choices(range(len(b) + 1), k=2))
            a = b[:place] + "".join(rng.choices(alphabet, k=rng.randint(0, 4))) + b[end:]
        elif rng.random() < 0.1:  # a loop
            a = (b[:3] * 67)[: sizes[0]]
        else:
            a = "".join(rng.choices(alphabet, k=sizes[0]))
        yield a, b


def test_pairs_are_bit_equal_to_difflib() -> None:
    pairs = list(generated_pairs(40_000))
    assert sum(len(b) >= 200 for _, b in pairs) > 1_600
    for number, (a, b) in enumerate(pairs):
        autojunk = number % 2 == 0
        assert similarity(a, b, autojunk=autojunk) == oracle(a, b, autojunk), (a, b, autojunk)


@pytest.mark.parametrize(
    ("a", "b", "autojunk", "ratio"),
    [
        # As CPython's test_difflib and the documentation of difflib state them
        ("", "", True, 1.0),
        ("b" * 100, "a" + "b" * 100, True, 0.995),
        ("b" * 100, "b" * 50 + "a" + "b" * 50, True, 0.995),
        ("a" * 40 + "c" + "b" * 40, "a" * 40 + "b" * 40, True, 0.994),
        ("b" * 200, "a" + "b" * 200, True, 0.0),
        ("b" * 200, "a" + "b" * 200, False, 0.9975),
        ("abcd", "bcde", True, 0.75),
        ("tide", "diet", True, 0.25),
        ("diet", "tide", True, 0.5),
        (
            "private Thread currentThread;",
            "private volatile Thread currentThread;",
            True,
            0.866,
        ),
    ],
)
def test_cpythons_own_cases(a: str, b: str, autojunk: bool, ratio: float) -> None:
    assert similarity(a, b, autojunk=autojunk) == oracle(a, b, autojunk)
    assert similarity(a, b, autojunk=autojunk) == pytest.approx(ratio, abs=6e-4)


def test_without_cydifflib_the_score_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = list(generated_pairs(600))
    fast = [_blocks(a, b, autojunk) for a, b in pairs for autojunk in (False, True)]
    monkeypatch.setattr(MODULE, "SequenceMatcher", difflib.SequenceMatcher)
    slow = [_blocks(a, b, autojunk) for a, b in pairs for autojunk in (False, True)]
    assert [[tuple(block) for block in blocks] for blocks in fast] == [
        [tuple(block) for block in blocks] for blocks in slow
    ]


def test_long_texts_take_the_careful_way_to_the_same_score() -> None:
    rng = random.Random(3)
    words = ["the", "sum", "of", "x", "and", "y", "is", "12", "3.5", "+", "=", "hence"]
    for autojunk in (False, True):
        a, b = (" ".join(rng.choices(words, k=500)) for _ in range(2))
        assert min(len(a), len(b)) > 1500
        assert similarity(a, b, autojunk=autojunk) == oracle(a, b, autojunk)


@pytest.mark.parametrize("pieces", [("abc", "acb"), ("ab", "ba"), ("x=1;", "x=2;"), ("a", "b a")])
def test_looping_text_of_600_characters_is_searched_within_its_budget(
    pieces: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = ((piece * 600)[:600] for piece in pieces)
    visited = 0

    class Counting(difflib.SequenceMatcher[str]):
        def find_longest_match(self, alo=0, ahi=None, blo=0, bhi=None):  # type: ignore[no-untyped-def]
            nonlocal visited
            places = {x: sum(blo <= j < bhi for j in js) for x, js in self.b2j.items()}
            visited += sum(places.get(x, 0) for x in self.a[alo:ahi])
            return super().find_longest_match(alo, ahi, blo, bhi)

    monkeypatch.setattr(MODULE, "SequenceMatcher", Counting)
    found = sum(size for _, _, size in _blocks(a, b, autojunk=False))
    assert visited <= 3 * 600 * 600
    assert 0 < found <= 600


# ---- units and the other measures ------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "expected"), [("character", 22 / 26), ("word", 1 / 3), ("token", 1 / 2)]
)
def test_units(unit: str, expected: float) -> None:
    # Words: ab | cd | \\frac12, tokens: ab | cd | \\frac | 12; two characters of 13 differ.
    found = similarity("ab cd \\frac12", "ab xd \\frac13", unit=unit)  # type: ignore[arg-type]
    assert found == pytest.approx(expected)


def test_units_that_see_no_spaces() -> None:
    assert similarity("a  b\nc", "a b c", unit="word") == 1.0
    assert similarity("x=1", "x = 1", unit="token") == 1.0
    assert similarity("x=1", "x = 1", unit="word") == 0.0
    with pytest.raises(ValueError, match="unit is 'byte'; allowed: character, word, token"):
        similarity("a", "b", unit="byte")  # type: ignore[arg-type]


@given(few_letters, few_letters)
def test_words_are_matched_as_difflib_matches_lists(a: str, b: str) -> None:
    words = normalize(a).split(), normalize(b).split()
    expected = 1.0 if normalize(a) == normalize(b) else None
    ratio = difflib.SequenceMatcher(None, *words, autojunk=False).ratio()
    assert similarity(a, b, unit="word") == (ratio if expected is None else expected)


@given(few_letters, few_letters)
def test_indel_is_the_longest_common_subsequence(a: str, b: str) -> None:
    a, b = normalize(a), normalize(b)
    row = [0] * (len(b) + 1)
    for x in a:
        last = row[:]
        for j, y in enumerate(b):
            row[j + 1] = last[j] + 1 if x == y else max(last[j + 1], row[j])
    expected = 2 * row[-1] / (len(a) + len(b)) if a or b else 1.0
    found = indel(step(a, b))
    assert found == pytest.approx(expected)
    assert found >= similarity(a, b) - 1e-12


def test_novelty_is_what_the_previous_step_had_not() -> None:
    assert novelty(step()) is None
    second = step("3 + 1 = 5", previous_steps=("x", "3 + 1 = 5"), step_index=1)
    assert novelty(second) == 0.0
    assert novelty(step("zzz", previous_steps=("3 + 1",), step_index=1)) == 1.0


@pytest.mark.parametrize(
    ("action", "thought", "passed"),
    [
        ("So $x = 3$, thus (x+1) is 4.", "hm", 4),
        ("So x = 3.", " ", 3),
        ("So (x = 3.", "hm", 3),
        ("So x = 3).", "hm", 3),
        ("So [0, 1) it is", "hm", 3),
        ("So $x = 3.", "hm", 3),
        ("It costs $5.", "hm", 4),
        ("It costs \\$5 \\{ more", "hm", 4),
        ("So x = 3.<|im_end|>", "hm", 3),
        ("</think> So", "hm", 3),
        ("So x\u200b = 3", "hm", 3),
        ("So x = \x00", "hm", 3),
        ("So x = \ufffd(", "", 1),
        ("one\n\ttwo", "hm", 4),
    ],
)
def test_format(action: str, thought: str, passed: int) -> None:
    assert format_reward(step(action, thought=thought)) == passed / 4


@pytest.mark.parametrize(
    ("characters", "expected"),
    [(0, 0.0), (2, 0.4), (4, 0.8), (5, 1.0), (10, 1.0), (20, 1.0), (40, 0.5), (400, 0.05)],
)
def test_length_band(characters: int, expected: float) -> None:
    assert length_reward(step("x" * characters, "y" * 10)) == pytest.approx(expected)


def test_length_band_of_ones_own() -> None:
    narrow = length_reward(step("x" * 5, "y" * 10), low=1.0, high=1.0)
    assert narrow == 0.5
    assert math.isfinite(length_reward(step("x", "")))
    with pytest.raises(ValueError, match="low is 2.0 and high 1.0; it must be 0 < low <= high"):
        length_reward(step(), low=2.0, high=1.0)
