"""Counts the floating-point operations of an update on the prefix tree, each token once.

Only matrix products count, with two operations for a multiply-add. The backward pass counts as two
forward passes. Recomputation (the logits of the fused head, the layers under gradient
checkpointing) does not count.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from srl.models.prefix_tree import PrefixTree


def update_flops(config: PreTrainedConfig, tree: PrefixTree) -> float:
    """Returns the floating-point operations of one forward and one backward pass over the tree.

    The count holds for architectures built like Qwen2 and Llama.
    """
    return 3 * forward_flops(config, tree)


def forward_flops(config: PreTrainedConfig, tree: PrefixTree) -> float:
    """Returns the floating-point operations of one forward pass over the tree.

    The head runs only on the nodes that predict a token of a completion.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    projections = hidden * width * (2 * heads + 2 * config.num_key_value_heads)
    layer = len(tree) * (projections + 3 * hidden * config.intermediate_size)
    # Every node attends to all nodes of its path so far: one product for the scores, one for the
    # values.
    seen = sum(position + 1 for position in tree.positions)
    attention = 2 * seen * heads * width
    predictors = {tree.parents[node] for node in tree.completion_nodes}
    head = len(predictors) * hidden * config.vocab_size
    return 2.0 * (config.num_hidden_layers * (layer + attention) + head)
