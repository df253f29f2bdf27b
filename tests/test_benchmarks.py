"""Benchmarks: verdicts, and whole evaluations, cut short and gone on with."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from environments.benchmarks import BenchmarkProblem
from environments.environment import MATHS
from environments.types import Step, Trajectory
from rewards import RewardSum
from srl.commands.cli import main
from srl.config.settings import BenchmarkSettings
from srl.evaluation.benchmarks.figures import figures_of
from srl.evaluation.benchmarks.remedies import remedies
from srl.evaluation.benchmarks.samples import Chunk, Solver, verdicts
from srl.evaluation.solving import Attempt
from srl.runs.folder import RunFolder
from srl.runs.lock import LOCK, only_writer
from srl.sample_metrics import maj_at_k, over_problems, pass_at_k, votes_of
from srl.stats import wilson
from tests.conftest import read_jsonl, refused, write_config

# ---- verdicts -----------------------------------------------------------------------------------


def lines_of(
    verifier: RewardSum, *solutions: tuple[str, tuple[str, ...]]
) -> list[dict[str, object]]:
    """A text and the golds of its problem each."""
    attempts = []
    for text, _ in solutions:
        trajectory, steps = Trajectory("p", ()), (Step(text),)
        answer = MATHS.judge(trajectory, steps).answer
        failure = None if answer else "no_answer"
        attempts.append(Attempt(trajectory, "whole", 1, steps, answer, None, failure, 9, text))
    problems = [BenchmarkProblem("b", 0, "p", golds) for _, golds in solutions]
    return verdicts(problems, attempts, verifier)


class _StaysOpen(RewardSum):
    """A verifier for all tests of this file: its worker takes seconds to start."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def verifier() -> Iterator[RewardSum]:
    shared = _StaysOpen({"answer": 1.0}, workers=1, for_training=False)
    yield shared
    RewardSum.close(shared)


def test_a_verdict_for_every_solution(verifier: RewardSum) -> None:
    lines = lines_of(
        verifier,
        (r"\boxed{x(x+1)}", ("x^2+x",)),
        (r"\boxed{5}", ("x^2+x",)),
        ("hm", ("4",)),
        ("The answer is 0.5", ("2", r"\frac12")),  # one of the golds is enough
    )
    assert [line["verdict"] for line in lines] == ["right", "wrong", "no_answer", "right"]
    assert [line["failure"] for line in lines] == [None, None, "no_answer", None]
    assert lines_of(verifier) == []


def test_an_answer_that_is_not_stated_is_extracted_and_verified(verifier: RewardSum) -> None:
    lines = lines_of(
        verifier,
        ("so $y = x(x+1)$ it is", ("x^2+x",)),
        ("it must be 5 or 6", ("5",)),
        (r"it must be 6, so \boxed{5}", ("5",)),
        ("hm", ("4",)),
    )
    assert [line["verdict"] for line in lines] == ["no_answer", "no_answer", "right", "no_answer"]
    assert [line["flexible_extract"] for line in lines] == ["x(x+1)", "6", "5", None]
    assert [line["flexible_right"] for line in lines] == [True, False, True, False]
    assert [line["strict_match"] for line in lines] == [None, None, "5", None]
    assert [line["strict_right"] for line in lines] == [False, False, True, False]


def test_a_check_that_is_killed_verifies_nothing_and_is_counted(tmp_path: Path) -> None:
    # Too little time for any check that does more than compare texts.
    hurried = RewardSum({"answer": 1.0}, workers=1, deadline=1e-5, for_training=False)
    try:
        lines = lines_of(hurried, (r"\boxed{x(x+1)}", ("x^2+x",)), ("hm", ("1",)))
    finally:
        hurried.close()
    assert [(line["verdict"], line["failure"]) for line in lines] == [
        ("unverified", "deadline"), ("no_answer", "no_answer"),
    ]  # fmt: skip
    log = tmp_path / "samples.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = figures_of(log)["b"]
    assert isinstance(figures, dict)
    assert (figures["unverified"], figures["no answer"]) == (1, 1)
    assert figures["pass@1"]["value"] == 0.0


# ---- whole evaluations --------------------------------------------------------------------------

