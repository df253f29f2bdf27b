"""Rows from expert solutions: which steps become targets, what a row knows, and no leak."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.types import Trajectory
from srl.data.steps import (
    StepExample,
    Targets,
    build_examples,
    split_by_problem,
    trajectory_numbers,
)
from srl.errors import UsageError


def solution(problem: str, num_steps: int, source: str = "expert") -> Trajectory:
    steps = tuple(f"{k}. **Title {k}** text" for k in range(1, num_steps + 1))
    return Trajectory(problem, steps, answer="7", source=source, metadata={"level": 3})


@pytest.mark.parametrize(
    ("targets", "num_steps", "rows"),
    [
        ("literal", 4, [0, 1, 2]),
        ("all", 4, [0, 1, 2, 3]),
        ("skip_first", 4, [1, 2, 3]),
        ("literal", 1, []),
        ("all", 1, [0]),
        ("skip_first", 1, []),
        ("all", 0, []),
        ("literal", 0, []),
    ],
)
def test_which_steps_become_targets(targets: str, num_steps: int, rows: list[int]) -> None:
    examples = build_examples([solution("p", num_steps)], targets=targets)  # type: ignore[arg-type]
    assert [example.step_index for example in examples] == rows


def test_literal_is_the_default_and_order_is_kept() -> None:
    examples = build_examples([solution("p", 3), solution("q", 1), solution("r", 2)])
    assert [(e.problem, e.step_index) for e in examples] == [("p", 0), ("p", 1), ("r", 0)]


@given(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(["literal", "all", "skip_first"]))
def test_whole_solutions_beside_their_steps(sizes: list[int], targets: Targets) -> None:
    data = [solution(f"p{n}", size) for n, size in enumerate(sizes)]
    rows = build_examples(data, targets=targets, also_whole=True)
    assert [row for row in rows if not row.whole] == build_examples(data, targets=targets)
    assert [row for row in rows if row.whole] == build_examples(data, targets="whole")
    assert [row.problem for row in rows] == sorted(row.problem for row in rows)


@given(st.integers(1, 6), st.data())
def test_context_and_target_are_the_solution_up_to_the_step(n: int, data: st.DataObject) -> None:
    trajectory = solution("p", n)
    examples = build_examples([trajectory], targets="all")
    k = data.draw(st.integers(0, n - 1))
    assert (*examples[k].previous_steps, examples[k].expert_step) == trajectory.texts[: k + 1]


def test_a_row_knows_its_trajectory_and_hands_it_to_the_rewards() -> None:
    trajectory = solution("p", 3, source="teacher")
    example = StepExample(trajectory, 1)
    assert (example.problem_id, example.num_steps) == (trajectory.problem_id, 3)
    context = example.context("my step", "my thought")
    assert (context.action, context.thought) == ("my step", "my thought")
    assert (context.problem, context.source, context.answer) == ("p", "teacher", "7")
    assert context.previous_steps == trajectory.texts[:1]
    assert context.expert_step == trajectory.texts[1]
    assert (context.step_index, context.num_steps) == (1, 3)
    assert context.metadata == {"level": 3}


def test_titles_only_when_given_and_only_where_there_is_one() -> None:
    trajectory = Trajectory("p", ("1. **Set up** x", "plain text", "3. **End** y"))
    assert [e.title for e in build_examples([trajectory], targets="all")] == [None] * 3
    titled = build_examples([trajectory], targets="all", step_title="given")
    assert [e.title for e in titled] == ["Set up", None, "End"]


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UsageError, match="targets is 'some'; allowed: literal, all, skip_first"):
        build_examples([], targets="some")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="step_title is 'on'; allowed: off, given"):
        build_examples([], step_title="on")  # type: ignore[arg-type]


def test_trajectories_are_numbered_as_they_first_appear() -> None:
    examples = build_examples([solution("p", 3), solution("q", 2), solution("r", 4)])
    assert trajectory_numbers(examples) == [0, 0, 1, 2, 2, 2]
    assert trajectory_numbers(examples[::-1]) == [0, 0, 0, 1, 2, 2]
    assert trajectory_numbers([examples[i] for i in (3, 0, 4, 1)]) == [0, 1, 0, 1]
    assert trajectory_numbers([]) == []


def test_two_solutions_of_one_problem_are_two_trajectories() -> None:
    """Equal ones too: a data set may hold a row twice, and each is drawn on its own."""
    examples = build_examples([solution("p", 3), solution("p", 3), solution("p", 4)])
    assert trajectory_numbers(examples) == [0, 0, 1, 1, 2, 2, 2]


@given(st.lists(st.integers(0, 30), min_size=2), st.integers(0, 3), st.data())
def test_no_problem_stands_on_both_sides(ids: list[int], seed: int, data: st.DataObject) -> None:
    rows = [solution(f"problem {i}", 2, source=str(n)) for n, i in enumerate(ids)]
    problems = {row.problem_id for row in rows}
    held_out = data.draw(st.integers(0, len(problems) - 1))
    train, test = split_by_problem(rows, held_out=held_out, seed=seed)
    assert {row.problem_id for row in train} | {row.problem_id for row in test} == problems
    assert {row.problem_id for row in train}.isdisjoint(row.problem_id for row in test)
    assert len({row.problem_id for row in test}) == held_out
    assert len(train) + len(test) == len(rows)


def test_problems_that_differ_in_white_space_stay_together() -> None:
    rows = [solution("a b", 2), solution("a  b\n", 2), solution("c", 2)]
    for seed in range(6):
        train, test = split_by_problem(rows, held_out=1, seed=seed)
        assert sorted([len(train), len(test)]) == [1, 2]


def test_row_order_changes_nothing_and_the_seed_does() -> None:
    rows = [solution(f"problem {i // 2}", 1 + i % 2) for i in range(60)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert split_by_problem(rows, held_out=10, seed=1) == split_by_problem(
        shuffled, held_out=10, seed=1
    )
    held = [{t.problem for t in split_by_problem(rows, held_out=10, seed=s)[1]} for s in (1, 2)]
    assert held[0] != held[1]


def test_a_larger_split_contains_the_smaller() -> None:
    rows = [solution(f"problem {i}", 2) for i in range(20)]
    small, large = (split_by_problem(rows, held_out=n, seed=5)[1] for n in (4, 9))
    assert large[:4] == small


@pytest.mark.parametrize(("held_out", "problems"), [(3, 3), (4, 3), (-1, 3), (0, 0)])
def test_a_split_that_cannot_work_names_both_numbers(held_out: int, problems: int) -> None:
    rows = [solution(f"problem {i}", 2) for i in range(problems)]
    with pytest.raises(UsageError, match=f"hold out {held_out} of {problems} distinct problems"):
        split_by_problem(rows, held_out=held_out, seed=0)
