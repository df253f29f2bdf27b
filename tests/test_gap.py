"""The `gap` of a comparison: what it becomes, a whole one, and what it may not say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from comparing import (  # noqa: F401, the first cleans up
    Starter,
    fixture_no_fork_is_left,
    run,
)
from conftest import TOY_SETTINGS, read_jsonl, toy_trajectories

from srl.commands.cli import main
from srl.compare.plan import Plan
from srl.compare.plan_file import load_plan
from srl.compare.results import Contrast, Part
from srl.compare.table import markdown
from srl.config.mixture import Adaptive
from srl.errors import UsageError
from srl.stats import Estimate

GAP: dict[str, object] = {
    "models": {"one": "some/base", "other": "another/base"},
    "sources": {
        "long": {"source": "files", "path": "long.jsonl"},
        "short": {"source": "files", "path": "short.jsonl"},
    },
    "pairs": {"length": ["long", "short"]},
    "mixtures": {"mix": {"long": 1, "short": 4}},
    "mix_by": "trajectory",
    "methods": {
        "sft": {"learning_rate": 0.01},
        "srl": {"learning_rate": 0.001, "num_generations": 4},
    },
}


def write(folder: Path, *, gap: object = None, **changes: object) -> Path:
    settings = {k: v for k, v in TOY_SETTINGS.items() if k != "num_generations"}
    plan = {
        "output": "runs/gap",
        "settings": settings
        | {"targets": "all", "validation_problems": 0, "test_problems": 6, "max_steps": 2}
        | {"save_steps": 2, "reward_workers": 1, "prompts_per_step": 4},
        "gap": GAP if gap is None else gap,
        "seeds": [0, 1],
        **changes,
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return folder / "compare.yaml"


def plan_of(folder: Path, *, quick: bool = False, **changes: object) -> Plan:
    return load_plan(write(folder, **changes), quick=quick)


def test_models_by_sources_by_methods(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert plan.difficulties == ("one", "other")
    names = [row.name for row in plan.rows]
    assert names == [
        "base", "sft_long", "sft_short", "sft_mix", "srl_long", "srl_short", "srl_mix",
    ]  # fmt: skip
    assert plan.contrasts[:3] == (
        ("sft_long", "sft_short"), ("sft_mix", "sft_long"), ("sft_mix", "sft_short"),
    )  # fmt: skip
    assert ("srl_mix", "base") in plan.contrasts
    cells = {cell.name: cell for cell in plan.cells}
    mixed = cells["other.srl_mix.1"].experiment
    assert mixed.model == "another/base"
    assert mixed.method == "srl"
    assert mixed.args.learning_rate == 0.001
    assert mixed.mixture is not None
    assert mixed.mixture.shares == {"long": 0.2, "short": 0.8}
    assert mixed.mixture.mix_by == "trajectory"
    single = cells["one.sft_long.0"].experiment
    assert single.mixture is not None
    assert single.mixture.shares == {"long": 1.0}
    # The other one is there too, so that the same problems and steps are held out.
    assert [one.name for one in single.data_plan.sources] == ["long", "short"]
    base = cells["one.base"].experiment
    assert [one.name for one in base.data_plan.sources] == ["long", "short"]


def test_once_more_at_equal_tokens(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, gap={**GAP, "expert_tokens": 5000})
    cells = {cell.name: cell.experiment.args for cell in plan.cells}
    assert cells["one.sft_long.0"].max_expert_tokens is None
    for row in ("sft_long", "sft_mix", "srl_short"):
        args = cells[f"one.{row}_tokens.0"]
        assert args.max_expert_tokens == 5000
        assert args.max_steps >= 100_000
        assert args.lr_scheduler_type == "constant"
    assert ("srl_long_tokens", "srl_short_tokens") in plan.contrasts
    assert ("sft_mix_tokens", "sft_short_tokens") in plan.contrasts


def test_a_method_may_have_other_tokens_or_none(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, gap={**GAP, "expert_tokens": {"sft": 9000}})
    cells = {cell.name: cell.experiment.args for cell in plan.cells}
    assert cells["one.sft_long_tokens.0"].max_expert_tokens == 9000
    assert "one.srl_long_tokens.0" not in cells
    assert ("sft_long_tokens", "sft_short_tokens") in plan.contrasts
    plan = plan_of(tmp_path, gap={**GAP, "expert_tokens": {"sft": 9000, "srl": 700}})
    cells = {cell.name: cell.experiment.args for cell in plan.cells}
    assert cells["one.srl_long_tokens.0"].max_expert_tokens == 700


def test_shares_that_follow_the_signal_are_an_arm_of_srl_alone(tmp_path: Path) -> None:
    mixtures: dict[str, object] = {"mix": {"long": 1, "short": 4}}
    mixtures |= {"follows": {"long": 1, "short": 1, "adaptive": {"least": 0.1, "most": 0.9}}}
    pairs = {"length": ["long", "short"], "move": ["follows", "mix"]}
    plan = plan_of(tmp_path, gap={**GAP, "mixtures": mixtures, "pairs": pairs})
    names = [row.name for row in plan.rows]
    assert "srl_follows" in names
    assert "sft_follows" not in names
    assert {pair for pair in plan.contrasts if "srl_follows" in pair} == {
        ("srl_follows", "srl_mix"), ("srl_follows", "srl_long"), ("srl_follows", "srl_short"),
        ("srl_follows", "base"),
    }  # fmt: skip
    cells = {cell.name: cell.experiment.mixture for cell in plan.cells}
    follows, fixed = cells["one.srl_follows.0"], cells["one.srl_mix.0"]
    assert follows is not None
    assert follows.adaptive == Adaptive(least=0.1, most=0.9)
    assert follows.shares == {"long": 0.5, "short": 0.5}
    mixtures["follows"] = {"long": 1, "short": 1, "adaptive": {}}  # a block that changes nothing
    plan = plan_of(tmp_path, gap={**GAP, "mixtures": mixtures})
    plain = {cell.name: cell.experiment.mixture for cell in plan.cells}["one.srl_follows.0"]
    assert plain is not None
    assert plain.adaptive == Adaptive()
    assert fixed is not None
    assert fixed.adaptive is None


def test_the_quick_one_changes_parts_of_it(tmp_path: Path) -> None:
    quick = {
        "seeds": [0],
        "gap": {"models": {"other": None}, "methods": {"srl": {"max_steps": 1}}},
    }
    path = write(tmp_path, quick=quick)
    plan = load_plan(path, quick=True)
    assert plan.difficulties == ("one",)
    cells = {cell.name: cell.experiment.args for cell in plan.cells}
    assert cells["one.srl_mix.0"].max_steps == 1
    assert cells["one.srl_mix.0"].learning_rate == 0.001
    assert cells["one.sft_mix.0"].max_steps == 2
    assert str(plan.output) == "runs/gap-quick"


def test_the_quick_one_needs_fewer_tokens_too(tmp_path: Path) -> None:
    gap = {**GAP, "expert_tokens": 5000}
    with pytest.raises(UsageError, match="quick: gap.expert_tokens is missing"):
        load_plan(write(tmp_path, gap=gap, quick={"seeds": [0]}), quick=True)
    plan = load_plan(write(tmp_path, gap=gap, quick={"gap": {"expert_tokens": None}}), quick=True)
    assert not any(row.name.endswith("_tokens") for row in plan.rows)


def test_a_whole_one_from_two_files(
    tmp_path: Path, toy_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From data to a verdict for two models by one command, and nothing is made twice."""
    monkeypatch.chdir(tmp_path)
    for name, long in (("long", True), ("short", False)):
        rows = [
            {"problem": one.problem, "steps": one.texts, "answer": one.answer}
            for number, one in enumerate(toy_trajectories(26, long=long))
            if number != (3 if long else 20)  # each lacks a problem of the other's
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gap = {**GAP, "models": {"one": str(toy_policy), "other": str(toy_policy)}}
    gap |= {"methods": {"sft": {"learning_rate": 0.01}}, "mixtures": {}}
    write(tmp_path, gap=gap)
    start = Starter()
    code, shown = run(start=start, jobs=2)
    assert code == 0, shown
    assert len(start.names) == 2 * (1 + 2 * 2)
    text = (tmp_path / "runs/gap/table.md").read_text()
    [header, _, first] = text.partition("## side by side\n\n")[2].split("\n")[:3]
    assert header == "| difference in steps greedy, points | one | other |"
    assert re.fullmatch(
        r"\| SFT on long less SFT on short "
        r"(\| [+-]\d+\.\d \[[^]]*\] (SFT on \w+ better|undecided) ){2}\|",
        first,
    ), first
    assert "side by side" in shown
    held_out = {}
    for cell in (tmp_path / "runs/gap").glob("one.*"):
        held_out[cell.name] = {one["problem_id"] for one in read_jsonl(cell / "eval.jsonl")}
    assert len(held_out) == 5
    assert len({frozenset(problems) for problems in held_out.values()}) == 1
    figures = json.loads((tmp_path / "runs/gap/table.json").read_text())["cells"]
    steps = {cell["held_out_steps"]["format failures"]["n"] for cell in figures.values()}
    assert len(steps) == 1  # the same steps too
    again = Starter()
    assert run(start=again)[0] == 0
    assert again.names == []
    assert main(["compare", "--config", "compare.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("gap", "message"),
    [
        ({"model": {}}, "gap: unknown key 'model'; did you mean models?"),
        ({"models": {}}, "gap has no models; name one or more"),
        ({"models": {"one": 3}}, "gap.models.one is 3"),
        ({"methods": {"dpo": {}}}, "gap.methods: unknown key 'dpo'; allowed: srl, sft"),
        (
            {"pairs": {"length": ["long"]}},
            "pairs.length is .* give two of long, short, mix",
        ),
        ({"mixtures": {"mix": {"long": 1}}}, "mixtures.mix is .*give two sources or more"),
        ({"mixtures": {"mix": {"long": 1, "shrt": 1}}}, "unknown key 'shrt'; did you mean short?"),
        ({"mixtures": {"long": {"long": 1, "short": 1}}}, "a source is called so too"),
        ({"expert_tokens": "many"}, "gap.expert_tokens is 'many'"),
        ({"expert_tokens": {"sft": "many"}}, "gap.expert_tokens.sft is 'many'"),
        ({"expert_tokens": {"rl": 9}}, "gap.expert_tokens: unknown key 'rl'"),
        ({"methods": {"sft": {"data": {}}}}, "methods.sft: data follows from gap; leave it away"),
        ({"methods": {"sft": {"method": "srl"}}}, "methods.sft: method follows from gap"),
        (
            {"sources": {"long": {"source": "files", "weight": 2}}, "pairs": {}, "mixtures": {}},
            "sources.long: leave weight away",
        ),
        (
            {"expert_tokens": 9, "methods": {"sft": {"warmup_steps": 0.3}}},
            "warmup_steps is 0.3, a share of the steps",
        ),
        ({"mixtures": {"mix": {"long": 1, "short": 1, "adaptive": 3}}}, "adaptive"),
        (
            {
                "mixtures": {"follows": {"long": 1, "short": 1, "adaptive": True}},
                "methods": {"sft": {}},
            },
            "mixtures.follows is adaptive: .* methods has no srl",
        ),
        ({"mix_by": "step"}, "mix_by is 'step'; allowed: row, trajectory, token"),
    ],
)
def test_what_is_refused(tmp_path: Path, gap: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(tmp_path, gap={**GAP, **gap})


@pytest.mark.parametrize(
    ("seeds", "shown"),
    [
        ((0,), "+20.0 [+10.0, +30.0] (p) (one seed: no verdict)"),
        ((0, 1), "+20.0 [+10.0, +30.0] SFT on long better"),
    ],
)
def test_one_seed_gives_no_verdict(tmp_path: Path, seeds: tuple[int, ...], shown: str) -> None:
    plan = plan_of(tmp_path)
    contrast = Contrast("steps greedy", "sft_long", "sft_short", seeds, Estimate(0.2, 0.1, 0.3, 50))
    part = Part("one", 50, [], {}, {}, [contrast])
    lines = markdown(plan, {}, [part]).splitlines()
    assert f"| SFT on long less SFT on short | {shown} |" in lines


def test_rows_beside_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rows follows from gap; leave one of them away"):
        plan_of(tmp_path, rows={"base": {"train": False}})
