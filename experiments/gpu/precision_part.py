"""Measures part b: how bf16 changes log-probabilities, gradients and the sampler gap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from given import Given, Note
from shapes import Shape, base_config, random_model, smollm2_config
from transformers import PreTrainedModel
from update import Case, Cut, Update, as_trained, ours, padded

from srl.config.parts import RowSettings
from srl.data.rows import Rows
from srl.models.loading import context_limit, prompt_format
from srl.models.prefix_tree import Row
from srl.models.scoring import completion_log_probs
from srl.models.tree_models import attending_over_trees
from srl.rollout.samplers import LocalSampler, Prompt, SamplingParams, complete
from srl.training.sampler_gap import SamplerGap

GROUPS, G = 8, 4
FORM = RowSettings(think=False, system_prompt="Give only the next step.", targets="all")


def measure(given: Given, note: Note) -> None:
    """Notes how bf16 and tf32 differ from float32 on the same rows."""
    length = 8 if given.toy else 96
    model, prompts, stop = _model_and_prompts(given, length)
    sampling = SamplingParams(length, stop_ids=stop)

    def sample(*, bf16: bool) -> list[tuple[Row, list[float]]]:
        sampler = LocalSampler(model, pad_id=0, token_budget=2**30)
        asked = [Prompt(ids, key) for key, ids in enumerate(prompts)]
        with torch.autocast(given.device.type, torch.bfloat16, enabled=bf16):
            groups = complete(sampler, asked, G, sampling)
        return [
            ((prompt, completion.ids), completion.log_probs)
            for prompt, group in zip(prompts, groups, strict=True)
            for completion in group
        ]

    with _float32_as("highest"):
        for name, bf16 in (("fp32", False), ("bf16", True)):
            note({f"sampler's distance, {name}": _gap(model, sample(bf16=bf16), bf16=bf16)})
        rows = [row for row, _ in sample(bf16=False)]
        note({"rows": len(rows), "tokens written": sum(len(written) for _, written in rows)})
        exact = _update(model, rows, as_trained(), bf16=False)
    for name, precision, bf16, cut in (
        ("fp32, rows repeated", "highest", False, padded()),
        ("tf32", "high", False, as_trained()),
        ("bf16", "highest", True, as_trained()),
        ("bf16, rows repeated", "highest", True, padded()),
    ):
        with _float32_as(precision):
            update = _update(model, rows, cut, bf16=bf16)
        note({f"{name}, beside fp32": _apart(exact, update, rows)})


def _model_and_prompts(
    given: Given, length: int
) -> tuple[PreTrainedModel, list[list[int]], frozenset[int]]:
    """Returns a model, prompts and stop tokens.

    They are the given model and the first rows of the problems, or else random weights and tokens.
    """
    if given.model is not None and (given.toy or given.data is not None):
        model, tokenizer = given.policy()
        form = prompt_format(model, tokenizer, FORM)
        rows = Rows.of(given.problems()[0], form, FORM, context_limit(model), most=GROUPS)
        return model, rows.prompts, form.stop_ids
    config = base_config(512, num_hidden_layers=1, layer_types=["full_attention"])
    model = random_model(config if given.toy else smollm2_config(), given.device.type)
    shape = Shape(K=GROUPS, Q=150, s=20, G=1, C=1)
    prompts = [list(prompt) for prompt, _ in shape.rows(model.config.vocab_size)]
    return model, prompts, frozenset({model.config.vocab_size})


@contextmanager
def _float32_as(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _gap(
    model: PreTrainedModel, sampled: Sequence[tuple[Row, list[float]]], *, bf16: bool
) -> dict[str, float]:
    """Returns the sampler gap that training logs, in nats."""
    gap = SamplerGap()
    model.train()
    with (
        torch.no_grad(),
        attending_over_trees(model),
        torch.autocast(model.device.type, torch.bfloat16, enabled=bf16),
    ):
        scores = completion_log_probs(
            model,
            [row for row, _ in sampled],
            pad_id=0,
            temperature=1.0,
            device=model.device,
            tree=True,
        )
    gap.add(scores, [values for _, values in sampled])
    return gap.metrics()


def _update(model: PreTrainedModel, rows: list[Row], cut: Cut, *, bf16: bool) -> Update:
    update = ours(Case(model, rows, G, bf16), cut)()()
    assert isinstance(update, Update)
    return update


def _apart(exact: Update, inexact: Update, rows: Sequence[Row]) -> dict[str, float]:
    """Returns the differences of two updates.

    Gradients are compared as one long vector, and log-probabilities token by token, in nats.
    """
    products = torch.zeros(3, dtype=torch.float64)
    for a, b in zip(exact.gradients, inexact.gradients, strict=True):
        # One tensor at a time, because in float64 all of them might not fit in memory.
        a, b = a.double().flatten(), b.double().flatten()
        products += torch.stack([a @ b, a @ a, b @ b]).cpu()
    both, ours, theirs = products.tolist()
    first, second = (_lines(update, rows) for update in (exact, inexact))
    differences = torch.cat([(first[row] - second[row]).abs() for row in first])
    return {
        "gradient, cosine": both / (ours * theirs) ** 0.5,
        "gradient, norm ratio": (theirs / ours) ** 0.5,
        "gradient, relative error": ((ours + theirs - 2 * both) / ours) ** 0.5,
        "log-probability, mean difference": differences.mean().item(),
        "log-probability, largest difference": differences.max().item(),
    }


def _lines(update: Update, rows: Sequence[Row]) -> dict[int, torch.Tensor]:
    """Returns row -> its log-probabilities, without the padding."""
    return {
        row: line[: len(rows[row][1])]
        for numbers, lines in update.log_probs
        for row, line in zip(numbers, lines, strict=True)
    }
