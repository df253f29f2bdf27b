"""Demonstrations for the embedded base policy: how it came to think, and to be distracted.

A demonstration is a monologue and a step. The monologue starts at a goal, repeats the fact about
it and about whatever that depends on, until all is known, and works the sum out digit by digit:

    <think> Leo has three times ... of Mia. Mia has 23 cups. (for Leo) 3*3=9, 2*3=6.</think>
    So Leo has 23*3=69 pens.

What a repeated number is for is said at once: the demonstrator would otherwise have to look back
over any number of sentences for whose quantity it computes.

On short texts the goal is what the question asks for. The longer the text, the more often the
demonstrator is distracted: it takes the quantity it read of last, or any other, for the goal. It
still works carefully towards that goal, and states the goal's value as the answer once it is
known. The aim is a base policy that keeps the format and does its sums, solves short problems, and
on long ones chooses the wrong next step more often than the right one: the situation step-wise SRL
is for. README.md beside this file says how far the present one is from that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from environments.word_problems import WordProblem, write_answer

# Quantities in the problem -> how often the goal is what the question asks for. Between 5 and 8
# the share falls gradually, because the number of facts is all that tells short from long.
CAREFUL_SHARE = {6: 0.85, 7: 0.6, 8: 0.4}
CAREFUL_SHARE_LONG = 0.3
# Of the distracted choices: the quantity read of last. The rest is spread over all others.
LAST_READ_SHARE = 0.8


@dataclass(frozen=True)
class Demonstration:
    """What the demonstrator writes in one situation, and whose quantity that makes known.

    Attributes:
        thought: the monologue, without its tags.
        step: the step.
        computed: the person whose quantity the step computes, or None for a final answer.
    """

    thought: str
    step: str
    computed: str | None

    def text(self) -> str:
        """As the policy is to write it."""
        return f"<think> {self.thought}</think>\n{self.step}"


def demonstrate(problem: WordProblem, known: set[str], goal: str) -> Demonstration:
    """One step towards the quantity of `goal`, when those of `known` are known (given ones too)."""
    thoughts: list[str] = []
    current = goal
    while current not in known:
        quantity = problem.quantities[current]
        thoughts.append(problem.facts[current])
        unknown = None
        for operand in quantity.operands:
            if operand not in known:
                unknown = operand
                break
            thoughts.append(f"{_recall(problem, operand)} (for {current})")
        if unknown is None:
            numbers = [problem.quantities[name].value for name in quantity.operands]
            if quantity.constant is not None:
                numbers.append(quantity.constant)
            assert quantity.operation is not None
            thoughts.append(work_out(quantity.operation, *numbers))
            return Demonstration(" ".join(thoughts), problem.write_step(current), current)
        current = unknown
    thought = _recall(problem, goal)
    return Demonstration(thought, write_answer(problem.quantities[goal].value), None)


def _recall(problem: WordProblem, person: str) -> str:
    """A known quantity in the words in which it became known: the fact's, or the step's."""
    if problem.quantities[person].operation is None:
        return problem.facts[person]
    return problem.write_step(person).removeprefix("So ")


def choose_goal(problem: WordProblem, rng: random.Random) -> str:
    """What the demonstrator takes the question to be: often wrong where the text is long."""
    facts = len(problem.quantities)
    careful = 1.0 if facts < min(CAREFUL_SHARE) else CAREFUL_SHARE.get(facts, CAREFUL_SHARE_LONG)
    if rng.random() < careful:
        return problem.target
    computed = [name for name, quantity in problem.quantities.items() if quantity.operation]
    return computed[-1] if rng.random() < LAST_READ_SHARE else rng.choice(computed)


def given(problem: WordProblem) -> set[str]:
    """The people whose quantities stand in the text as numbers."""
    return {name for name, quantity in problem.quantities.items() if quantity.operation is None}


def solve_whole(problem: WordProblem, rng: random.Random) -> str:
    """A whole solution in one piece, every step with its monologue; at most 12 steps."""
    known = given(problem)
    lines: list[str] = []
    for _ in range(12):
        demonstration = demonstrate(problem, known, choose_goal(problem, rng))
        lines.append(demonstration.text())
        if demonstration.computed is None:
            break
        known.add(demonstration.computed)
    return "\n".join(lines)


def work_out(operation: str, left: int, right: int) -> str:
    """The arithmetic of numbers up to 99, by digits, as one does it on paper.

    >>> work_out("+", 47, 38)
    '7+8=15, 4+3=7, 7+1=8.'
    >>> work_out("-", 52, 38)
    '2-8: 12-8=4, 5-3=2, 2-1=1.'
    """
    left_tens, left_ones = divmod(left, 10)
    right_tens, right_ones = divmod(right, 10)
    if operation == "/":
        tens, rest = divmod(left_tens, right)
        ones = 10 * rest + left_ones
        return f"{left_tens}/{right}={tens} rest {rest}, {ones}/{right}={ones // right}."
    if operation == "-":
        borrowed = int(left_ones < right_ones)
        shown = f"{left_ones}-{right_ones}: 1" if borrowed else ""
        ones = f"{shown}{left_ones}-{right_ones}={left_ones + 10 * borrowed - right_ones}"
        tens = left_tens - right_tens
        less = f", {tens}-1={tens - 1}" if borrowed else ""
        return f"{ones}, {left_tens}-{right_tens}={tens}{less}."
    if operation == "+":
        ones_sum, tens, shown = left_ones + right_ones, left_tens + right_tens, str(right_tens)
        ones = f"{left_ones}+{right_ones}={ones_sum}"
    else:
        ones_sum, tens, shown = left_ones * right, left_tens * right, str(right)
        ones = f"{left_ones}*{right}={ones_sum}"
    carried = ones_sum // 10
    more = f", {tens}+{carried}={tens + carried}" if carried else ""
    return f"{ones}, {left_tens}{operation}{shown}={tens}{more}."
