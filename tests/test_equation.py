"""The reward `equation`: what is true, what is false, what counts nothing, and hostile input."""

from __future__ import annotations

import json
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.claims import MAX_ACTION_CHARACTERS, MAX_CLAIMS, find_claims
from rewards.equation import check, equation
from rewards.types import StepContext
from tests.test_expressions import Tree, trees

DATA = Path(__file__).parents[2] / "shared" / "data"


def score(action: str) -> float | None:
    return equation(
        StepContext(
            problem="", previous_steps=(), action=action, thought="", expert_step="",
            step_index=0, num_steps=1,
        )
    )  # fmt: skip


TRUE = r"""
48/2 = 24
Natalia sold 48/2 = 24 clips in May.
Weng earns 12/60 = $0.2 per minute.
Working 50 minutes, she earned 0.2 x 50 = $10.
There are 12 x 2 = 24 pages, and 3x4 = 12.
She pays $5*3=$15 and $2 + $3 = $5.
20% of 50 = 10
1/2 of 10 = 5
20 percent of 50 = 10
5 times 3 = 15
5 plus 3 minus 2 = 6
12 divided by 4 = 3
12 multiplied by 4 = 48
48/2 = $24/hour
1. 3+4=7
2) 3+4=7
(a) 3+4=7
- 48/2 = 24 clips
Step 2: 5*3=15
so it is -5 + 3 = -2
So **3+4=7** and **24** = 4*6.
(3 + 4 = 7)
We get 24 (since 3 * 8 = 24).
= 3 + 4 = 7
(x+1)^2 = x^2+2x+1
$ab + ba = 2ab$
$120\cdot30\cdot\frac{1}{100}=36$
\[\frac{1}{2}+\frac{1}{3}=\boxed{\frac{5}{6}}.\]
\(2^{10} = 1024\)
\begin{align*} x &= x + 3 - 3 \\ &= x \end{align*}
10/3 = 3.33
2/3 = 0.667
2/3 = 67%
10/3 ≈ 3
\sqrt{2} \approx 1.414
\pi ≈ 3.14
\frac{22}{7} \approx 3.14
20/100 = 20%
0.5 = 50%
3 < 4
3 + 4 \ge 7
2 \neq 3
5 != 4
1/3 ≤ 0.34
x < x + 1
\sqrt{8} = 2\sqrt{2}
\sqrt{3+2\sqrt2} = 1 + \sqrt{2}
1,200 + 800 = 2,000 apples
7 * 6 = 42 cm^2
$6 \times 7 = 42\text{ cm}^2$
6 * 7 = \boxed{42 \text{ cm}}
3+4 = 7 → 7*2 = 14; so 14 - 7 = 7.
48/2=<<48/2=24>>24 clips
"""

FALSE = r"""
2 + 2 = 5
Natalia sold 48/2 = 25 clips in May.
x + 1 = x + 2
(x+1)^2 = x^2 + 2x + 2
10/3 = 3.34
10/3 ≈ 4
10/3 = 3
20% of 50 = 12
3 + 4 < 7
2 + 2 \neq 4
\sqrt{2} = 1.5
\sqrt{2} = 7/5
5 times 3 = 16 apples
- 3 + 4 = 8
Step 2: 5*3=16
$3 \cdot 4 = 13$
1/2 + 1/3 = 2/5
She has 10 - 3 = 8 apples left.
About 10/3 = 5 apples.
x > x + 1
100 * 0.75 = $0.75
"""

