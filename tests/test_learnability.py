"""Learnability: each figure beside one worked out by hand, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch
from conftest import read_jsonl, refused, toy_config, toy_trajectories
from test_mixed_runs import SOURCES, mixed, write  # noqa: F401, a fixture

from environments.types import Trajectory
from rewards import RewardSum
from rewards.similarity import similarity
from srl.commands.cli import main
from srl.data.rows import Rows
from srl.data.steps import build_examples
from srl.evaluation.learnability import attempt_rows, bands, figures_of, unrelated_steps
from srl.logs.report.learnability import COLUMNS
from srl.models.loading import load_policy, prompt_format
from srl.rollout.samplers import make_sampler
from srl.runs.records import finite


@pytest.mark.parametrize("think", [True, False])
def test_figures_are_those_worked_out_by_hand(
    toy_policy: Path, tmp_path: Path, think: bool
) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    args = toy_config(tmp_path, targets="all", think=think)
    form = prompt_format(model, tokenizer, args)
    rows = Rows.of(toy_trajectories(6), form, args, None)
    sampler = make_sampler(model, pad_id=int(tokenizer.pad_token_id), settings=args)
    rewards = RewardSum({"similarity": 1.0})
    found = attempt_rows(model, sampler, form, rows, args, rewards, samples=8, epsilon=0.05, seed=3)
    assert len(found) == 18
    model.eval()
    for one, prompt in zip(found, rows.prompts, strict=True):
        step = tokenizer.encode(one.example.expert_step, add_special_tokens=False)
        before = tokenizer.encode("<think></think>\n", add_special_tokens=False) if think else []
        ids = [*prompt, *before, *step]
        with torch.no_grad():
            every = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(ids) - len(step)
        by_hand = [every[start + i - 1, token].item() for i, token in enumerate(step)]
        assert one.log_probs == pytest.approx(by_hand, abs=1e-4)
        assert len(one.rollouts) == 8
        values = [
            similarity(each.parsed.action, one.example.expert_step)
            for each in one.rollouts
            if each.parsed.failure is None
        ]
        assert (one.similarity is None) == (not values)
        assert not values or one.similarity == pytest.approx(fmean(values))
        earned = [each.reward for each in one.rollouts]
        assert one.is_kept == (one.std > 0.05)
        assert one.std == pytest.approx(
            math.sqrt(fmean((value - fmean(earned)) ** 2 for value in earned))
        )
    figures = figures_of(found)
    tokens = [fmean(p < math.log(0.01) for p in one.log_probs) for one in found]
    assert figures["unlikely"].value == pytest.approx(fmean(tokens))
    assert figures["kept"].value == pytest.approx(fmean(one.is_kept for one in found))
    assert sum(len(part) for _, part in bands(found)) == 18
    assert figures["log_prob"].low < figures["log_prob"].value < figures["log_prob"].high
    problems = {one.example.problem_id for one in found}
    assert len(problems) == 6
    few = {*list(problems)[:4]}
    figures = figures_of([one for one in found if one.example.problem_id in few])
    assert math.isnan(figures["log_prob"].low)
    assert math.isnan(figures["log_prob"].high)
    assert figures["kept"].low < figures["kept"].high  # of shares the rows say something
    shown = next(one for one in COLUMNS if one.name == "log_prob").shown
    for figure in (figures["log_prob"].to_json(), finite(figures["log_prob"].to_json())):
        assert shown(figure) == f"{figures['log_prob'].value:.2f} [too few]"


def test_unrelated_steps_are_of_other_problems_and_as_long() -> None:
    examples = []
    for number in range(40):
        steps = tuple(chr(97 + number) * length for length in (5, 50, 500))
        examples.append(Trajectory(f"p{number}", steps))
    rows = build_examples(examples, targets="all")
    for row, others in zip(rows, unrelated_steps(rows, 0), strict=True):
        assert len(others) == 8
        own = {step.text for step in row.trajectory.steps}
        for other in others:
            assert other not in own
            assert 0.4 < len(other) / len(row.expert_step) < 2.5


def learnability(*words: str, name: str = "look") -> int:
    return main(["learnability", "--config", "config.yaml", "--run-name", name, *words])


def test_the_command(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert learnability("--samples", "4", "--rows", "10") == 0
    shown = capsys.readouterr().out
    assert "what could be learned from each source" in shown
    run = mixed / "runs" / "look"
    what = json.loads((run / "learnability.json").read_text())
    assert list(what["sources"]) == ["long", "short"]
    records = read_jsonl(run / "steps.jsonl")
    for name, of in what["sources"].items():
        own = [one for one in records if one["source"] == name]
        assert 5 < of["all"]["steps"] == len(own) / 4 <= 10
        assert of["all"]["kept"]["value"] == pytest.approx(fmean(bool(one["kept"]) for one in own))
        assert sum(cell["steps"] for cell in of["by_step_index"].values()) == len(own) / 4
        assert of["all"]["log_prob"]["value"] == pytest.approx(
            fmean(one["metrics"]["log_prob"] for one in own)  # type: ignore[index]
        )
        value, low, high = (of["all"]["log_prob"][part] for part in ("value", "low", "high"))
        if len({one["problem_id"] for one in own}) < 5:
            assert low is high is None
        else:
            assert low <= value <= high < 0
    held_out = {one["problem_id"] for one in records}
    assert main(["train", "--config", "config.yaml", "--run-name", "t"]) == 0
    trained = {one["problem_id"] for one in read_jsonl(mixed / "runs/t/steps.jsonl")}
    assert not held_out & {
        one["problem_id"]
        for one in read_jsonl(mixed / "runs/t/steps.jsonl")
        if one["phase"] == "train"
    }
    assert trained
    page = (run / "learnability.html").read_text()
    assert "<svg" in page
    assert "groups kept by step index" in page
    capsys.readouterr()
    assert main(["inspect", "look", "--by", "source"]) == 0
    assert "unlikely" in capsys.readouterr().out


def test_a_source_whose_attempts_all_earn_the_same_keeps_no_group(mixed: Path) -> None:  # noqa: F811
    (mixed / "mine.py").write_text(
        "def only_short(step):\n"
        "    return len(step.action) % 7 if step.source == 'short' else 0.0\n"
    )
    words = ["--rewards", "{'mine.py:only_short': 1}", "--format_failure_reward", "0"]
    assert learnability("--rows", "12", *words) == 0
    sources = json.loads((mixed / "runs/look/learnability.json").read_text())["sources"]
    assert sources["long"]["all"]["kept"]["value"] == 0.0
    assert sources["short"]["all"]["kept"]["value"] > 0.3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--samples", "1"), "--samples is 1; it must be 2 or more"),
        (("--rows", "0"), "--rows is 0"),
        (("--validation_problems", "0", "--test_problems", "0"), "there are no held-out problems"),
    ],
)
def test_what_is_refused(
    mixed: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    refused(capsys, learnability(*words), message)
