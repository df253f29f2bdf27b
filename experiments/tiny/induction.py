"""Sets initial weights with which a small decoder can look up earlier text from its first update.

An induction head finds an earlier place by its text: after `. Leo` it predicts what followed
`. Leo` before. This needs two layers that fit together. The first writes the preceding tokens into
each token, and the second compares them (Olsson et al. 2022, "In-context Learning and Induction
Heads"). Models of usual size learn it from usual amounts of data. Here, from random weights, it did
not form within 8.7 M tokens, which is more than two cores read in half an hour. So the base policy
starts with such heads, and training may keep or change them like any other weights (compare
Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers"). README.md shows the
effect on the loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

# The outputs of all other branches to the residual stream are scaled by this factor. The embeddings
# have norm 1, and a random MLP of this width would add nine times as much to them.
QUIET = 0.05
LOOK_BACK_LOGIT = 24.0  # of a look-back head at its offset, relative to places far away
MATCH_GAIN = 3.2  # of the queries and keys that compare tokens
WRITE_GAIN = 0.16  # look-back heads write the earlier token with norm 1, like the embeddings
COPY_GAIN = 0.6  # the token found is written with a larger norm than the one it is found from


@torch.no_grad()
def wire_induction(model: Qwen2ForCausalLM, generator: torch.Generator) -> None:
    """Changes the first two attention layers of a new model in place, except their last heads.

    The outputs of those heads, of all other layers and of all MLPs are scaled down.

    Layer 0: head k attends to the token k + 1 places back, and writes it into its own subspace. It
    uses only the biases of query and key and the fast rotary frequencies.
    Layer 1: head k compares the last k + 1 tokens with the tokens before every earlier token, and
    copies the token that it finds. It uses slow rotary frequencies, so distance hardly matters.

    Args:
        model: a Qwen2 model with biases on queries and keys, as many key-value heads as query
            heads, tied embeddings, and at least two layers and two heads.
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
        # RoPE rotates a key by its place. A query that is rotated back by head + 1 places agrees
        # best with the key that many places before it.
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
            # Compares the token `back_by` places before the query with the token `back_by` + 1
            # places before the key.
            queried = token_basis if back_by == 0 else written[back_by - 1]
            find.q_proj.weight[rows][places] += MATCH_GAIN * queried[:width]
            find.k_proj.weight[rows][places] += MATCH_GAIN * written[back_by][:width]
        copied = _orthonormal(size, config.hidden_size, generator)
        find.v_proj.weight[rows] = copied
        find.o_proj.weight[:, rows] = COPY_GAIN * copied.T


def _keep_little(attention: torch.nn.Module, rows: slice) -> None:
    """Scales a head's random queries and keys to a tenth, so that they still differ by token."""
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[rows] *= 0.1


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Returns a random [rows, columns] matrix with orthonormal rows."""
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q.T
