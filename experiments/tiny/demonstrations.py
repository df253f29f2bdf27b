"""Makes the demonstrations that teach the embedded base policy to think, and to be distracted.

A demonstration is a monologue and a step (`environments.word_problems.Demonstration`).

On short texts the goal is what the question asks for. The longer the text, the more often the
demonstrator is distracted: it takes the last computed quantity in the text, or another one, for the
goal. It still works carefully towards that goal, and states the goal's value as the answer once it
is known. The base policy should keep the format, do its sums and solve short problems, but on long
problems it should choose the wrong next step more often than the right one. Step-wise SRL is made
for this situation. README.md beside this file says how far the present policy is from that.
"""

from __future__ import annotations

import random

from environments.word_problems import Demonstration, WordProblem

# Number of quantities in the problem -> the share of goals that are what the question asks for.
# From 5 to 8 the share falls gradually, because only the number of facts tells short texts from
# long ones.
CAREFUL_SHARE = {6: 0.85, 7: 0.6, 8: 0.4}
CAREFUL_SHARE_LONG = 0.3
# The share of distracted choices that take the last computed quantity in the text. The rest are
# drawn from all computed quantities.
LAST_READ_SHARE = 0.8


def choose_goal(problem: WordProblem, rng: random.Random) -> str:
    """Returns the person whose quantity the demonstrator seeks; in long texts often a wrong one."""
    facts = len(problem.quantities)
    careful = 1.0 if facts < min(CAREFUL_SHARE) else CAREFUL_SHARE.get(facts, CAREFUL_SHARE_LONG)
    if rng.random() < careful:
        return problem.target
    computed = [name for name, quantity in problem.quantities.items() if quantity.operation]
    return computed[-1] if rng.random() < LAST_READ_SHARE else rng.choice(computed)


def write(demonstration: Demonstration) -> str:
    """Returns a demonstration as the policy should write it."""
    return f"<think> {demonstration.thought}</think>\n{demonstration.step}"


def solve_whole(problem: WordProblem, rng: random.Random) -> str:
    """Returns a whole solution as one text: at most 12 steps, each with its monologue."""
    known = problem.given
    lines: list[str] = []
    for _ in range(12):
        demonstration = problem.demonstrate(choose_goal(problem, rng), known)
        lines.append(write(demonstration))
        if demonstration.computed is None:
            break
        known.add(demonstration.computed)
    return "\n".join(lines)
