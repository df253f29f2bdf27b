"""Step rewards through the command line: a user's own in a run, `score`, `play`, `check-data`."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from conftest import TOY_STEPS, read_jsonl, refused, train

from srl.commands.cli import main

# A rollout is hit if its step is not the one on the row that rewards are tried on.
MINE = f"""
import os
import time

FIRST = {TOY_STEPS[0]!r}


def vowels(step):
    return sum(map(step.action.count, "aeiou")) / 10


def only_later(step):
    return None if step.step_index == 0 else 1.0


def in_batches(steps):
    return [len(step.action) / 10 for step in steps]


def raises(step):
    if step.action != step.expert_step:
        raise KeyError("colour")
    return 1.0


def gives_nan(step):
    return 1.0 if step.action == step.expert_step else float("nan")


def sleeps(step):
    if step.action == {TOY_STEPS[2]!r}:
        time.sleep(60)
    return 1.0


def slow(step):
    time.sleep(0.2)
    return 1.0


def prints(step):
    print("from the reward")
    return 1.0


def forks(step):
    return 1.0 if os.fork() else 2.0


def always_slow(step):
    time.sleep(60)


class Bonus:
    def __init__(self, word: str, amount: float = 1.0):
        self.word, self.amount = word, amount

    def __call__(self, step):
        return self.amount * (self.word in step.action)
