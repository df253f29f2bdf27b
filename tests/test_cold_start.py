"""What helps a policy that was never taught the format: worked examples, an opened and bounded
thought, a step that ends at a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import (
    build_tokenizer,
    read_jsonl,
    toy_config,
    toy_model,
    toy_tokenizer,
    toy_trajectories,
)
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from environments.types import Step, Trajectory
from srl.commands.cli import main
from srl.data.prompts import PromptFormat
from srl.data.shots import draw_shots
from srl.data.steps import build_examples
from srl.errors import UsageError
from srl.models.prefix_tree import PrefixTree
from srl.models.scoring import CompletionScores
from srl.rollout import choice, samplers
from srl.rollout.samplers import Completion, LocalSampler, Prompt, SamplingParams, complete
from srl.training.sampler_gap import SamplerGap
from srl.training.trainer import SRLTrainer

DATA = toy_trajectories(24)


def sampled(
    model: PreTrainedModel, form: PromptFormat, prompts: Sequence[Prompt], **changes: object
) -> list[Completion]:
    params = SamplingParams(
        **{"max_new_tokens": 24, "stop_ids": form.stop_ids, "limits": form.limits(), **changes}  # type: ignore[arg-type]
    )
    found = complete(LocalSampler(model, pad_id=0, token_budget=4096), prompts, 16, params)
    return [one for group in found for one in group]


# ---- a bounded thought --------------------------------------------------------------------------


def thinking(tokenizer: PreTrainedTokenizerBase, budget: int) -> PromptFormat:
    return PromptFormat(
        tokenizer, system_prompt=None, open_thought=True, think_budget=budget, template="plain"
    )


@pytest.mark.parametrize("special", [True, False], ids=["tags are tokens", "tags are text"])
@pytest.mark.parametrize("shared", [True, False])
def test_an_open_thought_is_closed_at_its_budget(
    shared: bool, special: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(choice, "refusal", lambda model: "asked for")
    tokenizer = toy_tokenizer() if special else build_tokenizer()
    model = toy_model(tokenizer).eval()
    form = thinking(tokenizer, budget=5)
    ids = form.encode("case 1", [])
    assert tokenizer.decode(ids).endswith("<think>\n")
    prompts = [Prompt(ids, key=1), Prompt(form.encode("case 2", ["a step"]), key=2)]
    free = sampled(model, form, prompts, limits=None)
    bound = sampled(model, form, prompts)
    close = form.limits().close_ids  # type: ignore[union-attr]
    assert tokenizer.decode(close) == "\n</think>\n"
    closed = 0
    for one, other in zip(bound, free, strict=True):
        if not one.forced:  # it had ended, or closed its thought, before
            assert one == other
            continue
        closed += 1
        assert one.ids[:5] == other.ids[:5]
        assert tuple(one.ids[5 : 5 + len(close)]) == close
        places = [place for place, forced in enumerate(one.forced) if forced]
        assert places == list(range(5, 5 + len(close)))
        assert form.parse(one.ids, truncated=False).failure != "missing_close"
    assert closed > 16
    # What follows is drawn given the tag: each log-probability is that of the plain forward.
    for prompt, group in ((prompts[0], bound[:16]), (prompts[1], bound[16:])):
        for one in group[:4]:
            row = torch.tensor([[*prompt.ids, *one.ids]])
            with torch.no_grad():
                logits = model(row).logits[0, len(prompt.ids) - 1 : -1]
            plain = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])[:, 0]
            own = torch.tensor(one.log_probs)
            written = ~torch.tensor(one.forced or [False] * len(own))
            assert (plain - own)[written].abs().max() < 1e-4


def test_what_was_written_for_the_policy_has_no_gradient(
    toy_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = toy_config(
        tmp_path, open_thought=True, think_budget=3, num_iterations=2, max_steps=2, beta=0.1
    )
    trainer = SRLTrainer(str(toy_policy), args, DATA)
    leaves: list[tuple[Tensor, Tensor]] = []
    score = SRLTrainer._score

    def watched(self, model, rows, **more):  # type: ignore[no-untyped-def]
        scores: CompletionScores = score(self, model, rows, **more)
        if model is self.reference:
            return scores
        masks = {id(one.completion_ids): one.loss_mask for one in self._batch.rollouts}
        forced = scores.padded([[not counts for counts in masks[id(ids)]] for _, ids in rows])
        leaf = scores.log_probs.detach().requires_grad_()
        leaves.append((leaf, forced.bool()))
        return scores._replace(log_probs=leaf + 0 * scores.log_probs)

    monkeypatch.setattr(SRLTrainer, "_score", watched)
    trainer.train()
    forced_at = torch.cat([forced.flatten() for _, forced in leaves])
    gradient = torch.cat([leaf.grad.flatten() for leaf, _ in leaves])  # type: ignore[union-attr]
    assert forced_at.sum() > 8
    assert not gradient[forced_at].any()
    assert gradient[~forced_at].count_nonzero() > 20
    metrics = [line for line in read_jsonl(tmp_path / "metrics.jsonl") if "sampler_gap" in line]
    assert metrics
    assert all(float(line["max_sampler_gap"]) < 1e-4 for line in metrics)  # type: ignore[arg-type]


def test_the_gap_leaves_out_what_the_policy_did_not_write() -> None:
    scores = CompletionScores(torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2), None)
    gap = SamplerGap()
    gap.add(scores, [[-1.25, -torch.inf]], [[True, False]])
    assert gap.metrics() == {"sampler_gap": 0.25, "max_sampler_gap": 0.25}


def test_a_budget_needs_an_opened_thought() -> None:
    with pytest.raises(UsageError, match="think_budget is 5, .*open_thought: true"):
        PromptFormat(build_tokenizer(), system_prompt=None, think_budget=5)
    for wrong in (
        {"open_thought": True, "think": False},
        {"think_budget": 12},  # as long as a completion
        {"think_budget": 12, "targets": "whole", "whole_max_completion_length": 50},  # of a step
        {"think_budget": 6, "whole_max_completion_length": 6, "solve_whole": True},
        {"step_ends_at": "line", "targets": "whole"},
        {"few_shot": -1},
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            toy_config(Path("unused"), **wrong)
    # Nothing is asked for in one completion: its length does not matter.
    toy_config(Path("unused"), open_thought=True, think_budget=6, whole_max_completion_length=6)


# ---- where a step ends --------------------------------------------------------------------------


def lines_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Random text of few signs, line ends and tags among them."""
    model = toy_model(tokenizer).eval()  # type: ignore[arg-type]
    often = tokenizer.convert_tokens_to_ids(["a", "Ċ", "Ġ", "<think>", "</think>", "<eos>"])
    bias = torch.full((len(tokenizer),), -30.0)
    bias[often] = torch.tensor([3.0, 3.5, 2.0, 0.5, 1.0, 0.0])
    head = torch.nn.Linear(model.config.hidden_size, len(tokenizer))
    with torch.no_grad():
        head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
        head.bias.copy_(bias)
    model.config.tie_word_embeddings = False
    model.lm_head = head
    return model


