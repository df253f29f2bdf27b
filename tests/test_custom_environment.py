"""Environments of one's own: their world answers, their judge decides, their prompts are sent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from environments import (
    DataError,
    Environment,
    LoadReport,
    Step,
    Trajectory,
    as_environment,
    load_trajectories,
)
from environments.environment import MATHS
from environments.prompts import PAPER_EVALUATION_PROMPT, PAPER_SYSTEM_PROMPT
from experiments.custom_environment import Counter
from srl.commands.check_data import check_data
from srl.commands.cli import main
from srl.config.experiment import load_experiment, parse_experiment
from srl.data.prompts import PromptFormat
from srl.data.steps import build_examples
from srl.evaluation.solving import solve_step_by_step, solve_whole
from tests.conftest import TOY_STEPS, read_jsonl, refused, train, write_config
from tests.test_evaluate import PARAMS, ScriptedPolicy, prompt, step

ROOT = Path(__file__).resolve().parent.parent
COUNTER = f"{ROOT}/experiments/custom_environment.py:Counter"

# The world of the toy policy, which picks among four steps blindly.
BOXES = """
from environments import Environment, Prompts, Step, Trajectory, Verdict

class Boxes(Environment):
    prompts = Prompts(step="Add boxes.", whole=None)

    def load(self, path=None, *, report, limit=None, wanted: int = 1):
        steps = (Step("so we go on quickly", observation="see 0"), Step("add the red box"))
        return [
            Trajectory(f"case {i}", steps, metadata={"wanted": wanted}) for i in range(40)
        ]

    def judge(self, trajectory, steps):
        count = sum(step.text == "add the red box" for step in steps)
        return Verdict(count >= trajectory.metadata["wanted"], str(count), f"{count} there")

    def finished(self, trajectory, steps):
        return self.judge(trajectory, steps).correct

    def observe(self, trajectory, steps):
        return f"see {self.judge(trajectory, steps).answer}"
