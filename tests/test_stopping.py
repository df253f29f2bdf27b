"""Runs that signals stop, at any time, what is said about going on, and going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import same_weights, train, weights

from srl.commands.cli import main
from srl.models.loading import load_policy
from srl.training.progress import ProgressReport

ROOT = Path(__file__).resolve().parent.parent

# Holds the first update until there is a file `go`.
LOSS = """
import time
from pathlib import Path

import torch


def waiting(inputs, scale):
    log = Path("runs/stopped/steps.jsonl")
    while log.is_file() and log.stat().st_size and not Path("go").exists():
        time.sleep(0.01)
    losses = -inputs.advantages[:, None] * inputs.log_probs
    return torch.where(inputs.mask, losses, 0).sum() / scale.num_tokens, {}
"""


def until(path: Path) -> None:
    """Waits until there is something in a file."""
    end = time.monotonic() + 120
    while not (path.is_file() and path.stat().st_size):
        assert time.monotonic() < end, path
        time.sleep(0.02)


def test_sigterm_saves_and_the_resumed_run_equals_an_uninterrupted_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "loss.py").write_text(LOSS)
    words = ["--max_steps", "2", "--save_steps", "100", "--test_problems", "0"]
    words += ["--eval_strategy", "no", "--loss_type", "loss.py:waiting"]
    words += ["--gradient_checkpointing", "true"]  # by a name that newer libraries warn of
    named = ["--config", "config.yaml", "--run-name", "stopped"]
    process = subprocess.Popen(
        [sys.executable, "-W", "error::FutureWarning", "-m", "srl", "train", *named, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    until(home / "runs/stopped/steps.jsonl")
    process.send_signal(signal.SIGTERM)
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("stopping after this step") for line in lines)
    process.send_signal(signal.SIGTERM)  # schedulers repeat it
    (home / "go").touch()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (143, "")
    assert "saved; go on with: make resume RUN=stopped" in out
    run = home / "runs" / "stopped"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]

    assert main(["resume", "stopped"]) == 0
    assert train(*words, name="straight") == 0
    straight = home / "runs" / "straight"
    assert (run / "steps.jsonl").read_bytes() == (straight / "steps.jsonl").read_bytes()
    one, two = (weights(load_policy(str(path / "policy"))[0]) for path in (run, straight))
    assert same_weights(one, two)


@pytest.mark.parametrize(
    ("place", "code"), [("srl.commands.train._save_policy", signal.SIGHUP),
                        ("srl.evaluation.held_out.judged", signal.SIGUSR1)],
)  # fmt: skip
def test_a_signal_behind_the_last_step(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    code: int,
) -> None:
    """While the policy is saved, and while its attempts are judged: what was trained is kept."""

    def stopped(*args: object, **kwargs: object) -> None:
        signal.raise_signal(code)

    words = ["--max_steps", "2", "--test_before", "false", "--eval_strategy", "no"]
    with monkeypatch.context() as patch:
        patch.setattr(place, stopped)
        assert train(*words) == 128 + code
    assert capsys.readouterr().err == (
        "srl: stopped. Go on from checkpoint-2 with: make resume RUN=one\n"
    )
    assert main(["resume", "one"]) == 0
    assert (home / "runs/one/summary.json").is_file()


@pytest.mark.parametrize("by_make", [False, True])
def test_what_was_killed_before_a_checkpoint_is_started_again_as_it_was(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, by_make: bool
) -> None:
    """With its config and its settings, whatever signs there are in them."""
    from srl.runs.folder import RunFolder

    run = RunFolder.create(Path("runs"), "one")
    prompt = "it's\n$5" if not by_make else "it's $5"
    options = ["--system_prompt", prompt, "--seed=3"]
    argv = [sys.executable, "-m", "srl", "train", "--config", "a.yaml", "--run-name", "one"]
    run.write_start({"model": "x", "data": {"source": "word_problems"}}, [*argv, *options])
    run.add_command([sys.executable, "-m", "srl", "resume", "one"])
    monkeypatch.setenv("SRL_STARTED_BY", "make" if by_make else "")
    assert main(["resume", "one"]) == 2
    command = capsys.readouterr().err.partition("another name: ")[2].strip()
    if by_make:
        assert command.startswith("make train CONFIG=a.yaml RUN=one-2 ARGS='--system_prompt ")
        (home / "Makefile").write_text("train:\n\t@printf '%s|' --config $(CONFIG) $(ARGS)\n")
        shell = command
        shown = ["--config", "a.yaml", *options]
    else:
        shell = command.replace(f"{sys.executable} -m srl train", "printf '%s|'")
        shown = ["--config", "a.yaml", *options, "--run-name", "one-2"]
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.split("|")[:-1] == shown


# ---- resumed as if nothing had been, or refused --------------------------------------------------


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, *, times: int = 1) -> None:
    """Ctrl-C while a step is being made."""

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step + 1 == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressReport, "on_step_begin", on_step_begin, raising=False)


def test_ctrl_c_saves_and_resume_goes_on_as_if_nothing_had_been(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    assert train(name="straight") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert train(name="stopped") == 130
    assert signal.getsignal(signal.SIGINT) is handler
    shown = capsys.readouterr()
    assert "stopping after this step" in shown.out
    assert "saved; go on with: make resume RUN=stopped" in shown.out
    run = home / "runs" / "stopped"
    assert (run / "checkpoint-3" / "srl_state.json").is_file()
    assert not (run / "summary.json").exists()

    assert main(["resume", "stopped"]) == 0
    straight = home / "runs" / "straight"
    for log in ("steps.jsonl", "problems.jsonl"):
        assert (run / log).read_bytes() == (straight / log).read_bytes()
    one, two = (weights(load_policy(str(path / "policy"))[0]) for path in (run, straight))
    assert same_weights(one, two)
    summaries = [yaml.safe_load((path / "summary.json").read_text()) for path in (run, straight)]
    for name in ("before", "after", "steps", "tokens_written"):
        assert summaries[0][name] == summaries[1][name]
    assert (run / "command.txt").read_text().count("resume stopped") == 1

    capsys.readouterr()
    assert main(["resume", "stopped"]) == 2
    assert "is complete: it has a summary.json" in capsys.readouterr().err


def test_ctrl_c_twice_stops_at_once(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    interrupt_at(monkeypatch, 3, times=2)
    assert train() == 130
    said = "srl: stopped. Go on from checkpoint-2 with: make resume RUN=one\n"
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGINT) is handler
    assert (home / "runs/one/checkpoint-2").is_dir()
    assert not (home / "runs/one/checkpoint-3").exists()


def test_ctrl_c_before_the_first_step_leaves_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(*args: object, **kwargs: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("srl.evaluation.held_out.solve_step_by_step", interrupted)
    assert train() == 130
    again = f"{sys.executable} -m srl train --config config.yaml --run-name one"
    said = f"srl: stopped. No checkpoint was saved yet. Start again with: {again}\n"
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list((home / "runs").iterdir())


def test_resume_with_other_settings_lists_them(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert train() == 130
    capsys.readouterr()
    changes = ["--max_steps", "3", "--data.limit", "40"]
    assert main(["resume", "one", *changes]) == 2
    shown = capsys.readouterr().err
    assert "max_steps: 4 -> 3" in shown
    assert "data.limit: (not set) -> 40" in shown
    assert "--accept-changes" in shown
    assert main(["resume", "one", *changes, "--accept-changes"]) == 0
    assert yaml.safe_load((home / "runs/one/summary.json").read_text())["steps"] == 3


def test_changes_that_were_accepted_are_kept(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in ([], ["--max_steps", "5", "--accept-changes"]):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 4 if words else 2)
            assert (main(["resume", "one", *words]) if words else train()) == 130
    config = home / "runs/one/config.yaml"
    assert yaml.safe_load(config.read_text())["max_steps"] == 5
    refused_words = ["--data.path", "gone.jsonl", "--accept-changes"]
    assert main(["resume", "one", *refused_words]) == 2
    assert yaml.safe_load(config.read_text())["data"]["path"] == "data.jsonl"  # not half-changed
    assert main(["resume", "one"]) == 0  # as the program said
    assert yaml.safe_load((home / "runs/one/summary.json").read_text())["steps"] == 5


def test_resume_refuses_what_is_no_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "nothing"]) == 2
    assert "runs/nothing is not a run folder: no such folder" in capsys.readouterr().err
    assert train("--save_strategy", "'no'", "--test_problems", "0") == 0
    run = home / "runs" / "one"
    (run / "summary.json").unlink()
    assert main(["resume", "one"]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
    (run / "checkpoint-4").mkdir()
    assert main(["resume", "one"]) == 2
    shown = capsys.readouterr().err
    assert "has no checkpoint to go on from" in shown
    assert "checkpoint-4: it has no manifest.json" in shown
