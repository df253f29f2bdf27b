"""Tiny sparse policies of every family, built on the spot."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import transformers
from conftest import TOY_CONTEXT, toy_tokenizer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.granitemoe import modeling_granitemoe

from srl.models.experts import sparse_layers
from srl.models.tree_models import attending_over_trees

transformers.logging.disable_progress_bar()  # a bar is no message of ours

SIZES: dict[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TOY_CONTEXT,
    "bos_token_id": None,
}
FINE = {"moe_intermediate_size": 16, "norm_topk_prob": True}

# Class without its ending, and what its config says beyond the sizes.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen2-moe": (
        "Qwen2Moe",
        {"num_experts": 6, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16, **FINE},
    ),
    "qwen3-moe": ("Qwen3Moe", {"num_experts": 8, "num_experts_per_tok": 4, "head_dim": 8, **FINE}),
    "olmoe": ("Olmoe", {"num_experts": 8, "num_experts_per_tok": 3}),
    "granite-moe": ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": (
        "GptOss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 32},
    ),
    # As Switch Transformer and GLaM route: one expert of many, and two of many.
    "switch-like": (
        "Qwen3Moe",
        {"num_experts": 8, "num_experts_per_tok": 1, "head_dim": 8, **FINE},
    ),
    "glam-like": ("Mixtral", {"num_local_experts": 16, "num_experts_per_tok": 2}),
}


# transformers 5.17 has Granite's routers in another form, which is not read.
if not hasattr(modeling_granitemoe, "GraniteMoeTopKRouter"):
    del FAMILIES["granite-moe"]


def sparse_model(name: str, **changes: object) -> PreTrainedModel:
    """Random weights, routers far enough from uniform that experts differ in their load."""
    family, more = FAMILIES[name]
    tokenizer = toy_tokenizer()
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**SIZES, **more, **changes},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config)
        for layer in sparse_layers(model):
            for weight in layer.router.parameters():
                torch.nn.init.normal_(weight, std=0.3)
    return model


def save_sparse(name: str, folder: Path, **changes: object) -> Path:
    """A model folder."""
    sparse_model(name, **changes).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def collapse(model: PreTrainedModel, rows: list[list[int]], push: float) -> None:
    """Every layer sends most tokens of such rows to `top_k` experts of its own: those whose logits
    it raises by `push`, on average."""
    for number, layer in enumerate(sparse_layers(model)):
        read: list[Tensor] = []
        hook = layer.router.register_forward_pre_hook(
            lambda _module, args, read=read: read.append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for row in rows:
            model(torch.tensor([row]))
        hook.remove()
        mean = torch.cat(read).mean(0)
        weight = next(one for one in layer.router.parameters() if one.dim() == 2)
        for i in range(layer.top_k):
            weight[(number * layer.top_k + i) % layer.num_experts] += (
                push * mean / mean.square().sum()
            )


def attending(model: torch.nn.Module, tree: bool) -> AbstractContextManager[None]:
    return attending_over_trees(model) if tree else nullcontext()
