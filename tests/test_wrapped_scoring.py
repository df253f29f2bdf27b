"""Scores inside a wrapper's forward: what DDP does around any forward happens around ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import test_scoring
import torch
from conftest import toy_model, toy_tokenizer
from torch import Tensor, nn

from srl.models.scoring import completion_log_probs

ROWS = [([5, 6, 7], [8, 9]), ([5, 6, 7], [10]), ([11, 12], [13, 14, 15]), ([5, 6], [1, 2])]

# Each of two processes scores its half of the rows; DDP averages their gradients.
TWO_PROCESSES = """
import os, sys
import torch, torch.distributed as dist
sys.path[:0] = ["tests", "."]
from test_wrapped_scoring import ROWS, gradients, policy
from torch.nn.parallel import DistributedDataParallel

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
wrapped = DistributedDataParallel(policy())
half = ROWS[2 * rank : 2 * rank + 2]
found = []
for tree in (False, True):
    found.append(gradients(wrapped, wrapped.module, half, tree))
    wrapped.zero_grad()
torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def policy() -> nn.Module:
    return toy_model(toy_tokenizer()).double()


def gradients(
    model: nn.Module, bare: nn.Module, rows: list[tuple[list[int], list[int]]], tree: bool
) -> dict[str, Tensor]:
    """Of the mean log-probability's sum over rows, by the names of the bare model."""
    from contextlib import nullcontext

    from srl.models.tree_models import attending_over_trees

    with attending_over_trees(bare) if tree else nullcontext():
        scores = completion_log_probs(
            model, rows, pad_id=0, temperature=0.9, device="cpu", tree=tree
        )
        scores.log_probs.sum().backward()
    return {name: p.grad.clone() for name, p in bare.named_parameters() if p.grad is not None}


def test_two_processes_have_the_mean_of_their_gradients(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, str(tmp_path), str(rank)])
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for place, tree in enumerate((False, True)):
        halves = [gradients(model := policy(), model, ROWS[i : i + 2], tree) for i in (0, 2)]
        for gradients_of in found:
            assert gradients_of[place].keys() == halves[0].keys()
            for name, one in halves[0].items():
                mean = (one + halves[1][name]) / 2
                assert (gradients_of[place][name] - mean).norm() <= 1e-10 * mean.norm()


class Wrapper(nn.Module):
    """Does something around the forward, as DDP does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("make", [policy, partial(test_scoring.built, "no position_ids")])
def test_a_wrapper_is_called_once_and_its_logits_never_exist(
    make: Callable[[], nn.Module],
) -> None:
    model = make()
    expected = completion_log_probs(model, ROWS, pad_id=0, temperature=1.0, device="cpu")
    wrapper = Wrapper(model)
    outputs: list[object] = []
    model.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    found = completion_log_probs(wrapper, ROWS, pad_id=0, temperature=1.0, device="cpu")
    assert torch.equal(found.log_probs, expected.log_probs)
    assert wrapper.calls == 1
    assert not any(hasattr(output, "logits") for output in outputs)


def test_the_forward_is_the_models_own_again_after_an_error() -> None:
    model = policy()
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    too_large = [([1, 2], [10_000])]
    with pytest.raises(IndexError):
        completion_log_probs(model, too_large, pad_id=0, temperature=1.0, device="cpu")
    assert torch.equal(model(ids).logits, before)
    assert "forward" not in vars(model)
    own = model.forward  # as Accelerate sets one of its own on the instance
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    set_by_hand = model.forward
    completion_log_probs(model, ROWS, pad_id=0, temperature=1.0, device="cpu")
    assert model.forward is set_by_hand
