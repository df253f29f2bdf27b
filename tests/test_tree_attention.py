"""Attention over prefix trees, each way to compute it: held against a dense mask."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from srl.models import tree_attention as attention
from srl.models.prefix_tree import PrefixTree, Row
from srl.models.tree_attention import How, TreePlan, tree_attention


def forest(seed: int) -> PrefixTree:
    """Rows that branch, nest and end inside one another; long enough for trunks on trunks."""
    rng = random.Random(seed)

    def text(length: int) -> list[int]:
        return [rng.randrange(2 + seed % 3) for _ in range(length)]

    trunk = text((0, 20, 80)[seed % 3])
    rows: list[Row] = []
    for _ in range(rng.randrange(1, 7)):
        prompt = trunk[: rng.randrange(len(trunk) + 1)] + text(rng.choice([1, 3, 50]))
        rows += [(prompt, text(rng.choice([0, 2, 40]))) for _ in range(rng.randrange(1, 4))]
    return PrefixTree.of(rows)


def ancestors(tree: PrefixTree) -> list[list[int]]:
    """Of every node those on its path, its own number last."""
    found: list[list[int]] = []
    for node, parent in enumerate(tree.parents):
        found.append([*(found[parent] if parent >= 0 else []), node])
    return found


def random_qkv(nodes: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q [N, 4, 8], k and v [N, kv_heads, 8]."""
    generator = torch.Generator().manual_seed(nodes)
    return [
        torch.randn(nodes, heads, 8, generator=generator, dtype=dtype).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]


def dense(q: Tensor, k: Tensor, v: Tensor, tree: PrefixTree, how: How) -> Tensor:
    """The softmax over one [N, N] mask, which is made from parents alone."""
    seen = torch.zeros(len(tree), len(tree), dtype=torch.bool)
    for node, path in enumerate(ancestors(tree)):
        seen[node, path[-how.window :] if how.window else path] = True
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * how.scale
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, v)


HOWS = {
    "plain": How(0.35),
    "softcap": How(0.35, softcap=1.5),
    "window": How(0.35, window=7),
    "both": How(0.35, softcap=1.5, window=30),
}
Attend = Callable[[Tensor, Tensor, Tensor, TreePlan, How], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, how: How) -> Tensor:
    assert how == How(how.scale)
    return attention._Fused.apply(q, k, v, plan, how.scale)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize(
    ("attend", "how"),
    [
        (fused, "plain"),
        *((attention._pieces, how) for how in HOWS),
        *((tree_attention, how) for how in ("plain", "both")),
    ],
)
def test_outputs_and_gradients_are_those_of_a_dense_mask(
    attend: Attend, how: str, kv_heads: int
) -> None:
    for seed in (1, 2, 4, 6, 7):
        tree = forest(seed)
        q, k, v = random_qkv(len(tree), kv_heads)
        ours = attend(q, k, v, TreePlan.of(tree, "cpu"), HOWS[how])
        theirs = dense(q, k, v, tree, HOWS[how])
        assert (ours - theirs).abs().max() < 1e-12
        weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(seed))
        gradients = [torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (ours, theirs)]
        for our, their in zip(*gradients, strict=True):
            assert (our - their).abs().max() < 1e-11


