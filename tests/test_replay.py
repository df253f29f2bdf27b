"""Routes of the sampler: recorded token by token, compared with the update's, and followed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import read_jsonl, refused, toy_config, toy_trajectories, train
from sparse import FAMILIES, attending, save_sparse, sparse_model
from torch import Tensor

from srl.models.experts import SparseLayer, sparse_layers
from srl.models.prefix_tree import Row
from srl.models.replay import Routes, following, laid_out
from srl.models.routing import seeing, sums_to_one
from srl.models.scoring import completion_log_probs
from srl.rollout.samplers import Completion, LocalSampler, Prompt, SamplingParams
from srl.training.trainer import SRLTrainer

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 40, 41, 42], [30, 31, 32]]


def sampled(model: torch.nn.Module, *, share: bool, budget: int = 4096) -> list[list[Completion]]:
    sampler = LocalSampler(model, pad_id=0, token_budget=budget, share=share, record_routes=True)  # type: ignore[arg-type]
    # Several end early, so that rows leave the batch while others go on.
    params = SamplingParams(max_new_tokens=24, seed=1, stop_ids=frozenset(range(100, 140)))
    prompts = [Prompt(ids, key) for key, ids in enumerate(PROMPTS)]
    found = dict(sampler.sample(prompts, 4, params))
    return [found[place] for place in range(len(PROMPTS))]


def chosen(model: torch.nn.Module, layers: list[SparseLayer], ids: list[int]) -> Tensor:
    """[T, L, K] of a plain forward."""
    seen: dict[int, Tensor] = {}
    with torch.no_grad(), seeing(layers, lambda number, _l, _w, i: seen.update({number: i})):
        model(torch.tensor([ids]))
    return torch.stack([seen[number] for number in range(len(layers))], 1)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_routes_are_those_of_a_plain_forward(name: str, share: bool) -> None:
    model = sparse_model(name).eval()
    layers = sparse_layers(model)
    for budget in (4096, 130):  # all prompts together, and one by one
        groups = sampled(model, share=share, budget=budget)
        lengths = {len(one.ids) for group in groups for one in group}
        assert len(lengths) > 3
        for prompt, group in zip(PROMPTS, groups, strict=True):
            for one in group:
                assert one.routes is not None
                plain = chosen(model, layers, [*prompt, *one.ids])
                own = torch.cat([one.routes.prompt, one.routes.written]).long()
                assert own.sort(-1).values.equal(plain[:-1].sort(-1).values)


def test_nothing_is_recorded_unless_asked_for() -> None:
    model = sparse_model("mixtral").eval()
    sampler = LocalSampler(model, pad_id=0, token_budget=4096)
    [(_, [one])] = sampler.sample([Prompt([5, 6], 0)], 1, SamplingParams(max_new_tokens=3))
    assert one.routes is None


def made_up(rows: list[Row], seed: int) -> list[Routes]:
    """Routes over 8 experts, 2 of them for each token, in 2 layers; equal where rows are."""
    shared: dict[tuple[int, ...], Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    found = []
    for prompt, written in rows:
        text = [*prompt, *written]
        own = []
        for end in range(1, len(text)):
            route = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in "ab"])
            own.append(shared.setdefault(tuple(text[:end]), route.to(torch.int16)))
        found.append(Routes(torch.stack(own[: len(prompt)]), torch.stack(own[len(prompt) :])))
    return found


ROWS: list[Row] = [([5, 6, 7], [8, 9]), ([5, 6, 7], [8, 3, 4, 2]), ([9], [5, 5])]


@pytest.mark.parametrize("tree", [True, False])
def test_recorded_routes_are_followed_and_teach_the_router(tree: bool) -> None:
    model = sparse_model("mixtral")
    layers, routes = sparse_layers(model), made_up(ROWS, seed=0)
    laid = laid_out(ROWS, routes, tree=tree)
    assert laid is not None
    known = laid[:, 0, 0] >= 0
    seen: dict[int, Tensor] = {}

    def score() -> Tensor:
        return completion_log_probs(
            model, ROWS, pad_id=0, temperature=1.0, device="cpu", tree=tree
        ).log_probs

    with attending(model, tree):
        score()  # finds the head
        own = score().detach()
        with following(layers, laid, [sums_to_one(one, "a test") for one in layers]) as found:
            with seeing(layers, lambda number, _l, _w, i: seen.update({number: i})):
                followed = score()
            followed.sum().backward()
        with following(layers, laid, None) as compared:
            assert score().equal(own)  # comparing changes nothing
    for number in (0, 1):
        assert seen[number][known].equal(laid[known, number].long())
    assert found.compared == compared.compared == int(known.sum())
    assert 0 < found.differ[0] <= found.compared
    assert not torch.allclose(followed, own)
    assert all(layer.router.weight.grad.abs().sum() > 0 for layer in layers)  # type: ignore[union-attr, operator]


def test_a_tree_and_padded_rows_follow_the_same_routes() -> None:
    model = sparse_model("qwen3-moe", num_experts_per_tok=2)
    layers, routes = sparse_layers(model), made_up(ROWS, seed=1)
    rules = [sums_to_one(one, "a test") for one in layers]
    values = []
    for tree in (True, False):
        laid = laid_out(ROWS, routes, tree=tree)
        assert laid is not None
        with attending(model, tree), torch.no_grad():
            for _ in "ab":  # the first finds the head, without the routes
                values.append(
                    completion_log_probs(
                        model, ROWS, pad_id=0, temperature=1.0, device="cpu", tree=tree
                    ).log_probs
                )
            with following(layers, laid, rules):
                values.append(
                    completion_log_probs(
                        model, ROWS, pad_id=0, temperature=1.0, device="cpu", tree=tree
                    ).log_probs
                )
    torch.testing.assert_close(values[2], values[5], atol=1e-5, rtol=0)
    assert not torch.allclose(values[1], values[2], atol=1e-3)


# ---- in training ---------------------------------------------------------------------------------


def figures(policy: Path, folder: Path, **changes: object) -> list[dict[str, float]]:
    settings = {
        "max_steps": 3,
        "dynamic_sampling": False,
        "prompts_per_step": 8,
        "format_failure_reward": {"default": -1.0, "truncated": -0.5},
        **changes,
    }
    SRLTrainer(str(policy), toy_config(folder, **settings), toy_trajectories(8)).train()
    lines = read_jsonl(folder / "metrics.jsonl")
    return [line for line in lines if "loss" in line]  # type: ignore[misc]


def test_in_float32_sampler_and_update_agree_and_replay_changes_little(tmp_path: Path) -> None:
    policy = save_sparse("qwen3-moe", tmp_path / "policy")
    plain = figures(policy, tmp_path / "plain")
    replayed = figures(policy, tmp_path / "replayed", replay_routes=True)
    assert [line["router/disagreement"] for line in plain + replayed] == [0] * 6
    for one, two in zip(plain, replayed, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)


def test_in_bf16_replay_brings_the_update_nearer_to_the_sampler(tmp_path: Path) -> None:
    policy = save_sparse("glam-like", tmp_path / "policy", initializer_range=0.3)
    plain = figures(policy, tmp_path / "plain", bf16=True, max_steps=1, prompts_per_step=16)
    replayed = figures(
        policy,
        tmp_path / "replayed",
        bf16=True,
        max_steps=1,
        prompts_per_step=16,
        replay_routes=True,
    )
    assert plain[0]["router/disagreement"] > 0
    assert replayed[0]["router/disagreement"] > 0  # of what it would have chosen
    assert replayed[0]["sampler_gap"] < plain[0]["sampler_gap"]


def test_a_dense_policy_has_nothing_to_replay(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, train("--replay_routes", "true"), "replay_routes is True.*dense")
