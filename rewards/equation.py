"""Computes the share of the arithmetic claims in a step that are true.

A claim is two readable expressions with a relation between them, in prose or in LaTeX. Claims that
cannot be read with certainty do not count. Otherwise the reward would punish good prose, and the
share of true claims would depend on the style of writing. See `rewards.expressions` for the
grammar.
"""

from __future__ import annotations

import operator
from functools import lru_cache

import sympy

from rewards.claims import MAX_ACTION_CHARACTERS, Claim, decimal_places, find_claims, stripped
from rewards.expressions import HUNDREDTH, UnreadableError, difference, parse_tokens
from rewards.tokens import Token
from rewards.types import StepContext

ROUNDED_ON_THE_WAY = sympy.Rational(1, 1000)
"""In a calculation with decimals, a relative error up to this is rounding and not a mistake."""
HEDGED = sympy.Rational(1, 20)
"""The relative error allowed if the sentence says that the result is not exact.

An absolute error below 1 is allowed as well."""

_ORDER = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
}


def equation(step: StepContext) -> float | None:
    r"""Returns the share of the checkable claims in the action that are true; None without any.

    What a claim is: a relation ``=``, ``≈``, ``<``, ``>``, ``≤``, ``≥``, ``≠`` (or its LaTeX
    command) between the longest readable expression before it and the longest one after it. A chain
    ``a = b = c`` is the claims ``a = b`` and ``b = c``. Words, sentence ends, commas, colons,
    semicolons, line ends and arrows end an expression. A line that begins with a relation continues
    the expression of the line before.

    What is true:
        Numbers are compared exactly, with roots and pi to 45 digits. A decimal number alone on one
        side may be the other side rounded to the digits shown (a per cent sign adds two). ``≈``
        allows rounding to whole numbers too, and is never false between two expressions, because
        they show no digits.
        With variables, a relation that holds for all values is true. One that holds for none
        because the variables cancel (``x + 1 = x + 2``) is false. Any other is a condition and not
        a claim.

    What counts nothing (None, never false):
        What the grammar refuses: ``5 apples + 3 = 8``, ``3 hours * 5 miles/hour = 15 miles``,
        ``1 1/2``, ``f(2)``, functions, factorials, and what exceeds a bound.
        A unit on the left (``12 inches = 1 foot``). A unit on the right is ignored (``= 24 clips``,
        ``= $24/hour``), unless the sentence continues the calculation with it.
        Two sides written alike (``1 = 1``) or the same number (``1.0 = 1``), because empty
        mathematics must not pay. Two different numbers after a word or a line end are a label or a
        conversion (``he has $2 = 200 cents``). A claim that occurs twice in a step counts once.
        A claim that is false as read, if another reading is possible:
        ``5 less than 12 + 3 = 10``, ``10/3 = 3 rounded down``, ``5/20 * 100 = 25%``,
        ``25 / 1/3 = 75``, a dash that may be a bullet, ``t = t + 1`` (an assignment),
        ``33.33 * 3 = 100`` (an intermediate rounding: decimals in a calculation, and a difference
        of at most 0.1%).
        ``3 of 12`` with a whole number; ``20% of 50`` and ``1/2 of 10`` are products.

    The first `MAX_CLAIMS` relations of the first `MAX_ACTION_CHARACTERS` characters are checked.
    Known limits: true but empty claims pay (``1 + 1 = 2``), and a policy can hide wrong claims
    behind words. Use the reward together with similarity, not alone.
    """
    return _share_true(step.action[: MAX_ACTION_CHARACTERS + 1])


# The rollouts of a group often repeat an action. 1,024 of the longest texts are 80 MB at most.
@lru_cache(maxsize=1024)
def _share_true(text: str) -> float | None:
    verdicts = {}
    for claim in find_claims(text):
        written = (_written(claim.left), claim.relation, _written(claim.right))
        if written not in verdicts:
            verdicts[written] = check(claim)
    checked = [verdict for verdict in verdicts.values() if verdict is not None]
    return sum(checked) / len(checked) if checked else None


