"""Parses a policy's text into sympy objects by a strict grammar, or refuses it.

A policy's text is hostile input. sympy's own parsers evaluate code, and its constructors compute
towers of powers until the memory is full. So this module splits the text into tokens and reads them
with a small recursive-descent parser. It calls a sympy constructor only after it has bounded the
size of the result. Text outside the grammar (functions, factorials, |x|, sums, unknown commands,
look-alike letters and digits) raises `UnreadableError`; the parser never guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import sympy

from rewards.tokens import Token, tokenize

MAX_CHARACTERS = 2_000
"""The longest text that `parse_expression` reads; a line of real mathematics has some 200."""
MAX_TOKENS = 200
"""The most tokens, and so the most nodes, of one expression: sums of 50 terms still pass."""
MAX_DIGITS = 40
"""The most digits of a number. Conversion is quadratic, and no word problem needs more."""
MAX_DEPTH = 20
"""The deepest nesting. One level takes six Python frames, far below the recursion limit."""
MAX_BITS = 8_192
"""The most bits of a number, checked before it is computed: 2^2000 passes, 9^9^9 is refused."""
MAX_EXPONENT = 10_000
"""The largest exponent. `MAX_BITS` alone is not enough for a base of one bit or for x."""
MAX_SUM_EXPONENT = 64
"""The largest exponent of a sum that is not a plain number."""
MAX_ROOT = 12
"""The largest degree of a root."""
MAX_RADICAND_BITS = 160
"""The most bits of a number under a root, because sympy searches for its small factors."""
HUNDREDTH = sympy.Rational(1, 100)
PRECISION = 60
"""Decimal digits to which roots and pi are computed where no exact answer exists."""
EQUAL = sympy.Rational(1, 10**45)
UNEQUAL = sympy.Rational(1, 10**25)
"""Limits of relative differences: values are equal up to EQUAL and different above UNEQUAL.

