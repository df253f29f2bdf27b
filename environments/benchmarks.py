r"""Loads benchmarks from the hub or a file: problems with an answer, without expert steps.

A benchmark says where its rows are and how a row is read. The rows of a hub data set, of a copy of
it and of a user's own file go through the same function. Golds are cleaned here, once: dollar
signs, a ``\boxed{}`` around them, GSM8K's commas and a ``4.5e33`` are notation, not answers.

Where a data set lists several final answers for one problem, either all of them are wanted
(``2, 3``), or each of them is enough. Each reader says which.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from environments.answers import boxed_answer
from environments.few_shot import MATHEMATICS, WORD_PROBLEMS, Layout
from environments.reading import NO_PROBLEM, SUFFIXES, Row, UnusableRowError, read_rows, text_of
from environments.types import DataError, LoadReport, Trajectory

NO_GOLD = "no answer"

_FOLLOWS_HASHES = re.compile(r"^####(?!.*^####)(.*)\Z", re.MULTILINE | re.DOTALL)  # the last ones
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?![\w.])")
_MATH_MARKS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))

GoldReader = Callable[[Row], tuple[str, ...]]


@dataclass(frozen=True)
class BenchmarkProblem:
    """One problem of a benchmark.

    Attributes:
        benchmark: the name of the benchmark.
        number: its index among the problems of the benchmark, counted from 0.
        problem: the text that the policy is asked.
        golds: the right answers; each of them is right by itself.
    """

    benchmark: str
    number: int
    problem: str
    golds: tuple[str, ...]

    @property
    def problem_id(self) -> str:
        """Returns the id of a `Trajectory` with the same text."""
        return Trajectory(self.problem, ()).problem_id


@dataclass(frozen=True)
class HubSplit:
    """A split of a hub data set."""

    path: str
    split: str = "train"
    config: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """The source of a benchmark, and how its rows are read.

    Attributes:
        name: the name on the command line and in every figure.
        path: a hub name or a local file.
        split: the split of a hub data set.
        config: the configuration of a hub data set that has several.
        problem_columns: the first of these columns that a row has is the problem.
        joined_columns: the two parts of the problem, in rows that have both columns.
        golds: a row -> the answers of which each is right by itself.
        layout: the layout of its few-shot prompts.
        training: the split that worked examples are drawn from; None where none are published.
        counts: the number of problems in the published set, to compare; 0 where it is not known.
    """

    name: str
    path: str
    golds: GoldReader
    split: str = "test"
    config: str | None = None
    problem_columns: tuple[str, ...] = ("problem", "question")
    joined_columns: tuple[str, str] | None = None
    layout: Layout = MATHEMATICS
    training: HubSplit | None = None
    counts: int = 0

    def problem_of(self, row: Row) -> str:
        """Returns the problem of a row, without white space around it.

        Raises:
            UnusableRowError: the row has none.
        """
        if self.joined_columns is not None and all(map(row.get, self.joined_columns)):
            parts = (text_of(row, name, missing=NO_PROBLEM) for name in self.joined_columns)
            return " ".join(part.strip() for part in parts)
        column = next((c for c in self.problem_columns if row.get(c) is not None), None)
        if column is None:
            raise UnusableRowError(NO_PROBLEM)
        return text_of(row, column, missing=NO_PROBLEM).strip()


@dataclass(frozen=True)
class LoadedBenchmark:
    """A benchmark with its problems.

    Attributes:
        name: the name of the benchmark.
        path: the hub data set or the file that was read.
        problems: the problems in the order of the rows.
        report: rows read, kept and dropped.
        digest: SHA-256 over problems and golds, so that a changed file is noticed.
        layout: the layout of its few-shot prompts, and whether its answers are numbers.
    """

    name: str
    path: str
    problems: tuple[BenchmarkProblem, ...]
    report: LoadReport = field(compare=False)
    digest: str = ""
    layout: Layout = MATHEMATICS


def gold_of_column(row: Row, column: str = "answer") -> tuple[str, ...]:
    r"""Returns the answer in a column.

    A list holds alternatives. Numbers are written out.

    Raises:
        UnusableRowError: there is none.
    """
    value = row.get(column)
    values = value if isinstance(value, list | tuple) else [value]
    golds = tuple(dict.fromkeys(clean_gold(text) for entry in values if (text := _text(entry))))
    if not golds or not all(golds):
        raise UnusableRowError(NO_GOLD)
    return golds


def gold_after_hashes(row: Row) -> tuple[str, ...]:
    """Returns GSM8K's answer: after ``####`` in the column `answer`, without thousands separators.

    Raises:
        UnusableRowError: there are no hashes.
    """
    stated = _FOLLOWS_HASHES.search(_text(row.get("answer")))
    if stated is None or not stated[1].strip():
        raise UnusableRowError(NO_GOLD)
    return (clean_gold(re.sub(r"(?<=\d),(?=\d)", "", stated[1])),)


def gold_of_svamp(row: Row) -> tuple[str, ...]:
    """Returns SVAMP's column `Answer`, a number, or else the answer as in a user's own row.

    Raises:
        UnusableRowError: there is none.
    """
    return gold_of_column(row, "Answer") if row.get("Answer") is not None else gold_of_any(row)


def gold_of_answer_or_box(row: Row) -> tuple[str, ...]:
    r"""Returns the answer in the column `answer`, else in a ``\boxed{}`` of the column `solution`.

    Copies of AIME and Minerva have either column.

    Raises:
        UnusableRowError: neither is there.
    """
    if _text(row.get("answer")):
        return gold_of_column(row)
    boxed = boxed_answer(_text(row.get("solution")), _problem(row))
    if boxed is None:
        raise UnusableRowError(NO_GOLD)
    return (clean_gold(boxed),)


def golds_of_olympiad(row: Row) -> tuple[str, ...]:
    """Returns the answers in OlympiadBench's `final_answer`, a list of texts or one text.

    If `is_multiple_answer` is set, all of the list are wanted. Otherwise each entry is enough.

    Raises:
        UnusableRowError: there is none.
    """
    value = row.get("final_answer")
    if value is None:
        return gold_of_column(row)
    finals = [clean_gold(_text(entry)) for entry in (value if isinstance(value, list) else [value])]
    if not finals or not all(finals):
        raise UnusableRowError(NO_GOLD)
    if row.get("is_multiple_answer") and len(finals) > 1:
        return (", ".join(finals),)
    return tuple(dict.fromkeys(finals))


def gold_of_any(row: Row) -> tuple[str, ...]:
    r"""Returns the answers in a row of a user's own file.

    The first column that states an answer is used: `final_answer`; `answer`, which may be a
    solution with ``####`` or a box too; or `solution`, in its ``\boxed{}`` or after ``####``.

    Raises:
        UnusableRowError: none of them states an answer.
    """
    if row.get("final_answer") is not None:
        with suppress(UnusableRowError):
            return golds_of_olympiad(row)
    for column in ("answer", "solution"):
        stated = _stated(_text(row.get(column)), _problem(row))
        if stated is not None and (gold := clean_gold(stated)):
            return (gold,)
        if column == "answer":
            with suppress(UnusableRowError):
                return gold_of_column(row)
    raise UnusableRowError(NO_GOLD)


_MATH_TRAIN = HubSplit("DigitalLearningGmbH/MATH-lighteval")

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (
        Benchmark(
            "gsm8k",
            "openai/gsm8k",
            gold_after_hashes,
            config="main",
            layout=WORD_PROBLEMS,
            training=HubSplit("openai/gsm8k", config="main"),
            counts=1319,
        ),
        Benchmark(
            "svamp",
            "ChilleD/SVAMP",
            gold_of_svamp,
            problem_columns=("question_concat", "problem", "question"),
            joined_columns=("Body", "Question"),
            layout=WORD_PROBLEMS,
            training=HubSplit("ChilleD/SVAMP"),
            counts=300,
        ),
        Benchmark(
            "math500", "HuggingFaceH4/MATH-500", gold_of_column, training=_MATH_TRAIN, counts=500
        ),
        Benchmark(
            "math", _MATH_TRAIN.path, gold_of_answer_or_box, training=_MATH_TRAIN, counts=5000
        ),
        Benchmark("amc23", "math-ai/amc23", gold_of_column, counts=40),
        Benchmark(
            "aime24", "HuggingFaceH4/aime_2024", gold_of_answer_or_box, split="train", counts=30
        ),
        Benchmark("aime25", "math-ai/aime25", gold_of_answer_or_box, counts=30),
        Benchmark("minerva", "math-ai/minervamath", gold_of_answer_or_box, counts=272),
        Benchmark(
            "olympiadbench",
            "Hothan/OlympiadBench",
            golds_of_olympiad,
            split="train",
            config="OE_TO_maths_en_COMP",
            counts=674,
        ),
    )
}
_ALSO_CALLED = {
    "minervamath": "minerva",
    "aime2024": "aime24",
    "aime2025": "aime25",
    "hendrycksmath": "math",
}


def clean_gold(text: str) -> str:
    r"""Returns a gold without notation that is no part of the answer.

    This removes dollar signs and ``\(..\)`` around all of it, a ``\boxed{}``, a last full stop and
    white space. ``4.5e33`` becomes ``4.5 \times 10^{33}``, which is how answers are written.
    """
    text = text.strip()
    before = None
    while text != before:
        before = text
        for opening, closing in _MATH_MARKS:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and opening not in inner:
                text = inner.strip()
        if text.startswith(("\\boxed{", "\\fbox{")) and text.endswith("}"):
            inner_box = boxed_answer(text)
            if inner_box is not None and text.count("\\boxed") + text.count("\\fbox") == 1:
                text = inner_box
        text = text.rstrip(". \n") or text
    if text in ("\\boxed{}", "\\fbox{}"):
        return ""
    return _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)


def find_benchmark(name: str) -> Benchmark:
    """Returns a benchmark by name, by file, or by ``name=file``: a copy read as the named one.

    Case, dashes and underscores in names do not matter: MATH-500 is math500.

    Raises:
        DataError: neither a known name nor a file is given.
    """
    known, equals, path = name.partition("=")
    if equals and path and not Path(name).exists():
        named = _named(known)
        if named is None:
            raise DataError(
                f"unknown benchmark {known!r} in {name!r}; there are {', '.join(BENCHMARKS)}"
            )
        return replace(named, path=path)
    if (benchmark := _named(name)) is not None:
        return benchmark
    if Path(name).suffix.lower() in SUFFIXES or Path(name).exists():
        # A file never gets the name of a published set, because it is not read like that set.
        stem = Path(name).stem
        return Benchmark(stem if _named(stem) is None else Path(name).name, name, gold_of_any)
    near = difflib.get_close_matches(_folded(name), BENCHMARKS, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise DataError(
        f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}, or give a file of yours "
        f"that ends in {', '.join(SUFFIXES)}.{meant}"
    )


def load_benchmark(benchmark: Benchmark, *, limit: int | None = None) -> LoadedBenchmark:
    """Reads a benchmark from the hub or its file; see `problems_from_rows`.

    Raises:
        DataError: it cannot be read, or has no problem with an answer.
    """
    try:
        rows = list(read_rows(benchmark.path, split=benchmark.split, config=benchmark.config))
    except DataError as error:
        if benchmark.name not in BENCHMARKS or BENCHMARKS[benchmark.name].path != benchmark.path:
            raise
        raise DataError(
            f"{error} A copy of the benchmark on this machine is asked for by {benchmark.name}=FILE"
        ) from error
    return problems_from_rows(benchmark, rows, limit=limit)


def problems_from_rows(
    benchmark: Benchmark, rows: Iterable[Row], *, limit: int | None = None
) -> LoadedBenchmark:
    """Returns the problems of a benchmark's rows; counts rows without a problem or an answer.

    If a problem occurs twice, it is asked twice: a benchmark is used as it was published.

    Args:
        benchmark: how the rows are read.
        rows: the rows, from any source.
        limit: stop after this many problems.

    Raises:
        DataError: there is no problem with an answer; the message names the columns.
    """
    report = LoadReport()
    problems: list[BenchmarkProblem] = []
    columns: dict[str, None] = {}
    digest = hashlib.sha256()
    for row in rows:
        columns.update(dict.fromkeys(row))
        report.rows += 1
        try:
            text = benchmark.problem_of(row)
            golds = benchmark.golds(row)
        except UnusableRowError as reason:
            report.dropped[str(reason)] += 1
            continue
        problems.append(BenchmarkProblem(benchmark.name, len(problems), text, golds))
        digest.update(repr((text, golds)).encode("utf-8", "surrogatepass"))
        report.kept += 1
        if report.kept == limit:
            break
    if not problems:
        reasons = ", ".join(f"{why}: {n}" for why, n in report.dropped.most_common()) or "no rows"
        raise DataError(
            f"{benchmark.path}: none of {report.rows} rows has a problem and an answer "
            f"({reasons}). A row needs {' or '.join(benchmark.problem_columns)}, and answer, or a "
            f"solution with \\boxed{{}}; the columns are "
            f"{', '.join(map(repr, columns)) or '(none)'}"
        )
    return LoadedBenchmark(
        benchmark.name,
        benchmark.path,
        tuple(problems),
        report,
        digest.hexdigest()[:16],
        benchmark.layout,
    )


def _problem(row: Row) -> str:
    """Returns the problem of a row; its text may say that it wants several answers."""
    return next(filter(None, (_text(row.get(column)) for column in ("problem", "question"))), "")


def _named(name: str) -> Benchmark | None:
    folded = _folded(name)
    return BENCHMARKS.get(_ALSO_CALLED.get(folded, folded))


def _folded(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


def _stated(text: str, problem: str) -> str | None:
    """Returns what a text states in a box or after hashes, or None if it has neither."""
    if (boxed := boxed_answer(text, problem)) is not None:
        return boxed
    hashes = _FOLLOWS_HASHES.search(text)
    if hashes is None or not hashes[1].strip():
        return None
    return re.sub(r"(?<=\d),(?=\d)", "", hashes[1])


def _text(value: object) -> str:
    """Returns a cell as text; a cell that is neither text nor number gives an empty text.

    A whole float loses its point: tables may write the number 27 as 27.0.
    """
    if isinstance(value, bool) or value is None or isinstance(value, Mapping | list | tuple):
        return ""
    if isinstance(value, float):
        if value != value:  # NaN: a missing number in a table
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value).strip() if isinstance(value, str | int) else ""
