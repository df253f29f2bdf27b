"""What a model was trained on is found through its run folders, and is never a new problem."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import train
from rich.console import Console

from srl.commands.cli import main
from srl.config.experiment import load_experiment
from srl.data.splits import load_splits
from srl.evaluation.contamination import stages_of

SFT = {"method": "sft", "lora": None}
CONFIG = ["--config", "config.yaml"]


def stage(home: Path, name: str, model: str | Path, **changes: object) -> str:
    """A run that has ended, as far as its folder tells; returns its policy."""
    values = yaml.safe_load((home / "config.yaml").read_text()) | {"model": str(model)} | changes
    if values.get("method") == "sft":
        del values["num_generations"]
    folder = home / "runs" / name
    shutil.copytree(yaml.safe_load((home / "config.yaml").read_text())["model"], folder / "policy")
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return f"runs/{name}/policy"


def evaluate(*words: str) -> int:
    return main(["eval", *words, "--solve_max_steps", "1", "--test_rows", "0"])


def test_stages_are_found_from_the_last_to_the_first(home: Path, toy_policy: Path) -> None:
    one = stage(home, "one", toy_policy)
    two = stage(home, "two", one)
    assert [run.name for run in stages_of(two)] == ["two", "one"]
    assert [run.name for run in stages_of("runs/two/checkpoint-12")] == ["two", "one"]
    assert [run.name for run in stages_of("runs/two/adapter")] == ["two", "one"]
    for other in ("runs/two", "runs/two/policies", str(toy_policy), "Qwen/Qwen2.5-0.5B", ""):
        assert list(stages_of(other)) == []
    elsewhere = home / "elsewhere"  # an adapter that was taken out of its folder
    elsewhere.mkdir()
    words = {"base_model_name_or_path": two, "peft_type": "LORA"}
    (elsewhere / "adapter_config.json").write_text(json.dumps(words))
    (elsewhere / "adapter_model.safetensors").touch()
    assert [run.name for run in stages_of("elsewhere")] == ["two", "one"]
    # The way back ends at a run whose folder has gone, and that is said.
    shutil.rmtree("runs/one")
    said: list[str] = []
    assert [run.name for run in stages_of(two, said.append)] == ["two"]
    assert said == [
        "not checked: what runs/one/policy was trained on; its run's config.yaml is not there"
    ]
    assert list(stages_of("runs/frist/policy", said.append)) == []  # the model itself is missing
    assert len(said) == 1
    stage(home, "round", "runs/round/policy")
    assert [run.name for run in stages_of("runs/round/policy")] == ["round"]


def test_problems_of_any_stage_are_refused(
    home: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = stage(home, "first", toy_policy, **SFT)
    second = stage(home, "second", first, seed=7, **SFT)
    own = load_splits(load_experiment("config.yaml"), Console(quiet=True))
    seen = {one.problem_id for one in own.train}
    other = load_splits(load_experiment("config.yaml", ["--seed", "7"]), Console(quiet=True))
    shared = sum(one.problem_id in seen for one in other.test)
    assert shared > 0

    # Stage two's own test problems, most of which stage one was trained on
    message = (
        rf"{shared} of the 8 problems to solve were trained on in runs/first; keep that run's "
        r"data, its data_seed \(42\) and its validation_problems \(4\), .* the 8 it held out"
    )
    for words in (["--run", "second"], ["--model", second, *CONFIG, "--data_seed", "7"]):
        assert evaluate(*words) == 2
        assert re.search(message, capsys.readouterr().err), words
    # Before stage three is trained
    assert train("--model", first, "--seed", "7", name="third") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not Path("runs/third").exists()
    # The last stage is asked first, by its log where it has one
    test = [one.problem_id for one in own.test]
    assert evaluate("--model", second, *CONFIG) == 2
    assert "trained on in runs/second; keep that run's data, its data_seed (7)" in (
        capsys.readouterr().err
    )
    assert evaluate("--model", first, *CONFIG) == 0
    assert not seen & {*test}
    # What only picks the checkpoint is told: it is not measured.
    words = ["--seed", "7", "--test_problems", "0", "--max_steps", "1"]
    other = load_splits(load_experiment("config.yaml", words), Console(quiet=True))
    told = sum(one.problem_id in seen for one in other.validation)
    assert told > 0
    assert train("--model", first, *words, name="fourth") == 0
    assert (
        f"{told} of the 4 validation problems were trained on in runs/first: the checkpoint that "
        "they pick may be one that remembers"
    ) in capsys.readouterr().out


def test_a_benchmark_is_asked_and_told_what_was_trained_on(
    home: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = stage(home, "first", toy_policy, **SFT)
    splits = load_splits(load_experiment("config.yaml"), Console(quiet=True))
    rows = [*splits.train[:3], *splits.test[:2]]
    Path("mine.jsonl").write_text(
        "".join(json.dumps({"problem": one.problem, "answer": one.answer}) + "\n" for one in rows)
    )
    words = ["--whole_max_completion_length", "12", "--whole_system_prompt", "null"]
    words += ["--use_cpu", "true", "--samples", "0", "--reward_workers", "1"]
    for model, seen in ((policy, {"mine": {"runs/first": 3}}), (str(toy_policy), {})):
        name = f"bench{len(seen)}"
        bench = ["eval", "--model", model, "--bench", "mine.jsonl", "--run-name", name, *words]
        assert main(bench) == 0
        summary = json.loads(Path(f"runs/{name}/summary.json").read_text())
        assert summary["trained on"] == seen
        assert summary["benchmarks"]["mine"]["solutions"] == 5
        told = "3 of the 5 problems of mine were trained on in runs/first: what is solved"
        assert (told in capsys.readouterr().out) is bool(seen)


def test_a_stage_whose_data_is_gone_is_named(
    home: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"source": "files", "path": "gone.jsonl"}
    policy = stage(home, "first", toy_policy, data=gone, log_completions=False)
    assert evaluate("--model", policy, *CONFIG) == 0
    shown = capsys.readouterr().out
    assert "not checked: whether runs/first trained on these problems: gone.jsonl" in shown


def test_without_a_log_of_rollouts_all_it_could_train_on_counts(
    home: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = stage(home, "first", toy_policy, log_completions=False)
    assert evaluate("--model", policy, *CONFIG, "--test_problems", "30") == 2
    assert "18 of the 30 problems to solve were trained on" in capsys.readouterr().err
    assert train("--model", policy, "--test_problems", "0", "--max_steps", "1", "--eval_strategy",
                 "no", "--seed", "7", name="second") == 0  # fmt: skip
