"""What the tests of sampling share: tiny models, prompts, and both decoders.

A test file imports the fixture by the name of its function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from srl.rollout import choice
from srl.rollout.samplers import Completion, LocalSampler, SamplingParams

VOCABULARY = 24
PAD = 0
PROMPTS = [[5, 6, 7], [8], [9, 1, 2, 3, 4, 11, 12, 13], [3, 3], [14, 15, 16, 17, 18]]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    # Far from uniform, so that no rounding turns one greedy token into another
    "initializer_range": 0.6,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@pytest.fixture(name="decoder", params=["shared", "cached"], autouse=True)
def fixture_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of the file is run with both decoders."""
    if request.param == "cached":
        monkeypatch.setattr(choice, "refusal", lambda model: "asked for")
    return str(request.param)


def qwen2(**changes: object) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **changes}))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def gemma2() -> PreTrainedModel:
    """Every second layer sees 4 tokens only: less than a prompt, far less than a completion."""
    config = Gemma2Config(**SIZES, head_dim=8, sliding_window=4, query_pre_attn_scalar=8)
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config)


def build(make: Callable[[], PreTrainedModel] = qwen2) -> PreTrainedModel:
    torch.manual_seed(0)
    return make().eval()


def local(model: PreTrainedModel, token_budget: int = 10_000) -> LocalSampler:
    return LocalSampler(model, pad_id=PAD, token_budget=token_budget)


def greedy(max_new_tokens: int, *stop_ids: int) -> SamplingParams:
    return SamplingParams(max_new_tokens, temperature=0, stop_ids=frozenset(stop_ids))


def sampled(**changes: int) -> SamplingParams:
    return SamplingParams(10, temperature=1.2, stop_ids=frozenset({3, 4}), **changes)  # type: ignore[arg-type]


def ids_of(groups: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids for completion in group] for group in groups]
