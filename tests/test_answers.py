"""Where an answer stands, when two are the same, and that no text can make either of them fail."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments import load_trajectories
from environments.answers import same_answer, stated_answer

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"

# Texts from the pieces that mean something to either function, in any order
hostile = st.lists(
    st.sampled_from(
        ["\\boxed{", "\\boxed ", "\\frac{", "\\text{", "{", "}", "####", "answer is", "Answer:",
         "is", "$", "%", "\\$", "\\%", "\\", "-", "+", "/", ".", ",", " ", "\n", "\r", "\t",
         "\u2028", "0", "1/0", "7" * 60, "٣", "²", "½", "\ud800", "\x00", "e9", "nan", "inf",
         "<think>"]
    ),
    max_size=25,
).map("".join)  # fmt: skip
numbers = st.fractions(-(10**9), 10**9, max_denominator=10**6)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 12.", "12"),
        ("the final ANSWER is: 12", "12"),
        ("Answer: $12$.", "12"),
        ("**The answer is 12**", "12"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is\n\n7", "7"),
        ("The answer is 5; no, the answer is 6.", "6"),
        ("The answer is 5.\nThe answer is 6.\nDone.", "6"),
        ("The answer is 5. So the answer is", "5. So the answer is"),
        ("48/2 = 24\n#### 24", "24"),
        ("#### 24\n\n", "24"),
        ("####24", "24"),
        ("#### 1\n#### 2", "2"),
        ("#### Step 1: add\n1 + 1 = 2", None),
        ("#### Step 1: add\nThe answer is 2.", "2"),
        ("the answer is 3\n#### 4", "4"),
        ("#### 4\nso \\boxed{5}, that is, the answer is 6", "5"),
        ("\\boxed{1} and \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1\\}} and \\boxed{2", "\\{1\\}"),
        ("\\boxed{}, the answer is 3.", "3"),
        ("The answer isn't 3.", None),
        ("3 + 4 = 7.", None),
        ("The answer is", None),
        ("The answer is **", None),
        ("####", None),
        ("", None),
    ],
)
def test_stated_answer(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("12", "12.0"),
        ("0.5", "1/2"),
        ("1/2", "\\frac{1}{2}"),
        ("\\dfrac{2}{4}", "\\tfrac{1}{2}"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("-\\frac{-1}{2}", "0.5"),
        (".5", "0.5"),
        ("-.5", "-1/2"),
        ("$.50", "0.5"),
        ("1,234", "1234"),
        ("1,234,567.5", "1234567.5"),
        ("$1,000", "1000"),
        ("\\$1,\\!000", "1000"),
        ("50%", "50"),
        ("50\\%", "50"),
        ("+7", "7"),
        ("007", "7"),
        ("12.", "12"),
        (" $12$ ", "12"),
        ("\\text{Tuesday}", "tuesday"),
        ("x + 1", "x+1"),
        ("2\\pi", "2 \\pi"),
        ("٣", "3"),
    ],
)
def test_same(left: str, right: str) -> None:
    assert same_answer(left, right)
    assert same_answer(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("12", "13"),
        ("12", "-12"),
        (".5", "5"),
        ("1 1/2", "11/2"),
        ("1  1/2", "11/2"),
        ("1 \\frac{1}{2}", "\\frac{1}{2}"),
        ("3 4", "34"),
        ("1,2", "12"),
        ("12,34", "1234"),
        ("0.1", "0.10000000000000001"),
        ("9007199254740993", "9007199254740992"),
        ("1" * 60, "1" * 59 + "2"),
        ("1/0", "2/0"),
        ("x(x+1)", "x^2+x"),
        ("12 cups", "12"),
        ("nan", "0"),
        ("", ""),
        ("$", "$"),
        (None, None),
        (None, "1"),
        ("1", None),
    ],
)
def test_not_the_same(left: str | None, right: str | None) -> None:
    assert not same_answer(left, right)
    assert not same_answer(right, left)


@given(hostile | st.text(max_size=60), hostile | st.text(max_size=60))
def test_nothing_raises(left: str, right: str) -> None:
    assert same_answer(left, right) is same_answer(right, left)
    for text in (left, right, left + right):
        answer = stated_answer(text)
        assert answer is None or (answer and answer in text)


@given(numbers, numbers)
def test_numbers_are_compared_as_fractions(left: Fraction, right: Fraction) -> None:
    assert same_answer(str(left), str(right)) is (left == right)
    written = f"\\frac{{{left.numerator}}}{{{left.denominator}}}"
    assert same_answer(written, str(right)) is (left == right)
    assert stated_answer(f"So the answer is {left}.") == str(left)


@given(st.integers(-(10**12), 10**12))
def test_thousands_commas_do_not_matter(number: int) -> None:
    assert same_answer(f"{number:,}", str(number))
    assert same_answer(f"${number:,}.00", f"{number}")


@pytest.mark.parametrize("flood", [" ", "\n", "answer is ", "answer", "1,", "9", "{", "\\text{"])
def test_a_flood_costs_no_more_than_its_length(flood: str) -> None:
    text = "answer is" + flood * 20_000
    start = time.process_time()
    stated_answer(text)
    same_answer(text, text[:-1])
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("source", "file"), [("gsm8k", "gsm8k_train.jsonl"), ("competition_math", "math_train.jsonl")]
)
def test_gold_answers_equal_themselves(source: str, file: str) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"the real data {file} is not here")
    for trajectory in load_trajectories(source, str(DATA / file), limit=2000):
        gold = trajectory.answer
        assert gold is not None
        assert same_answer(gold, gold), gold
        assert stated_answer(f"So \\boxed{{{gold}}}.") == gold
        if source == "gsm8k":
            assert stated_answer(f"2 + 2\n#### {gold}") == gold
            assert stated_answer(f"The answer is {gold}.") == gold
            assert not same_answer(str(Fraction(gold) + 1), gold)
