"""Attention over a `PrefixTree`, with the gradients of the repeated computation.

Every node attends to its ancestors and to itself. Never as a dense [N, N] mask: the tree is taken
apart into trunks and leaves (`prefix_tree.trunks_and_leaves`), and a node's attention into

    self    causal attention inside its own trunk or leaf; all leaves together, padded by length
    prefix  full attention to the trunk before it; one call for all nodes that leave it there

which are joined by their log-sum-exps. The backward pass runs the same pieces with the *joint*
output and log-sum-exp, which makes each piece's gradient that of the whole softmax (as in ring
attention, arXiv 2310.01889; the identity is FlashAttention's, arXiv 2205.14135, section 3.1).

Three ways to compute it, one result: the fused CPU kernel piece by piece; FlexAttention with a
block mask on a GPU, from so many nodes on that it pays; and plain matrix products piece by piece,
which do everything else (soft-caps, sliding windows, other devices).

`tree_models.py` plugs it into transformers' models.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from subprocess import SubprocessError
from typing import Any, NamedTuple, cast

import torch
import torch._dynamo.config as dynamo
from torch import Tensor

from srl.models.prefix_tree import PrefixTree, Row, trunks_and_leaves

_log = logging.getLogger(__name__)

# Leaves are attended to in batches; a new batch begins where padding would take more than this.
_MOST_PADDING = 1.3
# FlexAttention's blocks are 128 x 128; below this many nodes it loses to the pieces
# (../docs/prefix_tree.md).
_FLEX_FROM = 1024


class How(NamedTuple):
    """How a layer attends.

    Attributes:
        scale: factor of the scores.
        softcap: `tanh(scores / softcap) * softcap`, as Gemma 2 does; None is off.
        window: a token sees so many positions, its own included; None is all of them.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True)
class _Self:
    """Stretches that attend to themselves, causally, as a padded batch of R lines.

    `own` are those entries of the batch whose node gets its result from here: no padding, and each
    node once though several rows may run through it. None if those are all of them.
    """

    nodes: Tensor  # [R, L]
    padding: Tensor  # [R, L] bool
    own: Tensor | None  # [n] into R * L
    own_nodes: Tensor  # [n]

    def take(self, x: Tensor) -> Tensor:
        """[N, H, D] -> [R, H, L, D], as kernels want it."""
        lines = x.index_select(0, self.nodes.flatten()).view(*self.nodes.shape, *x.shape[1:])
        return _heads_first(lines)

    def owned(self, x: Tensor) -> Tensor:
        """[R, H, L, ...] -> [n, H, ...]: of every node that is owned here its own result."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat if self.own is None else flat.index_select(0, self.own)

    def take_owned(self, grad: Tensor) -> Tensor:
        """[N, H, D] -> [R, H, L, D]: a node's gradient counts once, that of padding never."""
        if self.own is None:
            return self.take(grad)
        lines = grad.new_zeros(self.nodes.numel(), *grad.shape[1:])
        lines.index_copy_(0, self.own, grad.index_select(0, self.own_nodes))
        return _heads_first(lines.view(*self.nodes.shape, *grad.shape[1:]))

    def take_sums(self, lse: Tensor) -> Tensor:
        """[N, H] -> [R, H, L]; infinite at padding, whose exp(score - lse) could overflow."""
        sums = lse.index_select(0, self.nodes.flatten()).view(*self.nodes.shape, -1)
        if self.own is not None:
            sums = sums.masked_fill(self.padding[..., None], torch.inf)
        return sums.transpose(1, 2)


@dataclass(frozen=True)
class _Prefix:
    """Nodes that attend to the first `cut` nodes of a trunk's path."""

    nodes: Tensor  # [n]
    trunk: int
    cut: int


