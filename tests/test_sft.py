"""Fine-tuning on the expert's text: its loss, its rows, whole runs, and what it refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import (
    CHATML,
    TOY_STEPS,
    build_tokenizer,
    read_jsonl,
    refused,
    same_weights,
    toy_trajectories,
    toy_values,
    train,
    weights,
)
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from environments.types import Step, Trajectory
from rewards import RewardSum
from srl.commands.cli import main
from srl.config.settings import ExpertConfig, SRLConfig
from srl.data.prompts import PromptFormat
from srl.data.steps import build_examples
from srl.data.stream import PromptStream
from srl.errors import UsageError
from srl.models.loading import load_policy
from srl.models.prefix_tree import Row
from srl.training.progress import ProgressReport
from srl.training.sft import ExpertRows, ExpertTrainer

DATA = toy_trajectories(24)
PLAIN_SGD: dict[str, object] = {
    "optim": "sgd",
    "learning_rate": 1.0,
    "max_grad_norm": 0,
    "lr_scheduler_type": "constant",
    "max_steps": 1,
}


def make(policy: Path, folder: Path, **changes: object) -> ExpertTrainer:
    model, tokenizer = load_policy(str(policy))
    values = toy_values(folder, **changes)
    del values["num_generations"]
    return ExpertTrainer(
        model,
        ExpertConfig(**values),  # type: ignore[arg-type]
        DATA[:20],
        DATA[20:],
        RewardSum({"similarity": 1.0}),
        tokenizer,
    )


# ---- the loss ----------------------------------------------------------------------------------


def by_hand(
    policy: Path, targets: str, size: int, *, also_whole: bool
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first step: one row at a time, its texts put together here."""
    model, tokenizer = load_policy(str(policy))
    words = "go on" if also_whole else None
    form = PromptFormat(tokenizer, system_prompt=None, whole_system_prompt=words)
    examples = build_examples(DATA[:20], targets=targets, also_whole=also_whole)  # type: ignore[arg-type]
    total, tokens = torch.zeros(()), 0
    for row in PromptStream(len(examples), 42).take(size):
        example = examples[row]
        text = "\n".join(example.trajectory.texts)
        if not example.whole:
            text = f"<think></think>\n{example.trajectory.texts[example.step_index]}"
        written = [
            *tokenizer.encode(text, add_special_tokens=False),
            tokenizer.convert_tokens_to_ids("<eos>"),
        ]
        prompt = form.encode_example(example)
        logits = model(torch.tensor([[*prompt, *written]])).logits[0]
        predictions = logits[len(prompt) - 1 : -1]
        total = total + F.cross_entropy(predictions, torch.tensor(written), reduction="sum")
        tokens += len(written)
    loss = total / tokens
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