"""

QUICK = ("--test_problems", "0", "--max_steps", "2", "--eval_strategy", "no")


@pytest.fixture
def mine(home: Path) -> Path:
    (home / "mine.py").write_text(MINE)
    return home


def test_a_reward_of_ones_own_is_in_every_log(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bonus = '{name: "mine.py:Bonus", weight: 0.0, options: {word: red, amount: 2}}'
    words = ["--rewards.mine.py:vowels", "0.5", "--rewards.mine.only_later", "0"]
    words[2] = "--rewards.mine:only_later"
    words += ["--rewards.mine.py:in_batches", "0", "--rewards.red", bonus]
    assert train("--rewards.similarity", "1", *words, "--max_steps", "2") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert re.search(
        r"rewards, tried on an expert's step: similarity x 1 \(1 in .* ms\), ", shown.out
    )
    assert re.search(
        r"vowels x 0\.5 \([\d.]+ in .* ms\), only_later x 0 \(does not apply", shown.out
    )
    records = read_jsonl(mine / "runs/one/steps.jsonl")
    valid = [record for record in records if record["format_failure"] is None]
    assert len(valid) > 20
    for record in valid:
        rewards = record["rewards"]
        assert list(rewards) == ["similarity", "vowels", "only_later", "in_batches", "red"]
        assert rewards["vowels"] == sum(map(record["action"].count, "aeiou")) / 10
        assert rewards["only_later"] == (None if record["step_index"] == 0 else 1.0)
        assert rewards["in_batches"] == len(record["action"]) / 10
        assert rewards["red"] == 2.0 * ("red" in record["action"])
        assert record["reward"] == rewards["similarity"] + 0.5 * rewards["vowels"]
    assert any(record["rewards"]["red"] for record in valid)
    metrics = [line for line in read_jsonl(mine / "runs/one/metrics.jsonl") if "reward" in line]
    assert all(0 < line["rewards/vowels"] < 1 for line in metrics)
    summary = json.loads((mine / "runs/one/summary.json").read_text())
    assert 0 < summary["after"]["held-out steps: vowels"]["value"] < 1
    capsys.readouterr()
    assert main(["inspect", "one", "--phase", "all"]) == 0
    mean = sum(record["rewards"]["vowels"] for record in valid) / len(valid)
    assert re.search(rf"^vowels +{mean:.3f}  ", capsys.readouterr().out, re.MULTILINE)
    # The run's own config finds it again.
    assert main(["eval", "--run", "one"]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "raises",
            r"'raises' raised KeyError: 'colour' \(mine.py, line \d+\) at step . of . of problem",
        ),
        ("gives_nan", "'gives_nan' returned nan at step .*; return a finite float, or None"),
    ],
)
def test_a_reward_that_fails_stops_the_run(
    mine: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    reward = f"--rewards.mine.py:{name}"
    assert train("--rewards.similarity", "1", reward, "0", *QUICK) == 1
    shown = capsys.readouterr()
    assert re.search(f"^srl: step reward {message}", shown.err)
    assert "Traceback" not in shown.err
    again = shlex.split(shown.err.strip().partition("to try again: ")[2])
    assert shutil.which(again[0]) == sys.executable
    assert again[1:5] == ["-m", "srl", "score", f"runs/one.failed.{name}.jsonl"]
    # What the message says to type reproduces it.
    assert main(again[3:]) == 1
    again_shown = capsys.readouterr()
    assert name in again_shown.out
    assert re.search("raised KeyError|returned nan", again_shown.out)
    # And the name is free again. Once the reward does not fail, nothing is left of the failure; a
    # file of somebody's beside it stays, whatever its name.
    notes = Path("runs/one.failed.my-notes.jsonl")
    notes.write_text("{}\n")
    file = mine / "mine.py"
    file.write_text(file.read_text() + f"\n\ndef {name}(step):\n    return 0.5\n")
    assert train("--rewards.similarity", "1", reward, "0", *QUICK) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["one", notes.name]


@pytest.mark.parametrize("name", ["raises", "gives_nan"])
def test_or_the_failure_is_recorded_and_counted(
    mine: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = [f"--rewards.mine.py:{name}", "0.5", "--reward_errors", "record"]
    assert train("--rewards.similarity", "1", *words, *QUICK) == 0
    records = read_jsonl(mine / "runs/one/steps.jsonl")
    valid = [record for record in records if record["format_failure"] is None]
    wrong = [record for record in valid if record["action"] != record["expert_step"]]
    assert {record["rewards"][name] for record in wrong} == {None}
    assert all(record["reward"] == record["rewards"]["similarity"] for record in wrong)
    assert {r["rewards"][name] for r in valid if r not in wrong} == {1.0}
    metrics = read_jsonl(mine / "runs/one/metrics.jsonl")
    assert sum(line.get(f"reward_errors/{name}", 0) for line in metrics) == len(wrong) > 0


def test_a_reward_that_sleeps_is_stopped_and_the_run_goes_on(mine: Path) -> None:
    words = ["--rewards.mine.py:sleeps", "0.5", "--reward_deadline", "0.6"]
    assert train("--rewards.similarity", "1", *words, *QUICK, "--max_steps", "1") == 0
    records = [r for r in read_jsonl(mine / "runs/one/steps.jsonl") if r["format_failure"] is None]
    asleep = [record for record in records if record["rewards"]["sleeps"] is None]
    assert [record["action"] for record in asleep] == [TOY_STEPS[2]] * len(asleep)
    metrics = read_jsonl(mine / "runs/one/metrics.jsonl")
    assert sum(line.get("reward_deadlines/sleeps", 0) for line in metrics) == len(asleep) > 0


def test_a_slow_reward_is_announced(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rewards.mine.py:slow", "0", "--reward_workers", "2", "--max_steps", "1"]
    assert train("--rewards.similarity", "1", *QUICK, *words) == 0
    assert re.search(r"slow: slow will take about 2 s of every step", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["prints", "forks"])
def test_a_reward_that_prints_or_forks_spoils_nothing(
    mine: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    assert train("--rewards.similarity", "1", f"--rewards.mine.py:{name}", "0", *QUICK) == 0
    shown = capfd.readouterr()
    assert len(re.findall(r"^step \d/2  reward ", shown.out, re.MULTILINE)) == 2
    assert "from the reward" not in shown.out
    assert ("from the reward" in shown.err) == (name == "prints")
    records = read_jsonl(mine / "runs/one/steps.jsonl")
    assert len(records) == len({(r["train_step"], r["group_id"], r["rollout"]) for r in records})
    assert {r["rewards"][name] for r in records if r["format_failure"] is None} == {1.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rewards.mine.py:vowel", "1"], "mine.py has no 'vowel'; it has: vowels, .*'vowels'"),
        (["--rewards.mine.py", "1"], "for a function of your own write mine.py:NAME"),
        (["--rewards.gone.py:f", "1"], "there is no file gone.py in"),
        (["--rewards.mine.py:always_slow", "1"], "did not answer within 2 s.*raise reward_dead"),
        (["--rewards.mine.py:Bonus", "1"], "making it with {} raised TypeError: .*'word'"),
        (
            ["--rewards.red", '{name: "mine.py:Bonus", weight: 1, options: {wort: red}}'],
            "no option 'wort'; it has word, amount; did you mean 'word'",
        ),
        (
            ["--rewards.similarity", "{options: {unit: word}}"],
            "it has no weight; give a number, or",
        ),
        (["--reward_deadline", "0"], "reward_deadline is 0.0; give seconds"),
        (["--reward_workers", "0"], "reward_workers is 0; it must be 1 or more"),
        (["--reward_errors", "ignore"], "reward_errors is 'ignore'; allowed: stop, record"),
    ],
)
def test_wrong_rewards_are_refused(
    mine: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    reward = ["--rewards.similarity", "1", "--reward_deadline", "2"]
    refused(capsys, train(*reward, *words), message)


# ---- score ---------------------------------------------------------------------------


PAIR = ["score", "--action", "3 * 4 = 13", "--expert", "3 * 4 = 12"]


def test_score_of_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PAIR, "--previous", "2 + 2 = 4"]) == 0
    shown = capsys.readouterr().out
    for name in ("similarity", "indel", "progress", "novelty", "equation", "format", "length"):
        assert re.search(rf"^{name} .*\d\.\d\d\d\d", shown, re.MULTILINE), name
    assert re.search(r"^similarity +│ +0\.9000 │ +1$", shown, re.MULTILINE)
    assert re.search(r"^equation +│ +0\.0000", shown, re.MULTILINE)
    assert re.search(r"^answer +│ does not apply", shown, re.MULTILINE)
    assert "policy  3 * 4 = 13\nexpert  3 * 4 = 12\n        =========\n" in shown


def test_score_as_json_with_rewards_of_ones_choice(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rewards.mine.py:vowels", "0.5", "--rewards.similarity", "2", "--json"]
    assert main([*PAIR, *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "rewards": {"vowels": 0.0, "similarity": 0.9},
        "reward": 1.8,
        "lift": None,
        "failures": {},
    }


def test_score_of_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--action", "The answer is 1/2.", "--expert", "So x is 1/2.", "--answer", "0.5"]
    assert main(["score", *words, "--rewards.answer", "1"]) == 0
    assert re.search(r"^answer +│ +1\.0000", capsys.readouterr().out, re.MULTILINE)


def test_score_of_an_old_run_with_a_new_reward(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--rewards.similarity", "1", *QUICK) == 0
    capsys.readouterr()
    words = ["score", "runs/one/steps.jsonl", "--rewards.similarity", "1"]
    assert main([*words, "--rewards.mine.py:vowels", "1e-1", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    records = read_jsonl(mine / "runs/one/steps.jsonl")
    valid = [record for record in records if record["format_failure"] is None]
    assert [t["rewards"]["similarity"] for t in told] == [r["rewards"]["similarity"] for r in valid]
    assert [t["lift"] for t in told] == [r["metrics"]["lift"] for r in valid]
    assert [records[t["line"] - 1] for t in told] == valid
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"{len(valid)} steps of runs/one/steps.jsonl" in shown
    assert f"{len(records) - len(valid)} completions broke the format" in shown
    assert "A run's log holds no problems" in shown
    # Nothing is optimised here: a weight of 0 is as good as any.
    assert main([*words[:2], "--rewards.mine.py:vowels", "0"]) == 0


@pytest.mark.parametrize(
    ("words", "line", "message"),
    [
        ([], None, "give a file of steps, or one step with --action and --expert"),
        (["rows.jsonl", "--action", "a", "--expert", "b"], "{}", "give a file of steps, or one"),
        (["--action", "a"], None, "give a file of steps, or one step"),
        (["gone.jsonl"], None, "cannot read gone.jsonl: No such file"),
        (["rows.jsonl"], "{", "rows.jsonl, line 1: not JSON"),
        (["rows.jsonl"], "[1]", "line 1: a record is a JSON object, not .1"),
        (["rows.jsonl"], '{"action": "a"}', "expert_step is None; a row needs the text"),
        (["rows.jsonl"], '{"action": 1, "expert_step": "b"}', "action is 1; a row needs"),
        (
            ["rows.jsonl"],
            '{"action": "a", "expert_step": "b", "previous_steps": "c"}',
            "previous_steps is 'c'; it must be a list of texts",
        ),
        (
            ["rows.jsonl"],
            '{"action": "a", "expert_step": "b", "step_index": 3, "num_steps": 2}',
            "step_index is 3 of num_steps 2; steps count from 0",
        ),
        (["rows.jsonl"], "", "rows.jsonl has no steps to score"),
        (["rows.jsonl", "--rewards.similarty", "1"], "{}", "no step reward is called 'similarty'"),
        (["rows.jsonl", "--colour", "red"], "{}", "unknown words: --colour red"),
        (
            ["--rewards.similarity", "1", "rows.jsonl"],
            "{}",
            "'rows.jsonl' is not an option",
        ),
        (["--rewards.equation=1", "rows.jsonl"], "{}", "'rows.jsonl' is not an option"),
        (["rows.jsonl", "--deadline", "0"], "{}", "deadline of rewards is 0.0; give seconds"),
    ],
)
def test_score_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    line: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if line is not None:
        Path("rows.jsonl").write_text(line + "\n")
    refused(capsys, main(["score", *words]), message)


def test_hostile_text_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--action", "\x1b[31mred\u202e[bold]", "--expert", "[link=x]r\x07ed"]
    assert main(["score", *words, "--rewards.similarity", "1"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[31mred" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "\\u{1b}" in shown
    assert "[bold]" in shown.replace(" ", "")


# ---- play ----------------------------------------------------------------------------


def test_play(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = f"{TOY_STEPS[0]}\n:skip\nno idea\\\nat all\n:next\n{TOY_STEPS[0]}\n:quit\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert main(["play", "--config", "config.yaml", "--rewards.mine.py:vowels", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("problem: case ") == 3
    assert len(re.findall(r"^vowels +│ +0\.4000", shown, re.MULTILINE)) == 2
    assert f"step> expert: {TOY_STEPS[1]}" in shown
    assert "noidea⏎atall" in shown.replace(" ", "")  # gaps where the expert has more
    assert re.search(r"3 steps played, mean reward 0\.\d\d\d$", shown.splitlines()[-1])


def test_play_ends_with_its_input(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["play", "--config", "config.yaml"]) == 0
    assert capsys.readouterr().out.endswith("0 steps played\n")


def test_play_refuses(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["play", "--config", "config.yaml", "--rewards.similarty", "1"]
    refused(capsys, main(words), "rewards: no step reward is called 'similarty'")


# ---- check-data ----------------------------------------------------------------------


def test_check_data_shows_every_reward(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "data.jsonl", "--rewards.mine.py:vowels", "0"]) == 0
    shown = capsys.readouterr().out
    for name in ("similarity", "equation", "answer", "vowels"):
        assert re.search(rf"^{name} +\d+ ", shown, re.MULTILINE), name
    assert "answers that verify" in shown
    assert main(["check-data", "data.jsonl", "--rewards.mine.py:raises", "0"]) == 0
    capsys.readouterr()
    always = "def fails(step): raise ValueError\n"
    Path("always.py").write_text(always)
    assert main(["check-data", "data.jsonl", "--rewards.always.py:fails", "0"]) == 1
    shown = capsys.readouterr()
    assert re.search(r"^fails +0 .* FAILED on \d+$", shown.out, re.MULTILINE)
    assert "srl: rewards that failed: fails" in shown.err
    words = ["check-data", "data.jsonl", "--rewards.mine.py:vowel", "0"]
    refused(capsys, main(words), "mine.py has no 'vowel'")