NULL = r"""
She buys some apples.
5 apples + 3 = 8
5 apples + 3 = 9
5 less than 12 = 7
5 less than 12 + 3 = 10
3 hours * 5 miles/hour = 15 miles
x = 5 and y = 3
12 inches = 1 foot
1 1/2 + 1 = 3
1 hour = 60 minutes
$2 = 200 cents
1 = 1
x = x
1.0 = 1
(7) = 7
x + 3 = 7
y = 2x
x^2 = 4
5/20 * 100 = 25%
- 5 + 3 = -2
50 + 20% = 60
10/3 = 3 rounded down
17/5 = 3 with a remainder of 2
330/60 = 5 hours and 30 minutes
25 / 1/3 = 75
33.33 * 3 = 100
10 = 5 times the number
20 = 15 more than 5
20 - 5 = 5 apples * 3
3 of 12 = 25%
5 + 3 = ?
? + 5 * 2 = 13
two + 3 * 2 = 8
sin(30 + 60) = 1
f(2) = 3
p(0) = 1
5! = 120
(3-1)!=2
|3 - 5| = 2
1/0 = 5
1/3 = 0.\overline{3}
1/3 = 0.333...
30^\circ + 60^\circ = 90^\circ
3:4 = 6:9
(1, 2 + 3) = (1, 6)
17 \equiv 2 + 1 \pmod 7
17 = 2 (mod 5)
t = t + 1
the sum of 3, 4 and 5 * 2 = 17
half of 10 + 2 = 7
9 + 3 = 12 (3 * 4)
12 + 1 = 5 (2 per day)
5 kg = 5000 g
1234 ≈ 1200
３+４=8
х + 1 = х + 2
9**9**9 = 1
(1+x)^500 = 1
__import__('os').system('x') = 1
on day 1 * 2 = 20
"""


def lines(text: str) -> list[str]:
    return text.strip().split("\n")


@pytest.mark.parametrize("action", lines(TRUE))
def test_true(action: str) -> None:
    assert score(action) == 1.0


@pytest.mark.parametrize("action", lines(FALSE))
def test_false(action: str) -> None:
    assert score(action) == 0.0


@pytest.mark.parametrize("action", lines(NULL))
def test_counts_nothing(action: str) -> None:
    assert score(action) is None


def test_a_line_may_begin_with_the_relation() -> None:
    assert score("3 + 4\n= 7") == 1.0
    assert score("3 + 4\n= 8") == 0.0


def test_a_chain_is_judged_pair_by_pair() -> None:
    assert score("3 + 4 = 7 = 8 - 1 = 6") == pytest.approx(2 / 3)
    assert score("3 + 4 = 7 apples = 7") == 1.0
    assert score("3 + 4 = 7 = 8") == 0.5


def test_repeating_a_claim_gains_nothing() -> None:
    assert score("1 + 1 = 2. 1 + 1 = 2. 1 + 1 = 2. 2 + 2 = 5.") == 0.5


def test_only_the_first_claims_are_checked() -> None:
    true = "\n".join(f"{n} + 1 = {n + 1}" for n in range(MAX_CLAIMS))
    assert score(true + "\n2 + 2 = 5") == 1.0
    assert score("2 + 2 = 5\n" + true) == pytest.approx(1 - 1 / MAX_CLAIMS)


