r"""Compares the values of two scalars, with math-verify behind a whitelist and with numbers.

The first scalar is untrusted. It is split into known tokens of bounded size before sympy sees it.
A scalar that would take long to compute is refused. Scalars that differ as text and as exact
numbers count as equal only if math-verify says so and their values, computed with 40 digits, agree
in 20 for several numbers in place of the letters.

No text is evaluated as Python: `sympify` of sympy receives unsigned whole numbers only.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from itertools import pairwise
from math import comb

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from math_verify.parser import NormalizationConfig

from environments.answers import same_answer

MAX_DIGITS = 20
"""The most characters of one number; the longest in MATH and GSM8K has 9 digits."""
MAX_EXPONENT = 5000
"""The largest exponent of a letter or a number, multiplied by all exponents of brackets, because
(9^9)^9 is 9^81. MATH has 2^{2005}."""
MAX_TERMS = 10_000
"""The most terms that the expanded scalar could have: (x+y+z)^{999} has half a million."""
MAX_FACTORIAL = 50
"""The largest number whose factorial is read; ``7!!`` and ``(7!)!`` are not."""
MAX_BINOMIAL_DIGITS = 2
"""The most digits of a number in a binomial coefficient, which sympy computes on reading."""
# All commands that an answer may use in a scalar. Sums, limits and integrals are refused, because
# they can take any amount of time.
_GREEK = frozenset([
    "\\alpha", "\\beta", "\\gamma", "\\delta", "\\epsilon", "\\theta", "\\lambda", "\\mu", "\\pi",
    "\\rho", "\\sigma", "\\Delta", "\\Omega", "\\eta", "\\kappa", "\\nu", "\\xi", "\\chi", "\\psi",
    "\\ell", "\\tau", "\\phi", "\\varphi", "\\omega",
])  # fmt: skip
_FUNCTIONS = frozenset([
    "\\sin", "\\cos", "\\tan", "\\cot", "\\sec", "\\csc", "\\arcsin", "\\arccos", "\\arctan",
    "\\log", "\\ln",
])  # fmt: skip
_IN_EXPONENTS = _GREEK | {"\\frac", "\\sqrt", "\\cdot", "\\times", "\\div"}
_COMMANDS = _IN_EXPONENTS | _FUNCTIONS | {
    "\\infty", "\\binom", "\\lfloor", "\\rfloor", "\\lceil", "\\rceil",
}  # fmt: skip
_TOKEN = re.compile(r"\\[A-Za-z]+|\d+(?:\.\d+)?|\.\d+|[A-Za-z]|[-+*/^_(){}\[\]!:|]")
_MIXED = re.compile(r"(-?)(\d+) (\d+)/(\d+)")
# math-verify must not remove units: it takes any of c, d, g, h, l, m, o, s, t for a unit.
_READING = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="last"
    )
)
_DIGITS = 40  # of a value; values that agree in half of these are the same
_POINTS = ((37, 101), (53, 89), (29, 71), (83, 97), (43, 61), (17, 59), (67, 79), (31, 103))
# These loggers warn once per process that no timeout is set.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def same_values(answer: str, gold: str) -> bool:
    """Returns whether two scalars, the first of them untrusted, are equal (see the module)."""
    if same_answer(answer, gold):
        return True
    tokens, gold_tokens = _tokens(answer), _tokens(gold)
    if not tokens or not _harmless(tokens):
        return False
    if _ambiguous(tokens) or (gold_tokens and _ambiguous(gold_tokens)):
        return False
    # The gold is trusted, so it need not pass the whitelist: it may contain a sum.
    right = _expression(_latex(gold_tokens) if gold_tokens else gold)
    left = _expression(_latex(tokens))
    if left is None or right is None or not _agree(left, right):
        return False
    return verify(right, left, numeric_precision=_DIGITS, float_rounding=20, timeout_seconds=None)


def same_equations(answer: str, gold: str) -> bool:
    """Returns whether one difference of sides is a number times the other: they share their zeros.

    Both need the same two or more letters. With one letter, the problem may ask to solve the
    equation."""
    tokens, gold_tokens = _tokens(answer), _tokens(gold)
    if not tokens or not gold_tokens or not (_harmless(tokens) and _harmless(gold_tokens)):
        return False
    if _ambiguous(tokens) or _ambiguous(gold_tokens):
        return False
    left, right = _expression(_latex(tokens)), _expression(_latex(gold_tokens))
    if left is None or right is None:
        return False
    letters = sorted(left.free_symbols, key=str)
    if len(letters) < 2 or left.free_symbols != right.free_symbols or len(letters) > len(_POINTS):
        return False
    ratios = []
    for shift in range(len(_POINTS)):
        above, below = (side.xreplace(_at(letters, shift)).evalf(_DIGITS) for side in (left, right))
        if not (above.is_number and below.is_number and above.is_finite and below.is_finite):
            return False
        if abs(below) < sympy.Float(10) ** -9:
            return False
        ratios.append(above / below)
    return abs(ratios[0]) > 0 and all(
        abs(ratio - ratios[0]) <= abs(ratios[0]) * sympy.Float(10) ** (-_DIGITS // 2)
        for ratio in ratios
    )


def _tokens(text: str) -> list[str] | None:
    """Returns the tokens of a scalar, or None if it contains anything else."""
    if mixed := _MIXED.fullmatch(text):
        text = "{}{}\\frac{{{}}}{{{}}}".format(*mixed.groups())
    tokens: list[str] = []
    place = 0
    while place < len(text):
        if text[place] == " ":
            place += 1
            continue
        match = _TOKEN.match(text, place)
        if match is None:
            return None
        tokens.append(match[0])
        place = match.end()
    return tokens


def _is_number(token: str) -> bool:
    return token[0].isdigit() or token[0] == "."


def _ambiguous(tokens: list[str]) -> bool:
    """Returns whether the scalar is ambiguous: two numbers side by side, a letter in both cases
    (read as one letter), or bars that are not one absolute value."""
    if (bars := tokens.count("|")) and (bars != 2 or not _one_absolute_value(tokens)):
        return True
    letters = {token for token in tokens if token.isalpha()}
    return len(letters) > len({letter.lower() for letter in letters}) or any(
        _is_number(first) and _is_number(second) for first, second in pairwise(tokens)
    )


def _one_absolute_value(tokens: list[str]) -> bool:
    """Returns whether the two bars enclose something; 5|10 means that 5 divides 10."""
    first = tokens.index("|")
    last = tokens.index("|", first + 1)
    before, after = tokens[first - 1 : first], tokens[last + 1 : last + 2]
    return last > first + 1 and not any(map(_is_number, after)) and "|" not in before


def _harmless(tokens: list[str]) -> bool:
    """Returns whether the whitelist allows the scalar, so that sympy computes it quickly."""
    largest = compound = 1
    exponent_ends = -1
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        after = tokens[i + 1] if i + 1 < len(tokens) else ""
        inside = i < exponent_ends
        if token.startswith("\\"):
            allowed = _IN_EXPONENTS if inside else _COMMANDS
            if token not in allowed or (token == "\\binom" and not _small_binomial(tokens, i)):
                return False
        elif _is_number(token):
            if len(token) > MAX_DIGITS:
                return False
        elif token == "^":
            # A power of a power without brackets begins where the first power ends.
            if i <= exponent_ends or not (after == "{" or after.isalpha() or _is_number(after)):
                return False
            exponent_ends = _closing(tokens, i + 1) + 1
            size = _size(tokens[i + 1 : exponent_ends])
            if before.isalpha() or before.isdigit():
                largest = max(largest, size)
            else:
                compound *= size
        elif token == "_":
            if not (before.isalpha() or before in _GREEK or before == "\\log"):
                return False
            if not (after.isdigit() or after.isalpha() or after == "{"):
                return False
        elif token == "!":
            small = before.isdigit() and int(before) <= MAX_FACTORIAL
            if inside or not (small or before.isalpha()) or after == "!":
                return False
        elif token == "[":
            # A root is an exponent too, and \sqrt[1/9999]{9} has a large exponent.
            if before != "\\sqrt" or not after.isdigit() or tokens[i + 2 : i + 3] != ["]"]:
                return False
            compound *= max(int(after), 1)
        elif token == "]" and (i < 2 or tokens[i - 2] != "["):
            return False
    letters = len({token for token in tokens if token.isalpha() or token in _GREEK})
    degree = compound * (1 + tokens.count("(") + tokens.count("{"))
    return largest * compound <= MAX_EXPONENT and comb(degree + letters, letters) <= MAX_TERMS


def _size(exponent: list[str]) -> int:
    """Returns an upper bound of the exponent: the product of its numbers, also of fractions."""
    size = 1
    for token in exponent:
        if _is_number(token):
            whole, _, decimals = token.partition(".")
            size *= max(int(whole or 0), 1) * 10 ** len(decimals)
    return size


def _closing(tokens: list[str], start: int) -> int:
    """Returns the index of the brace that closes the brace at `start`; `start` if none is there."""
    if tokens[start] != "{":
        return start
    depth = 0
    for place in range(start, len(tokens)):
        depth += (tokens[place] == "{") - (tokens[place] == "}")
        if depth == 0:
            return place
    return len(tokens)


def _small_binomial(tokens: list[str], start: int) -> bool:
    top, bottom = tokens[start + 2 : start + 3], tokens[start + 5 : start + 6]
    shape = ["{", *top, "}", "{", *bottom, "}"]
    return tokens[start + 1 : start + 7] == shape and all(
        number.isdigit() and len(number) <= MAX_BINOMIAL_DIGITS for number in (*top, *bottom)
    )


def _latex(tokens: list[str]) -> str:
    """Returns the scalar as LaTeX for math-verify: decimals as fractions, and every product with
    brackets written out (math-verify reads 2(3) as a mixed number)."""
    written: list[str] = []
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        power_of_function = i > 2 and tokens[i - 2] in "^_" and tokens[i - 3] in _FUNCTIONS
        below_log = i > 1 and tokens[i - 2] == "_"
        if (
            token in ("(", "{")
            and before
            and ((_is_number(before) or before.isalpha() or before in _GREEK) or before == ")")
            and not power_of_function
            and not below_log
        ):
            written.append("\\cdot")
        if "." in token:
            whole, _, decimals = token.partition(".")
            token = f"\\frac{{{int(whole + decimals)}}}{{{10 ** len(decimals)}}}"
            if before == "^":
                token = f"{{{token}}}"
        written.append(token)
    # No blank here, because math-verify reads square brackets between blanks as a formula.
    return " ".join(written).replace("\\sqrt [", "\\sqrt[")


@lru_cache(maxsize=1024)
def _expression(latex: str) -> sympy.Expr | None:
    """Returns what math-verify reads, with real letters, and with e and i as the constants."""
    parsed = parse(
        f"\\boxed{{{latex}}}", (_READING,), fallback_mode="no_fallback", parsing_timeout=None
    )
    if len(parsed) != 1 or not isinstance(parsed[0], sympy.Expr):
        return None
    known = {"e": sympy.E, "i": sympy.I}
    return parsed[0].xreplace(
        {
            symbol: known.get(symbol.name, sympy.Symbol(symbol.name, real=True))
            for symbol in parsed[0].free_symbols
        }
    )


def _agree(left: sympy.Expr, right: sympy.Expr) -> bool:
    """Returns whether two expressions have the same values at up to three points."""
    letters = sorted(left.free_symbols | right.free_symbols, key=str)
    if len(letters) > len(_POINTS):
        return False
    for shift in range(3 if letters else 1):
        at = _at(letters, shift)
        first, second = (side.xreplace(at).evalf(_DIGITS) for side in (left, right))
        if first == second:
            continue
        if not first.is_finite or not second.is_finite:
            return False
        scale = max(abs(first), abs(second))
        if not abs(first - second) <= scale * sympy.Float(10) ** (-_DIGITS // 2):
            return False
    return True


def _at(letters: list[sympy.Symbol], shift: int) -> dict[sympy.Symbol, sympy.Rational]:
    """Returns a number for every letter; they differ from shift to shift."""
    return {
        letter: sympy.Rational(*_POINTS[(i + shift) % len(_POINTS)])
        for i, letter in enumerate(letters)
    }
