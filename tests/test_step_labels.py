"""Solutions whose steps are labelled right or wrong end before the first wrong step."""

from __future__ import annotations

from pathlib import Path

import pytest

from environments import LoadReport
from environments.types import DataError
from tests.test_shapes import load, problem, solution, steps


def test_stepwise_supervision(tmp_path: Path) -> None:
    good, wrong = [True, True, True], [True, True, False]
    labels = [good, wrong, [False, True, True], [1.0, 0.2, 1.0]]
    rows = [
        {"prompt": problem(i), "completions": steps(i), "labels": one}
        for i, one in enumerate(labels, 1)
    ]
    report = LoadReport()
    found = load(tmp_path / "data.jsonl", rows, report=report)
    assert [(len(one.steps), one.answer) for one in found] == [(3, "10"), (2, None)]
    assert report.dropped == {"no steps": 1, "only one step": 1}


def test_process_bench(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"gsm8k-{i}",
            "generator": "Qwen2-7B-Instruct",
            "problem": problem(i),
            "steps": steps(i),
            "final_answer_correct": correct,
            "label": label,
        }
        for i, (label, correct) in enumerate([(-1, True), (2, False), (0, False), (-1, False)])
    ]
    report = LoadReport()
    found = load(tmp_path / "data.jsonl", rows, report=report)
    kept = [(len(one.steps), one.answer) for one in found]
    assert kept == [(3, "6"), (2, None), (3, None)]  # a wrong end states no answer to go by
    assert report.dropped == {"no steps": 1}
    assert "ProcessBench" in report.read_as[0]
    del rows[1]["final_answer_correct"]
    rows[1]["label"] = -1.0
    [one] = load(tmp_path / "data.jsonl", rows[:1] + rows[1:2])[1:]
    assert (len(one.steps), one.answer) == (3, None)
    for bad in (3, None, True, "x"):
        with pytest.raises(DataError, match="label is not the index of a step and not -1: 1"):
            load(tmp_path / "data.jsonl", [rows[0] | {"label": bad}])


def labelled(i: int, *offered: object, reason: str = "solution") -> dict[str, object]:
    """Returns a row as PRM800K has it."""
    return {
        "labeler": "x",
        "question": {"problem": problem(i), "ground_truth_answer": str(4 * i + 6)},
        "label": {"steps": list(offered), "finish_reason": reason},
    }


def offer(*texts: str, chosen: int | None = 0, rating: int | None = 1) -> dict[str, object]:
    other = {"text": "Nonsense.", "rating": -1, "flagged": False}
    given = [{"text": text, "rating": rating, "flagged": False} for text in texts]
    return {"completions": [*given, other], "human_completion": None, "chosen_completion": chosen}


def test_prm800k(tmp_path: Path) -> None:
    own = {"completions": [], "human_completion": {"text": "Mine."}, "chosen_completion": None}
    first, second, third = steps(1)
    rows = [
        labelled(1, offer(first), offer("Other.", second, chosen=1), offer(third, rating=0)),
        labelled(2, own, offer(second), offer(third, chosen=None), reason="found_error"),
        labelled(3, offer(first), offer(second), offer(third, rating=-1)),
        labelled(4, offer(first), offer(second, chosen=9)),
    ]
    report = LoadReport()
    found = load(tmp_path / "data.jsonl", rows, report=report)
    assert [one.texts for one in found] == [
        (first, second, third),
        ("Mine.", second),
        (first, second),
    ]
    assert [one.answer for one in found] == ["10", "14", "18"]
    assert report.dropped == {"only one step": 1}
    given_up = labelled(5, offer(first), offer(second), reason="give_up")
    bad = labelled(6, offer(first), offer(second), reason="bad_problem")
    report = LoadReport()
    found = load(tmp_path / "data.jsonl", [given_up, bad], report=report, answer_step=True)
    assert [one.texts for one in found] == [(first, second)]
    assert report.dropped == {"labelled as a bad problem": 1}
    broken = {"question": {"problem": "?"}, "label": {"steps": "none"}}
    with pytest.raises(DataError, match="label.steps is not a list: 1"):
        load(tmp_path / "data.jsonl", [broken])


def test_math_shepherd(tmp_path: Path) -> None:
    def row(i: int, marks: str) -> dict[str, object]:
        texts = [f"Step {n}: {step}" for n, step in enumerate(steps(i), 1)]
        given, labels = (
            f"{problem(i)} " + "\n".join(map(" ".join, zip(texts, signs, strict=True)))
            for signs in (["ки"] * 3, marks)
        )
        return {"input": given, "label": labels, "task": "GSM8K"}

    report = LoadReport()
    rows = [row(1, "+++"), row(2, "++-"), row(3, "-++"), row(4, "+-+")]
    found = load(tmp_path / "data.jsonl", rows, report=report)
    assert [(one.problem, one.texts) for one in found] == [
        (problem(1), tuple(steps(1))),
        (problem(2), tuple(steps(2)[:2])),
    ]
    assert [one.answer for one in found] == ["10", None]
    assert report.dropped == {"no steps": 1, "only one step": 1}
    given = "Is Step 1: a step? Step 1: 40*3=<<40*3=120>>120. {0}\nStep 2: B. {0} Not labelled."
    marked = {"input": given.format("ки"), "label": given.format("+")}
    [one] = load(tmp_path / "data.jsonl", [marked | {"answer": "7"}], answer_step=True)
    assert one.problem == "Is Step 1: a step?"
    assert one.texts == ("40*3=120.", "B.")  # its end is not known, so no answer is added
    with pytest.raises(DataError, match="label is not input with"):
        load(tmp_path / "data.jsonl", [row(1, "+++") | {"label": "Another text +"}])


def test_a_completion_labelled_false_is_no_expert(tmp_path: Path) -> None:
    rows = [
        {"prompt": problem(i), "completion": solution(i), "label": i % 2 == 0} for i in range(1, 5)
    ]
    judged = [{"query": row["prompt"], "response": row["completion"]} for row in rows]
    judged = [row | {"correct": i % 2 == 1} for i, row in enumerate(judged)]
    for given in (rows, judged):
        report = LoadReport()
        found = load(tmp_path / "data.jsonl", given, report=report)
        assert [one.problem for one in found] == [problem(2), problem(4)]
        assert report.dropped == {"labelled as wrong": 2}