def test_the_border_of_what_is_read_is_no_border_of_a_number() -> None:
    claim = "10 + 2 = 12"
    assert score("a " * ((MAX_ACTION_CHARACTERS - len(claim) + 1) // 2) + claim) is None


def test_claims_are_shown() -> None:
    claims = find_claims("Natalia sold 48/2 = 24 clips, so 3 + 4 = 8.")
    assert [str(claim) for claim in claims] == ["48/2 = 24", "3+4 = 8"]
    assert [check(claim) for claim in claims] == [True, False]


@given(trees)
def test_a_tree_equals_its_value(tree: Tree) -> None:
    plain, latex, value = tree

    def written(number: Fraction) -> tuple[str, str]:
        above, below = number.numerator, number.denominator
        return f"({above})/{below}", rf"\frac{{{above}}}{{{below}}}"

    # "0 +", since a number alone on the left may be a label, and the same on both sides is trivial
    plain, latex = f"0 + ({plain})", rf"0 + \left({latex}\right)"
    (right, right_tex), (wrong, wrong_tex) = written(value), written(value + 1)
    assert score(f"So we get: {plain} = {right} clips.") == 1.0
    assert score(f"Then ${latex} = {right_tex}$.") == 1.0
    # With decimals, one more than a thousand may have been rounded on the way.
    surely = 0.0 if "." not in latex or abs(value) < 1000 else None
    assert score(f"Then ${latex} = {wrong_tex}$.") in (0.0, surely)
    # A reader may take a / b / c for a / (b / c), so the plain form may count nothing.
    assert score(f"So we get: {plain} = {wrong} clips.") in (0.0, None)


HOSTILE = {
    "brackets": "(" * 10_000 + "1" + ")" * 10_000 + " = 1",
    "opened": "{" * 10_000 + " = 1",
    "roots": "√" * 10_000 + "2 = 1",
    "fractions": r"\frac{" * 3_000 + " = 1",
    "powers": "2^" * 5_000 + "2 = 1",
    "signs": "-" * 10_000 + "1 = 1",
    "digits": "9" * 10_000 + " = 1",
    "many digits": "1 + " + "9" * 500_000 + " = 1",
    "tower": "9**9**9**9 = 1",
    "braced tower": "9^{9^{9^{9}}} = 1",
    "huge exponent": "(10^50)^(10^50) = 10^{10^{50}}",
    "product": "*".join(["9" * 40] * 190) + " = 1",
    "binomials": "\n".join(f"(x+y+z+w+{n})^60 = (x+y+z+{n})^60" for n in range(60)),
    "roots of sums": "\n".join(rf"\sqrt{{{n}+\sqrt{{2+\sqrt{{3}}}}}} = \pi" for n in range(60)),
    "relations": "=" * 100_000,
    "claims": "1+1=2\n" * 100_000,
    "dollars": "$ = " * 5_000,
    "commands": "\\" * 20_000,
    "text": r"\text{" * 4_000,
    "begin": r"\begin{align}" * 2_000,
    "commas": "1," * 10_000 + " = 1",
    "of": "20% of " * 3_000 + "1 = 1",
    "megabyte": "x + 1 = 2 and more of it, " * 40_000,
    "subscripts": "x_{" * 7_000 + " = 1",
    "odd": "\x00\u202e\u200b３+４=８ х=1 ٣=٣ 𝟑=𝟒 \ud800 = 1",
    "import": "__import__('os').system('true') = 0",
    "lambda": "(lambda: 1)() = 1",
    "attribute": "(1).__class__.__bases__ = 1 and x.y = 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_answered_in_time(name: str) -> None:
    start = time.process_time()
    value = score(HOSTILE[name])
    assert time.process_time() - start < 10
    assert value is None or 0.0 <= value <= 1.0


mathy = st.lists(
    st.sampled_from(
        [*"0123456789+-*/^(){}[]=<>xyaI.,:;!?$%&_|√π²≈≤≠ \n", " = ", " 12 ", r"\frac", r"\sqrt",
         "of", r"\left", r"\text{", r"\boxed{", r"\\", r"\[", r"\]", "**", " and ", " times ",
         "1,000", r"\begin{align}", r"\end{align}", r"\%", r"\$", r"\le ", " apples ", "percent",
         "x_1"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@settings(max_examples=400)
@given(mathy | st.text(max_size=60))
def test_any_text_gives_a_share_or_nothing(text: str) -> None:
    value = score(text)
    assert value is None or 0.0 <= value <= 1.0


@pytest.mark.skipif(
    not (DATA / "gsm8k_train.jsonl").exists(), reason="needs ../shared/data/gsm8k_train.jsonl"
)
def test_expert_steps_are_almost_never_false() -> None:
    with (DATA / "gsm8k_train.jsonl").open(encoding="utf-8") as rows:
        answers = [json.loads(row)["answer"] for row, _ in zip(rows, range(1000), strict=False)]
    steps = [re.sub(r"<<.*?>>", "", step) for answer in answers for step in answer.split("\n")[:-1]]
    values = [value for value in map(score, steps) if value is not None]
    assert len(values) > 0.7 * len(steps)
    assert sum(value == 1.0 for value in values) > 0.995 * len(values)


@pytest.mark.skipif(
    not (DATA / "math_train.jsonl").exists(), reason="needs ../shared/data/math_train.jsonl"
)
def test_expert_solutions_are_almost_never_false() -> None:
    with (DATA / "math_train.jsonl").open(encoding="utf-8") as rows:
        texts = [json.loads(row)["solution"] for row, _ in zip(rows, range(300), strict=False)]
    values = [value for value in map(score, texts) if value is not None]
    assert len(values) > 0.5 * len(texts)
    assert sum(value == 1.0 for value in values) > 0.97 * len(values)
