"""Counts the first errors in solutions of the embedded problems, from the attempts in eval.jsonl.

The script reads every greedy attempt of a comparison's cells up to its first wrong step:

    goal      a true step about a person whom the question does not need, or the number of another
              person as the answer
    copied    a step whose sum is true but whose numbers are not those of its person, or an answer
              that is no person's number
    sum       a false sum
    stopped   no answer: a cut-off attempt, a step in no known form or about an unknown person, or a
              repeated step

The first table counts by difficulty, row and mode, with all seeds together. It has the share of
attempts without an error, the share of each kind of first error, and errors per hundred steps
tried. A step is tried if all steps before it were right. An attempt with an error may still end in
the right answer, and "solved" counts it. The second table has the share of errors among the
attempts that tried the first step, the second step, and so on.

    python experiments/compare/first_errors.py [runs/compare]
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cells import finished

from environments.word_problems import WordProblem, draw_problems
from srl.compare.figures import last_evaluation
from srl.runs.folder import RunFolder
from srl.runs.records import read_rows

KINDS = ("goal", "copied", "sum", "stopped")
_STEP = re.compile(r"So (\w+) has (\d+)([-+*/])(\d+)=(\d+) \w+\.")
_ANSWER = re.compile(r"The answer is (\d+)\.")


def first_error(problem: WordProblem, steps: Sequence[str]) -> tuple[str | None, int]:
    """Returns the kind of the first error, or None, and the number of steps tried."""
    needed = set(problem.needed(problem.target))
    done: set[str] = set()
    for tried, step in enumerate(steps, start=1):
        if kind := _error(problem, step, needed, done):
            return kind, tried
        if _ANSWER.fullmatch(step):
            return None, tried
    return "stopped", len(steps) + 1


def _error(problem: WordProblem, step: str, needed: set[str], done: set[str]) -> str | None:
    if answer := _ANSWER.fullmatch(step):
        values = {name: quantity.value for name, quantity in problem.quantities.items()}
        if int(answer[1]) == values[problem.target]:
            return None
        return "goal" if int(answer[1]) in values.values() else "copied"
    claim = _STEP.fullmatch(step)
    if claim is None or claim[1] not in problem.quantities or claim[1] in done:
        return "stopped"
    person, left, operation, right, result = claim.groups()
    if problem.quantities[person].operation and step == problem.write_step(person):
        done.add(person)
        return None if person in needed else "goal"
    a, b, c = int(left), int(right), int(result)
    true = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}
    return "copied" if true[operation] else "sum"


def problems_of(run: RunFolder) -> dict[str, WordProblem]:
    """Returns the problems of a run: id -> problem.

    They are drawn again with the run's options, and the defaults of
    `environments.word_problems.load`.

    Raises:
        SystemExit: the run has problems of another source.
    """
    options = {"limit": 1000, "seed": 0, **run.read_config()["data"]}  # type: ignore[dict-item]
    if options.pop("source") != "word_problems":
        raise SystemExit(f"{run.path}: only the embedded word_problems can be read")
    options.pop("thoughts", None)
    problems = draw_problems(options.pop("limit"), **options)  # type: ignore[arg-type]
    return {problem.trajectory().problem_id: problem for problem in problems}


def main() -> None:
    """Prints the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", nargs="?", default="runs/compare", type=Path)
    by_cell: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    ends: dict[tuple[str, str, str], Counter[tuple[int, bool]]] = defaultdict(Counter)
    output = parser.parse_args().output
    problems: dict[str, dict[str, WordProblem]] = {}
    for difficulty, row, run in finished(output):
        if difficulty not in problems:
            problems[difficulty] = problems_of(run)
        for line in last_evaluation(read_rows(run.eval)):
            if line["sample"] == 0:
                steps = [str(step) for step in line["steps"]]  # type: ignore[attr-defined]
                kind, tried = first_error(problems[difficulty][str(line["problem_id"])], steps)
                shown = difficulty, str(line["mode"]), row
                by_cell[shown].update(
                    {"attempts": 1, "steps": tried, kind or "none": 1}
                    | {"solved": int(bool(line["correct"]))}
                )
                ends[shown].update([(tried, kind is not None)])
    if not by_cell:
        raise SystemExit(f"{output}: no finished cell there; give the folder of a comparison")
    head = ["difficulty", "mode", "row", "n", "solved %", "no error %"]
    head += [f"{kind} %" for kind in KINDS]
    head += [f"{kind} / 100 steps" for kind in KINDS]
    lines = []
    for (difficulty, mode, row), counts in sorted(by_cell.items()):
        shares = [100 * counts[kind] / counts["attempts"] for kind in ("solved", "none", *KINDS)]
        rates = [100 * counts[kind] / counts["steps"] for kind in KINDS]
        values = [f"{value:.1f}" for value in shares + rates]
        lines.append([difficulty, mode, row, str(counts["attempts"]), *values])
    print_table(head, lines)
    print()
    most = max(step for counts in ends.values() for step, _ in counts)
    head = ["difficulty", "mode", "row", *(f"step {k}: wrong % of n" for k in range(1, most + 1))]
    print_table(head, [[*shown, *wrong_by_step(ends[shown], most)] for shown in sorted(ends)])


def wrong_by_step(ends: Mapping[tuple[int, bool], int], most: int) -> list[str]:
    """Returns, for each step, the share of errors in % and the number of attempts that tried it.

    Args:
        ends: (the last step tried, whether it was wrong) -> the number of attempts.
        most: the number of steps of the longest attempt.
    """
    cells = []
    for step in range(1, most + 1):
        tried = sum(count for (last, _), count in ends.items() if last >= step)
        wrong = ends.get((step, True), 0)
        cells.append(f"{100 * wrong / tried:.1f} of {tried}" if tried else "-")
    return cells


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table as Markdown."""
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
