"""Runs that were killed, damaged, moved or deleted, or diverged: as a user meets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import read_jsonl, refused, same_weights, toy_config, toy_trajectories, train, weights
from transformers import TrainerCallback

import srl.commands.train
from srl.commands.cli import main
from srl.errors import DivergedError, RunError
from srl.models.loading import load_policy
from srl.runs.checkpoints import checkpoints, damage
from srl.training.progress import ProgressReport
from srl.training.trainer import SRLTrainer

LOGS = ("steps.jsonl", "problems.jsonl", "eval.jsonl")
TIMES = ("seconds", "runtime", "per_second")
STRAIGHT = ("--load_best_model_at_end", "true", "--metric_for_best_model", "eval_reward")


def whole_metrics(run: Path) -> list[dict[str, object]]:
    return [
        {name: value for name, value in line.items() if not any(word in name for word in TIMES)}
        for line in read_jsonl(run / "metrics.jsonl")
    ]


def check_equal(run: Path, straight: Path) -> None:
    """What a run leaves is what an uninterrupted one leaves, to the last bit, times aside."""
    for log in LOGS:
        assert (run / log).read_bytes() == (straight / log).read_bytes(), log
    assert whole_metrics(run) == whole_metrics(straight)
    one, two = (weights(load_policy(str(path / "policy"))[0]) for path in (run, straight))
    assert same_weights(one, two)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (run, straight)]
    for name in ("before", "after", "steps", "tokens_written", "best_metric"):
        assert summaries[0][name] == summaries[1][name]
    newest = [checkpoints(path)[-1] for path in (run, straight)]
    states = [torch.load(path / "optimizer.pt")["state"] for path in newest]
    assert states[0].keys() == states[1].keys()
    for key, state in states[1].items():
        assert all(value.equal(states[0][key][name]) for name, value in state.items())
    names = [sorted(path.name for path in folder.iterdir()) for folder in (run, straight)]
    assert names[0] == names[1]


def stop_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The process dies before a step."""

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step + 1 == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressReport, "on_step_begin", on_step_begin, raising=False)


def test_a_damaged_checkpoint_of_a_moved_run_is_passed_over(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*STRAIGHT, "--save_steps", "1", "--eval_steps", "1", "--greater_is_better", "false")
    words = (*words, "--learning_rate", "1e-2")
    assert train(*words, name="straight") == 0
    with monkeypatch.context() as patch:
        stop_before(patch, 4)
        assert train(*words) == 130
    moved = home / "elsewhere" / "moved"
    shutil.copytree("runs/one", moved)
    shutil.rmtree("runs/one")
    best = {
        path.name: json.loads((path / "trainer_state.json").read_text())["best_model_checkpoint"]
        for path in checkpoints(moved)
    }
    first = "runs/one/checkpoint-1"  # of the path it had
    assert best == {"checkpoint-1": first, "checkpoint-3": first}

    (moved / "checkpoint-3" / "optimizer.pt").unlink()
    shutil.copytree(moved, "alone")
    capsys.readouterr()
    assert main(["resume", str(moved)]) == 0
    shown = capsys.readouterr().out
    assert f"passed over {moved}/checkpoint-3: optimizer.pt is missing" in shown
    check_equal(moved, home / "runs" / "straight")
    assert str(moved) in json.loads((moved / "summary.json").read_text())["best_checkpoint"]

    for path in checkpoints(Path("alone"))[:-1]:
        shutil.rmtree(path)
    left = {path: path.stat().st_mtime_ns for path in Path("alone").rglob("*")}
    assert main(["resume", "./alone"]) == 2
    assert "has no checkpoint to go on from" in capsys.readouterr().err
    assert left == {path: path.stat().st_mtime_ns for path in Path("alone").rglob("*")}


