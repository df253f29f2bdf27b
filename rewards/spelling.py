r"""Rewrites mathematics that can be spelled in several ways into one spelling.

`rewards.scalars` handles what a command *means*; it has a closed list of commands that are cheap
to compute. How it *looks* must not matter. So this module removes what only moves, sizes or colours
text: spaces, styles, fonts, boxes, invisible characters. Plain forms and Unicode become LaTeX.

The rules are applied to both sides of a comparison. The limited length of the text bounds the time
of the patterns.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

_MOST_CHARACTERS = 1_000
"""The longest text that is rewritten, as a gold may be; most answers are limited to 200."""
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
    "varsigma sigma tau upsilon phi chi psi omega"
)
_SIGNS = {
    **dict.fromkeys("−‐‑‒–﹣－", "-"), **dict.fromkeys("×✕", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "), "∗": "*", "÷": r"\div ", **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("≤⩽≦", r"\le "), **dict.fromkeys("≥⩾≧", r"\ge "), "≠": r"\ne ",
    **dict.fromkeys("≈≃≡", "="), "∈": r"\in ", "∉": r"\notin ", "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "∞": r"\infty ", "±": r"\pm ", "∓": r"\mp ", "√": "√", "∛": r"\sqrt[3]",
    **dict.fromkeys("°º˚", r"^\circ "), **dict.fromkeys("′’", "'"), "∣": "|", "∖": r"\setminus ",
    "ϵ": r"\epsilon ", "ϕ": r"\phi ", "ϑ": r"\theta ",
    **dict.fromkeys("∆Δ", r"\Delta "), "Ω": r"\Omega ", "…": "...",
    **{sign: f"\\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℚℕℂ", "RZQNC", strict=True)},
    **{chr(0x3B1 + i): f"\\{name} " for i, name in enumerate(_GREEK.split())},
    **dict.fromkeys("€£¥₹", ""), "¢": " cents",
}  # fmt: skip
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋"
_RAISED_RUN, _LOWERED_RUN = re.compile(f"[{_RAISED}]+"), re.compile(f"[{_LOWERED}]+")
_FRACTION_SIGN = re.compile("[¼½¾⅐-⅞]")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_END = r"(?![A-Za-z])"


def _names(words: str) -> str:
    return rf"\\(?:{'|'.join(words.split())}){_END}"


_SPACE = _names(
    "q?quad enspace enskip thinspace medspace thickspace neg(?:thin|med|thick)space space hfill "
    "nobreakspace noindent strut mathstrut"
)
_STYLE = _names(
    "(?:left|right)\\s*\\.(?!\\d) left right middle [bB]igg?[lrm]? displaystyle textstyle "
    "(?:script){1,2}style tiny small [lL]arge LARGE [hH]uge normalsize (?:no)?limits "
    "bf it rm sf tt bfseries boldmath"
).replace(_END, f"(?:{_END}|(?<=\\.))")
_TEXT = (
    r"\\(?:mbox|hbox|text[a-z]{2,6}|emph|operatorname\*?|math(?:rm|bf|it|sf|tt|normal))(?=\s*\{)"
)
_FONT = r"\\(?:math(?:rm|bf|it|sf|tt|cal|scr|frak|normal)|boldsymbol|bm|operatorname)\s*"
_BLANK_SIGN = r"(?:\\[,;:>! ]|~)"
_BASES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
# The rules are applied in this order.
_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    # Layout
    (r"^\s*(\*\*|__|\*|`|_)(.*)\1\s*$", r"\2"),
    (r",\s*\\!\s*|\{,\}\s*(?=\d{3})|\\text\{,\}(?=\d{3})|\\!", ""),
    (rf"(?<=\d)(?:\\,|\\thinspace{_END})\s*(?=\d{{3}}(?!\d))", ""),
    (r"\{,\}", ","),
    (r"^ *[=:] *|[,;]\s*$", ""),
    (r"\\[mh]space\*?\s*\{[^{}]*\}", " "),
    (r"\\[vh]?phantom\s*\{[^{}]*\}", " "),
    (r"\\(?:hskip|kern|mkern|mskip)\s*-?[\d.]+\s*(?:em|ex|pt|mu|mm|cm|in)", " "),
    (_SPACE, " "),
    (rf"(?<!\\){_BLANK_SIGN}|\s+", " "),
    (_STYLE, ""),
    (r"(?<!\\)\\[()\[\]]|\\?\$", ""),
    (r"\\(?:text)?color\s*\{[A-Za-z]+\}", ""),
    (r"\\(?:boxed|fbox|underline|ensuremath)(?=\s*\{)", ""),
    (rf"{_FONT}\{{\s*([A-Za-z0-9.]|\d[\d.,]*)\s*\}}", r" \1 "),
    (rf"\\mathbb\s*\{{?\s*([A-Z])\s*\}}?|\\([RZQNC]){_END}|\\(?:Real|Comple)(?:s|x|xes){_END}",
     lambda match: rf"\mathbb{{{match[1] or match[2] or 'R'}}}"),
    (_TEXT, r"\\text"),
    (r"\\text\s*\{\s*:\s*\}|\{:\}|\\colon" + _END, ":"),
    (r"^\\text ?\{ ?(-?\d[\d.,]*) ([^{}]*)\}$", r"\1 \\text{ \2}"),
    # Different names of the same thing
    (r"\\(?:[dtc]frac|nicefrac|[sx]frac)" + _END, r"\\frac"),
    (r"\\[dt]binom" + _END, r"\\binom"),
    (rf"(?<!\\)\{{([^{{}}]*)\\over{_END}([^{{}}]*)(?<!\\)\}}", r"\\frac{\1}{\2}"),
    (rf"^\{{([^{{}}]*)\}}\s*\\over{_END}\s*\{{([^{{}}]*)\}}$", r"\\frac{\1}{\2}"),
    (rf"\{{\{{([^{{}}]*)\}}\s*\\over{_END}\s*\{{([^{{}}]*)\}}\}}", r"\\frac{\1}{\2}"),
    (rf"^([^{{}}\\]*)\\over{_END}([^{{}}\\]*)$", r"\\frac{\1}{\2}"),
    (rf"(?<!\\)\{{([^{{}}]*)\\choose{_END}([^{{}}]*)(?<!\\)\}}", r"\\binom{\1}{\2}"),
    (r"\\binom ?(\d) ?(\d)", r"\\binom{\1}{\2}"),
    (r"(?<![\w)\]}])(?:\{ ?\})? ?[_^] ?\{?(\d{1,2})\}? ?C ?_ ?\{?(\d{1,2})\}?", r"\\binom{\1}{\2}"),
    (r"\\varnothing" + _END + r"|\\\{ *\\\}", r"\\emptyset "),
    (r"(?<![\w.\\])(\d{1,20}(?:\.\d{1,20})?)[eE]([-+]?\d{1,3})(?![\w.])", r"\1\\times 10^{\2}"),
    (r"\\leq(?:slant|q)?" + _END + "|<=", r"\\le "),
    (r"\\geq(?:slant|q)?" + _END + "|>=", r"\\ge "),
    (r"\\lt" + _END, "<"),
    (r"\\gt" + _END, ">"),
    (r"\\not ?=|\\neq" + _END + "|!=", r"\\ne "),
    (r"\\not ?\\in" + _END, r"\\notin "),
    (r"\\(?:approx|simeq|doteq|equiv|coloneqq)" + _END + "|:=", "="),
    (r"\\lbrace" + _END, r"\\{"),
    (r"\\rbrace" + _END, r"\\}"),
    (r"\\langle" + _END, "("),
    (r"\\rangle" + _END, ")"),
    (r"\\[lr]?vert" + _END + r"|\\mid" + _END, "|"),
    (r"\\(?:ast|star)" + _END, "*"),
    (r"\\(?:ldots|cdots|dotsc|dotsb)" + _END, r"\\dots "),
    (r"\\var(epsilon|theta|phi|rho|sigma|kappa)" + _END, r"\\\1 "),
    (r"\\lg" + _END, r"\\log "),
    (r"\\(?:textdollar|pounds|euro|yen)" + _END + r"|^(?:US|USD|EUR|GBP|Rs\.?) ?(?=\d)", ""),
    (r"^US(?= ?\d)| ?(?:USD|EUR|GBP)$", ""),
    (r"\\cents?" + _END, " cents"),
    (r"\\degree" + _END, r"^\\circ "),
    (r"\{\} ?(?=\^)", ""),
    (r"(?<=\d) ?\^ ?(?:\{ ?(?:o|\\text ?\{ ?o ?\}) ?\}|\\text ?\{ ?o ?\})", r"^\\circ "),
    (r"\^ ?\{ ?\\circ ?\}", r"^\\circ "),
    (r"\\(sin|cos|tan|cot|sec|csc) ?[({]? ?(\d{1,4}) ?\^ ?\\circ ?[)}]?",
     r"\\\1(\\frac{\2\\pi}{180})"),
    (r"\\%", "%"),
    (r"(?<=[\d}]) ?(?:\\text\{ ?)?(?:per ?cent(?:age)?|pct\.?)(?: ?\})?$", "%"),
    # Lists
    (r"^(?:\\text\{ ?)?(?:both|either) (?=.*(?:and|or) )", ""),
    (r",?\s*\\text\{,? ?(?:and|or) ?\}\s*", ","),
    (r"(?<=[)\]}\d]),? ?(?:and|or) ?(?=[(\[\\\d])|(?<=[^\s{}]),? (?:and|or) (?=[^\s}])", ","),
    (r"(?<=[)\]]) ?U ?(?=[(\[])", r"\\cup "),
    # Plain forms
    (r"\*\*", "^"),
    (r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|pi)" + _END, r"\\\1 "),
    (r"(?<![\\A-Za-z])(?:infinity|inf|oo)" + _END, r"\\infty "),
    (r"(?<![\\A-Za-z])C ?\((\d{1,2}), ?(\d{1,2})\)", r"\\binom{\1}{\2}"),
    (r"(?:√|(?<![\\A-Za-z])sqrt) ?(\d+)", r"\\sqrt{\1}"),
    (r"√|(?<![\\A-Za-z])sqrt(?= ?[({])", r"\\sqrt"),
    (r"(?:\\|(?<![\\A-Za-z]))exp ?"
     r"(?:\\\{([^{}]*)\\\}|\(([^()]*)\)|\{([^{}]*)\}|(\d+|[A-Za-z]))(?!\w)",
     lambda match: f"e^{{{match[1] or match[2] or match[3] or match[4]}}}"),
    (r"\\log ?_ ?(?:\{(\w+)\}|(\w)) ?(?:(\d+(?:\.\d+)?)|([A-Za-z]))(?![\w^(])",
     lambda match: f"\\log_{{{match[1] or match[2]}}}({match[3] or match[4]})"),
    (r"\^ ?-(\d+)", r"^{-\1}"),
    (r"\\frac ?([0-9A-Za-z]) ?([0-9A-Za-z])", r"\\frac{\1}{\2}"),
    (r"\\frac ?([0-9A-Za-z]) ?(?=\{)", r"\\frac{\1}"),
    (r"\\frac ?(\d|\\pi) ?(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac ?(\{[^{}]*\}) ?([0-9A-Za-z])", r"\\frac\1{\2}"),
    (r"(?<=\d) ?\{(\\frac\{\d+\}\{\d+\})\}", r"\1"),
    (r"\\sqrt ?([0-9A-Za-z])", r"\\sqrt{\1}"),
    (r"(\\sqrt\[\d\]) ?([0-9A-Za-z])", r"\1{\2}"),
    (r"\\sqrt\[(\w)\]\{(\w+)\}(?=$)", lambda match: match[0] if match[1].isdigit()
     else f"{match[2]}^{{1/{match[1]}}}"),
    (r"\\(bar|overline|dot|hat|vec|tilde) ?([0-9A-Za-z])" + _END, r"\\\1{\2}"),
    # Numbers of another base
    (r"_ ?\{? ?\(?(?:\\text ?\{ ?)?(" + "|".join(_BASES) + r")(?: ?\})?\)? ?\}?",
     lambda match: f"_{_BASES.index(match[1]) + 2}"),
    (r"(?<=\d) ?(?:\\text ?\{ ?)?\(?base(?: ?\} ?|[- ]?)(\d{1,2})\)? ?\}?$", r"_\1"),
    (r"(?<=\d) ?_ ?\{ ?\((\d{1,2})\) ?\}", r"_\1"),
    (r"^\((\d+)\) ?(?=_)", r"\1"),
    # Recurring digits, intervals in French notation
    (r"\.(\d{0,9})\\dot ?\{(\d)\} ?(\d{0,9}) ?\\dot ?\{(\d)\}", r".\1\\overline{\2\3\4}"),
    (r"^\] ?([^\[\]()]*,[^\[\]()]*)([\[\]])$", lambda match: f"({match[1]}{')]'[match[2] == ']']}"),
    (r"^\[ ?([^\[\]()]*,[^\[\]()]*)\[$", r"[\1)"),
    # A matrix
    (r"\\begin\{(?:small|[bp])?matrix\*?\}", r"\\begin{pmatrix}"),
    (r"\\end\{(?:small|[bp])?matrix\*?\}", r"\\end{pmatrix}"),
    (r"^(\( ?(?=.*\)$)|\[ ?(?=.*\]$))\\begin\{array\} ?(?:\{[clr| ]*\})?(.*)\\end\{array\} ?[)\]]$",
     r"\\begin{pmatrix}\2\\end{pmatrix}"),
    (r"^(?:\( ?(?=.*\)$)|\[ ?(?=.*\]$))(\\begin\{pmatrix\}.*\\end\{pmatrix\}) ?[)\]]$", r"\1"),
    (r"\\\\ ?\[-?[\d.]+ ?[a-z]{2}\]|\\cr" + _END, r"\\\\"),
    # Equations below each other
    (r"^(?:\\\{ ?)?\\begin\{(cases|aligned|align|gathered|split|array)\*?\} ?(?:\{[clr| ]*\})?"
     r"(.*)\\end\{\1\*?\}$", lambda match: ", ".join(match[2].replace("&", "").split(r"\\"))),
    # Marks at the end of an answer
    (r"[. ]+$|\\ ?$", ""),
]  # fmt: skip
_REWRITING = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
# 0.1\overline{6}, 0.(6)
_RECURRING = re.compile(
    r"(?<![\w.])(\d{0,9})\.(?:(\d{0,9})\\(?:overline|bar|dot) ?\{(\d{1,9})\}|()\((\d{1,9})\))"
)
# 0.1666...
_GOES_ON = re.compile(r"(?<![\w.])(\d{0,9})\.(\d{0,9}?)(\d{1,6}?)\3{2,9}(?:\.\.\.|\\[lc]?dots)\W*$")
_INEQUALITY = re.compile(r"[<>]|\\[lg](?:e|t|eq|eqslant)(?![A-Za-z])")
_AND = re.compile(r",?\s*\\text\s*\{,?\s*and\s*\}\s*|,?\sand\s")
_LOCAL_NUMBER = re.compile(
    r"[-+]?(?:\d{1,3}(?:[ '_]\d{3})+(?:[.,]\d+)?|\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?:\.\d{3})+,\d+|"
    r"\d{1,2}(?:,\d{2})+,\d{3})"
)
_DECIMAL_COMMA = re.compile(r"([-+]?\d{1,20}),(\d{1,2}|\d{4,20})")


@lru_cache(maxsize=2048)
def tidy(text: str) -> str | None:
    """Returns the text in one spelling; None if it is too long or has an unknown character."""
    if len(text) > _MOST_CHARACTERS:
        return None
    text = _in_ascii(text)
    if (
        not text.replace("√", "").isascii()
        or not text.replace("\n", " ").replace("\t", " ").replace("√", "").isprintable()
    ):
        return None
    text = _GOES_ON.sub(lambda match: _as_fraction(*match.groups()), text)
    if _INEQUALITY.search(text):
        text = _AND.sub(r"\\wedge ", text)  # x > 1 and x < 2 is not a list
    for pattern, replacement in _REWRITING:
        text = pattern.sub(replacement, text)
    text = _RECURRING.sub(_recurring, text)
    if not any(bracket in text for bracket in ("(", "[", "\\{")):
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    for command in ("\\sqrt", "^"):
        text = _brace(text, command)
    return text.strip()


def _in_ascii(text: str) -> str:
    """Replaces mathematical Unicode by LaTeX and ASCII, and removes invisible characters."""
    if text.isascii():
        return text
    made = []
    for sign in text:
        code = ord(sign)
        if sign in _RAISED or sign in _LOWERED:
            made.append(sign)
        elif sign in _SIGNS:
            made.append(_SIGNS[sign])
        elif _FRACTION_SIGN.match(sign):
            top, _, bottom = unicodedata.normalize("NFKC", sign).partition("⁄")
            made.append(f"\\frac{{{top}}}{{{bottom}}}")
        elif 0xFF01 <= code <= 0xFF5E or 0x1D400 <= code <= 0x1D7FF:
            made.append(unicodedata.normalize("NFKC", sign))
        elif unicodedata.category(sign) == "Zs":
            made.append(" ")
        elif 0xFE00 <= code <= 0xFE0F or (unicodedata.category(sign) == "Cf" and sign not in _BIDI):
            continue
        else:
            made.append(sign)
    text = "".join(made)
    text = _RAISED_RUN.sub(lambda run: _script("^", run[0]), text)
    return _LOWERED_RUN.sub(lambda run: _script("_", run[0]), text)


def _script(mark: str, run: str) -> str:
    inside = unicodedata.normalize("NFKC", run).replace("−", "-")
    return f"{mark}{inside}" if len(inside) == 1 else f"{mark}{{{inside}}}"


def local_number(text: str, gold: str) -> str | None:
    """Returns a number in another country's format without thousands marks; None for other text.

    ``1 234``, ``1.234.567``, ``1'234`` and ``12,34,567`` have thousands marks. A comma is a decimal
    comma only if the gold has a decimal point, because 3,4 may also be a list.
    """
    if _LOCAL_NUMBER.fullmatch(text):
        point = max(text.rfind("."), text.rfind(","))
        if point > 0 and (text.count(text[point]) > 1 or len(text) - point == 4):
            point = -1
        parts = (text[:point], text[point + 1 :]) if point > 0 else (text, "")
        whole, decimals = (re.sub(r"[^\d+-]", "", part) for part in parts)
        return f"{whole}.{decimals}" if decimals else whole
    if "." in gold and (match := _DECIMAL_COMMA.fullmatch(text)):
        return f"{match[1]}.{match[2]}"
    return None


def _recurring(match: re.Match[str]) -> str:
    whole, fixed, period, _, bracketed = match.groups()
    return _as_fraction(whole, fixed or "", period or bracketed)


def _as_fraction(whole: str, fixed: str, period: str) -> str:
    top = int(whole + fixed + period) - int(f"0{whole}{fixed}")
    return f"\\frac{{{top}}}{{{10 ** len(fixed) * (10 ** len(period) - 1)}}}"


def _brace(text: str, command: str) -> str:
    """Replaces ``^(x)`` and ``\\sqrt(x)`` by ``^{x}`` and ``\\sqrt{x}``."""
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