In between the expression is refused."""


class UnreadableError(ValueError):
    """The text is outside the grammar, is ambiguous, has no value, or exceeds a bound."""


_PAIRS = {"(": ")", "[": "]", "{": "}"}
_FUNCTION_LETTERS = frozenset("fghFGHPQ")
"""A bracket after one of these is an argument: f(2) is not 2f."""


@dataclass(frozen=True)
class _Term:
    """A value with its size, which bounds the cost of computing with it."""

    value: sympy.Expr
    bits: int  # of numerator and denominator together; a bound on the size if not rational
    percent: bool = False  # it has a per cent sign


def _rational(value: sympy.Rational, *, percent: bool = False) -> _Term:
    return _Term(value, int(value.p).bit_length() + int(value.q).bit_length(), percent)


def _made(value: sympy.Expr, bits: int) -> _Term:
    """Returns the term of a computed value, with its exact size if it is rational, else `bits`."""
    if value.is_Rational:
        return _rational(value)
    if value.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
        raise UnreadableError("no real value")
    return _Term(value, bits)


def _within(bits: int) -> int:
    if bits > MAX_BITS:
        raise UnreadableError(f"a number of {bits} bits; the most is {MAX_BITS}")
    return bits


def _sum(a: _Term, b: _Term) -> _Term:
    # "50 + 20%" is ambiguous: 60 in a shop, 50.2 in mathematics. 1 - 20% has only one meaning.
    if a.percent != b.percent and 1 not in (a.value, b.value):
        raise UnreadableError("a percentage added to a plain number")
    percent = a.percent and b.percent
    bits = _within(a.bits + b.bits + 1)
    made = _made(sympy.Add(a.value, b.value), bits)
    return _Term(made.value, made.bits, percent)


def _product(a: _Term, b: _Term) -> _Term:
    bits = _within(a.bits + b.bits)
    return _made(sympy.Mul(a.value, b.value), bits)


def _power(base: _Term, exponent: sympy.Expr) -> _Term:
    """Returns `base ** exponent`, bounded before it is computed; the exponent must be rational."""
    if not exponent.is_Rational:
        raise UnreadableError("an exponent that is not a rational number")
    times, root = int(exponent.p), int(exponent.q)
    if abs(times) > MAX_EXPONENT or root > MAX_ROOT:
        raise UnreadableError(f"the exponent {exponent}; the largest is {MAX_EXPONENT}")
    value = base.value
    if value.is_zero and times <= 0:
        raise UnreadableError("division by zero, or 0^0")
    if not value.is_Rational and value.has(sympy.Add) and abs(times) > MAX_SUM_EXPONENT:
        raise UnreadableError(f"a sum to the power {times}; the most is {MAX_SUM_EXPONENT}")
    bits = _within(base.bits * max(1, abs(times)))
    if root == 1:
        return _made(sympy.Pow(value, exponent), bits)
    if value.is_Rational:
        if bits > MAX_RADICAND_BITS:
            raise UnreadableError(f"a root of {bits} bits; the most is {MAX_RADICAND_BITS}")
        if value.is_negative:
            # sympy takes the complex root; school mathematics takes the real root if it exists.
            if root % 2 == 0:
                raise UnreadableError("an even root of a negative number")
            return _made((-1) ** times * sympy.Pow(-value, exponent), bits)
    return _made(sympy.Pow(value, exponent), bits)


class _Parser:
    """A recursive-descent parser over tokens; `depth` is bounded to protect Python's stack."""

    def __init__(self, tokens: Sequence[Token], percent: sympy.Rational) -> None:
        self.tokens = [token for token in tokens if token.kind != "currency"]
        self.at = 0
        self.percent = percent
        if not self.tokens:
            raise UnreadableError("nothing to read")
        if len(self.tokens) > MAX_TOKENS:
            raise UnreadableError(f"{len(self.tokens)} tokens; the most is {MAX_TOKENS}")

    def whole(self) -> sympy.Expr:
        term = self._terms(0)
        if self.at < len(self.tokens):
            raise UnreadableError(f"'{self.tokens[self.at].text[:20]}' is not expected")
        return term.value

    def _next(self, kind: str, *texts: str) -> Token | None:
        """Consumes and returns the next token if its kind (and text) match; otherwise None."""
        if self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.kind == kind and (not texts or token.text in texts):
                self.at += 1
                return token
        return None

    def _terms(self, depth: int) -> _Term:
        """Reads sum = [sign] product {sign product}."""
        total = self._factors(depth)
        while sign := self._next("operator", "+", "-"):
            term = self._factors(depth)
            total = _sum(total, _negative(term) if sign.text == "-" else term)
        return total

    def _factors(self, depth: int) -> _Term:
        """Reads product = factor {[* or /] factor}."""
        product = self._signed(depth)
        divided = False
        while True:
            if sign := self._next("operator", "*", "/"):
                factor = self._signed(depth)
                divided = sign.text == "/"
                product = _product(product, _power(factor, sympy.S.NegativeOne)
                                   if divided else factor)  # fmt: skip
            elif self._implicit():
                if divided:
                    raise UnreadableError("1/2x: what is divided by is not certain")
                product = _product(product, self._raised(depth))
            else:
                return product

    def _implicit(self) -> bool:
        """Returns whether a factor follows without a sign; raises UnreadableError if uncertain."""
        if self.at >= len(self.tokens):
            return False
        before, token = self.tokens[self.at - 1], self.tokens[self.at]
        if token.kind not in {"letter", "pi", "open", "fraction", "root", "number"}:
            return False
        if token.kind == "number":
            raise UnreadableError("a number after an operand: a mixed number, or two numbers")
        if token.gap:
            raise UnreadableError("two expressions beside each other")
        if before.kind == "percent":
            raise UnreadableError("an operand after a per cent sign")
        if before.kind == "number" and token.kind == "fraction":
            raise UnreadableError("a mixed number")
        if token.kind == "open" and token.text != "{":
            if before.kind == "letter" and (
                before.text[0] in _FUNCTION_LETTERS or self._argument_ahead()
            ):
                raise UnreadableError("a function")
            if before.kind == "number" and token.spaced and not token.math:
                raise UnreadableError("12 (3 * 4): a factor or an aside")
        if token.kind == "letter" and token.spaced and not token.math and before.kind == "number":
            raise UnreadableError("5 m: a factor or a unit")
        if token.kind == before.kind == "letter" and (before.text + token.text).isupper():
            raise UnreadableError("AB: a product or the name of a line")
        return True

    def _argument_ahead(self) -> bool:
        """Returns whether a bracket with only a number in it follows: p(0) is a value of p."""
        kinds = [token.kind for token in self.tokens[self.at : self.at + 4]]
        return kinds[1:3] == ["number", "close"] or kinds[1:4] == ["operator", "number", "close"]

    def _signed(self, depth: int) -> _Term:
        sign = self._next("operator", "+", "-")
        term = self._raised(depth)
        return _negative(term) if sign and sign.text == "-" else term

    def _raised(self, depth: int) -> _Term:
        """Reads factor = atom [^ exponent] [%]."""
        term = self._atom(depth)
        if raised := self._next("superscript"):
            term = _power(term, sympy.Integer(int(raised.text)))
        elif self._next("operator", "^"):
            sign = self._next("operator", "-", "+")
            exponent = self._atom(depth + 1)
            if self._next("operator", "^"):
                raise UnreadableError("a tower of powers without brackets")
            term = _power(term, -exponent.value if sign and sign.text == "-" else exponent.value)
        if self._next("percent"):
            percent = _product(term, _rational(self.percent))
            return _Term(percent.value, percent.bits, True)
        return term

    def _atom(self, depth: int) -> _Term:
        if depth > MAX_DEPTH:
            raise UnreadableError(f"nested deeper than {MAX_DEPTH}")
        if self.at >= len(self.tokens):
            raise UnreadableError("an operand is missing")
        token = self.tokens[self.at]
        self.at += 1
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "letter":
            return _Term(sympy.Symbol(token.text), 1)
        if token.kind == "pi":
            return _Term(sympy.pi, 2)
        if token.kind == "open":
            inside = self._terms(depth + 1)
            if not self._next("close", _PAIRS[token.text]):
                raise UnreadableError(f"'{token.text}' is not closed")
            return inside
        if token.kind == "fraction":
            above = self._argument(depth)
            return _product(above, _power(self._argument(depth), sympy.S.NegativeOne))
        if token.kind == "root":
            return self._root(token, depth)
        raise UnreadableError(f"'{token.text[:20]}' is not an operand")

    def _root(self, token: Token, depth: int) -> _Term:
        degree = 2
        if token.text == "sqrt" and self._next("open", "["):
            written = self._next("number")
            if not written or not written.text.isdigit() or not self._next("close", "]"):
                raise UnreadableError("the degree of a root is a whole number")
            degree = int(written.text) if len(written.text) < 3 else 0
            if not 2 <= degree <= MAX_ROOT:
                raise UnreadableError(f"a root of degree {written.text[:9]}")
        plain = token.text == "√"
        radicand = self._atom(depth + 1) if plain else self._argument(depth, split=False)
        return _power(radicand, sympy.Rational(1, degree))

    def _argument(self, depth: int, *, split: bool = True) -> _Term:
        r"""Reads the argument of a command: a group in braces, or one sign as in ``\frac12``."""
        if self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.kind == "number" and len(token.text) > 1:
                if not split or not token.text.isdigit():
                    raise UnreadableError("braces are missing around an argument")
                self.tokens[self.at] = token._replace(text=token.text[1:], spaced=False)
                return _number(token.text[0])
            if token.kind == "open" and token.text != "{" and split:
                raise UnreadableError("braces are missing around an argument")
        return self._atom(depth + 1)


