r"""The answer reward: what is equal, what is not, and that no text makes it fail, hang or run code.

`corrupt` turns a right answer into a wrong one. Where both can be evaluated by `_number`, which
shares nothing with the module, the values must differ; where they cannot (lists, intervals,
matrices), the kind of corruption itself makes them differ.
"""

from __future__ import annotations

import builtins
import math
import random
import re
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import CodeType

import math_verify.parser
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from latex2sympy2_extended import latex2sympy2
from sympy.parsing import sympy_parser

from environments import load_trajectories
from environments.environment import MATHS
from environments.types import Step, Trajectory
from rewards.answer import answer, verify_answer
from rewards.types import StepContext

# By name, since a package may give a function the name of its module.
answer_module = import_module("rewards.answer")
scalars_module = import_module("rewards.scalars")
DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = [("competition_math", "math_train.jsonl"), ("gsm8k", "gsm8k_train.jsonl")]

EQUAL = [
    # answer, gold
    ("1/2", r"\frac{1}{2}"),
    ("0.5", r"\tfrac12"),
    ("1 1/2", r"\frac{3}{2}"),
    (r"1\frac{1}{2}", "1.5"),
    ("-1 1/2", "-1.5"),
    ("3:4", "3/4"),
    ("10^{-3}", "0.001"),
    ("2*3", "6"),
    ("2(3)", "6"),
    (r"2 \cdot 3", "6"),
    ("x(x+1)", "x^2+x"),
    ("x**2 + x", "x(x+1)"),
    ("(x-1)(x+1)", "x^2-1"),
    ("-(x-1)", "1-x"),
    ("0.5x", r"\frac{x}{2}"),
    ("x^0.5", r"\sqrt{x}"),
    ("ab", "ba"),
    ("x_1+x_2", "x_2 + x_1"),
    ("sqrt(2)", r"\sqrt{2}"),
    ("√2", r"\sqrt2"),
    ("2sqrt(3)", r"\sqrt{12}"),
    ("1/sqrt(2)", r"\frac{\sqrt{2}}{2}"),
    (r"\sqrt[3]{8}", "2"),
    (r"\sqrt{3+2\sqrt2}", r"1+\sqrt{2}"),
    ("2*pi", r"2\pi"),
    ("2π", r"2\pi"),
    (r"\frac \pi4 + 2", r"2+\frac{\pi}{4}"),
    ("1-1/e", r"1 - \frac{1}{e}"),
    ("1-e^{-1}", r"1 - \frac{1}{e}"),
    ("(2+i)^2", "3+4i"),
    ("2^(10)", "1024"),
    ("2^{2005}", r"2 \cdot 2^{2004}"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"\log_2(8)", "3"),
    (r"\sin^2(x)+\cos^2(x)", "1"),
    (r"\frac{12}{5525}", r"\frac{12}{5,\!525}"),
    ("1,000,000", "10^6"),
    ("$1,000", r"\$1000.00"),
    ("50%", r"\frac{1}{2}"),
    (r"50\%", "50"),
    ("0.5", r"50\%"),
    ("7 percent", r"7\%"),
    (r"30^\circ", "30"),
    ("30°", r"30^{\circ}"),
    ("30 degrees", r"30^\circ"),
    ("12 cups", "12"),
    (r"\sqrt{2} \text{ cm}", r"\sqrt2"),
    ("5 cm^2", r"5 \text{ cm}^2"),
    (r"5 \text{ m/s2}", "5"),
    ("5 inches", r"5\text{ inches}"),
    ("2516", "2516_8"),
    (r"2516_{8}", "2516_8"),
    ("x=5", "5"),
    ("5", "x = 5"),
    ("f(x) = x+1", "1+x"),
    ("2x-y+3=0", "y=2x+3"),
    ("x > 3", "3 < x"),
    ("1 < x <= 2", r"2 \ge x > 1"),
    (r"x \in [0,1]", "[0, 1]"),
    ("4, 3", "3,4"),
    ("3 and 4", "3,4"),
    ("3 or 4", r"3\text{ or }4"),
    (r"\{1, 2\}", "1,2"),
    ("{2,1}", r"\{1,2\}"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
    (r"±3", "-3, 3"),
    ("(0.5, 2)", r"\left( \frac{1}{2}, 2 \right)"),
    ("(1,2), (3,4)", "(3,4), (1,2)"),
    ("[1,2)", "[1, 2)"),
    ("(-inf,1) U (2,inf)", r"(2,\infty) \cup (-\infty,1)"),
    ("(−∞,1)∪[2,∞)", r"(-\infty, 1) \cup [2, \infty)"),
    (r"+\infty", r"\infty"),
    (r"\begin{pmatrix}0.5\\2\end{pmatrix}", r"\begin{pmatrix} 1/2 \\ 2 \end{pmatrix}"),
    (r"\begin{bmatrix} 1 & 2 \end{bmatrix}", r"\begin{pmatrix} 1 & 2 \\ \end{pmatrix}"),
    ("E", r"\text{(E)}"),
    ("(E)", r"\text{E}"),
    (r"\(7\)", "7"),
    (r"\[ x^2 \]", "x^{2}"),
    (r"x \in \{1,2\}", "1,2"),
    ("Tuesday", r"\text{tuesday}"),
    ("120", r"\sum_{k=1}^{15} k"),
    (r"\overline{CD}", r"\overline{CD}"),
    ("0 < x < 1", "(0,1)"),
    ("2y = 4x + 6", "y = 2x + 3"),
    ("x + y = 5", "5"),
    ("x = 2+3 = 5", "5"),
    ("2+3 = 5", "5"),
]

DIFFERENT = [
    ("1331 and 1728", "1728"),
    ("1728, 1331", "1728"),
    ("5 or 6", "5"),
    (r"5\text{ or 6}", "5"),
    (r"5\text{ or }", "5"),
    (r"5\text{, 6}", "5"),
    ("5 = 1728", "1728"),
    ("1 = 2 = 1728", "1728"),
    ("2+2 = 5", "5"),
    ("1-1/e", "1+1/e"),
    (r"1-\frac{1}{e}", r"1+\frac{1}{e}"),
    ("3,4", "(3,4)"),
    ("(3,4)", "3,4"),
    ("(3,4)", "[3,4]"),
    ("[3,4)", "(3,4)"),
    ("(4,3)", "(3,4)"),
    (r"\{3,4\}", "(3,4)"),
    ("(3,4,5)", "(3,4)"),
    ("3,4,4", "3,4"),
    ("3,3,4", "3,4,4"),
    ("[1,2],[3,4]", r"[1,2] \cup [3,4]"),
    (r"[1,2] \cup [3,5]", r"[1,2] \cup [3,4]"),
    ("5h", "5t"),
    ("5m", "5"),
    ("5t", "5"),
    (r"5 \text{ m}", r"5 \text{ cm}"),
    (r"5 \text{ cm}^2", r"5 \text{ cm}^3"),
    ("5 million", "5"),
    (r"5 \text{ million}", "5"),
    ("5 less", "4"),
    ("3", "3 xyz"),
    ("3 xyz", "3x"),
    ("5 am", "5 pm"),
    ("2516_9", "2516_8"),
    ("10_2", "2_3"),
    (r"\text{no}", "on"),
    ("on", r"\text{no}"),
    (r"\text{even}", r"\text{odd}"),
    (r"\text{(A)}", r"\text{(B)}"),
    ("2(3)", "5"),
    ("2 3", "6"),
    ("2 3", "5"),
    ("1 1/2", "11/2"),
    ("0.333333", "1/3"),
    ("0.33", "1/3"),
    ("0.0000001", "0.0000002"),
    (r"10^{-20}\pi", r"10^{-21}\pi"),
    ("3.14159265358979", r"\pi"),
    ("3.14", r"\pi"),
    ("1.41421356", r"\sqrt2"),
    (r"\pi", r"180^\circ"),
    ("R-r", "0"),
    ("0", r"\pi(R^2-r^2)"),
    ("R^2-r^2", "r^2-R^2"),
    ("Rr", "R^2"),
    ("x^2+2=0", "x^2+1=0"),
    ("x = 1", "y = 1"),
    ("x = 1, y = 2", "x = 2, y = 1"),
    ("y = 2x+3", "y = 2x-3"),
    ("x >= 3", "x > 3"),
    ("x < 3", "x > 3"),
    ("0 < x < 1", "[0,1)"),
    ("-221_4", "-221_3"),
    (r"0.11_3", "0.11_2"),
    ("18 cents", r"\$18"),
    ("x + y = 5", "x - y = 5"),
    ("2x = 6", "6"),
    ("5", "x + y = 5"),
    ("y = 2x + 4", "2y = 4x + 6"),
    ("x < 1 and x > 2", r"(-\infty,1) \cup (2,\infty)"),
    ("1 < x < 2", "1 < x < 3"),
    (r"x \ne 3", "x = 3"),
    ("x^2+x", "x^2-x"),
    ("x+1", "y+1"),
    ("xy", "x+y"),
    ("sqrt(3)", r"\sqrt{2}"),
    ("2^{2006}", "2^{2005}"),
    (r"-\infty", r"\infty"),
    ("1/0", r"\infty"),
    ("0/0", "0"),
    ("1/0", "2/0"),
    ("5%", "1/2"),
    (r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("(1, 2)", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\sum_{k=1}^{15} k", "120"),
    (r"\frac{1}{", "1"),
    ("", "1"),
    ("1", ""),
]

# Each is answered False for every gold below, within `BOUND` seconds.
HOSTILE_GOLDS = [
    "7",
    "x^2+x",
    "(1,2)",
    "x = 3",
    r"\text{yes}",
    r"[1,2] \cup [3,4]",
    r"\sqrt{2}",
    "0",
]
BOUND = 1.0
HOSTILE = [
    r"\lfloor\lfloor 9^{4999} \rfloor\rfloor", "|" * 150, "|x|" * 50, "½" * 60, "2" + "⁹" * 60,
    r"\exp(\exp(9))", r"\log_2 " * 30 + "8", "1=1=" * 40 + "1", "∛" * 30 + "8", r"\quad" * 30,
    r"\sinh(\sinh(\sinh(\sinh(99))))", "0.(" + "9" * 99 + ")", "5 " + "cm " * 60, r"\text{m}" * 25,
    "9^{9^9}", "9^9^9^9", "9**9**9", "9^{9^{9^{9}}}", "((9^9)^9)^9999", "{9^{999}}^{999}",
    "(((2^{99})^{99})^{99})^{99}", "9^{9999999999}", "9^{9*9*9*9*9*9*9*9}", "9^{(9999)(9999)}",
    "2^{1/0.000000000001}", r"\sqrt[1/99999]{9}", r"2^{\tan(1.57079632679)}", "2^{9!}",
    r"2^{\binom{99}{50}}", r"9^{\frac{1}{0.00000001}}", "0.5^{-99999999}", "1E999999999",
    "1e999999999", "1e-999999999", "10^{10^{10}}", "(x+y+z+w)^{99999}",
    "x^2+x+(x+y+z+w)^{400}-(x^2+2x(y+z+w)+(y+z+w)^2)^{200}", "7+(a+b+c)^{99}-((a+b+c)^3)^{33}",
    "x^{x^{x^{x}}}",
    "e^{e^{e^{e^{e^{9}}}}}", "9" * 199, "9" * 5000, "1/" + "9" * 190, "0." + "0" * 190 + "1",
    "999999999!", "9!!!!!!", "((9!)!)!", "(50!)!", "n!!", r"\binom{999999999}{99999999}",
    r"\binom{\binom{99}{50}}{50}", r"\Gamma(999999999)", r"\lfloor 9^{9999} \rfloor",
    r"\sum_{k=1}^{999999999} k", r"\int_0^{9} x^x dx", r"\prod_{k=1}^{99999} k",
    r"\lim_{x \to 0} \frac{\sin x}{x}", r"\operatorname{eye}(99999)", r"\det(A)", r"1 \bmod 0",
    r"\operatorname{zeros}(99999,99999)", r"\gcd(9,3)", r"\max(1,2)", r"\exp(\exp(\exp(99)))",
    "(" * 100 + "1" + ")" * 99, "(" * 199, "{" * 199, r"\{" * 99, r"\frac{" * 33, "-" * 198 + "1",
    r"\sqrt{" * 28 + "2", "1+" * 99 + "1+1", "x" * 199, "x+" * 99 + "x", "1/" * 99 + "1",
    "1," * 99 + "2", "1=" * 99 + "3", r"1\pm" * 39 + "1", r"\left" * 33, "^" * 199, "_" * 199,
    "x^" * 99, "|" * 199, "!" * 199, "=" * 199, ", " * 99, " " * 150 + "3 3", r"\ " * 99 + "1 1",
    "1" * 1_000_000, "(" * 1_000_000, r"\frac{1}{" * 100_000, " 1" * 500_000, "\\" * 1_000_000,
    "__import__('os').system('x')", "__import__", "eval('1')", "exec(chr(49))", "print(1)",
    "lambda: 1", "(lambda: 7)()", "open('x')", "os.system('x')", "x.__class__", "[].append(1)",
    r"\text{__import__('os').system('x')}", r"\operatorname{__import__}(os)",
    r"\mathrm{eval}(1)", "f'{7}'", "7 if 1 else 0", "7;import os", "7\nimport os", "7#", "7 or 1",
    "S('7')", "Integer(7)", "Symbol('x')", "sympify('7')", r"\input{/etc/passwd}",
    r"\write18{x}", r"\def\x{7}\x", r"\boxed{7} \boxed{8}", r"8} \boxed{7", "8}$7$", "$7$ $8$",
    "final answer is $7$. I hope", "answer: 7 9",
    "7\x00", "\x007", "7\u200b", "\u202e7", "7\u202e", "７", "𝟕", "VII", "\ud800", "х^2+х",
    "\u0661\u0662", "7\u0301", "½", "x²⁰", "⁷", "\x1b[31m7", "7\r8", "7\u2028", "\ufeff7",
    "NaN", "nan", "inf", "None", "True", "zoo", "oo-oo", r"\infty-\infty", r"\frac{0}{0}",
]  # fmt: skip
# Not deceived: every Unicode digit is a digit to `same_answer`, U+2028 is white space, U+200B and
# U+FEFF cannot be seen, and a product of ten letters with a zero among them is zero.
EXCUSED = {
    *((text, "7") for text in ("７", "𝟕", "7\u2028", "7\u200b", "\ufeff7")),
    ("7 if 1 else 0", "0"),
}


def step(action: str, *, gold: str | None = "7", index: int = 0, steps: int = 1) -> StepContext:
    return StepContext("2 + 5?", (), action, "", "The answer is 7.", index, steps, answer=gold)


@pytest.mark.parametrize(("stated", "gold"), EQUAL)
def test_equal(stated: str, gold: str) -> None:
    assert verify_answer(stated, gold)


@pytest.mark.parametrize(("stated", "gold"), DIFFERENT)
def test_different(stated: str, gold: str) -> None:
    assert not verify_answer(stated, gold)


@pytest.mark.parametrize(
    ("context", "reward"),
    [
        (step("The answer is 7."), 1.0),
        (step("2 + 5 = 7\n#### 7"), 1.0),
        (step(r"So \boxed{\frac{14}{2}}."), 1.0),
        (step(r"So \boxed{x(x+1)}.", gold="x^2+x"), 1.0),
        (step("The answer is 7.", index=2, steps=3), 1.0),
        (step("The answer is 8."), 0.0),
        (step(r"\boxed{6} or \boxed{7, 8}"), 0.0),
        (step("2 + 5 = 7"), 0.0),
        (step(""), 0.0),
        (step("The answer is 7.", gold=""), 0.0),
        (step("The answer is 7.", gold=None), None),
        (step("The answer is 7.", index=1, steps=3), None),
        (step("", gold=None, index=0, steps=3), None),
    ],
)
def test_reward(context: StepContext, reward: float | None) -> None:
    assert answer(context) == reward


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:24]))
def test_hostile_text_is_refused_in_time(text: str) -> None:
    for gold in HOSTILE_GOLDS:
        start = time.process_time()
        assert verify_answer(text, gold) is ((text, gold) in EXCUSED)
        assert time.process_time() - start < BOUND
    assert answer(step(f"\\boxed{{{text}}}", gold="3333")) == 0.0


