"""Whole runs as a user starts them, and every way to start them wrongly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import (
    TOY_STEPS,
    read_jsonl,
    refused,
    same_weights,
    toy_model,
    toy_tokenizer,
    train,
    weights,
)
from rich.console import Console

from srl.commands.cli import main
from srl.config.experiment import load_experiment
from srl.data.splits import Splits, load_splits
from srl.errors import UsageError
from srl.models.loading import load_policy
from srl.stats import paired_change

ROOT = Path(__file__).resolve().parent.parent


# ---- a whole run -------------------------------------------------------------------------------


def test_what_is_printed_is_what_is_recorded(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--solve_samples", "2", "--solve_whole", "true") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    run = home / "runs" / "one"
    assert {path.name for path in run.iterdir()} == {
        "checkpoint-2",
        "checkpoint-4",
        "command.txt",
        "config.yaml",
        "environment.json",
        "eval.jsonl",
        "inputs.json",
        "metrics.jsonl",
        "policy",
        "problems.jsonl",
        "steps.jsonl",
        "summary.json",
    }
    assert "40 of 40 rows kept; 28 trajectories to train on, 4 to validate, 8 to test" in shown.out
    assert "84 rows; 4 prompts x 4 rollouts = 16 completions a step" in shown.out
    assert len(re.findall(r"^step \d/4  reward ", shown.out, re.MULTILINE)) == 4

    summary = yaml.safe_load((run / "summary.json").read_text())
    assert summary["steps"] == 4
    attempts = read_jsonl(run / "eval.jsonl")
    assert len(attempts) == 2 * 2 * 8 * 3  # before and after, two modes, problems, samples
    for when in ("before", "after"):
        for mode, words in (("steps", "step by step"), ("whole", "whole solution")):
            chosen = [a for a in attempts if (a["when"], a["mode"]) == (when, mode)]
            greedy = [a["correct"] for a in chosen if a["sample"] == 0]
            drawn = [a["correct"] for a in chosen if a["sample"] != 0]
            for label, hits in ((f"{words}, greedy", greedy), (f"{words}, sampled", drawn)):
                figure = summary[when][label]
                assert figure["n"] == 8
                assert figure["value"] == pytest.approx(sum(hits) / len(hits))  # type: ignore[arg-type]
                assert figure["low"] <= figure["value"] <= figure["high"]
    line = next(line for line in shown.out.splitlines() if " step by step, greedy " in line)
    for when in ("before", "after"):
        figure = summary[when]["step by step, greedy"]
        assert f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}," in line
    said = next(line for line in shown.out.splitlines() if line.startswith("changed, problem by"))
    for mode, words in (("steps", "step by step"), ("whole", "whole solution")):
        solved = [
            {
                a["problem_id"]
                for a in attempts
                if (a["when"], a["mode"], a["sample"]) == (when, mode, 0) and a["correct"]
            }
            for when in ("before", "after")
        ]
        change = paired_change(len(solved[1] - solved[0]), len(solved[0] - solved[1]), 8)
        value, low, high = (100 * part for part in (change.value, change.low, change.high))
        assert f"{words}, greedy {value:+.1f} [{low:+.1f}, {high:+.1f}]" in said
    tokens = sum(int(m.get("tokens", 0)) for m in read_jsonl(run / "metrics.jsonl"))  # type: ignore[call-overload]
    rollouts = [r for r in read_jsonl(run / "steps.jsonl") if r["phase"] == "train"]
    assert summary["tokens_written"] == tokens
    assert tokens == sum(int(r["completion_tokens"]) for r in rollouts)  # type: ignore[call-overload]


def test_held_out_problems_are_never_trained_on(home: Path) -> None:
    assert train("--max_steps", "6") == 0
    trained = {
        record["problem_id"]
        for record in read_jsonl(home / "runs/one/steps.jsonl")
        if record["phase"] == "train"
    }
    validated = {
        record["problem_id"]
        for record in read_jsonl(home / "runs/one/steps.jsonl")
        if record["phase"] == "eval"
    }
    tested = {attempt["problem_id"] for attempt in read_jsonl(home / "runs/one/eval.jsonl")}
    assert (len(validated), len(tested)) == (4, 8)
    assert not trained & validated
    assert not trained & tested
    assert not validated & tested


def test_a_run_that_taught_nothing_says_so(
    home: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--dynamic_sampling_epsilon", "9", "--max_empty_steps", "99", "--eval_strategy", "no")
    assert train(*words, "--test_problems", "0") == 0
    assert "no group was kept in any of 4 steps" in capsys.readouterr().out
    assert same_weights(
        *(weights(load_policy(str(path))[0]) for path in ("runs/one/policy", toy_policy))
    )
    assert train("--test_problems", "0", name="two") == 0
    assert "no group was kept" not in capsys.readouterr().out


def test_a_run_is_no_model_and_its_policy_is_named(home: Path) -> None:
    assert train("--test_problems", "0") == 0
    with pytest.raises(UsageError, match="no model folder 'runs/nothing'"):
        load_policy("runs/nothing")
    with pytest.raises(UsageError, match="no config.json; the run's policy is runs/one/policy"):
        load_policy("runs/one")


def test_fewer_problems_to_train_on_leave_the_held_out_ones_as_they_are(home: Path) -> None:
    def splits(count: int, *, seed: int = 0) -> Splits:
        words = ["--train_problems", str(count), "--seed", str(seed), "--data_seed", "7"]
        return load_splits(load_experiment("config.yaml", words), Console(quiet=True))

    everything, few, more = splits(0), splits(3), splits(9, seed=1)
    assert (len(few.train), len(more.train)) == (3, 9)
    names = {one.problem_id for one in more.train}
    assert {one.problem_id for one in few.train} < names
    assert names < {one.problem_id for one in everything.train}
    for other in (few, more):
        assert (other.validation, other.test) == (everything.validation, everything.test)
    with pytest.raises(UsageError, match="train_problems is 999, but 28 of the data's 40 distinct"):
        splits(999)


def test_the_saved_policy_is_the_trained_one(home: Path, toy_policy: Path) -> None:
    assert train("--bf16", "true", "--test_problems", "0") == 0
    saved = weights(load_policy("runs/one/policy")[0])
    last = weights(load_policy("runs/one/checkpoint-4")[0])
    assert same_weights(saved, last)
    assert not same_weights(saved, weights(load_policy(str(toy_policy))[0]))
    assert {value.dtype for value in saved.values()} == {torch.float32}


def test_eval_and_inspect(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    summary = yaml.safe_load(Path("runs/one/summary.json").read_text())
    capsys.readouterr()
    assert main(["eval", "--run", "one"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    figure = summary["after"]["step by step, greedy"]
    line = next(line for line in shown.out.splitlines() if " step by step, greedy " in line)
    assert f"{100 * figure['value']:.1f} [" in line
    assert sum(a["when"] == "eval" for a in read_jsonl(home / "runs/one/eval.jsonl")) == 8

    model = ["--model", "runs/one/policy"]
    assert main(["eval", *model, "--config", "config.yaml", "--test_problems", "5"]) == 0
    assert re.search(r"step by step, greedy\s+│\s+5 ", capsys.readouterr().out)

    assert main(["inspect", "one", "--step", "2", "--limit", "3"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"^reward +-?\d\.\d{3}  ", shown.out, re.MULTILINE)
    assert "The newest 3 of" in shown.out
    assert any(step[:12] in shown.out for step in TOY_STEPS)


def test_eval_refuses_problems_that_the_run_trained_on(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    capsys.readouterr()
    assert main(["eval", "--run", "one", "--test_problems", "30"]) == 2
    message = capsys.readouterr().err
    assert re.search(r"\d+ of the 30 problems to solve were trained on in .*one; keep", message)
    assert main(["eval", "--run", "one", "--test_problems", "4"]) == 0


@pytest.mark.parametrize("metric", ["eval_reward", "accuracy"])
def test_checkpoints_that_validation_cannot_tell_apart(
    home: Path, capsys: pytest.CaptureFixture[str], metric: str
) -> None:
    """They are one policy: nothing is learned at a rate of 0."""
    words = ["--load_best_model_at_end", "true", "--learning_rate", "0"]
    assert train(*words, "--metric_for_best_model", metric) == 0
    assert re.search(
        rf"^policy of step 2, the best on validation: {metric} -?\d\.\d{{3}}; so has step 4, and "
        r"the first is kept: more validation_problems, or another metric_for_best_model, may",
        capsys.readouterr().out,
        re.MULTILINE,
    )


def test_eval_of_a_policy_without_format_shows_no_nan(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--think", "false"]  # the policy thinks all the same
    model = yaml.safe_load(Path("config.yaml").read_text())["model"]
    assert main(["eval", "--model", model, "--config", "config.yaml", *words]) == 0
    shown = capsys.readouterr()
    assert "nan" not in shown.out.lower()
    assert re.search(r"format failures\s+│\s+24 │\s+100\.0 ", shown.out)


def test_the_nearest_config_and_run_are_named(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "laptop.yaml").touch()
    refused(capsys, main(["train", "--config", "labtop.yaml"]), r", such as laptop\.yaml$")
    (home / "runs/first").mkdir(parents=True)
    (home / "runs/first/config.yaml").touch()
    assert main(["resume", "frist"]) == 2
    assert "Runs in runs: first; did you mean first?" in " ".join(capsys.readouterr().err.split())


def test_a_small_config_trains_any_model_on_any_file(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, model = (ROOT / "experiments" / name for name in ("gsm8k/laptop.yaml", "tiny/base"))
    words = ["--config", str(config), "--model", str(model), "--save_strategy", "no"]
    words += ["--data", "{source: files, path: data.jsonl}", "--run-name", "one"]
    short = ["--whole_max_completion_length", "50", "--solve_max_steps", "2"]
    assert main(["train", *words, "--max_steps", "1", "--test_problems", "2", *short]) == 0
    assert json.loads((home / "runs/one/summary.json").read_text())["after"]


def test_check_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "data.jsonl"]) == 0
    assert "exactly 1.0 for every step" in capsys.readouterr().out
    with Path("data.jsonl").open("a") as file:
        file.write('{"problem": "case 9", "steps": []}\n')
    assert main(["check-data", "data.jsonl", "--limit", "100"]) == 0
    assert re.search(r"no steps\s+1$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothere.jsonl"], "nothere.jsonl: no such file"),
        (["gsm9k"], "unknown source 'gsm9k'.*Did you mean 'gsm8k'"),
        (["data.jsonl", "--colour", "red"], "has no option 'colour'"),
        (["data.jsonl", "--limit"], "--limit has no value; write --limit VALUE"),
        (["data.jsonl", "--limit", "[1"], "cannot be read"),
    ],
)
def test_check_data_refuses(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    refused(capsys, main(["check-data", *words]), message)


# ---- failures at run time ----------------------------------------------------------------------


def test_nothing_to_train_on_is_a_failure_with_records(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dynamic_sampling_epsilon", "5", "--max_empty_steps", "2", "--test_problems", "0"]
    assert train(*words) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("srl: nothing to train on: for 2 steps in a row")
    assert read_jsonl(home / "runs/one/steps.jsonl")


# ---- wrong use ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "what"), [(["resume", "--max_steps", "3", "one"], "RUN"),
                        (["check-data", "--limit", "10", "gsm8k"], "DATA")],
)  # fmt: skip
def test_a_name_stands_before_the_options(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the first option's value would be taken for it."""
    assert main(words) == 2
    assert f"write {what} first: python -m srl {words[0]} {what} --key value" in (
        capsys.readouterr().err
    )


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--config", "c.yaml", "--seed", "1"]) == 2
    assert "unknown words: --seed 1; did you mean --seeds?" in capsys.readouterr().err


