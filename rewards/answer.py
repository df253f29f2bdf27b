r"""Decides by mathematics whether the final answer of a solution is right.

`environments.answers.same_answer` compares text and exact numbers. Here ``x(x+1)`` and ``x^2+x``
are equal too. math-verify reads LaTeX into sympy, but it was not made for a policy that is rewarded
for its verdict. It reads 3,4 as the interval (3,4), ``5 h`` as ``5 t``, ``1=2=7`` as 7 and 2(3) as
5, and some inputs make sympy compute without end. So there are four safeguards:

- `rewards.spelling` rewrites both sides into one spelling.
- A whitelist refuses what is long, deep, huge or not plain mathematics.
- This module takes lists, brackets, matrices and relations apart, so math-verify sees only scalars.
- A scalar counts as equal only if its value also agrees in 20 digits, at several values of the
  letters.

No text is evaluated as Python: `sympify` of sympy receives unsigned whole numbers only. This module
sets no timer. The bounds keep the usual cost to milliseconds, but not every cost, so call this
module in a worker process with a deadline.
"""

from __future__ import annotations

import re
from functools import lru_cache

from environments.answers import LONGEST_ANSWER, is_number, same_answer, stated_answer
from rewards.relations import (
    FLIPPED,
    RELATIONS,
    as_interval,
    as_tuple,
    condition_of,
    names_its_right_side,
    split,
    tells_what_was_asked,
    unwrap,
)
from rewards.scalars import same_equations, same_values
from rewards.spelling import local_number, tidy
from rewards.types import StepContext
from rewards.units import split_unit
from rewards.wording import number_in_words, same_choice, without_label

MAX_DEPTH = 8
"""The deepest nesting of brackets. The parser needs several Python frames for each level."""
MAX_PARTS = 16
"""The most elements of a list, because each element is compared with each."""
_SEPARATORS = frozenset([",", ";"])
_MATRIX = re.compile(r"\\begin\{(pmatrix)\}(.*)\\end\{\1\}", re.DOTALL)
_SIGN = re.compile(r"\\[A-Za-z]+|\d+|.", re.DOTALL)
_SINGLE = re.compile(r"\{ ?(\w|\\[A-Za-z]+) ?\}")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_LETTER_OF_ANY = re.compile(r"(?<![A-Za-z\\])[A-Za-z]")
_BASE = re.compile(r"([-+]?[0-9A-F]*\d[0-9A-F]*(?:\.[0-9A-F]+)?) ?_ ?\{?(\d+)\}?")
_DEGREES = re.compile(r" ?\^ ?(?:\\circ|\{ ?\\circ ?\})$")
_REALS, _ALL_REALS = "\\mathbb{R}", "(-\\infty,\\infty)"
_CENTS = re.compile(r"\bcents?\b|¢|\\cent", re.IGNORECASE)
_DOLLARS = re.compile(r"\\\$|^\$(?!.*\$)|\bdollars?\b|USD", re.IGNORECASE)


def answer(step: StepContext) -> float | None:
    """Returns the step reward `answer`: 1.0 if the action states the right answer, else 0.0.

    It applies to the last step, and to a whole solution as one action. It is None at all other
    steps and if the problem has no known answer. An action that states no answer scores 0.0.
    """
    if step.answer is None or step.step_index < step.num_steps - 1:
        return None
    stated = stated_answer(step.action, step.problem)
    return float(stated is not None and verify_answer(stated, step.answer))