@dataclass(frozen=True)
class TreePlan:
    """What attention needs to know of a tree, on the device, made once for all layers.

    Attributes:
        positions: [N] position of each node in its row.
        ends: [N] see `PrefixTree.ends`.
        longest: the longest path.
        paths: of every trunk, [n] nodes from the root on.
        selves: the self pieces; every node gets exactly one result from them.
        prefixes: the prefix pieces; every node is in one at most.
        block_masks: for FlexAttention, by window; made when first needed.
    """

    positions: Tensor
    ends: Tensor
    longest: int
    paths: list[Tensor]
    selves: list[_Self]
    prefixes: list[_Prefix]
    block_masks: dict[int | None, object] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: PrefixTree, device: torch.device | str) -> TreePlan:
        """The plan of a tree."""
        trunks, leaves = trunks_and_leaves(tree)
        taken = [False] * len(tree)
        after: dict[tuple[int, int], list[int]] = {}  # (trunk, cut) -> nodes behind it
        stretches: list[tuple[list[int], list[bool]]] = []  # nodes, and which of them it owns
        for nodes, trunk, cut in [
            *((trunk.path[trunk.start :], trunk.parent, trunk.start) for trunk in trunks),
            *((leaf.nodes, leaf.trunk, leaf.cut) for leaf in leaves),
        ]:
            own = [not taken[node] for node in nodes]
            if not any(own):
                continue
            stretches.append((nodes, own))
            fresh = [node for node, mine in zip(nodes, own, strict=True) if mine]
            for node in fresh:
                taken[node] = True
            if cut:
                after.setdefault((trunk, cut), []).extend(fresh)

        def put(values: Sequence[object], dtype: torch.dtype = torch.long) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device)

        selves = []
        for batch in _of_like_length(stretches):
            longest = max(len(nodes) for nodes, _ in batch)
            fill = [longest - len(nodes) for nodes, _ in batch]
            slots, owned = [], []
            for row, (nodes, own) in enumerate(batch):
                for column, (node, mine) in enumerate(zip(nodes, own, strict=True)):
                    if mine:
                        slots.append(row * longest + column)
                        owned.append(node)
            selves.append(
                _Self(
                    nodes=put([[*n, *[n[0]] * f] for (n, _), f in zip(batch, fill, strict=True)]),
                    padding=put([[False] * (longest - f) + [True] * f for f in fill], torch.bool),
                    own=None if len(slots) == len(batch) * longest else put(slots),
                    own_nodes=put(owned),
                )
            )
        return cls(
            positions=put(tree.positions),
            ends=put(tree.ends),
            longest=max(map(len, tree.paths), default=0),
            paths=[put(trunk.path) for trunk in trunks],
            selves=selves,
            prefixes=[_Prefix(put(nodes), trunk, cut) for (trunk, cut), nodes in after.items()],
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: How) -> Tensor:
        """One line of all nodes, [1, H, N, D] and [1, H_kv, N, D] -> [1, N, H, D]."""
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        return tree_attention(q, k, v, self, how).unsqueeze(0)


def _of_like_length(
    stretches: Sequence[tuple[list[int], list[bool]]],
) -> Iterator[list[tuple[list[int], list[bool]]]]:
    batch: list[tuple[list[int], list[bool]]] = []
    tokens = 0
    for stretch in sorted(stretches, key=lambda one: -len(one[0])):
        length = len(stretch[0])
        if batch and (len(batch) + 1) * len(batch[0][0]) > _MOST_PADDING * (tokens + length):
            yield batch
            batch, tokens = [], 0
        batch.append(stretch)
        tokens += length
    if batch:
        yield batch


# ---- attention, in three ways ------------------------------------------------------------------
# Here q is [N, H, D], k and v are [N, H_kv, D]; H is a multiple of H_kv. All give [N, H, D].


def _heads_first(x: Tensor) -> Tensor:
    """[..., L, H, D] -> [B, H, L, D], as kernels want it; a view."""
    return (x if x.dim() == 4 else x.unsqueeze(0)).transpose(1, 2)


