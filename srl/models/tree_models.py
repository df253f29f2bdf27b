"""Prefix trees in a transformers model: how it attends over them, and whether it may.

Attention goes through transformers' `AttentionInterface`; the tree comes as a keyword argument of
the model's forward. Which models can be trusted with that is found by trying (`refusal`), not by
their names.
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

# What a forward raises that was never meant for what is tried.
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
    """A layer attends in a way that a tree has no counterpart of; the message is the refusal."""


class Attending(Protocol):
    """What a model is given as `tree`: it attends in place of every layer's own attention."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        """q [R, H, L, D], k and v [R, H_kv, L, D] of the tokens at hand -> [R, L, H, D]."""
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
    """As transformers calls it; [R, H, L, D] become [R, L, H, D]."""
    if tree is None:
        raise RuntimeError("this model attends over prefix trees, and was given none")
    if dropout or s_aux is not None:
        raise _CannotFollowError(f"its attention has {'dropout' if dropout else 'sinks'}")
    # As autocast does for sdpa; position embeddings come out of it in float32.
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    how = How(scale, softcap, sliding_window)
    # What is computed in float32 below is meant to be.
    with torch.autocast(query.device.type, enabled=False):
        return tree.attend(cast(int, module.layer_idx), query, key, value, how), None


AttentionInterface.register(IMPLEMENTATION, _attention_interface)


def tree_inputs(tree: PrefixTree, device: torch.device | str) -> dict[str, object]:
    """What a model's forward takes for a tree: one line [1, N] of all its nodes."""
    plan = TreePlan.of(tree, device)
    return {
        "input_ids": torch.tensor([tree.tokens], dtype=torch.long).to(device),
        "position_ids": plan.positions[None],
        "tree": plan,
    }


@contextmanager
def attending_over_trees(model: nn.Module) -> Iterator[None]:
    """Inside, the model's forward wants a `tree`, as `tree_inputs` gives it.

    The backward pass belongs inside too: gradient checkpointing runs the forward again.
    """
    before = model.config._attn_implementation  # type: ignore[union-attr]
    model.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]


def attends_over_trees(model: nn.Module) -> bool:
    """Whether inside `attending_over_trees(model)`; outside, a tree would be read as one row."""
    while isinstance(getattr(model, "module", None), nn.Module):  # DDP, DeepSpeed
        model = cast(nn.Module, model.module)
    return bool(model.config._attn_implementation == IMPLEMENTATION)  # type: ignore[union-attr]


# What a layer may be: others mix tokens in ways that a tree does not follow.
_LAYERS = {"full_attention", "sliding_attention"}


_refusals: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def refusal(model: nn.Module) -> str | None:
    """Why this model cannot attend over prefix trees, in a few words; None if it can.

    Found by trying, once a model: on a few tokens its logits over a tree must be those over rows.
    So a model that computes its attention by itself, or mixes tokens by other means, is never
    trained wrongly.
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
            model(**inputs, use_cache=False)  # dropout of attention shows in training only
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
    # One longer than these few tokens would not have shown.
    if _windows(text) > sum(window is not None for window in watched.windows.values()):
        return "it has sliding windows that its attention is not told of"
    return None


def _plain_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """[1, T] -> [T, V]."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


class _Watched:
    """A plan that notes every layer's window."""

    def __init__(self, plan: TreePlan) -> None:
        self.plan = plan
        self.windows: dict[int, int | None] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        self.windows[layer] = how.window
        return self.plan.attend(layer, q, k, v, how)


def _windows(config: PreTrainedConfig) -> int:
    """How many layers have a sliding window, by their config."""
    if not getattr(config, "sliding_window", None):
        return 0
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return list(kinds).count("sliding_attention")
    return config.num_hidden_layers if getattr(config, "use_sliding_window", True) else 0


def devices_of(model: nn.Module) -> list[int]:
    """The GPUs that it is on, whose random numbers a trial must not use up."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
