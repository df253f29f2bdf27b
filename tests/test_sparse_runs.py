"""Runs of sparse policies: every family, resumed, with an adapter, with a bias, and wrong use."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from conftest import (
    read_jsonl,
    refused,
    same_weights,
    toy_config,
    toy_tokenizer,
    toy_trajectories,
    train,
    weights,
    write_config,
)
from sparse import FAMILIES, save_sparse, sparse_model
from torch import Tensor

from srl.config.router import RouterSettings
from srl.errors import UsageError
from srl.models.experts import sparse_layers
from srl.models.loading import load_policy
from srl.models.routing import (
    BIAS_FILE,
    add_bias,
    biases,
    load_bias,
    save_bias,
)
from srl.runs.checkpoints import MANIFEST, STATE_FILE, seal
from srl.training.routers import Routers
from srl.training.trainer import SRLTrainer


def shares(*counts: list[float]) -> list[Tensor]:
    return [torch.tensor(one) for one in counts]


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains(name: str, bf16: bool, tmp_path: Path) -> None:
    policy = save_sparse(name, tmp_path / "policy")
    settings = toy_config(
        tmp_path / "run",
        max_steps=5,
        bf16=bf16,
        router_balancing="loss",
        router_z_loss_coef=0.01,
        format_failure_reward={"default": -1.0, "truncated": -0.5},
        dynamic_sampling=False,
    )
    trainer = SRLTrainer(str(policy), settings, toy_trajectories(8))
    before = weights(trainer.model)
    trainer.train()
    lines = [one for one in read_jsonl(tmp_path / "run/metrics.jsonl") if "loss" in one]
    assert len(lines) == 5
    assert all(math.isfinite(one["loss"]) and one["router/balancing_loss"] > 0 for one in lines)  # type: ignore[arg-type, operator]
    moved = {key for key, one in weights(trainer.model).items() if not one.equal(before[key])}
    assert any("experts" in key for key in moved)
    assert any("gate.weight" in key or "router.weight" in key for key in moved)
    loads = read_jsonl(tmp_path / "run/experts.jsonl")
    layer = sparse_layers(trainer.model)[0]
    assert [one["step"] for one in loads] == [1, 2, 3, 4, 5]
    assert all(len(counts) == layer.num_experts for one in loads for counts in one["layers"])  # type: ignore[attr-defined]


# ---- the bias ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bias_chooses_and_does_not_weigh(name: str, tmp_path: Path) -> None:
    model = sparse_model(name).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        before = model(ids).logits
        add_bias(sparse_layers(model))
        torch.testing.assert_close(model(ids).logits, before, atol=1e-6, rtol=0)
        layer = sparse_layers(model)[0]
        biases([layer])[0][-1] = 10.0
        _, weight, chosen = layer.router(torch.randn(50, 32))
    assert (chosen == layer.num_experts - 1).any(-1).all()  # every token goes there
    assert (weight <= 1.0 + 1e-6).all()
    save_bias(model, tmp_path)
    other = sparse_model(name).eval()
    load_bias(other, tmp_path)
    with torch.no_grad():
        assert other(ids).logits.equal(model(ids).logits)
        assert not other(ids).logits.equal(before)


MOVING: dict[str, object] = {
    "dynamic_sampling": False,
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    # Rollouts of random weights fail in different ways, so groups have a spread.
    "format_failure_reward": {"default": -1.0, "truncated": -0.5},
}


@pytest.mark.parametrize("name", ["qwen2-moe", "gpt-oss"])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    # transformers' trainer reads checkpoints without making one tensor of a layer's experts.
    policy, data = save_sparse(name, tmp_path / "policy"), toy_trajectories(8)
    more = {**MOVING, "router_balancing": "bias", "router_bias_rate": 0.02}

    def trainer(run: str, **changes: object) -> SRLTrainer:
        return SRLTrainer(str(policy), toy_config(tmp_path / run, **{**more, **changes}), data)

    whole = trainer("whole")
    before = weights(whole.model)
    whole.train()
    trainer("cut", max_steps=2).train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=True)
    assert not same_weights(weights(whole.model), before)
    assert same_weights(weights(resumed.model), weights(whole.model))
    for one, two in zip(*(biases(sparse_layers(x.model)) for x in (resumed, whole)), strict=True):
        assert one.equal(two)
        assert one.any()
    logs = [(tmp_path / run / "experts.jsonl").read_bytes() for run in ("whole", "cut")]
    assert logs[0] == logs[1]
    whole.save_model(str(tmp_path / "saved"))
    loaded, _ = load_policy(str(tmp_path / "saved"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert loaded.eval()(ids).logits.equal(whole.model.eval()(ids).logits)


def test_the_best_checkpoint_comes_back_with_its_experts_and_biases(tmp_path: Path) -> None:
    policy, data = save_sparse("mixtral", tmp_path / "policy"), toy_trajectories(12)
    for greater in (True, False):  # one of them is not the last
        settings = toy_config(
            tmp_path / str(greater),
            **{**MOVING, "save_steps": 1, "max_steps": 3, "save_total_limit": None},
            router_balancing="bias",
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_reward",
            greater_is_better=greater,
        )
        trainer = SRLTrainer(str(policy), settings, data[:8], data[8:])
        trainer.train()
        best = str(trainer.state.best_model_checkpoint)
        saved, _ = load_policy(best)
        assert same_weights(weights(trainer.model), weights(saved))
        for one, two in zip(
            *(biases(sparse_layers(x)) for x in (trainer.model, saved)), strict=True
        ):
            assert one.equal(two)
        if not best.endswith("checkpoint-3"):
            break
    else:
        pytest.fail("the last checkpoint was the best and the worst")


LORA = "{r: 2, lora_alpha: 4}"


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss"])  # with wrapped routers, and without
def test_an_adapter_on_a_sparse_policy_trains_and_is_merged_with_its_bias(
    home: Path, name: str
) -> None:
    save_sparse(name, home / "sparse")
    write_config(home / "config.yaml", model="sparse", **MOVING)
    assert train("--lora", LORA, "--router_balancing", "bias", "--router_bias_rate", "0.01") == 0
    assert len(read_jsonl(home / "runs/one/experts.jsonl")) == 4
    policy, _ = load_policy("runs/one/policy")
    adapted, _ = load_policy("runs/one/adapter")
    for one, two in zip(*(biases(sparse_layers(x)) for x in (policy, adapted)), strict=True):
        assert one.equal(two)
        assert one.any()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(policy.eval()(ids).logits, adapted.eval()(ids).logits)


def test_a_frozen_router_has_no_adapter_that_moves(home: Path) -> None:
    save_sparse("mixtral", home / "sparse")
    write_config(home / "config.yaml", model="sparse", **MOVING)
    assert train("--lora", LORA, "--freeze_router", "true") == 0
    before, _ = load_policy("sparse")
    after, _ = load_policy("runs/one/policy")
    routers = [[layer.router.weight for layer in sparse_layers(x)] for x in (before, after)]
    assert all(one.equal(two) for one, two in zip(*routers, strict=True))  # type: ignore[operator, arg-type]
    assert not same_weights(weights(before), weights(after))


# ---- routers that cannot be read -----------------------------------------------------------------


def unreadable(folder: Path) -> Path:
    """LFM2-MoE, whose router wants its bias with the hidden states."""
    tokenizer = toy_tokenizer()
    config = transformers.Lfm2MoeConfig(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        hidden_size=32,
        intermediate_size=24,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_dense_layers=0,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        layer_types=["full_attention", "full_attention"],
        max_position_embeddings=64,
    )
    transformers.Lfm2MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_policy_whose_routers_cannot_be_read_trains_unwatched(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable(home / "sparse")
    write_config(home / "config.yaml", model="sparse", **MOVING)
    refused(capsys, train("--router_balancing", "loss"), "router_balancing is loss, but the router")
    assert train() == 0
    assert "so its load is not watched" in capsys.readouterr().out
    assert not (home / "runs/one/experts.jsonl").exists()


def test_a_bias_needs_a_router_that_takes_the_likeliest() -> None:
    model = sparse_model("mixtral")
    layer = sparse_layers(model)[0]
    forward = layer.router.forward

    def least_likely(states: Tensor) -> tuple[Tensor, ...]:
        logits, _, _ = forward(states)
        chosen = logits.topk(2, largest=False).indices
        return logits, logits.softmax(-1).gather(1, chosen), chosen

    layer.router.forward = least_likely
    with pytest.raises(UsageError, match="router_balancing: bias needs a router that takes"):
        Routers(model, RouterSettings(router_balancing="bias"))
    Routers(model, RouterSettings())


def test_a_checkpoint_from_before_the_load_was_logged_goes_on(tmp_path: Path) -> None:
    policy, data = save_sparse("gpt-oss", tmp_path / "policy"), toy_trajectories(8)
    more = {**MOVING, "max_steps": 2}
    SRLTrainer(str(policy), toy_config(tmp_path / "run", **more), data).train()
    state = tmp_path / "run/checkpoint-2" / STATE_FILE
    values = json.loads(state.read_text())
    del values["positions"]["experts"]
    state.write_text(json.dumps(values))
    (state.parent / MANIFEST).unlink()
    seal(state.parent)
    resumed = SRLTrainer(str(policy), toy_config(tmp_path / "run", **MOVING), data)
    resumed.train(resume_from_checkpoint=str(state.parent))
    assert [one["step"] for one in read_jsonl(tmp_path / "run/experts.jsonl")] == [3, 4]


def test_a_bias_of_another_model_is_refused(tmp_path: Path) -> None:
    model = sparse_model("mixtral")
    add_bias(sparse_layers(model))
    policy = save_sparse("glam-like", tmp_path / "policy")
    save_bias(model, policy)
    with pytest.raises(UsageError, match=f"{BIAS_FILE} is of another model"):
        load_policy(str(policy))


# ---- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--router_balancing", "loss"), "router_balancing is loss, but the policy is dense"),
        (("--freeze_router", "true"), "freeze_router is True, but the policy is dense"),
        (("--router_balancing", "lose"), "router_balancing.*lose.*loss.*library_loss"),
        (("--router_balancing_coef", "0.1"), "router_balancing is none, so it would do nothing"),
        (("--router_z_loss_coef", "-1"), "router_z_loss_coef is -1"),
        (("--router_balancing", "bias", "--router_bias_rate", "0"), "router_bias_rate is 0"),
        (
            ("--train_experts", "{}", "--freeze_router", "true"),
            "freeze_router is true, but with train_experts nothing but experts trains",
        ),
        (
            ("--router_balancing", "loss", "--freeze_router", "true"),
            "freeze_router is True, but router_balancing is loss",
        ),
    ],
)
def test_settings_without_use_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    refused(capsys, train(*words), message)


def test_a_sparse_policy_through_the_command_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_sparse("olmoe", home / "sparse")
    write_config(home / "config.yaml", model="sparse", dynamic_sampling=False, max_steps=2)
    assert train() == 0
    shown = capsys.readouterr()
    assert "sparse: 2 layers of 8 experts, 3 of them for a token" in shown.out
    assert len(read_jsonl(home / "runs/one/experts.jsonl")) == 2