def test_no_text_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """sympy's way of making a number is to evaluate it; nothing but digits may go that way."""
    real_eval, real_parse = builtins.eval, sympy_parser.parse_expr
    # Collected, since the libraries catch whatever is raised inside them.
    read: set[str] = set()
    evaluated: set[str] = set()

    def parse(text: str, *args: object, **kwargs: object) -> object:
        read.add(text)
        return real_parse(text, *args, **kwargs)

    def evaluate(code: str | CodeType, *args: object) -> object:
        evaluated.update(code.co_names if isinstance(code, CodeType) else {code})
        return real_eval(code, *args)

    monkeypatch.setattr(sympy_parser, "parse_expr", parse)
    monkeypatch.setattr("sympy.parsing.parse_expr", parse)
    monkeypatch.setattr(math_verify.parser, "parse_expr", parse)
    monkeypatch.setattr(latex2sympy2, "parse_expr", parse)
    monkeypatch.setattr(builtins, "eval", evaluate)
    answer_module._verified.cache_clear()
    scalars_module._expression.cache_clear()
    assert verify_answer("2+5+x", "x+7")
    for text in (*HOSTILE, *(stated for stated, _ in EQUAL + DIFFERENT)):
        for gold in ("7", "x^2+x", "(1,2)"):
            verify_answer(text, gold)
    assert read, "numbers are no longer read this way: look again at where text goes"
    assert all(re.fullmatch(r"[0-9]+", text) for text in read), read
    assert all(re.fullmatch(r"Integer|Integer ?\([0-9]+ ?\)", code) for code in evaluated), (
        evaluated
    )
    sympy.sympify("x+1")
    assert "x+1" in read  # what is guarded against is seen


