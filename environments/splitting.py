r"""Cuts an expert's solution into steps: pure functions from one string to a list of strings.

Every splitter keeps all of the text: the joined steps are the solution up to white space. A text
that does not follow a splitter's format comes back whole, as one step. The docstring of a splitter
says how it reads ambiguous text. Mathematics between ``$..$``, ``$$..$$``, ``\(..\)``, ``\[..\]``,
``\begin{}..\end{}``, drawings between ``[asy]..[/asy]``, fenced code and tables are never cut
(`environments/spans.py`).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from environments.spans import BLOCKS, Span
from environments.spans import spans as whole_spans

Splitter = Callable[[str], list[str]]


def _gaps(text: str, spans: list[Span]) -> Iterator[tuple[int, int, Span | None, Span | None]]:
    """Yields each gap outside `spans`: its start and end, and the span it touches on either side.

    A gap is a run of white space, or the empty place after a display formula or another block.
    """
    edges = [Span(0, 0, ""), *spans, Span(len(text), len(text), "")]
    for before, after in pairwise(edges):
        display = before.opener not in ("", "$", "\\(")
        if display and not text[before.end : before.end + 1].isspace():
            touches = after if after.opener and after.start == before.end else None
            yield before.end, before.end, before, touches
        for gap in re.compile(r"\s+").finditer(text, before.end, after.start):
            left = before if before.opener and gap.start() == before.end else None
            right = after if after.opener and gap.end() == after.start else None
            yield gap.start(), gap.end(), left, right


def _cut(text: str, places: Iterable[int]) -> list[str]:
    """Cuts `text` at `places` (in ascending order); strips the pieces and leaves out empty ones."""
    cuts = [0, *places, len(text)]
    pieces = (text[start:end].strip() for start, end in pairwise(cuts))
    return _with_something_to_read([piece for piece in pieces if piece])


def _with_something_to_read(pieces: list[str]) -> list[str]:
    """Joins each piece that shows nothing to the piece before it, or else to the next one."""
    kept: list[list[str]] = []
    begun: list[str] = []
    for piece in pieces:
        if shows_something(piece):
            kept.append([*begun, piece])
            begun = []
        else:
            (kept[-1] if kept else begun).append(piece)
    return ["\n".join(parts) for parts in kept] or ["\n".join(begun)] * bool(begun)


def shows_something(text: str) -> bool:
    """Returns whether a text has anything in it that can be compared with another text.

    White space, signs without width and rules (lines such as ``---`` or an empty fence of code)
    show nothing.
    """
    signs = "".join(sign for sign in text if sign == "\n" or _is_seen(sign))
    return any(line and not _RULE.fullmatch(line) for line in signs.split("\n"))


# Invisible letters and an invisible symbol: Hangul fillers and the empty Braille cell.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"


def _is_seen(sign: str) -> bool:
    return sign not in _FILLERS and unicodedata.category(sign)[0] not in "CZM"


_RULE = re.compile(r"([-*_=~`.])\1{2,}")


def _newlines(text: str, start: int, end: int) -> int:
    return text[start:end].replace("\r\n", "\n").replace("\r", "\n").count("\n")


def split_lines(text: str) -> list[str]:
    """Returns one step per line that is not blank (GSM8K); display formulas stay whole."""
    gaps = _gaps(text, whole_spans(text, inline=False))
    return _cut(text, (end for start, end, _, _ in gaps if _newlines(text, start, end)))


def split_paragraphs(text: str) -> list[str]:
    """Returns one step per paragraph; cuts at blank lines outside formulas, drawings and code."""
    gaps = _gaps(text, whole_spans(text, inline=False))
    return _cut(text, (end for start, end, _, _ in gaps if _newlines(text, start, end) > 1))


_TITLED = re.compile(r"^(?P<indent>[ \t]*)(?P<number>\d{1,4})\.[ \t]+\*\*(?=\S).*?\*\*", re.M)
_UNTITLED = re.compile(r"^(?P<indent>[ \t]*)(?P<number>\d{1,4})\.[ \t]+(?=\S)", re.M)


def split_numbered(text: str, *, titles: bool = True) -> list[str]:
    r"""Returns one step per ``N. **Title** ...``, numbered 1, 2, 3, ... without a gap (s1K).

    Only a marker with the next number starts a step, and only if its indent is no deeper than that
    of the first one. So ``3.14`` at the start of a line, inner lists and inner bold items stay
    inside their step. An inner list that is *not* indented and continues the numbering cannot be
    distinguished, and it does split. Text before step 1 belongs to step 1. A text with fewer than
    two steps does not follow the format and comes back whole.

    Args:
        text: the solution.
        titles: whether steps need a bold title; False takes plain ``N. text`` too.
    """
    spans = whole_spans(text, inline=False)
    starts = [span.start for span in spans]
    places: list[int] = []
    indent = 0
    for marker in (_TITLED if titles else _UNTITLED).finditer(text):
        depth = len(marker["indent"].expandtabs(4))
        if int(marker["number"]) != len(places) + 1 or (places and depth > indent):
            continue
        before = bisect_right(starts, marker.start())
        if before and marker.start() < spans[before - 1].end:
            continue
        if not places:
            indent = depth
        places.append(marker.start())
    return _cut(text, places[1:])


# Words whose full stop does not end a sentence; lower case, without the last full stop.
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\w+",
        "mr mrs ms dr prof st jr sr vs etc cf fig figs eq eqs eqn thm prop no nos vol pp approx "
        "resp ex def min max ft sec al viz ca",
    )
)
_INITIALS = re.compile(r"[A-Za-z](\.[A-Za-z])*")
_LIST_NUMBER = re.compile(r"\d{1,3}\.")
_END_MARK = re.compile(r"[.!?]+[\"'”’)\]}]*$")
_MATH_END = re.compile(r"(?<!\.)\.(?:[\s}]|\\end\{[^{}]*\})*(?:\$\$?|\\\]|\\\)|\\end\{[^{}]*\})$")
_STARTS_LOWER = re.compile(r"[\"'“‘(\[]*[a-z]")
_STARTS_SENTENCE = re.compile(r"[\"'“‘(\[]*[A-Z0-9\\$*#]|[-•] ")
_DISPLAY = ("\\[", "$$", "[asy]", "\\begin")


def _ends_sentence(text: str, end: int, span: Span | None) -> bool:
    """Returns whether the text before `end` (the end of `span`, if given) ends a sentence."""
    left = text[max(0, end - 80) : end]
    if span is not None:
        return span.opener in BLOCKS or _MATH_END.search(left) is not None
    mark = _END_MARK.search(left)
    if mark is None:
        return False
    if mark.group()[0] != "." or mark.group().startswith(".."):
        return True
    before = left[: mark.start()]
    word = re.split(r"[\s(\[\"“]", before)[-1]
    if word.lower() in _ABBREVIATIONS or _INITIALS.fullmatch(word):
        return False
    # "2. Text" at the start of a line is an item of a list, not a sentence that ends in 2.
    starts_line = re.search(r"(^|\n)[ \t]*$", before[: len(before) - len(word)]) is not None
    return not (word.isdigit() and starts_line)


def _ends_paragraph(text: str, start: int, end: int, right: Span | None) -> bool:
    """Returns whether the gap is a blank line that no sentence runs across."""
    if _newlines(text, start, end) < 2 or (right is not None and right.opener.startswith(_DISPLAY)):
        return False
    left = text[max(0, start - 40) : start].rstrip("$])\\ ")
    return not left.endswith((",", ":", ";")) and _STARTS_LOWER.match(text, end) is None


def split_sentences(text: str) -> list[str]:
    r"""Returns one step per sentence of prose with LaTeX (MATH).

    A sentence ends at ``.``, ``!`` or ``?`` outside mathematics, or at a full stop that closes a
    formula (``$x = 3.$  Then``, ``\[x = 3.\]Then``), before a capital letter, a digit or a formula.
    It also ends at a blank line, unless it clearly runs on. Decimals, abbreviations, initials and
    list numbers end no sentence. A single capital letter before a full stop is read as an initial
    ("J. Smith"), so "at point A. Then" is not cut: two sentences in one step do less harm than half
    a sentence.
    """
    places: list[int] = []
    for start, end, left, right in _gaps(text, whole_spans(text, inline=True)):
        begin = places[-1] if places else 0
        if end == len(text) or _LIST_NUMBER.fullmatch(text, begin, start):
            continue
        starts = right is not None or _STARTS_SENTENCE.match(text, end) is not None
        if (starts and _ends_sentence(text, start, left)) or _ends_paragraph(
            text, start, end, right
        ):
            places.append(end)
    return _cut(text, places)


# Words that begin a clause after a comma.
_CLAUSE = re.compile(
    r"(?:and|but|so|then|thus|hence|therefore|because|since|while|where|which|giving|leaving|"
    r"making|or)\b"
)


def split_clauses(text: str) -> list[str]:
    """Returns one step per clause.

    It cuts where `split_sentences` cuts, at semicolons, at line ends, and at commas before a word
    that begins a clause ("3 + 4 = 7, so 7 are left").
    """
    return _cut(text, (end for _, end in _clause_ends(text)))


def split_equations(text: str) -> list[str]:
    """Returns one step per equation, with the words before it.

    Clauses and parts between commas are joined so that each step has an equals sign, if the text
    has one.
    """
    places = []
    begin = 0
    for start, end in _clause_ends(text, commas=True):
        if "=" in text[begin:start] and "=" in text[end:]:
            places.append(end)
            begin = end
    return _cut(text, places)


def _clause_ends(text: str, *, commas: bool = False) -> Iterator[tuple[int, int]]:
    """Yields the gaps after clauses; `commas`: also those after commas and before each "and"."""
    begin = 0
    for start, end, left, right in _gaps(text, whole_spans(text, inline=True)):
        if end == len(text) or _LIST_NUMBER.fullmatch(text, begin, start):
            continue
        before = text[start - 1 : start]
        starts = right is not None or _STARTS_SENTENCE.match(text, end) is not None
        ends = (
            (starts and _ends_sentence(text, start, left))
            or _newlines(text, start, end) > 0
            or before == ";"
            or (before == "," and (commas or _CLAUSE.match(text, end) is not None))
            or (commas and text.startswith("and ", end))
        )
        if ends:
            yield start, end
            begin = end


def split_auto(text: str) -> list[str]:
    """Returns the steps of the first splitter that makes two or more.

    The order is numbered, paragraphs, lines, sentences.
    """
    steps: list[str] = []
    for split in (split_numbered, split_paragraphs, split_lines, split_sentences):
        steps = split(text)
        if len(steps) > 1:
            break
    return steps


SPLITTERS: dict[str, Splitter] = {
    "numbered": split_numbered,
    "lines": split_lines,
    "sentences": split_sentences,
    "paragraphs": split_paragraphs,
    "clauses": split_clauses,
    "equations": split_equations,
    "auto": split_auto,
}


def merge_fragments(steps: list[str], min_chars: int, *, joiner: str = " ") -> list[str]:
    """Joins each step shorter than `min_chars` characters to the step before it.

    No step stands before the first one, so it takes in the next steps until it is long enough. A
    shorter step remains only if the whole solution is shorter than `min_chars`.
    """
    merged: list[list[str]] = []
    length = 0  # of the last merged step
    for step in steps:
        if merged and (len(step) < min_chars or length < min_chars):
            merged[-1].append(step)
            length += len(joiner) + len(step)
        else:
            merged.append([step])
            length = len(step)
    return [joiner.join(parts) for parts in merged]


_TITLE = re.compile(r"\s*(?:\d{1,4}\.[ \t]+)?\*\*(?=\S)(?P<title>.*?)\*\*")
_FIRST_TITLE = re.compile(r"^[ \t]*1\.[ \t]+\*\*(?=\S)(?P<title>.*?)\*\*", re.M)


def step_title(step: str) -> str | None:
    """Returns the title of ``N. **Title** text`` or ``**Title** text``, or None.

    A colon or full stop at its end is left out. Text before step 1 belongs to step 1, so a first
    title may also stand on a later line.
    """
    match = _TITLE.match(step) or _FIRST_TITLE.search(step)
    if match is None:
        return None
    return match["title"].strip().rstrip(":.").strip() or None
