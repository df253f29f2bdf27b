"""Turns a dense model into a sparse one whose experts start as copies of its feed-forward layers.

The method is sparse upcycling (arXiv 2212.05055). Four architectures have a sparse counterpart:
Qwen2 becomes Qwen2-MoE, Qwen3 becomes Qwen3-MoE, Llama and Mistral become Mixtral. At the start the
sparse model computes the dense model's logits, because the weights of a token's experts sum to 1
and every expert is a copy.

With `split` S an expert is one S-th of a copy (virtual groups, arXiv 2410.07524). The S parts of a
copy have the same row in the router, so they are chosen together. Their down projections are
multiplied by S, because each part gets one S-th of the copy's routing weight. With `reinit` a share
of every expert is redrawn (drop-upcycling, arXiv 2502.19261), so that experts differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from srl.errors import UsageError
from srl.models.experts import Cost, sparse_layers
from srl.models.fetching import check_room
from srl.models.loading import load_policy
from srl.models.meta import config_of, meta_model
from srl.models.sparse_config import Upcycling, sparse_config

# Largest difference of logits that is accepted. Rounding in float32 gives about 1e-6.
MOST_DIFFERENCE = 1e-4
_PROBE_TOKENS = 64
_PROBE_TEXT = "A farmer has 12 cows and buys 7 more. 12 + 7 = 19.\n"


def write_upcycled(name: str, folder: Path, plan: Upcycling, say: Callable[[str], None]) -> None:
    """Turns the dense model `name` into a sparse one; writes it in float32, with its tokenizer.

    Args:
        name: a folder or a hub name.
        folder: an empty folder to write to.
        plan: the number of experts, their size, and the share that is redrawn.
        say: called with texts about the new model and its difference from the dense model's logits.

    Raises:
        UsageError: the model cannot be loaded or has no sparse counterpart, the disk has no room,
            or the sparse model computes wrong logits.
    """
    config = sparse_config(config_of(name), plan, name)
    cost = Cost.of(meta_model(config, name))
    check_room(folder, cost.bytes_to_read())
    dense, tokenizer = load_policy(name)
    say(_made(dense, config, plan, cost))
    ids = probe(config)
    expected = logits(dense.eval(), ids)
    generator = torch.Generator().manual_seed(plan.seed)
    sparse = upcycle(dense, config, plan, generator)
    computed = logits(sparse, ids)
    _check_close(computed, expected, f"{name} cannot be upcycled: the sparse model that was built")
    say(
        f"its logits are the dense model's: on {ids.numel()} tokens the largest difference is "
        f"{_largest(computed, expected):.1e}"
    )
    if plan.reinit:
        reinitialise(sparse, dense, plan, generator)
        computed = logits(sparse, ids)
        say(_moved(plan, computed, expected))
    del dense
    sparse.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del sparse
    _check_saved(folder, ids, computed, tokenizer, name)
    say(_how_it_learns(plan))


def probe(config: PretrainedConfig) -> Tensor:
    """Returns token ids [1, T] from the whole vocabulary, always the same for a model."""
    size = min(_PROBE_TOKENS, getattr(config, "max_position_embeddings", None) or _PROBE_TOKENS)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (1, size), generator=generator)


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Computes the logits [1, T, V] of `ids` without a cache.

    Raises:
        UsageError: the model cannot compute them, for example if a kernel refuses a size.
    """
    try:
        return model(ids, use_cache=False).logits
    except RuntimeError as error:
        raise UsageError(
            f"a model of type {model.config.model_type} of these sizes computes nothing on this "
            f"machine: {str(error).splitlines()[0]}"
        ) from error


