"""What is shipped in experiments/gap: its plans, and the miniature's data and policies."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from experiments.gap.addition import SIZES, write_policy, write_solutions
from srl.compare.plan_file import load_plan

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments/gap"


def parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118


@pytest.mark.parametrize("quick", [False, True])
def test_three_sizes_two_methods_and_both_gaps(quick: bool) -> None:
    plan = load_plan(FOLDER / "gap.yaml", quick=quick)
    models = {cell.difficulty: cell.experiment.model for cell in plan.cells}
    sizes = [parameters(ROOT / model) for model in models.values()]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    for method in ("sft", "srl"):
        assert (f"{method}_fine", f"{method}_coarse") in plan.contrasts
        assert (f"{method}_terse", f"{method}_fine") in plan.contrasts
        assert (f"{method}_mix_long", f"{method}_coarse") in plan.contrasts
        assert (f"{method}_mix_large", "base") in plan.contrasts
    for cell in plan.cells:
        mixture = cell.experiment.mixture
        if cell.row.endswith("mix_long"):
            assert mixture is not None
            assert mixture.shares == {"fine": 0.2, "coarse": 0.8}
            assert mixture.mix_by == "trajectory"


def test_the_miniature_tells_the_same_sums_long_and_short(tmp_path: Path) -> None:
    write_solutions(tmp_path, 200, seed=1)
    told = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("long", "short")
    }
    assert [row["problem"] for row in told["long"]] == [row["problem"] for row in told["short"]]
    assert len({row["problem"] for row in told["long"]}) == 200
    for name, steps in (("long", 3), ("short", 2)):
        for row in told[name]:
            terms = [int(number) for number in re.findall(r"\d+", row["problem"])]
            assert int(row["answer"]) == sum(terms)
            assert len(row["steps"]) == steps
            for step in row["steps"][:-1]:
                left, _, right = step.partition("=")
                assert sum(map(int, left.split("+"))) == int(right)
            assert row["steps"][-1] == f"The answer is {sum(terms)}."
            assert row["steps"][0].count("+") == (1 if name == "long" else 2)


def test_the_miniature_has_policies_of_growing_size(tmp_path: Path) -> None:
    found = {name: write_policy(tmp_path / name, *shape, seed=0) for name, shape in SIZES.items()}
    assert [f"{count / 1000:.0f}k" for count in found.values()] == list(SIZES)
    plan = load_plan(FOLDER / "addition.yaml")
    assert plan.difficulties == tuple(SIZES)
    for cell in plan.cells:
        assert Path(cell.experiment.model).name == cell.difficulty


def test_the_page_shows_a_comparison_that_can_be_run(tmp_path: Path) -> None:
    page = (ROOT / "docs/mixtures.md").read_text()
    [block] = re.findall(r"```yaml\n(output: runs/my-gap\n.*?)```", page, re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(block)
    plan = load_plan(path)
    [count] = re.findall(r"`--dry-run`\s+counts the runs: .* = (\d+)\.", page)
    assert len(plan.cells) == int(count)
    for cell in plan.cells:
        assert not cell.experiment.args.think
        assert cell.experiment.args.save_total_limit == 1
