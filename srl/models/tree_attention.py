"""Computes attention over a `PrefixTree`, with the gradients of the repeated computation.

Every node attends to its ancestors and to itself. There is never a dense [N, N] mask. The tree is
split into trunks and leaves (`prefix_tree.trunks_and_leaves`), and a node's attention into pieces:

    self    causal attention inside the node's own trunk or leaf; batched, padded by length
    prefix  full attention to the trunk before it; one call for all nodes that leave it there

The pieces are joined by their log-sum-exps. The backward pass runs the same pieces with the *joint*
output and log-sum-exp, which makes each piece's gradient that of the whole softmax (as in ring
attention, arXiv 2310.01889; the identity is FlashAttention's, arXiv 2205.14135, section 3.1).

Three implementations give the same result: the fused CPU kernel, piece by piece; FlexAttention with
a block mask on a GPU, if there are enough nodes; and plain matrix products, piece by piece, for
everything else (such as soft-caps and sliding windows on a CPU, small trees on a GPU, and other
devices).

`tree_models.py` connects it to transformers' models.
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

# Self pieces are computed in padded batches. A batch ends before its size exceeds this factor times
# its number of real tokens.
_MOST_PADDING = 1.3
# FlexAttention's blocks are 128 x 128; below this many nodes it loses to the pieces
# (../docs/prefix_tree.md).
_FLEX_FROM = 1024


class How(NamedTuple):
    """The attention settings of a layer.

    Attributes:
        scale: the factor of the scores.
        softcap: scores become `tanh(scores / softcap) * softcap`, as in Gemma 2; None is off.
        window: the number of positions that a token sees, its own included; None means all.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True)
class _Self:
    """Parts of paths that attend to themselves, causally, as a padded batch of R lines.

    `own` lists the entries of the batch that give their node its result. It leaves out padding and
    contains each node once, though several rows may run through it. It is None if it would list all
    entries.
    """

    nodes: Tensor  # [R, L]
    padding: Tensor  # [R, L] bool
    own: Tensor | None  # [n] into R * L
    own_nodes: Tensor  # [n]

    def take(self, x: Tensor) -> Tensor:
        """Gathers [N, H, D] into [R, H, L, D], the layout of the kernels."""
        lines = x.index_select(0, self.nodes.flatten()).view(*self.nodes.shape, *x.shape[1:])
        return _heads_first(lines)

    def owned(self, x: Tensor) -> Tensor:
        """Selects from [R, H, L, ...] the results [n, H, ...] of the nodes in `own_nodes`."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat if self.own is None else flat.index_select(0, self.own)

    def take_owned(self, grad: Tensor) -> Tensor:
        """Gathers gradients [N, H, D] into [R, H, L, D]; each node counts once, padding never."""
        if self.own is None:
            return self.take(grad)
        lines = grad.new_zeros(self.nodes.numel(), *grad.shape[1:])
        lines.index_copy_(0, self.own, grad.index_select(0, self.own_nodes))
        return _heads_first(lines.view(*self.nodes.shape, *grad.shape[1:]))

    def take_sums(self, lse: Tensor) -> Tensor:
        """Gathers log-sum-exps [N, H] into [R, H, L]; padding, which could overflow, gets inf."""
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
    """The data of a tree for attention, on the device, made once for all layers.

    Attributes:
        positions: [N] position of each node in its row.
        ends: [N] see `PrefixTree.ends`.
        longest: the length of the longest path.
        paths: for every trunk, its [n] nodes from the root on.
        selves: the self pieces; every node gets exactly one result from them.
        prefixes: the prefix pieces; every node is in at most one.
        block_masks: FlexAttention's masks, by window; made when first needed.
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
        """Makes the plan of a tree."""
        trunks, leaves = trunks_and_leaves(tree)
        taken = [False] * len(tree)
        after: dict[tuple[int, int], list[int]] = {}  # (trunk, cut) -> nodes after it
        stretches: list[tuple[list[int], list[bool]]] = []  # nodes; True where it gives the result
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
        """Computes attention [1, N, H, D] of all nodes from [1, H, N, D] and [1, H_kv, N, D]."""
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        return tree_attention(q, k, v, self, how).unsqueeze(0)


def _of_like_length(
    stretches: Sequence[tuple[list[int], list[bool]]],
) -> Iterator[list[tuple[list[int], list[bool]]]]:
    batch: list[tuple[list[int], list[bool]]] = []
    tokens = 0
    for stretch in sorted(stretches, key=lambda stretch: -len(stretch[0])):
        length = len(stretch[0])
        if batch and (len(batch) + 1) * len(batch[0][0]) > _MOST_PADDING * (tokens + length):
            yield batch
            batch, tokens = [], 0
        batch.append(stretch)
        tokens += length
    if batch:
        yield batch