@pytest.mark.parametrize("prefix_tree", [True, False])
@pytest.mark.parametrize("micro_batch_tokens", [8192, 70, 14])
@pytest.mark.parametrize("targets", ["all", "whole", "both"])
def test_the_first_step_is_plain_cross_entropy_on_completions(
    toy_policy: Path, tmp_path: Path, targets: str, micro_batch_tokens: int, prefix_tree: bool
) -> None:
    also_whole = targets == "both"
    targets = "all" if also_whole else targets
    trainer = make(
        toy_policy, tmp_path, targets=targets, also_whole=also_whole, prefix_tree=prefix_tree,
        micro_batch_tokens=micro_batch_tokens, whole_max_completion_length=12,
        whole_system_prompt="go on" if also_whole else None, **PLAIN_SGD,
    )  # fmt: skip
    before = weights(trainer.model)
    parts = scored_parts(trainer)
    trainer.train()
    sizes = [len(rows) for rows, _ in parts]
    assert sum(sizes) == 4
    assert {8192: len(sizes) == 1, 70: 1 < len(sizes) < 4, 14: len(sizes) == 4}[micro_batch_tokens]
    assert not any(tree for _, tree in parts) or prefix_tree
    loss, gradients = by_hand(toy_policy, targets, 4, also_whole=also_whole)
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(loss, rel=1e-5)
    # Plain SGD of rate 1: what the weights moved by is the gradient.
    after = weights(trainer.model)
    for name, gradient in gradients.items():
        moved = before[name] - after[name]
        assert (moved - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
    assert sum(g.norm() for g in gradients.values()) > 0.1


def scored_parts(trainer: ExpertTrainer) -> list[tuple[list[Row], bool]]:
    """What will go through the model: rows of each micro-batch, and whether as a tree."""
    parts: list[tuple[list[Row], bool]] = []
    score = trainer._score

    def seen(model, rows, *, tree, **options):  # type: ignore[no-untyped-def]
        parts.append((list(rows), tree))
        return score(model, rows, tree=tree, **options)

    trainer._score = seen  # type: ignore[method-assign]
    return parts


def test_rows_with_a_common_prefix_go_through_the_model_as_a_tree(
    toy_policy: Path, tmp_path: Path
) -> None:
    """All rows of a problem in one step: each prompt begins as the one before."""
    trainer = make(toy_policy, tmp_path, prompt_order="trajectory", prompts_per_step=6, **PLAIN_SGD)
    parts = scored_parts(trainer)
    trainer.train()
    assert [(len(rows), tree) for rows, tree in parts] == [(6, True)]


def test_a_step_is_that_of_trl(toy_policy: Path, tmp_path: Path) -> None:
    """TRL's `SFTTrainer` on the rows of the first step: loss, gradients, entropy, accuracy."""
    trainer = make(toy_policy, tmp_path / "ours", **{**PLAIN_SGD, "prompts_per_step": 8})
    order = PromptStream(len(trainer.prompts), 42).take(8)
    rows = [trainer.rows.row(number) for number in order]
    labels = [[-100] * len(prompt) + completion for prompt, completion in rows]
    data = {"input_ids": [prompt + completion for prompt, completion in rows], "labels": labels}
    model, tokenizer = load_policy(str(toy_policy))
    theirs = SFTTrainer(
        model,
        SFTConfig(
            str(tmp_path / "theirs"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
    )
    inputs = theirs.data_collator(list(theirs.train_dataset))
    tokens = sum(len(completion) for _, completion in rows)
    loss = theirs.compute_loss(model.train(), inputs, num_items_in_batch=tokens)
    loss.backward()
    before = weights(trainer.model)
    trainer.train()
    found = read_jsonl(tmp_path / "ours" / "metrics.jsonl")[0]
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name in ("entropy", "mean_token_accuracy"):
        assert found[name] == pytest.approx(theirs._metrics["train"][name][0], rel=1e-5)
    assert 0 < found["mean_token_accuracy"] < 1
    after = weights(trainer.model)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        moved = before[name] - after[name]
        assert (moved - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + 1e-7, name


def test_the_held_out_loss_is_the_mean_over_all_tokens(toy_policy: Path, tmp_path: Path) -> None:
    """Of rows of different lengths, in several micro-batches."""
    trainer = make(toy_policy, tmp_path, micro_batch_tokens=70, eval_strategy="steps")
    parts = scored_parts(trainer)
    found = trainer.evaluate()
    assert len(parts) > 1
    rows = ExpertRows.of(DATA[20:], trainer.form, trainer.settings, None)
    model = trainer.model.eval()
    losses: list[float] = []
    for prompt, written in zip(rows.prompts, rows.completions, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *written]])).logits[0, len(prompt) - 1 : -1]
        losses += F.cross_entropy(logits, torch.tensor(written), reduction="none").tolist()
    assert found["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["eval_problems"] == 4


# ---- rows --------------------------------------------------------------------------------------

OPENING = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%")
OPENING_BARE = CHATML.replace("assistant\n{%", "assistant\n<think>{%")
STEPS = (
    "  1. **Add** 3.14 to 2\n   - and so on\n",
    "x < y, thinking \N{GREEK SMALL LETTER PI} of \N{GRINNING FACE}",
    "So it is \\boxed{4}.",
)


THOUGHTS = (" Two, and\nmore.  ", "", "\nx < y?\n")


@pytest.mark.parametrize("thoughts", [("",) * 3, THOUGHTS], ids=["bare", "thoughts"])
@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("template", [None, CHATML, OPENING, OPENING_BARE])
@pytest.mark.parametrize("tags", [(), ("<think>", "</think>")], ids=["text", "tokens"])
def test_a_row_reads_back_as_the_expert_wrote_it(
    template: str | None, think: bool, tags: tuple[str, ...], thoughts: tuple[str, ...]
) -> None:
    tokenizer = build_tokenizer(
        chat_template=template,
        eos="<|im_end|>",
        special=("<|im_start|>", *tags),
    )
    form = PromptFormat(tokenizer, system_prompt="Go on.", think=think)
    assert form.opens_thought is (think and template in (OPENING, OPENING_BARE))
    expert = Trajectory("What is 2 + 2?", tuple(map(Step, STEPS, thoughts)), answer="4")
    bare = Trajectory("What is 2 + 2?", STEPS, answer="4")
    for targets in ("all", "whole"):
        args = SRLConfig(targets=targets, use_cpu=True)
        rows = ExpertRows.of([expert], form, args, None)
        assert rows.prompts == [form.encode_example(example) for example in rows.examples]
        assert len(rows.examples) == (1 if targets == "whole" else 3)
        for example, completion in zip(rows.examples, rows.completions, strict=True):
            assert completion[-1] == tokenizer.eos_token_id
            parsed = form.parse(completion, False, whole=example.whole)
            assert parsed.failure is None
            taught = thoughts[example.step_index :] if think and any(thoughts) else ()
            taught = taught if example.whole else taught[:1]
            assert parsed.thought == "\n".join(one.strip() for one in taught if one.strip())
            # Between the tags of a whole solution parsing drops the white space at the ends.
            pieces = "\n".join([STEPS[0].strip(), *STEPS[1:]])
            assert parsed.action == (
                pieces if taught and example.whole else example.expert_step.strip()
            )
            for index, thought in enumerate(taught, start=example.step_index):
                written = form.read([*form.encode_example(example), *completion])
                assert f"{thought}</think>\n{STEPS[index].strip()}" in written or not thought
        # What a thought is, only the completion knows.
        assert rows.prompts == ExpertRows.of([bare], form, args, None).prompts


def test_rows_that_cannot_be_trained_on_are_counted(toy_policy: Path) -> None:
    _, tokenizer = load_policy(str(toy_policy))
    form = PromptFormat(tokenizer, system_prompt=None)
    args = SRLConfig(targets="all", max_completion_length=12, use_cpu=True)
    tagged = Trajectory("two", ("a <think> b", TOY_STEPS[0]))
    long = Trajectory("three", ("z" * 60, TOY_STEPS[0]))
    rows = ExpertRows.of([*DATA[:2], tagged, long], form, args, 64)
    assert dict(rows.dropped) == {
        "a copy of the expert's step breaks the format (repeated_tag)": 1,
        "the expert's step is longer than max_completion_length 12": 1,
        "too long for the policy's context": 1,  # the prompt that holds it
    }
    thinking = Trajectory("four", (Step("a", " x</think>y<think>"), Step("b", " z")))
    for targets, left in (("all", 1), ("whole", 0)):
        other = SRLConfig(targets=targets, use_cpu=True)  # type: ignore[arg-type]
        found = ExpertRows.of([DATA[0], thinking], form, other, None)
        assert dict(found.dropped) == {"a think tag inside a thought": 1}
        assert [one.expert_step for one in found.examples if one.problem == "four"] == ["b"] * left
    assert len(rows.examples) == 2 * 3 + 1
    pairs = zip(rows.prompts, rows.completions, strict=True)
    assert max(len(prompt) + len(completion) for prompt, completion in pairs) <= 64
    with pytest.raises(UsageError, match=r"no row can be trained on \(1 dropped: a think tag"):
        ExpertRows.of([Trajectory("two", (Step("a", "<think>"),))], form, args, 64)


# ---- whole runs --------------------------------------------------------------------------------


@pytest.fixture
def sft(home: Path) -> Path:
    """The current folder, its config.yaml one of fine-tuning."""
    values = yaml.safe_load((home / "config.yaml").read_text())
    del values["num_generations"]
    values |= {"method": "sft", "learning_rate": 1e-2}
    (home / "config.yaml").write_text(yaml.safe_dump(values))
    return home


def test_a_run_learns_and_leaves_a_whole_folder(
    sft: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--max_steps", "24", "--eval_steps", "8", "--save_steps", "8")
    best = ("--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss")
    assert train(*words, *best) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    run = sft / "runs" / "one"
    assert {path.name for path in run.iterdir()} == {
        "checkpoint-16", "checkpoint-24", "command.txt", "config.yaml", "environment.json",
        "eval.jsonl", "inputs.json", "metrics.jsonl", "policy", "summary.json",
    }  # fmt: skip
    assert "84 rows of the expert's text; 4 rows a step, micro-batches of" in shown.out
    assert "step 24/24  loss " in shown.out
    assert "validation after step 24: solved " in shown.out
    assert "policy of step " in shown.out
    assert not same_weights(
        weights(load_policy("runs/one/policy")[0]), weights(load_policy(str(toy_policy))[0])
    )
    lines = read_jsonl(run / "metrics.jsonl")
    losses = [float(str(line["eval_loss"])) for line in lines if "eval_loss" in line]
    assert len(losses) == 3
    assert losses[-1] < losses[0] / 2
    assert all(line["eval_accuracy"] is not None for line in lines if "eval_loss" in line)
    summary = yaml.safe_load((run / "summary.json").read_text())
    assert summary["tokens_read"] == sum(int(str(line.get("tokens", 0))) for line in lines)
    assert summary["after"]["held-out steps: exact"]["value"] > 0.5
    assert summary["before"]["held-out steps: exact"]["value"] < 0.5
    lift = summary["after"]["held-out steps: lift"]
    assert 0 < lift["low"] <= lift["value"] + 1e-9  # better than the step before it
    assert lift["value"] <= lift["high"] + 1e-9
    assert [a["when"] for a in read_jsonl(run / "eval.jsonl")] == ["before"] * 8 + ["after"] * 8


def test_whole_solutions(sft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--targets", "whole", "--whole_max_completion_length", "24", "--solve_whole", "true")
    assert train(*words, "--max_steps", "40", "--save_steps", "20", "--eval_steps", "20") == 0
    assert "28 rows of the expert's text" in capsys.readouterr().out
    summary = yaml.safe_load(Path("runs/one/summary.json").read_text())
    assert summary["before"]["whole solution, greedy"]["value"] < 0.5
    assert summary["after"]["whole solution, greedy"]["value"] == 1.0
    assert read_jsonl(sft / "runs/one/metrics.jsonl")[-2]["eval_accuracy"] == 1.0


def test_whole_solutions_are_not_forgotten_for_steps(
    sft: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taught steps alone, a policy stops after one step where it is asked for a solution."""
    words = ("--whole_max_completion_length", "24", "--whole_system_prompt", "so we go on",
             "--solve_whole", "true", "--max_steps", "40", "--save_steps", "40",
             "--eval_strategy", "no")  # fmt: skip
    solved = {}
    for name, more in (("steps", ()), ("both", ("--also_whole", "true"))):
        assert train(*words, *more, name=name) == 0
        after = yaml.safe_load(Path(f"runs/{name}/summary.json").read_text())["after"]
        solved[name] = after["whole solution, greedy"]["value"]
        assert after["held-out steps: exact"]["value"] > 0.5
    assert "112 rows of the expert's text, 28 of them whole solutions;" in capsys.readouterr().out
    assert solved == {"steps": 0.0, "both": 1.0}


def test_thoughts_are_learned_or_it_is_said_that_they_are_not(
    sft: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"problem": one.problem, "steps": one.texts, "answer": one.answer}
        | {"thoughts": [" hm"] * len(one.steps)}
        for one in DATA
    ]
    (sft / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data", "{source: files, path: mine.jsonl, thoughts_column: thoughts}"]
    words += ["--max_steps", "30", "--save_steps", "30", "--eval_strategy", "no"]
    words += ["--validation_problems", "0", "--test_problems", "4"]
    assert train(*words) == 0
    assert "60 rows of the expert's text, 60 with thoughts; 4 rows" in capsys.readouterr().out
    after = [one for one in read_jsonl(sft / "runs/one/eval.jsonl") if one["when"] == "after"]
    assert len(after) == 4
    assert all(str(one["text"]).startswith("<think> hm</think>\n") for one in after)
    assert train(*words, "--think", "false", "--max_steps", "1", name="two") == 0
    said = "60 rows of the expert's text, 60 with thoughts, which are left out (think: false); "
    assert said in capsys.readouterr().out


def test_ctrl_c_saves_and_resume_goes_on_as_if_nothing_had_been(
    sft: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two epochs of rows, so that the order of the second matters too.
    words = (
        "--max_steps", "6", "--prompts_per_step", "28", "--weight_decay", "0.1",
        "--test_problems", "2", "--validation_problems", "10", "--save_steps", "4",
    )  # fmt: skip
    assert train(*words, name="straight") == 0
    on_step_end = ProgressReport.on_step_end

    def interrupted(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step == 4:
            signal.raise_signal(signal.SIGINT)
        on_step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "on_step_end", interrupted)
        assert train(*words, name="stopped") == 130
    assert "saved; go on with: make resume RUN=stopped" in capsys.readouterr().out
    torch.rand(3)
    assert main(["resume", "stopped"]) == 0
    one, two = (weights(load_policy(f"runs/{n}/policy")[0]) for n in ("straight", "stopped"))
    assert same_weights(one, two)
    figures = [
        [
            {name: value for name, value in line.items() if "seconds" not in name}
            for line in read_jsonl(sft / "runs" / name / "metrics.jsonl")
            if "train_runtime" not in line
        ]
        for name in ("straight", "stopped")
    ]
    assert figures[0] == figures[1]
    summaries = [
        yaml.safe_load(Path(f"runs/{name}/summary.json").read_text())
        for name in ("straight", "stopped")
    ]
    for name in ("before", "after", "steps", "tokens_read"):
        assert summaries[0][name] == summaries[1][name]


def test_other_views_of_such_a_run(sft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--max_steps", "1", "--test_before", "false") == 0
    summary = yaml.safe_load(Path("runs/one/summary.json").read_text())
    capsys.readouterr()
    for words in (["inspect", "one"], ["report", "one"]):
        assert main(words) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("srl: ")
        assert "fine-tuned on the expert's text (method: sft)" in shown.err
        assert "make eval RUN=one" in shown.err
    assert main(["eval", "--run", "one"]) == 0
    value = 100 * summary["after"]["step by step, greedy"]["value"]
    assert f" {value:.1f} [" in capsys.readouterr().out
    assert main(["eval", "--run", "one", "--test_problems", "30"]) == 2
    assert "18 of the 30 problems to solve were trained on" in capsys.readouterr().err


# ---- wrong use ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--num_generations", "8", "--beta", "0.0", "--rewards.similarity", "1"),
            "method sft has no use for rewards, num_generations, beta: .* method: srl",
        ),
        (("--method", "dpo"), "method is 'dpo'; allowed: srl, sft"),
        (
            ("--load_best_model_at_end", "true", "--metric_for_best_model", "eval_reward"),
            "metric_for_best_model eval_reward; allowed: eval_accuracy, eval_loss",
        ),
        (("--prompts_per_step", "85"), "there are 84 training rows, fewer than prompts_per_step"),
        (("--validation_problems", "0"), "no validation problems to evaluate on"),
        (
            (
                "--also_whole",
                "true",
                "--whole_system_prompt",
                "go on",
                "--whole_max_completion_length",
                "60",
            ),
            "no whole solution is left .28 dropped: too long.*context of 64 tokens",
        ),
        (("--targets", "whole", "--also_whole", "true"), "also_whole is true, but under targets"),
        (("--also_whole", "true"), "system_prompt and whole_system_prompt are both None"),
        (
            ("--method", "srl", "--also_whole", "true"),
            "method srl has no use for also_whole: .* method: sft",
        ),
        (("--gradient_accumulation_steps", "2"), "is cut into micro-batches by"),
    ],
)
def test_what_is_refused(
    sft: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    refused(capsys, train(*words), message)