"""


def counter() -> list[Trajectory]:
    return load_trajectories(Counter(), largest=12)


def test_the_world_and_the_expert_agree() -> None:
    found = counter()
    assert len({one.problem_id for one in found}) == len(found) > 50
    for one in found:
        for k in range(1, len(one.steps) + 1):
            bare = [Step(text) for text in one.texts[:k]]
            assert Counter().observe(one, bare) == one.steps[k - 1].observation
            assert Counter().finished(one, bare) is (k == len(one.steps))
            assert Counter().judge(one, bare).correct is (k == len(one.steps))
    check = check_data(found, LoadReport())
    assert (check.judged_right, check.unverified) == (len(found), [])


def test_the_policy_reads_what_it_caused(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    form = PromptFormat(byte_tokenizer, system_prompt=None, whole_system_prompt=None)
    problem = next(one for one in counter() if one.problem.endswith("shows 2. Bring it to 5."))
    assert problem.texts == ("Double.", "Add 1.")
    script = {
        prompt(problem.problem): [step("Add 1.")],
        prompt(problem.problem, "Add 1.", "The counter shows 3."): [step("Jump!")],
        prompt(
            problem.problem, "Add 1.", "The counter shows 3.", "Jump!", "The counter shows 3."
        ): [step("Add 1.")],
    }
    policy = ScriptedPolicy(byte_tokenizer, script)
    options = {"params": PARAMS, "context_limit": None}
    (early,) = solve_step_by_step(policy, form, [problem], max_steps=3, **options)  # type: ignore[arg-type]
    assert (early.correct, early.answer, early.failure) == (False, "4", "no_answer")
    script[list(script)[1]] = [step("Double.")]  # to 6: too far
    script[prompt(problem.problem)] = [step("Double.")]
    script[prompt(problem.problem, "Double.", "The counter shows 4.")] = [step("Add 1.")]
    (found,) = solve_step_by_step(policy, form, [problem], max_steps=9, **options)  # type: ignore[arg-type]
    assert (found.correct, found.answer, found.failure) == (True, "5", None)
    line = found.to_json()
    assert line["steps"] == ["Double.", "Add 1."]
    assert line["observations"] == ["The counter shows 4.", ""]
    assert line["why"] == "The counter shows 5."
    # The expert's rows read the same
    rows = build_examples([problem], targets="all")
    read = [byte_tokenizer.decode(form.encode_example(row)) for row in rows]
    assert read == [
        prompt(problem.problem),
        prompt(problem.problem, "Double.", "The counter shows 4."),
    ]
    assert rows[1].previous_steps == ("Double.",)
    # A whole solution is one step of lines
    policy = ScriptedPolicy(
        byte_tokenizer, {prompt(problem.problem): ["Double.\nAdd 1.", "Double."]}
    )
    right, wrong = solve_whole(policy, form, [problem], num_samples=2, **options)  # type: ignore[arg-type]
    assert (right.correct, right.failure, wrong.correct) == (True, None, False)


def test_context_says_what_is_read(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    class LastOnly(Environment):
        def context(self, trajectory, steps):  # type: ignore[no-untyped-def]
            return steps[-1:]

    steps = (Step("one", observation="saw 1"), Step("two"), Step("three"))
    row = build_examples([Trajectory("A", steps, environment=LastOnly())], targets="all")[2]
    assert row.previous_steps == ("two",)
    form = PromptFormat(byte_tokenizer, system_prompt=None)
    assert byte_tokenizer.decode(form.encode_example(row)) == prompt("A", "two")
    problem = Trajectory("A", steps, "2", environment=LastOnly())
    script = {
        prompt("A"): [step("one")],
        prompt("A", "one"): [step("two")],
        prompt("A", "two"): [step("The answer is 2.")],
    }
    policy = ScriptedPolicy(byte_tokenizer, script)
    (found,) = solve_step_by_step(
        policy, form, [problem], params=PARAMS, max_steps=3, context_limit=None
    )
    assert found.correct


def test_a_run_in_a_world_of_ones_own(
    home: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("boxes.py").write_text(BOXES)
    data = {"source": "boxes.py:Boxes", "wanted": 2}
    write_config(home / "config.yaml", model=str(toy_policy), data=data, max_steps=2)
    config = yaml.safe_load(Path("config.yaml").read_text())
    del config["system_prompt"], config["whole_system_prompt"]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert train("--solve_samples", "6") == 0, capsys.readouterr()
    run = Path("runs/one")
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert (kept["system_prompt"], kept["whole_system_prompt"]) == ("Add boxes.", None)
    assert {line["source"] for line in read_jsonl(run / "steps.jsonl")} == {"Boxes"}
    assert read_jsonl(run / "problems.jsonl")[0]["observations"] == ["see 0", ""]
    lines = read_jsonl(run / "eval.jsonl")
    assert len(lines) == 2 * 8 * 7
    for line in lines:
        steps = line["steps"]
        assert isinstance(steps, list)
        counts = [steps[: k + 1].count(TOY_STEPS[0]) for k in range(len(steps))]
        assert line["correct"] is (counts[-1:] == [2])
        assert line["why"] == f"{steps.count(TOY_STEPS[0])} there"
        seen = [f"see {count}" if count < 2 else "" for count in counts]
        assert line.get("observations", [""] * len(steps)) == seen
    assert {line["correct"] for line in lines} == {True, False}
    for view in ("inspect", "report"):
        assert main([view, "one"]) == 0
    # Evaluated again it is the same world
    assert main(["eval", "--run", "one"]) == 0
    assert "step by step, greedy" in capsys.readouterr().out
    assert {line["when"] for line in read_jsonl(run / "eval.jsonl")} == {"before", "after", "eval"}
    Path("boxes.py").unlink()
    assert main(["eval", "--run", "one"]) == 2
    assert "boxes.py in " in capsys.readouterr().err


def test_prompts_are_the_environments_unless_given() -> None:
    experiment = parse_experiment({"model": "m", "data": {"source": COUNTER}}, where="a.yaml")
    assert experiment.args.system_prompt == Counter.prompts.step
    assert experiment.args.whole_system_prompt == Counter.prompts.whole
    given = {"system_prompt": None, "whole_system_prompt": "Go."}
    experiment = parse_experiment({"model": "m", "data": {"source": COUNTER}, **given}, where="a")
    assert experiment.args.system_prompt is None
    assert experiment.args.whole_system_prompt == "Go."
    maths = load_experiment(ROOT / "experiments/tiny/srl.yaml", ["--data", "{source: gsm8k}"])
    assert maths.args.system_prompt == "Give only the next step."
    assert (MATHS.prompts.step, MATHS.prompts.whole) == (
        PAPER_SYSTEM_PROMPT,
        PAPER_EVALUATION_PROMPT,
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("boxes.py:Box", "boxes.py has no 'Box'"),
        ("none.py:Boxes", "there is no file none.py"),
        ("json:dumps", "is <function dumps.*which is no environment"),
        ("boxes.py:Boxes", "source 'Boxes': option 'wanted' is 'two'; allowed: int"),
        ("boxs", "unknown source 'boxs'; there are word_problems.*file.py:Name"),
    ],
)
def test_wrong_sources(
    home: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    Path("boxes.py").write_text(BOXES)
    data = {"source": source, **({"wanted": "two"} if source.endswith(":Boxes") else {})}
    write_config(home / "config.yaml", model=str(toy_policy), data=data)
    refused(capsys, train(), message)


def test_check_data_takes_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", COUNTER, "--largest", "9"]) == 0
    shown = capsys.readouterr().out
    rows = re.search(r"trajectories +(\d+)", shown)
    assert rows is not None
    assert f"expert solutions judged right     {rows[1]}" in shown
    assert main(["check-data", COUNTER, "--largest", "few"]) == 2
    assert "option 'largest' is 'few'; allowed: int" in capsys.readouterr().err


def test_classes_that_cannot_be_made() -> None:
    class Needs(Environment):
        def __init__(self, size: int) -> None: ...

    with pytest.raises(DataError, match="cannot be made without arguments.*'size'"):
        as_environment(Needs, "a.py:Needs")
    with pytest.raises(DataError, match="Environment has no method `load`"):
        load_trajectories(Environment())


def test_the_ten_lines_of_the_docs(tmp_path: Path) -> None:
    block = (ROOT / "docs/environments.md").read_text().split("```python\n")[1].partition("```")[0]
    namespace: dict[str, type[Environment]] = {}
    exec(block, namespace)
    found = load_trajectories(namespace["Doors"](), doors=2)
    assert [one.source for one in found] == ["Doors"] * 2
    assert check_data(found, LoadReport()).judged_right == 2


WRONG = """
from environments import Environment, Step, Trajectory, Verdict
import numpy as np

