"""Puts prompts and the steps that follow them together to solutions.

A file may hold one row per step, whose prompt contains the problem and the steps so far. A prompt
that consists of an earlier prompt and its step continues that row's solution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from environments.reading import Row
from environments.types import DataError

# More lone steps than this share of all solutions: the prompts do not continue each other.
_MOST_LONE = 0.3


@dataclass
class _Asked:
    """A prompt and the step that follows it."""

    prompt: str
    step: str
    row: Row
    before: _Asked | None = None
    is_last: bool = True

    def solution(self) -> dict[str, object]:
        """Returns all steps up to this one; the first one's prompt is the problem."""
        line = [self]
        while (before := line[-1].before) is not None:
            line.append(before)
        line.reverse()
        return {**self.row, "problem": line[0].prompt, "steps": [asked.step for asked in line]}


@dataclass
class _Prompt:
    """A prompt, packed, with the steps that follow it in some row."""

    packed: str
    steps: set[str] = field(default_factory=set)


def chains(asked: Sequence[tuple[str, str, Row]]) -> Iterator[Row]:
    """Puts prompts and their steps together to solutions.

    Args:
        asked: of each row the prompt, the step, and its other columns.

    Raises:
        DataError: hardly any prompt continues another one.
    """
    tail = _shared_end([prompt for prompt, _, _ in asked])
    known: dict[tuple[str, str], _Asked] = {}
    for prompt, step, row in asked:
        text = without_placeholders(prompt[: len(prompt) - tail]).rstrip()
        known[_packed(text), _packed(step)] = _Asked(text, step, row)
    # In this order a prompt comes after all prompts that it begins with, the longest of them last.
    begun: list[_Prompt] = []
    for prompt, step in sorted(known):
        while begun and not prompt.startswith(begun[-1].packed):
            begun.pop()
        before = next(
            (key for earlier in reversed(begun) if (key := _continued(prompt, earlier))), None
        )
        if before is not None:
            known[prompt, step].before = known[before]
            known[before].is_last = False
        if not begun or begun[-1].packed != prompt:
            begun.append(_Prompt(prompt))
        begun[-1].steps.add(step)
    last = [entry for entry in known.values() if entry.is_last]
    lone = sum(entry.before is None for entry in last)
    if len(last) > lone > _MOST_LONE * len(last):
        raise DataError(
            f"{lone:,} of {len(last):,} solutions have a single step, because no other prompt "
            "continues theirs, while others have several. A prompt must contain the prompt of the "
            "step before it and that step, word for word. Give rows with `problem` and `steps`, or "
            "with `problem`, `previous_steps` (a list) and `next_step`."
        )
    for entry in last:
        yield entry.solution()


def _packed(text: str) -> str:
    return "".join(text.split())


# Between a prompt and its step, a later prompt may have the step's number or its title.
_BETWEEN = 24


def _continued(prompt: str, earlier: _Prompt) -> tuple[str, str] | None:
    """Returns which earlier prompt and step a prompt is made of; texts without white space."""
    rest = prompt[len(earlier.packed) :]
    for skipped in range(min(_BETWEEN, len(rest)) + 1):
        if rest[skipped:] in earlier.steps:
            return earlier.packed, rest[skipped:]
    return None


def without_placeholders(text: str) -> str:
    """Returns a prompt without lines that stand for "no steps yet"."""
    return "\n".join(line for line in text.split("\n") if _packed(line).lower() not in _NONE_YET)


_NONE_YET = {"(none)", "none", "none.", "(noneyet)", "noneyet", "(nostepsyet)", "n/a", "[]"}


def _shared_end(texts: Sequence[str]) -> int:
    """Returns how many characters all texts end in alike, from a line's start on."""
    if len(set(texts)) < 2:
        return 0
    backwards = sorted(text[::-1] for text in texts)  # all others begin as these two both do
    pairs = zip(backwards[0], backwards[-1], strict=False)
    end = "".join(sign for sign, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))[::-1]
    cut = end.find("\n")
    return 0 if cut < 0 else len(end) - cut