class _Fused(torch.autograd.Function):
    """The pieces through the CPU's flash attention, forward and backward; float32 or float64."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out = torch.empty(q.shape, dtype=q.dtype)
        lse = torch.empty(q.shape[:2], dtype=q.dtype)  # [N, H]
        for own in plan.selves:
            part, sums = flash(*(own.take(x) for x in (q, k, v)), 0.0, True, scale=scale)
            out.index_copy_(0, own.own_nodes, own.owned(part))
            lse.index_copy_(0, own.own_nodes, own.owned(sums))
        trunks = [tuple(x.index_select(0, path) for x in (k, v)) for path in plan.paths]
        for prefix in plan.prefixes:
            nodes = prefix.nodes
            keys, values = (x[: prefix.cut] for x in trunks[prefix.trunk])
            part, sums = flash(
                *map(_heads_first, (q.index_select(0, nodes), keys, values)), 0.0, scale=scale
            )
            joint, whole = _join(
                out.index_select(0, nodes),
                lse.index_select(0, nodes),
                part[0].transpose(0, 1),
                sums[0].mT,
            )
            out.index_copy_(0, nodes, joint)
            lse.index_copy_(0, nodes, whole)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        q, k, v, out, lse = ctx.saved_tensors
        plan, scale = ctx.plan, ctx.scale
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = torch.empty_like(out), *(torch.zeros(x.shape, dtype=x.dtype) for x in (k, v))
        for own in plan.selves:
            dq_part, *parts = flash(
                own.take_owned(grad),
                *(own.take(x) for x in (q, k, v, out)),
                own.take_sums(lse),
                0.0,
                True,
                scale=scale,
            )
            dq.index_copy_(0, own.own_nodes, own.owned(dq_part))
            for total, part in zip((dk, dv), parts, strict=True):
                total.index_add_(0, own.nodes.flatten(), part.transpose(1, 2).flatten(0, 1))
        trunks = [tuple(x.index_select(0, path) for x in (k, v)) for path in plan.paths]
        sums_of = [tuple(torch.zeros_like(x) for x in pair) for pair in trunks]
        for prefix in plan.prefixes:
            nodes = prefix.nodes
            keys, values = (x[: prefix.cut] for x in trunks[prefix.trunk])
            dq_part, *parts = flash(
                *map(_heads_first, (grad.index_select(0, nodes), q.index_select(0, nodes))),
                *map(_heads_first, (keys, values, out.index_select(0, nodes))),
                lse.index_select(0, nodes).mT.unsqueeze(0),
                0.0,
                False,
                scale=scale,
            )
            dq.index_add_(0, nodes, dq_part[0].transpose(0, 1))
            for total, part in zip(sums_of[prefix.trunk], parts, strict=True):
                total[: prefix.cut] += part[0].transpose(0, 1)
        for path, (keys, values) in zip(plan.paths, sums_of, strict=True):
            dk.index_add_(0, path, keys)
            dv.index_add_(0, path, values)
        return dq, dk, dv, None, None


def wide(x: Tensor) -> torch.dtype:
    """The type for sums of many parts: float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _join(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts of one softmax; [n, H, D] each, with their log-sum-exps [n, H]."""
    lse = torch.logaddexp(lse_a, lse_b)
    joint = a * torch.exp(lse_a - lse)[..., None] + b * torch.exp(lse_b - lse)[..., None]
    return joint.to(a.dtype), lse


def _pieces(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    how: How,
) -> Tensor:
    """The pieces as plain matrix products, in float32 at least; autograd does the rest."""
    groups = q.shape[1] // k.shape[1]
    softcap, window = how.softcap, how.window

    def piece(queries: Tensor, keys: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """Nodes [..., L] attending to nodes [..., M]: [..., H, L, D] and [..., H, L]."""
        a, b, c = (
            x[nodes].to(wide(x)).transpose(-3, -2)
            for x, nodes in ((q, queries), (k, keys), (v, keys))
        )
        b, c = (x.repeat_interleave(groups, -3) for x in (b, c))
        scores = (a @ b.mT) * how.scale  # [..., H, L, M]
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        hidden = scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1) & causal
        if window is not None:
            apart = plan.positions[queries][..., None] - plan.positions[keys][..., None, :]
            hidden = (hidden | (apart >= window)).unsqueeze(-3)
        # Finite, so that a query that sees nothing here gives numbers, of no weight.
        scores = scores.masked_fill(hidden, -1e30)
        lse = scores.logsumexp(-1)
        part = torch.exp(scores - lse[..., None]) @ c
        return part, lse

    parts = [piece(own.nodes, own.nodes, True) for own in plan.selves]
    order = torch.cat([own.own_nodes for own in plan.selves]).argsort()
    out, lse = (
        torch.cat([own.owned(x) for own, x in zip(plan.selves, found, strict=True)])[order]
        for found in zip(*parts, strict=True)
    )
    for prefix in plan.prefixes:
        path = plan.paths[prefix.trunk][: prefix.cut]
        part, sums = piece(prefix.nodes, path, False)
        joint, _ = _join(
            out[prefix.nodes], lse[prefix.nodes], part.transpose(0, 1), sums.transpose(0, 1)
        )
        out = out.index_copy(0, prefix.nodes, joint)
    return out.to(q.dtype)


@functools.cache
def _compiled(name: str) -> Callable[..., Any]:
    from torch.nn.attention import flex_attention

    # Whole or not at all: in pieces FlexAttention would hold all scores, silently.
    return torch.compile(getattr(flex_attention, name), dynamic=True, fullgraph=True)


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    how: How,
    compiled: Callable[[str], Callable[..., Any]] = _compiled,
) -> Tensor:
    """All at once, with a mask of blocks: node j is seen by i if and only if j <= i < ends[j]."""
    ends, positions = plan.ends, plan.positions
    softcap, window = how.softcap, how.window

    def visible(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = (j <= i) & (i < ends[j])
        return seen if window is None else seen & (positions[i] - positions[j] < window)

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return torch.tanh(score / softcap) * softcap

    # Lengths vary, but scales and caps are the model's; one compilation for each kind of layer.
    with dynamo.patch(specialize_float=True, recompile_limit=64):
        if window not in plan.block_masks:
            plan.block_masks[window] = compiled("create_block_mask")(
                visible, None, None, len(q), len(q), device=q.device
            )
        out = compiled("flex_attention")(
            *map(_heads_first, (q, k, v)),
            score_mod=None if softcap is None else capped,
            block_mask=plan.block_masks[window],
            scale=how.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    return cast(Tensor, out[0].transpose(0, 1))


@functools.cache
def _flex_works(
    q_shape: tuple[int, int],
    k_shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    how: How,
) -> bool:
    """Whether FlexAttention compiles on this GPU and agrees with the pieces, backward too.

    Tried once for every kind of layer. That may happen inside a checkpointed layer, which must not
    take what is saved here for its own.
    """
    tokens = [i % 7 for i in range(_FLEX_FROM)]
    rows: list[Row] = [(tokens[: len(tokens) // 2], [1, 3]), (tokens, [2, 1]), (tokens, [3])]
    plan = TreePlan.of(PrefixTree.of(rows), device)
    found: list[list[Tensor]] = []
    try:
        with (
            torch.random.fork_rng([device.index] if device.index is not None else []),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
        ):
            q, k, v = (
                torch.randn(len(plan.ends), *shape, dtype=dtype, device=device, requires_grad=True)
                for shape in (q_shape, k_shape, k_shape)
            )
            for attend in (_pieces, _flex):
                out = attend(q, k, v, plan, how)
                gradients = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
                found.append([out.detach(), *gradients])
    # What a compiler, or the compiler that it calls, may fail with.
    except (RuntimeError, ValueError, AssertionError, ImportError, OSError, SubprocessError) as e:
        _log.warning("FlexAttention is not used: %s", (str(e).splitlines() or ["?"])[0])
        return False
    errors = [((a - b).norm() / a.norm()).item() for a, b in zip(*found, strict=True)]
    close = all(error <= (1e-4 if dtype == torch.float32 else 3e-2) for error in errors)
    if not close:
        _log.warning("FlexAttention is not used: it is off by %s", errors)
    return close


def tree_attention(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, how: How) -> Tensor:
    """Every node's attention to its ancestors and itself.

    Args:
        q: [N, H, D].
        k, v: [N, H_kv, D].
        plan: of the tree of N nodes.
        how: scale, soft-cap and window.

    Returns:
        [N, H, D], of q's type.
    """
    if how.window is not None and how.window >= plan.longest:
        how = how._replace(window=None)
    # Neither kernel takes values of another width (DeepSeek's), nor the CPU's caps and windows.
    if q.shape[-1] == v.shape[-1]:
        kind = (q.shape[1:], k.shape[1:], q.dtype, q.device, how)
        if q.is_cuda and len(q) >= _FLEX_FROM and _flex_works(*kind):
            return _flex(q, k, v, plan, how)
        if q.device.type == "cpu" and how.softcap is None and how.window is None:
            # Sums of many parts: rounded to bf16 one by one they would be less exact than rows.
            parts = (x.to(wide(q)) for x in (q, k, v))
            return cast(Tensor, _Fused.apply(*parts, plan, how.scale)).to(q.dtype)
    return _pieces(q, k, v, plan, how)
