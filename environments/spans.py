r"""Finds the parts of a text that no splitter cuts: formulas, drawings, fenced code, tables.

Every text is read a bounded number of times, even if it opens parts that it never closes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from typing import NamedTuple


class Span(NamedTuple):
    """A part of a text that must stay whole: its start, its end and its opener."""

    start: int
    end: int
    opener: str


BLOCKS = ("[asy]", "```", "~~~", "|")
"""Openers of spans that are not formulas: a drawing, the two kinds of code fence, a table."""

# An escaped backslash or dollar is matched first, so that `\\[2pt]` and `\$` open nothing.
_OPENER = re.compile(
    r"\\\\|\\\$"
    r"|(?P<span>\\\[|\\\(|\\begin\{[^{}\n]{1,40}\}|\[asy\]|`{3,}+|~{3,}+|\$\$|\$)"
)
_CLOSER = {
    "\\[": re.compile(r"(?<!\\)\\\]"),
    "\\(": re.compile(r"(?<!\\)\\\)"),
    "[asy]": re.compile(r"\[/asy\]"),
    "$$": re.compile(r"(?<!\\)\$\$"),
    # A dollar before a digit closes nothing: it is a price or opens the next formula. No formula
    # runs over a blank line, so that one stray dollar cannot swallow a whole solution.
    "$": re.compile(r"(?<![\\\s])\$(?!\d)|(?<=\s)\$(?!\s?\d)|\n[ \t]*\n"),
}
_ENVIRONMENT = re.compile(r"\\(begin|end)\{([^{}\n]{1,40})\}")
_FENCE_LINE = re.compile(r"^[ \t>]*+(`{3,}+|~{3,}+)[ \t]*+\r?$", re.MULTILINE)
_TICKS = re.compile(r"`{3,}+")
# What may stand before a fence on its line: the marks of a quotation or of a list.
_BEFORE_FENCE = re.compile(r"(?:^|\n)[ \t>]*(?:[*+-]|\d{1,3}[.)])?[ \t]*\Z")
_CODE_NAME = re.compile(r"[^`\n]*+(?:\n|\Z)")
# The rule under a table's head, and a line of its body.
_TABLE_RULE = re.compile(
    r"^[ \t>]*+(?=[^\n]*\|)\|?[ \t]*+:?-++:?[ \t]*+(?:\|[ \t]*+:?-++:?[ \t]*+)*+\|?[ \t]*+\r?$",
    re.MULTILINE,
)
_TABLE_ROW = re.compile(r"\n[^\n|]*+\|[^\n]*+")


def spans(text: str, *, inline: bool) -> list[Span]:
    """Returns the parts that must stay whole, in order; `inline` includes ``$..$``."""
    parts: list[Span] = []
    closers = _Closers(text)
    tables = _tables(text)
    table = position = 0
    while (mark := _OPENER.search(text, position)) is not None or table < len(tables):
        if table < len(tables) and (mark is None or tables[table].start <= mark.start()):
            if tables[table].start >= position:
                parts.append(tables[table])
                position = tables[table].end
            table += 1
            continue
        assert mark is not None
        position = mark.end()
        opener = mark.group("span")
        if opener is None or (opener == "$" and not inline):
            continue
        end = closers.after(opener, mark.start(), position)
        if end is not None:
            name = opener[:3] if opener[0] in "`~" else opener
            parts.append(Span(mark.start(), end, name))
            position = end
    return parts


class _Runs:
    """Runs of one character in a text; finds the next run that is long enough."""

    def __init__(self, runs: list[tuple[int, int, int]]) -> None:
        """Takes the runs in order: the length of each, and start and end of its closing mark."""
        self._runs = runs
        self._starts = [start for _, start, _ in runs]
        self._longest = [0] * (len(runs) + 1)  # the longest run from each place to the end
        for place in reversed(range(len(runs))):
            self._longest[place] = max(runs[place][0], self._longest[place + 1])

    def end_after(self, position: int, length: int) -> int | None:
        """Returns the end of the next run from `position` with at least `length` signs, or None."""
        place = bisect_left(self._starts, position)
        if self._longest[place] < length:
            return None
        while self._runs[place][0] < length:
            place += 1
        return self._runs[place][2]


class _Closers:
    """Finds where the spans of a text are closed. Results are stored, so no search is repeated."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._next: dict[str, re.Match[str] | None] = {}
        self._environments: dict[int, int] | None = None
        self._fences: dict[str, _Runs] = {}
        self._ticks: _Runs | None = None

    def after(self, opener: str, start: int, position: int) -> int | None:
        """Returns the end of the mark that closes the `opener` at `start`, or None."""
        if opener[0] in "`~":
            return self._fence_end(opener, start, position)
        if opener.startswith("\\begin"):
            if self._environments is None:
                self._environments = _environments(self._text)
            return self._environments.get(position)
        match = self._next.get(opener)
        if opener not in self._next or (match is not None and match.start() < position):
            match = self._next[opener] = _CLOSER[opener].search(self._text, position)
        return None if match is None or match.group().isspace() else match.end()

    def _fence_end(self, opener: str, start: int, position: int) -> int | None:
        """Returns the end of the closing fence, or None. It has at least as many signs.

        It is a line of its own, or for back-ticks inside a line another run of back-ticks.
        """
        text, sign = self._text, opener[0]
        if _BEFORE_FENCE.search(text, max(0, start - 40), start) and (
            sign == "~" or _CODE_NAME.match(text, position)
        ):
            if not self._fences:
                lines = list(_FENCE_LINE.finditer(text))
                for mark in "`~":
                    runs = [(len(m[1]), m.start(), m.end(1)) for m in lines if m[1][0] == mark]
                    self._fences[mark] = _Runs(runs)
            end = self._fences[sign].end_after(position, len(opener))
            if end is not None:
                return end
        if sign == "~":
            return None
        if self._ticks is None:
            runs = [(len(ticks[0]), ticks.start(), ticks.end()) for ticks in _TICKS.finditer(text)]
            self._ticks = _Runs(runs)
        return self._ticks.end_after(position, len(opener))


def _environments(text: str) -> dict[int, int]:
    r"""Maps the end of each closed ``\begin{name}`` to the end of its ``\end{name}``."""
    ends: dict[int, int] = {}
    open_ones: defaultdict[str, list[int]] = defaultdict(list)
    for mark in _ENVIRONMENT.finditer(text):
        if mark[1] == "begin":
            open_ones[mark[2]].append(mark.end())
        elif open_ones[mark[2]]:
            ends[open_ones[mark[2]].pop()] = mark.end()
    return ends


def _tables(text: str) -> list[Span]:
    """Returns the tables in Markdown: a line with bars, a rule under it, more lines with bars."""
    tables: list[Span] = []
    for rule in _TABLE_RULE.finditer(text):
        last = tables[-1].end if tables else 0
        start = text.rfind("\n", last, max(rule.start() - 1, last)) + 1 or last
        if rule.start() <= last or "|" not in text[start : rule.start()]:
            continue
        end = rule.end()
        while row := _TABLE_ROW.match(text, end):
            end = row.end()
        tables.append(Span(start, end, "|"))
    return tables