UNCOMPILED = {"flex_attention": flex_attention, "create_block_mask": create_block_mask}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_given_the_same_mask(how: str) -> None:
    """Uncompiled. A block is 128 nodes wide: one tree has one of them, the other three."""
    flex = partial(attention._flex, compiled=UNCOMPILED.__getitem__)
    for seed, blocks in ((8, 1), (7, 3)):
        tree = forest(seed)
        assert -(-len(tree) // 128) == blocks
        q, k, v = (x.detach() for x in random_qkv(len(tree), 2))
        ours = flex(q, k, v, TreePlan.of(tree, "cpu"), HOWS[how])
        assert (ours - dense(q, k, v, tree, HOWS[how])).abs().max() < 1e-12


@pytest.mark.parametrize("how", ["both"])
def test_flex_attention_compiles_as_a_whole(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the graph, which is what caps and windows can break; a GPU makes code of it. Other
    lengths do not compile it again."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)  # gradients on a CPU
    graphs = torch._dynamo.testing.CompileCounter()
    whole = {
        name: torch.compile(function, backend=graphs, dynamic=True, fullgraph=True)
        for name, function in UNCOMPILED.items()
    }
    for seed in (7, 14, 1, 24):  # of 2 or 3 blocks; a single one is a case of its own
        tree = forest(seed)
        q, k, v = random_qkv(len(tree), 2)
        plan = TreePlan.of(tree, "cpu")
        ours = attention._flex(q, k, v, plan, HOWS[how], compiled=whole.__getitem__)
        assert (ours - dense(q, k, v, tree, HOWS[how])).abs().max() < 1e-12
        if seed == 7:
            first = graphs.frame_count
    assert graphs.frame_count == first


@pytest.mark.parametrize(
    ("factor", "works"), [(1.0, True), (1.01, False), (float("nan"), False), (None, False)]
)
def test_flex_attention_is_tried_before_it_is_trusted(
    factor: float | None, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is first needed: perhaps inside a checkpointed layer, which runs a second time."""

    def flex(*args: object) -> Tensor:
        if factor is None:
            raise RuntimeError("no compiler")
        return attention._pieces(*args) * factor  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "_flex", flex)
    attention._flex_works.cache_clear()
    answers = []

    def layer(x: Tensor) -> Tensor:
        kind = ((2, 8), (1, 8), torch.float32, torch.device("cpu"), How(0.3))
        answers.append(attention._flex_works(*kind))
        return (x * x).sin()

    x = torch.ones(3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert answers == [works, works]
    attention._flex_works.cache_clear()


def test_keys_and_values_may_differ_in_width() -> None:
    tree = forest(5)
    q, k, v = random_qkv(len(tree), 2)
    v = v[..., :5]
    ours = tree_attention(q, k, v, TreePlan.of(tree, "cpu"), HOWS["plain"])
    assert (ours - dense(q, k, v, tree, HOWS["plain"])).abs().max() < 1e-12


def test_a_window_as_long_as_the_longest_row_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the slow way was taken")

    tree = forest(2)
    plan = TreePlan.of(tree, "cpu")
    q, k, v = random_qkv(len(tree), 2)
    expected = tree_attention(q, k, v, plan, How(0.35))
    monkeypatch.setattr(attention, "_pieces", fail)
    assert tree_attention(q, k, v, plan, How(0.35, window=plan.longest)).equal(expected)
    with pytest.raises(AssertionError, match="slow way"):
        tree_attention(q, k, v, plan, How(0.35, window=plan.longest - 1))


@pytest.mark.parametrize("attend", [fused, attention._pieces])
def test_padding_makes_no_nan_even_with_huge_scores(attend: Attend) -> None:
    """Padding repeats a stretch's first node: its scores may lie far above that node's sum."""
    padded = 0
    for seed in range(12):
        tree = forest(seed)
        plan = TreePlan.of(tree, "cpu")
        padded += any(bool(own.padding.any()) for own in plan.selves)
        exact = random_qkv(len(tree), 2)
        q, k, v = (x.detach().float().requires_grad_() for x in exact)
        ours = attend(q * 1e3, k, v, plan, How(1.0))
        theirs = dense(exact[0] * 1e3, exact[1], exact[2], tree, How(1.0))
        # Nearly a choice of one node: a tie within float32's error of the scores is no error.
        assert ((ours - theirs).abs() > 1e-2).double().mean() < 1e-2
        gradients = torch.autograd.grad(ours.square().sum(), (q, k, v))
        assert all(bool(x.isfinite().all()) for x in (ours, *gradients))
    assert padded >= 4


@pytest.mark.parametrize("seed", range(12))
def test_the_pieces_of_a_node_are_its_ancestors_once_each(seed: int) -> None:
    tree = forest(seed)
    plan = TreePlan.of(tree, "cpu")
    seen: dict[int, list[int]] = {}
    for own in plan.selves:
        R, L = own.nodes.shape
        slots = list(range(R * L)) if own.own is None else own.own.tolist()
        for slot, node in zip(slots, own.own_nodes.tolist(), strict=True):
            assert own.nodes.flatten()[slot] == node
            assert not own.padding.flatten()[slot]
            assert node not in seen
            seen[node] = own.nodes[slot // L, : slot % L + 1].tolist()
    for prefix in plan.prefixes:
        assert 0 < prefix.cut <= len(plan.paths[prefix.trunk])
        nodes = prefix.nodes.tolist()
        before = plan.paths[prefix.trunk][: prefix.cut].tolist()
        for node in nodes:
            assert seen[node][0] not in before  # so no node has two prefix pieces
            seen[node] = before + seen[node]
    assert [seen[node] for node in range(len(tree))] == ancestors(tree)
    assert plan.longest == max(map(len, tree.paths))