pieces = st.lists(
    st.sampled_from(
        ["\\frac", "\\sqrt", "\\pi", "\\text", "\\left", "\\right", "\\cdot", "\\pm", "\\cup",
         "\\in",
         "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\{", "\\}", "\\infty", "\\circ", "\\log_",
         "\\binom", "\\sum", "\\sin", "\\", "{", "}", "(", ")", "[", "]", "^", "_", "!", "=", "<",
         ">", "+", "-", "*", "/", ",", ";", ":", ".", "%", "$", "&", "|", " ", "0", "1", "2", "9",
         "12", "3.5", "x", "y", "e", "i", "E", "X", "sqrt", "and", "π", "²", "√", "±", "\x00", "é"]
    ),
    max_size=16,
).map("".join)  # fmt: skip


@settings(max_examples=400)
@given(pieces | st.text(max_size=30), st.sampled_from([*HOSTILE_GOLDS, "3,4"]) | pieces)
def test_any_text_is_answered(text: str, gold: str) -> None:
    start = time.process_time()
    assert isinstance(verify_answer(text, gold), bool)
    assert time.process_time() - start < 5 * BOUND


# The corruptor


def _gold_answers(source: str, file: str) -> list[str]:
    if not (DATA / file).is_file():
        pytest.skip(f"the real data {file} is not in {DATA}")
    answers = (row.answer for row in load_trajectories(source, str(DATA / file)))
    return sorted({gold for gold in answers if gold is not None})


