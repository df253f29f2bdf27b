r"""Removes the unit of a quantity: ``5 \text{ cm}^2``, ``15 m/s``, ``3:15 p.m.``, ``20 ^\circ C``.

A unit on only one side of a comparison does not matter; two units must be the same. In an answer,
words outside of LaTeX text are a unit only if the gold has no letters, because 5 xyz may be a
product. In a gold, such words are a unit only if they are well known.
"""

from __future__ import annotations

import re

_SAME_UNIT = {
    "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre",
    "m": "meter metre", "ft": "foot feet", "in": "inch inche", "yd": "yard", "mi": "mile",
    "kg": "kilogram", "g": "gram", "lb": "pound", "oz": "ounce", "L": "l liter litre",
    "mL": "ml milliliter", "sec": "s second", "min": "minute", "hr": "h hour", "day": "",
    "week": "", "month": "", "year": "yr", "dollar": "", "cent": "", "mph": "", "unit": "",
    "mol": "", "N": "", "J": "", "W": "", "V": "", "K": "kelvin", "A": "",
    "degree": "", "person": "people", "point": "", "percent": "",
}  # fmt: skip
_KNOWN = {word: unit for unit, words in _SAME_UNIT.items() for word in (unit, *words.split())}
_GLUED = frozenset(["mm", "cm", "km", "kg", "ft", "lb", "mi", "hr", "mph", "mL", "ml"])
_ONE_LETTER = frozenset("LKNJWVA")
_PARTS = (
    "half third quarter fourth fifth sixth seventh eighth ninth tenth eleventh twelfth twentieth "
    "hundredth thousandth millionth"
)
_NOT_UNITS = frozenset([
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "squared", "cubed",
    "over", "plus", "minus", "times", "point", "divided", "choose", "base", "mod", "not", "and",
    "am", "pm", "or", "less", "more", "fewer", "than", "no", "so", "least", "most", "about",
    "approximately", "nearly", "almost", "score", "factorial", "root", "negative", "percent",
    "to", "from", "between", "except", "but", "without", "nor", "pi", "choices", "halves",
    *_PARTS.split(), *(f"{part}s" for part in _PARTS.split()),
])  # fmt: skip
_POWER = r"(?:\^(?:\{-?\d\}|\d))?"
_WORDS = rf"\\text\{{[^{{}}]*\}}{_POWER}"
_PIECE = rf"(?:{_WORDS}|\\frac\{{{_WORDS}\}}\{{{_WORDS}\}})"
_LATEX_UNIT = re.compile(rf"(.*?[^\s{{(-])\s*({_PIECE}(?: ?(?:/|\\cdot)? ?{_PIECE}){{0,3}})\.?")
_NAME = rf"[A-Za-z]{{1,20}}{_POWER}"
_PLAIN_UNIT = re.compile(
    rf"(.*[\d}})])( ?)({_NAME}(?: ?/ ?{_NAME}| [A-Za-z]{{2,20}}){{0,2}}{_POWER})\.?"
)
_SQUARE = re.compile(r"\b(?:sq\.?|square) ?(?=[a-z])")
_TIME = re.compile(r"(.*\d) ?(?:\\text\{ ?)?([ap])\.? ?m\.? ?\}?", re.IGNORECASE)
_TEMPERATURE = re.compile(r"(.*?) ?\^ ?\\circ ?(?:\\text\{ ?)?([CFcf])\}?")
_MODULUS = re.compile(
    r"(.+?) ?(?:\\pmod|\\mod|\( ?\\?mod|\\text\{ ?\(?mod) ?\{?(\w{1,9})\}? ?\)? ?\}?"
)


def split_unit(text: str, *, plain: bool = False, known: bool = False) -> tuple[str, str]:
    """Returns a quantity without its unit, and the unit, or "" if there is none.

    Args:
        text: a tidied scalar.
        plain: words outside of ``\\text{..}`` may be a unit too.
        known: of such words, accept only well-known units.
    """
    if match := _MODULUS.fullmatch(text):
        return match[1].strip(), f"mod {match[2]}"
    if ":" in text and (match := _TIME.fullmatch(text)):
        return match[1].strip(), f"{match[2].lower()}m"
    if match := _TEMPERATURE.fullmatch(text):
        return match[1].strip(), f"degree {match[2].lower()}"
    if match := _LATEX_UNIT.fullmatch(text):
        number, words = match.groups()
        words = re.sub(r"\\text\{([^{}]*)\}", r"\1", words)
        frac = re.sub(r"\\frac\{(.*?)\}\{(.*?)\}$", r"\1/\2", words)
        words = frac.replace("\\cdot", " ")
    elif (plain or known) and (match := _PLAIN_UNIT.fullmatch(_SQUARE.sub("square ", text))):
        number, blank, words = match.groups()
        names = re.findall("[A-Za-z]+", words)
        if not _plain_words(names, words, glued=not blank, known=known):
            return text, ""
    else:
        return text, ""
    if re.search(r"(?<![A-Za-z^{-])\d|[,;]", words):  # another number, as in 5\text{ or 6}; not m2
        return text, ""
    names = re.findall("[A-Za-z]+", words)
    if not _NOT_UNITS.isdisjoint(name.lower() for name in names):
        return text, ""
    unit = " ".join(map(_one_name, names)) + "".join(re.findall(r"/|-?\d", words))
    return number.strip(), "" if unit == "degree" else unit


def _one_name(name: str) -> str:
    if name in _KNOWN:
        return _KNOWN[name]
    name = name.lower()
    return _KNOWN.get(name.removesuffix("s"), name.removesuffix("s") if len(name) > 2 else name)


def _plain_words(names: list[str], words: str, *, glued: bool, known: bool) -> bool:
    everybody_knows = all(
        name in _KNOWN or name.lower().removesuffix("s") in _KNOWN or name == "square"
        for name in names
    )
    if glued:
        return len(names) == 1 and (names[0] in _GLUED or ("^" in words and names[0] == "m"))
    if len(names[0]) == 1 and len(names) == 1 and "^" not in words:
        return names[0] in _ONE_LETTER
    if everybody_knows:
        return True
    plain = words.replace(" ", "").isalpha() and all(len(name) > 2 for name in names)
    return plain and not known
