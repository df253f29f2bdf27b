"""What a trainer takes: settings, rows, models, tokenizers; and its words for what it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import (
    TOY_CONTEXT,
    TOY_STEPS,
    same_weights,
    toy_config,
    toy_model,
    toy_tokenizer,
    toy_trajectories,
    weights,
)

from environments.types import Trajectory
from srl.data.prompts import PromptFormat
from srl.data.rows import Rows
from srl.errors import OutOfMemoryError, UsageError
from srl.models.loading import load_policy
from srl.training.trainer import SRLTrainer

EASY = toy_trajectories(40, long=False)
LONG = Trajectory("case " + "7 " * TOY_CONTEXT, (TOY_STEPS[0], TOY_STEPS[3]), answer="4")


@pytest.mark.parametrize(
    ("changes", "rewards", "message"),
    [
        (
            {"eval_strategy": "steps", "eval_steps": 1},
            None,
            "no validation problems.*eval_strategy",
        ),
        ({"eval_on_start": True}, None, "no validation problems"),
        ({"prompts_per_step": 81}, None, "80 training rows, fewer than prompts_per_step 81.*80 or"),
        ({"max_completion_length": TOY_CONTEXT}, None, "no row fits: .*context is 64 tokens"),
        ({}, {"similarty": 1.0}, "no step reward is called 'similarty'.*did you mean"),
        ({}, {"similarity": "much"}, "weight of step reward 'similarity' is 'much'"),
        ({}, {"similarity": 0.0}, "nothing to optimise"),
        ({"template": "chat"}, None, "no chat template"),
    ],
)
def test_wrong_use_is_refused_before_training(
    toy_policy: Path,
    tmp_path: Path,
    changes: dict[str, object],
    rewards: dict[str, float] | None,
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        SRLTrainer(str(toy_policy), toy_config(tmp_path, **changes), EASY, step_rewards=rewards)


@pytest.mark.parametrize("metric", [None, "loss", "eval_exact", "rewards/similarity"])
def test_a_best_checkpoint_needs_a_metric_that_counts_failures(
    toy_policy: Path, tmp_path: Path, metric: str | None
) -> None:
    args = toy_config(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    message = "best checkpoint cannot be chosen by.*allowed: eval_accuracy, eval_reward"
    with pytest.raises(UsageError, match=message):
        SRLTrainer(str(toy_policy), args, EASY[1:], validation_trajectories=EASY[:1])


def test_steps_that_no_copy_could_be_paid_for_are_dropped_and_counted(
    toy_policy: Path, tmp_path: Path
) -> None:
    """A step of one's own list may be several by the rule that solutions are cut by."""
    _, tokenizer = load_policy(str(toy_policy))
    form = PromptFormat(tokenizer, system_prompt=None)
    cases = "Two cases:\n1. **even**: 2k.\n2. **odd**: 2k + 1."
    rows = Rows.of(
        [Trajectory("p", (cases, "So it is 4."), answer="4")],
        form,
        toy_config(tmp_path, targets="all"),
        None,
    )
    assert [(one.expert_step, one.previous_steps) for one in rows.examples] == [
        ("So it is 4.", (cases,))
    ]
    assert rows.dropped == {"the expert's step reads as several": 1}


def test_rows_too_long_are_dropped_and_counted(toy_policy: Path, tmp_path: Path) -> None:
    trainer = SRLTrainer(str(toy_policy), toy_config(tmp_path), [*EASY, LONG])
    assert len(trainer.examples) == 80
    assert "80 rows (2 dropped: too long for the policy's context);" in trainer.arithmetic()
    with pytest.raises(UsageError, match="no row fits: .*shortest prompt takes"):
        SRLTrainer(str(toy_policy), toy_config(tmp_path), [LONG])


def test_a_loaded_model_needs_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer()
    with pytest.raises(UsageError, match="needs its tokenizer"):
        SRLTrainer(toy_model(tokenizer), toy_config(tmp_path), EASY)


