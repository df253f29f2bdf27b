"""Draws the worked examples of a benchmark's few-shot prompts, never from the problems asked.

The draw depends only on the seed and on the text of each problem. If rows are added to the file, or
problems are left out of it, the order in which the other problems are drawn stays the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress

from environments.answers import stated_answer
from environments.benchmarks import NO_GOLD, Benchmark, BenchmarkProblem
from environments.few_shot import FewShot, Shot, folded
from environments.reading import NO_SOLUTION, NOT_UNICODE, Row, UnusableRowError, read_rows
from environments.types import DataError, LoadReport, Step, Trajectory

ASKED = "a problem of the benchmark"
TWICE = "a problem that stands twice"
DRAWING = "a drawing"


def load_few_shot(
    benchmark: Benchmark,
    asked: Sequence[BenchmarkProblem],
    *,
    number: int,
    seed: int,
    file: str | None = None,
) -> FewShot:
    """Reads and draws the worked examples of a benchmark.

    Args:
        benchmark: gives the layout and the training split.
        asked: the problems of the benchmark; none of them becomes an example.
        number: how many examples. They keep the order of the file.
        seed: the seed of the draw.
        file: the file to draw from; None is the benchmark's training split on the hub.

    Raises:
        DataError: there is no training split, the rows cannot be read, or they hold too few worked
            examples.
    """
    give = "; give worked examples with --fewshot_file FILE"
    if file is not None:
        rows, path = read_rows(file), file
    elif benchmark.training is None:
        raise DataError(f"{benchmark.name} has no training split{give}")
    else:
        hub = benchmark.training
        rows, path = read_rows(hub.path, split=hub.split, config=hub.config), hub.path
    try:
        training_rows = list(rows)
    except DataError as error:
        raise DataError(f"{error}{'' if file else give}") from error
    shots = draw_shots(benchmark, training_rows, asked, number=number, seed=seed, path=path)
    return FewShot(benchmark.layout, shots, path)


def draw_shots(
    benchmark: Benchmark,
    rows: Iterable[Row],
    asked: Sequence[BenchmarkProblem],
    *,
    number: int,
    seed: int,
    path: str,
) -> tuple[Shot, ...]:
    """Returns `number` worked examples in the order of their rows; see `load_few_shot`."""
    refused = {folded(problem.problem) for problem in asked}
    usable: dict[str, Shot] = {}
    report = LoadReport()
    for row in rows:
        report.rows += 1
        try:
            shot = _shot(benchmark, row)
            key = folded(shot.problem)
            if key in refused or key in usable:
                raise UnusableRowError(ASKED if key in refused else TWICE)
        except UnusableRowError as reason:
            report.dropped[str(reason)] += 1
            continue
        usable[key] = shot
    if len(usable) < number:
        drops = "".join(f", {why}: {n}" for why, n in report.dropped.most_common())
        raise DataError(
            f"{path}: {len(usable)} of {report.rows} rows make worked examples of "
            f"{benchmark.name}{drops}; num_fewshot is {number}. A row needs a problem and a "
            "solution with its answer, in the columns of the benchmark or in problem and solution"
        )
    drawn = set(sorted(usable, key=lambda key: _place(seed, key))[:number])
    return tuple(shot for key, shot in usable.items() if key in drawn)


def _shot(benchmark: Benchmark, row: Row) -> Shot:
    """Returns the worked example of a row.

    Raises:
        UnusableRowError: the row has none.
    """
    problem, solution = benchmark.problem_of(row), _solution(row)
    if "[asy]" in problem + solution:  # hundreds of tokens that do not show how to solve
        raise UnusableRowError(DRAWING)
    answer = stated_answer(solution, problem)
    with suppress(UnusableRowError):
        answer = benchmark.golds(row)[0]
    if answer is None:
        raise UnusableRowError(NO_GOLD)
    if solution == _equation(row):
        solution = f"{solution} = {answer}"
    if not Trajectory(problem, (Step(solution),)).is_unicode:
        raise UnusableRowError(NOT_UNICODE)
    return Shot(problem, benchmark.layout.solution(solution, answer))


def _solution(row: Row) -> str:
    """Returns the worked solution of a row: GSM8K's `answer`, a `solution`, or SVAMP's `Equation`.

    Raises:
        UnusableRowError: the row has none.
    """
    answer, solution = row.get("answer"), row.get("solution")
    if isinstance(answer, str) and "####" in answer:
        return answer.strip()
    if isinstance(solution, str) and solution.strip():
        return solution.strip()
    if equation := _equation(row):
        return equation
    raise UnusableRowError(NO_SOLUTION)


def _equation(row: Row) -> str:
    """Returns SVAMP's equation in a short form: `( 8.0 - 3.0 )` becomes `8 - 3`."""
    equation = row.get("Equation")
    if not isinstance(equation, str):
        return ""
    bare = re.sub(r"(?<=\d)\.0+(?!\d)", "", equation).strip()
    inner = bare[1:-1].strip()
    return inner if bare.startswith("(") and bare.endswith(")") and "(" not in inner else bare


def _place(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}|{key}".encode()).hexdigest()
