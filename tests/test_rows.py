"""One rule for every method: rows that no copy could be paid for in full are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import build_tokenizer, toy_config, toy_model

from environments import Environment, Step, Trajectory
from rewards import RewardSum
from srl.config.parts import RowSettings
from srl.data import encoding
from srl.data.prompts import PromptFormat
from srl.data.rows import Rows
from srl.data.steps import StepExample
from srl.errors import UsageError
from srl.evaluation import held_out
from srl.rollout.samplers import make_sampler
from srl.training.sft import ExpertRows
from srl.trl_adapter import adapt

CASES = "Cases:\n1. **even** 2k\n2. **odd** 2k + 1"
GOOD = Trajectory("good", ("So 4.", "It is 4."))
BAD = Trajectory("bad", ("a <think> b", "a </think> b", CASES, "z" * 100, "Fine."))
DROPPED = {
    "the expert's text breaks the policy's format (repeated_tag)": 2,
    "the expert's step reads as several": 1,
    "the expert's step is longer than max_completion_length 60": 1,
}
KEPT = ["So 4.", "It is 4.", "Fine."]


def _rows(examples: Sequence[StepExample]) -> list[str]:
    return [one.expert_step for one in examples]


@pytest.mark.parametrize("opens", [False, True], ids=["plain", "the prompt opens the thought"])
def test_every_method_and_the_held_out_figures_leave_the_same_rows_out(
    opens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}<think>" if opens else None
    tokenizer = build_tokenizer(chat_template=template)
    form = PromptFormat(tokenizer, system_prompt=None)
    args = toy_config(tmp_path, targets="all", max_completion_length=60)
    data = [GOOD, BAD]
    for rows in (Rows.of(data, form, args, 999), ExpertRows.of(data, form, args, 999)):
        assert (_rows(rows.examples), rows.dropped) == (KEPT, DROPPED)
    seen: list[list[str]] = []

    def note(
        _sampler: object, _form: object, examples: list[StepExample], *_: object, **__: object
    ):
        seen.append(_rows(examples))
        raise InterruptedError

    monkeypatch.setattr(held_out, "sample_rollouts", note)
    sampler = make_sampler(toy_model(tokenizer), pad_id=0, settings=args)
    with pytest.raises(InterruptedError):
        held_out._steps(sampler, form, data, args, RewardSum({"similarity": 1.0}), 999)
    assert seen == [KEPT]
    for_trl = adapt(data, {"similarity": 1.0}, tokenizer, targets="all", system_prompt=None)
    assert for_trl.dataset["expert_step"] == [*KEPT[:2], "z" * 100, "Fine."]


def test_without_thoughts_any_tag_is_one_too_many() -> None:
    form = PromptFormat(build_tokenizer(), system_prompt=None, think=False)
    args = RowSettings(targets="all", think=False, max_completion_length=60)
    rows = Rows.of([BAD], form, args, None)
    assert rows.dropped["the expert's text breaks the policy's format (unexpected_tag)"] == 2


def test_the_longest_step_that_can_be_written_is_kept() -> None:
    form = PromptFormat(build_tokenizer(), system_prompt=None)
    needed = len("<think></think>\nSo 4.") + 1  # one token a byte, and the end
    for limit, kept in ((needed, ["So 4."]), (needed - 1, [])):
        args = RowSettings(max_completion_length=limit)
        assert _rows(Rows.of([GOOD], form, args, None).examples) == kept


def test_a_whole_solution_is_paid_for_its_answer_however_the_expert_wrote_it() -> None:
    form = PromptFormat(build_tokenizer(), system_prompt=None)
    args = RowSettings(targets="whole", whole_max_completion_length=10)
    assert len(Rows.of([BAD], form, args, None).examples) == 1


# ---- long trajectories --------------------------------------------------------------------------


class Last(Environment):
    """Its policy reads the last step alone."""

    def context(self, trajectory: Trajectory, steps: Sequence[Step]) -> Sequence[Step]:
        return steps[-1:]


def test_long_trajectories_cost_no_more_than_the_rows_that_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = tuple(f"Step {number}." for number in range(20_000))
    encoded: Counter[str] = Counter()
    ids = encoding.TextEncoder.ids

    def count(self: encoding.TextEncoder, text: str) -> list[int]:
        encoded["texts"] += 1
        return ids(self, text)

    monkeypatch.setattr(encoding.TextEncoder, "ids", count)
    form = PromptFormat(build_tokenizer(), system_prompt=None)
    args = RowSettings(targets="all", max_completion_length=50)
    rows = Rows.of([Trajectory("p", steps), GOOD], form, args, 1000)
    assert rows.dropped == {"too long for the policy's context": 20_002 - len(rows.examples)}
    assert _rows(rows.examples)[-2:] == ["So 4.", "It is 4."]
    assert encoded["texts"] < 1000


def test_a_context_that_does_not_grow_is_read_to_the_end() -> None:
    form = PromptFormat(build_tokenizer(), system_prompt=None)
    args = RowSettings(targets="all", max_completion_length=50)
    steps = ("One.", "z" * 100, "Two.", "Three.")
    rows = Rows.of([Trajectory("p", steps, environment=Last())], form, args, 120)
    assert _rows(rows.examples) == ["One.", "Three."]
    with pytest.raises(UsageError, match=r"no row fits: .* shortest prompt takes 3 "):
        Rows.of([Trajectory("p", steps)], form, args, 50)