def check(claim: Claim) -> bool | None:
    """Returns whether the claim is true; None if it says nothing or is not certain to read."""
    if _written(stripped(claim.left)) == _written(stripped(claim.right)):
        return None
    verdict = _verdict(claim)
    if verdict is not False:
        return verdict
    if claim.doubtful or any(_divided_twice(side) for side in (claim.left, claim.right)):
        return None
    if len(claim.left) == 1 and claim.left[0].kind == "letter" and claim.relation == "=":
        return None  # "t = t + 1" assigns
    if claim.hedged and _near(claim):
        return None
    if claim.bullet:
        minus = claim.left[0]._replace(kind="operator", text="-")
        if _verdict(Claim((minus, *claim.left), claim.relation, claim.right)):
            return None
    if bool(_percents(claim.left)) != bool(_percents(claim.right)) and _verdict(
        claim, percent=sympy.S.One
    ):
        return None  # "5/20 * 100 = 25%": the per cent sign means "of a hundred"
    return False


def _verdict(claim: Claim, *, percent: sympy.Rational = HUNDREDTH) -> bool | None:
    try:
        left = parse_tokens(claim.left, percent=percent)
        right = parse_tokens(claim.right, percent=percent)
        gap = difference(left, right)
    except UnreadableError:
        return None
    if gap is None:
        return None
    if claim.relation in _ORDER:
        return bool(_ORDER[claim.relation](gap, 0))
    digits = [decimal_places(side) for side in (claim.left, claim.right)]
    shown = [places for places in digits if places is not None]
    if gap == 0:
        # 1.0 = 1 is an empty claim; 0.5 = 50% is a real one.
        both = len(shown) == 2 and digits[0] is not None
        return None if both and _percents(claim.left) == _percents(claim.right) else True
    rounded = any(
        abs(gap) <= sympy.Rational(1, 2 * 10**places)
        for places in shown
        if places > 0 or claim.relation == "~"
    )
    if claim.relation == "~" and not rounded:
        # In 1234 ~ 1200 the precision is unclear: two digits or four. Two expressions show none.
        whole = [_written(stripped(side)) for side in (claim.left, claim.right)]
        if not shown or any(n.isdigit() and n.endswith("0") for n in whole):
            return None
    if len(shown) == 2:
        return None if rounded and claim.relation == "=" else rounded
    if not rounded and _within(left, gap, ROUNDED_ON_THE_WAY) and _computes_with_decimals(claim):
        return None  # "33.33 * 3 = 100": an intermediate rounding
    return rounded


def _near(claim: Claim) -> bool:
    """Returns whether the sides differ by less than one or by at most a twentieth."""
    left, right = parse_tokens(claim.left), parse_tokens(claim.right)
    gap = difference(left, right)
    return gap is not None and bool(abs(gap) < 1 or _within(left, gap, HEDGED))


def _within(value: sympy.Expr, gap: sympy.Expr, share: sympy.Rational) -> bool:
    return not value.free_symbols and bool(abs(gap) <= share * abs(value))


def _computes_with_decimals(claim: Claim) -> bool:
    return any(
        decimal_places(side) is None and any(t.kind == "number" and "." in t.text for t in side)
        for side in (claim.left, claim.right)
    )


def _divided_twice(side: tuple[Token, ...]) -> bool:
    """Returns whether the side divides twice, as `25 / 1/3`, which may mean 25 / (1/3)."""
    signs = [token.text == "/" and token.kind == "operator" for token in side]
    return any(first and second for first, second in zip(signs, signs[2:], strict=False))


def _written(side: tuple[Token, ...]) -> str:
    return " ".join(token.text for token in side if token.kind != "currency")


def _percents(side: tuple[Token, ...]) -> int:
    return sum(token.kind == "percent" for token in side)
