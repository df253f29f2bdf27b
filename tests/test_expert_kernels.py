"""Experts are computed as asked, in autocast's dtype, and alike in every way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import (
    read_jsonl,
    refused,
    toy_config,
    toy_tokenizer,
    toy_trajectories,
    train,
)
from sparse import FAMILIES, save_sparse, sparse_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from srl.commands.cli import main
from srl.models import loading
from srl.models.expert_kernels import keeping_cast_weights, use_experts
from srl.models.experts import sparse_layers
from srl.training.trainer import SRLTrainer

WAYS = ("eager", "batched_mm", "grouped_mm")
IDS = torch.arange(24).view(2, 12)


def outputs(model: PreTrainedModel, *, bf16: bool) -> list[Tensor]:
    """What the experts of each layer give, with gradients of the logits' sum of squares."""
    found: list[Tensor] = []

    def note(_m: nn.Module, _a: object, output: Tensor) -> None:
        found.append(output)

    hooks = [one.experts.register_forward_hook(note) for one in sparse_layers(model)]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(IDS, use_cache=False).logits
    logits.float().square().sum().backward()
    for hook in hooks:
        hook.remove()
    return found


def gradients(model: PreTrainedModel) -> Tensor:
    """Of all experts' weights, in one line."""
    weights = [w for one in sparse_layers(model) for w in one.weights().values()]
    return torch.cat([w.grad.flatten() for w in weights])  # type: ignore[union-attr]


@pytest.mark.parametrize("name", FAMILIES)
def test_under_autocast_experts_compute_in_bf16_over_float32_weights(name: str) -> None:
    exact, policy = sparse_model(name).eval(), sparse_model(name).eval()
    use_experts(policy)
    expected = outputs(exact, bf16=False)
    assert {one.dtype for one in expected} == {torch.float32}
    found = outputs(policy, bf16=True)
    assert {one.dtype for one in found} == {torch.bfloat16}
    torch.testing.assert_close(found[0].float(), expected[0], atol=0.02, rtol=0.05)
    assert gradients(policy).dtype == torch.float32
    alike = torch.cosine_similarity(gradients(policy), gradients(exact), dim=0)
    assert alike > 0.98  # a few tokens go to other experts


def test_without_it_grouped_mm_would_compute_in_float32() -> None:
    policy = sparse_model("mixtral").eval()
    assert policy.config._experts_implementation == "grouped_mm"
    assert {one.dtype for one in outputs(policy, bf16=True)} == {torch.float32}


def test_sizes_that_the_kernel_refuses_in_bf16_stay_in_float32() -> None:
    policy = sparse_model("mixtral", intermediate_size=20).eval()
    use_experts(policy)
    assert {one.dtype for one in outputs(policy, bf16=True)} == {torch.float32}


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "gpt-oss"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_logits_and_gradients(name: str, way: str) -> None:
    expected, policy = sparse_model(name).eval(), sparse_model(name).eval()
    expected.set_experts_implementation("eager")
    use_experts(policy, way)  # type: ignore[arg-type]
    assert policy.config._experts_implementation.removeprefix("srl_") == way
    for one, other in zip(outputs(policy, bf16=False), outputs(expected, bf16=False), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(policy), gradients(expected), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_kept_weights_are_those_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = sparse_model("mixtral").eval()
    use_experts(policy)
    casts: list[tuple[int, ...]] = []
    to = Tensor.to

    def counted(self: Tensor, *args: object, **further: object) -> Tensor:
        if self.dim() == 3 and args == (torch.bfloat16,) and isinstance(self, nn.Parameter):
            casts.append(tuple(self.shape))
        return to(self, *args, **further)  # type: ignore[call-overload, no-any-return]

    def logits() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found: Tensor = policy(IDS, use_cache=False).logits
        return found

    monkeypatch.setattr(Tensor, "to", counted)
    weights = [w for one in sparse_layers(policy) for w in one.weights().values()]
    with keeping_cast_weights():
        first = logits()
        assert torch.equal(logits(), first)
        assert len(casts) == len(weights)
        weights[0].mul_(2)
        changed = logits()
        assert not torch.equal(changed, first)
        assert len(casts) == len(weights) + 1
    assert torch.equal(logits(), changed)
    assert len(casts) == 2 * len(weights) + 1


def test_a_saved_policy_does_not_name_it(tmp_path: Path) -> None:
    policy = sparse_model("qwen3-moe")
    use_experts(policy)
    policy.save_pretrained(tmp_path)
    assert "srl_" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


@pytest.fixture(name="asked")
def fixture_asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways that policies are loaded with."""
    asked: list[str] = []

    def note(model: nn.Module, way: str = "auto") -> None:
        asked.append(way)
        use_experts(model, way)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "use_experts", note)
    return asked


@pytest.mark.parametrize("command", ["eval", "demo", "learnability"])
def test_commands_load_the_policy_so(home: Path, asked: list[str], command: str) -> None:
    save_sparse("mixtral", home / "sparse")
    words = ["--config", "config.yaml", "--model", "sparse", "--experts_implementation", "eager"]
    name = [] if command == "demo" else ["--run-name", "r"]
    assert main([command, *words, *name]) == 0
    assert asked == ["eager"]


def test_the_setting_chooses(home: Path, asked: list[str]) -> None:
    save_sparse("mixtral", home / "sparse")
    words = ("--model", "sparse", "--dynamic_sampling", "false", "--max_steps", "1")
    scores = []
    for way in WAYS:
        assert train(*words, "--experts_implementation", way, name=way) == 0
        records = read_jsonl(home / f"runs/{way}/steps.jsonl")
        scores.append([(one["action"], one["reward"]) for one in records])
    assert scores[0] == scores[1] == scores[2]
    assert [way for way in asked if way != "auto"] == list(WAYS)


def test_wrong_use_of_the_setting(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = train("--experts_implementation", "eager")
    refused(capsys, code, "experts_implementation is eager, but the policy is not sparse")
    code = train("--experts_implementation", "fast")
    refused(capsys, code, "auto, eager, batched_mm, grouped_mm")


def test_a_trainer_given_a_model_uses_it_too(tmp_path: Path) -> None:
    settings = toy_config(tmp_path, experts_implementation="eager")
    policy = sparse_model("mixtral")
    SRLTrainer(policy, settings, toy_trajectories(8), processing_class=toy_tokenizer())
    assert policy.config._experts_implementation == "eager"