# ---- attention, in three ways ------------------------------------------------------------------
# Here q is [N, H, D], k and v are [N, H_kv, D]; H is a multiple of H_kv. The results are [N, H, D].


def _heads_first(x: Tensor) -> Tensor:
    """Returns [..., L, H, D] as a view [B, H, L, D], the layout of the kernels."""
    return (x if x.dim() == 4 else x.unsqueeze(0)).transpose(1, 2)


class _Fused(torch.autograd.Function):
    """Computes the pieces with the CPU's flash attention, and its backward; float32 or float64."""

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
    """Returns the dtype for sums of many parts: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _join(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Joins two parts [n, H, D] of one softmax by their log-sum-exps [n, H]."""
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
    """Computes the pieces as matrix products in float32 or float64; autograd derives the rest."""
    groups = q.shape[1] // k.shape[1]
    softcap, window = how.softcap, how.window

    def piece(queries: Tensor, keys: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """Attends from nodes [..., L] to [..., M]: [..., H, L, D], log-sum-exps [..., H, L]."""
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
        # Finite, so that a query that sees nothing in this piece gives finite values of weight 0.
        scores = scores.masked_fill(hidden, -1e30)
        lse = scores.logsumexp(-1)
        part = torch.exp(scores - lse[..., None]) @ c
        return part, lse

    parts = [piece(own.nodes, own.nodes, True) for own in plan.selves]
    order = torch.cat([own.own_nodes for own in plan.selves]).argsort()
    out, lse = (
        torch.cat([own.owned(x) for own, x in zip(plan.selves, tensors, strict=True)])[order]
        for tensors in zip(*parts, strict=True)
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

    # fullgraph: with graph breaks, FlexAttention would silently hold all scores in memory.
    return torch.compile(getattr(flex_attention, name), dynamic=True, fullgraph=True)


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    how: How,
    compiled: Callable[[str], Callable[..., Any]] = _compiled,
) -> Tensor:
    """Computes all at once with a block mask; node i sees node j if j <= i < ends[j]."""
    ends, positions = plan.ends, plan.positions
    softcap, window = how.softcap, how.window

    def visible(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = (j <= i) & (i < ends[j])
        return seen if window is None else seen & (positions[i] - positions[j] < window)

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return torch.tanh(score / softcap) * softcap

    # Lengths vary; scales and caps are fixed by the model. Each kind of layer compiles once.
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
    """Returns whether FlexAttention compiles on this GPU and equals the pieces, gradients included.

    The trial runs once for every kind of layer. It may run inside a checkpointed layer, so the
    hooks below keep that layer from taking the saved tensors of the trial as its own.
    """
    tokens = [i % 7 for i in range(_FLEX_FROM)]
    rows: list[Row] = [(tokens[: len(tokens) // 2], [1, 3]), (tokens, [2, 1]), (tokens, [3])]
    plan = TreePlan.of(PrefixTree.of(rows), device)
    results: list[list[Tensor]] = []
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
                results.append([out.detach(), *gradients])
    # Errors that the compiler, or the compiler that it calls, may raise.
    except (RuntimeError, ValueError, AssertionError, ImportError, OSError, SubprocessError) as e:
        _log.warning("FlexAttention is not used: %s", (str(e).splitlines() or ["?"])[0])
        return False
    errors = [((a - b).norm() / a.norm()).item() for a, b in zip(*results, strict=True)]
    close = all(error <= (1e-4 if dtype == torch.float32 else 3e-2) for error in errors)
    if not close:
        _log.warning("FlexAttention is not used: it is off by %s", errors)
    return close


def tree_attention(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, how: How) -> Tensor:
    """Computes the attention of every node to its ancestors and itself.

    Args:
        q: [N, H, D].
        k, v: [N, H_kv, D].
        plan: the plan of the tree of N nodes.
        how: scale, soft-cap and window.

    Returns:
        [N, H, D], of q's dtype.
    """
    if how.window is not None and how.window >= plan.longest:
        how = how._replace(window=None)
    # Neither kernel takes values of another width (DeepSeek). The CPU's has no caps or windows.
    if q.shape[-1] == v.shape[-1]:
        kind = (q.shape[1:], k.shape[1:], q.dtype, q.device, how)
        if q.is_cuda and len(q) >= _FLEX_FROM and _flex_works(*kind):
            return _flex(q, k, v, plan, how)
        if q.device.type == "cpu" and how.softcap is None and how.window is None:
            # Sums of many parts rounded to bf16 would be less exact than the sums over rows.
            parts = (x.to(wide(q)) for x in (q, k, v))
            return cast(Tensor, _Fused.apply(*parts, plan, how.scale)).to(q.dtype)
    return _pieces(q, k, v, plan, how)
