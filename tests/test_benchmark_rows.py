"""Benchmarks: named data sets and files, and how their rows are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from environments.benchmarks import (
    BENCHMARKS,
    Benchmark,
    clean_gold,
    find_benchmark,
    gold_of_any,
    load_benchmark,
    problems_from_rows,
)
from environments.types import DataError
from rewards.answer import verify_answer

# A made-up row in the shape of each data set, and the golds that are read from it
ROWS: dict[str, list[tuple[dict[str, object], tuple[str, ...]]]] = {
    "gsm8k": [
        ({"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}, ("4",)),
        ({"question": "A lot?", "answer": "It is much.\n#### 1,234,000"}, ("1234000",)),
        ({"question": "Debt?", "answer": "Less.\n####  -7 "}, ("-7",)),
    ],
    "svamp": [
        ({"ID": "chal-1", "Body": "Tom has 8 pens. He gives 3 away.", "Question": "How many left?",
          "Equation": "( 8.0 - 3.0 )", "Answer": 5.0, "Type": "Subtraction"}, ("5",)),
        ({"Body": "Tom has 8 pens.", "Question": "How many?", "Answer": "8"}, ("8",)),
        ({"question_concat": "Tom has 8 pens. How many?", "Answer": "8.5"}, ("8.5",)),
        ({"problem": "p", "solution": "It is 9.\n#### 9"}, ("9",)),
    ],
    "math": [
        ({"problem": "p", "level": "Level 1", "type": "Algebra", "solution": r"So $\boxed{x^2}$."},
         ("x^2",)),
    ],
    "math500": [
        ({"problem": "p", "solution": r"\boxed{9}", "answer": r"\frac{1}{2}"}, (r"\frac{1}{2}",)),
        ({"problem": "p", "answer": r"\left( 3, \frac{\pi}{2} \right)"},
         (r"\left( 3, \frac{\pi}{2} \right)",)),
    ],
    "amc23": [
        ({"id": 0, "question": "p", "answer": 27.0}, ("27",)),
        ({"id": 1, "question": "p", "answer": "36.0"}, ("36.0",)),
        ({"id": 2, "question": "p", "answer": 0.5}, ("0.5",)),
    ],
    "aime24": [
        ({"problem": "p", "solution": "...", "answer": "073"}, ("073",)),
        ({"problem": "p", "solution": r"so \boxed{204}.", "url": "x"}, ("204",)),
        ({"problem": "p", "answer": 25}, ("25",)),
    ],
    "aime25": [({"problem": "p", "answer": "70", "id": "0"}, ("70",))],
    "minerva": [
        ({"question": "p", "answer": "4.5e33"}, (r"4.5 \times 10^{33}",)),
        ({"problem": "p", "solution": r"Hence $\boxed{\frac{k}{m}}$."}, (r"\frac{k}{m}",)),
        ({"problem": "p", "solution": r"\boxed{2.5e-3} \mathrm{~m}", "type": "Physics"},
         (r"2.5 \times 10^{-3}",)),
    ],
    "olympiadbench": [
        ({"question": "p", "final_answer": ["$2$"], "is_multiple_answer": False}, ("2",)),
        ({"question": "p", "final_answer": ["$1,2$"], "is_multiple_answer": True}, ("1,2",)),
        ({"question": "p", "final_answer": ["$1$", "$2$"], "is_multiple_answer": True}, ("1, 2",)),
        ({"question": "p", "final_answer": [r"$\frac12$", "$0.5$"], "is_multiple_answer": False},
         (r"\frac12", "0.5")),
        ({"question": "p", "answer": "7"}, ("7",)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_of_each_benchmark(name: str) -> None:
    rows = [row for row, _ in ROWS[name]]
    loaded = problems_from_rows(BENCHMARKS[name], rows)
    assert [problem.golds for problem in loaded.problems] == [golds for _, golds in ROWS[name]]
    assert [problem.number for problem in loaded.problems] == list(range(len(rows)))
    assert loaded.report.kept == loaded.report.rows == len(rows)
    for problem in loaded.problems:
        assert all(verify_answer(gold, gold) for gold in problem.golds)


def test_a_problem_in_two_columns_is_one() -> None:
    rows = [row for row, _ in ROWS["svamp"]]
    loaded = problems_from_rows(BENCHMARKS["svamp"], rows).problems
    assert [one.problem for one in loaded] == [
        "Tom has 8 pens. He gives 3 away. How many left?",
        "Tom has 8 pens. How many?",
        "Tom has 8 pens. How many?",
        "p",
    ]


def test_cleaned_golds_are_those_that_policies_match() -> None:
    gold = problems_from_rows(BENCHMARKS["minerva"], [ROWS["minerva"][0][0]]).problems[0].golds[0]
    assert verify_answer("4.5e33", gold)
    assert verify_answer(r"4.5 \cdot 10^{33}", gold)
    assert not verify_answer("4.5", gold)
    both = problems_from_rows(BENCHMARKS["olympiadbench"], [ROWS["olympiadbench"][2][0]])
    assert verify_answer("2, 1", both.problems[0].golds[0])
    assert not verify_answer("1", both.problems[0].golds[0])  # all of the list is wanted


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"$\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed{3}", "3"),
        (r"$\boxed{\{1,2\}}$.", r"\{1,2\}"),
        (r"\(7\)", "7"),
        (r"$$x+1$$", "x+1"),
        ("$a$, $b$", "$a$, $b$"),
        (r"\$5", r"\$5"),
        ("5.", "5"),
        ("1.5", "1.5"),
        ("2e", "2e"),
        ("1e-3 m", r"1 \times 10^{-3} m"),
        (r"\boxed{1} \text{ and } \boxed{2}", r"\boxed{1} \text{ and } \boxed{2}"),
        ("$", ""),
        ("  ", ""),
        (r"\boxed{}", ""),
    ],
)
def test_clean_gold(text: str, gold: str) -> None:
    assert clean_gold(text) == gold


@pytest.mark.parametrize(
    ("row", "golds"),
    [
        ({"answer": "72"}, ("72",)),
        ({"answer": 72}, ("72",)),
        ({"answer": "half of it\n#### 72"}, ("72",)),
        ({"answer": r"so \boxed{72}"}, ("72",)),
        ({"answer": ["1/2", "0.5"]}, ("1/2", "0.5")),
        ({"answer": None, "solution": r"so \boxed{x+1}"}, ("x+1",)),
        ({"solution": "so 5\n#### 5"}, ("5",)),
        ({"solution": "#### Step 1\nIt is 5.\n#### 5"}, ("5",)),
        ({"final_answer": ["$3$"], "answer": "no"}, ("3",)),
        # A column that says nothing hides none
        ({"final_answer": "", "answer": "5"}, ("5",)),
        ({"final_answer": float("nan"), "answer": "5"}, ("5",)),
        ({"answer": [], "solution": r"so \boxed{3}"}, ("3",)),
        ({"answer": r"\boxed{}", "solution": "so 4\n#### 4"}, ("4",)),
    ],
)
def test_the_gold_of_a_users_row(row: dict[str, object], golds: tuple[str, ...]) -> None:
    assert gold_of_any(row) == golds


def test_rows_that_cannot_be_used_are_counted() -> None:
    rows: list[dict[str, object]] = [
        {"problem": "p", "answer": "1"},
        {"problem": "p", "answer": ""},
        {"problem": "p", "solution": "no box"},
        {"problem": "p", "answer": float("nan")},
        {"problem": "p", "answer": []},
        {"answer": "1"},
        {"problem": " ", "answer": "1"},
        {"problem": 3, "answer": "1"},
    ]
    loaded = problems_from_rows(Benchmark("mine", "mine.jsonl", gold_of_any), rows)
    assert len(loaded.problems) == 1
    assert loaded.report.dropped == {"no answer": 4, "no problem": 2, "problem is not text": 1}
    with pytest.raises(DataError, match=r"mine.jsonl: none of 1 rows .* columns are 'question'"):
        problems_from_rows(Benchmark("m", "mine.jsonl", gold_of_any), [{"question": "?"}])


def test_a_problem_that_stands_twice_is_asked_twice() -> None:
    rows = [{"problem": "p", "answer": "1"}] * 2
    problems = problems_from_rows(Benchmark("m", "m.jsonl", gold_of_any), rows).problems
    assert [problem.number for problem in problems] == [0, 1]
    assert len({problem.problem_id for problem in problems}) == 1


def test_files_of_both_kinds_say_the_same(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    one, two = (
        load_benchmark(find_benchmark(str(tmp_path / f"a.{kind}"))) for kind in ("jsonl", "parquet")
    )
    assert one.problems == two.problems
    assert one.digest == two.digest
    limited = load_benchmark(find_benchmark(str(tmp_path / "a.jsonl")), limit=2)
    assert limited.problems == one.problems[:2]


def test_an_unreachable_hub_says_how_to_give_a_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match=r"ConnectionError: no route.* by gsm8k=FILE$"):
        load_benchmark(find_benchmark("gsm8k"))
    # A file that is named already is not told so again.
    with pytest.raises(DataError, match=r"no such file \(looked from [^)]+\)\.$"):
        load_benchmark(find_benchmark(f"gsm8k={tmp_path / 'none.jsonl'}"))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("MATH-500", "math500"),
        ("Minerva_Math", "minerva"),
        ("AIME 2024", "aime24"),
        ("hendrycks_math", "math"),
        ("GSM8K", "gsm8k"),
        ("OlympiadBench", "olympiadbench"),
    ],
)
def test_names_are_not_told_apart_by_case_and_dashes(name: str, found: str) -> None:
    assert find_benchmark(name) == BENCHMARKS[found]


def test_a_copy_is_read_as_the_named_one() -> None:
    copy = find_benchmark("amc23=copies/amc.parquet")
    assert copy == replace(BENCHMARKS["amc23"], path="copies/amc.parquet")
    assert copy.counts == 40


def test_a_file_is_not_taken_for_a_published_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.jsonl").write_text("")
    assert find_benchmark("here/mine.jsonl").name == "mine"
    assert find_benchmark("here/gsm8k.jsonl").name == "gsm8k.jsonl"
    assert find_benchmark("here/gsm8k.jsonl").counts == 0
    assert find_benchmark("a=b.jsonl").path == "a=b.jsonl"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gms8k", r"unknown benchmark 'gms8k'; there are gsm8k, .* Did you mean gsm8k\?"),
        ("mine=a.jsonl", "unknown benchmark 'mine' in 'mine=a.jsonl'"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_benchmark(name)
