"""How a policy reasons, counted: length, thoughts between steps, checking, planning.

The paper (arXiv 2510.25992, section 5) reads its policies' solutions and names three habits that
SRL brought out: planning ahead, adjusting on the way (thoughts between steps) and checking at the
end; and it finds that solutions did not get longer. Here they are counted, by rules anyone can
read. Lengths and interleaving follow from the tags. Checking and planning are phrases of English,
so they see only what a policy says in such words: a policy that never learnt them scores 0.
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
    # As an interjection: cars and people wait as well, for something or three hours.
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
    """What one attempt shows."""

    tokens: int  # written
    thoughts: int  # monologues in it
    interleaved: int  # those that begin after some words of the solution
    thought_share: float  # of its characters, those in monologues; tags count nowhere
    checks: int  # places where it says that it checks something (`CHECKING`)
    plans: int  # places where it says what it will do (`PLANNING`)


def behaviour(text: str, tokens: int) -> Behaviour:
    """Count what one attempt shows.

    A thought that is never closed reaches to the end; a `</think>` that closes none is passed over.

    Args:
        text: all that the policy wrote, tags included, one that the prompt opened with among them
            (`Attempt.text` has it).
        tokens: how many tokens that was.
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
    """Means per attempt, each of the problem beside it, with 95 % intervals over problems, which
    `n` counts."""
    if not behaviours:
        return {}
    found = {
        field.name: bootstrap([float(getattr(one, field.name)) for one in behaviours], problems)
        for field in fields(Behaviour)
    }
    return {name: replace(one, n=len({*problems})) for name, one in found.items()}
