"""A resumed run goes on with the data, the code and the model that it was started with."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import train, write_config
from rich.console import Console

from srl.commands import inputs
from srl.commands.cli import main
from srl.commands.inputs import changes_since_start, inputs_of, versions_since_start
from srl.config.experiment import load_experiment
from srl.data.splits import Splits, load_splits
from srl.runs.folder import RunFolder, write_json
from srl.training.progress import ProgressReport

REWARD = "from words import GOOD\n\n\ndef mine(step):\n    return float(step.action in GOOD)\n"
LOSS = """
import torch


def plain(inputs, scale):
    losses = -inputs.advantages[:, None] * inputs.log_probs
    return torch.where(inputs.mask, losses, 0).sum() / scale.num_tokens, {}
"""


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """While this is entered, a file reads otherwise."""
    before = path.read_bytes()
    text = before.decode()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        yield
    finally:
        path.write_bytes(before)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM while a step is being made."""

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step + 1 == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ProgressReport, "on_step_begin", on_step_begin, raising=False)


def test_a_resume_names_what_has_changed(
    home: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(toy_policy, home / "base")
    (home / "mine.py").write_text(REWARD)
    (home / "words.py").write_text("GOOD = ('add the red box',)\n")
    (home / "loss.py").write_text(LOSS)
    write_config(
        home / "config.yaml", model="base", loss_type="loss.py:plain", test_before=False,
        rewards={"similarity": 1.0, "mine.py:mine": 0.5}, eval_strategy="no",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        assert train("--max_steps", "2") == 143
    run = home / "runs" / "one"
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    kept = json.loads((run / "inputs.json").read_text())
    assert kept["data"].keys() == {"train", "validation", "test"}
    assert kept["code"].keys() == {"mine.py", "words.py", "loss.py"}
    capsys.readouterr()
    with (
        edited(home / "data.jsonl", "multiply", "then multiply"),
        edited(home / "mine.py", "float", "0.0 * float"),
        edited(home / "words.py", "red", "blue"),
        edited(home / "loss.py", "-inputs", "-2 * inputs"),
        edited(base / "tokenizer_config.json", "{", '{"x": 1,'),
    ):
        (base / "chat_template.jinja").write_text("{{ messages }}")
        assert main(["resume", "one", "--trust-code"]) == 2
    (base / "chat_template.jinja").unlink()
    said = capsys.readouterr().err
    assert re.findall(r"^  (\w+: .*)$", said, re.MULTILINE) == [
        "data: test has changed",
        "data: train has changed",
        "data: validation has changed",
        "code: loss.py has changed",
        "code: mine.py has changed",
        "code: words.py has changed",
        "model: base/chat_template.jinja is new",
        "model: base/tokenizer_config.json has changed",
    ]
    assert "add --accept-changes" in said
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    # What was accepted is what the run is from then on.
    with edited(home / "data.jsonl", "multiply", "then multiply"):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 2)
            assert main(["resume", "one", "--max_steps", "3", "--accept-changes"]) == 143
        assert "data: train has changed" in capsys.readouterr().out
        assert main(["resume", "one"]) == 0
    assert json.loads((run / "inputs.json").read_text())["data"] != kept["data"]


def test_a_reworded_test_problem_and_other_versions(home: Path) -> None:
    """Of test problems, which no row is trained on, every word counts too."""
    experiment = load_experiment("config.yaml")
    splits = load_splits(experiment, Console())
    run = RunFolder.create(Path("runs"), "one")
    run.write_start({}, [])
    write_json(run.inputs, inputs_of(experiment, splits))
    assert changes_since_start(run, inputs_of(experiment, splits)) == []
    first = splits.test[0]
    reworded = type(first)(f"{first.problem}?", first.steps, first.answer, first.source)
    other = Splits(splits.train, splits.validation, [reworded, *splits.test[1:]])
    found = changes_since_start(run, inputs_of(experiment, other))
    assert found == ["data: test has changed"]
    assert versions_since_start(run) is None
    environment = json.loads(run.environment.read_text())
    environment["packages"]["torch"] = "1.0"
    write_json(run.environment, environment)
    assert "torch 1.0 -> " in str(versions_since_start(run))


def test_a_model_of_the_hub_and_an_adapter_on_it(
    home: Path, toy_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared is what lies in the cache."""
    cache = shutil.copytree(toy_policy, home / "snapshot")
    known = {"owner/name": str(cache / "config.json")}
    monkeypatch.setattr(inputs, "try_to_load_from_cache", lambda name, file: known.get(name))
    adapter = home / "adapter"
    adapter.mkdir()
    words = {"base_model_name_or_path": "owner/name", "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(words))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    before = inputs._model("adapter")
    assert {"adapter/adapter_model.safetensors", "owner/name/model.safetensors"} <= before.keys()
    (cache / "model.safetensors").write_bytes(b"others")
    after = inputs._model("adapter")
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["owner/name/model.safetensors"]
    assert inputs._model("owner/other") == {}
