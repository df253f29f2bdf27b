"""Runs on several sources, through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import read_jsonl, refused, same_weights, toy_trajectories, train, weights

from environments.types import LoadReport
from srl.commands.cli import main
from srl.config.experiment import load_experiment
from srl.config.settings import SRLConfig
from srl.data.shots import draw_shots
from srl.data.steps import StepExample
from srl.models.loading import load_policy, prompt_format

SOURCES = {
    "long": {"source": "files", "path": "long.jsonl", "weight": 1, "tags": {"length": "long"}},
    "short": {"source": "files", "path": "short.jsonl", "weight": 3, "tags": {"length": "short"}},
}


@pytest.fixture
def mixed(home: Path) -> Path:
    """The current folder, its config.yaml one of two sources, which share 20 problems."""
    for name, long, numbers in (("long", True, range(30)), ("short", False, range(10, 50))):
        rows = [
            {"problem": one.problem, "steps": one.texts, "answer": one.answer}
            for number, one in enumerate(toy_trajectories(50, long=long))
            if number in numbers
        ]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(home, sources=SOURCES)
    return home


def write(home: Path, **data: object) -> None:
    values = yaml.safe_load((home / "config.yaml").read_text())
    values |= {"targets": "all", "data": data, "eval_strategy": "no", "save_steps": 4}
    (home / "config.yaml").write_text(yaml.safe_dump(values))


def figures(name: str) -> list[dict[str, object]]:
    lines = read_jsonl(Path("runs") / name / "metrics.jsonl")
    return [
        {key: value for key, value in line.items() if "seconds" not in key}
        for line in lines
        if "loss" in line
    ]


def go_on(name: str, steps: int) -> None:
    """As if the run had been stopped at its last checkpoint, with so many steps to take."""
    run = Path("runs") / name
    (run / "summary.json").unlink()
    (run / "before.json").write_text("{}")
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"max_steps": steps}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["resume", name]) == 0


@pytest.mark.parametrize("method", ["srl", "sft"])
def test_shares_of_a_run_and_its_resume(
    mixed: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--max_steps", "8", "--prompts_per_step", "4", "--method", method]
    if method == "sft":
        values = yaml.safe_load((mixed / "config.yaml").read_text())
        del values["num_generations"]
        (mixed / "config.yaml").write_text(yaml.safe_dump(values))
    else:
        words += ["--dynamic_sampling", "false"]
    assert train(*words, name="straight") == 0
    shown = capsys.readouterr().out
    assert "mixture: long 25.0% of rows (18.2% of trajectories, " in shown
    assert "problems are in several sources (same_problem: all)" in shown
    last = figures("straight")[-1]
    for name, share in (("long", 0.25), ("short", 0.75)):
        assert last[f"share/row/{name}"] == last[f"kept_share/row/{name}"] == share
    assert last["share/trajectory/long"] == pytest.approx(8 / 3 / (8 / 3 + 24 / 2))

    assert train(*words, "--max_steps", "4", name="resumed") == 0
    go_on("resumed", 8)
    assert figures("resumed") == figures("straight")
    one, two = (weights(load_policy(f"runs/{n}/policy")[0]) for n in ("straight", "resumed"))
    assert same_weights(one, two)


def test_problems_are_held_out_of_all_sources(mixed: Path) -> None:
    words = ("--max_steps", "20", "--prompts_per_step", "8", "--dynamic_sampling", "false")
    assert train(*words) == 0
    records = read_jsonl(mixed / "runs/one/steps.jsonl")
    trained = {one["problem_id"] for one in records if one["phase"] == "train"}
    held_out = {one["problem_id"] for one in read_jsonl(mixed / "runs/one/eval.jsonl")}
    assert len(held_out) == 8
    assert not trained & held_out
    rows = read_jsonl(mixed / "runs/one/problems.jsonl")
    assert {row["source"] for row in rows} == {"long", "short"}
    assert all(row["tags"] == {"length": row["source"]} for row in rows)


def test_what_dynamic_sampling_does_to_the_shares(mixed: Path) -> None:
    """A reward that is the same for every rollout of one source: none of its groups is kept."""
    (mixed / "mine.py").write_text(
        "def only_short(step):\n"
        "    return len(step.action) % 7 if step.source == 'short' else 0.0\n"
    )
    words = ["--rewards", "{'mine.py:only_short': 1}", "--format_failure_reward", "0"]
    assert train(*words, "--max_steps", "4") == 0
    last = figures("one")[-1]
    assert (last["kept_share/row/long"], last["kept_share/row/short"]) == (0.0, 1.0)
    assert last["share/row/long"] == pytest.approx(0.25, abs=0.05)


def test_a_run_that_ends_with_its_smaller_source(mixed: Path) -> None:
    write(mixed, sources=SOURCES, when_exhausted="stop")
    words = ("--max_steps", "500", "--prompts_per_step", "8", "--dynamic_sampling", "false")
    assert train(*words, "--train_problems", "12") == 0
    steps = yaml.safe_load((mixed / "runs/one/summary.json").read_text())["steps"]
    assert 1 <= steps < 20
    records = [one for one in read_jsonl(mixed / "runs/one/steps.jsonl") if one["phase"] == "train"]
    assert max(int(str(one["train_step"])) for one in records) == steps


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": {}}, "sources is {}; give names with a block each"),
        ({"sources": {"a": {"path": "x"}}}, r"data.sources.a is .* give a source"),
        ({"sources": {"a b": {"source": "files"}}}, "the name 'a b'; use letters"),
        ({"sources": {"a": {"source": "files"}}}, "source a has no weight; give each one, or a pr"),
        ({"sources": SOURCES, "mix_by": "step"}, "mix_by is 'step'; allowed: row, trajectory, to"),
        ({"sources": SOURCES, "path": "x"}, "unknown key 'path'"),
        ({"sources": SOURCES, "preset": "mix_long"}, "preset mix_long gives the weights, and sou"),
        (
            {"sources": {"a": {"source": "files", "path": "no.jsonl", "weight": 1}}},
            "source a: .*no.jsonl",
        ),
        (
            {"sources": {"a": {**SOURCES["long"], "granularity": {"split_at": "words"}}}},
            "sources.a: granularity: split_at is 'words'",
        ),
        ({"sources": {"a": {"source": "fils", "weight": 1}}}, "unknown source 'fils'"),
        ({"sources": {"a": {"source": "files", "weight": "1,5"}}}, "sources.a.weight is '1,5'"),
    ],
)
def test_what_is_refused(
    mixed: Path, capsys: pytest.CaptureFixture[str], data: dict[str, object], message: str
) -> None:
    write(mixed, **data)
    refused(capsys, train(), message)


def test_a_preset_shares_its_parts_among_the_sources_with_a_tag(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {name: {k: v for k, v in one.items() if k != "weight"} for name, one in SOURCES.items()}
    plain["shorter"] = plain["short"] | {"source": "files"}
    write(mixed, sources=plain, preset="mix_long")
    assert train("--max_steps", "1") == 0
    shown = capsys.readouterr().out
    for name, share in (("long", "20.0%"), ("short", "40.0%"), ("shorter", "40.0%")):
        assert f"{name} {share} of trajectories" in shown
    write(mixed, sources={"short": plain["short"]}, preset="mix_long")
    refused_message = "no source has {length: long}"
    assert train("--max_steps", "1", name="two") == 2
    assert refused_message in capsys.readouterr().err


def test_the_steps_of_a_source_made_larger(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file in two granularities: every problem is told in both."""
    fine = SOURCES["long"] | {"granularity": {"split_at": "clauses"}}
    coarse = SOURCES["long"] | {"granularity": {"max_steps": 2}, "tags": {"length": "short"}}
    write(mixed, sources={"fine": fine, "coarse": coarse})
    words = ("--max_completion_length", "24", "--test_problems", "2", "--test_rows", "4")
    assert train("--max_steps", "1", "--prompts_per_step", "8", *words) == 0
    assert "coarse 50.0% of rows" in capsys.readouterr().out
    solutions = read_jsonl(mixed / "runs/one/problems.jsonl")
    assert {len(row["steps"]) for row in solutions if row["source"] == "coarse"} == {2}  # type: ignore[arg-type]
    assert {len(row["steps"]) for row in solutions if row["source"] == "fine"} == {3}  # type: ignore[arg-type]


