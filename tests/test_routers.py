"""Sparse policies in training: the load of their experts is counted, balanced, and written down."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path

import pytest
import torch
import transformers
from conftest import read_jsonl, toy_tokenizer, toy_trajectories, toy_values, weights
from sparse import FAMILIES, attending, collapse, sparse_model
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from rewards import RewardSum
from srl.config.router import RouterSettings
from srl.config.settings import ExpertConfig
from srl.errors import UsageError
from srl.models.experts import Cost, sparse_layers
from srl.models.prefix_tree import Row
from srl.models.routing import (
    Part,
    first_places,
)
from srl.models.scoring import completion_log_probs
from srl.runs.expert_load import is_collapsed, load_figures
from srl.training.routers import Routers, over_layers_loss, per_layer_loss
from srl.training.sft import ExpertTrainer


def shares(*counts: list[float]) -> list[Tensor]:
    return [torch.tensor(one) for one in counts]


# ---- the losses ----------------------------------------------------------------------------------


def test_layers_that_collapse_on_experts_of_their_own_alarm_the_loss_of_each_layer_alone() -> None:
    f, P = [], []
    for layer in range(4):
        pair = torch.zeros(8)
        pair[[2 * layer, 2 * layer + 1]] = 1.0
        f.append(pair)
        P.append(pair / 2)
    assert per_layer_loss(f, P, [8] * 4).item() == 8.0
    assert over_layers_loss(f, P, [8] * 4).item() == 2.0  # its least: top_k


def test_the_loss_over_layers_is_the_librarys() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(40, 8, generator=generator) for _ in range(3)]
    f, P = [], []
    for one in logits:
        chosen = one.softmax(-1).topk(2).indices
        f.append(torch.bincount(chosen.flatten(), minlength=8) / 40)
        P.append(one.softmax(-1).mean(0))
    library = load_balancing_loss_func(tuple(logits), 8, 2)
    torch.testing.assert_close(over_layers_loss(f, P, [8] * 3), library)


# ---- the same whatever the cut -------------------------------------------------------------------


def nested_rows() -> list[Row]:
    rng = random.Random(0)

    def text(length: int) -> list[int]:
        return [rng.randrange(4, 300) for _ in range(length)]

    whole = text(30)
    return [(whole[:n], text(rng.randrange(2, 12))) for n in (8, 20, 30) for _ in "abc"]


ROWS = nested_rows()


def one_step(
    model: torch.nn.Module, parts: list[Part], settings: RouterSettings, *, half: bool = False
) -> tuple[Tensor, list[list[int]], dict[str, float]]:
    """Gradient, counts and figures of a step that is cut in this way."""
    routers = Routers(model, settings)
    model.zero_grad()
    cast = torch.autocast("cpu", torch.bfloat16, enabled=half)

    def score(rows: list[Row], tree: bool) -> Tensor:
        with cast:
            return completion_log_probs(
                model, rows, pad_id=0, temperature=1.0, device="cpu", tree=tree
            ).log_probs

    def look(number: int) -> None:
        rows, tree = parts[number]
        with attending(model, tree):
            score(list(rows), tree)

    score([([5], [6])], tree=False)  # a trainer has found the head by then
    routers.begin(parts, look, "cpu")
    for number, (rows, tree) in enumerate(parts):
        with attending(model, tree):
            with routers.watching(number):
                loss = -score(list(rows), tree).sum() / 50
            routers.add_loss(loss).backward()
    figures, counts = routers.end()
    trained = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(trained), counts, figures


@pytest.mark.parametrize("balancing", ["loss", "library_loss"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_and_load_do_not_depend_on_trees_and_micro_batches(
    name: str, balancing: str
) -> None:
    model = sparse_model(name)
    settings = RouterSettings(
        router_balancing=balancing, router_balancing_coef=0.5, router_z_loss_coef=0.1
    )
    by_tree = name not in {"gpt-oss"}  # its attention has sinks, which no tree has
    cuts: list[list[Part]] = [
        [(ROWS, False)],
        [(ROWS[:2], False), (ROWS[2:7], False), (ROWS[7:], False)],
        [(ROWS, by_tree)],
        [(ROWS[:5], by_tree), (ROWS[5:], False)],
    ]
    gradient, counts, figures = one_step(model, cuts[0], settings)
    distinct = {
        tuple([*prompt, *written][:n])
        for prompt, written in ROWS
        for n in range(1, len(prompt) + len(written) + 1)
    }
    top_k = sparse_layers(model)[0].top_k
    assert [sum(layer) for layer in counts] == [top_k * len(distinct)] * 2
    plain, _, _ = one_step(model, cuts[0], RouterSettings())
    assert (gradient - plain).abs().max() > 1e-4 * plain.abs().max()  # the losses do something
    for cut in cuts[1:]:
        again, same, figures_again = one_step(model, cut, settings)
        assert same == counts
        assert (again - gradient).abs().max() <= 1e-5 * gradient.abs().max()
        assert figures_again == pytest.approx(figures, rel=1e-5)


@pytest.mark.parametrize("balancing", ["none", "loss", "bias"])
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() & {"mixtral", "granite-moe", "gpt-oss"}))
def test_gradient_checkpointing_changes_nothing(name: str, balancing: str) -> None:
    z = 0.1 if balancing == "loss" else 0.0
    settings = RouterSettings(router_balancing=balancing, router_z_loss_coef=z)
    cut: list[Part] = [(ROWS[:5], False), (ROWS[5:], False)]
    found = []
    for checkpointing in (False, True):
        model = sparse_model(name)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        found.append(one_step(model, cut, settings))
    (plain, counts, figures), (again, same, figures_again) = found
    assert (again - plain).abs().max() <= 1e-6 * plain.abs().max()
    assert same == counts
    assert figures_again == pytest.approx(figures)


def test_reentrant_checkpointing_would_lose_the_losses_of_routers() -> None:
    model = sparse_model("mixtral")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    with pytest.raises(UsageError, match="use_reentrant: false"):
        one_step(model, [(ROWS, False)], RouterSettings(router_balancing="loss"))


def test_a_token_of_several_micro_batches_counts_in_the_first_and_padding_never() -> None:
    rows: list[Row] = [([5, 6, 7], [8]), ([5, 6, 7], [9, 9]), ([5, 6], [7, 8, 1])]
    first, second, third = first_places([(rows[:2], False), (rows[1:], True), (rows[2:], False)])
    #                 5     6     7     8    pad      5 6 7 as above, 9, 9
    assert first.tolist() == [True, True, True, True, False, False, False, False, True, True]
    assert second.sum() == 1  # the last token of the third row
    assert not third.any()


# ---- figures -------------------------------------------------------------------------------------


def test_figures_of_an_even_load_and_of_one_that_collapsed() -> None:
    even = load_figures([[10, 10, 10, 10]])
    assert even == {
        "router/violation": 0,
        "max_router_violation": 0,
        "router/cv": 0,
        "router/entropy": pytest.approx(1),
        "router/idle": 0,
    }
    both = load_figures([[10, 10, 10, 10], [40, 0, 0, 0]])
    assert both["max_router_violation"] == 3
    assert both["router/violation"] == 1.5
    assert both["router/cv"] == pytest.approx(math.sqrt(3) / 2)
    assert both["router/entropy"] == pytest.approx(0.5)
    assert both["router/idle"] == 3 / 8


def test_what_counts_as_collapsed() -> None:
    assert is_collapsed([46, 45, 3, 2, 2, 2], top_k=2)
    assert not is_collapsed([44, 45, 3, 4, 2, 2], top_k=2)
    assert not is_collapsed([50, 50, 0, 0], top_k=2)  # two of four are no surprise


def test_parameters_of_mixtral_8x7b() -> None:
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(transformers.MixtralConfig())
    cost = Cost.of(model)
    assert (cost.total, cost.active) == (46_702_792_704, 12_879_925_248)


# ---- a collapsed router --------------------------------------------------------------------------


def sft_config(folder: Path, **changes: object) -> ExpertConfig:
    values = toy_values(folder, **{"learning_rate": 3e-3, "prompts_per_step": 8, **changes})
    del values["num_generations"]
    return ExpertConfig(**values)  # type: ignore[arg-type]


def fine_tuned(model: torch.nn.Module, settings: ExpertConfig) -> ExpertTrainer:
    trainer = ExpertTrainer(
        model,  # type: ignore[arg-type]
        settings,
        toy_trajectories(30),
        [],
        RewardSum({"similarity": 1.0}),
        toy_tokenizer(),
    )
    trainer.train()
    return trainer


def collapsed_model(push: float = 5.0) -> torch.nn.Module:
    model, tokenizer = sparse_model("mixtral"), toy_tokenizer()
    rows = [tokenizer.encode(one.problem + one.texts[0]) for one in toy_trajectories(9)]
    collapse(model, rows, push)
    return model


def mended(balancing: str, folder: Path, **more: float) -> float:
    """The largest violation of the last 20 of 100 steps together, from a collapsed router on."""
    model = collapsed_model()
    fine_tuned(model, sft_config(folder, max_steps=100, router_balancing=balancing, **more))
    lines = [one for one in read_jsonl(folder / "metrics.jsonl") if "loss" in one]
    assert lines[0]["max_router_violation"] > 2  # type: ignore[operator]
    assert lines[-1]["mean_token_accuracy"] > 0.95  # type: ignore[operator]
    loads = torch.tensor([one["layers"] for one in read_jsonl(folder / "experts.jsonl")])
    return load_figures(loads[-20:].sum(0).tolist())["max_router_violation"]


def test_balancing_mends_a_collapsed_router(tmp_path: Path) -> None:
    violation = {
        name: mended(name, tmp_path / name, **more)
        for name, more in (
            ("none", {}),
            ("loss", {"router_balancing_coef": 0.1}),
            ("library_loss", {"router_balancing_coef": 0.1}),
            ("bias", {"router_bias_rate": 0.01}),
        )
    }
    assert violation["none"] > 1
    assert violation["loss"] < 0.5
    assert violation["bias"] < 0.5
    # The loss over layers together does not see what each layer does.
    assert violation["loss"] < 0.7 * violation["library_loss"] < 0.7 * violation["none"]


def test_a_layer_that_has_collapsed_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fine_tuned(collapsed_model(push=30.0), sft_config(tmp_path, max_steps=3))
    [told] = [one.getMessage() for one in caplog.records if "collapsed" in one.getMessage()]
    assert "sparse layer 1 (model.layers.1.mlp) has collapsed" in told
    assert "2 of 8 experts (2 and 3)" in told
    assert "router_balancing: loss" in told


def test_frozen_routers_stay_as_they_are(tmp_path: Path) -> None:
    model = sparse_model("qwen2-moe")
    before = weights(model)
    fine_tuned(model, sft_config(tmp_path, freeze_router=True))
    moved = {key for key, one in weights(model).items() if not one.equal(before[key])}
    assert not any("mlp.gate.weight" in key for key in moved)
    assert any("experts" in key for key in moved)
