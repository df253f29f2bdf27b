"""The file of a comparison: what it becomes, and everything it may not say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import TOY_SETTINGS

from environments.prompts import PAPER_EVALUATION_PROMPT, PAPER_SYSTEM_PROMPT
from srl.compare.plan import Plan
from srl.compare.plan_file import load_plan
from srl.compare.runner import first_first
from srl.config.strict_yaml import read_settings
from srl.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
DATA = {"source": "files", "path": "data.jsonl"}


def values(**changes: object) -> dict[str, object]:
    plan: dict[str, object] = {
        "output": "runs/compare",
        "model": "some/base",
        "settings": {**TOY_SETTINGS, "test_problems": 8, "max_steps": 2},
        "difficulties": {"easy": {"data": DATA}, "hard": {"data": DATA, "solve_max_steps": 9}},
        "rows": {
            "base": {"train": False, "title": "base policy"},
            "two": {"after": "srl", "like": "srl", "learning_rate": 2e-3},
            "srl": {"learning_rate": 1e-3, "rewards": {"similarity": 1.0, "length": 0.1}},
        },
        "contrasts": [["srl", "base"], ["two", "srl"]],
        "seeds": [0, 3],
        "data_seed": 7,
    }
    return {**plan, **changes}


def write(path: Path, plan: object) -> Path:
    text = plan if isinstance(plan, str) else yaml.safe_dump(plan, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def plan_of(tmp_path: Path, *, small: bool = False, **changes: object) -> Plan:
    return load_plan(write(tmp_path / "compare.yaml", values(**changes)), quick=small)


def test_a_plan_is_difficulties_by_rows_by_seeds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    names = [cell.name for cell in plan.cells]
    assert sorted(names) == sorted(
        f"{difficulty}.{cell}"
        for difficulty in ("easy", "hard")
        for cell in ("base", "srl.0", "srl.3", "two.0", "two.3")
    )
    assert [row.name for row in plan.rows] == ["base", "two", "srl"]  # the table's order
    cells = {cell.name: cell for cell in plan.cells}
    two = cells["hard.two.3"].experiment
    assert two.model == "runs/compare/hard.srl.3/policy"
    assert two.rewards == {"similarity": 1.0, "length": 0.1}  # like srl
    assert two.args.learning_rate == 2e-3  # its own wins
    assert (two.args.seed, two.args.data_seed, two.args.test_before) == (3, 7, False)
    assert two.args.output_dir == "runs/compare"
    assert (two.args.solve_max_steps, cells["easy.two.3"].experiment.args.solve_max_steps) == (9, 4)
    base = cells["hard.base"]
    assert (base.trained, base.after, base.experiment.model) == (False, None, "some/base")
    assert base.experiment.args.seed == base.experiment.args.data_seed == 7
    for cell in plan.cells:  # behind the one it starts from
        assert cell.after is None or names.index(cell.after) < names.index(cell.name)


def test_a_row_adds_to_the_data_of_its_difficulty(tmp_path: Path) -> None:
    rows = {"a": {}, "b": {"data": {"label": "x"}}, "c": {"like": "b", "data": {"split": "y"}}}
    plan = plan_of(tmp_path, rows=rows, contrasts=[])
    data = {cell.row: cell.experiment.data for cell in plan.cells if cell.difficulty == "hard"}
    labelled = {**DATA, "label": "x"}
    assert data == {"a": DATA, "b": labelled, "c": {**labelled, "split": "y"}}


def test_cells_that_others_wait_for_go_first(tmp_path: Path) -> None:
    rows = {
        "alone": {},
        "three": {"after": "two"},
        "two": {"after": "one"},
        "one": {},
        "base": {"train": False},
    }
    plan = plan_of(tmp_path, rows=rows, contrasts=[], difficulties={"d": {"data": DATA}})
    assert [cell.name for cell in first_first(plan.cells)] == [
        *("d.one.0", "d.one.3", "d.two.0", "d.two.3"),
        *("d.base", "d.alone.0", "d.three.0", "d.alone.3", "d.three.3"),
    ]


def test_a_choice_takes_along_what_it_starts_from(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    def chosen(**words: list[str] | list[int]) -> set[str]:
        return {cell.name for cell in plan.choose(**words)}  # type: ignore[arg-type]

    assert chosen() == {cell.name for cell in plan.cells}
    assert chosen(rows=["two"], seeds=[3], difficulties=["hard"]) == {"hard.two.3", "hard.srl.3"}
    assert chosen(rows=["srl"], difficulties=["easy"]) == {"easy.srl.0", "easy.srl.3"}
    assert chosen(seeds=[0], difficulties=["easy"]) == {"easy.base", "easy.srl.0", "easy.two.0"}
    for words, message in (
        ({"rows": ["slr"]}, r"--rows slr: .*has rows base, two, srl; did you mean srl"),
        ({"seeds": [1]}, r"--seeds 1: .*has seeds 0, 3; .*add 1 to `seeds`"),
        ({"difficulties": ["x"]}, r"--difficulties x: .*has difficulties easy, hard"),
    ):
        with pytest.raises(UsageError, match=message):
            plan.choose(**words)  # type: ignore[arg-type]


def test_quick_changes_what_it_names(tmp_path: Path) -> None:
    quick = {
        "seeds": [0],
        "settings": {"max_steps": 1},
        "rows": {"srl": {"learning_rate": 5e-3}},
        "difficulties": {"hard": {"data": {"limit": 20}}},
    }
    small = plan_of(tmp_path, small=True, quick=quick)
    assert small.output == Path("runs/compare-quick")  # never where the full one is
    cells = {cell.name: cell.experiment for cell in small.cells}
    assert {cell.seed for cell in small.cells} == {0, None}
    assert cells["hard.srl.0"].data == {**DATA, "limit": 20}
    assert cells["easy.srl.0"].data == DATA
    assert cells["hard.srl.0"].args.max_steps == 1
    assert cells["hard.srl.0"].args.learning_rate == 5e-3
    assert cells["hard.srl.0"].rewards == {"similarity": 1.0, "length": 0.1}
    full = plan_of(tmp_path, quick=quick)
    assert {cell.experiment.args.max_steps for cell in full.cells} == {2}
    without = plan_of(tmp_path, small=True, quick={**quick, "difficulties": {"hard": None}})
    assert without.difficulties == ("easy",)
    named = plan_of(tmp_path, small=True, quick={**quick, "output": "other"})
    assert named.output == Path("other")
    with pytest.raises(UsageError, match="has no quick: block"):
        plan_of(tmp_path, small=True)


SETTINGS = values()["settings"]
ROWS = values()["rows"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, r"unknown key 'seed'; did you mean seeds\?"),
        ({"colour": 1}, r"unknown key 'colour'; allowed: output, model"),
        ({"keep_checkpoints": "some"}, r"keep_checkpoints is 'some' .str.; it must be of type"),
        ({"output": None}, r"output is None; give a folder"),
        ({"model": None}, r"row base, difficulty easy: model is None; give a model folder"),
        (
            {"settings": {"max_step": 1}},
            r"settings: unknown key 'max_step'; did you mean max_steps",
        ),
        ({"settings": {"seed": 1}}, r"settings: seed is the plan's: `seeds` lists them"),
        ({"settings": {"model": "x"}}, r"settings: write model at the top of the file"),
        ({"settings": {"data": DATA}}, r"settings: write data into a difficulty"),
        ({"settings": {"test_problems": 0}}, r"row base, difficulty easy: test_problems is 0"),
        ({"settings": [1]}, r"settings is \[1\]; it must hold `key: value` lines"),
        ({"settings": {**SETTINGS, "max_steps": "many"}}, r"row base, .*max_steps is 'many'"),  # type: ignore[dict-item]
        ({"difficulties": {}}, r"difficulties is empty; it must name one or more"),
        ({"difficulties": {"easy": {}}}, r"difficulty easy: it has no data"),
        ({"difficulties": {"a.b": {"data": DATA}}}, r"the name 'a.b' becomes a part of a folder"),
        ({"difficulties": {"a": {"data": DATA, "test_befor": 1}}}, r"did you mean test_before"),
        ({"rows": None, "contrasts": []}, r"rows is empty"),
        ({"rows": {"a": {"train": "no"}}}, r"row a: train is 'no'; allowed: true, false"),
        ({"rows": {"a": {"titel": "x"}}}, r"row a: unknown key 'titel'; did you mean title\?"),
        (
            {"rows": {"a": {"rewards": {"similarty": 1}}}},
            r"row a, difficulty easy: rewards: .*simil",
        ),
        ({"rows": {"a": {"data": "x"}}}, r"row a: data is 'x'; it must hold `key: value` lines"),
        ({"rows": {"a": {"output_dir": "x"}}}, r"row a: output_dir is the plan's: `output` says"),
        ({"rows": {"a": {"after": "b"}}}, r"row a: after is 'b', which is none of the rows a"),
        ({"rows": {"srl": {}, "b": {"like": "slr"}}}, r"like is 'slr', .*; did you mean srl\?"),
        (
            {"rows": {"a": {"after": "b"}, "b": {"after": "a"}}},
            r"rows after each other in a circle: a -> b -> a",
        ),
        (
            {"rows": {"a": {"like": "b"}, "b": {"like": "b"}}},
            r"rows like each other in a circle: b -> b",
        ),
        (
            {"rows": {"base": {"train": False}, "a": {"after": "base"}}},
            r"row a: it starts after base, which is not trained; leave `after` away",
        ),
        ({"rows": {"a": {}, "b": {"train": False, "after": "a"}}}, r"row b: after is for rows"),
        ({"rows": {"a": {}, "b": {"after": "a", "model": "x"}}}, r"row b: .*give one of the two"),
        ({"contrasts": [["srl", "sft"]]}, r"contrasts names 'sft', which is none of the rows"),
        ({"contrasts": [["srl", "srl"]]}, r"contrasts has \['srl', 'srl'\]; give pairs"),
        ({"contrasts": "srl"}, r"contrasts has 'srl'; give pairs"),
        ({"seeds": [0, 0]}, r"seeds is \[0, 0\]; give different whole numbers"),
        ({"seeds": []}, r"seeds is \[\]"),
        ({"seeds": [True]}, r"seeds is \[True\]"),
        ({"seeds": 3}, r"seeds is 3"),
        ({"data_seed": "x"}, r"data_seed is 'x'"),
        ({"metric": "whole greedy"}, r"metric is 'whole greedy', .* it has steps greedy \(more"),
        ({"metric": "steps avg@3"}, r"metric is 'steps avg@3'"),
        ({"metric": ["steps greedy", "steps avg@3"]}, r"metric is 'steps avg@3'"),
        ({"metric": ["steps greedy"] * 2}, r"metric is \['steps greedy', 'steps greedy'\]; give a"),
        ({"metric": []}, r"metric is \[\]; give a figure, or several different ones as a list"),
    ],
)
def test_what_it_may_not_say(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    if "rows" in changes:
        changes = {"contrasts": [], **changes}
    with pytest.raises(UsageError, match=message) as caught:
        plan_of(tmp_path, **changes)
    assert "compare.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("quick", "message"),
    [
        ({"quick": {}}, r"quick: unknown key 'quick'"),
        ({"seed": 1}, r"quick: unknown key 'seed'; did you mean seeds"),
        ({"rows": {"sr": {}}}, r"quick: rows: unknown key 'sr'; did you mean srl"),
        (
            {"difficulties": {"hrd": {}}},
            r"quick: difficulties: unknown key 'hrd'; did you mean hard",
        ),
    ],
)
def test_what_quick_may_not_say(tmp_path: Path, quick: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(tmp_path, small=True, quick=quick)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no comparison file .*none.yaml"):
        load_plan(tmp_path / "none.yaml")
    for text, message in (
        ("a: [1", "is not YAML"),
        ("[1, 2]", "must hold settings as `key: value` lines"),
        ("rows:\n  srl: {}\n  srl: {}\n", r"the key 'srl' stands twice in the block of line 2"),
    ):
        with pytest.raises(UsageError, match=message):
            load_plan(write(tmp_path / "bad.yaml", text))


def test_a_block_may_be_merged_into_another(tmp_path: Path) -> None:
    text = "settings: &all {test_problems: 2, seed: 1}\nquick:\n  <<: *all\n  seed: 2\n"
    path = write(tmp_path / "merged.yaml", text)
    assert read_settings(path)["quick"] == {"test_problems": 2, "seed": 2}


def test_quick_makes_up_no_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "quick: {seeds: [0]}\n")
    with pytest.raises(UsageError, match=r"output is None; give a folder"):
        load_plan(path, quick=True)


def test_samples_are_figures(tmp_path: Path) -> None:
    settings = {**TOY_SETTINGS, "test_problems": 8, "solve_whole": True, "whole_samples": 4}
    assert plan_of(tmp_path, settings=settings, metric="whole maj@4").metric == "whole maj@4"
    with pytest.raises(UsageError, match=r"it has whole greedy, whole avg@4, .*, steps greedy$"):
        plan_of(tmp_path, settings=settings, metric="whole maj@8")


def test_a_call_may_name_model_data_and_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "compare.yaml", values(quick={"seeds": [0]}))
    plan = load_plan(path, quick=True, model="my/model", data="my data.jsonl", output="runs/mine")
    assert plan.output == Path("runs/mine")
    assert plan.given == ("--model my/model", "--data 'my data.jsonl'", "--output runs/mine")
    for cell in plan.cells:
        assert cell.experiment.data["path"] == "my data.jsonl"
        first = f"runs/mine/{cell.after}/policy" if cell.after else "my/model"
        assert cell.experiment.model == first
    assert load_plan(path).given == ()


def test_a_model_that_would_be_overruled_is_refused(tmp_path: Path) -> None:
    data = {"source": "files", "path": "train.jsonl"}
    changes = {"difficulties": {"toy": {"data": data}, "other": {"data": data, "model": "a/b"}}}
    path = write(tmp_path / "compare.yaml", values(**changes))
    assert load_plan(path).given == ()
    with pytest.raises(UsageError, match=r"--model is my/model, but .* names the model of other"):
        load_plan(path, model="my/model")


@pytest.mark.parametrize("quick", [False, True])
def test_the_shipped_comparison(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = load_plan(Path("experiments/compare/compare.yaml"), quick=quick)
    assert {"base", "srl", "rlvr", "srl_rlvr"} <= {row.name for row in plan.rows}
    assert len(plan.seeds) == (1 if quick else 3)
    for cell in plan.cells:
        args = cell.experiment.args
        assert args.validation_problems + args.test_problems < 0.5 * int(
            str(cell.experiment.data["limit"])
        )
    assert (ROOT / "experiments/tiny/base").is_dir()


def shipped(name: str) -> dict[str, dict[str, object]]:
    """Row -> what its first cell is trained with, of the last difficulty."""
    cells = load_plan(ROOT / "experiments/compare" / f"{name}.yaml").cells
    return {cell.row: dict(cell.experiment.resolved()) for cell in cells if not cell.seed}


def different(one: dict[str, object], other: dict[str, object]) -> set[str]:
    """Settings in which two rows differ; one that only one of them writes is one."""
    return {key for key in {*one, *other} if one.get(key) != other.get(key)}


@pytest.mark.parametrize("name", ["ablations", "hard"])
def test_an_ablation_changes_one_thing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = shipped(name)
    srl = rows.pop("srl")
    del rows["base"]
    if name == "hard":  # crossed, but for the corner that is SRL itself
        both = rows.pop("one_step_autojunk")
        assert different(both, rows["one_step"]) == {"rewards"}
        same = {"targets", "rewards", "format_failure_reward"}  # as the first comparison's RLVR
        rlvr, first = rows.pop("rlvr_long"), shipped("compare")["rlvr"]
        assert different(rlvr, rows["srl_long"]) == same
        assert {key: rlvr[key] for key in same} == {key: first[key] for key in same}
    for row, settings in rows.items():
        changed = different(settings, srl)
        if row.startswith("group"):  # as many rollouts
            assert changed == {"prompts_per_step", "num_generations"}
            assert (
                int(str(settings["prompts_per_step"])) * int(str(settings["num_generations"])) == 64
            )
        else:
            assert len(changed) == 1, (row, changed)


@pytest.mark.parametrize("name", ["ablations", "hard", "data_size"])
def test_other_comparisons_train_srl_as_the_first_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    changed = different(shipped("compare")["srl"], shipped(name)["srl"])
    # What is solved, how checkpoints are picked and kept, and where.
    assert changed <= {
        *("data", "output_dir", "train_problems", "validation_problems", "validate_by"),
        *("whole_samples", "whole_max_completion_length", "save_total_limit", "save_steps"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        *("eval_strategy", "eval_steps", "do_eval"),
    }


def test_the_plan_for_real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = load_plan(Path("experiments/compare/s1k.yaml"), quick=False)
    args = {cell.row: cell.experiment.args for cell in plan.cells}
    # What the paper states.
    assert (args["srl"].prompts_per_step, args["srl"].num_generations) == (512, 8)
    assert (args["srl"].learning_rate, args["srl"].beta) == (5e-7, 0)
    assert args["srl"].targets == "literal"
    assert (args["sft_steps"].prompts_per_step, args["sft_steps"].learning_rate) == (64, 5e-6)
    assert (args["rlvr"].prompts_per_step, args["rlvr"].targets) == (128, "whole")
    prompts = (args["srl"].system_prompt, args["srl"].whole_system_prompt)
    assert prompts == (PAPER_SYSTEM_PROMPT, PAPER_EVALUATION_PROMPT)
