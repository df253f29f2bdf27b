"""Rows that no policy could be paid for are left out, by one rule for every method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import build_tokenizer
from transformers import PreTrainedTokenizerFast

from environments import Environment
from environments.types import Step, Trajectory
from srl.config.parts import RowSettings
from srl.config.settings import SRLConfig
from srl.data.prompts import FAILURES, PromptFormat, why_uncopyable
from srl.data.rows import Rows
from srl.data.steps import StepExample
from srl.training.sft import ExpertRows
from srl.trl_adapter import adapt

GOOD = ("Add one.", "Take two away.", "So three.")
SEVERAL = "1. **One** a\n2. **Two** b"
UNPAYABLE = {
    "a <think> b": "a copy of the expert's step breaks the format (repeated_tag)",
    "a </think>": "a copy of the expert's step breaks the format (repeated_tag)",
    SEVERAL: "the expert's step reads as several",
    "x" * 200: "the expert's step is longer than max_completion_length 100",
    "half a \ud800 sign": "text that is not Unicode (a lone surrogate)",
}


@pytest.mark.parametrize("step", UNPAYABLE)
def test_a_step_that_cannot_be_copied_is_no_row_of_any_method(
    byte_tokenizer: PreTrainedTokenizerFast, step: str
) -> None:
    form = PromptFormat(byte_tokenizer, system_prompt=None)
    args = SRLConfig(targets="all", max_completion_length=100, use_cpu=True)
    data = [Trajectory("one", GOOD), Trajectory("two", (GOOD[0], step))]
    whole_row = 3 if "\ud800" in step else 4  # a problem that cannot be read has no row at all
    for rows in (Rows.of(data, form, args, None), ExpertRows.of(data, form, args, None)):
        assert [row.expert_step for row in rows.examples] == [*GOOD, GOOD[0]][:whole_row]
        assert rows.dropped == {UNPAYABLE[step]: 5 - whole_row}


def test_a_row_fits_to_the_token(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """The shortest copy counts: tags, step and end, and no thought of the expert's."""
    form = PromptFormat(byte_tokenizer, system_prompt=None)
    data = [Trajectory("p", (Step("Add one.", thought="long " * 50), Step("So two.")))]
    needed = len("<think></think>\nAdd one.") + 1
    for room, rows in ((needed, 1), (needed - 1, 0)):
        args = RowSettings(max_completion_length=room)
        assert len(Rows.of(data, form, args, None).examples) == rows
    # Another solution with the same answer is paid for as well: nobody has to copy this one.
    args = RowSettings(targets="whole", whole_max_completion_length=10)
    assert len(Rows.of(data, form, args, None).examples) == 1


