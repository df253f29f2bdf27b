"""`srl demo` shows one group as training would see it."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from pathlib import Path
from statistics import mean, stdev

import pytest
from conftest import refused

from srl.commands.cli import main

CONFIG = str(Path(__file__).parent.parent / "experiments/tiny/srl.yaml")
FEW = ("--data.limit", "200", "--test_problems", "40", "--validation_problems", "10")


def test_scores_and_advantages_are_those_of_the_steps_that_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(Path(CONFIG).parent / "base")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--config", CONFIG, "--model", model, "--attempts", "3", *FEW]) == 0
    text = capsys.readouterr().out
    [expert] = re.findall(r"to be found\n  (.*)\n", text)
    shown = re.findall(
        r"attempt \d: step,.*\n  (.*)\n.*\n?"
        r"  similarity ([\d.]+); reward ([\d.]+), advantage (\S+)",
        text,
    )
    assert len(shown) == 3
    rewards = [float(reward) for _, _, reward, _ in shown]
    for action, similarity, reward, _ in shown:
        ratio = SequenceMatcher(None, action.strip(), expert.strip(), autojunk=False).ratio()
        assert float(similarity) == float(reward) == pytest.approx(ratio, abs=6e-4)
    assert max(rewards) == 1.0 > min(rewards)
    expected = [(r - mean(rewards)) / stdev(rewards) for r in rewards]
    assert [float(a) for *_, a in shown] == pytest.approx(expected, abs=0.02)
    assert not list(tmp_path.iterdir())


def test_a_group_of_one_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["demo", "--config", "config.yaml", "--attempts", "1"])
    refused(capsys, code, "--attempts is 1; a group has 2 or more")
