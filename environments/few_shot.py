r"""Writes worked examples in front of a problem, in the layouts that the field's benchmarks use.

`WORD_PROBLEMS` is the layout of lm-evaluation-harness's task gsm8k. `MATHEMATICS` is the layout of
Minerva's four examples (arXiv 2206.14858), which the harness's tasks minerva_math use. A model
continues the text, or answers the last message. Its answer ends where it writes a new question.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The layout of a question, of its worked solution and of the end of an answer.

    Attributes:
        before: the text before the problem.
        after: the text after the problem; a solution follows after a space.
        closing: the text that states an example's answer if its solution does not hold `marks`.
        marks: the beginning of a statement of an answer.
        stop: texts that end an answer when a model writes one of them.
        numbers: answers are numbers, read as the harness's task gsm8k reads them.
    """

    before: str
    after: str
    closing: str
    marks: str
    stop: tuple[str, ...]
    numbers: bool

    def question(self, problem: str) -> str:
        """Returns a problem as a question."""
        return f"{self.before}{problem}{self.after}"

    def solution(self, solution: str, answer: str) -> str:
        """Returns a worked solution, with its answer added if the solution has no `marks`."""
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
    """One worked example; its solution already states the answer."""

    problem: str
    solution: str


@dataclass(frozen=True)
class FewShot:
    """The worked examples that stand before each problem of a benchmark.

    Attributes:
        layout: their layout.
        shots: the examples, the same for all problems.
        path: the file or hub data set that they were drawn from.
    """

    layout: Layout
    shots: tuple[Shot, ...]
    path: str

    @property
    def digest(self) -> str:
        """Returns the first 16 hexadecimal digits of a SHA-256 over the examples."""
        return hashlib.sha256(self.text("").encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def text(self, problem: str) -> str:
        """Returns the examples and the problem as one text, which a model continues."""
        *turns, last = self.turns(problem)
        pairs = zip(turns[::2], turns[1::2], strict=True)
        return "".join(f"{asked} {solved}\n\n" for asked, solved in pairs) + last

    def turns(self, problem: str) -> list[str]:
        """Returns the same as messages, of user and assistant in turn; the last one is a user's."""
        shown = ((self.layout.question(shot.problem), shot.solution) for shot in self.shots)
        return [*(words for pair in shown for words in pair), self.layout.question(problem)]

    def cut(self, completion: str) -> str:
        """Returns a completion up to the place where it asks a question itself."""
        return min((completion.partition(stop)[0] for stop in self.layout.stop), key=len)


def folded(problem: str) -> str:
    """Returns a problem's letters and digits without case, so that layout makes no difference."""
    return "".join(filter(str.isalnum, problem.casefold()))
