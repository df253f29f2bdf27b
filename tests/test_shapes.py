"""Files in the shapes of other tools, ten rows each, give the solutions that are in them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from time import process_time

import pyarrow
import pyarrow.parquet
import pytest

from environments import LoadReport, Trajectory, load_trajectories
from environments.types import DataError, Step
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


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, rows: Iterable[Mapping[str, object]], **options: object) -> list[Trajectory]:
    return load_trajectories("files", str(write(path, rows)), max_dropped_share=1, **options)


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
    "a question and its answer in prose": one_each(
        lambda i: {"question": problem(i), "answer": solution(i)}
    ),
    "problem and generated_solution": one_each(
        lambda i: {
            "problem": problem(i),
            "generated_solution": solution(i),
            "expected_answer": str(4 * i + 6),
        }
    ),
    "messages and an output": one_each(
        lambda i: {
            "input": chat(i)[1:2],
            "output": f"<think>\nHm.\n</think>\n\n{solution(i)}",
            "reasoning": "on",
        }
    ),
    "a thought beside the solution": one_each(
        lambda i: {"input": problem(i), "reasoning_content": "Hm.", "content": solution(i)}
    ),
    "question and steps": one_each(
        lambda i: {"question": problem(i), "steps": steps(i), "answer": 4 * i + 6}
    ),
    "steps that are one text": one_each(lambda i: {"question": problem(i), "steps": solution(i)}),
    "steps that are objects": one_each(
        lambda i: {"task": problem(i), "trajectory": [{"text": step} for step in steps(i)]}
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


def test_steps_that_are_objects_have_thoughts_and_observations(tmp_path: Path) -> None:
    said = [
        {"thought": "Bags first.", "action": steps(1)[0], "observation": "9 apples"},
        {"thought": None, "action": steps(1)[1]},
    ]
    for row in ({"task": problem(1), "trajectory": said}, {"problem": problem(1), "steps": said}):
        [one] = load(tmp_path / "data.jsonl", [row])
        assert one.steps == (Step(steps(1)[0], "Bags first.", "9 apples"), Step(steps(1)[1]))
    report = LoadReport()
    rows = [{"problem": problem(1), "steps": [{"text": 3}, {"words": "x"}]}]
    with pytest.raises(DataError, match="a step is not text: 1"):
        load(tmp_path / "data.jsonl", rows, report=report)


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
        DataError, match=r"column 'problem' .* 'text'.*a problem and the expert's solution"
    ):
        load(path, [{"text": solution(1)}])
    gsm8k = {"question": problem(1), "answer": f"{solution(1)}\n#### 10"}
    with pytest.raises(DataError, match=r"check-data gsm8k --path .*data.jsonl"):
        load(path, [gsm8k])
    with pytest.raises(DataError, match="column 'solution' or 'steps' is missing"):
        load(path, [{"problem": problem(1), "answer": "10"}])


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


# ---- faults that readers have found --------------------------------------------------------------


def both_steps(found: list[Trajectory]) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.problem, one.texts) for one in found]


def test_an_instruction_goes_before_the_prompt_it_was_put_into(tmp_path: Path) -> None:
    prompt = f"### Instruction:\n{problem(1)}\n### Output:\n{solution(1)}"
    row = {"instruction": problem(1), "input": "", "output": solution(1), "prompt": prompt}
    [one] = load(tmp_path / "data.jsonl", [row], splitter="paragraphs")
    assert (one.problem, one.texts) == (problem(1), tuple(steps(1)))
    given_away = {"prompt": prompt, "completion": solution(1)}
    with pytest.raises(DataError, match="the problem contains the solution: 1"):
        load(tmp_path / "data.jsonl", [given_away])
    dolly = {"instruction": "How many?", "context": problem(1), "response": solution(1)}
    [one] = load(tmp_path / "data.jsonl", [dolly])
    assert one.problem == f"How many?\n{problem(1)}"


@pytest.mark.parametrize("told", ["\n".join, json.dumps, "(none)\n".join])
def test_steps_so_far_may_be_one_text(told, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = a_step_a_row(
        lambda i, k: {
            "problem": problem(i),
            "previous_steps": told(steps(i)[:k]),
            "next_step": steps(i)[k],
        }
    )
    if told == "(none)\n".join:
        rows = [
            row | {"previous_steps": str(row["previous_steps"]).replace("(none)", "") or "(none)"}
            for row in rows
        ]
    assert sorted(texts(load(tmp_path / "data.jsonl", rows))) == sorted(EXPECTED)


def test_verls_gsm8k_is_read_without_marks(tmp_path: Path) -> None:
    text = "He buys 3*3=<<3*3=9>>9.\nNow he has 9+1=<<9+1=10>>10.\n#### 10"
    row = {
        "prompt": [{"role": "user", "content": problem(1)}],
        "reward_model": {"style": "rule", "ground_truth": "10"},
        "extra_info": {"answer": text, "question": problem(1)},
    }
    [one] = load(tmp_path / "data.jsonl", [row])
    assert one.texts == ("He buys 3*3=9.", "Now he has 9+1=10.", "The answer is 10.")


def test_earlier_turns_of_a_prompt_are_kept(tmp_path: Path) -> None:
    turns = [*chat(1)[1:], {"role": "user", "content": "And doubled?"}]
    [one] = load(tmp_path / "data.jsonl", [{"prompt": turns, "completion": "Then 20."}])
    assert both_steps([one]) == [(problem(1), (solution(1), "Then 20."))]
    assert one.steps[0].observation == "And doubled?"
    rows = [
        {
            "prompt": [
                {"role": "user", "content": problem(1)},
                *({"role": "assistant", "content": step} for step in steps(1)[:k]),
            ],
            "expert_action": steps(1)[k],
        }
        for k in range(3)
    ]
    assert both_steps(load(tmp_path / "data.jsonl", rows)) == [(problem(1), tuple(steps(1)))]


def test_what_was_read_before_is_read_as_before(tmp_path: Path) -> None:
    own = {"problem": problem(1), "solution": solution(1), "prompt": "?", "next_step": "x"}
    for more in ({}, {"previous_steps": []}):
        [one] = load(tmp_path / "data.jsonl", [own | more], splitter="paragraphs")
        assert one.texts == tuple(steps(1))
    rows = [
        {"problem": problem(1), "steps": steps(1), "thoughts": [word] * 3, "next_step": steps(1)[0]}
        for word in ("one", "two")
    ]
    found = load(tmp_path / "data.jsonl", rows, thoughts_column="thoughts")
    assert [one.steps[0].thought for one in found] == ["one", "two"]


def test_the_answer_column_is_that_of_the_settings_or_the_first_with_a_value(
    tmp_path: Path,
) -> None:
    rows = [{"messages": chat(1), "gold": "7", "answer": "", "final_answer": "5"}]
    [one] = load(tmp_path / "data.jsonl", rows, answer_column="gold")
    assert (one.answer, dict(one.metadata)) == ("7", {})
    [one] = load(tmp_path / "data.jsonl", rows)
    assert (one.answer, dict(one.metadata)) == ("5", {"gold": "7"})


def test_every_block_of_a_solution_is_a_thought(tmp_path: Path) -> None:
    first, second, third = steps(1)
    text = f"<think>a\n\nb</think>\n\n{first}\n\n{second}\n\n<think>c</think>\n\n{third}"
    [one] = load(tmp_path / "data.jsonl", [{"problem": "?!x", "solution": text}])
    assert [(step.text, step.thought) for step in one.steps] == [
        (first, "a\n\nb"),
        (second, ""),
        (third, "c"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{}\n\n"
        "<|end_of_solution|>",
        "<reasoning>\nhm\n</reasoning>\n{}",
        "hm\n</think>\n\n{}",
    ],
)
def test_other_tags_of_thought(text: str, tmp_path: Path) -> None:
    rows = [{"problem": problem(1), "solution": text.format(solution(1))}]
    [one] = load(tmp_path / "data.jsonl", rows, splitter="paragraphs")
    assert (one.texts, one.steps[0].thought) == (tuple(steps(1)), "hm")


def test_a_tag_in_a_sentence_is_no_block(tmp_path: Path) -> None:
    told = ["We close it with </think> here.", "A <think> opens it.", "The answer is 4."]
    [one] = load(tmp_path / "data.jsonl", [{"problem": problem(1), "steps": told}])
    assert list(one.texts) == told
    assert not any(step.thought for step in one.steps)


def test_a_placeholder_for_no_steps_is_not_part_of_the_problem(tmp_path: Path) -> None:
    rows = a_step_a_row(
        lambda i, k: {
            "prompt": f"{problem(i)}\nSteps so far:\n"
            + ("\n".join(f"{n}. {s}" for n, s in enumerate(steps(i)[:k], 1)) or "(none)")
            + "\n\nNext step:",
            "target_step": steps(i)[k],
        }
    )
    found = load(tmp_path / "data.jsonl", rows)
    assert sorted(one.texts for one in found) == sorted(steps for _, steps, _ in EXPECTED)
    assert {one.problem.partition("\n")[0] for one in found} == {one for one, _, _ in EXPECTED}
    # First prompts that are written otherwise are not continued by any other.
    broken = [
        row | {"prompt": str(row["prompt"]).replace("(none)", "You are at the start.")}
        for row in rows
    ]
    with pytest.raises(DataError, match="have a single step.*must contain the prompt"):
        load(tmp_path / "data.jsonl", broken)


def test_calls_of_tools_in_all_forms(tmp_path: Path) -> None:
    call = {"name": "add", "arguments": {"x": 1, "city": None}}
    expected = '{"name": "add", "arguments": {"x": 1}}'
    for key, value in (
        ("tool_calls", [{"type": "function", "function": call}]),
        ("tool_calls", call),
        ("tool_calls", json.dumps([call])),
        ("function_call", call),
    ):
        turns: list[dict[str, object]] = [
            {"role": "user", "content": "1 + 1?"},
            {"role": None, "from": "gpt", "content": None, "value": "", key: value},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "The answer is 2.", "reasoning": "I see."},
        ]
        [one] = load(tmp_path / "data.jsonl", [{"messages": turns}])
        assert one.texts == (expected, "The answer is 2.")
        assert one.steps[1].thought == "I see."


def test_dates_in_a_call_and_many_targets_of_one_prompt(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "", "tool_calls": [{"day": date(2026, 1, 2)}]},
        {"role": "tool", "content": "then"},
        {"role": "assistant", "content": "Then."},
    ]
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns}]), path)
    [one] = load_trajectories("files", str(path))
    assert one.texts == ('{"day": "2026-01-02"}', "Then.")
    rows = [{"prompt": problem(1), "expert_action": f"Step {i}."} for i in range(20_000)]
    rows.append({"prompt": f"{problem(1)}\nStep 5.", "expert_action": "So 5."})
    before = process_time()
    with pytest.raises(DataError, match="19,999 of 20,000 solutions have a single step"):
        load_trajectories("files", str(write(tmp_path / "many.jsonl", rows)))
    assert process_time() - before < 10