SMALL = [
    "--use_cpu", "true", "--whole_system_prompt", "null", "--whole_max_completion_length", "12",
    "--rollout_token_budget", "160", "--reward_workers", "1",
]  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path, verifier: RewardSum, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven problems of the toy; two of them it cannot solve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("srl.evaluation.benchmarks.run.make_verifier", lambda _: verifier)
    rows = [{"problem": f"case {i}", "answer": "4" if i % 4 else "9"} for i in range(7)]
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(policy: Path, *words: str, name: str = "one", samples: int = 5) -> int:
    return main(
        ["eval", "--model", str(policy), "--bench", "toy.jsonl", "--run-name", name,
         "--samples", str(samples), *SMALL, *words]
    )  # fmt: skip


def test_a_whole_evaluation(
    bench: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(toy_policy) == 0
    shown = capsys.readouterr().out
    run = Path("runs/one")
    assert {"config.yaml", "command.txt", "environment.json", "samples.jsonl", "summary.json"} == {
        path.name for path in run.iterdir()
    }
    lines = read_jsonl(run / "samples.jsonl")
    made = sorted((line["number"], line["sample"]) for line in lines)
    assert made == [(number, sample) for number in range(7) for sample in range(6)]
    for line in lines:
        assert line["problem"] == f"case {line['number']}"
        stated = (
            "4" if "the answer is 4" in str(line["completion"]).partition("</think>")[2] else None
        )
        assert line["answer"] == stated
        expected = "no_answer" if stated is None else "right" if line["gold"] == ["4"] else "wrong"
        assert line["verdict"] == expected
        assert 1 <= int(str(line["completion_tokens"])) <= 12
    # The figures again, from the lines alone
    figures = json.loads((run / "summary.json").read_text())["benchmarks"]["toy"]
    groups = [
        sorted(
            (one for one in lines if one["number"] == number),
            key=lambda one: int(str(one["sample"])),
        )
        for number in range(7)
    ]
    right = [[one["verdict"] == "right" for one in group] for group in groups]
    assert figures["n"] == 7
    assert figures["greedy"] == wilson(sum(one[0] for one in right), 7).to_json()
    for k in (1, 2, 4, 5):
        values = [pass_at_k(one[1:], k) for one in right]
        assert figures[f"pass@{k}"] == over_problems(values).to_json()
        votes = [
            votes_of([x["answer"] for x in group[1:]], one[1:])  # type: ignore[misc]
            for group, one in zip(groups, right, strict=True)
        ]
        assert figures[f"maj@{k}"] == over_problems([maj_at_k(v, k) for v in votes]).to_json()
    assert figures["avg@5"]["value"] == pytest.approx(figures["pass@1"]["value"])
    assert 0 < figures["avg@5"]["value"] < figures["pass@5"]["value"]  # some samples are right
    assert "greedy" in shown
    assert "maj@5" in shown
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["bench"]["toy"]["problems"] == 7
    assert config["samples"] == 5


def test_an_evaluation_cut_anywhere_goes_on_to_the_same_file(
    bench: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(toy_policy, samples=2) == 0
    log = Path("runs/one/samples.jsonl")
    whole, summary = log.read_bytes(), json.loads(Path("runs/one/summary.json").read_text())
    for place in random.Random(0).sample(range(len(whole)), 3):
        log.write_bytes(whole[:place])
        Path("runs/one/summary.json").unlink()
        assert evaluate(toy_policy, samples=2) == 0
        assert log.read_bytes() == whole, place
        again = json.loads(Path("runs/one/summary.json").read_text())
        assert again["benchmarks"] == summary["benchmarks"]
    assert Path("runs/one/command.txt").read_text().count("\n") == 4
    # What a power cut may leave is no line of ours: named, and nothing is lost
    Path("runs/one/summary.json").unlink()
    for damage in (b"\0" * 9 + b"\n", b"[]\n"):
        log.write_bytes(damage + whole)
        capsys.readouterr()
        assert evaluate(toy_policy, samples=2) == 2
        assert "runs/one/samples.jsonl, line 1: " in capsys.readouterr().err
        assert log.read_bytes() == damage + whole


def test_a_complete_evaluation_is_not_made_again(
    bench: Path,
    toy_policy: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert evaluate(toy_policy, samples=0) == 0
    capsys.readouterr()
    monkeypatch.setattr("srl.evaluation.benchmarks.run.load_policy", None)  # nothing is loaded
    assert evaluate(toy_policy, samples=0) == 0
    shown = capsys.readouterr().out
    assert "complete: nothing is solved again" in shown
    assert "greedy" in shown
    assert "avg@" not in shown


def test_samples_follow_from_the_seed(bench: Path, toy_policy: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert evaluate(toy_policy, "--seed", seed, name=name, samples=2) == 0
    a, b, c = (Path(f"runs/{name}/samples.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    greedy = [
        [
            line["completion"]
            for line in read_jsonl(Path(f"runs/{name}/samples.jsonl"))
            if not line["sample"]
        ]
        for name in "ac"
    ]
    assert greedy[0] == greedy[1]  # greedy solutions do not


def test_stopped_with_ctrl_c_and_gone_on_with(
    bench: Path,
    toy_policy: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solve, solved = Solver.solve, []

    def interrupted(solver: Solver, chunk: Chunk) -> list[Attempt]:
        solved.append(chunk)
        if len(solved) == 3:
            raise KeyboardInterrupt
        return solve(solver, chunk)

    monkeypatch.setattr(Solver, "solve", interrupted)
    assert evaluate(toy_policy, samples=2) == 130
    assert "the same command with --run-name one goes on" in capsys.readouterr().out
    assert not Path("runs/one/summary.json").exists()
    made = len(read_jsonl(Path("runs/one/samples.jsonl")))
    assert made == sum(len(chunk.keys) for chunk in solved[:2])
    assert evaluate(toy_policy, samples=2) == 0
    assert f"going on: {made} of 21 solutions" in capsys.readouterr().out
    assert solved[2] == solved[3]  # none of those before is made again
    assert evaluate(toy_policy, name="straight", samples=2) == 0
    one, two = (Path(f"runs/{name}/samples.jsonl").read_bytes() for name in ("one", "straight"))
    assert one == two


def test_stopped_before_anything_was_solved(
    bench: Path, toy_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(solver: Solver, chunk: Chunk) -> list[Attempt]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Solver, "solve", interrupted)
    assert evaluate(toy_policy) == 130
    assert not Path("runs/one").exists()


def test_other_settings_are_refused(
    bench: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(toy_policy, samples=1) == 0
    before = Path("runs/one/samples.jsonl").read_bytes()
    assert evaluate(toy_policy, "--temperature", "0.5", samples=2) == 2
    shown = capsys.readouterr().err
    assert "begun with other settings" in shown
    assert "samples: 1 -> 2" in shown
    assert "temperature: 1.0 -> 0.5" in shown
    # So is a changed file, but neither how fast it is checked nor what changes no sample
    assert evaluate(toy_policy, "--reward_workers", "2", samples=1) == 0
    bench.write_text(bench.read_text().replace("case 3", "case 33"))
    assert evaluate(toy_policy, samples=1) == 2
    assert "bench.toy.digest" in capsys.readouterr().err
    assert Path("runs/one/samples.jsonl").read_bytes() == before


def test_a_second_process_in_a_folder_is_refused(
    bench: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (RunFolder.create(Path("runs"), "one"), RunFolder(Path("runs/one"))):
        before = {path: path.read_bytes() for path in run.path.iterdir()}
        with only_writer(run.path, print):  # before anything lies in it, and when it is complete
            assert evaluate(toy_policy, samples=0) == 2
            after = {path: path.read_bytes() for path in run.path.iterdir()}
        message = f"runs/one is being written by process {os.getpid()} on "
        assert message in capsys.readouterr().err
        assert {path: text for path, text in after.items() if path.name != LOCK} == before
        assert evaluate(toy_policy, samples=0) == 0


def test_a_prompt_without_room_is_a_counted_failure(
    bench: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"problem": "case 1", "answer": "4"}, {"problem": "z" * 60, "answer": "4"}]
    bench.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate(toy_policy, samples=2) == 0
    lines = read_jsonl(Path("runs/one/samples.jsonl"))
    failed = [line for line in lines if line["number"] == 1]
    assert [(line["failure"], line["verdict"]) for line in failed] == [
        ("context_limit", "no_answer")
    ] * 3
    bench.write_text(json.dumps(rows[1]) + "\n")
    assert evaluate(toy_policy, name="two") == 2
    assert "no problem of toy fits: the policy reads 64 tokens" in capsys.readouterr().err
    assert not Path("runs/two").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bench", "gms8k"], r"unknown benchmark 'gms8k'.*Did you mean gsm8k"),
        (["--bench", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--bench", "toy.jsonl,toy.jsonl"], "toy is named twice"),
        (["--bench", ","], "--bench is ','; give one or more of gsm8k"),
        (["--bench", "toy.jsonl", "--samples", "-1"], r"--samples is -1; it must be 0"),
        (["--bench", "toy.jsonl", "--limit", "0"], "--limit is 0; it must be 1 or more"),
        (["--bench", "toy.jsonl", "--learning_rate", "1"], "--learning_rate does not matter to a"),
        (["--bench", "toy.jsonl", "--top_p", "2"], "top_p is 2.0?; it must be above 0"),
        (["--bench", "toy.jsonl", "--run-name", "../x"], "run name '../x'"),
        (["--samples", "2", "--config", "c.yaml"], "--samples goes with --bench"),
        ([], "--model needs --bench NAME, or --config"),
    ],
)
def test_wrong_use(
    bench: Path,
    toy_policy: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    refused(capsys, main(["eval", "--model", str(toy_policy), *words]), message)


def test_a_runs_own_policy_and_a_folder_for_held_out_problems(
    home: Path, bench: Path, toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_policy, "runs/one/policy")
    shutil.copy("config.yaml", "runs/one")
    assert main(["eval", "--run", "one", "--bench", "toy.jsonl", "--limit", "3", "--run-name",
                 "bench", "--whole_max_completion_length", "12"]) == 0  # fmt: skip
    config = yaml.safe_load(Path("runs/bench/config.yaml").read_text())
    assert config["model"] == "runs/one/policy"
    assert config["whole_system_prompt"] is None  # as in the run's config
    assert len(read_jsonl(Path("runs/bench/samples.jsonl"))) == 3
    assert main(["eval", "--run", "one", "--bench", "toy.jsonl", "--run-name", "one"]) == 2
    assert "runs/one is in use by a run of another kind" in capsys.readouterr().err

    write_config(home / "config.yaml", model="somewhere/else")
    words = ["eval", "--model", str(toy_policy), "--config", "config.yaml", "--run-name", "base"]
    assert main(words) == 0
    run = Path("runs/base")
    attempts = read_jsonl(run / "eval.jsonl")
    assert {line["when"] for line in attempts} == {"eval"}
    assert len({line["problem_id"] for line in attempts}) == 8
    summary = json.loads((run / "summary.json").read_text())
    assert summary["eval"]["step by step, greedy"]["n"] == 8
    assert yaml.safe_load((run / "config.yaml").read_text())["model"] == str(toy_policy)
    assert (run / "command.txt").is_file()
    assert (run / "environment.json").is_file()
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "is complete and is never overwritten. For a new run take a free name" in shown
    assert main([*words[:-1], "none", "--test_problems", "0", "--validation_problems", "0"]) == 2
    assert not Path("runs/none").exists()


def test_problems_without_an_answer_are_told_with_their_commonest_cause() -> None:
    figures = {
        "a": {"n": 10, "unread": {"cut off": 5, "no statement": 2, "no room": 0}},
        "b": {"n": 10, "unread": {"cut off": 1, "no statement": 4, "no room": 0}},
        "c": {"n": 10, "unread": {"cut off": 0, "no statement": 0, "no room": 9}},
        "d": {"n": 100, "unread": {"cut off": 2, "no statement": 2, "no room": 0}},
    }
    args = BenchmarkSettings(whole_max_completion_length=300)
    a, b, c = remedies({"benchmarks": figures}, args)
    assert "a: no answer is read in 7 of 10 problems, 70 % [40, 89] (5 cut off at 300 tokens" in a
    assert "Try --whole_max_completion_length 600 (if" in a
    assert "has room), or --num_fewshot 5" in a
    assert "Try --num_fewshot 5" in b
    assert "--as-is" in b
    assert "Try --whole_max_completion_length 150" in c
    as_is = BenchmarkSettings(as_is=True, whole_system_prompt=None, template="chat")
    assert "Try --num_fewshot 5 instead of --as-is" in remedies({"benchmarks": figures}, as_is)[1]
