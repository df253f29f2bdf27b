"""What experiments/compare makes of finished cells: first errors, and curves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from environments.word_problems import WordProblem, draw_problems

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments" / "compare"))

from curves import curve, page, pictures, updates_of  # noqa: E402
from first_errors import first_error  # noqa: E402

DATA = {"seed": 9, "min_operations": 3, "max_operations": 5, "max_distractors": 3}
PROBLEMS = draw_problems(40, **DATA)  # type: ignore[arg-type]


# ---- first errors -------------------------------------------------------------------------------


def test_experts_make_none() -> None:
    for problem in PROBLEMS:
        steps = problem.trajectory().texts
        assert first_error(problem, steps) == (None, len(steps))
        assert first_error(problem, steps[:-1]) == ("stopped", len(steps))


def distraction(problem: WordProblem) -> str | None:
    """A true step that the question does not need."""
    needed = problem.needed(problem.target)
    others = [n for n, q in problem.quantities.items() if q.operation and n not in needed]
    return problem.write_step(others[0]) if others else None


def test_each_kind() -> None:
    distracted = 0
    for problem in PROBLEMS:
        first, second, *rest = problem.trajectory().texts
        if (other := distraction(problem)) is not None:
            distracted += 1
            assert first_error(problem, [first, other, second]) == ("goal", 2)
        assert first_error(problem, [first, "The answer is 100000."]) == ("copied", 2)
        value = problem.quantities[problem.needed(problem.target)[0]].value
        if value != problem.quantities[problem.target].value:
            assert first_error(problem, [first, f"The answer is {value}."]) == ("goal", 2)
        person, thing = first.split()[1], first.split()[-1]
        assert first_error(problem, [f"So {person} has 1000+1=1001 {thing}"]) == ("copied", 1)
        assert first_error(problem, [f"So {person} has 8/3=2 {thing}"]) == ("sum", 1)
        assert first_error(problem, [first, first, second, *rest]) == ("stopped", 2)
        assert first_error(problem, ["So Nobody has 1+1=2 pens."]) == ("stopped", 1)
        assert first_error(problem, [first, "Hm."]) == ("stopped", 2)
        assert first_error(problem, []) == ("stopped", 1)
    assert distracted > 10


def test_the_table_of_a_comparison(tmp_path: Path) -> None:
    run = tmp_path / "medium.srl.0"
    run.mkdir()
    (run / "summary.json").write_text("{}")
    data = {"source": "word_problems", "limit": 40, "thoughts": True, **DATA}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    old = tmp_path / "medium.srl.0.old"  # moved away, so no cell
    old.mkdir()
    (old / "summary.json").write_text("{}")
    lines = []
    for number, problem in enumerate(PROBLEMS[:8]):
        trajectory = problem.trajectory()
        steps = trajectory.texts if number else trajectory.texts[:1]
        line = {"when": "after", "evaluation": 0, "mode": "whole", "steps": list(steps)}
        line["correct"] = number < 2
        for sample in (0, 1):  # the second is no greedy one
            shown = {"problem_id": trajectory.problem_id, "sample": sample}
            lines.append(json.dumps(line | shown) + "\n")
    (run / "eval.jsonl").write_text("".join(lines))
    command = [sys.executable, "experiments/compare/first_errors.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table, by_step = done.stdout.split("\n\n")
    [line] = table.splitlines()[2:]
    tried = sum(len(problem.trajectory().texts) for problem in PROBLEMS[1:8]) + 2
    shown = ["medium", "whole", "srl", "8", "25.0", "87.5", "0.0", "0.0", "0.0", "12.5"]
    rates = ["0.0", "0.0", "0.0", f"{100 / tried:.1f}"]
    assert [cell.strip() for cell in line.strip("|").split("|")] == shown + rates
    # The first attempt has one step of its several, so it was wrong at the second.
    [line] = by_step.splitlines()[2:]
    lengths = [2, *(len(problem.trajectory().texts) for problem in PROBLEMS[1:8])]
    left = [sum(length >= step for length in lengths) for step in range(1, max(lengths) + 1)]
    wrong = [f"{100 * (step == 2) / n:.1f} of {n}" for step, n in enumerate(left, start=1)]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "medium",
        "whole",
        "srl",
        *wrong,
    ]
    command[-1] = str(tmp_path / "none")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no finished cell there; give the folder of a comparison" in done.stderr


def test_other_forms_are_no_steps() -> None:
    first = PROBLEMS[0].trajectory().texts[0]
    assert first_error(PROBLEMS[0], [first])[1] == 2  # tried, and right
    for step in (first.removesuffix("."), first.lower(), f"{first} ", "the answer is 4."):
        assert first_error(PROBLEMS[0], [step]) == ("stopped", 1)


# ---- curves -------------------------------------------------------------------------------------


def test_curves_are_means_of_updates_and_seeds(tmp_path: Path) -> None:
    def write(cell: str, kept: list[int], *, finished: bool = True) -> None:
        run = tmp_path / cell
        run.mkdir()
        lines = [
            {"step": step, "groups_kept": k, "groups_tried": 8, "reward": k / 2}
            | {"completion_tokens": 10 * step}
            for step, k in enumerate(kept, start=1)
        ]
        lines.insert(1, {"step": 1, "eval_accuracy": 0.5})  # type: ignore[dict-item]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if finished:
            (run / "summary.json").write_text("{}")

    with pytest.raises(SystemExit, match="no finished training there"):
        page(tmp_path)
    write("easy.srl.0", [8, 8, 8, 8, 4])
    write("easy.srl.1", [0, 0, 4, 4, 8])
    write("easy.rlvr.0", [1, 1, 1, 1, 1])
    write("easy.rlvr.1", [0], finished=False)
    rows = updates_of(tmp_path)["easy"]
    assert {row: len(seeds) for row, seeds in rows.items()} == {"rlvr": 1, "srl": 2}
    kept = curve("srl", rows["srl"], "groups_kept", "groups_tried")
    assert kept.bins == [(1, 4), (5, 8)]
    assert [value.value for value in kept.values if value] == [40 / 64, 12 / 16]
    reward = curve("rlvr", rows["rlvr"], "reward")
    assert [value.value for value in reward.values if value] == [0.5, 0.5]
    (tmp_path / "easy.srl.1").rename(tmp_path / "easy.srl.1.old")
    assert len(updates_of(tmp_path)["easy"]["srl"]) == 1
    (tmp_path / "easy.srl.1.old").rename(tmp_path / "easy.srl.1")
    text = page(tmp_path)
    for words in ("<h2>easy</h2>", "Groups that teach", "rlvr", "srl", "62.5"):
        assert words in text, words


def test_no_picture_is_without_srl() -> None:
    assert list(pictures(["a", "srl", "b"])) == [["srl", "a", "b"]]
    assert list(pictures(["srl"])) == [["srl"]]
    assert list(pictures("abcdefg")) == [[*"abcdef"], ["g"]]
    assert list(pictures([*"abcdef", "srl"])) == [["srl", *"abcde"], ["srl", "f"]]
