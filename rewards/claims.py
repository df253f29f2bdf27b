"""Finds claims in a text: two expressions with a relation between them, in prose or in LaTeX.

Text that cannot be read with certainty is not a claim, or it is a doubtful claim. A doubtful claim
may count as true but never as false, because the share of true claims must not depend on the style
of writing. `rewards.equation` checks the claims.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rewards.expressions import MAX_TOKENS
from rewards.tokens import Token, tokenize

MAX_ACTION_CHARACTERS = 20_000
"""Characters of an action that are read: more than any step has, so that 1 MB costs no more."""
MAX_CLAIMS = 50
"""The most relations read in one step, from its beginning; a worked step has fewer than ten."""
CONTEXT = 40
"""Tokens around a claim that are searched for words that may change its reading."""
_EXPRESSION = frozenset(
    {"number", "letter", "pi", "operator", "open", "close", "fraction", "root", "percent",
     "superscript"}
)  # fmt: skip
_OPERAND_ENDS = frozenset({"number", "letter", "pi", "close", "percent", "superscript"})
_OPERAND_BEGINS = frozenset({"number", "letter", "pi", "open", "fraction", "root"})


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NUMBER_WORDS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion trillion dozen dozens"
)
_PARTS = _words(
    "half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh "
    "sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths percent"
)
_BEFORE = _NUMBER_WORDS | _PARTS | _words(
    "than times twice thrice double triple by from plus minus negative less more fewer over per "
    "every between product difference quotient ratio root square cube squared cubed sum"
)  # fmt: skip
"""Words that take the expression after them as an operand; its claim never counts as false."""
_FUNCTIONS = _words(
    "sin cos tan cot sec csc arcsin arccos arctan log ln exp sqrt cbrt max min gcd lcm mod floor "
    "ceil round abs det factorial mean median"
)
_LISTS = _words(
    "sum sums product difference between ratio average mean add adding added multiply multiplying "
    "subtract subtracting divide dividing numbers both"
)
_LABELS = _words(
    "step day week month year case part chapter problem question example number equation option "
    "method box room class grade age figure group line level page round section stage table team "
    "trip"
)
_AFTER = _NUMBER_WORDS | _PARTS | _words(
    "times of plus minus divided multiplied less more fewer squared cubed mod modulo over out "
    "choose cent cents penny pennies remainder to"
)  # fmt: skip
"""Words that change the number before them; its claim never counts as false."""
_HEDGES = _words(
    "remainder left leftover remaining rounded round rounding rounds nearest approximately about "
    "roughly almost nearly estimate estimated full whole complete modulo mod base"
)
"""Words near a claim which say that the result is not exact."""
_BEFORE_SIGN = _words(
    "is was are be get gets got have has so then thus therefore equals equal that since because "
    "hence becomes now compute calculate evaluate gives means find value where"
)
"""Words after which a minus sign is a negative sign, if no space follows the minus."""


@dataclass(frozen=True)
class Claim:
    """A relation and the expressions on its two sides, which may be readable or not."""

    left: tuple[Token, ...]
    relation: str  # one of = ~ < > <= >= !=, where ~ is "approximately"
    right: tuple[Token, ...]
    doubtful: bool = False  # nearby words allow another reading, so it never counts as false
    hedged: bool = False  # a word near it says that the result is not exact
    bullet: bool = False  # a dash before it is a list mark or a minus sign

    def __str__(self) -> str:
        left, right = ("".join(token.text for token in side) for side in (self.left, self.right))
        return f"{left} {self.relation} {right}"


def find_claims(text: str) -> list[Claim]:
    """Returns the claims among the first `MAX_CLAIMS` relations: those with two expressions."""
    tokens = _with_operators(_tokens(text))
    relations = [place for place, token in enumerate(tokens) if token.kind == "relation"]
    claims = (_claim(tokens, place) for place in relations[:MAX_CLAIMS])
    return [claim for claim in claims if claim is not None]


def decimal_places(side: tuple[Token, ...]) -> int | None:
    """Returns the decimal places of a single number (a per cent sign adds two); otherwise None."""
    side = stripped(side)
    if side and side[0].kind == "operator" and side[0].text in "+-":
        side = stripped(side[1:])
    percent = 2 if len(side) > 1 and side[-1].kind == "percent" else 0
    if len(side) - bool(percent) != 1 or side[0].kind != "number":
        return None
    return len(side[0].text.partition(".")[2]) + percent


def _tokens(text: str) -> list[Token]:
    """Returns the tokens of an action; text in ``$...$`` and the like is read as mathematics."""
    cut = len(text) > MAX_ACTION_CHARACTERS
    text = text[:MAX_ACTION_CHARACTERS]
    tokens: list[Token] = []
    at = 0
    for start, inner_start, inner_end, end in _math_regions(text):
        tokens += _piece(text, at, start, tokens, math=False)
        if end - inner_end == 2 and text[start:inner_start] != r"\(":
            tokens.append(Token("break", "display"))
        inside = _piece(text, inner_start, inner_end, tokens, math=True)
        if inside:
            inside[0] = inside[0]._replace(gap=True, spaced=True)
        tokens += inside
        if end - inner_end == 2 and text[start:inner_start] != r"\(":
            tokens.append(Token("break", "display"))
        at = end
    tokens += _piece(text, at, len(text), tokens, math=False)
    if cut:  # the last expression may continue
        tokens.append(Token("other", ""))
    return tokens


def _piece(text: str, at: int, end: int, before: list[Token], *, math: bool) -> list[Token]:
    line_start = not before or before[-1].text == "\n"
    piece = tokenize(text[at:end], math=math, line_start=line_start)
    if piece and before and at > 0 and before[-1].math:
        piece[0] = piece[0]._replace(gap=True)
    return piece


_DELIMITER = re.compile(r"\\[(\[]|\\begin\{(?:align|equation|gather)\*?\}|\\.|\$\$?", re.DOTALL)
_COMMANDS = re.compile(r"\\(?:text|mbox|textbf|mathrm)\s*\{[^{}]{0,200}\}|\\[A-Za-z]+")
_PROSE = re.compile(
    r"(?:^|\s)(?:[a-z]{3,}|is|of|to|in|at|on|or|an|by|so|he|we|it|as|if)(?:[\s,.;]|$)"
)


def _math_regions(text: str) -> Iterable[tuple[int, int, int, int]]:
    """Yields start, inner start, inner end and end of every region of mathematics, in order."""
    at = 0
    while match := _DELIMITER.search(text, at):
        sign = match.group()
        at = match.end()
        if sign in {r"\(", r"\["}:
            closing = r"\)" if sign == r"\(" else r"\]"
        elif sign.startswith(r"\begin"):
            closing = sign.replace("begin", "end")
        elif sign in {"$", "$$"}:
            closing = sign
        else:
            continue
        inner_end = text.find(closing, at, at + 4_000)
        while inner_end > 0 and closing == "$" and text[inner_end - 1] == "\\":
            inner_end = text.find(closing, inner_end + 1, at + 4_000)
        if inner_end < 0:
            continue
        if sign == "$" and not _is_math(text[at:inner_end], text[inner_end + 1 : inner_end + 2]):
            continue  # a dollar
        start, inner_start, at = match.start(), match.end(), inner_end + len(closing)
        yield start, inner_start, inner_end, at


def _is_math(inside: str, after: str) -> bool:
    """Returns whether the text between two dollar signs is mathematics and not between prices.

    As in "0.2 x 50 = $10 and $5", text between prices contains an English word or an empty line,
    ends with an operator or a relation, or is followed by a digit.
    """
    if not inside.strip() or after.isdigit() or "\n\n" in inside:
        return False
    if inside.rstrip()[-1] in "=<>+-*/×÷≈(":
        return False
    return _PROSE.search(_COMMANDS.sub(" ", inside)) is None


def _with_operators(tokens: list[Token]) -> list[Token]:
    """Replaces words for signs (`times`, `percent`, `of`, x) by the signs where this is certain."""
    made: list[Token] = []
    place = 0
    while place < len(tokens):
        token = tokens[place]
        sign, used = _sign_of(tokens, place, made)
        if sign is not None:
            made.append(token._replace(kind="percent" if sign == "%" else "operator", text=sign))
        elif token.kind != "currency":
            made.append(token)
        elif place + 1 < len(tokens) and token.spaced:
            tokens[place + 1] = tokens[place + 1]._replace(spaced=True)
        place += used
    return made


def _sign_of(tokens: list[Token], place: int, made: list[Token]) -> tuple[str | None, int]:
    token = tokens[place]
    if token.kind not in {"word", "letter"} or not made or made[-1].kind not in _OPERAND_ENDS:
        return None, 1
    before, word = made[-1], token.text.lower()
    if word == "percent" and token.kind == "word" and before.kind == "number":
        return "%", 1
    second = tokens[place + 1].text.lower() if place + 1 < len(tokens) else ""
    used = 2 if word in {"multiplied", "divided"} and second == "by" else 1
    after = place + used
    while after < len(tokens) and tokens[after].kind == "currency":
        after += 1
    if after >= len(tokens) or tokens[after].kind not in _OPERAND_BEGINS:
        return None, 1
    following = tokens[after]
    if token.kind == "letter":
        if word != "x":
            return None, 1
        numbers = following.kind == "number"
        apart = token.spaced and following.spaced and not token.math and before.kind != "letter"
        return ("*", 1) if numbers or apart else (None, 1)
    if word == "of":
        fraction = len(made) > 1 and made[-2].text == "/" and before.kind == "number"
        part = before.kind == "percent" or fraction or before.text == "}" or "." in before.text
        return ("*", 1) if part else (None, 1)
    signs = {"plus": "+", "minus": "-", "times": "*"}
    if used == 2:
        return ("*" if word == "multiplied" else "/"), 2
    return signs.get(word), 1


def _claim(tokens: list[Token], place: int) -> Claim | None:
    left = _left_side(tokens, place)
    right = _right_side(tokens, place)
    if left is None or right is None:
        return None
    return Claim(
        left[0],
        tokens[place].text,
        right[0],
        doubtful=left[1] or right[1],
        hedged=_hedged(tokens, place),
        bullet=left[2],
    )


def _left_side(tokens: list[Token], place: int) -> tuple[tuple[Token, ...], bool, bool] | None:
    """Returns the expression before `place`, whether it is doubtful, and whether a bullet precedes.

    None if there is no expression, or if something unreadable belongs to it.
    """
    end = place
    while end > 0 and tokens[end - 1].kind == "break" and tokens[end - 1].text in {"\n", "\\\\"}:
        end -= 1  # a line that begins with a relation
    start, depth = end, 0
    while start > 0 and tokens[start - 1].kind in _EXPRESSION:
        depth += {"open": -1, "close": 1}.get(tokens[start - 1].kind, 0)
        if depth < 0:
            break
        start -= 1
        if end - start > MAX_TOKENS:
            return None
    run = tuple(tokens[start:end])
    if depth > 0:  # "1) 3 + 4" and "(in May) 3 + 4" begin with a label
        run, start = _after_label(run, start)
    if not run:
        return None
    edge = tokens[start - 1] if start else None
    first = run[0]
    signed = first.kind == "operator"
    if edge is None or (edge.kind == "close" and not signed):
        return run, False, False
    if edge.kind == "relation":
        return run, False, False
    if edge.kind == "open":
        return None if signed and first.text != "-" else (run, False, False)
    if edge.kind == "break":
        previous = tokens[start - 2] if start > 1 else None
        if previous is not None and previous.kind == "operator":
            return None
        bullet = edge.text in {"-", "–"}
        if signed and (first.text != "-" or (edge.text == "\n" and len(run) > 1 and run[1].spaced)):
            return None
        alone = decimal_places(run) is not None
        return run, alone or _listed(tokens, start), bullet
    if edge.kind != "word":
        return None
    word = edge.text.lower()
    if first.kind == "open" and not first.spaced:
        return None  # a call: sin(30)
    if word in _FUNCTIONS:
        return None
    if signed and (first.text != "-" or word not in _BEFORE_SIGN or len(run) < 2 or run[1].spaced):
        return None
    label = word in _LABELS and first.kind == "number"  # "on day 1 * 2"
    doubtful = label or decimal_places(run) is not None or _listed(tokens, start)
    return run, doubtful or _word_doubts(tokens, start), False


def _after_label(run: tuple[Token, ...], start: int) -> tuple[tuple[Token, ...], int]:
    """Returns the run after "1)" or "(in May)"; empty if the bracket is part of a calculation."""
    closing = next((place for place in (0, 1) if run[place : place + 1] and
                    run[place].kind == "close"), None)  # fmt: skip
    if closing is None or (closing == 1 and run[0].kind not in {"number", "letter"}):
        return (), start
    rest = run[closing + 1 :]
    apart = bool(rest) and rest[0].spaced and rest[0].kind in {"number", "letter"}
    return (rest, start + closing + 1) if apart else ((), start)


def _word_doubts(tokens: list[Token], start: int) -> bool:
    """Returns whether a word shortly before the expression takes it as an operand."""
    for place in range(start - 1, max(start - 4, -1), -1):
        token = tokens[place]
        if token.kind != "word":
            break
        word = token.text.lower()
        if word in _BEFORE:
            return True
        if word in {"of", "and", "to"} and place:
            before = tokens[place - 1]
            if before.kind in _OPERAND_ENDS or before.text.lower() in _BEFORE:
                return word != "and" or not _after_relation(tokens, place)
    return False


def _after_relation(tokens: list[Token], place: int) -> bool:
    """Returns whether the operand before `place` is the right side of a relation."""
    for back in range(place - 1, max(place - CONTEXT, -1), -1):
        if tokens[back].kind == "relation":
            return True
        if tokens[back].kind in {"break", "other"}:
            return False
    return False


def _listed(tokens: list[Token], start: int) -> bool:
    """Returns whether the expression may end a list: "the sum of 3, 4 and 5 * 2 = 17"."""
    edge = tokens[start - 1]
    if edge.text not in {",", "and"} or start < 2 or tokens[start - 2].kind not in _OPERAND_ENDS:
        return False
    for back in range(start - 2, max(start - CONTEXT, -1), -1):
        token = tokens[back]
        if token.kind == "relation" or (token.kind == "break" and token.text != ","):
            return False
        if token.kind == "word" and token.text.lower() in _LISTS:
            return True
    return False


def _right_side(tokens: list[Token], place: int) -> tuple[tuple[Token, ...], bool] | None:
    """Returns the expression after `place`, and whether the words after it make it doubtful."""
    start = end = place + 1
    opened: list[int] = []
    while end < len(tokens) and tokens[end].kind in _EXPRESSION:
        if tokens[end].kind == "open":
            opened.append(end)
        elif tokens[end].kind == "close":
            if not opened:
                break
            opened.pop()
        end += 1
        if end - start > MAX_TOKENS:
            return None
    edge = tokens[end] if end < len(tokens) else None
    if edge is not None and edge.kind == "other":
        return None
    if opened:
        if edge is None or edge.kind != "word":
            return None
        if opened[0] == start:  # \boxed{10 \text{ cm}}
            if len(opened) > 1:
                return None
            start += 1
        elif opened[0] == end - 1 and tokens[end - 1].spaced:  # "= 24 (in May)"
            end -= 1
        else:
            return None
    if end - start > 1 and tokens[end - 1].text == "/" and edge is not None and edge.kind == "word":
        end -= 1  # "$24/hour"
    run = tuple(tokens[start:end])
    if not run:
        return None
    doubt = _doubt_behind(tokens, end, edge)
    return None if doubt is None else (run, doubt)


def _doubt_behind(tokens: list[Token], end: int, edge: Token | None) -> bool | None:
    """Returns whether the text after the right side makes it doubtful.

    None if that text continues the calculation.
    """
    if edge is None or edge.kind == "relation":
        return False
    after = [token for token in tokens[end : end + CONTEXT] if token.text != "("]
    if edge.kind == "break":
        goes_on = edge.text in {"\n", "\\\\"} and len(after) > 1 and after[1].kind == "operator"
        return None if goes_on else False
    if edge.kind == "close":
        # "(3 + 4 = 7)" is complete, but ")^2" and ") * 3" continue the calculation.
        return None if len(after) > 1 and after[1].kind in {"operator", "superscript"} else False
    words: list[str] = []
    unit = True
    for place, token in enumerate(after):
        if token.kind == "word":
            words.append(token.text.lower())
        elif token.text == "/" and place == 0:
            continue
        elif unit and words and token.text == "^" and len(words) == 1:
            break  # cm^2
        elif unit and token.kind == "operator" and not token.text.isspace():
            if not words:
                return None
            following = after[place + 1] if place + 1 < len(after) else None
            if token.text == "/" and following is not None and following.kind == "word":
                continue  # miles/hour
            return None
        elif token.kind in {"break", "relation", "other"}:
            break
        else:
            if unit and token.kind == "number" and words and words[-1] in {"and", words[0]}:
                return True  # "5 hours and 30 minutes"
            unit = False
    return bool(_AFTER.intersection(words[:1]))


def _hedged(tokens: list[Token], place: int) -> bool:
    """Returns whether a word of the same sentence says that the result is not exact."""
    for direction in (-1, 1):
        for token in tokens[place + direction :: direction][:CONTEXT]:
            if token.kind in {"break", "relation", "other"}:
                break
            if token.kind == "word" and token.text.lower() in _HEDGES:
                return True
    return False


def stripped(side: tuple[Token, ...]) -> tuple[Token, ...]:
    """Returns the tokens without currency signs and without brackets around the whole side."""
    side = tuple(token for token in side if token.kind != "currency")
    while len(side) > 2 and side[0].kind == "open" and _closing(side, 0) == len(side) - 1:
        side = side[1:-1]
    return side


def _closing(side: tuple[Token, ...], opening: int) -> int | None:
    depth = 0
    for place in range(opening, len(side)):
        depth += {"open": 1, "close": -1}.get(side[place].kind, 0)
        if depth == 0:
            return place
    return None