def test_an_adapter_of_prompt_tokens_is_refused(toy_policy: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, tokenizer = load_policy(str(toy_policy))
    tuned = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(UsageError, match=r"type PROMPT_TUNING.*such as LoRA"):
        SRLTrainer(
            peft.get_peft_model(model, tuned), toy_config(tmp_path), toy_trajectories(20),
            processing_class=tokenizer,
        )  # fmt: skip


def test_an_adapter_is_trained_and_nothing_else(toy_policy: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, tokenizer = load_policy(str(toy_policy))
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    trainer = SRLTrainer(
        peft.get_peft_model(model, lora), toy_config(tmp_path, beta=0.1), toy_trajectories(20),
        processing_class=tokenizer,
    )  # fmt: skip
    assert trainer.tree_refusal is None
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all("lora_" in name for name in changed)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, (torch.float16, torch.float32)])
def test_a_loaded_half_precision_model_is_trained_in_float32(
    toy_policy: Path, tmp_path: Path, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    start = {name: value.to(dtypes[0]).float() for name, value in weights(model).items()}
    model.to(dtypes[0])
    model.model.norm.to(dtypes[1])
    args = toy_config(tmp_path, max_steps=1, learning_rate=1e-6)
    trainer = SRLTrainer(model, args, EASY, processing_class=tokenizer)
    assert "and is trained in float32: small updates would round" in trainer.start_lines[0]()
    assert same_weights(weights(model), start)
    trainer.train()
    changed = [not value.equal(start[name]) for name, value in weights(model).items()]
    assert sum(changed) > len(changed) / 2


@pytest.mark.parametrize("room", [-1, 0])
def test_position_embeddings_that_change_with_the_length_are_told(
    toy_policy: Path, tmp_path: Path, room: int
) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    args = toy_config(tmp_path)
    plain = SRLTrainer(model, args, EASY, processing_class=tokenizer)
    assert not any("longrope" in line() for line in plain.start_lines)
    limit = max(map(len, plain.prompts)) + args.max_completion_length + room
    model.config.rope_parameters = {
        "rope_type": "longrope",
        "original_max_position_embeddings": limit,
    }
    trainer = SRLTrainer(model, args, EASY, processing_class=tokenizer)
    told = [line() for line in trainer.start_lines if "longrope" in line()]
    assert len(told) == (room < 0)
    assert all(f"from {limit + 1} on" in line for line in told)


def test_a_quantised_model_is_refused(toy_policy: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.requires_grad_(False)
    weight.data = weight.data.to(torch.int8)
    with pytest.raises(UsageError, match=r"\(Qwen2ForCausalLM\) is quantised \(weights in int8\)"):
        SRLTrainer(model, toy_config(tmp_path), EASY, processing_class=tokenizer)


def test_data_that_spells_out_a_token_without_embedding_is_text(
    toy_policy: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    odd = [replace(EASY[0], problem="case <image>"), *EASY[1:]]
    trainer = SRLTrainer(model, toy_config(tmp_path), odd, processing_class=tokenizer)
    assert max(map(max, trainer.prompts)) < model.get_input_embeddings().num_embeddings


def test_what_does_not_fit_into_memory_is_said_in_words(toy_policy: Path, tmp_path: Path) -> None:
    """Of a CPU, which really refuses, and as a GPU says it; other errors are left alone."""

    def trainer(name: str) -> SRLTrainer:
        return SRLTrainer(str(toy_policy), toy_config(tmp_path / name, max_steps=1), EASY)

    def cpu(*_: object) -> None:
        torch.empty(2**55)

    def gpu(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore")

    def defect(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 do not fit")

    sampling = trainer("sampling")
    hook = sampling.model.get_input_embeddings().register_forward_hook(cpu)
    message = (
        r"out of memory while sampling; at its peak the process held \d+\.\d GiB of main memory. "
        r"Lower rollout_token_budget \(65536 now\), the length of a completion \(12 now\); .*4 com"
    )
    with pytest.raises(OutOfMemoryError, match=message):
        sampling.train()
    hook.remove()
    updating = trainer("updating")
    updating.model.get_input_embeddings().weight.register_hook(gpu)
    message = (
        r"out of memory while training; .* Lower micro_batch_tokens \(8192 now\); set gradient_"
        r"checkpointing to true \(false now\); .* Tried to allocate 20.00 GiB.$"
    )
    with pytest.raises(OutOfMemoryError, match=message):
        updating.train()
    broken = trainer("broken")
    broken.model.get_input_embeddings().weight.register_hook(defect)
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2 do not fit"):
        broken.train()


def test_a_tokenizer_may_lack_padding(toy_policy: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    tokenizer.pad_token = None
    trainer = SRLTrainer(model, toy_config(tmp_path, max_steps=1), EASY, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 1


def test_resuming_needs_a_checkpoint(toy_policy: Path, tmp_path: Path) -> None:
    trainer = SRLTrainer(str(toy_policy), toy_config(tmp_path), EASY)
    with pytest.raises(UsageError, match="not a checkpoint to go on from: it has no manifest"):
        trainer.train(resume_from_checkpoint=str(toy_policy))
