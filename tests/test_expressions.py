"""The strict grammar: what it reads, what it refuses, and that nothing hostile is computed."""

from __future__ import annotations

import contextlib
import time
from fractions import Fraction

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from rewards.expressions import UnreadableError, difference, parse_expression
from rewards.tokens import tokenize

x, y = sympy.symbols("x y")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48/2", 24), ("1,200 + 3", 1203), ("1{,}200", 1200), (".5", Fraction(1, 2)),
        ("3.14", Fraction(157, 50)), ("2 ** 3", 8), ("2^10", 1024), ("2^{-3}", Fraction(1, 8)),
        ("-2^2", -4), ("2 - -3", 5), ("3 × 4 ÷ 2", 6), ("3·4⋅2", 24), ("7 − 2", 5),
        (r"3 \times 4", 12), (r"3 \cdot 4 \div 6", 2), (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\frac12+\dfrac{3}{4}", Fraction(5, 4)), (r"\tfrac 1 2", Fraction(1, 2)),
        (r"\frac1{10}", Fraction(1, 10)), (r"\sqrt[3]{8}", 2), ("√16", 4), (r"\sqrt9", 3),
        (r"\sqrt[3]{-8}", -2), ("3²+2³", 17), ("[2(3+4)]^2", 196), ("{2}", 2),
        (r"\left(3+4\right)", 7), (r"2\boxed{3+4}", 14), ("3(4)", 12), ("(3)(4)", 12),
        ("20%", Fraction(1, 5)), (r"20\% \cdot 50", 10), ("1 - 20%", Fraction(4, 5)),
        ("$5 * 3", 15), (r"\$5 * 3", 15), (r"1\,+\;2\!\ ~", 3), ("3 &+ 4", 7),
        ("10/2*5", 25), ("12/2/3", 2),
    ],
)  # fmt: skip
def test_numbers(text: str, value: Fraction | int) -> None:
    fraction = Fraction(value)
    assert parse_expression(text) == sympy.Rational(fraction.numerator, fraction.denominator)


