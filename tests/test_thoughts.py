"""Thoughts of the policy's own: which are kept, resuming, and fine-tuning on them."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    TOY_SETTINGS,
    TOY_STEPS,
    read_jsonl,
    refused,
    toy_config,
    toy_model,
    toy_tokenizer,
    toy_trajectories,
    write_config,
    write_toy_data,
)
from rich.console import Console

import srl.data.explaining
import srl.training.thoughts
from environments import load_trajectories
from srl.commands.cli import main
from srl.config.experiment import load_experiment
from srl.data.explaining import cut_around, in_thought, with_thought
from srl.data.prompts import PromptFormat
from srl.data.splits import load_splits
from srl.data.steps import build_examples
from srl.models.loading import load_policy
from srl.rollout.samplers import Completion, Prompt, SamplingParams
from srl.training.thoughts import (
    Row,
    ThoughtSettings,
    ThoughtWriter,
)

WORDS = sorted({word for step in TOY_STEPS for word in step.split()})
CONTEXT = 512
SETTINGS: dict[str, object] = {
    "max_completion_length": 24,
    "validation_problems": 4,
    "test_problems": 8,
    "rollout_token_budget": 900,  # some chunks
}
ASK = ("--samples", "3", "--max_thought_length", "8", "--limit", "12", "--instruction", "why")


@pytest.fixture(scope="module", autouse=True)
def _a_short_example() -> Iterator[None]:
    """The product's own are thousands of the toy's tokens, which are bytes."""
    with pytest.MonkeyPatch.context() as patch:
        example = ("case 1", (), TOY_STEPS[0], "so we go on")
        patch.setattr(srl.data.explaining, "EXAMPLES", (example,))
        yield


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder. Its policy answers any prompt with up to eight of the toy's words."""
    tokenizer = toy_tokenizer()
    model = toy_model(tokenizer, context=CONTEXT)
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ends = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    for _ in range(40):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for _ in range(16)]
        rows = [tokenizer.encode(f"step?\n\n {text}", add_special_tokens=False) for text in texts]
        longest = max(map(len, rows)) + 1
        ids = torch.tensor([[*row, ends[0], *[ends[1]] * (longest - len(row) - 1)] for row in rows])
        model(input_ids=ids, labels=ids.masked_fill(ids == ends[1], -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("thinker")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(thinker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, data.jsonl and the run `t`, which has ended."""
    folder = tmp_path_factory.mktemp("finished")
    write_toy_data(folder / "data.jsonl", 40)
    write_config(folder / "config.yaml", model=str(thinker), **SETTINGS)
    with contextlib.chdir(folder):
        assert think() == 0
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with config.yaml and data.jsonl in it."""
    for name in ("config.yaml", "data.jsonl"):
        shutil.copy(finished / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def done(finished: Path, here: Path) -> Path:
    """The folder of the run that has ended."""
    return Path(shutil.copytree(finished / "runs/t", here / "runs/t"))


def think(*words: str, name: str = "t") -> int:
    return main(["thoughts", "--config", "config.yaml", "--run-name", name, *ASK, *words])


# ---- the command --------------------------------------------------------------------------------


def test_explanations_are_kept_if_they_make_the_step_likelier(done: Path, thinker: Path) -> None:
    """The log-probabilities are those of plain forwards over the texts of fine-tuning."""
    model, tokenizer = load_policy(str(thinker))
    model.eval()
    form = PromptFormat(tokenizer, system_prompt=None)
    experiment = load_experiment("config.yaml")
    train = load_splits(experiment, Console(quiet=True)).train
    examples = build_examples(train, targets="all")[:12]
    records = read_jsonl(done / "steps.jsonl")
    assert len(records) == 3 * 12

    def log_prob(prompt: list[int], thought: str, step: str) -> float:
        before = tokenizer.encode(f"<think>{thought}</think>\n", add_special_tokens=False)
        own = tokenizer.encode(step, add_special_tokens=False)
        ids = torch.tensor([[*prompt, *before, *own]])
        with torch.no_grad():
            every = model(input_ids=ids).logits[0].log_softmax(-1)
        places = range(ids.shape[1] - len(own), ids.shape[1])
        return sum(float(every[place - 1, ids[0, place]]) for place in places) / len(own)

    fates = set()
    for number, example in enumerate(examples):
        group = [one for one in records if one["group_id"] == number]
        prompt = form.encode_example(example)
        empty = log_prob(prompt, "", example.expert_step)
        lifts = {}
        for one in group:
            text = str(one["action"])
            assert one["problem_id"] == example.problem_id
            assert one["expert_step"] == example.expert_step
            metrics: Any = one["metrics"]
            lift = log_prob(prompt, text, example.expert_step) - empty
            assert metrics["logprob_empty"] == pytest.approx(empty, abs=1e-4)
            assert metrics["lift_logprob"] == pytest.approx(lift, abs=1e-4)
            assert one["kept"] == (one["dropped_because"] is None)
            fates.add(one["dropped_because"])
            if one["dropped_because"] in ("truncated", "empty", "repeats_the_step"):
                continue
            lifts[one["rollout"]] = metrics["lift_logprob"]
            assert (one["dropped_because"] == "no_lift") == (metrics["lift_logprob"] <= 0)
        kept = [one["rollout"] for one in group if one["kept"]]
        best = max(lifts, key=lambda place: lifts[place], default=None)
        assert kept == ([best] if best is not None and lifts[best] > 0 else [])
    assert fates >= {None, "no_lift", "truncated", "another_is_better"}


def test_only_training_problems_are_explained(done: Path) -> None:
    splits = load_splits(load_experiment("config.yaml"), Console(quiet=True))
    held_out = {one.problem_id for one in (*splits.validation, *splits.test)}
    training = {one.problem_id for one in splits.train}
    explained = {str(one["problem_id"]) for one in read_jsonl(done / "steps.jsonl")}
    written = load_trajectories(
        "files", path=str(done / "trajectories.jsonl"), thoughts_column="thoughts"
    )
    assert len(held_out) == 12
    for found in (explained, {one.problem_id for one in written}):
        assert found
        assert found <= training
        assert not found & held_out


def test_the_trajectories_are_the_experts_with_the_thoughts_that_were_kept(done: Path) -> None:
    path = str(done / "trajectories.jsonl")
    written = load_trajectories("files", path=path, thoughts_column="thoughts")
    expected = {one.problem_id: one for one in toy_trajectories(40)}
    thoughts = {
        (one.problem_id, place): step.thought
        for one in written
        for place, step in enumerate(one.steps)
        if step.thought
    }
    for one in written:
        assert (one.texts, one.answer) == (
            expected[one.problem_id].texts,
            expected[one.problem_id].answer,
        )
    assert thoughts == {
        (one["problem_id"], one["step_index"]): one["action"]
        for one in read_jsonl(done / "steps.jsonl")
        if one["kept"]
    }
    summary = json.loads((done / "summary.json").read_text())
    assert summary["steps_with_thought"] == len(thoughts)
    assert summary["explanations"] == 36 == len(thoughts) + sum(summary["dropped"].values())


def test_a_run_that_was_stopped_ends_with_the_same_files(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("steps.jsonl", "problems.jsonl", "trajectories.jsonl")
    expected = {name: (done / name).read_bytes() for name in files}
    explain = ThoughtWriter.explain
    calls: list[int] = []

    def interrupted(self: ThoughtWriter, chunk: Sequence[Row]) -> object:
        calls.append(len(chunk))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return explain(self, chunk)

    monkeypatch.setattr(ThoughtWriter, "explain", interrupted)
    assert think(name="two") == 130
    two = done.parent / "two"
    assert 0 < (two / "steps.jsonl").stat().st_size < len(expected["steps.jsonl"])
    assert not (two / "trajectories.jsonl").exists()
    with (two / "steps.jsonl").open("ab") as file:  # part of a chunk, and half a line
        begun = (two / "steps.jsonl").stat().st_size
        file.write(expected["steps.jsonl"][begun : begun + 700])
    monkeypatch.setattr(ThoughtWriter, "explain", explain)
    capsys.readouterr()
    assert think(name="two") == 0
    assert f"going on: {sum(calls[:2])} of 12 steps" in capsys.readouterr().out
    assert {name: (two / name).read_bytes() for name in files} == expected
    # Once more, there is nothing left to explain.
    monkeypatch.setattr(ThoughtWriter, "explain", None)
    assert think(name="two") == 0
    assert {name: (two / name).read_bytes() for name in files} == expected


def test_inspect_shows_explanations_beside_their_steps(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = read_jsonl(done / "steps.jsonl")
    number = next(n for n, one in enumerate(records, 1) if one["kept"])
    kept = records[number - 1]
    capsys.readouterr()
    assert main(["inspect", "t"]) == 0
    overview = capsys.readouterr().out
    assert "lift_logprob" in overview
    explained = json.loads((done / "summary.json").read_text())["steps_with_thought"]
    assert f"groups  {explained} kept of 12 tried" in overview
    assert main(["inspect", "t", "--record", str(number)]) == 0
    shown = capsys.readouterr().out
    for text in (kept["action"], kept["expert_step"], "lift_logprob", "in_thought", "kept"):
        assert str(text) in shown
    assert main(["report", "t"]) == 0
    assert str(kept["action"]) in (done / "report.html").read_text()


def test_fine_tuning_trains_on_the_steps_that_have_a_thought(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"{{source: files, path: {done}/trajectories.jsonl, thoughts_column: thoughts}}"
    rows = json.loads((done / "summary.json").read_text())["steps_with_thought"]
    changes: dict[str, object] = {"method": "sft", "prompts_per_step": 2, "max_steps": 2}
    values = {**TOY_SETTINGS, **SETTINGS, **changes, "eval_strategy": "no", "test_problems": 0}
    values = {key: value for key, value in values.items() if key != "num_generations"}
    config = load_experiment("config.yaml").model
    Path("sft.yaml").write_text(
        json.dumps({**values, "model": config, "data": {"source": "x"}, "validation_problems": 0})
    )
    capsys.readouterr()
    words = ["--config", "sft.yaml", "--data", data, "--run-name", "sft"]
    assert main(["train", *words, "--require_thoughts", "true"]) == 0
    said = capsys.readouterr().out
    assert f"{rows} rows of the expert's text, {rows} with thoughts (" in said
    assert "dropped: no thought before the step" in said
    losses = [one["loss"] for one in read_jsonl(Path("runs/sft/metrics.jsonl")) if "loss" in one]
    assert len(losses) == 2


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--think", "false"], "think is false, .*; set think: true"),
        (
            ["--targets", "whole", "--rollout_token_budget", "9999"],
            "targets is whole, but thoughts are written for single steps",
        ),
        (["--samples", "0"], "samples is 0; it must be from 1"),
        (["--max_thought_length", "0"], "max_thought_length is 0"),
        (["--max_thought_length", "600"], "there are no steps to explain .*too long"),
        (["--min_lift", "-1"], "min_lift is -1.0; give nats a token"),
        (["--max_in_thought", "nan"], "max_in_thought is nan; give a share"),
        (["--instruction", " "], "instruction is empty"),
        (["--limit", "0"], "--limit is 0"),
        (["--temperatur", "1"], "unknown key 'temperatur'; did you mean temperature"),
    ],
)
def test_wrong_use_leaves_no_folder(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    refused(capsys, think(*words), message)


def test_a_folder_of_other_settings_or_another_kind_is_refused(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (done / "steps.jsonl").read_bytes()
    capsys.readouterr()
    assert think("--seed", "1", "--samples", "2") == 2
    said = capsys.readouterr().err
    assert "seed: 42 -> 1" in said
    assert "thoughts.samples: 3 -> 2" in said
    assert (done / "steps.jsonl").read_bytes() == before
    assert main(["resume", "t"]) == 2
    assert "holds explanations, not a training" in capsys.readouterr().err
    (done / "config.yaml").write_text("method: srl\n")
    assert think() == 2
    assert "in use by a run of another kind" in capsys.readouterr().err


def test_require_thoughts_belongs_to_fine_tuning_that_thinks(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config", "config.yaml", "--run-name", "x", "--require_thoughts", "true"]
    refused(capsys, main(words), "method srl has no use for require_thoughts")
    write_config(here / "config.yaml", model="m", method="sft", think=False)
    values = (here / "config.yaml").read_text().replace("num_generations: 4\n", "")
    (here / "config.yaml").write_text(values)
    refused(capsys, main(words), "require_thoughts is true, but think is false")


# ---- single explanations ------------------------------------------------------------------------


class _Says:
    """A sampler that writes given texts."""

    def __init__(self, ids: Sequence[list[int]], cut: int) -> None:
        self._ids, self._cut = ids, cut

    remembering = contextlib.nullcontext

    def sample(
        self, prompts: Sequence[Prompt], num_samples: int, params: SamplingParams, **_: object
    ) -> Iterator[tuple[int, list[Completion]]]:
        yield 0, [Completion(ids, n == self._cut) for n, ids in enumerate(self._ids)]


def test_why_explanations_are_dropped(
    thinker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_policy(str(thinker))
    texts = {
        "quickly on": "truncated",
        " ": "empty",
        "so </think> we </think> go": "tag",
        "so we add the red box on": "repeats_the_step",
        "by thirty seven we go on and on by thirty seven": "too_long",
    }
    end = tokenizer.eos_token_id
    ids = [[*tokenizer.encode(text, add_special_tokens=False), end] for text in texts]
    monkeypatch.setattr(srl.training.thoughts, "make_sampler", lambda *_, **__: _Says(ids, 0))
    args = toy_config(tmp_path, max_completion_length=16)
    settings = ThoughtSettings(samples=len(texts), max_thought_length=30, instruction="why")
    writer = ThoughtWriter(model, tokenizer, args, settings)
    rows, dropped = writer.rows(toy_trajectories(1))
    assert [row.example.expert_step for row in rows] == [*TOY_STEPS[:2], TOY_STEPS[3]]
    assert not dropped
    [found] = writer.explain(rows[:1])
    by_reason = {str(one.dropped_because): one for one in found}
    assert sorted(by_reason) == sorted(texts.values())
    assert [one.lift for one in found] == sorted((one.lift for one in found), reverse=True)
    assert by_reason["empty"].lift == 0.0
    args.max_completion_length, args.open_thought, args.think_budget = 64, True, 8
    rows, _ = (writer := ThoughtWriter(model, tokenizer, args, settings)).rows(toy_trajectories(1))
    [found] = writer.explain(rows[:1])
    [cut] = [one for one in found if one.thought_length > 8]
    assert cut.dropped_because == "too_long"  # it would be closed before its end
    assert by_reason["repeats_the_step"].in_thought == 1.0


def test_the_steps_own_tokens_are_found_behind_a_thought_that_holds_them(
    thinker: Path,
) -> None:
    _, tokenizer = load_policy(str(thinker))
    form = PromptFormat(tokenizer, system_prompt=None)
    [example, *_] = build_examples(toy_trajectories(1), targets="all")
    whole = form.encode_expert(with_thought(example, f"I {example.expert_step}, so"))
    found = cut_around(whole, example.expert_step, form.read)
    assert found is not None
    before, step = found
    assert form.read(step).strip() == example.expert_step
    assert form.read(before).rstrip() == f"<think>I {example.expert_step}, so</think>"
    assert [*before, *step, form.end_id] == whole
    assert cut_around(whole, "another step", form.read) is None


def test_how_much_of_a_step_stands_in_a_thought() -> None:
    step = "She sold 48/2 = 24 clips."
    assert in_thought(step, f"Because she sold half,\n{step.upper()}") == 1.0
    assert in_thought(step, "We halve the 48 clips of April.") == pytest.approx(6 / len(step))
    assert in_thought(step, "") == 0.0
    assert in_thought(" ", "x") == 0.0