def verify_answer(answer: str, gold: str) -> bool:
    r"""Returns whether `answer` (untrusted text) has the value of `gold`; False if unclear.

    Ambiguous cases, and what was decided:
        Elements of a list may come in any order. ``\{1, 2\}`` is the list 1, 2, and ``1 \pm x``
        is two elements. Lists, tuples and intervals are different things. The number of elements
        must equal the gold's: the right answer among others is wrong.
        ``x = 5``, ``|AB| = 5``, ``f(2) = 5``, ``(x, y) = (3, 4)`` and ``x \in [0, 1]`` equal their
        right sides. So does the answer ``m + n = 5``, because problems ask for a sum of letters,
        but not ``2x = 4`` or ``x^2 = 4``. ``x = 3, y = 4`` is (3, 4). In ``x = 2+3 = 5`` all values
        must be equal. Two equations are equal if the differences of their sides are equal up to the
        sign, or, with two or more letters, up to a factor: ``2x = 4`` is not ``x = 2``.
        ``1 < x \le 2`` is (1, 2], and inequalities with "or" between them are a union.
        Commas before three digits mark thousands except in a text with brackets. 1\frac{1}{2} is
        3/2.
        ``1 234``, ``1.234.567`` and ``1'234`` are each one number. 1.234 is not 1234. 3,4 is 3.4
        only if the gold has a decimal point.
        ``4.5e33`` is 4.5 times 10^33. A bar or dot over decimals, ``0.(3)`` and ``0.333...`` mean
        recurring digits. A rounded decimal does not equal the exact number: 0.333 is not 1/3.
        A unit, base, modulus, currency or degree sign on one side only does not matter. Two units,
        two bases and two moduli must be the same, and cents are not dollars. In an answer, words
        outside of \text{..} are a unit only if the gold has no letters beside its own unit; in a
        gold, only if the unit is well known. 50\% equals 50 and also 1/2. 180^\circ does not equal
        \pi.
        \text{..} is compared as text. Case does not matter, but if one side uses a letter in both
        cases, only the same text is equal. ``(B) 12`` is B, and also 12.
        An answer that the whitelist refuses is right only if its text equals the gold's, apart from
        layout.

    Known errors: a unit on one side is not checked; any words of three or more letters after a
    number pass as a unit; ``2:30`` is 2/30; values that agree in 20 digits are the same.
    """
    answer, gold = answer.strip(), gold.strip()
    if not answer or not gold or len(answer) > max(LONGEST_ANSWER, len(gold)):
        return False
    return _verified(answer, gold)


# The rollouts of a group often state the same answer.
@lru_cache(maxsize=8192)
def _verified(answer: str, gold: str) -> bool:
    if _both_cases(answer) or _both_cases(gold):
        return _compact(tidy(answer) or answer) == _compact(tidy(gold) or gold)
    if _cents_for_dollars(answer, gold):
        return False
    if same_answer(answer, gold):
        return True
    if len(answer) > LONGEST_ANSWER or not _not_too_deep(answer):
        return False
    try:
        left, right = tidy(answer), tidy(gold)
        return left is not None and _same_text_or_value(left, gold if right is None else right)
    except Exception:  # noqa: BLE001, untrusted text may make a parser raise anything
        return False


def _same_text_or_value(answer: str, gold: str) -> bool:
    """Returns whether two tidied answers are equal, with numbers and choices in words."""
    if _same(answer, gold) or same_choice(answer, gold):
        return True
    number, gold_number = number_in_words(answer), number_in_words(gold)
    if number is not None or gold_number is not None:
        return _same(number or answer, gold_number or gold)
    if (value := local_number(answer, gold)) is not None:
        return is_number(gold) and same_answer(value, gold)
    bare, bare_gold = without_label(answer), without_label(gold)
    return (bare == answer) is not (bare_gold == gold) and _same(bare, bare_gold)


def _both_cases(text: str) -> bool:
    """Returns whether a single letter occurs in both cases, as in R^2 - r^2.

    The parser would read both as the same letter.
    """
    letters = set(_LETTER.findall(text))
    return len(letters) > len({letter.lower() for letter in letters})


def _cents_for_dollars(answer: str, gold: str) -> bool:
    cents, gold_cents = (_CENTS.search(text) is not None for text in (answer, gold))
    dollars, gold_dollars = (_DOLLARS.search(text) is not None for text in (answer, gold))
    return (cents and gold_dollars and not dollars) or (dollars and gold_cents and not cents)


def _compact(text: str) -> list[str]:
    """Returns the signs of a text without blanks and without braces around a single sign."""
    signs = _SIGN.findall(_SINGLE.sub(r" \1 ", text))
    return [sign for sign in signs if not sign.isspace()]


