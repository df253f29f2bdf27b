r"""Whether the final answer that a solution states is the right one, told by mathematics.

`environments.answers.same_answer` compares text and exact numbers; here ``x(x+1)`` and ``x^2+x``
are equal too. math-verify reads LaTeX into sympy, but it was not made for a policy that is paid to
please it: it takes 3,4 for the interval (3,4), ``5 h`` for ``5 t``, ``1=2=7`` for 7 and 2(3) for 5,
and sympy can be made to compute for ever. So three things stand around it. A whitelist refuses an
answer that is long, deep, huge or not plain mathematics. Lists, brackets, matrices and relations
are taken apart here, so math-verify only ever sees scalars. And a scalar counts as equal only if
its value also agrees in 20 digits, at several numbers for every letter.

No text is evaluated as Python: sympy's `sympify` is reached with unsigned whole numbers alone.
Nothing here sets a timer; the bounds hold the usual cost to milliseconds, not every cost, so a
worker process with a deadline should stand behind this module.
"""

from __future__ import annotations

import re
from functools import lru_cache

from environments.answers import same_answer, stated_answer
from rewards.scalars import same_values
from rewards.types import StepContext

MAX_LENGTH = 200
"""Characters of an answer; the longest in MATH and GSM8K has 77."""
MAX_DEPTH = 8
"""Brackets inside brackets; the parser recurses several Python frames deep for each."""
MAX_PARTS = 16
"""Elements of a list, which are compared each with each."""
_CHARACTERS = re.compile(r"[ -~\n\tπ√×÷−·²³°≤≥∞±∪]*")
_OPENERS, _CLOSERS = frozenset(["(", "[", "{", "\\{"]), frozenset([")", "]", "}", "\\}"])
_MARK = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
_SEPARATORS = frozenset([",", ";"])
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}
_RELATIONS = frozenset([*_FLIPPED, "\\in"])
# Each pair is applied in this order to both sides; every pattern is linear in the text.
_REWRITING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"π", r"\\pi "),
        (r"×", r"\\times "),
        (r"÷", r"\\div "),
        (r"−", "-"),
        (r"·", r"\\cdot "),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"°", r"^\\circ "),
        (r"≤", r"\\le "),
        (r"≥", r"\\ge "),
        (r"∞", r"\\infty "),
        (r"±", r"\\pm "),
        (r"∪", r"\\cup "),
        (r",?\\!|\{,\}(?=\d{3})|(?<=\d)\\,(?=\d{3}(?!\d))", ""),
        (r"\{,\}", ","),
        (r"(?<!\\)\\[,;: ]|~|\s+", " "),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"\\displaystyle(?![A-Za-z])|\\(?:left|right)(?![A-Za-z])|\\?\$", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"(?<!\\)\{([^{}]*)\\over(?![A-Za-z])([^{}]*)(?<!\\)\}", r"\\frac{\1}{\2}"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
        (r"(?<![\w.\\])(\d{1,20}(?:\.\d{1,20})?)[eE]([-+]?\d{1,3})(?![\w.])", r"\1\\times 10^{\2}"),
        (r"\\(?:mbox|textbf|textit|textrm|mathrm|mathbf)(?=\s*\{)", r"\\text"),
        (r"\\leq(?![A-Za-z])|<=", r"\\le "),
        (r"\\geq(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\%", "%"),
        (r"(?<=[\d}]) ?(?:percent|\\text\{ ?percent ?\})$", "%"),
        (r",?\s*\\text\{,? ?(?:and|or) ?\}\s*|(?<=\S),? (?:and|or) (?=\S)", ","),
        (r"(?<=[)\]]) ?U ?(?=[(\[])", r"\\cup "),
        (r"\*\*", "^"),
        (r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|pi)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?:√|(?<![\\A-Za-z])sqrt) ?(\d+)", r"\\sqrt{\1}"),
        (r"√|(?<![\\A-Za-z])sqrt(?= ?\()", r"\\sqrt"),
        (r"\^ ?-(\d+)", r"^{-\1}"),
        (r"\\frac ?([0-9A-Za-z]) ?([0-9A-Za-z])", r"\\frac{\1}{\2}"),
        (r"\\frac ?([0-9A-Za-z]) ?(?=\{)", r"\\frac{\1}"),
        (r"\\frac ?(\d|\\pi) ?(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac ?(\{[^{}]*\}) ?([0-9A-Za-z])", r"\\frac\1{\2}"),
        (r"\\sqrt ?([0-9A-Za-z])", r"\\sqrt{\1}"),
    ]
]
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
# 0.1\overline{6}
_RECURRING = re.compile(r"(?<![\w.])(\d{0,9})\.(\d{0,9})\\overline ?\{(\d{1,9})\}")
_NAME = re.compile(
    r"(?:[A-Za-z]{1,10}|\\[a-z]+)(?:_(?:\w|\{\w+\}))? ?(?:\([A-Za-z](?:,[A-Za-z])*\))?"
)
_NAMES = re.compile(r"\([A-Za-z](?:, ?[A-Za-z])+\)")
_MATRIX = re.compile(r"\\begin\{([bp]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_UNIT = re.compile(r"(.*[^\s{(-])\s*\\text\{([^{}]*)\}((?:\^\{?[23]\}?)?)\.?")
_PLAIN_UNIT = re.compile(r"(.*[\d})]) ([A-Za-z]{2,20}(?: [A-Za-z]{3,20}){0,2})((?:\^[23])?)\.?")
_SHORT_UNITS = frozenset(["mm", "cm", "km", "kg", "ft", "in", "lb", "mi", "hr"])
_NOT_UNITS = frozenset([
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "squared", "cubed",
    "over", "plus", "minus", "times", "point", "divided", "choose", "base", "mod", "not", "and",
    "am", "pm", "or",
])  # fmt: skip
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_LETTER_OF_ANY = re.compile(r"(?<![A-Za-z\\])[A-Za-z]")
_BASE = re.compile(r"(\d+) ?_ ?\{?(\d+)\}?")
_DEGREES = re.compile(r" ?\^ ?(?:\\circ|\{ ?\\circ ?\})$")


def answer(step: StepContext) -> float | None:
    """The step reward `answer`: 1.0 if the action states the right final answer, else 0.0.

    For a whole solution as one action, and for last steps. None where the problem has no known
    answer and at every step but the last. An action that states no answer scores 0.0.
    """
    if step.answer is None or step.step_index < step.num_steps - 1:
        return None
    stated = stated_answer(step.action, step.problem)
    return float(stated is not None and verify_answer(stated, step.answer))


def verify_answer(answer: str, gold: str) -> bool:
    r"""Whether `answer`, untrusted text, has the value of `gold`. Whatever is not clear is False.

    Ambiguous cases, and what was decided:
        Elements of a list may come in any order, ``\{1, 2\}`` is the list 1, 2, and ``1 \pm x``
        is two elements; a tuple or an interval is neither a list nor the other one. The number of
        elements must be the gold's: naming the right answer among others is wrong.
        ``x = 5``, ``(x, y) = (3, 4)`` and ``x \in [0, 1]`` equal what stands on the right. Two
        equations are equal if the differences of their sides are, up to the sign: ``2x = 4`` is
        not ``x = 2``. An inequality does not equal an interval.
        Commas before three digits mark thousands except within brackets. 1\frac{1}{2} is 3/2.
        ``4.5e33`` is 4.5 times 10^33, and a bar over decimals makes them recur.
        A rounded decimal is not the number it was rounded from: 0.333 is not 1/3.
        A unit, a base, a currency or degree sign on one side only does not matter; two units, and
        two bases, must be the same. Words outside of \text{..} are a unit only behind an answer
        whose gold has no letters. 50\% equals 50 and also 1/2. 180^\circ does not equal \pi.
        \text{..} is compared as text. Case does not matter, but where one side uses a letter in
        both cases, only the same text is equal.
        An answer that the whitelist refuses is right only if `same_answer` says so.

    What remains wrong: a unit on one side is not checked; any words of three or more letters behind
    a number pass for a unit; ``2:30`` is 2/30; values that agree in 20 digits are the same.
    """
    answer, gold = answer.strip(), gold.strip()
    if not answer or not gold or len(answer) > max(MAX_LENGTH, len(gold)):
        return False
    return _verified(answer, gold)


# The rollouts of a group often agree.
@lru_cache(maxsize=8192)
def _verified(answer: str, gold: str) -> bool:
    if _both_cases(answer) or _both_cases(gold):
        return "".join(answer.split()) == "".join(gold.split())
    if same_answer(answer, gold):
        return True
    if len(answer) > MAX_LENGTH or not _CHARACTERS.fullmatch(answer):
        return False
    try:
        return _not_too_deep(answer) and _same(_tidy(answer), _tidy(gold))
    except Exception:  # noqa: BLE001, whatever untrusted text makes a parser raise, it is not right
        return False


def _both_cases(text: str) -> bool:
    """Whether a letter stands alone in both cases, as in R^2 - r^2: reading makes them one."""
    letters = set(_LETTER.findall(text))
    return len(letters) > len({letter.lower() for letter in letters})


def _not_too_deep(text: str) -> bool:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest <= MAX_DEPTH


def _tidy(text: str) -> str:
    """One spelling for what can be spelled in several ways, and LaTeX for plain forms."""
    for pattern, replacement in _REWRITING:
        text = pattern.sub(replacement, text)
    text = _RECURRING.sub(_as_fraction, text)
    if not any(bracket in text for bracket in ("(", "[", "\\{")):
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    for command in ("\\sqrt", "^"):
        text = _brace(text, command)
    return text.strip().rstrip(".").strip()


def _as_fraction(recurring: re.Match[str]) -> str:
    whole, fixed, period = recurring.groups()
    top = int(whole + fixed + period) - int(f"0{whole}{fixed}")
    return f"\\frac{{{top}}}{{{10 ** len(fixed) * (10 ** len(period) - 1)}}}"


def _brace(text: str, command: str) -> str:
    """``^(x)`` and ``\\sqrt(x)`` become ``^{x}`` and ``\\sqrt{x}``."""
    start = -1
    while (start := text.find(command, start + 1)) >= 0:
        opening = start + len(command)
        if text[opening : opening + 1] == " ":
            opening += 1
        if text[opening : opening + 1] != "(":
            continue
        depth = 0
        for place in range(opening, len(text)):
            depth += (text[place] == "(") - (text[place] == ")")
            if depth == 0:
                inner = text[opening + 1 : place]
                text = f"{text[: start + len(command)]}{{{inner}}}{text[place + 1 :]}"
                break
    return text


def _split(text: str, marks: frozenset[str]) -> tuple[list[str], list[str]]:
    """The parts of `text` between `marks` outside of all brackets, and those marks."""
    parts, found, depth, start = [], [], 0, 0
    for mark in _MARK.finditer(text):
        depth += (mark[0] in _OPENERS) - (mark[0] in _CLOSERS)
        if depth == 0 and mark[0] in marks:
            parts.append(text[start : mark.start()].strip())
            found.append(mark[0])
            start = mark.end()
    return [*parts, text[start:].strip()], found


def _unwrap(text: str, openers: frozenset[str]) -> tuple[str, str, str] | None:
    """The opening bracket, the content and the closing one, if one pair holds all of `text`."""
    marks = list(_MARK.finditer(text))
    if len(marks) < 2 or marks[0][0] not in openers or marks[-1][0] not in _CLOSERS:
        return None
    depth = 0
    for mark in marks[:-1]:
        depth += (mark[0] in _OPENERS) - (mark[0] in _CLOSERS)
        if depth == 0:
            return None
    return marks[0][0], text[marks[0].end() : marks[-1].start()].strip(), marks[-1][0]


def _same(answer: str, gold: str) -> bool:
    """Whether two tidied texts are equal; takes them apart until scalars are left."""
    if not answer or not gold:
        return False
    if same_answer(answer, gold):
        return True
    left, right = _elements(answer), _elements(gold)
    if len(left) > 1 or len(right) > 1:
        return _same_in_any_order(left, right)
    answer, gold = left[0], right[0]
    if (related := _same_relations(answer, gold)) is not None:
        return related
    left, right = (_split(text, frozenset(["\\cup"]))[0] for text in (answer, gold))
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
    """The elements of a bare list or of a set; of anything else, the thing itself."""
    sides, marks = _split(text, _RELATIONS)
    if marks == ["\\in"] and _names(sides, marks):
        text = sides[1]
    while (inner := _unwrap(text, frozenset(["{", "\\{"]))) is not None:
        text = inner[1]
    elements: list[str] = []
    for part in _split(text, _SEPARATORS)[0]:
        both = _split(part, frozenset(["\\pm"]))[0]
        elements += [f"{both[0]}{sign}{both[1]}" for sign in "+-"] if len(both) == 2 else [part]
    return elements


def _bracket(text: str) -> tuple[str, list[str], str] | None:
    """A tuple or an interval: its brackets and the two or more elements between them."""
    found = _unwrap(text, frozenset(["(", "["]))
    if found is None or len(parts := _split(found[1], _SEPARATORS)[0]) < 2:
        return None
    return found[0], parts, found[2]


def _same_in_order(left: list[str], right: list[str]) -> bool:
    return len(left) == len(right) <= MAX_PARTS and all(map(_same, left, right))


def _same_in_any_order(left: list[str], right: list[str]) -> bool:
    # Equality carries over, so the first match found for an element is as good as any other.
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
    """Whether two equations or inequalities are equal; None if neither side is one."""
    left, left_marks = _split(answer, _RELATIONS)
    right, right_marks = _split(gold, _RELATIONS)
    if not left_marks and not right_marks:
        return None
    if not right_marks:
        return _names(left, left_marks) and _same(left[1], gold)
    if not left_marks:
        return _names(right, right_marks) and _same(answer, right[1])
    flipped = [_FLIPPED.get(mark, mark) for mark in reversed(left_marks)]
    if left_marks == right_marks and _same_in_order(left, right):
        return True
    if flipped == right_marks and _same_in_order(left[::-1], right):
        return True
    if len(left_marks) != 1 or len(right_marks) != 1 or "\\in" in (*left_marks, *right_marks):
        return False
    difference = f"({left[0]})-({left[1]})"
    return (
        left_marks == right_marks and _same_scalars(difference, f"({right[0]})-({right[1]})")
    ) or (flipped == right_marks and _same_scalars(difference, f"({right[1]})-({right[0]})"))


def _names(sides: list[str], marks: list[str]) -> bool:
    """Whether a relation only gives a name to its right side, as in x = 5 or (x,y) = (3,4)."""
    if marks not in (["="], ["\\in"]):
        return False
    if _NAMES.fullmatch(sides[0]):
        # In another order than everybody's it says something else: (y,x) = (3,4).
        letters = re.findall("[A-Za-z]", sides[0])
        return letters == sorted(set(letters))
    return _NAME.fullmatch(sides[0]) is not None


def _same_scalars(answer: str, gold: str) -> bool:
    gold, gold_unit = _unit(gold)
    # 3 xyz is a product where the gold has letters.
    answer, unit = _unit(answer, plain=_LETTER_OF_ANY.search(gold) is None)
    if unit and gold_unit and unit != gold_unit:
        return False
    if "\\text" in answer or "\\text" in gold:
        return _words(answer) == _words(gold)
    answer, gold = _DEGREES.sub("", answer), _DEGREES.sub("", gold)
    if (base := _BASE.fullmatch(answer)) and (gold_base := _BASE.fullmatch(gold)):
        return base.groups() == gold_base.groups()
    answer, gold = _BASE.sub(r"\1", answer), _BASE.sub(r"\1", gold)
    percent, gold_percent = answer.endswith("%"), gold.endswith("%")
    answer, gold = answer.removesuffix("%").strip(), gold.removesuffix("%").strip()
    if same_values(answer, gold):
        return True
    if percent and not gold_percent:
        return same_values(f"\\frac{{{answer}}}{{100}}", gold)
    if gold_percent and not percent:
        return same_values(answer, f"\\frac{{{gold}}}{{100}}")
    return False


def _unit(text: str, *, plain: bool = False) -> tuple[str, str]:
    """A quantity without its unit, and the unit, or "" where there is none."""
    if found := _UNIT.fullmatch(text):
        number, words, power = found.groups()
    elif plain and (found := _PLAIN_UNIT.fullmatch(text)):
        number, words, power = found.groups()
        if any(len(word) < 3 and word not in _SHORT_UNITS for word in words.split()):
            return text, ""
    else:
        return text, ""
    names = re.findall("[a-z]+", words.lower())
    if re.search(r"(?<![A-Za-z^-])\d", words):  # another number, as in 5\text{ or 6}; not m2
        return text, ""
    if not _NOT_UNITS.isdisjoint(names):
        return text, ""
    unit = " ".join(name.removesuffix("s") for name in names) + re.sub("[{}]", "", power)
    return number.strip(), "" if unit == "degree" else unit


def _words(text: str) -> str:
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip(" .")
    if inner := _unwrap(text, frozenset(["("])):
        text = inner[1]
    return " ".join(text.lower().split())
