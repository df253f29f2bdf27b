"""Sparse policies in training: the load of their experts is counted, balanced, and written down."""

from __future__ import annotations

import logging
import math
import random
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
import transformers
from conftest import (
    read_jsonl,
    refused,
    same_weights,
    toy_config,
    toy_tokenizer,
    toy_trajectories,
    toy_values,
    train,
    weights,
    write_config,
)
from sparse import FAMILIES, collapse, save_sparse, sparse_model
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from rewards import RewardSum
from srl.config.router import RouterSettings
from srl.config.settings import ExpertConfig
from srl.errors import UsageError
from srl.models.experts import Cost, sparse_layers
from srl.models.loading import load_policy
from srl.models.prefix_tree import Row
from srl.models.routing import (
    BIAS_FILE,
    Part,
    add_bias,
    biases,
    first_places,
    load_bias,
    save_bias,
)
from srl.models.scoring import completion_log_probs
from srl.models.tree_models import attending_over_trees
from srl.runs.expert_load import is_collapsed, load_figures
from srl.training.routers import Routers, over_layers_loss, per_layer_loss
from srl.training.sft import ExpertTrainer
from srl.training.trainer import SRLTrainer


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


def attending(model: torch.nn.Module, tree: bool) -> AbstractContextManager[None]:
    return attending_over_trees(model) if tree else nullcontext()


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


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains(name: str, bf16: bool, tmp_path: Path) -> None:
    policy = save_sparse(name, tmp_path / "policy")
    settings = toy_config(
        tmp_path / "run",
        max_steps=5,
        bf16=bf16,
        router_balancing="loss",
        router_z_loss_coef=0.01,
        format_failure_reward={"default": -1.0, "truncated": -0.5},
        dynamic_sampling=False,
    )
    trainer = SRLTrainer(str(policy), settings, toy_trajectories(8))
    before = weights(trainer.model)
    trainer.train()
    lines = [one for one in read_jsonl(tmp_path / "run/metrics.jsonl") if "loss" in one]
    assert len(lines) == 5
    assert all(math.isfinite(one["loss"]) and one["router/balancing_loss"] > 0 for one in lines)  # type: ignore[arg-type, operator]
    moved = {key for key, one in weights(trainer.model).items() if not one.equal(before[key])}
    assert any("experts" in key for key in moved)
    assert any("gate.weight" in key or "router.weight" in key for key in moved)
    loads = read_jsonl(tmp_path / "run/experts.jsonl")
    layer = sparse_layers(trainer.model)[0]
    assert [one["step"] for one in loads] == [1, 2, 3, 4, 5]
    assert all(len(counts) == layer.num_experts for one in loads for counts in one["layers"])  # type: ignore[attr-defined]


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


@pytest.fixture(scope="module")
def without_balancing(tmp_path_factory: pytest.TempPathFactory) -> float:
    return mended("none", tmp_path_factory.mktemp("none"))


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


@pytest.mark.parametrize(
    ("balancing", "more"),
    [("loss", {"router_balancing_coef": 0.1}), ("bias", {"router_bias_rate": 0.01})],
)
def test_balancing_mends_a_collapsed_router(
    balancing: str, more: dict[str, float], without_balancing: float, tmp_path: Path
) -> None:
    assert mended(balancing, tmp_path, **more) < 0.5
    assert without_balancing > 1


def test_the_loss_over_layers_mends_less(without_balancing: float, tmp_path: Path) -> None:
    each = mended("loss", tmp_path / "loss", router_balancing_coef=0.1)
    together = mended("library_loss", tmp_path / "library", router_balancing_coef=0.1)
    assert each < 0.7 * together < 0.7 * without_balancing


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


# ---- the bias ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bias_chooses_and_does_not_weigh(name: str, tmp_path: Path) -> None:
    model = sparse_model(name).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        before = model(ids).logits
        add_bias(sparse_layers(model))
        torch.testing.assert_close(model(ids).logits, before, atol=1e-6, rtol=0)
        layer = sparse_layers(model)[0]
        biases([layer])[0][-1] = 10.0
        _, weight, chosen = layer.router(torch.randn(50, 32))
    assert (chosen == layer.num_experts - 1).any(-1).all()  # every token goes there
    assert (weight <= 1.0 + 1e-6).all()
    save_bias(model, tmp_path)
    other = sparse_model(name).eval()
    load_bias(other, tmp_path)
    with torch.no_grad():
        assert other(ids).logits.equal(model(ids).logits)
        assert not other(ids).logits.equal(before)


