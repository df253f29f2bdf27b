"""Which experts a sparse policy uses, which are chosen, and that only these move."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from conftest import (
    read_jsonl,
    refused,
    same_weights,
    toy_config,
    toy_trajectories,
    train,
    weights,
    write_config,
)
from rich.console import Console
from sparse import save_sparse

from srl.commands.cli import main
from srl.commands.expert_use import report_experts, select_experts
from srl.config.experiment import Experiment, load_experiment
from srl.data.rows import Rows
from srl.errors import UsageError
from srl.evaluation.expert_use import ExpertUse, expert_use, select
from srl.logs.report.report import write_report
from srl.models.experts import sparse_layers
from srl.models.loading import load_policy, prompt_format
from srl.training.trainer import SRLTrainer


def measured(policy: Path, *, budget: int = 4096, share: bool = True) -> tuple[ExpertUse, Rows]:
    model, tokenizer = load_policy(str(policy))
    args = toy_config(policy.parent)
    form = prompt_format(model, tokenizer, args)
    rows = Rows.of(toy_trajectories(6), form, args, None)
    use = expert_use(model, sparse_layers(model), form, rows, budget=budget, share=share)
    return use, rows


def test_counts_add_up_and_do_not_depend_on_the_cut(tmp_path: Path) -> None:
    policy = save_sparse("qwen3-moe", tmp_path / "policy")
    use, rows = measured(policy)
    top_k = 4
    assert [sum(layer) for layer in use.layers] == [top_k * use.tokens] * 2
    for layer in use.gates:  # the weights of a token sum to 1
        assert sum(layer) == pytest.approx(use.tokens, rel=1e-5)
    parts = use.by["part"]
    tokens = {name: sum(layers[0]) // top_k for name, layers in parts.items()}
    assert sum(tokens.values()) == use.tokens
    assert tokens["prompt"] < sum(map(len, rows.prompts))  # what steps share counts once
    written = tokens["thought"] + tokens["step"]
    for split, values in (("source", ["toy"]), ("step_index", ["0", "1", "2"])):
        assert list(use.by[split]) == values
        assert sum(sum(of[0]) for of in use.by[split].values()) == top_k * written
    for budget, share in ((60, True), (4096, False), (60, False)):
        again, _ = measured(policy, budget=budget, share=share)
        assert (again.layers, again.by) == (use.layers, use.by)


def test_the_fewest_experts_that_reach_the_threshold() -> None:
    scores = [[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]]
    assert select(scores, 0.2) == [[1], [0]]
    assert select(scores, 0.7) == [[1, 3], [0]]
    assert select(scores, 0.71) == [[1, 2, 3], [0]]
    assert select(scores, 1.0) == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert select([[0.25, 0.25, 0.25, 0.25]], 0.5) == [[0, 1]]


# ---- training the chosen ones --------------------------------------------------------------------


def choice(path: Path, layers: object) -> str:
    path.write_text(json.dumps({"layers": layers}), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "qwen2-moe"])
def test_only_chosen_experts_move(name: str, tmp_path: Path) -> None:
    policy = save_sparse(name, tmp_path / "policy")
    settings = toy_config(
        tmp_path / "run",
        max_steps=4,
        dynamic_sampling=False,
        weight_decay=0.1,  # would move every weight that has a gradient
        format_failure_reward={"default": -1.0, "truncated": -0.5},
        train_experts=choice(tmp_path / "chosen.json", [[1, 3], []]),
    )
    trainer = SRLTrainer(str(policy), settings, toy_trajectories(8))
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {key for key in after if not after[key].equal(before[key])}
    first = sparse_layers(trainer.model)[0]
    names = {f"{first.name}.experts.{key}" for key in first.weights()}
    assert moved == names
    for key in names:
        by_expert = [not after[key][e].equal(before[key][e]) for e in range(first.num_experts)]
        assert by_expert == [e in (1, 3) for e in range(first.num_experts)]
    share = sum(after[key].numel() for key in names) * 2 / first.num_experts
    chosen = trainer.routers.chosen
    assert chosen is not None
    assert chosen.moving == share
    assert f"{int(share):,} of {sum(x.numel() for x in trainer.model.parameters()):,}" in (
        trainer.routers.line()
    )


def test_a_choice_goes_through_a_resume(tmp_path: Path) -> None:
    policy = save_sparse("mixtral", tmp_path / "policy")
    more = {
        "dynamic_sampling": False,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "weight_decay": 0.1,
        "format_failure_reward": {"default": -1.0, "truncated": -0.5},
        "train_experts": choice(tmp_path / "chosen.json", [[0], [2, 5]]),
    }
    data = toy_trajectories(8)
    whole = SRLTrainer(str(policy), toy_config(tmp_path / "whole", **more), data)
    whole.train()
    SRLTrainer(str(policy), toy_config(tmp_path / "cut", **{**more, "max_steps": 2}), data).train()
    resumed = SRLTrainer(str(policy), toy_config(tmp_path / "cut", **more), data)
    resumed.train(resume_from_checkpoint=True)
    assert same_weights(weights(resumed.model), weights(whole.model))


def test_a_run_chooses_by_itself_what_the_command_would_choose(home: Path) -> None:
    told = {"rows": 20, "output": home / "chosen.json", "console": quiet()}
    by, threshold = "token_share", 0.4
    quick = {"dynamic_sampling": False, "max_steps": 2, "validation_problems": 0}
    where = experiment(home, **quick, eval_strategy="no")
    select_experts(where, by=by, threshold=threshold, **told)  # type: ignore[arg-type]
    how = ("--train_experts", f"{{by: {by}, threshold: {threshold}, rows: 20}}")
    assert train(*how) == 0
    own = json.loads((home / "runs/one/chosen_experts.json").read_text())
    assert own["layers"] == json.loads((home / "chosen.json").read_text())["layers"]
    assert train("--train_experts", "chosen.json", name="two") == 0
    one, two = (load_policy(f"runs/{name}/policy")[0] for name in ("one", "two"))
    assert same_weights(weights(one), weights(two))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{by: luck}", "train_experts.by.*luck.*gate_score"),
        ("{threshold: 0}", "train_experts.threshold is 0"),
        ("{rows: 0}", "train_experts.rows is 0"),
        ("{share: 0.2}", "train_experts.*share"),
        ("missing.json", "cannot read missing.json"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    experiment(home)
    refused(capsys, train("--train_experts", given), message)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([[0]], "is for 1 sparse layers, and the policy has 2"),
        ([[0], [8]], "names expert 8 of sparse layer 1, which has experts 0 to 7"),
        ([[], []], "names no expert"),
        ({"a": 1}, "is no list of experts"),
        ([["x"], []], "is no list of experts"),
        ([[1.0], []], "is no list of experts"),
        ([[True], []], "is no list of experts"),
        ([[1, 1], []], "names an expert of sparse layer 0 twice"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(
    layers: object, message: str, tmp_path: Path
) -> None:
    policy = save_sparse("mixtral", tmp_path / "policy")
    settings = toy_config(tmp_path / "run", train_experts=choice(tmp_path / "c.json", layers))
    with pytest.raises(UsageError, match=message) as refused:
        SRLTrainer(str(policy), settings, toy_trajectories(8))
    assert "experts select" in str(refused.value)


# ---- the commands --------------------------------------------------------------------------------


def experiment(home: Path, **changes: object) -> Experiment:
    save_sparse("olmoe", home / "sparse")
    write_config(home / "config.yaml", model="sparse", **changes)
    return load_experiment("config.yaml")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_a_report_and_what_it_draws(home: Path) -> None:
    console = quiet()
    folder = report_experts(experiment(home), rows=20, name="load", argv=["srl"], console=console)
    found = json.loads((folder / "load.json").read_text())
    assert found["model"] == "sparse"
    assert [len(layer) for layer in found["layers"]] == [8, 8]
    assert all(sum(layer) == pytest.approx(1) for layer in found["gate_scores"])
    page = (folder / "load.html").read_text()
    assert page.count('class="map"') == 1 + sum(map(len, found["by"].values()))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "step index 1" in shown


def test_selected_experts_are_trained_alone(home: Path) -> None:
    output = home / "chosen.json"
    told = {"rows": 20, "output": output, "console": quiet()}
    select_experts(experiment(home), by="gate_score", threshold=0.3, **told)  # type: ignore[arg-type]
    found = json.loads(output.read_text())
    assert 0 < sum(map(len, found["layers"])) < 16
    with pytest.raises(UsageError, match="exists already"):
        select_experts(experiment(home), by="token_share", threshold=0.3, **told)  # type: ignore[arg-type]
    experiment(home, dynamic_sampling=False, max_steps=2, validation_problems=0, eval_strategy="no")
    assert train("--train_experts", str(output)) == 0
    before, _ = load_policy("sparse")
    after, _ = load_policy("runs/one/policy")
    for one, two, chosen in zip(
        sparse_layers(before), sparse_layers(after), found["layers"], strict=True
    ):
        for name, weight in one.weights().items():
            moved = {e for e in range(8) if not weight[e].equal(two.weights()[name][e])}
            assert moved <= set(chosen)
        assert one.router.weight.equal(two.router.weight)  # type: ignore[operator, arg-type]
    output.write_text(output.read_text().replace('"by"', '"how"'))
    assert train("--train_experts", str(output), name="two") == 0


def test_report_and_select_through_the_command_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment(home)
    config = ("--config", "config.yaml")
    assert main(["experts", "report", *config, "--rows", "9", "--run-name", "load"]) == 0
    assert main(["experts", "prune", "--model", "sparse", "--keep", "6",
                 "--by", "runs/load/load.json", "--output", "pruned"]) == 0  # fmt: skip
    assert main(["experts", "select", *config, "--rows", "9", "--output", "c.json"]) == 0
    capsys.readouterr()
    assert main(["experts", "select", *config, "--threshold", "1.5", "--output", "d.json"]) == 2
    assert "--threshold is 1.5; it must be above 0" in capsys.readouterr().err
    assert main(["experts", "report", *config, "--learning_rat", "1"]) == 2
    assert "learning_rat" in capsys.readouterr().err
    assert main(["experts", "card", "--model", "sparse", "--learning_rate", "1"]) == 2
    assert "unknown words: --learning_rate" in capsys.readouterr().err


def test_a_dense_policy_is_told_how_to_become_sparse(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["experts", "report", "--config", "config.yaml", "--run-name", "load"])
    refused(capsys, code, "is not sparse.*experts upcycle")


def test_the_report_of_a_run_draws_its_experts(home: Path) -> None:
    experiment(home, dynamic_sampling=False, max_steps=3, validation_problems=0, eval_strategy="no")
    assert train() == 0
    loads = read_jsonl(home / "runs/one/experts.jsonl")
    page = write_report(home / "runs/one", None).path.read_text()
    assert "load of the experts, step 3" in page
    assert "imbalance by layer" in page
    last = torch.tensor(loads[-1]["layers"]).double()
    even = (last / last.mean(1, keepdim=True))[1, 7].item()
    assert f">{even:.3f}</span>" in page