def test_a_kill_after_the_training_leaves_nothing_twice_and_nothing_half(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(name="straight") == 0
    run = home / "runs" / "one"

    def killed_at(name: str, when: Callable[..., bool]) -> None:
        done = getattr(srl.commands.train, name)

        def or_die(*args: object) -> object:
            if when(*args):
                raise KeyboardInterrupt
            return done(*args)

        monkeypatch.setattr(srl.commands.train, name, or_die)

    with monkeypatch.context() as monkeypatch:
        killed_at("put_in_place", lambda *_: True)
        assert train() == 130
        assert not (run / "policy").exists()
        capsys.readouterr()
        assert main(["eval", "--run", "one", "--test_problems", "2"]) == 0
        rows = (run / "eval.jsonl").read_bytes().splitlines(keepends=True)
        kept = [row for row in rows if b'"when": "eval"' not in row]
        (run / "eval.jsonl").write_bytes(b"".join(kept))
    with monkeypatch.context() as monkeypatch:
        killed_at("write_json", lambda path, _: path.name == "summary.json")
        assert main(["resume", "one"]) == 130
    assert {row["when"] for row in read_jsonl(run / "eval.jsonl")} == {"before", "after"}
    assert main(["resume", "one"]) == 0
    check_equal(run, home / "runs" / "straight")


def test_figures_from_before_that_are_damaged(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_before(monkeypatch, 3)
    assert train("--test_problems", "0", "--eval_strategy", "'no'") == 130
    path = home / "runs" / "one" / "before.json"
    logs = (home / "runs" / "one" / "steps.jsonl").read_bytes()
    for text in ('{"a', "[]", "\0", None):
        path.unlink() if text is None else path.write_text(text)
        capsys.readouterr()
        assert main(["resume", "one"]) == 2
        shown = capsys.readouterr().err
        assert "before.json" in shown
        assert "Restore it" in shown
        assert (home / "runs" / "one" / "steps.jsonl").read_bytes() == logs


# ---- what must not be saved ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"learning_rate": 1e38},
        {"learning_rate": 1e38, "eval_strategy": "no"},
        {"targets": "whole", "rewards": {"answer": 1.0}, "whole_max_completion_length": 24},
        {"method": "sft"},
        {"method": "sft", "eval_strategy": "no"},
    ],
    ids=["srl", "srl, finite weights", "srl, unseen", "rlvr", "sft", "sft, unseen"],
)
def test_a_training_that_diverges_keeps_its_last_good_checkpoint(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: dict[str, object],
) -> None:
    """The rate leaps after the second step."""
    values = yaml.safe_load((home / "config.yaml").read_text())
    values |= {"test_problems": 0, "save_steps": 1, "eval_steps": 1, "format_failure_reward": -1}
    values |= {"lr_scheduler_type": "constant", "save_total_limit": 1, "max_steps": 6, **words}
    values |= {"dynamic_sampling": False, "validation_problems": 2}
    if words.get("method") == "sft":
        for name in ("num_generations", "dynamic_sampling", "format_failure_reward"):
            del values[name]
    leap = float(values.pop("learning_rate")) if "learning_rate" in words else 1e30
    (home / "config.yaml").write_text(yaml.safe_dump(values))

    def on_step_begin(self, args, state, control, optimizer, **_):  # type: ignore[no-untyped-def]
        if state.global_step == 2:
            for group in optimizer.param_groups:
                group["lr"] = leap

    monkeypatch.setattr(ProgressReport, "on_step_begin", on_step_begin, raising=False)
    assert train() == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, shown
    assert "training stops after step 3 (loss" in shown
    assert "gradient norm" in shown
    assert "not finite" in shown or "has diverged" in shown
    assert "Lower learning_rate (now" in shown
    there = checkpoints(home / "runs" / "one")
    assert f"The last good checkpoint: {there[-1].relative_to(home)}" in shown
    assert [damage(path) for path in there] == [None]
    policy, _ = load_policy(str(there[-1]))
    assert all(bool(value.isfinite().all()) for value in policy.parameters())
    assert not (home / "runs" / "one" / "policy").exists()


def test_a_loss_that_is_no_number_before_any_update(toy_policy: Path, tmp_path: Path) -> None:
    trainer = SRLTrainer(str(toy_policy), toy_config(tmp_path), toy_trajectories(20))
    trainer.loss = lambda *_: (torch.tensor(float("nan"), requires_grad=True), {})  # type: ignore[assignment]
    with pytest.raises(DivergedError, match=r"before any update: .*Look at the model, the data"):
        trainer.train()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("inf"))
    with pytest.raises(DivergedError, match="weights are not finite"):
        trainer.save_model(str(tmp_path / "policy"))
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("setting", ["save_only_model", "enable_jit_checkpoint"])
def test_checkpoints_that_nothing_could_go_on_from_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    refused(capsys, train(f"--{setting}", "true"), f"{setting} is True; leave it at False")


# ---- what cannot be written ----------------------------------------------------------------------


def test_a_folder_deleted_under_a_run_ends_it(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_step_begin(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == 1:
            shutil.rmtree(args.output_dir)

    monkeypatch.setattr(ProgressReport, "on_step_begin", on_step_begin, raising=False)
    assert train("--test_problems", "0") == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, shown
    assert "is gone" in shown
    assert not (home / "runs" / "one").exists()


def test_a_disk_that_is_full_keeps_the_last_good_checkpoint(
    toy_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):  # type: ignore[no-untyped-def]
            if state.global_step == 1:
                monkeypatch.setattr(torch, "save", no_space)

    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    args = toy_config(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer = SRLTrainer(str(toy_policy), args, toy_trajectories(20), callbacks=[Full()])
    with pytest.raises(RunError, match=r"checkpoint-2 could not be saved .*No space.*point-1$"):
        trainer.train()
    assert args.save_total_limit == 1
    assert [damage(path) is None for path in checkpoints(tmp_path)] == [True, False]
    monkeypatch.undo()
    again = SRLTrainer(str(toy_policy), args, toy_trajectories(20))
    with pytest.warns(UserWarning, match=r"passed over .*checkpoint-2: it has no manifest"):
        again.train(resume_from_checkpoint=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]