def _negative(term: _Term) -> _Term:
    return _Term(sympy.Mul(sympy.S.NegativeOne, term.value), term.bits, term.percent)


def _number(text: str) -> _Term:
    if len(text) > MAX_DIGITS:
        raise UnreadableError(f"a number of {len(text)} digits; the most is {MAX_DIGITS}")
    whole, _, decimals = text.partition(".")
    return _rational(sympy.Rational(int(whole + decimals), 10 ** len(decimals)))


def parse_tokens(tokens: Sequence[Token], *, percent: sympy.Rational = HUNDREDTH) -> sympy.Expr:
    """Returns the expression that all of the tokens form; see `parse_expression`."""
    return _Parser(tokens, percent).whole()


def parse_expression(text: str, *, math: bool = True) -> sympy.Expr:
    r"""Returns the sympy expression of a plain or LaTeX text.

    Ambiguous cases, and what was decided:
        ``-2^2`` is -4 as usual, ``2^10`` is 1024 in LaTeX too, ``2^3^2`` is refused.
        ``1 1/2`` and ``1\frac12`` (mixed numbers or products), ``1/2x``, ``f(x)`` and ``p(0)``,
        ``AB`` (the name of a line), ``50 + 20%`` and ``\sqrt16`` are refused, and so is a number
        after an operand, ``x2``. In prose ``5 m`` and ``12 (3)`` are refused too.
        An odd root of a negative number is the real root; an even root is refused.
        A currency sign is ignored; a per cent sign divides by a hundred.

    Raises:
        UnreadableError: the text is outside the grammar, is ambiguous, has no value, or exceeds
            one of the bounds above; nothing beyond a bound is computed.
    """
    if len(text) > MAX_CHARACTERS:
        raise UnreadableError(f"{len(text)} characters; the most is {MAX_CHARACTERS}")
    return parse_tokens(tokenize(text, math=math))


