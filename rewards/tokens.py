"""Splits a policy's text into tokens, the first half of the strict grammar in front of sympy.

It reads plain mathematics and simple LaTeX, in prose or alone. It never guesses: unknown text
becomes a token of the kind `other`, which no expression contains. See `rewards.expressions`.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Token(NamedTuple):
    r"""One piece of a text.

    Its kind is number, letter, pi, operator, open, close, fraction, root, percent, superscript
    (these form expressions), currency, relation, word, break, or other (unknown). Its text is in
    normal form: ``×`` is ``*``, ``\leq`` is ``<=``, ``1,200`` is ``1200``.
    """

    kind: str
    text: str
    spaced: bool = False  # white space is before it
    gap: bool = False  # after a column, wide space or $...$ border: no implicit product
    math: bool = False  # it is inside $...$ or the like, where every letter is a variable


_TEXT = re.compile(
    r"""
      (?P<space>[ \t\u00a0]+)
    | (?P<newline>\r?\n|\r)
    | (?P<command>\\(?:[A-Za-z]+|.)?)
    | (?P<number>
        [0-9]{1,3}(?:(?:,|\{,\}|,\\!)[0-9]{3})+(?![0-9])(?:\.[0-9]+)?
        | [0-9]+(?:\.[0-9]+)? | \.[0-9]+)
    | (?P<letters>[A-Za-z]+)
    | (?P<arrow><?=>|<?--?>|<-+|[→⇒⟹⇔↔⟺]|<<|>>)
    | (?P<relation><=|>=|==|!=|[=<>≈≤≥≠])
    | (?P<dots>\.\.+|…)
    | (?P<dashes>--+)
    | (?P<stars>\*\*)
    | (?P<sign>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)+|[A-Za-z]{2,}[0-9]*|[aAI]")
_SUBSCRIPT = re.compile(r"_(?:([0-9A-Za-z])|\{([0-9A-Za-z]{1,8})\})(?![0-9A-Za-z_])")
_ENVIRONMENT = re.compile(r"\s*\{[A-Za-z]{1,20}\*?\}")
_AFTER_FULL_STOP = re.compile(r"""\s|$|[)\]}"'”’$]|\\[)\]\\]|\\end\b|\*\*(?!\s*[0-9A-Za-z(])""")
_OPERAND_AHEAD = re.compile(r"\s*[0-9A-Za-z(\[{\\$.√π-]")
# Signs and commands that are one token each: the kind and the text in normal form.
_SIGNS = {
    **dict.fromkeys("+", ("operator", "+")),
    **dict.fromkeys("-−", ("operator", "-")),
    **dict.fromkeys("*×·⋅", ("operator", "*")),
    **dict.fromkeys("/÷", ("operator", "/")),
    "^": ("operator", "^"), "%": ("percent", "%"), "$": ("currency", "$"), "π": ("pi", "π"),
    "√": ("root", "√"), "²": ("superscript", "2"), "³": ("superscript", "3"),
    **{sign: ("open", sign) for sign in "([{"},
    **{sign: ("close", sign) for sign in ")]}"},
}  # fmt: skip
_RELATIONS = {"==": "=", "≈": "~", "≤": "<=", "≥": ">=", "≠": "!="}
_COMMANDS = {
    **dict.fromkeys(["times", "cdot"], ("operator", "*")),
    "div": ("operator", "/"),
    "approx": ("relation", "~"),
    "lt": ("relation", "<"),
    "gt": ("relation", ">"),
    **dict.fromkeys(["le", "leq", "leqslant"], ("relation", "<=")),
    **dict.fromkeys(["ge", "geq", "geqslant"], ("relation", ">=")),
    **dict.fromkeys(["ne", "neq"], ("relation", "!=")),
    **dict.fromkeys(["frac", "dfrac", "tfrac"], ("fraction", "/")),
    "sqrt": ("root", "sqrt"),
    "pi": ("pi", "π"),
    "%": ("percent", "%"),
    "$": ("currency", "$"),
}
_NOTHING = {
    *",;:!> ", "left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "displaystyle",
    "textstyle",
}  # fmt: skip
_GAPS = {"quad", "qquad", "(", ")"}
_BREAKS = {
    "\\", "[", "]", "begin", "end", "newline", "item", "to", "rightarrow", "Rightarrow",
    "longrightarrow", "Longrightarrow", "Leftrightarrow", "implies", "iff", "therefore", "because",
}  # fmt: skip
_TEXT_COMMANDS = {
    "text", "mbox", "hbox", "textbf", "textit", "textrm", "textup", "mathrm", "mathbf", "mathit",
    "operatorname", "emph",
}  # fmt: skip
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta",
    "iota", "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi",
    "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Phi", "Psi", "Omega",
}  # fmt: skip


