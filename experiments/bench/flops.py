"""Floating-point operations of an update, counted on the prefix tree: no token twice.

Matrix products alone, two operations a multiply-add, forward once and backward twice. What an
implementation computes again (the fused head its logits, checkpointing its layers) is not counted.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from srl.models.prefix_tree import PrefixTree


def update_flops(config: PreTrainedConfig, tree: PrefixTree) -> float:
    """Of one forward and backward over the tree, for architectures built like Qwen2 and Llama."""
    return 3 * forward_flops(config, tree)


def forward_flops(config: PreTrainedConfig, tree: PrefixTree) -> float:
    """Of one forward; the head sees what predicts a completion's token."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    projections = hidden * width * (2 * heads + 2 * config.num_key_value_heads)
    layer = len(tree) * (projections + 3 * hidden * config.intermediate_size)
    # Every node looks at all nodes of its path so far, once for the scores and once for the values.
    seen = sum(position + 1 for position in tree.positions)
    attention = 2 * seen * heads * width
    predictors = {tree.parents[node] for node in tree.completion_nodes}
    head = len(predictors) * hidden * config.vocab_size
    return 2.0 * (config.num_hidden_layers * (layer + attention) + head)