def test_symbols_and_irrational_numbers() -> None:
    assert parse_expression("2x") == 2 * x
    assert parse_expression("x(x+1)") == x * (x + 1)
    assert parse_expression("x^2y") == x**2 * y
    assert parse_expression(r"2\pi") == parse_expression("2π") == 2 * sympy.pi
    assert parse_expression("x_1 + a_{10}") == sympy.Symbol("x_1") + sympy.Symbol("a_10")
    assert parse_expression(r"\theta") == sympy.Symbol(r"\theta")
    assert parse_expression(r"\sqrt{2}") == sympy.sqrt(2)
    assert parse_expression("ab") == sympy.Symbol("a") * sympy.Symbol("b")
    with pytest.raises(UnreadableError, match="'ab' is not an operand"):
        parse_expression("ab", math=False)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "+", "3 +", "* 3", "(3", "3)", "(3]", "3!", "|3|", "3 4", "1 1/2", r"1\frac12",
        "1/2x", r"1/2\pi", "f(2)", "f(x+1)", "p(0)", "x2", "2^3^2", "50 + 20%", "12 (3", "1.2.3",
        "1,2", "1,20", r"\sin 3", "sin(3)", r"\sum 3", r"\unknown{3}", r"\sqrt16", r"\sqrt[x]{3}",
        "1/0", "1/(2-2)", "0^0", r"\frac{1}{0}", r"\sqrt{-4}", "(-8)^{1/2}", "2^x", r"2^{\pi}",
        "x = 3", "3; 4", "２+３", "х+1", "3\u202e4", "3\x004", "１", "٣+٤", "²", "AB", "3 -- 4",
        r"30^\circ", r"0.\overline{3}", "0.333...", "9**9**9", "__import__('os')", "lambda: 3",
        "x.y", "(1).__class__", "1e5", "0x10", "x_{n+1}", r"\left|3\right|", "5 and 3",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        parse_expression(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(10^50)^(10^50)", "the exponent 1000"),
        ("9^(9^9)", "the exponent 387420489"),
        ("2^{9999}", "bits"),
        ("((2^64)^64)^64", "bits"),
        ("*".join(["10^90"] * 45), "bits"),
        ("+".join(f"1/{10**39 + n}" for n in range(40)), "bits"),
        ("(1+x)^500", "a sum to the power 500"),
        (r"\pi^{9999}", "bits"),
        ("9" * 41, "41 digits"),
        ("9" * 1999, "1999 digits"),
        ("(" * 500 + "1" + ")" * 500, "1001 tokens"),
        ("(" * 50 + "1" + ")" * 50, "nested deeper than 20"),
        ("√" * 100 + "2", "nested deeper than 20"),
        ("1" + "+1" * 400, "801 tokens"),
        ("1" * 2001, "2001 characters"),
        (r"\sqrt{" + "9" * 40 + "*" + "7" * 40 + "}", "a root of"),
        (r"\sqrt[999999]{2}", "a root of degree 999999"),
    ],
)
def test_bounds_come_before_computing(text: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(UnreadableError, match=message):
        parse_expression(text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("1/2", "1/3", sympy.Rational(1, 6)),
        ("(x+1)^2", "x^2+2x+1", 0),
        ("x+1", "x+2", -1),
        ("y", "2x", None),
        (r"\frac{x^2-1}{x-1}", "x+1", 0),
        (r"\frac{1}{x}+\frac{1}{y}", r"\frac{x+y}{xy}", 0),
        (r"\frac{x}{x+1}", r"1 - \frac{1}{x+1}", 0),
        (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2", 0),
        (r"x\sqrt{2}+1", r"x\sqrt{2}+2", -1),
        (r"x^{2/3}x^{1/3}", "x", 0),
        (r"\sqrt{x^2}", "x", None),
        (r"\pi r^2", r"r^2\pi", 0),
        ("x - x", "0", 0),
        (r"(\sqrt{x}+1)^2", r"x+2\sqrt{x}+1", 0),
        (r"\sqrt{xy}", r"\sqrt{x}\sqrt{y}", None),
        ("(x+y+z+w)^{60}", "(w+z+y+x+1)^{60}", None),
        ("(x+y+z+w)^{60}+1", "(w+z+y+x)^{60}", 1),
        ("+".join("abcdejklmnopr"), "+".join("rponmlkjedcba"), 0),
        ("+".join("abcdejklmnopr"), "a", None),
    ],
)
def test_difference(left: str, right: str, expected: object) -> None:
    found = difference(parse_expression(left), parse_expression(right))
    if expected is None or found is None:
        assert found is expected
    else:
        assert abs(found - expected) < 1e-45  # type: ignore[operator]
        assert (found == 0) == (expected == 0)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (r"1/((x+1)(x+2)-x^2-3x-2)", "x"),
        (r"\sqrt{1-\sqrt2}", "1"),
    ],
)
def test_a_difference_without_a_real_value_is_refused(left: str, right: str) -> None:
    start = time.process_time()
    with pytest.raises(UnreadableError):
        difference(parse_expression(left), parse_expression(right))
    assert time.process_time() - start < 3


Tree = tuple[str, str, Fraction]  # plain text, LaTeX, value


def _joined(parts: tuple[Tree, str, Tree]) -> Tree:
    (a, a_tex, u), sign, (b, b_tex, v) = parts
    if sign == "/" and v == 0:
        sign = "+"
    value = {"+": u + v, "-": u - v, "*": u * v, "/": u / v if v else u}[sign]
    if sign == "/":
        return f"({a}) / ({b})", rf"\frac{{{a_tex}}}{{{b_tex}}}", value
    left, right = rf"\left({a_tex}\right)", rf"\left({b_tex}\right)"
    return f"({a}) {sign} ({b})", left + (r" \cdot " if sign == "*" else sign) + right, value


leaves = st.integers(0, 10_000).map(lambda n: (f"{n:,}", str(n), Fraction(n))) | st.integers(
    0, 9999
).map(lambda n: (f"{n / 100:.2f}", f"{n / 100:.2f}", Fraction(n, 100)))
trees = st.recursive(
    leaves, lambda t: st.tuples(t, st.sampled_from("+-*/"), t).map(_joined), max_leaves=8
)


@given(trees)
def test_value_is_that_of_fractions(tree: Tree) -> None:
    plain, latex, value = tree
    expected = sympy.Rational(value.numerator, value.denominator)
    assert parse_expression(plain) == expected
    assert parse_expression(latex) == expected


@given(st.text(max_size=60) | st.text(alphabet="0123456789+-*/^(){}[]xy\\%. ,$_=√π²!", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for math in (True, False):
        assert len(tokenize(text, math=math)) <= len(text)
        with contextlib.suppress(UnreadableError):
            assert isinstance(parse_expression(text, math=math), sympy.Expr)
