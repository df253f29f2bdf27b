"""Makes transformers models attend over prefix trees, and tests which models can.

Attention goes through transformers' `AttentionInterface`. The tree is a keyword argument of the
model's forward. A trial (`refusal`) decides which models can be trusted with it, not their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from srl.models.prefix_tree import PrefixTree, Row
from srl.models.rounding import WorstError, tolerated
from srl.models.tree_attention import How, TreePlan

IMPLEMENTATION = "srl_prefix_tree"

# The errors that a forward may raise in a trial that it does not support.
FAILURES = (
    TypeError,
    ValueError,
    RuntimeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
)


class _CannotFollowError(Exception):
    """A layer's attention has no counterpart over trees; the message is the refusal."""


class Attending(Protocol):
    """The type of a model's `tree` argument; it computes attention in place of every layer."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        """Computes attention [R, L, H, D] from q [R, H, L, D], k and v [R, H_kv, L, D]."""
        ...


def _attention_interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    tree: Attending | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Turns [R, H, L, D] into [R, L, H, D] with `tree`; transformers calls it for each layer."""
    if tree is None:
        raise RuntimeError("this model attends over prefix trees, and was given none")
    if dropout or s_aux is not None:
        raise _CannotFollowError(f"its attention has {'dropout' if dropout else 'sinks'}")
    # Autocast does the same for sdpa; position embeddings leave autocast in float32.
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    how = How(scale, softcap, sliding_window)
    # The float32 computations below must stay in float32.
    with torch.autocast(query.device.type, enabled=False):
        return tree.attend(cast(int, module.layer_idx), query, key, value, how), None


AttentionInterface.register(IMPLEMENTATION, _attention_interface)


def tree_inputs(tree: PrefixTree, device: torch.device | str) -> dict[str, object]:
    """Returns the inputs of a model's forward for a tree: one line [1, N] of all its nodes."""
    plan = TreePlan.of(tree, device)
    return {
        "input_ids": torch.tensor([tree.tokens], dtype=torch.long).to(device),
        "position_ids": plan.positions[None],
        "tree": plan,
    }


@contextmanager
def attending_over_trees(model: nn.Module) -> Iterator[None]:
    """Makes the model attend over trees; its forward then needs a `tree`, as from `tree_inputs`.

    Run the backward pass inside too, because gradient checkpointing runs the forward again.
    """
    before = model.config._attn_implementation  # type: ignore[union-attr]
    model.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]


def attends_over_trees(model: nn.Module) -> bool:
    """Returns whether the caller is inside `attending_over_trees(model)`.

    Outside, the model would read a tree as one row.
    """
    while isinstance(getattr(model, "module", None), nn.Module):  # DDP, DeepSpeed
        model = cast(nn.Module, model.module)
    return bool(model.config._attn_implementation == IMPLEMENTATION)  # type: ignore[union-attr]


# The allowed kinds of layers; other kinds mix tokens in ways that a tree does not support.
_LAYERS = {"full_attention", "sliding_attention"}


_refusals: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def refusal(model: nn.Module) -> str | None:
    """Returns why this model cannot attend over prefix trees, in a few words; None if it can.

    Each model is tried once: on a few tokens, its logits over a tree must equal its logits over
    rows. So a model that computes its own attention, or mixes tokens in other ways, is never
    trained on wrong results.
    """
    if model not in _refusals:
        _refusals[model] = _try(model)
    return _refusals[model]


@torch.no_grad()
def _try(model: nn.Module) -> str | None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "set_attn_implementation"):
        return f"{type(model).__name__} is no transformers model"
    text = config.get_text_config()
    if other := sorted(set(getattr(text, "layer_types", None) or ()) - _LAYERS):
        return f"it has layers of the kind {', '.join(other)}"
    device = next(model.parameters()).device
    limit = getattr(text, "max_position_embeddings", None) or 64
    length = min(40, limit - 4)
    tokens = [i % (text.vocab_size - 1) + 1 for i in range(length)]
    half = tokens[: length // 2]
    rows: list[Row] = [(half, [1, 3]), (half, [2]), (tokens, [3, 1, 2]), (tokens, [1])]
    tree = PrefixTree.of(rows)
    watched = _Watched(TreePlan.of(tree, device))
    inputs = {**tree_inputs(tree, device), "tree": watched}
    was_training = model.training
    worst = WorstError()
    try:
        with (
            attending_over_trees(model),
            torch.random.fork_rng(devices_of(model)),
            torch.autocast(device.type, enabled=False),
        ):
            if config._attn_implementation != IMPLEMENTATION:
                return "its attention does not go through transformers' AttentionInterface"
            model.train()
            model(**inputs, use_cache=False)  # attention dropout is active only in training mode
            model.eval()
            logits = model(**inputs, use_cache=False).logits[0].float()
        with torch.autocast(device.type, enabled=False):
            for (prompt, completion), path in zip(rows, tree.paths, strict=True):
                ids = torch.tensor([[*prompt, *completion]], device=device)
                plain = partial(_plain_logits, model, ids)
                expected = plain()
                off = (logits[path] - expected).abs().amax(-1) / expected.abs().max()
                worst.add(off, tolerated(model, plain, expected))
    except _CannotFollowError as error:
        return str(error)
    except FAILURES as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    finally:
        model.train(was_training)
    if not worst.fits:
        return f"its logits over a tree differ from those over rows {worst}"
    # A window longer than these few tokens does not change the logits above.
    if _windows(text) > sum(window is not None for window in watched.windows.values()):
        return "it has sliding windows that its attention is not told of"
    return None


def _plain_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Computes the logits [T, V] of one row of ids [1, T], in float32."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


class _Watched:
    """A tree plan that records every layer's window."""

    def __init__(self, plan: TreePlan) -> None:
        self.plan = plan
        self.windows: dict[int, int | None] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        self.windows[layer] = how.window
        return self.plan.attend(layer, q, k, v, how)


def _windows(config: PreTrainedConfig) -> int:
    """Returns the number of layers that have a sliding window in the config."""
    if not getattr(config, "sliding_window", None):
        return 0
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return list(kinds).count("sliding_attention")
    return config.num_hidden_layers if getattr(config, "use_sliding_window", True) else 0


def devices_of(model: nn.Module) -> list[int]:
    """Returns the model's GPUs, whose random number generators a trial must not change."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
