"""What a report says to look at: each rule of the remarks on a log that was made up for it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from report_pages import RECORD, made_up, write_run

from rewards.loading import BUILT_INS
from srl.logs.opening import _NEXT, opening
from srl.logs.report import remarks
from srl.logs.report.remarks import remarks_of
from srl.logs.run_data import RunData
from srl.runs.folder import RunFolder
from srl.runs.records import StepRecord

Record = dict[str, object]


def rules(tmp_path: Path, *logs: Sequence, **more: list) -> dict[str, str]:  # type: ignore[type-arg]
    run = write_run(tmp_path / "run", [r for log in logs for r in log], **more)
    return {r.rule: r.text for r in remarks_of(RunData.open(RunFolder.with_log(run)))}


def solved(when: str, hits: int, n: int = 40) -> list[Record]:
    return [
        {"when": when, "mode": "steps", "sample": 0, "problem_id": str(k), "correct": k < hits,
         "failure": None, "num_steps": 2, "source": "toy", "steps": []}
        for k in range(n)
    ]  # fmt: skip


def test_a_rise_and_nothing_else_to_remark(tmp_path: Path) -> None:
    better = made_up(5, start=6, reward=0.9, rewards={"similarity": 0.9})
    found = rules(tmp_path, made_up(5), better)
    assert list(found) == ["rise"]
    assert "rose: 0.750 [0.750, 0.750] in steps 1–2, 0.900" in found["rise"]
    worse = made_up(5, start=6, reward=0.6, rewards={"similarity": 0.6})
    assert rules(tmp_path / "b", made_up(5), worse) == {}


def test_remark_proxy(tmp_path: Path) -> None:
    logs = made_up(5), made_up(5, start=6, reward=0.9, rewards={"similarity": 0.9})
    found = rules(tmp_path, *logs, attempts=[*solved("before", 20), *solved("after", 18)])
    assert "0.750 to 0.900" in found["proxy"]
    assert "5.0 points fewer problems are solved after training" in found["proxy"]
    found = rules(tmp_path / "b", *logs, attempts=[*solved("before", 20), *solved("after", 19)])
    assert "proxy" not in found
    metrics = [{"step": k, "eval_accuracy": 0.5 - k / 100} for k in (2, 10)]
    assert "8.0 points fewer" in rules(tmp_path / "c", *logs, metrics=metrics)["proxy"]


def test_remark_proxy_of_another_reward(tmp_path: Path) -> None:
    logs = made_up(5), made_up(5, start=6, reward=0.9)
    found = rules(tmp_path, *logs, attempts=[*solved("before", 20), *solved("after", 10)])
    assert found["proxy"].startswith("The reward rose from 0.750 to 0.900, but 25.0 points fewer")


def test_remark_unsolved(tmp_path: Path) -> None:
    found = rules(tmp_path, made_up(5), attempts=[*solved("before", 2), *solved("after", 0)])
    assert found["unsolved"] == "None of 40 held-out problems is solved after training."
    found = rules(tmp_path / "b", made_up(5), attempts=[*solved("before", 0), *solved("after", 1)])
    assert "unsolved" not in found
    metrics = [{"step": 5, "eval_accuracy": 0.0, "eval_problems": 8}]
    found = rules(tmp_path / "c", made_up(5), metrics=metrics)
    assert found["unsolved"] == "None of 8 held-out problems is solved at the last validation."


@pytest.mark.parametrize(("last", "others", "said"), [(3, 0, True), (3, 1, False), (0, 0, False)])
def test_remark_answers(tmp_path: Path, last: int, others: int, said: bool) -> None:
    """Of 20 rollouts at the last step and 20 before it, so many are exact."""

    def rollouts(index: int, exact: int, start: int) -> list[StepRecord]:
        log = made_up(5, start=start, groups=4, size=1, step_index=index, num_steps=4)
        wrong = [replace(r, action=f"not {r.expert_step}") for r in log]
        return [replace(r, action=r.expert_step) for r in log[:exact]] + wrong[exact:]

    log = [*rollouts(3, last, 1), *rollouts(1, others, 1)]
    log = [replace(r, train_step=1) for r in log]
    found = rules(tmp_path, log)
    assert ("answers" in found) is said
    if said:
        assert "alone: 15.0 % [" in found["answers"]
        assert "0.0 % [0.0, 16.1] of all others" in found["answers"]


def test_remark_broken(tmp_path: Path) -> None:
    metrics = [
        {"step": k, "loss": 0.1, "reward_errors/similarity": 2.0, "reward_deadlines/similarity": 1}
        for k in (1, 2)
    ]
    found = rules(tmp_path, made_up(2), metrics=metrics)
    assert "similarity failed 6 times in training, 2 of them by running out" in found["broken"]


def test_remark_collapse(tmp_path: Path) -> None:
    def log(broken: int) -> list[StepRecord]:
        """Ten steps of ten rollouts; so many of each of the third fifth's are broken."""
        rows = made_up(10, groups=10, size=1)
        return [
            replace(r, format_failure="truncated", metrics={"lift": None})
            if r.train_step in (5, 6) and k % 10 < broken
            else r
            for k, r in enumerate(rows)
        ]

    assert "collapse" not in rules(tmp_path, log(1))
    found = rules(tmp_path / "b", log(2))
    assert found["collapse"].startswith("Format failures rose from 0.0 % to 20.0 % in steps 5–6:")