def _not_too_deep(text: str) -> bool:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest <= MAX_DEPTH


def _same(answer: str, gold: str) -> bool:
    """Returns whether two tidied texts are equal; splits them until only scalars are left."""
    if not answer or not gold:
        return False
    if same_answer(answer, gold) or _compact(answer) == _compact(gold):
        return True
    left, right = _elements(answer), _elements(gold)
    if len(left) > 1 or len(right) > 1:
        if len(left) != len(right):
            return _same_in_other_words(left, right)
        return _same_in_any_order(left, right)
    answer, gold = left[0], right[0]
    if (related := _same_relations(answer, gold)) is not None:
        return related
    left, right = (split(text, frozenset(["\\cup"]))[0] for text in (answer, gold))
    if len(left) > 1 or len(right) > 1:
        return _same_in_any_order(left, right)
    left_bracket, right_bracket = (_bracket(text) for text in (answer, gold))
    if left_bracket or right_bracket:
        return left_bracket is not None and right_bracket is not None and (
            left_bracket[::2] == right_bracket[::2]
            and _same_in_order(left_bracket[1], right_bracket[1])
        )  # fmt: skip
    left_matrix, right_matrix = _MATRIX.fullmatch(answer), _MATRIX.fullmatch(gold)
    if left_matrix or right_matrix:
        return left_matrix is not None and right_matrix is not None and (
            _same_matrices(left_matrix[2], right_matrix[2])
        )  # fmt: skip
    return _same_scalars(answer, gold)


def _elements(text: str) -> list[str]:
    """Returns the elements of a list or a set; for anything else, the text as the only element."""
    sides, marks = split(text, RELATIONS)
    if marks == ["\\in"] and names_its_right_side(sides, marks):
        text = sides[1]
    while (inner := unwrap(text, frozenset(["{", "\\{"]))) is not None:
        text = inner[1]
    text = condition_of(text)
    elements: list[str] = []
    for part in split(text, _SEPARATORS)[0]:
        if len(signs := re.findall(r"\\(?:pm|mp)(?![A-Za-z])", part)) == 1:
            elements += [part.replace(signs[0], sign) for sign in "+-"]
        else:
            elements.append(_ALL_REALS if part == _REALS else part)
    return elements


def _same_in_other_words(left: list[str], right: list[str]) -> bool:
    """Returns whether a list equals a single thing: x = 3, y = 4 a tuple, x < 1, x > 2 a union."""
    for several, other in ((left, right), (right, left)):
        if len(other) == 1 and len(several) > 1:
            if (made := as_tuple(several)) is not None:
                return _same(made, other[0])
            intervals = [
                interval for part in several if (interval := as_interval(part)) is not None
            ]
            if len(intervals) == len(several) and len({name for name, _ in intervals}) == 1:
                union = split(other[0], frozenset(["\\cup"]))[0]
                return _same_in_any_order([text for _, text in intervals], union)
    return False


def _bracket(text: str) -> tuple[str, list[str], str] | None:
    """Returns the brackets and the two or more elements of a tuple or interval; else None."""
    unwrapped = unwrap(text, frozenset(["(", "["]))
    if unwrapped is None or len(parts := split(unwrapped[1], _SEPARATORS)[0]) < 2:
        return None
    return unwrapped[0], parts, unwrapped[2]


def _same_in_order(left: list[str], right: list[str]) -> bool:
    return len(left) == len(right) <= MAX_PARTS and all(map(_same, left, right))


