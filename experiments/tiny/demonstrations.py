"""Demonstrations for the embedded base policy: how it came to think, and to be distracted.

A demonstration is a monologue and a step (`environments.word_problems.Demonstration`).

On short texts the goal is what the question asks for. The longer the text, the more often the
demonstrator is distracted: it takes the quantity it read of last, or any other, for the goal. It
still works carefully towards that goal, and states the goal's value as the answer once it is
known. The aim is a base policy that keeps the format and does its sums, solves short problems, and
on long ones chooses the wrong next step more often than the right one: the situation step-wise SRL
is for. README.md beside this file says how far the present one is from that.
"""

from __future__ import annotations

import random

from environments.word_problems import Demonstration, WordProblem

# Quantities in the problem -> how often the goal is what the question asks for. Between 5 and 8
# the share falls gradually, because the number of facts is all that tells short from long.
CAREFUL_SHARE = {6: 0.85, 7: 0.6, 8: 0.4}
CAREFUL_SHARE_LONG = 0.3
# Of the distracted choices: the quantity read of last. The rest is spread over all others.
LAST_READ_SHARE = 0.8


def choose_goal(problem: WordProblem, rng: random.Random) -> str:
    """What the demonstrator takes the question to be: often wrong where the text is long."""
    facts = len(problem.quantities)
    careful = 1.0 if facts < min(CAREFUL_SHARE) else CAREFUL_SHARE.get(facts, CAREFUL_SHARE_LONG)
    if rng.random() < careful:
        return problem.target
    computed = [name for name, quantity in problem.quantities.items() if quantity.operation]
    return computed[-1] if rng.random() < LAST_READ_SHARE else rng.choice(computed)


def write(demonstration: Demonstration) -> str:
    """As the policy is to write it."""
    return f"<think> {demonstration.thought}</think>\n{demonstration.step}"


def solve_whole(problem: WordProblem, rng: random.Random) -> str:
    """A whole solution in one piece, every step with its monologue; at most 12 steps."""
    known = problem.given
    lines: list[str] = []
    for _ in range(12):
        demonstration = problem.demonstrate(choose_goal(problem, rng), known)
        lines.append(write(demonstration))
        if demonstration.computed is None:
            break
        known.add(demonstration.computed)
    return "\n".join(lines)
