"""Counts how a policy reasons: length, thoughts between steps, checking, planning.

The paper (arXiv 2510.25992, section 5) reads its policies' solutions and names three habits that
SRL brought out: planning ahead, adjusting on the way (thoughts between steps) and checking at the
end. It also finds that solutions did not get longer. This module counts these habits by simple
rules. Lengths and interleaving follow from the tags. Checking and planning are found by English
phrases, so a policy that does not use such phrases scores 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from srl.data.prompts import OPEN, TAG
from srl.stats import Estimate, bootstrap

CHECKING = re.compile(
    r"\b(?:let me|let's|let us|i(?:'ll| will| should| must| need to)|we (?:can|should|must))"
    r" (?:also |now |just |quickly )?"
    r"(?:double[- ]?check|re-?check|check|verify|confirm|test|make sure)\b"
    r"|\b(?:double[- ]?checking|sanity check|to (?:verify|double[- ]?check)"
    r"|checking (?:that|if|the|my))\b"
    r"|\b(?:is|does) (?:that|this|it) (?:right|correct|make sense)\b"
    r"|\bplug(?:ging)? (?:it|this|that|these|them)? ?back\b"
    # "wait" counts only as an interjection: problems also let cars and people wait.
    r"|(?:^|[.!?:>\n]\s*|\b(?:but|oh|hmm|no|ah),?\s+)wait\b(?!\s+(?:for|until|till)\b)",
    re.IGNORECASE,
)
PLANNING = re.compile(
    r"\b(?:my|the|our) (?:plan|strategy|approach) (?:is|will be)\b|\bplan:"
    r"|\b(?:to solve|to tackle) (?:this|the|it)\b"
    r"|\b(?:let me|let's|let us|i(?:'ll| will)|we(?:'ll| will| can)) "
    r"(?:first|start by|begin by|begin with|start with|plan|break (?:this|it|the problem) down)\b"
    r"|\bfirst,? (?:i|we|let)\b|\bbreak (?:this|it|the problem) (?:down|into)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Behaviour:
    """The counts of one attempt."""

    tokens: int  # tokens written
    thoughts: int  # number of monologues
    interleaved: int  # number of monologues that begin after some text of the solution
    thought_share: float  # share of characters in monologues; tags are not counted
    checks: int  # places where the policy says that it checks something (`CHECKING`)
    plans: int  # places where the policy says what it will do (`PLANNING`)


def behaviour(text: str, tokens: int) -> Behaviour:
    """Returns the counts of one attempt.

    A thought that is never closed extends to the end. A `</think>` that closes no thought is
    ignored.

    Args:
        text: all that the policy wrote, tags included, also an opening tag at the end of the prompt
            (as in `Attempt.text`).
        tokens: how many tokens the policy wrote.
    """
    inside = False
    thoughts = interleaved = thinking = solution = 0
    for number, piece in enumerate(TAG.split(text)):
        if number % 2:
            if piece == OPEN and not inside:
                thoughts += 1
                interleaved += solution > 0
            inside = piece == OPEN
        elif inside:
            thinking += len(piece.strip())
        else:
            solution += len(piece.strip())
    return Behaviour(
        tokens=tokens,
        thoughts=thoughts,
        interleaved=interleaved,
        thought_share=thinking / max(1, thinking + solution),
        checks=len(CHECKING.findall(text)),
        plans=len(PLANNING.findall(text)),
    )


def mean_behaviour(
    behaviours: Sequence[Behaviour], problems: Sequence[str]
) -> Mapping[str, Estimate]:
    """Returns the mean of each count per attempt, with 95 % intervals over problems.

    Args:
        behaviours: the counts of each attempt.
        problems: the problem of each attempt; `n` counts the different problems.
    """
    if not behaviours:
        return {}
    means = {
        field.name: bootstrap(
            [float(getattr(counts, field.name)) for counts in behaviours], problems
        )
        for field in fields(Behaviour)
    }
    return {name: replace(mean, n=len({*problems})) for name, mean in means.items()}