def _number(text: str) -> complex | None:
    """The value of a scalar, its letters given numbers, by other means than the module's."""
    text = re.sub(r"\\(?:left|right|!|,|;| )|\^\\circ|\\?[$%]|\s", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    for _ in range(6):
        text = re.sub(r"\\sqrt\{([^{}]*)\}", r"((\1)**0.5)", text)
        text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\^\{([^{}]*)\}", r"**(\1)", text)
    text = re.sub(r"\\pi|[a-zA-Z]", lambda letter: f"({_value(letter[0])})", text)
    text = text.replace("^", "**")
    text = re.sub(r"(?<=[\d)])(?=\()|(?<=\))(?=\d)", "*", text)
    if not re.fullmatch(r"[\d.+*/()-]+", text):
        return None
    try:
        return complex(eval(text, {"__builtins__": {}}))
    except (ArithmeticError, SyntaxError, TypeError, ValueError):
        return None


def _value(letter: str) -> float:
    return {"\\pi": math.pi, "e": math.e}.get(letter, 1.0 + ord(letter[-1]) * math.sqrt(2) / 100)


def _change_digit(text: str, rng: random.Random) -> str:
    place = rng.choice([found.start() for found in re.finditer(r"\d", text)])
    return text[:place] + rng.choice("123456789".replace(text[place], "")) + text[place + 1 :]


def _without_one(pattern: str, text: str, rng: random.Random) -> str:
    found = list(re.finditer(pattern, text))
    if not found:
        return text
    one = rng.choice(found)
    return text[: one.start()] + text[one.end() :]


def _other_variable(text: str, _: random.Random) -> str:
    letter = re.search(r"(?<![\\A-Za-z{])[a-df-hj-z](?![A-Za-z])", text)
    return text if letter is None else text.replace(letter[0], "q" if letter[0] != "q" else "p")


CORRUPTIONS: dict[str, Callable[[str, random.Random], str]] = {
    "digit": _change_digit,
    "sign": lambda text, _: text[1:] if text.startswith("-") else f"-{text}",
    "swap": lambda text, _: re.sub(r"frac\{([^{}]*)\}\{([^{}]*)\}", r"frac{\2}{\1}", text, count=1),
    "add one": lambda text, _: f"{text}+1",
    "double": lambda text, _: f"2({text})",
    "drop factor": lambda text, _: re.sub(r"\\pi|\\sqrt\{[^{}]*\}", "", text, count=1),
    "variable": _other_variable,
    "append": lambda text, rng: text + rng.choice([", {}", " and {}", r"\text{{ or }}{}"]).format(
        rng.randint(1001, 9999)
    ),
    "prepend": lambda text, rng: f"{rng.randint(1001, 9999)}, {text}",
    "equation": lambda text, rng: f"{rng.randint(1001, 9999)} = {text}",
    "operator": lambda text, _: text.replace("+", "-", 1),
    "bracket": lambda text, _: re.sub(r"^(\\left)?\(", r"\1[", text, count=1),
    "drop element": lambda text, _: re.sub(r",[^,()\[\]]*(?=[)\]]?$)", "", text, count=1),
    "power": lambda text, _: re.sub(r"\^(\d)", lambda n: f"^{int(n[1]) + 1}", text, count=1),
    "drop digit": lambda text, rng: _without_one(r"\d(?=\d)|(?<=\d)\d", text, rng),
    "drop term": lambda text, rng: _without_one(r"(?<=[\w})])[+-][^-+{}()\[\],=]+", text, rng),
    "last bracket": lambda text, _: re.sub(r"[)\]]$", lambda b: "])"[b[0] == "]"], text),
    "swap ends": lambda text, _: re.sub(r"^(\(|\[)([^,]+),([^,]+)(\)|\])$", r"\1\3,\2\4", text),
    "decimal point": lambda text, rng: re.sub(r"^(-?\d+)(\d)$", r"\1.\2", text),
    "base": lambda text, _: re.sub(r"_\{?(\d)\}?$", lambda n: f"_{int(n[1]) + 1}", text),
    "infinity": lambda text, _: text.replace(r"-\infty", r"\infty"),
    "strict": lambda text, _: re.sub(r"\\(l|g)e ?", lambda n: "<>"[n[1] == "g"], text),
}  # fmt: skip


def corrupt(gold: str, others: list[str], rng: random.Random) -> tuple[str, str] | None:
    """A kind of corruption and a wrong answer made by it; None where the draw was no good."""
    kind = rng.choice([*CORRUPTIONS, "other gold"])
    if kind == "other gold":
        wrong = rng.choice(others)
    else:
        if kind == "digit" and not re.search(r"\d", gold):
            return None
        # To these a text, a list or an interval is not a thing that can be changed as a whole.
        if kind in ("sign", "add one", "double", "append") and re.search(r"text|[,=()\[\]]", gold):
            return None
        wrong = CORRUPTIONS[kind](gold, rng)
    if re.sub(r"[\s$]", "", wrong).lower() == re.sub(r"[\s$]", "", gold).lower() or not wrong:
        return None
    value, gold_value = _number(wrong), _number(gold)
    if value is not None and gold_value is not None:
        if abs(value - gold_value) <= 1e-9 * max(1.0, abs(gold_value)):
            return None
        if kind == "other gold" and value in (gold_value * 100, gold_value / 100):
            return None  # a percentage and its value
    return kind, wrong


@pytest.mark.parametrize(("source", "file"), FILES)
def test_gold_answers_are_right(source: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golds = _gold_answers(source, file)
    hard = [gold for gold in golds if re.search(r"text|pmatrix|cup|!|_|=|,|%|:", gold)]
    chosen = {*random.Random(0).sample(golds, 300), *hard[::3]}
    for gold in chosen:
        assert verify_answer(gold, gold), gold
    # By mathematics alone too, but for what no part of the module reads
    for module in (answer_module, scalars_module):
        monkeypatch.setattr(module, "same_answer", lambda answer, gold: False)
    answer_module._verified.cache_clear()
    refused = {gold for gold in chosen if not verify_answer(gold, gold)}
    answer_module._verified.cache_clear()
    assert refused <= {r"\overline{CD}", r"\frac{1}{2004!}"}


@pytest.mark.parametrize(("source", "file"), FILES)
def test_corrupted_answers_are_refused(source: str, file: str) -> None:
    golds = _gold_answers(source, file)
    rng = random.Random(0)
    accepted, made = [], 0
    while made < 500:
        gold = rng.choice(golds)
        if (corrupted := corrupt(gold, golds, rng)) is None:
            continue
        made += 1
        kind, wrong = corrupted
        solution = rng.choice([r"So $\boxed{{{}}}$.", "The answer is ${}$.", "#### {}"]).format(
            wrong
        )
        # As the evaluation judges: the reward is asked where the environment leaves it open
        verdict = MATHS.judge(Trajectory("", (), gold), [Step(solution)]).correct
        paid = answer(step(solution, gold=gold)) == 1.0
        assert verdict in (None, paid)
        if paid:
            accepted.append((kind, wrong, gold))
    assert not accepted