def test_what_a_message_names_cannot_steer_the_terminal(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "runs" / "\x1b[2J").mkdir(parents=True)
    (home / "runs" / "\x1b[2J" / "config.yaml").touch()
    for words in (["resume", "gone"], ["inspect", "gone"], ["resume", "\x1b]0;x\x07"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert r"Runs in runs: \u{1b}[2J" in said
        assert said.replace("\n", "").isprintable()


def test_a_used_name_is_never_overwritten(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    assert train() == 2
    shown = capsys.readouterr().err
    assert "runs/one is in use and is never overwritten" in shown
    assert "make resume RUN=one" in shown
    assert "RUN=one-2" in shown
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "summary.json").write_text("{}")
    assert train() == 2
    shown = capsys.readouterr().err
    assert "runs/one is complete" in shown
    assert "inspect" not in shown  # it has no steps to look at
    (folder / "steps.jsonl").touch()
    assert train() == 2
    shown = capsys.readouterr().err
    assert "make inspect RUN=one" in shown
    assert "resume" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "unknown key 'learning_rat'; did you mean learning_rate"),
        (["--num_generations", "lots"], "num_generations is 'lots' .str.; .*type int"),
        (["--num_generations", "1"], "num_generations is 1; it must be 2 or more: a group of 1"),
        (["--loss_type", "ppo"], "loss_type is 'ppo'; allowed: grpo, dapo, dr_grpo"),
        (["--data.path", "gone.jsonl"], "gone.jsonl: no such file"),
        (["--data.path", "12"], "data.path is 12; give a file"),
        (["--data.source", "gsm9k"], "unknown source 'gsm9k'"),
        (["--model", "nowhere/at/all"], "no model folder 'nowhere/at/all'"),
        (["--template", "chat"], "no chat template; give template: plain"),
        (["--micro_batch_tokens", "5"], "micro_batch_tokens is 5, but one completion may take 13"),
        (["--rollout_token_budget", "20"], "rollout_token_budget is 20.*may take 52"),
        (["--prompts_per_step", "100"], "84 training rows, fewer than prompts_per_step 100"),
        (
            ["--validation_problems", "32"],
            "validation_problems 32 and test_problems 8 leave nothing to train on: the data has 40 "
            "distinct problems; try --validation_problems 4 --test_problems 8",
        ),
        (["--validation_problems", "0"], "no validation problems.*eval_strategy to no"),
        (["--max_completion_length", "64"], "no row fits: the policy's context is 64 tokens"),
        (["--rewards.similarty", "1"], "no step reward is called 'similarty'.*did you mean"),
        (["--rewards.similarity", "much"], "weight of step reward 'similarity' is 'much'"),
        (["--rewards.similarity", "0"], "nothing to optimise"),
        (["--rewards", "similarity"], "rewards is 'similarity'; give names with weights"),
        (["--load_best_model_at_end", "true"], "metric_for_best_model.*allowed: eval_accuracy"),
        (
            ["--load_best_model_at_end", "true", "--eval_strategy", "'no'"],
            "config.yaml: --load_best_model_at_end requires",
        ),
        (["--eval_strategy", "sometimes"], "sometimes is not a valid|allowed"),
        (["--report_to", "a_notebook"], "a_notebook is not supported"),
        (["--max_steps"], "--max_steps has no value"),
        (["extra"], "'extra' is not an option"),
        (["--output_dir", "data.jsonl"], "cannot write the run folder"),
    ],
)
def test_wrong_settings(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    refused(capsys, train(*words), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "data.jsonl holds no rows"),
        ('{"problem": "a", "steps": ["b", "c"]}\n{"problem": \n', "data.jsonl, line 2: malformed"),
        ("[1]\n", "data.jsonl, line 1: expected a JSON object"),
        ('{"problem": "a", "steps": []}\n', "none of 1 rows can be used .no steps: 1"),
        ('{"question": "a"}\n', "'problem' is missing from every row"),
    ],
)
def test_data_that_cannot_be_used(
    home: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (home / "data.jsonl").write_text(content, encoding="utf-8")
    refused(capsys, train(), message)


def test_rows_that_cannot_be_used_are_counted(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (home / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"problem": "case 9", "steps": []}\n')
        file.write(f'{{"problem": "case{" 9" * 60}", "steps": ["add", "the answer is 4"]}}\n')
    words = ["--validation_problems", "0", "--test_problems", "0", "--eval_strategy", "'no'"]
    assert train(*words, "--max_steps", "1") == 0
    shown = capsys.readouterr().out
    assert "41 of 42 rows kept, 1 dropped: no steps" in shown
    assert "120 rows (2 dropped: too long for the policy's context)" in shown


def no_end_token(folder: Path) -> str:
    tokenizer = toy_tokenizer(eos=None)
    toy_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return "EOS"


def pickled(folder: Path) -> str:
    tokenizer = toy_tokenizer()
    model = toy_model(tokenizer)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return r"pickled weights only \(pytorch_model.bin\)"


def no_weights(folder: Path) -> str:
    toy_model(toy_tokenizer()).config.save_pretrained(folder)
    return "no weights: model.safetensors is missing"


def no_config(folder: Path) -> str:
    folder.mkdir()
    return "no config.json"


@pytest.mark.parametrize("make", [no_end_token, pickled, no_weights, no_config])
def test_models_that_cannot_be_used(
    home: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], str]
) -> None:
    message = make(home / "model")
    capsys.readouterr()
    refused(capsys, train("--model", "./model"), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no config file config.yaml"),
        ("a: [1", "config.yaml is not YAML"),
        ("just words", "must hold settings"),
        ("data: {source: files}", "model is None; give a model folder"),
        ("model: x", "data is None; give a source"),
    ],
)
def test_configs_that_cannot_be_used(
    home: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    config = home / "config.yaml"
    config.unlink()
    if text is not None:
        config.write_text(text)
    refused(capsys, train(), message)


def test_wrong_names_of_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, train(name="../elsewhere"), "run name '../elsewhere'")
    refused(capsys, main(["inspect", "gone"]), "runs/gone is not a run folder")
    refused(capsys, main(["inspect", "gone", "--colour", "red"]), "unknown words: --colour red")
    meant = r"--rewrad lt:1; did you mean --reward\? All options: python -m srl inspect --help"
    refused(capsys, main(["inspect", "gone", "--rewrad", "lt:1"]), meant)
    refused(capsys, main(["eval", "--model", "x"]), "--model needs --bench NAME, or --config")
    refused(
        capsys,
        main(["eval", "--model", "x", "--config", "config.yaml", "--rewards.none", "1"]),
        "no step reward is called 'none'",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "runs").mkdir(mode=0o500)
    refused(capsys, train(), "cannot write the run folder")


# ---- as a process of its own -------------------------------------------------------------------


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error::FutureWarning", "-m", "srl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )


def test_wrong_use_of_a_process(home: Path) -> None:
    process = start("train", "--config", "gone.yaml")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert err == ("srl: there is no config file gone.yaml; name one with CONFIG=… or --config …\n")


def test_another_python_without_the_packages_says_which_to_use() -> None:
    words = ["-S", "-m", "srl", "score", "--action", "1", "--expert", "1"]  # -S: no site-packages
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "has no package rich" in line
    assert "make setup" in line
