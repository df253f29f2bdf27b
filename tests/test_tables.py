"""Data in tables of text: .csv and .tsv as spreadsheets, pandas and hands write them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from environments import DataError, LoadReport, load_trajectories
from tests.test_environments import jsonl


@pytest.mark.parametrize("written", [json.dumps, str], ids=["JSON", "Python"])
def test_tables_give_what_jsonl_gives(tmp_path: Path, written: Callable[[object], str]) -> None:
    long = f'Line, one {"x" * 200_000}\n\nand "two".'  # longer than csv's own limit
    rows = [
        {"problem": 'p, "q"\nr', "solution": None, "steps": ["a; b", "it's\nc"], "answer": "3.5"},
        {"problem": "p", "solution": long, "steps": None, "answer": None},
    ]
    expected = load_trajectories("files", jsonl(tmp_path, rows))
    assert [len(one.steps) for one in expected] == [2, 2]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"rows{suffix}"
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            table.writeheader()
            for row in rows:
                steps = written(row["steps"]) if row["steps"] else None
                table.writerow(row | {"steps": steps})
        assert load_trajectories("files", str(path)) == expected


def table(path: Path, text: str, **options: object) -> list[tuple[str, tuple[str, ...]]]:
    path.write_text(text, encoding="utf-8")
    report = options.pop("report", None) or LoadReport()
    found = load_trajectories("files", str(path), report=report, max_dropped_share=1, **options)
    return [(one.problem, one.texts) for one in found]


def test_tables_as_programs_write_them(tmp_path: Path) -> None:
    path, expected = tmp_path / "x.csv", [("p, q", ("A is 1.", "B is 2."))]
    assert table(path, 'problem,solution\r\n"p, q",A is 1. B is 2.\r\n') == expected
    assert table(path, "problem;solution\np, q;A is 1. B is 2.\n") == expected
    assert table(path, "sep=;\nproblem;solution\np, q;A is 1. B is 2.\n") == expected
    assert table(path, 'problem,solution,x\n"p, q",A is 1. B is 2.\n\n') == expected  # no x
    with pytest.raises(DataError, match="two columns are called 'problem'"):
        table(path, "problem,problem\na,b\n")
    path.write_bytes("problem,solution\ncaf\xe9,b\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text .*Save it as UTF-8"):
        load_trajectories("files", str(path))


def test_brackets_in_tables_may_be_mathematics(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    answers = ["[0, 1]", "[1/2, 3]", "(0, 1]", "{1, 2}", "[[1, 2], [3, 4]]", "[-1, 1)"]
    problems = ["[5 + ? * 19] / [13 * 13 - 156]", "[Hard] How many?", "[x]", "[1]/[2]", "a", "b"]
    with path.open("w", newline="") as file:
        rows = zip(problems, ["A is 1. B is 2."] * len(answers), answers, strict=True)
        csv.writer(file).writerows([["problem", "solution", "answer"], *rows])
    found = load_trajectories("files", str(path))
    assert [one.problem for one in found] == problems
    assert [one.answer for one in found] == answers


def test_cells_of_tables_hold_lists_messages_labels_and_words(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"

    def rows(*values: object, columns: str, **options: object) -> object:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns.split(), *values])
        return table(path, path.read_text(), **options)

    said = [[{"role": "user", "content": "p"}, {"role": "assistant", "content": "A is 1. B is 2."}]]
    assert rows(*([str(one)] for one in said), columns="messages") == [
        ("p", ("A is 1.", "B is 2."))
    ]
    labelled = ["p", json.dumps(["a", "b", "c"]), "[True, True, False]"]
    assert rows(labelled, columns="prompt completions labels") == [("p", ("a", "b"))]
    bench = [["p", "['a', 'b', 'c']", label, "x"] for label in ("2", "2.0")]
    found = rows(*bench[:1], columns="problem steps label generator")
    assert found == rows(*bench[1:], columns="problem steps label generator")
    assert found == [("p", ("a", "b"))]
    graded = [["p", "A is 1. B is 2.", "False"], ["q", "A is 1. B is 2.", "True"]]
    assert rows(*graded, columns="prompt completion label") == [("q", ("A is 1.", "B is 2."))]
    teachers = [["p", "A is 1. B is 2.", "4"], ["q", "A is 1. B is 2.", "8"]]
    fours = rows(*teachers, columns="problem solution granularity", only={"granularity": 4})
    assert fours == [("p", ("A is 1.", "B is 2."))]
    report = LoadReport()
    unreadable = [
        ["p", "[{'action': 'A is 1. Then we go.', 'thought': nan}]"],  # as pandas writes it
        ["q", "['a' 'b']"],  # as numpy writes it: one text to Python
        ["r", "[asy] draw(); [/asy] A is 1. B is 2."],  # no list
    ]
    rows(*unreadable, columns="problem steps", report=report)
    assert report.dropped == {"steps is not a list": 1, "only one step": 1}
    assert report.kept == 1
