"""`make real`: the shipped comparison for a real model, whole, with a tiny model in its place."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from comparing import Starter, fixture_no_fork_is_left  # noqa: F401, cleans up
from conftest import CHATML, build_tokenizer, read_jsonl, toy_model
from rich.console import Console

from srl.compare.plan import Plan
from srl.compare.plan_file import load_plan
from srl.compare.runner import compare

FILE = Path(__file__).parents[1] / "experiments/real/smollm2.yaml"


def make_model(folder: Path) -> str:
    """A tiny policy with a ChatML template, which writes noise; many a byte ends it."""
    tokenizer = build_tokenizer(
        chat_template=CHATML, eos="<|im_end|>", special=("<|im_start|>",), learn_from=("so 1",)
    )
    model = toy_model(tokenizer)
    model.config.max_position_embeddings = 1024
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(170, 256)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_data(path: Path) -> str:
    """Forty problems as GSM8K writes them."""
    rows = [
        {
            "question": f"Ann has {n} nuts and finds {n + 2}. Half are bad. How many are good?",
            "answer": f"Ann has {n}+{n + 2} = <<{n}+{n + 2}={2 * n + 2}>>{2 * n + 2} nuts.\n"
            f"{2 * n + 2}/2 = <<{2 * n + 2}/2={n + 1}>>{n + 1} are good.\n#### {n + 1}",
        }
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(plan: Plan, start: Starter) -> tuple[int, str]:
    text = io.StringIO()
    code = compare(plan, Console(file=text, width=150), jobs=1, start=start)
    return code, text.getvalue()


def test_the_short_form_runs_whole_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = load_plan(
        FILE, quick=True, model=make_model(tmp_path / "m"), data=make_data(tmp_path / "d.jsonl")
    )
    assert plan.output == Path("runs/real-quick")
    start = Starter()
    code, shown = run(plan, start)
    assert code == 0, shown
    assert start.names == [
        "train gsm8k.cold_start.0",
        "eval gsm8k.base",
        "train gsm8k.srl.0",
        "train gsm8k.more_sft.0",
    ]
    cold = plan.output / "gsm8k.cold_start.0"
    for stage in ("srl", "more_sft"):
        config = (plan.output / f"gsm8k.{stage}.0/config.yaml").read_text()
        assert f"model: {cold}/policy\n" in config
    # Progress while it goes on, and one table of held-out problems and steps at the end.
    assert re.search(r"^  step 4/4 +loss", shown, re.MULTILINE)
    assert re.search(r"^  step 2/2 +reward .*left$", shown, re.MULTILINE)
    table = json.loads((plan.output / "table.json").read_text())
    [part] = table["difficulties"]
    assert part["problems"] == 8
    assert all(cell["held_out_steps"]["format failures"]["n"] for cell in table["cells"].values())
    assert "held-out steps, greedy" in shown
    for cell in plan.cells:
        held_out = read_jsonl(plan.output / cell.name / "eval.jsonl")
        assert {line["problem_id"] for line in held_out} == {
            line["problem_id"] for line in read_jsonl(cold / "eval.jsonl")
        }
    again = Starter()
    assert run(plan, again)[0] == 0
    assert again.asked == []


def test_the_plan_in_full() -> None:
    plan = load_plan(FILE)
    args = {cell.row: cell.experiment.args for cell in plan.cells}
    assert {one.test_problems >= 200 for one in args.values()} == {True}
    assert not any(one.think for one in args.values())
    assert {row.name: row.after for row in plan.rows} == {
        "base": None,
        "cold_start": None,
        "srl": "cold_start",
        "more_sft": "cold_start",
    }