def test_shares_that_follow_the_signal_resume_as_they_were(mixed: Path) -> None:
    write(mixed, sources=SOURCES, adaptive={"smoothing": 0.8})
    words = ["--prompts_per_step", "4"]
    assert train(*words, "--max_steps", "8", name="straight") == 0
    assert train(*words, "--max_steps", "4", name="resumed") == 0
    go_on("resumed", 8)
    assert figures("resumed") == figures("straight")
    assert {line["next_share/long"] for line in figures("straight")} != {0.25}


def test_fine_tuning_has_no_signal_to_follow(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(mixed, sources=SOURCES, adaptive=True)
    refused(capsys, train("--method", "sft"), "method sft has no use for data.adaptive")


def test_a_tag_in_the_prompt_tells_styles_apart(mixed: Path) -> None:
    """Rows tell their own tag, solving tells what is asked for; problems stay the same problems."""
    write(mixed, sources=SOURCES)
    words = ("--source_tag", "length", "--solve_as", "short", "--max_steps", "1")
    assert train(*words, "--prompts_per_step", "12", "--dynamic_sampling", "false") == 0
    experiment = load_experiment(mixed / "runs/one/config.yaml")
    model, tokenizer = load_policy("runs/one/policy")
    form = prompt_format(model, tokenizer, experiment.args)
    long, short = (
        next(one for one in experiment.load_trajectories(LoadReport()) if one.source == name)
        for name in ("long", "short")
    )
    for one, own in ((long, "long"), (short, "short")):
        prompt = form.read(form.encode_example(StepExample(one, 1)))
        assert f"{one.problem}\n\n(length: {own})" in prompt
        assert form.asked(one, solving=True) == f"{one.problem}\n\n(length: short)"
    plain = replace(long, tags={})
    assert form.asked(plain) == plain.problem
    solved = {one["problem_id"] for one in read_jsonl(mixed / "runs/one/eval.jsonl")}
    assert solved == {one.problem_id for one in toy_trajectories(50)} & solved
    assert len(solved) == 8


def test_a_style_to_solve_in_needs_a_tag(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, train("--solve_as", "short"), "solve_as is 'short', but source_tag is null")


def test_a_source_of_weight_0_is_held_out_with_and_never_trained_on(mixed: Path) -> None:
    """So two runs, each on one source, are tested on the same problems and steps."""
    held_out, trained = [], []
    for name, weights_ in (("a", (1, 0)), ("b", (0, 1))):
        sources = {
            source: one | {"weight": weight}
            for (source, one), weight in zip(SOURCES.items(), weights_, strict=True)
        }
        write(mixed, sources=sources)
        words = ("--max_steps", "2", "--dynamic_sampling", "false")
        assert train(*words, "--prompts_per_step", "8", name=name) == 0
        records = read_jsonl(mixed / f"runs/{name}/steps.jsonl")
        trained.append({one["source"] for one in records if one["phase"] == "train"})
        held_out.append(
            [one["problem_id"] for one in read_jsonl(mixed / f"runs/{name}/eval.jsonl")]
        )
    assert trained == [{"long"}, {"short"}]
    assert held_out[0] == held_out[1]


def test_worked_examples_come_from_every_source_or_from_the_style_that_is_asked_for() -> None:
    both = [
        replace(one, source=name, tags={"length": name})
        for name in ("long", "short")
        for one in toy_trajectories(40, long=name == "long")
    ]
    shown = draw_shots(both, SRLConfig(few_shot=12, use_cpu=True, targets="all"), seed=0)[0]
    assert {one.source for one in shown} == {"long", "short"}
    asked = SRLConfig(
        few_shot=12, use_cpu=True, targets="all", source_tag="length", solve_as="short"
    )
    assert {one.source for one in draw_shots(both, asked, seed=0)[0]} == {"short"}
    one_file = [replace(one, source="mine") for one in both]
    shown = draw_shots(one_file, asked, seed=0)[0]
    assert {one.trajectory.tags["length"] for one in shown} == {"short"}