class Good(Environment):
    def load(self, path=None, *, report, limit=None, n: int = 8):
        return [Trajectory(f"case {i}", ("a", "the answer is 4"), answer="4") for i in range(n)]

class NoLoad(Environment): ...
class LoadRaises(Good):
    def load(self, path=None, *, report, limit=None): return {}["boom"]
class LoadNone(Good):
    def load(self, path=None, *, report, limit=None): return None
class LoadTexts(Good):
    def load(self, path=None, *, report, limit=None): return ["a", "b"]
class LoadNumbers(Good):
    def load(self, path=None, *, report, limit=None): return [Trajectory("p", (1, 2))]
class LoadTags(Good):
    def load(self, path=None, *, report, limit=None):
        return [Trajectory("p", ("a", "b"), tags={"n": 3})]
class LoadShort(Good):
    def load(self, path=None, *, report, limit=None): return [Trajectory("p", ("a",))] * 3
class ObserveNone(Good):
    def observe(self, trajectory, steps): return None
class ObserveRaises(Good):
    def observe(self, trajectory, steps): return steps[7]
class FinishedRaises(Good):
    def finished(self, trajectory, steps): raise RuntimeError("no end")
class JudgeTrue(Good):
    def judge(self, trajectory, steps): return True
class JudgeNumPy(Good):
    def judge(self, trajectory, steps): return Verdict(np.bool_(True))
class JudgeEmpty(Good):
    def judge(self, trajectory, steps): return Verdict(steps[-1].text == "a")
class ContextTexts(Good):
    def context(self, trajectory, steps): return [step.text for step in steps]
class PromptsText(Good):
    prompts = "be good"
class Needs(Good):
    def __init__(self): raise ValueError("no licence")
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoLoad", "environment NoLoad has no method `load`; write def load"),
        ("LoadRaises", r"its method load raised KeyError: 'boom' \(wrong.py, line \d+\)"),
        ("LoadNone", "its method load raised TypeError"),
        ("LoadTexts", "its method load returned 'a'; it must return trajectories"),
        (
            "LoadNumbers",
            "trajectories whose problem, steps, answer and tags are texts",
        ),
        ("LoadTags", "trajectories whose problem, steps, answer and tags are texts"),
        ("LoadShort", "none of 3 rows can be used .*: 3.*at least two steps"),
        ("ObserveNone", "its method observe returned None; it must return a text, '' where"),
        ("ObserveRaises", r"its method observe raised IndexError: .* \(wrong.py, line \d+\)"),
        ("FinishedRaises", "its method finished raised RuntimeError: no end"),
        ("JudgeTrue", "its method judge returned True; it must return Verdict"),
        ("JudgeNumPy", "its method judge returned Verdict.*it must return Verdict"),
        ("JudgeEmpty", "its method judge raised IndexError"),
        (
            "ContextTexts",
            r"its method context returned \('a',\); it must return a seq",
        ),
        ("PromptsText", r"its prompts are 'be good'; give Prompts\(step="),
        ("Needs", "cannot be made without arguments: ValueError: no licence"),
    ],
)
def test_a_wrong_environment_is_refused_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    name: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("wrong.py").write_text(WRONG)
    refused(capsys, main(["check-data", f"wrong.py:{name}"]), message)


def test_a_right_one_beside_them_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.py").write_text(WRONG)
    assert main(["check-data", "wrong.py:Good", "--n", "5"]) == 0
    assert re.search(r"rows kept +5", capsys.readouterr().out)
    refused(capsys, main(["check-data", "wrong.py:Good", "--n", "true"]), "option 'n' is True")
    refused(capsys, main(["check-data", "wrong.py"]), "of your own write FILE:NAME")


def test_a_loader_of_ones_own_may_give_problems_and_steps_that_show_nothing() -> None:
    class Own(Environment):
        def load(
            self, path: str | None = None, *, report: LoadReport, limit: int | None = None
        ) -> list[Trajectory]:
            shown = [Trajectory("board", ("^", "<")), Trajectory("q", ("a", "\u3164"))]
            return [*shown, *(Trajectory(problem, ("a", "b")) for problem in ("", "\u200b", " "))]

    report = LoadReport()
    found = load_trajectories(Own(), report=report, max_dropped_share=1.0)
    assert [one.problem for one in found] == ["board"]
    assert report.dropped == {"no problem": 3, "a step that shows nothing": 1}
