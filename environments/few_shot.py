r"""Writes worked examples in front of a problem, in the layouts that the field's benchmarks use.

`WORD_PROBLEMS` is the layout of lm-evaluation-harness's task gsm8k, `MATHEMATICS` that of the four
examples of Minerva (arXiv 2206.14858), which its tasks minerva_math use. A model continues the
text, or answers the last of the turns; a new question in what it writes is the end of its answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a question, its worked solution and the end of an answer look.

    Attributes:
        before: what stands before the problem.
        after: what stands behind it; a solution follows after a space.
        closing: what states the answer of an example whose solution does not hold `marks`.
        marks: how the statement of an answer begins.
        stop: what ends an answer where a model writes it.
        numbers: answers are numbers, read as the harness's task gsm8k reads them.
    """

    before: str
    after: str
    closing: str
    marks: str
    stop: tuple[str, ...]
    numbers: bool

    def question(self, problem: str) -> str:
        """A problem as it is asked."""
        return f"{self.before}{problem}{self.after}"

    def solution(self, solution: str, answer: str) -> str:
        """A worked solution with its answer stated behind it."""
        stated = self.marks in solution
        return solution if stated else f"{solution}\n{self.closing.format(answer=answer)}"


WORD_PROBLEMS = Layout(
    before="Question: ",
    after="\nAnswer:",
    closing="#### {answer}",
    marks="#### ",
    stop=("Question:",),
    numbers=True,
)
MATHEMATICS = Layout(
    before="Problem:\n",
    after="\n\nSolution:",
    closing="Final Answer: The final answer is ${answer}$. I hope it is correct.",
    marks="The final answer is",
    stop=("Problem:",),
    numbers=False,
)


@dataclass(frozen=True)
class Shot:
    """One worked example; its solution states the answer already."""

    problem: str
    solution: str


@dataclass(frozen=True)
class FewShot:
    """The worked examples that stand before each problem of a benchmark.

    Attributes:
        layout: how they look.
        shots: the examples, the same for all problems.
        path: what they were drawn from.
    """

    layout: Layout
    shots: tuple[Shot, ...]
    path: str

    @property
    def digest(self) -> str:
        """SHA-256 over the examples, shortened."""
        return hashlib.sha256(self.text("").encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def text(self, problem: str) -> str:
        """Examples and problem as one text, which a model continues."""
        *turns, last = self.turns(problem)
        pairs = zip(turns[::2], turns[1::2], strict=True)
        return "".join(f"{asked} {solved}\n\n" for asked, solved in pairs) + last

    def turns(self, problem: str) -> list[str]:
        """The same as messages: a user's, the assistant's, and so on; the last one is a user's."""
        shown = ((self.layout.question(one.problem), one.solution) for one in self.shots)
        return [*(words for pair in shown for words in pair), self.layout.question(problem)]

    def cut(self, completion: str) -> str:
        """A completion up to where it asks a question itself."""
        return min((completion.partition(stop)[0] for stop in self.layout.stop), key=len)


def folded(problem: str) -> str:
    """A problem's letters and digits: two copies that differ in layout alone are the same."""
    return "".join(filter(str.isalnum, problem.casefold()))
