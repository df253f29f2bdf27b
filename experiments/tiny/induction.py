"""Initial weights under which a small decoder can look things up from its first update.

Attention that finds an earlier place by what stands there ("after `. Leo` comes what came after
`. Leo` before") needs two layers to agree: one that tells each token what stood before it, one that
matches on that (Olsson et al. 2022, "In-context Learning and Induction Heads"). Models of usual
size and data come to it by themselves; from random weights it did not form here within 8.7 M
tokens, which is more than two cores read in half an hour. So the base policy starts with it, and
training may keep or change it like any other weight (compare Trockman and Kolter 2023, "Mimetic
Initialization of Self-Attention Layers"). README.md has what it made of the loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

# What all other branches write into the residual stream is scaled down by this: the embeddings have
# norm 1, and a random MLP of this width would write nine times as much over them.
QUIET = 0.05
LOOK_BACK_LOGIT = 24.0  # of a look-back head at its offset, above that far away
MATCH_GAIN = 3.2  # of queries and keys where tokens are compared
WRITE_GAIN = 0.16  # look-back heads write the earlier token with norm 1, as the embeddings have
COPY_GAIN = 0.6  # the token found is written louder than the one it is found from


@torch.no_grad()
def wire_induction(model: Qwen2ForCausalLM, generator: torch.Generator) -> None:
    """Change the first two attention layers of a fresh model in place, but for their last head.

    What that head, all other layers and all MLPs write is scaled down.

    Layer 0: head k attends to the token k + 1 places back, by the query's and key's biases and the
    fast rotary frequencies alone, and writes it into a subspace of its own.
    Layer 1: head k compares the last k + 1 tokens with those before every earlier token, on slow
    rotary frequencies, on which distance hardly counts, and copies the token found.

    Args:
        model: Qwen2 with biases on queries and keys, as many key-value heads as query heads, tied
            embeddings, at least two layers and two heads.
        generator: draws the subspaces.
    """
    config = model.config
    heads = config.num_attention_heads
    size = config.hidden_size // heads
    lookers = heads - 1
    for layer in model.model.layers:
        layer.mlp.down_proj.weight *= QUIET
        layer.self_attn.o_proj.weight *= QUIET

    half = size // 2
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    fast = (frequencies > 0.05).float()
    slow = torch.where(frequencies < 0.005)[0]
    slow = torch.cat([slow, slow + half])
    token_basis = _orthonormal(size, config.hidden_size, generator)
    written = _orthonormal(size * lookers, config.hidden_size, generator).chunk(lookers)

    back = model.model.layers[0].self_attn
    strength = math.sqrt(LOOK_BACK_LOGIT * math.sqrt(size) / fast.sum().item())
    for head in range(lookers):
        rows = slice(head * size, (head + 1) * size)
        _keep_little(back, rows)
        # Rotation turns a key by its place: a query turned back by `offset` agrees best with the
        # key that many places before it.
        phase = -(head + 1) * frequencies
        back.q_proj.bias[rows] = strength * torch.cat(
            [fast * torch.cos(phase), fast * torch.sin(phase)]
        )
        back.k_proj.bias[rows] = strength * torch.cat([fast, torch.zeros(half)])
        back.v_proj.weight[rows] = token_basis
        back.o_proj.weight[:, rows] = WRITE_GAIN * written[head].T

    find = model.model.layers[1].self_attn
    for head in range(lookers):
        rows = slice(head * size, (head + 1) * size)
        _keep_little(find, rows)
        order = slow[torch.randperm(len(slow), generator=generator)]
        for back_by, places in enumerate(order.chunk(head + 1)):
            width = len(places)
            # The token `back_by` places before the query, against the one a place further back
            # from the key.
            queried = token_basis if back_by == 0 else written[back_by - 1]
            find.q_proj.weight[rows][places] += MATCH_GAIN * queried[:width]
            find.k_proj.weight[rows][places] += MATCH_GAIN * written[back_by][:width]
        copied = _orthonormal(size, config.hidden_size, generator)
        find.v_proj.weight[rows] = copied
        find.o_proj.weight[:, rows] = COPY_GAIN * copied.T


def _keep_little(attention: torch.nn.Module, rows: slice) -> None:
    """Leave a tenth of a head's random queries and keys, so that it is not alike in all tokens."""
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[rows] *= 0.1


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns], rows orthonormal."""
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q.T