MOVING: dict[str, object] = {
    "dynamic_sampling": False,
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    # Rollouts of random weights fail in different ways, so groups have a spread.
    "format_failure_reward": {"default": -1.0, "truncated": -0.5},
}


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "gpt-oss"])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    # transformers' trainer reads checkpoints without making one tensor of a layer's experts.
    policy, data = save_sparse(name, tmp_path / "policy"), toy_trajectories(8)
    more = {**MOVING, "router_balancing": "bias", "router_bias_rate": 0.02}

    def trainer(run: str, **changes: object) -> SRLTrainer:
        return SRLTrainer(str(policy), toy_config(tmp_path / run, **{**more, **changes}), data)

    whole = trainer("whole")
    before = weights(whole.model)
    whole.train()
    trainer("cut", max_steps=2).train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=True)
    assert not same_weights(weights(whole.model), before)
    assert same_weights(weights(resumed.model), weights(whole.model))
    for one, two in zip(*(biases(sparse_layers(x.model)) for x in (resumed, whole)), strict=True):
        assert one.equal(two)
        assert one.any()
    logs = [(tmp_path / run / "experts.jsonl").read_bytes() for run in ("whole", "cut")]
    assert logs[0] == logs[1]
    whole.save_model(str(tmp_path / "saved"))
    loaded, _ = load_policy(str(tmp_path / "saved"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert loaded.eval()(ids).logits.equal(whole.model.eval()(ids).logits)


def test_the_best_checkpoint_comes_back_with_its_experts_and_biases(tmp_path: Path) -> None:
    policy, data = save_sparse("mixtral", tmp_path / "policy"), toy_trajectories(12)
    for greater in (True, False):  # one of them is not the last
        settings = toy_config(
            tmp_path / str(greater),
            **{**MOVING, "save_steps": 1, "max_steps": 3, "save_total_limit": None},
            router_balancing="bias",
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_reward",
            greater_is_better=greater,
        )
        trainer = SRLTrainer(str(policy), settings, data[:8], data[8:])
        trainer.train()
        best = str(trainer.state.best_model_checkpoint)
        saved, _ = load_policy(best)
        assert same_weights(weights(trainer.model), weights(saved))
        for one, two in zip(
            *(biases(sparse_layers(x)) for x in (trainer.model, saved)), strict=True
        ):
            assert one.equal(two)
        if not best.endswith("checkpoint-3"):
            break
    else:
        pytest.fail("the last checkpoint was the best and the worst")


def test_a_bias_of_another_model_is_refused(tmp_path: Path) -> None:
    model = sparse_model("mixtral")
    add_bias(sparse_layers(model))
    policy = save_sparse("glam-like", tmp_path / "policy")
    save_bias(model, policy)
    with pytest.raises(UsageError, match=f"{BIAS_FILE} is of another model"):
        load_policy(str(policy))


# ---- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--router_balancing", "loss"), "router_balancing is loss, but the policy is dense"),
        (("--freeze_router", "true"), "freeze_router is True, but the policy is dense"),
        (("--router_balancing", "lose"), "router_balancing.*lose.*loss.*library_loss"),
        (("--router_balancing_coef", "0.1"), "router_balancing is none, so it would do nothing"),
        (("--router_z_loss_coef", "-1"), "router_z_loss_coef is -1"),
        (
            ("--router_balancing", "loss", "--freeze_router", "true"),
            "freeze_router is True, but router_balancing is loss",
        ),
    ],
)
def test_settings_without_use_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    refused(capsys, train(*words), message)


def test_a_sparse_policy_through_the_command_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_sparse("olmoe", home / "sparse")
    write_config(home / "config.yaml", model="sparse", dynamic_sampling=False, max_steps=2)
    assert train() == 0
    shown = capsys.readouterr()
    assert "sparse: 2 layers of 8 experts, 3 of them for a token" in shown.out
    assert len(read_jsonl(home / "runs/one/experts.jsonl")) == 2
