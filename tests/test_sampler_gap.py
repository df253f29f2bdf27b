"""The sampler and the update agree on what they compute, on every architecture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import test_scoring
import test_tree_models
import torch
from conftest import read_jsonl, toy_config, toy_trajectories
from transformers import PreTrainedModel

from srl.models.scoring import completion_log_probs
from srl.models.tree_models import attending_over_trees, refusal
from srl.rollout.samplers import LocalSampler, Prompt, SamplingParams, complete
from srl.training.sampler_gap import SamplerGap
from srl.training.trainer import SRLTrainer

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **{n: partial(test_tree_models.built, n) for n in test_tree_models.FAMILIES},
    **{n: partial(test_scoring.built, n) for n in test_scoring.architectures()},
}
LONG = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]
PROMPTS = [LONG[:4], LONG[:9], LONG, [20, 21]]  # nested, as the steps of a trajectory are
TEMPERATURE = 0.9


def gap_of(model: PreTrainedModel, *, share: bool, half: bool = False) -> dict[str, float]:
    sampler = LocalSampler(model, pad_id=0, token_budget=4000, share=share)
    params = SamplingParams(16, temperature=TEMPERATURE, stop_ids=frozenset({3, 4}))
    asked = [Prompt(ids, key) for key, ids in enumerate(PROMPTS)]
    gap = SamplerGap()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        groups = complete(sampler, asked, 4, params)
        pairs = [(p, one) for p, group in zip(PROMPTS, groups, strict=True) for one in group]
        with attending_over_trees(model) if share else nullcontext():
            scores = completion_log_probs(
                model,
                [(prompt, one.ids) for prompt, one in pairs],
                pad_id=0,
                temperature=TEMPERATURE,
                device="cpu",
                tree=share,
            )
        gap.add(scores, [one.log_probs for _, one in pairs])
    return gap.metrics()


@pytest.mark.parametrize("name", MODELS)
def test_the_gap_is_rounding_on_every_architecture(name: str) -> None:
    model = MODELS[name]().eval()
    for share in {False, refusal(model) is None}:
        found = gap_of(model, share=share)
        assert 0 <= found["sampler_gap"] <= found["max_sampler_gap"] < 1e-4


def test_another_policy_and_half_precision_show() -> None:
    model = MODELS["qwen2"]().eval()
    exact = gap_of(model, share=True)
    rounded = gap_of(model, share=True, half=True)
    assert rounded["sampler_gap"] > 100 * exact["sampler_gap"]

    gap = SamplerGap()
    scores = completion_log_probs(
        model, [([5, 6], [7, 8, 9]), ([5], [6])], pad_id=0, temperature=1.0, device="cpu"
    )
    sampled = [[value - 0.5 for value in row] for row in scores.log_probs.tolist()]
    gap.add(scores, [sampled[0], sampled[1][:1]])
    assert gap.metrics() == pytest.approx({"sampler_gap": 0.5, "max_sampler_gap": 0.5}, abs=1e-6)
    assert SamplerGap().metrics() == {}


def test_every_sampled_step_logs_it(toy_policy: Path, tmp_path: Path) -> None:
    args = toy_config(tmp_path, max_steps=4, num_iterations=2)
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    lines = [line for line in read_jsonl(tmp_path / "metrics.jsonl") if "grad_norm" in line]
    for first, second in (lines[:2], lines[2:]):
        assert 0 < float(first["sampler_gap"]) < float(first["max_sampler_gap"]) < 1e-4  # type: ignore[arg-type]
        assert "sampler_gap" not in second  # nothing was sampled