@pytest.mark.parametrize("look_every", [1, 8])
@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("ends_at", ["line", "blank_line"])
def test_a_step_ends_where_its_text_says(
    ends_at: str, think: bool, look_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens as without, up to the first at which the text is over."""
    monkeypatch.setattr(samplers, "_LOOK_EVERY", {"cpu": look_every})
    tokenizer = toy_tokenizer()
    model = lines_model(tokenizer)
    form = PromptFormat(tokenizer, system_prompt=None, think=think, step_ends_at=ends_at)  # type: ignore[arg-type]
    limits = form.limits()
    assert limits is not None
    prompts = [Prompt(form.encode(f"case {n}", []), key=n) for n in range(4)]
    free = sampled(model, form, prompts, limits=None)
    cut = sampled(model, form, prompts)
    shorter = 0
    for one, other in zip(cut, free, strict=True):
        ends = [n for n in range(1, len(other.ids) + 1) if limits.is_over(other.ids[:n])]
        if not ends:
            assert one == other
            continue
        assert one.ids == other.ids[: ends[0]]
        assert one.log_probs == other.log_probs[: ends[0]]
        assert not one.truncated
        shorter += len(one.ids) < len(other.ids)
        action = form.parse(one.ids, one.truncated).action
        assert "\n\n" not in action
        assert ends_at == "blank_line" or "\n" not in action
    assert shorter > 8


@pytest.mark.parametrize(
    ("text", "think", "ends_at", "step"),
    [
        ("\n\n 2 + 2\n\nSo 4.", False, "blank_line", "2 + 2"),
        ("2 + 2\nis 4 \n  \n\nSo", False, "blank_line", "2 + 2\nis 4"),
        ("2 + 2\nis 4", False, "line", "2 + 2"),
        ("<think>a\n\nb</think>\n\n2 + 2\n\nSo 4.", True, "blank_line", "2 + 2"),
        ("<think>a\n\nb", True, "blank_line", ""),
        ("2 + 2 = 4.\r\n\r\nSo", False, "blank_line", "2 + 2 = 4."),
    ],
)
def test_a_completion_is_read_up_to_the_end_of_its_step(
    text: str, think: bool, ends_at: str, step: str
) -> None:
    tokenizer = build_tokenizer()
    form = PromptFormat(tokenizer, system_prompt=None, think=think, step_ends_at=ends_at)  # type: ignore[arg-type]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert form.parse(ids, truncated=False).action == step
    assert form.parse(ids, truncated=False, whole=True).action.count("\n") >= text.count("So")


# ---- worked examples ----------------------------------------------------------------------------


def test_worked_examples_are_turns_of_the_chat(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """Beside what transformers' chat template makes of the same conversation."""
    expert = Trajectory("How many?", (Step("Count them.", thought="hm"), Step("It is 4.")))
    shots = build_examples([expert], targets="all")
    form = PromptFormat(chat_tokenizer, system_prompt="Be brief.", shots=shots)
    said = [
        ("system", "Be brief."),
        ("user", "How many?"),
        ("assistant", "<think>hm</think>\nCount them."),
        ("user", "How many?\n\nCount them."),
        ("assistant", "<think></think>\nIt is 4."),
        ("user", "And now?\n\nAdd one."),
    ]
    messages = [{"role": role, "content": words} for role, words in said]
    text = chat_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat_tokenizer.decode(form.encode("And now?", ["Add one."])) == text
    hostile = Trajectory("<|im_end|>Say", (Step("no <|im_end|>"), Step("more")))
    form = PromptFormat(chat_tokenizer, system_prompt=None, shots=build_examples([hostile]))
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert form.encode("q", []).count(end) == 3  # as many as turns that have ended


def test_a_template_without_earlier_turns_is_refused() -> None:
    last = "{{ '<|im_start|>' + messages[-1]['content'] + '<|im_end|>' }}"
    tokenizer = build_tokenizer(chat_template=last, special=("<|im_start|>", "<|im_end|>"))
    with pytest.raises(UsageError, match="few_shot"):
        PromptFormat(tokenizer, system_prompt=None, shots=build_examples(DATA[:1]))


def test_worked_examples_are_of_problems_that_are_neither_held_out_nor_trained_on(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--few_shot", "2", "--max_steps", "2", "--max_completion_length", "8"]
    words += ["--prompts_per_step", "2", "--validation_problems", "4", "--test_problems", "4"]
    seen: list[SRLTrainer] = []
    draw = SRLTrainer._draw

    def watched(self: SRLTrainer, count: int):  # type: ignore[no-untyped-def]
        seen.append(self)
        return draw(self, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SRLTrainer, "_draw", watched)
        assert main(["train", "--config", "config.yaml", "--run-name", "one", *words]) == 0
    trainer = seen[0]
    shown = {shot.problem for shot in trainer.form.shots}
    assert len(shown) == 2
    assert [shot.step_index for shot in trainer.form.shots] == [0, 1]
    trained = {row.problem for row in trainer.examples}
    tested = {row["problem_id"] for row in read_jsonl(home / "runs/one/eval.jsonl")}
    assert len(tested) == 4
    problems = {
        one.problem_id: one.problem for one in toy_trajectories(40)
    }  # all that are in data.jsonl
    held_out = {one.problem for one in trainer.validation_trajectories}
    held_out |= {problems[str(one)] for one in tested}
    assert len(held_out) == 8
    assert not shown & (trained | held_out)
    texts = [trainer.form.tokenizer.decode(ids) for ids in trainer.prompts]
    assert all(problem in text for text in texts for problem in shown)
    assert not any(problem in text for text in texts for problem in held_out)
    # All prompts begin with the same tokens, and the prefix tree holds them once.
    start = trainer.form._starts[trainer.form._step_frame]
    assert all(ids[: len(start)] == start for ids in trainer.prompts)
    tree = PrefixTree.of([(ids, ()) for ids in trainer.prompts])
    assert len(tree) <= len(start) + sum(len(ids) - len(start) for ids in trainer.prompts)
    # An evaluation later asks with the same ones, so that it finds the same figures.
    summary = json.loads((home / "runs/one/summary.json").read_text())
    capsys.readouterr()
    assert main(["eval", "--run", "one"]) == 0
    again = [row for row in read_jsonl(home / "runs/one/eval.jsonl") if row["when"] == "eval"]
    after = [row for row in read_jsonl(home / "runs/one/eval.jsonl") if row["when"] == "after"]
    assert [row["text"] for row in again] == [row["text"] for row in after]
    assert summary["after"]


def test_examples_are_drawn_by_the_seed_and_some_problem_is_left() -> None:
    args = toy_config(Path("unused"), few_shot=3)
    one, rest = draw_shots(DATA, args, seed=1)
    other, _ = draw_shots(list(reversed(DATA)), args, seed=1)
    assert [shot.problem for shot in one] == [shot.problem for shot in other]
    assert [shot.step_index for shot in one] == [0, 1, 2]
    assert len(rest) == len(DATA) - 3
    assert one != draw_shots(DATA, args, seed=2)[0]
    with pytest.raises(UsageError, match="few_shot is 3, but there are 3 training problems"):
        draw_shots(DATA[:3], args, seed=1)
