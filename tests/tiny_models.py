"""Tiny models of random weights, dense and sparse, saved in a folder with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from conftest import CHATML, build_tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.granitemoe import modeling_granitemoe

transformers.logging.disable_progress_bar()  # a bar is no message of ours

TOKENS = 259  # bytes and three special tokens
_SIZES = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": 257,
}
# Nothing here is as the sparse counterpart has it by default.
DENSE: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(
        **_SIZES,
        intermediate_size=64,
        rms_norm_eps=1e-3,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=70,
        max_window_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0},
    ),
    "qwen3": Qwen3Config(
        **_SIZES,
        intermediate_size=64,
        head_dim=16,
        rms_norm_eps=1e-3,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=70,
        max_window_layers=0,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0},
    ),
    "llama": LlamaConfig(
        **_SIZES,
        intermediate_size=64,
        head_dim=16,
        rms_norm_eps=1e-3,
        hidden_act="gelu",
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 777.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 40,
        },
    ),
    "mistral": MistralConfig(
        **_SIZES,
        intermediate_size=64,
        rms_norm_eps=1e-3,
        sliding_window=70,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0},
    ),
}
_FEW = {"num_experts_per_tok": 2, "intermediate_size": 16}
# The weights of a token's experts sum to 1 in each of them.
SPARSE: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**_SIZES, **_FEW, num_local_experts=8),
    "qwen2_moe": Qwen2MoeConfig(
        **_SIZES,
        **_FEW,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=8,
        num_experts=8,
        norm_topk_prob=True,
    ),
    # Its first layer is dense, so the number of a layer is not its place among the sparse ones.
    "qwen3_moe": Qwen3MoeConfig(
        **{**_SIZES, "num_hidden_layers": 3},
        **_FEW,
        moe_intermediate_size=16,
        num_experts=8,
        head_dim=8,
        mlp_only_layers=[0],
        norm_topk_prob=True,
    ),
    "olmoe": OlmoeConfig(**_SIZES, **_FEW, num_experts=8, norm_topk_prob=True),
    "granitemoe": GraniteMoeConfig(**_SIZES, **_FEW, num_local_experts=8),
    "gpt_oss": GptOssConfig(
        **_SIZES,
        **_FEW,
        num_local_experts=8,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}
# transformers 5.17 has Granite's routers in another form, which is not read.
if not hasattr(modeling_granitemoe, "GraniteMoeTopKRouter"):
    del SPARSE["granitemoe"]


def random_model(
    config: PretrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Random weights; norms and biases, which start as ones and zeros, are random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            if weight.dim() == 1 or "bias" in name:
                nn.init.normal_(weight, 0.0 if "bias" in name else 1.0, 0.2)
            elif "router" in name or name.endswith("gate.weight"):
                nn.init.normal_(weight, 0.0, 0.2)
    return model.to(dtype).eval()


def save(
    model: PreTrainedModel, folder: Path, *, tokenizer: bool = True, shard: str = "50GB"
) -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    if tokenizer:
        build_tokenizer(
            chat_template=CHATML, eos="<|im_end|>", special=("<|im_start|>",)
        ).save_pretrained(folder)
    return folder


def read_back(folder: Path) -> PreTrainedModel:
    """As transformers reads it, in the dtype in which it lies there."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def some_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(TOKENS, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits.float()