def _largest(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


def _check_close(computed: Tensor, expected: Tensor, what: str) -> None:
    """Raises UsageError if logits differ too much from the expected ones, or are NaN."""
    difference = _largest(computed, expected)
    if not difference <= MOST_DIFFERENCE:
        raise UsageError(
            f"{what} computes other logits than it must: the largest difference is "
            f"{difference:.1e}, and {MOST_DIFFERENCE:.0e} is allowed. A setting of its config.json "
            "has another meaning in the sparse architecture; nothing was written"
        )


def _check_saved(
    folder: Path, ids: Tensor, computed: Tensor, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Raises UsageError unless the saved model gives the expected logits and tokens."""
    again, reader = load_policy(str(folder))
    what = f"{name} cannot be upcycled: the sparse model, read back from the disk,"
    _check_close(logits(again.eval(), ids), computed, what)
    if reader(_PROBE_TEXT).input_ids != tokenizer(_PROBE_TEXT).input_ids:
        raise UsageError(
            f"{name} cannot be upcycled: beside the sparse model its tokenizer reads other tokens"
        )


def upcycle(
    dense: PreTrainedModel, config: PretrainedConfig, plan: Upcycling, generator: torch.Generator
) -> PreTrainedModel:
    """Builds a sparse model that computes the same logits as `dense`.

    Args:
        dense: the dense model in float32. The new model shares its weights outside the feed-forward
            layers; they are not copied.
        config: the config of the sparse model, from `sparse_config`.
        plan: the plan that the config was made with.
        generator: draws the router's weights.
    """
    with torch.device("meta"):  # no memory for weights that are replaced at once
        sparse = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = dense.state_dict()
    std = config.initializer_range if plan.router_std is None else plan.router_std
    for layer in sparse_layers(sparse):
        for key in [key for key in state if key.startswith(f"{layer.name}.")]:
            del state[key]
        made = _experts(dense.get_submodule(layer.name), plan)
        made["gate.weight"] = _router(config.hidden_size, plan, std, generator)
        if config.model_type == "qwen2_moe":
            shared = config.shared_expert_intermediate_size
            made |= _shared_expert(dense.get_submodule(layer.name), shared)
        state |= {f"{layer.name}.{key}": value for key, value in made.items()}
    sparse.load_state_dict(state, assign=True)
    sparse.tie_weights()
    # Its frequencies are not weights and are still on the meta device; the config determines them.
    sparse.model.rotary_emb = type(sparse.model.rotary_emb)(config)
    sparse.config._name_or_path = ""
    sparse.generation_config = dense.generation_config
    return sparse.eval()


def _experts(mlp: nn.Module, plan: Upcycling) -> dict[str, Tensor]:
    """Returns weights [E, 2I, H] and [E, H, I]; part s of copy g is the expert g * S + s."""
    gate, up, down = _matrices(mlp)
    parts, hidden = plan.split, gate.shape[1]
    gate_up = torch.cat([x.reshape(parts, -1, hidden) for x in (gate, up)], dim=1)
    downs = down.reshape(hidden, parts, -1).transpose(0, 1) * parts
    copies = plan.num_experts // parts
    return {
        "experts.gate_up_proj": gate_up.repeat(copies, 1, 1),
        "experts.down_proj": downs.repeat(copies, 1, 1),
    }


def _router(hidden: int, plan: Upcycling, std: float, generator: torch.Generator) -> Tensor:
    """Draws a router [E, H] with one row for each copy, repeated for the parts of the copy."""
    rows = torch.randn(plan.num_experts // plan.split, hidden, generator=generator) * std
    return rows.repeat_interleave(plan.split, dim=0)


def _shared_expert(mlp: nn.Module, size: int) -> dict[str, Tensor]:
    """Returns the weights of a shared expert that adds nothing at first but can learn.

    Its down projection and `shared_expert_gate` are zero. Its features are the first `size` of the
    dense layer, so the down projection has a gradient at once. All other weights get one as soon as
    the down projection is not zero any more.
    """
    gate, up, down = _matrices(mlp)
    return {
        "shared_expert.gate_proj.weight": gate[:size].clone(),
        "shared_expert.up_proj.weight": up[:size].clone(),
        "shared_expert.down_proj.weight": torch.zeros_like(down[:, :size]),
        "shared_expert_gate.weight": torch.zeros_like(gate[:1]),
    }


def _matrices(mlp: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the matrices gate and up, [I, H] each, and down, [H, I]."""
    names = ("gate_proj", "up_proj", "down_proj")
    gate, up, down = (mlp.get_parameter(f"{name}.weight").detach() for name in names)
    return gate, up, down


@torch.no_grad()
def reinitialise(
    sparse: PreTrainedModel, dense: PreTrainedModel, plan: Upcycling, generator: torch.Generator
) -> None:
    """Redraws a share of the intermediate columns of each expert, in place.

    The columns are drawn for each expert. The new values are normal, with the mean and standard
    deviation of the dense matrix.

    Args:
        sparse: a model from `upcycle`.
        dense: the model that `sparse` was made from.
        plan: its `reinit` is the share.
        generator: draws the columns and the values.
    """

    def drawn(like: Tensor, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * like.std() + like.mean()

    for layer in sparse_layers(sparse):
        gate, up, down = _matrices(dense.get_submodule(layer.name))
        gate_up, downs = layer.weights()["gate_up_proj"], layer.weights()["down_proj"]
        hidden, size = downs.shape[1:]
        count = max(1, round(plan.reinit * size))
        for expert in range(layer.num_experts):
            columns = torch.randperm(size, generator=generator)[:count]
            gate_up[expert, columns] = drawn(gate, count, hidden)
            gate_up[expert, size + columns] = drawn(up, count, hidden)
            downs[expert][:, columns] = drawn(down, hidden, count) * plan.split


def _made(dense: PreTrainedModel, config: PretrainedConfig, plan: Upcycling, cost: Cost) -> str:
    parts = "" if plan.split == 1 else f", each 1/{plan.split} of a copy"
    return (
        f"{dense.config.model_type} -> {config.model_type}: {plan.num_experts} experts a layer"
        f"{parts}, {plan.top_k} of them for each token; {dense.num_parameters():,} parameters "
        f"become {cost.total:,}, of which a token uses {cost.active:,}; as float32 they take "
        f"{cost.bytes_to_read() / 1e9:.1f} GB"
    )


def _moved(plan: Upcycling, computed: Tensor, expected: Tensor) -> str:
    apart = (computed - expected).abs()
    return (
        f"{plan.reinit:.0%} of each expert is drawn anew, so the model does not compute the dense "
        f"model's logits any more: they moved by {apart.mean().item():.2g} on average and by "
        f"{apart.max().item():.2g} at most, beside a standard deviation of "
        f"{expected.std().item():.2g}"
    )


def _how_it_learns(plan: Upcycling) -> str:
    """Returns a text on what the task teaches the router, as measured in docs/experts.md."""
    if plan.top_k == plan.split:
        return (
            "a token goes to one copy only, whose weights always sum to 1, so the task does not "
            "teach the router which one to choose: only balancing moves it. With a larger --top-k "
            "the task teaches it too"
        )
    if plan.reinit:
        return "the copies differ, so the task teaches the router which ones to choose"
    return (
        "the copies are equal, so the task does not teach the router which ones to choose; to make "
        "them differ give --reinit 0.5, or train with balancing"
    )