def test_remark_gain(tmp_path: Path) -> None:
    found = rules(tmp_path, made_up(1), attempts=[*solved("before", 10), *solved("after", 30)])
    assert found["more"].startswith("The policy solves more held-out problems than before: +50.0 p")
    found = rules(tmp_path / "b", made_up(1), attempts=[*solved("before", 30), *solved("after", 9)])
    assert "−52.5 points" in found["fewer"]


@pytest.mark.parametrize(
    ("rule", "changes", "said"),
    [
        ("failures", {"format_failure": "truncated", "metrics": {"lift": None}}, "100.0 %"),
        ("cut", {"truncated": True}, "100.0 %"),
        ("copies", {"action": RECORD.previous_step}, "100.0 %"),
        ("lift", {"metrics": {"lift": -0.125}}, "−0.125"),
        ("dropped", {"kept": False, "dropped_because": "flat_group"}, "flat_group (40)"),
        ("empty", {"kept": False, "dropped_because": "flat_group"}, "10 of 10"),
        ("never", {"rewards": {"similarity": 0.5, "units": None}}, "units has no value on any"),
        ("constant", {"rewards": {"similarity": 0.5, "units": 1.0}}, "units is 1.000 on all 80"),
        ("unmoved", {}, "0.750 [0.750, 0.750] in steps 1–2"),
    ],
)  # fmt: skip
def test_remark(tmp_path: Path, rule: str, changes: dict[str, object], said: str) -> None:
    assert said in rules(tmp_path, made_up(10, **changes))[rule]  # type: ignore[arg-type]


def test_remark_longer(tmp_path: Path) -> None:
    found = rules(tmp_path, made_up(5), made_up(5, start=6, completion_tokens=63))
    assert found["longer"] == "Completions grew from 31.0 to 63.0 tokens."


@pytest.mark.parametrize("rule", ["failures", "cut", "copies"])
def test_remarks_begin_above_their_bounds(tmp_path: Path, rule: str) -> None:
    changes = {
        "failures": {"format_failure": "truncated"},
        "cut": {"truncated": True},
        "copies": {"action": RECORD.previous_step},
    }[rule]
    share = {"failures": 5, "cut": 10, "copies": 10}[rule]  # one in so many is just not too many
    for more, expected in ((0, False), (1, True)):
        log = made_up(1, groups=share, size=1)
        log = [replace(r, **changes) if k <= more else r for k, r in enumerate(log)]  # type: ignore[arg-type]
        assert (rule in rules(tmp_path / str(more), log)) is expected


# ---- the two sentences that views open with ------------------------------------------------------


def opening_of(tmp_path: Path, *logs: Sequence, **more: list) -> tuple[str, str]:  # type: ignore[type-arg]
    run = write_run(tmp_path / "run", [r for log in logs for r in log], **more)
    return opening(RunData.open(RunFolder.with_log(run)))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (8, 30, "it solves more of 40 held-out problems step by step than before: 20.0 % before"),
        (30, 8, "it solves fewer of 40 held-out problems step by step than before: 75.0 % before"),
        (20, 21, "whether it solves more of 40 held-out problems than before cannot be told"),
    ],
)
def test_the_opening_says_whether_more_is_solved(
    tmp_path: Path, before: int, after: int, said: str
) -> None:
    attempts = [*solved("before", before), *solved("after", after)]
    happened, to_do = opening_of(tmp_path, made_up(5), attempts=attempts)
    assert said in happened
    assert to_do.startswith("Next: ")


def test_the_opening_without_solved_problems(tmp_path: Path) -> None:
    metrics = [{"step": k, "reward": 0.1 * k} for k in (1, 5)]
    better = made_up(5, start=6, reward=0.9, rewards={"similarity": 0.9})
    happened, to_do = opening_of(tmp_path, made_up(5), better, metrics=metrics)
    assert "10 training steps; the mean reward of a step went from 0.100 to 0.500." in happened
    (tmp_path / "run/config.yaml").write_text("max_steps: 19\n")
    (tmp_path / "run/summary.json").unlink(missing_ok=True)
    happened, to_do = opening(RunData.open(RunFolder.with_log(tmp_path / "run")))
    assert happened.startswith("The run is not complete: it has 10 training steps of 19;")
    assert to_do == f"Next: make resume RUN={tmp_path / 'run'} goes on with it."


def test_what_to_do_next_is_about_the_first_bad_remark(tmp_path: Path) -> None:
    cut = made_up(5, truncated=True)
    assert "raise max_completion_length" in opening_of(tmp_path, cut)[1]


def test_every_rule_that_is_no_good_news_has_advice() -> None:
    rules = set(re.findall(r'^ +(?:yield )?\(?"([a-z]+)",\s', inspect.getsource(remarks), re.M))
    assert len(rules) > 15
    assert rules - {"rise", "more"} == set(_NEXT)
    named = {name for words in _NEXT.values() for name in re.findall(r"reward `(\w+)`", words)}
    assert named == {"answer", "progress"} <= set(BUILT_INS)
