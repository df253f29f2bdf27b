"""Where an answer stands, when two are the same, and that no text can make either of them fail."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments import load_trajectories
from environments.answers import boxed_answer, same_answer, stated_answer
from environments.benchmarks import clean_gold
from environments.boxes import boxes_in
from environments.competition_math import gold_of
from environments.environment import MATHS
from environments.types import Step, Trajectory
from rewards.answer import answer as answer_reward
from rewards.types import StepContext

DATA = Path(__file__).parents[2] / "shared" / "data"

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
        ("The answer is 5. So the answer is", "5"),
        ("Final Answer: The final answer is $28 \\%$. I hope it is correct.", "28 \\%"),
        ("The answer is $\\frac{1}{2}$, as wanted.", "\\frac{1}{2}"),
        ("The answer is \\[\n x^2 \n\\]", "x^2"),
        ("The answer is $5$ or $6$. Done.", "5$ or $6"),
        ("The answer is Dr. Smith. Good.", "Dr. Smith"),
        ("The answer is B. I hope so.", "B"),
        ("So the answers are 2 and 3.", "2 and 3"),
        ("**Answer:** 12", "12"),
        ("### Answer\n12", None),
        ("Therefore, $6$ is our answer. Done.", "6"),
        ("Hence 6 is the final answer.", "6"),
        ("7 or 6 is not the answer.", None),
        ("#### **10**", "10"),
        ("#### The answer is 10.", "10"),
        ("48/2 = 24\n#### 24", "24"),
        ("#### 24\n\n", "24"),
        ("####24", "24"),
        ("#### 1\n#### 2", "2"),
        ("#### Step 1: add\n1 + 1 = 2", None),
        ("#### Step 1: add\nThe answer is 2.", "2"),
        ("the answer is 3\n#### 4", "4"),
        ("#### 4\nso \\boxed{5}, that is, the answer is 6", "5"),
        ("\\boxed{1} and \\boxed{\\frac{1}{2}}", "1, \\frac{1}{2}"),
        ("\\boxed{\\{1\\}} and \\boxed{2", "\\{1\\}"),
        ("\\boxed{}, the answer is 3.", "3"),
        ("The answer isn't 3.", None),
        ("<answer>5</answer>", "5"),
        ("<answer> The answer is 5. </answer>", "5"),
        ("<answer>5", None),
        ("Answer $5$", "5"),
        ("So the answer $a$ is even.", None),
        ("The answer is therefore 5.", "5"),
        ("**Final Answer**\n\n$5$", "5"),
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
    ("text", "answer"),
    [
        (r"so $\boxed{5}$.", "5"),
        (r"$\boxed{\left\{ 1, 2 \right.}$", r"\left\{ 1, 2 \right."),
        (r"$\boxed{\text{a \} b}}$ {", r"\text{a \} b}"),
        (r"$\fbox{7}$", "7"),
        (r"$\boxed 5$.", "5"),
        (r"$\boxed\pi$", r"\pi"),
        (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}"),
        (r"$\boxed {x}$", "x"),
        (r"$\boxed{\boxed{5}}$", "{5}"),
        (r"$\boxed{}$", None),
        (r"$\boxed{\phantom{2}}$ is a gap", None),
        (r"$\boxed{1}$ then $\boxed{2", "1"),
        (r"\boxedness 3", None),
        ("none", None),
        # What stands right behind and belongs to it
        (r"$=\boxed{-15}x^3$", "-15x^3"),
        (r"$=\boxed{75} \%$", r"75 \%"),
        (r"$=\boxed{108}^\circ$", r"108^\circ"),
        (r"$x=-\boxed{5}$", "-5"),
        (r"$x=-\boxed{a+b}$", "-(a+b)"),
        (r"$3-\boxed{2}$", "2"),
        (r"- \boxed{2}", "2"),
        (r"$=\boxed{12}cm^2$", "12"),
        (r"$=\boxed{12} \text{ cm}$", "12"),
        # Several that are the answer together
        (r"$\boxed{-2}$ and $\boxed{1}$.", "-2, 1"),
        (r"$\boxed{3}$ or $\boxed{\frac{2}{5}}$", r"3, \frac{2}{5}"),
        (r"$\boxed{1}$, $\boxed{2}$, and $\boxed{3}$", "1, 2, 3"),
        (r"$x = \boxed{1}$ and $x = \boxed{2},$ respectively", "1, 2"),
        (r"$x = \boxed{1}$ and $y = \boxed{2}$", "x = 1, y = 2"),
        (r"\[\boxed{(1,0)} \text{ and } \boxed{(2,0)}\]", "(1,0), (2,0)"),
        (r"\boxed{1}\boxed{2}", "1, 2"),
        # The last one
        (r"$\boxed{3}$. Thus $a = 5$, so the sum is $\boxed{8}$", "8"),
        (r"$\boxed{10}$. - OR - also $\boxed{10.0}$", "10.0"),
        (r"$\boxed{x+11}$ or $\boxed{11+x}$", "x+11"),
        (r"$\boxed{\frac{5}{2}}=\boxed{2\frac{1}{2}}$", r"2\frac{1}{2}"),
        (r"$\boxed{1}$ and not $\boxed{2}$", "2"),
        (r"If $r=1$, $b = \boxed{4}$. If $r=2$, $b = \boxed{5}$.", "5"),
    ],
)
def test_boxed_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


CASES = r"If $r=1$, then $b = \boxed{4}$. If $r=-1$, then $b = \boxed{5}$."
COMMAS = "Enter all possible values of $b,$ separated by commas."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (CASES, "4, 5"),
        (f"{CASES} Thus the solutions are $\\boxed{{4, 5}}$.", "4, 5"),
        (f"{CASES} Thus the only solution is $\\boxed{{4}}$.", "4"),
        (r"The squares are $\boxed{4}, \boxed{9}$. Hence $b$ is $\boxed{2}$.", "2"),
    ],
)
def test_a_problem_may_want_several_answers(text: str, answer: str) -> None:
    assert stated_answer(text, COMMAS) == answer
    step = StepContext(COMMAS, (), text, "", "", 0, 1, answer=answer)
    assert answer_reward(step) == 1.0
    verdict = MATHS.judge(Trajectory(COMMAS, (), answer), [Step(text)])
    assert (verdict.correct, verdict.answer) == (True, answer)


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
        ("Twenty-one", "twenty-one"),
        ("(B)", "(b)"),
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
        ("R - r", "r - R"),
        ("\\frac{R}{2}", "\\frac{r}{2}"),
        ("a^2", "A^2"),
        ("x-y", "X-y"),
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
        assert answer is None or answer
        if answer is not None and answer not in text:  # the contents of several boxes
            assert all(part in text for part in answer.split(", "))


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


@pytest.mark.parametrize(
    "flood",
    [" ", "\n", "answer is ", "answer", "1,", "9", "{", "\\text{", "$1 ", "$1$ is ", ".",
     "<answer>",
     "\\boxed", "\\boxed{", "\\boxed{}", "\\boxed{1} and ", "\\boxed{x}\\boxed{y}", "\\boxed 1 "],
)  # fmt: skip
def test_a_flood_costs_no_more_than_its_length(flood: str) -> None:
    text = "answer is" + flood * 20_000
    start = time.process_time()
    stated_answer(text)
    stated_answer(f"\\boxed{{{text}}}", COMMAS)
    same_answer(text, text[:-1])
    clean_gold(text)
    assert time.process_time() - start < 2


def test_a_long_answer_is_refused_in_words() -> None:
    long = "x+" * 500_000 + "1"
    verdict = MATHS.judge(Trajectory("", (), "7"), [Step(f"\\boxed{{{long}}}")])
    assert verdict.correct is False
    assert verdict.why == "its answer has 1,000,001 characters; at most 200 are checked"
    assert answer_reward(StepContext("", (), f"\\boxed{{{long}}}", "", "", 0, 1, answer="7")) == 0.0


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


# Rows of MATH whose gold is not the content of the last box, counted from 0
SEVERAL_BOXES = {
    301: "-3",  # "also accepted": 3
    376: "-2, 1",
    436: "-15x^3",
    910: "37x^3",
    1423: r"\frac{80}{3}a^4b^2",
    1546: r"75 \%",
    1727: r"36 \%",
    1911: r"140^\circ",
    1945: "5 - 10i, 11, -3 + 6i",
    2294: r"-\tfrac32, -\tfrac34",
    2390: "-10879, 10879",
    2434: r"3, \frac{2}{5}",
    2446: "(10, 0)",  # either of two
    2626: r"\left(\tfrac32, -\tfrac52\right)",  # either of two
    2650: "(3,-5)",  # "also acceptable": (0,0)
    3263: "x+11",  # or 11+x
    3486: r"108^\circ",
    3490: r"30^{\circ}",
    3656: "6",  # boxes are the problem's own notation
    3832: "12x -34",  # or -34 + 12x
    4105: "-1, 2",
    4108: r"30^\circ, 45^\circ, 105^\circ",
    4379: r"\frac{\pi}{4}, \frac{5\pi}{4}",
}


def test_golds_are_what_the_solutions_state() -> None:
    file = DATA / "math_train.jsonl"
    if not file.is_file():
        pytest.skip(f"the real data {file.name} is not here")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    golds = [gold_of(row["problem"], row["solution"]) for row in rows]
    assert len(golds) == 4500
    assert {place: golds[place] for place in SEVERAL_BOXES} == SEVERAL_BOXES
    several = [place for place, row in enumerate(rows) if len(boxes_in(row["solution"])) > 1]
    assert len(several) == 81
    others = [place for place in range(4500) if place not in SEVERAL_BOXES]
    for place in others:
        assert golds[place] == boxes_in(rows[place]["solution"])[-1].content
