"""Files in the shapes of other tools, ten rows each, give the solutions that are in them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from environments import LoadReport, Trajectory, load_trajectories
from environments.types import DataError
from srl.commands.cli import main

Rows = list[dict[str, object]]


def problem(i: int) -> str:
    return f"Tom has {i} apples and buys {i + 2} bags of 3. How many apples has he now?"


def steps(i: int) -> list[str]:
    return [
        f"The bags hold {i + 2} * 3 = {3 * i + 6} apples.",
        f"Together with his own he has {3 * i + 6} + {i} = {4 * i + 6} apples.",
        f"The answer is {4 * i + 6}.",
    ]


def solution(i: int) -> str:
    return "\n\n".join(steps(i))


def load(path: Path, rows: Iterable[Mapping[str, object]], **options: object) -> list[Trajectory]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_trajectories("files", str(path), max_dropped_share=1, **options)


def texts(found: Iterable[Trajectory]) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(" ".join(one.problem.split()), one.texts, one.answer) for one in found]


EXPECTED = [(problem(i), tuple(steps(i)), str(4 * i + 6)) for i in range(1, 11)]


def chat(i: int, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    user, assistant = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [
        {role: "system", content: "You are a careful teacher."},
        {role: user, content: problem(i)},
        {role: assistant, content: solution(i)},
    ]


def one_each(columns) -> Rows:  # type: ignore[no-untyped-def]
    return [columns(i) for i in range(1, 11)]


WHOLE: dict[str, Rows] = {
    "problem and solution": one_each(lambda i: {"problem": problem(i), "solution": solution(i)}),
    "messages": one_each(lambda i: {"messages": chat(i), "id": i}),
    "ShareGPT": one_each(lambda i: {"conversations": chat(i, "from", "value")}),
    "LLaMA-Factory's ShareGPT": one_each(
        lambda i: {"conversations": chat(i, "from", "value")[1:], "system": "Teach.", "tools": ""}
    ),
    "Alpaca": one_each(
        lambda i: {
            "instruction": problem(i).partition(". ")[0] + ".",
            "input": problem(i).partition(". ")[2],
            "output": solution(i),
            "history": [],
        }
    ),
    "prompt and completion": one_each(lambda i: {"prompt": problem(i), "completion": solution(i)}),
    "conversational prompt and completion": one_each(
        lambda i: {"prompt": chat(i)[:2], "completion": chat(i)[2:]}
    ),
    "stepwise supervision": one_each(
        lambda i: {"prompt": problem(i), "completions": steps(i), "labels": [True] * 3}
    ),
    "verl": one_each(
        lambda i: {
            "data_source": "apples",
            "prompt": [{"role": "user", "content": problem(i) + " Think step by step."}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(4 * i + 6)},
            "extra_info": {"answer": solution(i), "question": problem(i), "index": i},
        }
    ),
    "query and response": one_each(lambda i: {"query": problem(i), "response": solution(i)}),
    "question and solution": one_each(
        lambda i: {"question": problem(i), "solution": solution(i), "answer": 4 * i + 6}
    ),
    "content in parts": one_each(
        lambda i: {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": problem(i)}]},
                {"role": "assistant", "content": [{"type": "text", "text": solution(i)}]},
            ]
        }
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_solution_a_row(name: str, tmp_path: Path) -> None:
    report = LoadReport()
    found = load(tmp_path / "data.jsonl", WHOLE[name], splitter="paragraphs", report=report)
    assert texts(found) == EXPECTED
    assert (report.rows, report.kept) == (10, 10)
    assert len(report.read_as) == (name != "problem and solution")


def prompt_of(i: int, k: int, *, start: str = "", end: str = "") -> str:
    """With numbered steps before step k."""
    told = "".join(f"\n{n}. {step}" for n, step in enumerate(steps(i)[:k], 1))
    return f"{start}{problem(i)}{told}{end}"


def a_step_a_row(columns) -> Rows:  # type: ignore[no-untyped-def]
    return [columns(i, k) for i in range(1, 11) for k in range(3)]


SINGLE: dict[str, Rows] = {
    "steps so far and the next": a_step_a_row(
        lambda i, k: {
            "traj_id": str(i),
            "step_idx": k,
            "problem": problem(i),
            "previous_steps": steps(i)[:k],
            "teacher_step": steps(i)[k],
        }
    ),
    "all steps and the next": a_step_a_row(
        lambda i, k: {
            "id": i,
            "problem": problem(i),
            "steps": steps(i),
            "k": k + 1,
            "prompt": prompt_of(i, k),
            "target_step": steps(i)[k],
        }
    ),
    "prompts that go on": a_step_a_row(
        lambda i, k: {"prompt": prompt_of(i, k), "expert_action": steps(i)[k]}
    ),
    "prompts that end alike": a_step_a_row(
        lambda i, k: {
            "prompt": prompt_of(i, k, end="\n\nWrite the next step."),
            "target_step": steps(i)[k],
        }
    ),
    "prompts as messages": a_step_a_row(
        lambda i, k: {
            "prompt": [
                {"role": "system", "content": "Give the next step."},
                {"role": "user", "content": prompt_of(i, k)},
            ],
            "expert_action": steps(i)[k],
        }
    ),
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_step_a_row(name: str, shuffled: bool, tmp_path: Path) -> None:
    rows = list(SINGLE[name])
    if shuffled:
        random.Random(0).shuffle(rows)
    report = LoadReport()
    found = load(tmp_path / "data.jsonl", rows, report=report)
    assert sorted(texts(found)) == sorted(EXPECTED)
    assert (report.rows, report.kept) == (10, 10)
    assert "30 rows, 10 solutions" in report.read_as[0]


def test_two_teachers_of_one_problem_stay_two_solutions(tmp_path: Path) -> None:
    other = ["3 * 3 = 9.", "9 + 1 = 10.", "So 10."]
    rows = [
        {"prompt": f"{problem(1)}\n{chr(10).join(way[:k])}", "expert_action": way[k]}
        for way in (steps(1), other)
        for k in range(3)
    ]
    found = load(tmp_path / "data.jsonl", rows)
    assert sorted(one.texts for one in found) == sorted([tuple(steps(1)), tuple(other)])


def test_steps_end_before_the_first_wrong_one(tmp_path: Path) -> None:
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


def test_turns_are_steps_and_what_stands_between_them_is_what_the_world_said(
    tmp_path: Path,
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "How much is it?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "content": "It is 4."},
        {"role": "assistant", "content": "The answer is 4.", "reasoning_content": "It said 4."},
        {"role": "user", "content": "Thanks."},
    ]
    [one] = load(tmp_path / "data.jsonl", [{"messages": turns}])
    assert one.problem == "How much is it?"
    first, last = one.steps
    assert first.text == 'I look.\n{"name": "add", "arguments": "{\\"a\\": 1}"}'
    assert first.observation == "It is 4."
    assert (last.text, last.thought, last.observation) == ("The answer is 4.", "It said 4.", "")
    assert one.answer == "4"


# ---- think blocks --------------------------------------------------------------------------------

R1 = {
    "messages": [
        {"role": "user", "content": problem(1)},
        {
            "role": "assistant",
            "content": f"<think>\nThree bags.\n\nThree each.\n</think>\n\n{solution(1)}",
        },
    ]
}


@pytest.mark.parametrize("opened", [True, False])
def test_a_block_is_the_thought_before_the_first_step(opened: bool, tmp_path: Path) -> None:
    text = json.loads(json.dumps(R1))
    if not opened:  # the template has opened it
        text["messages"][1]["content"] = text["messages"][1]["content"].removeprefix("<think>")
    [one] = load(tmp_path / "data.jsonl", [text], splitter="paragraphs")
    assert one.texts == tuple(steps(1))
    assert [step.thought for step in one.steps] == ["Three bags.\n\nThree each.", "", ""]


def test_a_block_can_be_the_trajectory_or_nothing(tmp_path: Path) -> None:
    def found(blocks: str) -> Trajectory:
        [one] = load(tmp_path / "data.jsonl", [R1], splitter="paragraphs", think_blocks=blocks)
        assert not any(step.thought for step in one.steps)
        return one

    assert found("trajectory").texts == ("Three bags.", "Three each.", *steps(1))
    assert found("drop").texts == tuple(steps(1))
    with pytest.raises(DataError, match=r"think_blocks.*'thought', 'trajectory', 'drop'"):
        found("keep")


def test_every_step_may_have_a_block(tmp_path: Path) -> None:
    rows = [
        {
            "problem": problem(1),
            "steps": [f"<think>{k}</think> {s}" for k, s in enumerate(steps(1))],
        }
    ]
    [one] = load(tmp_path / "data.jsonl", rows)
    assert one.texts == tuple(steps(1))
    assert [step.thought for step in one.steps] == ["0", "1", "2"]


def test_a_block_without_an_end_and_one_without_a_solution_are_counted(tmp_path: Path) -> None:
    bad = ["<think>Three bags.\n\nThree each.", "<think>Three bags.</think>\n"]
    rows = [{"problem": problem(i), "solution": text} for i, text in enumerate(bad)]
    rows.append({"problem": problem(3), "solution": solution(3)})
    report = LoadReport()
    [one] = load(tmp_path / "data.jsonl", rows, splitter="paragraphs", report=report)
    assert one.texts == tuple(steps(3))
    assert report.dropped == {"a think block without an end": 1, "nothing but a think block": 1}


# ---- what cannot be read -------------------------------------------------------------------------


def test_what_cannot_be_read_is_counted_or_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    final = {
        "prompt": [{"role": "user", "content": problem(1)}],
        "reward_model": {"ground_truth": "10"},
        "extra_info": {"index": 1},
    }
    with pytest.raises(DataError, match="no solution, only a final answer: 1"):
        load(path, [final])
    rows = [{"prompt": problem(i), "expert_action": steps(i)[0]} for i in range(3)]
    with pytest.raises(DataError, match="a single step that continues no other row: 3"):
        load(path, rows)
    with pytest.raises(DataError, match="messages is not a list of messages: 1"):
        load(path, [{"messages": "user: hello"}])
    with pytest.raises(DataError, match="no solution: 1"):
        load(path, [{"messages": [{"role": "user", "content": "Hello?"}]}])
    with pytest.raises(
        DataError, match=r"column 'problem' .* 'text'.*problem_column.*steps_column"
    ):
        load(path, [{"text": solution(1)}])
    gsm8k = {"question": problem(1), "answer": f"{solution(1)}\n#### 10"}
    with pytest.raises(DataError, match=r"check-data gsm8k --path .*data.jsonl"):
        load(path, [gsm8k])


def test_named_columns_are_taken_at_their_word(tmp_path: Path) -> None:
    rows = [{"prompt": problem(i), "completion": solution(i), "q": "Why?"} for i in range(1, 11)]
    found = load(
        tmp_path / "data.jsonl",
        rows,
        problem_column="q",
        solution_column="completion",
        splitter="paragraphs",
    )
    assert {one.problem for one in found} == {"Why?"}


def test_check_data_says_how_it_was_read_and_shows_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.jsonl"
    load(path, WHOLE["messages"])
    assert main(["check-data", str(path), "--splitter", "paragraphs"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "is read as chat messages in `messages`" in text
    assert f"problem {problem(1)} step 1 {steps(1)[0]} step 2 {steps(1)[1]}" in text
    assert "answer 10" in text
