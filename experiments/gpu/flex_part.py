"""Measures part c: the tree size from which FlexAttention is faster than plain matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from given import Given, Note
from gpu_rows import best_seconds, wait
from shapes import Shape
from torch import Tensor

from srl.models import tree_attention
from srl.models.prefix_tree import PrefixTree
from srl.models.tree_attention import How, TreePlan

# The numbers of query heads and key heads, and the width of a head.
HEADS = {"SmolLM2-135M": (9, 3, 64), "Qwen2.5-1.5B": (12, 2, 128)}
SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def measure(given: Given, note: Note) -> None:
    """Notes times and differences for each kind of heads and size, and the size to switch at."""
    heads = {"toy": (4, 2, 16)} if given.toy else HEADS
    sizes = (64,) if given.toy else SIZES
    note({"our code takes FlexAttention from": tree_attention._FLEX_FROM})
    for name, kind in heads.items():
        rows: dict[str, Mapping[str, object]] = {}
        for size in sizes:
            if given.left < 15 and not given.toy:
                note({f"{name}, not reached": size})
                break
            rows[f"{size} nodes"] = _compared(given, kind, size)
            note({name: rows})
        faster = [
            size
            for size in sizes
            if isinstance(ratio := rows.get(f"{size} nodes", {}).get("update, speed"), float)
            and ratio > 1
        ]
        known = [size for size in sizes if f"{size} nodes" in rows]
        pays = next((size for size in known if all(s in faster for s in known if s >= size)), None)
        note({f"{name}, pays from": pays if pays is not None else "no size measured"})


def shape_of(size: int) -> Shape:
    """Returns the shape of a tree of about `size` nodes: nested prompts, eight rollouts each."""
    K, C = max(1, size // 1024), 48 if size >= 512 else size // 16
    s = 64 if K > 1 else 0
    return Shape(K=K, Q=size - K * 8 * C - s * (K - 1), s=s, G=8, C=C)


def _compared(given: Given, kind: tuple[int, int, int], size: int) -> dict[str, object]:
    """Returns the times of both on the same random tensors, and their differences.

    The tensors are bf16, or float32 in toy sizes.
    """
    H, H_kv, D = kind
    torch.manual_seed(0)
    plan = TreePlan.of(PrefixTree.of(shape_of(size).rows(10**6)), given.device)
    n, how = len(plan.ends), How(D**-0.5)
    dtype = torch.float32 if given.toy else torch.bfloat16
    q, k, v = (
        torch.randn(n, heads, D, device=given.device, dtype=dtype, requires_grad=not given.toy)
        for heads in (H, H_kv, H_kv)
    )
    upstream = torch.randn(n, H, D, device=given.device, dtype=dtype)

    def pieces(*x: Tensor) -> Tensor:
        return tree_attention._pieces(*x, plan, how)

    def flex(*x: Tensor) -> Tensor:
        return tree_attention._flex(*x, plan, how, *([_not_compiled] if given.toy else []))

    def update(attend: Attend) -> list[Tensor]:
        if given.toy:  # FlexAttention has no backward pass on a CPU
            return [reading(attend)]
        out = attend(q, k, v)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), upstream)]

    def reading(attend: Attend) -> Tensor:
        with torch.no_grad():
            return attend(q, k, v)

    figures: dict[str, object] = {"nodes": n, "pieces": len(plan.selves) + len(plan.prefixes)}
    results: dict[str, list[Tensor]] = {}
    repeats = 1 if given.toy else 5
    for name, attend in (("pieces", pieces), ("flex", flex)):
        try:
            started = time.perf_counter()
            results[name] = update(attend)
            wait()
            figures[f"{name}, first time, s"] = time.perf_counter() - started
            figures[f"{name}, update, ms"] = 1e3 * best_seconds(
                lambda attend=attend: update(attend), repeats
            )
            figures[f"{name}, reading alone, ms"] = 1e3 * best_seconds(
                lambda attend=attend: reading(attend), repeats
            )
        except torch.OutOfMemoryError:
            figures[f"{name}, update, ms"] = "out of memory"
    if len(results) == 2:
        names = ("output", "gradient of q", "gradient of k", "gradient of v")
        for name, a, b in zip(names, results["pieces"], results["flex"], strict=False):
            figures[f"relative difference, {name}"] = ((a - b).norm() / a.norm()).item()
        for what in ("update", "reading alone"):
            pieces_ms, flex_ms = (figures[f"{name}, {what}, ms"] for name in ("pieces", "flex"))
            assert isinstance(pieces_ms, float)
            assert isinstance(flex_ms, float)
            figures[f"{what}, speed"] = pieces_ms / flex_ms
    return figures


def _not_compiled(name: str) -> Callable[..., object]:
    from torch.nn.attention import flex_attention

    return getattr(flex_attention, name)
