"""Wrong answers of teachers: what is found, and what is not decided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from environments import load_trajectories
from environments.agreement import NOT_GOLD, NOT_ITS_OWN, NOT_THE_OTHERS, wrong_answers
from environments.types import DataError, LoadReport, Trajectory
from srl.config.data import DataPlan

SVAMP = Path(__file__).parents[2] / "shared/data/svamp_teachers.jsonl"


def of(problem: str, *answers: str | None) -> list[Trajectory]:
    return [Trajectory(problem, ("x", f"The answer is {a}." if a else "?"), a) for a in answers]


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        (("4", "4.0", "5"), {2}),
        (("4", "5"), set()),  # one against one
        (("4", "4", "5", "5"), set()),
        (("4", "4", "5", "6"), set()),  # no more than half
        (("4", "4", "4", "5", "6"), {3, 4}),
        (("4", None, None), set()),
        (("1,000", "1000", "100"), {2}),
        (("x+1", "x+1", "1+x"), set()),  # formulas may be equal all the same
        (("1/2", "0.5", "1/3"), {2}),
        (("33.3", "33.33", "33.33"), set()),  # rounded
        (("3.14", "3.14159", "3.2"), {2}),
        (("33", "33.4", "33.4"), {0}),  # whole numbers are not taken for rounded
    ],
)
def test_the_answer_of_most_solutions(answers: tuple[str | None, ...], wrong: set[int]) -> None:
    others = of("another problem", "7", "7", "8")
    rows = [*of("p", *answers), *others]
    found = wrong_answers(rows, range(len(rows)))
    assert {place for place in found if place < len(answers)} == wrong
    assert found[len(answers) + 2] == NOT_THE_OTHERS


def test_a_solution_that_contradicts_its_row() -> None:
    rows = [Trajectory("p", ("So 2 + 2 = 5", "The answer is 5."), "4")]
    assert wrong_answers(rows, ["a"]) == {0: NOT_ITS_OWN}
    assert wrong_answers([Trajectory("p", ("The answer is x + 1.",), "1 + x")], ["a"]) == {}


def test_a_teacher_has_one_vote_and_gold_answers_have_all() -> None:
    """Two granularities of one file are one teacher."""
    rows = of("p", "6", "6", "5")
    assert wrong_answers(rows, ["x", "x", "y"]) == {}
    assert set(wrong_answers(rows, ["x", "z", "y"])) == {2}
    assert wrong_answers(rows, ["x", "z", "y"], gold=["y"]) == {0: NOT_GOLD, 1: NOT_GOLD}


def test_rows_of_one_kind(tmp_path: Path) -> None:
    rows = [
        {"problem": f"p{n}", "solution": "a\nb", "teacher": t, "size": n % 2}
        for n in range(6)
        for t in ("large", "small")
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": str(tmp_path / "x.jsonl"), "only": {"teacher": "small", "size": 1}}
    found = load_trajectories("files", **options)  # type: ignore[arg-type]
    assert [one.problem for one in found] == ["p1", "p3", "p5"]
    for nothing in ({}, {"kind": None}):
        with pytest.raises(DataError, match="only"):
            load_trajectories("files", path=options["path"], only=nothing)  # type: ignore[arg-type]
    options["only"] = {"teacher": "tiny", "kind": 1}
    with pytest.raises(DataError, match="teacher is 'large', 'small'; no row has a column 'kind'"):
        load_trajectories("files", **options)  # type: ignore[arg-type]


@pytest.mark.skipif(not SVAMP.is_file(), reason="shared/data/svamp_teachers.jsonl is absent")
def test_three_teachers_in_two_lengths() -> None:
    """Six sources of 700 problems; some hundred solutions contradict the others."""
    sources = {
        f"{teacher}-{length}": {
            "source": "files", "path": str(SVAMP), "weight": 1,
            "only": {"teacher": teacher, "granularity": granularity},
        }
        for teacher in ("chatgpt", "gemini", "llama")
        for length, granularity in (("short", 1), ("long", 4))
    }  # fmt: skip
    report = LoadReport()
    kept = DataPlan.of({"sources": sources}, "test").load(report)
    assert len({one.problem_id for one in kept}) > 690
    counts = {why: n for why, n in report.dropped.items() if why.endswith(NOT_THE_OTHERS)}
    assert 20 < sum(counts.values()) < 60
    assert len(counts) > 3
    assert report.kept == len(kept)
    assert report.kept + sum(report.dropped.values()) == report.rows
