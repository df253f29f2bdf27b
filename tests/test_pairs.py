"""Rows with a problem and a solution or steps under any names: what is read, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from environments import LoadReport
from environments.types import DataError, Step
from tests.test_shapes import load, problem, solution, steps

ASKED = {"question": "How many?"}
TWO = "A is 1. B is 2."


def texts_of(tmp_path: Path, row: dict[str, object], **options: object) -> tuple[str, ...]:
    [one] = load(tmp_path / "data.jsonl", [row], **options)
    return one.texts


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"solution": TWO, "steps": 3}, ["A is 1.", "B is 2."]),
        ({"solution": TWO, "steps": None}, ["A is 1.", "B is 2."]),
        ({"response": TWO, "trajectory": None}, ["A is 1.", "B is 2."]),
        ({"solution": TWO, "steps": ["C.", "D."]}, ["C.", "D."]),
        ({"solution": ["C.", "D."]}, ["C.", "D."]),
        (
            {"context": "Cats are mice.", "explanation": ["C.", "D."], "answer": "True"},
            ["C.", "D."],
        ),
        ({"explanation": TWO, "answer": "2"}, ["A is 1.", "B is 2."]),
        ({"explanation": "See the book. Page 4.", "answer": TWO}, ["A is 1.", "B is 2."]),
        ({"reasoning": "Hmm, let me think. Wait, no.", "answer": TWO}, ["A is 1.", "B is 2."]),
        ({"steps": [{"step": "Step 1", "text": "A."}, {"step": 2, "text": "B."}]}, ["A.", "B."]),
        ({"steps": [{"step": "Setup", "content": "A."}, {"step": "B."}]}, ["A.", "B."]),
        (
            {"steps": [{"action": "Search", "action_input": "Rome"}, {"action": "Stop"}]},
            ['{"action": "Search", "action_input": "Rome"}', "Stop"],
        ),
    ],
)
def test_the_column_that_holds_a_solution_is_read(
    row: dict[str, object], expected: list[str], tmp_path: Path
) -> None:
    assert texts_of(tmp_path, ASKED | row) == tuple(expected)


@pytest.mark.parametrize(
    "row",
    [
        {"query": "trains", "content": "A page on trains. It is long."},
        {"prompt": "trains", "content": "A page on trains. It is long."},
        {"question": "How many?", "answer": "B", "label": 1},
        {"question": "How many?", "reasoning": "on", "answer": "4"},
    ],
)
def test_what_is_no_solution_is_refused(row: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'problem' is missing from every row"):
        load(tmp_path / "data.jsonl", [row])


def test_later_rows_may_hold_the_solution_in_another_column(tmp_path: Path) -> None:
    rows = [
        {"question": problem(1), "steps": steps(1), "solution": None},
        {"question": problem(2), "steps": None, "solution": solution(2)},
        {"question": problem(3), "steps": None, "output": solution(3)},
        {"question": problem(4), "steps": None, "solution": None},
    ]
    report = LoadReport()
    found = load(tmp_path / "data.jsonl", rows, splitter="paragraphs", report=report)
    assert [one.texts for one in found] == [tuple(steps(i)) for i in (1, 2, 3)]
    assert report.dropped == {"no solution": 1}


@pytest.mark.parametrize(
    "columns",
    [
        {"options": ["A) 1", "B) 2"]},
        {"choices": ["1", "2"]},
        {"choices": {"label": ["A", "B"], "text": ["1", "2"]}},
        {"options": {"A": "1", "B": "2"}},
        {"A": "1", "B": "2"},
    ],
)
def test_the_options_of_a_question_are_part_of_it(
    columns: dict[str, object], tmp_path: Path
) -> None:
    [one] = load(tmp_path / "data.jsonl", [ASKED | columns | {"rationale": TWO, "answer": "B"}])
    assert one.problem.split("\n") == ["How many?", "A) 1", "B) 2"]
    assert one.answer == "B"


def test_a_context_is_part_of_the_problem(tmp_path: Path) -> None:
    [one] = load(tmp_path / "data.jsonl", [ASKED | {"context": "Two cats.", "output": TWO}])
    assert one.problem == "How many?\nTwo cats."


def test_messages_as_steps_are_a_conversation(tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": "You are at the door."},
        {"role": "assistant", "content": "go to desk 1"},
        {"role": "user", "content": "There is a pen."},
        {"role": "assistant", "content": "take pen"},
    ]
    [one] = load(tmp_path / "data.jsonl", [{"task": "Find a pen.", "trajectory": said}])
    assert one.problem == "Find a pen.\n\nYou are at the door."
    assert one.steps == (Step("go to desk 1", "", "There is a pen."), Step("take pen"))


@pytest.mark.parametrize("told", [False, "False", "FALSE", "false"])
@pytest.mark.parametrize("column", ["label", "correct", "is_correct"])
@pytest.mark.parametrize("held", [{"problem": "p", "solution": TWO}, ASKED | {"steps": ["a", "b"]}])
def test_a_row_that_is_labelled_wrong_is_dropped(
    held: dict[str, object], column: str, told: object, tmp_path: Path
) -> None:
    report = LoadReport()
    good = {**held, column: True}
    found = load(tmp_path / "data.jsonl", [good, {**held, column: told}], report=report)
    assert len(found) == 1
    assert report.dropped == {"labelled as wrong": 1}


def test_a_grade_of_zero_is_wrong_and_a_class_of_zero_is_not(tmp_path: Path) -> None:
    rows = [ASKED | {"solution": TWO, column: 0} for column in ("correct", "is_correct", "label")]
    report = LoadReport()
    assert len(load(tmp_path / "data.jsonl", rows, report=report)) == 1
    assert report.dropped == {"labelled as wrong": 2}


@pytest.mark.parametrize(
    ("labels", "right"),
    [
        ([{"rating": 1}, {"rating": 0}, {"rating": -1}, {"rating": 1}], 2),
        ([{"correct": True}, {"correct": True}, {"correct": True}, {"correct": False}], 3),
        ([{"label": "+"}, {"label": "+"}, {"label": "-"}, {"label": "+"}], 2),
        ([{"label": "correct"}, {}, {"label": None}, {"label": "incorrect"}], 3),
    ],
)
@pytest.mark.parametrize("asked", ["problem", "question"])
def test_steps_end_before_the_first_that_is_labelled_wrong(
    asked: str, labels: list[dict[str, object]], right: int, tmp_path: Path
) -> None:
    held = [{"text": f"Step {i}."} | label for i, label in enumerate(labels)]
    found = texts_of(tmp_path, {asked: "How many?", "steps": held})
    assert found == tuple(f"Step {i}." for i in range(right))


def test_labels_beside_steps(tmp_path: Path) -> None:
    row = ASKED | {"steps": ["a", "b", "c"]}
    assert texts_of(tmp_path, row | {"labels": [1, 1, 0]}) == ("a", "b")
    assert texts_of(tmp_path, row | {"labels": ["good", "good", "good"]}) == ("a", "b", "c")
    with pytest.raises(DataError, match="not as many labels as steps: 1"):
        load(tmp_path / "data.jsonl", [row | {"labels": [1]}])
    with pytest.raises(DataError, match=r"label that is not understood \(perhaps\): 1"):
        load(tmp_path / "data.jsonl", [row | {"labels": ["good", "perhaps", "good"]}])


def test_incomplete_solutions_get_no_answer_step(tmp_path: Path) -> None:
    row = {"question": "How many?", "steps": ["a", "b", "c"], "answer": 4.0}
    whole = texts_of(tmp_path, row, answer_step=True)
    assert whole == ("a", "b", "c", "The answer is 4.")
    assert texts_of(tmp_path, row | {"labels": [1, 1, 0]}, answer_step=True) == ("a", "b")
    assert (
        texts_of(tmp_path, row | {"answer": "Yes."}, answer_step=True)[-1] == "The answer is Yes."
    )
    two_lines = texts_of(tmp_path, row | {"answer": "4\n5"}, answer_step=True)
    assert two_lines == ("a", "b", "c")
    report = LoadReport()
    load(tmp_path / "data.jsonl", [row, row | {"steps": []}], answer_step=True, report=report)
    assert report.dropped == {"no solution": 1}


def test_the_message_on_columns_names_those_of_the_file(tmp_path: Path) -> None:
    rows = [{"id": "row number one", "My task": problem(1), "Derivation": solution(1)}]
    with pytest.raises(
        DataError, match=r"--problem_column 'My task' --solution_column Derivation "
    ):
        load(tmp_path / "data.jsonl", rows)
    for row in ({"prompt": problem(1), "chosen": solution(1), "rejected": "No way."}, {"n": 1}):
        with pytest.raises(DataError, match="needs a problem and the expert's solution or steps"):
            load(tmp_path / "data.jsonl", [row])
