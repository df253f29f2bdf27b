"""Measures row 11: a whole SRL step of SmolLM2-135M's shape, beside TRL's stock trainer.

It is like row 5 (`step_row.py`), with a vocabulary of 49,152 words. A step takes a minute, so each
trainer takes only its first step, and that step counts. The row also lists floors. The floor of a
part is the time of its arithmetic at the rate of large matrix products. One token of all rollouts
takes at least the time to read all weights once, if that is longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from contest import Contest
from flops import forward_flops, update_flops
from shapes import Shape, random_model, smollm2_config
from step_row import Setting, Times, mean, train_ours, train_trl
from transformers import PreTrainedModel

from srl.models.prefix_tree import PrefixTree

# Prompts of 200 to 400 tokens, 300 on average.
SHAPE = Shape(K=6, Q=200, s=40, G=4, C=100, trajectories=12)
PROMPTS = 8
# About as many tokens as four of TRL's rows, so that both need as much memory. All rows at once
# take 30 GB.
MICRO_BATCH_TOKENS = 2048


def model_row(
    repeats: int = 1,
    *,
    shape: Shape = SHAPE,
    prompts: int = PROMPTS,
    make_model: Callable[[], PreTrainedModel] = lambda: random_model(smollm2_config()),
) -> list[Contest]:
    """Runs row 11. Each repeat takes one step with each trainer."""
    model = make_model()
    setting = Setting.of(
        make_model,
        shape,
        prompts,
        vocabulary=model.config.vocab_size,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        uncounted=0,
    )
    trainings: dict[str, Callable[[], Times]] = {
        f"TRL, {shape.G} rows at a time": lambda: train_trl(setting, 1, shape.G),
        "ours, shuffled": lambda: train_ours(setting, 1, "shuffled"),
    }
    title = f"whole steps of {model.num_parameters() / 1e6:.0f}M: {prompts} prompts of about "
    contest = Contest(
        11, f"{title}{shape.mean_prompt:.0f} tokens, G {shape.G}, C {shape.C}", goal=">= 3x TRL"
    )
    contest.figures = {"floors": floors(model, shape, prompts)}
    del model
    times = {name: Times() for name in trainings}
    for _ in range(repeats):
        for name, training in trainings.items():
            times[name] += training()
    contest.seconds = {name: run_times.step for name, run_times in times.items()}
    contest.base, contest.ours = contest.seconds
    for name, run_times in times.items():
        parts = {f"{part} s": mean(seconds) for part, seconds in run_times.parts.items()}
        contest.figures[f"{name}, mean of a step"] = {
            **parts,
            "tokens written": mean(run_times.tokens),
        }
    return [contest]


def floors(model: PreTrainedModel, shape: Shape, prompts: int) -> dict[str, float]:
    """Returns the least seconds that rollouts and update of these sizes need on this machine.

    Also returns the two rates that they follow from.
    """
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    rate = 2 * n**3 / _least(lambda: torch.mm(a, b))
    source = torch.ones(2**26)  # 256 MB, beyond any cache
    bandwidth = 4 * source.numel() / _least(lambda: source.sum())
    # The rollouts of a prompt share it. Prompts in shuffled order share almost nothing.
    shuffled = replace(shape, K=1, Q=round(shape.mean_prompt), trajectories=prompts)
    rows = shuffled.rows(model.config.vocab_size)
    reading = forward_flops(model.config, PrefixTree.of([(p, p[:1]) for p, _ in rows])) / rate
    # The cost of one more token: a row with one completion token, less a row with none.
    two, first = (PrefixTree.of([([0], [1] * more)]) for more in (1, 0))
    token = forward_flops(model.config, two) - forward_flops(model.config, first)
    token *= len(rows)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    writing = shape.C * max(token / rate, weights / bandwidth)
    return {
        "matmul, operations/s": rate,
        "memory, bytes/s": bandwidth,
        "rollouts s": reading + writing,
        "update s": update_flops(model.config, PrefixTree.of(rows)) / rate,
    }


def _least(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