def test_each_kind_of_row_has_the_room_of_its_kind(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Of a solution whose prompts outgrow the context, the whole of it may fit all the same."""
    form = PromptFormat(byte_tokenizer, system_prompt=None, whole_system_prompt=None, think=False)
    data = [Trajectory("p" * 10, ("a" * 30, "b" * 30, "c" * 30))]
    start, whole = len(form.encode(data[0].problem, ())), len(form.encode_whole(data[0].problem))
    limit = start + 40
    for step, solution, kinds in (
        (40, limit - whole, [False, True]),
        (41, limit - whole, [True]),
        (40, limit - whole + 1, [False]),
    ):
        args = RowSettings(
            targets="all",
            think=False,
            max_completion_length=step,
            whole_max_completion_length=solution,
        )
        rows = Rows.of(data, form, args, limit, also_whole=True)
        assert [row.whole for row in rows.examples] == kinds
        assert len(rows.prompts) == len(kinds)


@pytest.mark.parametrize("step", ["Add one.", SEVERAL, "a <think>", "a </think> b", "<think>", " "])
@pytest.mark.parametrize("think", [True, False])
def test_what_is_said_of_a_copy_is_what_the_parser_says_of_it(
    byte_tokenizer: PreTrainedTokenizerFast, step: str, think: bool
) -> None:
    form = PromptFormat(byte_tokenizer, system_prompt=None, think=think)
    text = f"<think>hm</think>\n{step}" if think else step
    ids = [*byte_tokenizer.encode(text, add_special_tokens=False), byte_tokenizer.eos_token_id]
    failure = why_uncopyable(step, think=think)
    assert form.parse(ids, False).failure == failure
    assert failure is None or failure in FAILURES


def test_held_out_rows_stop_at_the_number_that_is_asked_for(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    form = PromptFormat(byte_tokenizer, system_prompt=None)
    args = RowSettings(targets="all")
    data = [Trajectory("one", (SEVERAL, *GOOD)), Trajectory("two", GOOD)]
    rows = Rows.of(data, form, args, None, most=2)
    assert [row.expert_step for row in rows.examples] == list(GOOD[:2])
    assert rows.dropped == Counter({"the expert's step reads as several": 1})


def test_the_rows_of_a_long_solution_cost_as_many_readings_as_it_has_steps(
    byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step stands in the prompt of every later one: 125,000 readings, read one by one."""
    form = PromptFormat(byte_tokenizer, system_prompt=None)
    steps = tuple(f"Step {number}." for number in range(500))
    calls = []
    encode = type(byte_tokenizer).encode

    def counted(self: PreTrainedTokenizerFast, *args: object, **kwargs: object) -> list[int]:
        calls.append(args)
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(type(byte_tokenizer), "encode", counted)
    rows = Rows.of([Trajectory("p", steps)], form, RowSettings(targets="all"), None)
    assert len(rows.examples) == 500
    assert len(calls) < 10 * 500
    text = byte_tokenizer.decode(rows.prompts[-1])
    assert text == "p\n\n" + "".join(f"{step}\n\n" for step in steps[:-1])


def test_a_real_run_counts_them_too(tmp_path: Path) -> None:
    from environments import LoadReport
    from srl.commands.check_data import check_data, render

    data = [Trajectory("one", (SEVERAL, *GOOD), answer="3"), Trajectory("two", GOOD, answer="3")]
    check = check_data(data, LoadReport(rows=2, kept=2), max_pairs=2)
    assert check.uncopyable == {"the expert's step reads as several": 1}
    assert "no training row: the expert's step reads as several  1" in render(check)


class Last(Environment):
    """Its policy reads the last step alone."""

    def context(self, trajectory: Trajectory, steps: Sequence[Step]) -> Sequence[Step]:
        return steps[-1:]


def test_rows_behind_one_that_has_outgrown_the_context_are_counted_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    encode = PromptFormat.encode_example

    def count(self: PromptFormat, example: StepExample) -> list[int]:
        asked.append(example.step_index)
        return encode(self, example)

    monkeypatch.setattr(PromptFormat, "encode_example", count)
    steps = tuple(f"Step {number}." for number in range(20_000))
    form = PromptFormat(build_tokenizer(), system_prompt=None)
    args = RowSettings(targets="all", max_completion_length=50)
    rows = Rows.of([Trajectory("p", steps), Trajectory("q", ("a", "b"))], form, args, 1000)
    assert rows.dropped == {"too long for the policy's context": 20_002 - len(rows.examples)}
    assert [one.expert_step for one in rows.examples][-2:] == ["a", "b"]
    assert len(asked) == len(rows.examples) + 1


def test_a_context_that_does_not_grow_is_read_to_the_end() -> None:
    form = PromptFormat(build_tokenizer(), system_prompt=None)
    args = RowSettings(targets="all", max_completion_length=50)
    steps = ("One.", "z" * 25, "Two.", "Three.")
    windowed = Trajectory("p", steps, environment=Last())
    rows = Rows.of([windowed], form, args, 75)
    assert [one.expert_step for one in rows.examples] == ["One.", steps[1], "Three."]


def test_the_adapter_for_trl_leaves_out_what_no_copy_is_paid_for() -> None:
    steps = ("a <think> b", "1. **A** b\n2. **C** d", "Fine.")
    found = adapt(
        [Trajectory("p", steps)], {"similarity": 1.0}, build_tokenizer(), targets="all",
        system_prompt=None,
    )  # fmt: skip
    assert found.dataset["expert_step"] == ["Fine."]
