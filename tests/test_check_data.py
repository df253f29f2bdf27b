"""The model-free check: its counts against hand counts, its floors against known orders."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from environments import LoadReport, Step, Trajectory, load_trajectories
from rewards import StepContext, StepScore
from rewards.similarity import similarity
from srl.commands import check_data as checks
from srl.commands.check_data import Spread, check_data, render
from srl.commands.score import Values
from srl.errors import UsageError

DATA = Path(__file__).parents[2] / "shared" / "data"

TRAJECTORIES = [
    Trajectory("p1", ("aa", "bbbb", "cc"), "1"),
    Trajectory("p2", ("xxx", "xxx"), None, metadata={"notes": ("cut",)}),
    Trajectory("p1", (Step("dd", "hm"), Step("ee")), "1"),
]
REPORT = LoadReport(rows=5, kept=3, dropped=Counter({"only one step": 2}))


def test_counts_by_hand() -> None:
    check = check_data(TRAJECTORIES, REPORT)
    assert (check.rows, check.kept, check.dropped) == (5, 3, Counter({"only one step": 2}))
    assert (check.trajectories, check.problems, check.steps) == (3, 2, 7)
    assert check.steps_per_trajectory == Spread(2, 2, 3)
    assert check.step_chars == Spread(2, 2, 4)
    assert (check.with_answer, check.with_thoughts, check.repeated_steps) == (2, 1, 1)
    assert (check.self_score_min, check.self_score_failures) == (1.0, 0)
    assert check.notes == {"cut": 1}
    assert check.pairs == 4


def test_solutions_that_state_no_answer_are_counted_where_that_can_be_mended(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.jsonl"
    rows = [
        {"problem": "a", "solution": "2 + 2 = 4\n4 + 1 = 5", "answer": "5"},
        {"problem": "b", "solution": "2 + 2 = 4\nThe answer is 4.", "answer": "4"},
        {"problem": "c", "solution": "2 + 2 = 4\nThe answer is 4.", "answer": "7"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check = check_data(load_trajectories("files", str(path)), REPORT)
    assert (check.judged_right, check.unstated) == (1, 1)
    assert "1; 1 others do not end with a step that states the answer" in render(check)
    mended = check_data(load_trajectories("files", str(path), answer_step=True), REPORT)
    assert (mended.judged_right, mended.unstated) == (2, 0)
    assert "answer_step" not in render(mended)


def test_floors_by_hand() -> None:
    check = check_data(TRAJECTORIES, REPORT)
    # Only p2 repeats its step; no letter of one problem occurs in the other.
    floors = check.rewards["similarity"]
    assert floors.tricks["step before"].mean == pytest.approx(1 / 4)
    assert floors.tricks["other step"].mean == 0.0
    assert (floors.own.n, floors.own.mean, floors.own.low) == (4, 1.0, 1.0)
    extra = [("aa\nbbbb", "aa"), ("bbbb\ncc", "bbbb"), ("xxx\nxxx", "xxx"), ("dd\nee", "dd")]
    assert floors.tricks["one step more"].mean == pytest.approx(
        sum(similarity(a, e) for a, e in extra) / 4
    )


def test_the_draw_follows_the_seed_and_is_bounded() -> None:
    rows = [
        Trajectory(f"p{i}", tuple(f"{i} and {j} is {i * j}" for j in range(6))) for i in range(40)
    ]
    report = LoadReport(rows=40, kept=40)
    assert check_data(rows, report, max_pairs=20) == check_data(rows, report, max_pairs=20)
    assert check_data(rows, report, max_pairs=20).pairs == 20
    assert check_data(rows, report).pairs == 200
    one, two = (
        check_data(rows, report, max_pairs=20, seed=seed).rewards["similarity"].tricks["other step"]
        for seed in (1, 2)
    )
    assert one != two


def test_a_similarity_that_breaks_on_perfect_copies_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What peers had: one side normalised and the other not.
    def lopsided(action: str, expert: str) -> float:
        return similarity(action.replace("b", "q"), expert)

    monkeypatch.setattr(checks, "similarity", lopsided)
    check = check_data(TRAJECTORIES, REPORT)
    assert check.self_score_failures == 1
    assert check.self_score_min == 0.0
    assert "FAILS for 1 steps, lowest 0.0000" in render(check)


def test_tricks_are_what_they_say() -> None:
    rows = [
        Trajectory("one, oax 3", ("aaa 1", "bbb = 2", "ccc 3"), "3"),
        Trajectory("two", ("ddd", "eee"), "4"),
    ]
    written: list[tuple[str, str]] = []

    class Spy:
        names = ("spy",)

        def score(self, steps: list[StepContext]) -> list[StepScore]:
            written.extend((step.action, step.expert_step) for step in steps)
            return [StepScore({"spy": 1.0}, 1.0) for _ in steps]

    places = [(0, 1)]
    checks._measure(rows, places, random.Random(0), Spy())  # type: ignore[arg-type]
    assert written == [
        ("bbb = 2", "bbb = 2"),
        ("aaa 1\nbbb = 2", "aaa 1"),
        ("aaa 1\nbbb = 2\nccc 3", "aaa 1"),
        ("aaa 1", "bbb = 2"),
        ("one, oax 3", "bbb = 2"),
        (written[5][0], "bbb = 2"),
        ("1 + 1 = 2", "bbb = 2"),
        ("bbb = \uff12", "bbb = 2"),
    ]
    assert written[5][0] in rows[1].texts


def test_one_problem_alone_has_no_unrelated_floor() -> None:
    check = check_data([TRAJECTORIES[0], TRAJECTORIES[2]], REPORT)
    assert check.rewards["similarity"].tricks["other step"] == Values(0, 0)
    assert re.search("^similarity .* - +[0-9.]+ +[0-9.]+$", render(check), re.MULTILINE)


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="no trajectories to check"):
        check_data([], REPORT)
    with pytest.raises(UsageError, match="max_pairs is 0; it must be 1 or more"):
        check_data(TRAJECTORIES, REPORT, max_pairs=0)


def test_the_table_holds_every_number() -> None:
    text = render(check_data(TRAJECTORIES, REPORT))
    lines = {line.split("  ")[0].strip(): line.split()[-1] for line in text.splitlines() if line}
    assert lines["rows read"] == "5"
    assert lines["rows dropped"] == "2"
    assert "  only one step" in text
    assert "note: cut" in text
    assert lines["expert steps"] == "7"
    assert "exactly 1.0 for every step" in text
    assert "0.250" in text
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("source", "file", "steps"),
    [
        ("gsm8k", "gsm8k_train.jsonl", 1125),
        ("competition_math", "math_train.jsonl", 1229),
        ("s1k", "s1k_trajectories.jsonl", 256),
    ],
)
def test_real_data_scores_one_against_itself(source: str, file: str, steps: int) -> None:
    if not (DATA / file).exists():
        pytest.skip(f"real data {file} is not at hand")
    report = LoadReport()
    trajectories = load_trajectories(source, str(DATA / file), report=report)[:300]
    check = check_data(trajectories, report, max_pairs=200)
    assert check.steps == steps
    assert check.self_score_failures == 0
    assert check.unverified == []
    floors = check.rewards["similarity"]
    figures = [
        floors.tricks["other step"].mean,
        floors.tricks["step before"].mean,
        floors.tricks["one step more"].mean,
    ]
    assert figures == sorted(figures)
    assert 0.1 < min(figures) < max(figures) < 0.8
    for name in ("similarity", "indel", "length"):
        assert (check.rewards[name].own.n, check.rewards[name].own.low) == (200, 1.0)
    assert check.rewards["progress"].tricks["step before"].mean == 0.0
    assert check.rewards["novelty"].tricks["step before"].mean == 0.0


def test_a_reward_of_ones_own_stands_beside_the_built_in_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def letters(step): return len(step.action)\n")
    asked = {f"{tmp_path}/mine.py:letters": 0.0}
    check = check_data(TRAJECTORIES, REPORT, rewards=asked)
    own = check.rewards["letters"].own
    # bbbb, cc, xxx and ee follow another step.
    assert (own.n, own.mean, own.low, own.high) == (4, 11 / 4, 2.0, 4.0)
    # A name that a built-in has too is the one asked for.
    (tmp_path / "mine.py").write_text("def length(step): return 7.0\n")
    check = check_data(TRAJECTORIES, REPORT, rewards={f"{tmp_path}/mine.py:length": 0.0})
    assert check.rewards["length"].own.mean == 7.0
    (tmp_path / "mine.py").write_text("def letters(step): return len(step.action)\n")
    with pytest.raises(UsageError, match="mine.py has no 'letter'; it has: letters"):
        check_data(TRAJECTORIES, REPORT, rewards={f"{tmp_path}/mine.py:letter": 1.0})


def test_answers_that_no_policy_could_be_paid_for_are_named() -> None:
    rows = [Trajectory("p", ("a", "b"), "7"), Trajectory("q", ("a", "b"), " ")]
    check = check_data(rows, REPORT)
    assert check.unverified == [" "]
    assert "all but 1: ' '" in render(check)