def _same_in_any_order(left: list[str], right: list[str]) -> bool:
    # Equality is transitive, so the first match of an element is as good as any other.
    if len(left) != len(right) or len(left) > MAX_PARTS:
        return False
    rest = list(right)
    for part in left:
        match = next((other for other in rest if _same(part, other)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_matrices(left: str, right: str) -> bool:
    def rows(matrix: str) -> list[list[str]]:
        lines = re.split(r"\\\\", matrix.strip().removesuffix("\\\\"))
        return [[entry.strip() for entry in line.split("&")] for line in lines]

    left_rows, right_rows = rows(left), rows(right)
    return len(left_rows) == len(right_rows) and all(map(_same_in_order, left_rows, right_rows))


def _same_relations(answer: str, gold: str) -> bool | None:
    """Returns whether two equations or inequalities are equal; None if neither text is one."""
    left, left_marks = _shortened(*split(answer, RELATIONS))
    right, right_marks = _shortened(*split(gold, RELATIONS))
    if not left_marks and not right_marks:
        return None if (answer, gold) == (left[0], right[0]) else _same(left[0], right[0])
    if not right_marks:
        if names_its_right_side(left, left_marks) or tells_what_was_asked(left, left_marks):
            return _same(left[1], right[0])
        interval = as_interval(answer)
        return interval is not None and _bracket(gold) is not None and _same(interval[1], gold)
    if not left_marks:
        if names_its_right_side(right, right_marks):
            return _same(left[0], right[1])
        interval = as_interval(gold)
        return interval is not None and _bracket(answer) is not None and _same(answer, interval[1])
    flipped = [FLIPPED.get(mark, mark) for mark in reversed(left_marks)]
    if left_marks == right_marks and _same_in_order(left, right):
        return True
    if flipped == right_marks and _same_in_order(left[::-1], right):
        return True
    if len(left_marks) != 1 or len(right_marks) != 1 or "\\in" in (*left_marks, *right_marks):
        return False
    difference, gold_difference = f"({left[0]})-({left[1]})", f"({right[0]})-({right[1]})"
    if left_marks == right_marks == ["="] and same_equations(difference, gold_difference):
        return True
    return (left_marks == right_marks and _same_scalars(difference, gold_difference)) or (
        flipped == right_marks and _same_scalars(difference, f"({right[1]})-({right[0]})")
    )


def _shortened(sides: list[str], marks: list[str]) -> tuple[list[str], list[str]]:
    """Shortens ``x = 5+5+1 = 11`` to x = 11, and ``5+6 = 11`` to 11, if the equations hold."""
    if not marks or set(marks) != {"="}:
        return sides, marks
    named = names_its_right_side(sides[:2], ["="]) or tells_what_was_asked(sides[:2], ["="])
    values = sides[1:] if named else sides
    if len(values) < 2 or len(values) > MAX_PARTS or _LETTER_OF_ANY.search("".join(values)):
        return sides, marks
    if not all(_same_scalars(value, values[-1]) for value in values[:-1]):
        return sides, marks
    if values[0] == values[-1]:  # nobody answers 0 = 0
        return sides, marks
    return ([sides[0], values[-1]], ["="]) if named else ([values[-1]], [])


def _same_scalars(answer: str, gold: str) -> bool:
    gold, gold_unit = split_unit(gold, known=True)
    # If the gold has letters, 3 xyz is a product.
    answer, unit = split_unit(answer, plain=_LETTER_OF_ANY.search(gold) is None)
    if unit and gold_unit and unit != gold_unit:
        return False
    if "\\text" in answer or "\\text" in gold:
        return _words(answer) == _words(gold)
    answer, gold = _DEGREES.sub("", answer), _DEGREES.sub("", gold)
    base, gold_base = _BASE.fullmatch(answer), _BASE.fullmatch(gold)
    if base and gold_base:
        return base[2] == gold_base[2] and same_answer(base[1], gold_base[1])
    answer, gold = base[1] if base else answer, gold_base[1] if gold_base else gold
    percent, gold_percent = answer.endswith("%"), gold.endswith("%")
    answer, gold = answer.removesuffix("%").strip(), gold.removesuffix("%").strip()
    if same_values(answer, gold):
        return True
    if percent and not gold_percent:
        return same_values(f"\\frac{{{answer}}}{{100}}", gold)
    if gold_percent and not percent:
        return same_values(answer, f"\\frac{{{gold}}}{{100}}")
    return False


def _words(text: str) -> str:
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip(" .")
    if inner := unwrap(text, frozenset(["("])):
        text = inner[1]
    return " ".join(text.lower().split())