def difference(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr | None:
    """Returns left - right if it is the same for all values of the variables; otherwise None.

    The variables get fractions with a large denominator: all positive, all negative, and mixed. The
    fractions are the same in every call. If the difference is the same each time, it counts as the
    difference for all values. Rational numbers are compared exactly. Roots and pi are computed to
    `PRECISION` digits, and the result is 0 if 45 of them agree.

    Raises:
        UnreadableError: a value is infinite or not real, or the precision is too low to decide.
    """
    letters = sorted(left.free_symbols | right.free_symbols, key=str)
    if not letters:
        return _gap(left, right)
    # Roots of fractions would grow without bound, so expressions with roots get decimal values.
    exact = not any(side.has(sympy.pi) or _has_root(side) for side in (left, right))
    gaps = []
    draw = Random(0)
    for signs in ((1, 1), (-1, -1), (1, -1)):
        at = {}
        for place, letter in enumerate(letters):
            value = sympy.Rational(signs[place % 2] * draw.randrange(5_000, 20_000), 10_007)
            at[letter] = value if exact else sympy.Float(value, PRECISION)
        gaps.append(_gap(left.xreplace(at), right.xreplace(at), real=False))
    if exact:
        return gaps[0] if len(set(gaps)) == 1 else None
    if any(abs(gap) > 1 / UNEQUAL for gap in gaps):
        raise UnreadableError("too far apart to see whether variables matter")
    return gaps[0] if all(abs(gap - gaps[0]) <= UNEQUAL for gap in gaps) else None


def _has_root(expression: sympy.Expr) -> bool:
    return any(not power.exp.is_Integer for power in expression.atoms(sympy.Pow))


def _gap(left: sympy.Expr, right: sympy.Expr, *, real: bool = True) -> sympy.Expr:
    """Returns left - right; both are without variables."""
    if left.is_Rational and right.is_Rational:
        return left - right
    a, b = (side.evalf(PRECISION) for side in (left, right))
    if not all(side.is_finite and (side.is_real or not real) for side in (a, b)):
        raise UnreadableError("no real value")
    gap = a - b
    scale = max(sympy.S.One, abs(a), abs(b))
    if abs(gap) <= EQUAL * scale:
        return sympy.S.Zero
    if abs(gap) <= UNEQUAL * scale:
        raise UnreadableError("too near each other to tell apart")
    return gap