class _Tokenizer:
    """Splits one piece of text, left to right, in time linear in its length."""

    def __init__(self, text: str, *, math: bool, line_start: bool) -> None:
        self.text = text
        self.math = math
        self.tokens: list[Token] = []
        self.spaced = self.gap = False
        self.line_start = line_start

    def add(self, kind: str, text: str) -> None:
        self.tokens.append(Token(kind, text, self.spaced, self.gap, self.math))
        self.spaced = self.gap = False
        self.line_start = text == "\n" and kind == "break"

    def run(self) -> list[Token]:
        at = 0
        while match := _TEXT.match(self.text, at):
            kind = match.lastgroup
            assert kind is not None
            at = getattr(self, f"_{kind}")(match.group(), at, match.end())
        return self.tokens

    def _space(self, piece: str, at: int, end: int) -> int:
        self.spaced = True
        return end

    def _newline(self, piece: str, at: int, end: int) -> int:
        if self.math:  # LaTeX reads it as white space
            self.gap = True
        else:
            self.add("break", "\n")
        return end

    def _number(self, piece: str, at: int, end: int) -> int:
        # 1.2.3 and 1,2 are versions, lists or decimals with a comma; they are not read as numbers.
        before = self.text[at - 1] if at else " "
        glued = piece[0] == "." and (before.isalnum() or before in ")]}")
        if glued or re.match(r"[.,][0-9]", self.text[end : end + 2]):
            run = re.compile(r"[0-9.,]*[0-9]").match(self.text, at)
            end = run.end() if run else end
            self.add("other", piece)
        else:
            self.add("number", re.sub(r"[^0-9.]", "", piece))
        return end

    def _letters(self, piece: str, at: int, end: int) -> int:
        if not self.math and (word := _WORD.match(self.text, at)):
            self.add("word", word.group())
            return word.end()
        return self._variable(piece[0], at + 1)

    def _variable(self, name: str, end: int) -> int:
        if subscript := _SUBSCRIPT.match(self.text, end):
            name, end = f"{name}_{subscript.group(1) or subscript.group(2)}", subscript.end()
        self.add("letter", name)
        return end

    def _arrow(self, piece: str, at: int, end: int) -> int:
        self.add("break", piece)
        return end

    def _relation(self, piece: str, at: int, end: int) -> int:
        glued = piece == "!=" and at > 0 and not self.text[at - 1].isspace()
        self.add("other" if glued else "relation", _RELATIONS.get(piece, piece))  # 5!=120
        return end

    def _dots(self, piece: str, at: int, end: int) -> int:
        self.add("other", piece)
        return end

    # Two dashes are ambiguous: minus a negative number, or a pause.
    _dashes = _dots

    def _stars(self, piece: str, at: int, end: int) -> int:
        """Reads `2 ** 3` as a power, with equal space on both sides, and `**24** clips` as bold."""
        before = at > 0 and not self.text[at - 1].isspace()
        after = end < len(self.text) and not self.text[end].isspace()
        if before == after and _OPERAND_AHEAD.match(self.text, end):
            self.add("operator", "^")
        else:
            self.gap = True
        return end

    def _sign(self, piece: str, at: int, end: int) -> int:
        before = self.text[at - 1] if at else " "
        after = self.text[end] if end < len(self.text) else " "
        at_line_start = self.line_start and not self.math and after.isspace()
        if at_line_start and piece in "-*#•":
            self.add("break", piece)
        elif piece in _SIGNS:
            self.add(*_SIGNS[piece])
        elif piece == "&" or (piece == "~" and self.math):
            self.gap = True
        else:
            self.add("break" if self._ends(piece, before, after, end) else "other", piece)
        return end

    def _ends(self, piece: str, before: str, after: str, end: int) -> bool:
        """Returns whether a sign certainly ends an expression and is not an unread part of it."""
        if piece == ",":
            return not (before.isdigit() and after.isdigit())
        if piece == ".":
            return _AFTER_FULL_STOP.match(self.text, end) is not None
        if piece == ":":  # 3:4 and 3 : 4 are ratios
            return not self.math and not before.isspace() and (after.isspace() or after in "$\\*")
        if piece == "?":
            return not before.isspace() and after.isspace()
        if piece == "!":  # a factorial after an operand
            return before.isalpha() and not self.math
        if piece in "\"'":  # feet, inches, primes
            return not before.isalnum()
        return piece in ";“”—"

    def _command(self, piece: str, at: int, end: int) -> int:
        name = piece[1:]
        if name in _NOTHING:
            self.spaced = True
        elif name in _GAPS:
            self.gap = True
        elif name in _COMMANDS:
            self.add(*_COMMANDS[name])
        elif name in _BREAKS:
            self.add("break", piece)
            if name in {"begin", "end"} and (rest := _ENVIRONMENT.match(self.text, end)):
                end = rest.end()
        elif name in _GREEK:
            return self._variable(piece, end)
        elif name == "boxed" and re.match(r"\s*\{", self.text[end : end + 3]):
            return end  # it adds no token; its brace is the bracket
        elif name in _TEXT_COMMANDS and (inside := self._braced(end)) is not None:
            end += len(inside)
            words = inside.strip()[1:-1].strip()
            if words:
                self.add("word", words)
            else:
                self.gap = True
        else:
            self.add("other", piece)
        return end

    def _braced(self, at: int) -> str | None:
        """Returns the braced text at `at`, with leading spaces; None if none ends in 200 signs."""
        depth = 0
        for end in range(at, min(at + 200, len(self.text))):
            character = self.text[end]
            depth += {"{": 1, "}": -1}.get(character, 0)
            if character == "}" and depth <= 0:
                return self.text[at : end + 1] if depth == 0 else None
            if depth == 0 and not character.isspace():
                return None
        return None


def tokenize(text: str, *, math: bool = True, line_start: bool = False) -> list[Token]:
    """Returns all tokens of a text; unknown text becomes a token of the kind `other`.

    Args:
        text: any text.
        math: every letter is a variable; otherwise runs of letters are words, and so are a single
            "a", "A" and "I".
        line_start: the text begins a line, so a dash or star in front of it is a list mark and not
            an operator.
    """
    return _Tokenizer(text, math=math, line_start=line_start).run()
