"""Reports of made-up logs: half a run, many steps, bounds on what is embedded."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from report_pages import RECORD, Page, made_up, write_run

from srl.logs.report.report import write_report

# ---- two runs, and groups of another's numbering ------------------------------------------------


def test_one_group_has_one_prompt(tmp_path: Path) -> None:
    """A log that somebody else wrote may number its groups in its own way."""
    log = [
        replace(RECORD, rollout=k, expert_step=f"step {k // 2}", rewards={"similarity": k / 8})
        for k in range(4)
    ]
    log.append(replace(RECORD, problem_id="another"))
    page = Page(write_report(write_run(tmp_path / "run", log)).path.read_text())
    groups = page.runs[0]["groups"]
    assert [group["expert"] for group in groups] == ["step 0", "step 1", RECORD.expert_step]
    assert [[r["line"] for r in group["rollouts"]] for group in groups] == [[1, 2], [3, 4], [5]]


def test_two_runs_of_one_name(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / k / "run", made_up(2)) for k in ("a", "b")]
    page = Page(write_report(*folders).path.read_text(encoding="utf-8"))
    assert [run["name"] for run in page.runs] == ["a/run", "b/run"]
    assert str(tmp_path) not in page.source


def test_a_link_from_a_table_leads_to_its_run(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, [replace(RECORD, problem_id=problem)])
        for name, problem in (("one", "a:b"), ("two", "2:c"))
    ]
    page = Page(write_report(*folders).path.read_text(encoding="utf-8"))
    links = {a["href"] for tag, a in page.tags if tag == "a" and "find" in str(a["href"])}
    assert links == {"#find=a%3Ab", "#find=2:2%3Ac"}


# ---- half a run ---------------------------------------------------------------------------------


def test_a_log_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made_up(3))
    with (run / "steps.jsonl").open("a") as log:
        log.write('{"schema": 1, "train_st')
    page = Page(write_report(run / "steps.jsonl").path.read_text(encoding="utf-8"))
    assert "24 of 24 rollouts are here." in page.words
    assert page.runs[0]["problems"] == []
    assert "not complete" in page.words
    assert page.words.count("Not recorded in this folder.") == 2
    assert "No metrics.jsonl in this folder." in page.words
    assert "This run has evaluated nothing yet." in page.words


def test_a_long_run_has_no_more_points(tmp_path: Path) -> None:
    log = made_up(1000, groups=1, size=1)
    metrics = [{"step": k, "reward": 0.5, "loss": float(k)} for k in range(1, 1001)]
    metrics += [{"step": k, "eval_accuracy": k / 1000} for k in range(1, 1001)]
    run = write_run(tmp_path / "run", log, metrics=metrics)
    page = Page(write_report(run).path.read_text())
    reward, loss = page.table("reward").rows, page.table("loss").rows
    assert len(reward) == 60
    assert reward[0][0] == "steps 1–17"
    assert Counter(row[1].rpartition(" ")[2] for row in reward) == {"17": 40, "16": 20}
    assert len(loss) == 120
    assert loss[1] == ["steps 10–17", "13.5"]
    accuracy = page.table("validation problems solved").rows
    assert len(accuracy) <= 120
    assert accuracy[-1] == ["step 1000", "100.0 %"]
    assert len(page.table("reward by step index").head) == 1 + 12


def test_many_step_indices_and_sources(tmp_path: Path) -> None:
    log = made_up(1, groups=150, size=1)
    log = [replace(r, step_index=k, num_steps=200, source=f"s{k}") for k, r in enumerate(log)]
    page = Page(write_report(write_run(tmp_path / "run", log)).path.read_text())
    assert len(page.table("by step index (the 100 with most rollouts)").rows) == 100
    assert len(page.table("by source (the 100 with most rollouts)").rows) == 100
    assert "110 more rows are not shown" in page.words
    assert len(page.table("by problem (the 20 with most rollouts)").rows) == 20
    assert len(page.table("reward by source").head) == 1 + 6


def test_only_a_validation(tmp_path: Path) -> None:
    evaluated = made_up(1, size=1, phase="eval", kept=False, group_mean=None, group_std=None)
    page = Page(write_report(write_run(tmp_path / "run", evaluated)).path.read_text())
    assert "No rollouts of training in this log." in page.words
    assert page.table("validation steps: reward").rows[0][1].startswith("0.750")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_that_are_missing_or_huge(tmp_path: Path) -> None:
    strange = [
        *made_up(3, reward=None, rewards={"similarity": None}, metrics={}, group_std=None),
        *made_up(2, start=4, reward=1e300, rewards={"similarity": -1e300}),
        *made_up(2, start=6, reward=-1.7e308, rewards={"similarity": 5e-324}),
    ]
    page = Page(write_report(write_run(tmp_path / "run", strange)).path.read_text())
    assert {"similarity", "reward by step index"} <= set(page.titles)
    shown = page.source.partition("<main>")[2].partition('id="data"')[0]
    assert not re.search(r"\b(nan|inf)\b", shown.lower())


def test_steps_that_improve(tmp_path: Path) -> None:
    """Two expert steps, tried at step 1 and at step 5; one gets better."""
    log = [
        replace(RECORD, train_step=step, problem_id=problem, reward=reward)
        for step, problem, reward in (
            (1, "aa", 0.25), (1, "bb", 0.5), (5, "aa", 0.875), (5, "bb", 0.375),
        )
    ]  # fmt: skip
    page = Page(write_report(write_run(tmp_path / "run", log)).path.read_text())
    (row,) = page.table("most improved").rows
    assert row[0] == "aa, 2/4"
    assert row[3:] == ["2", "0.562", "0.250, step 1", "0.875, step 5"]


def test_sums_are_shown_for_one_step(tmp_path: Path) -> None:
    rows = [{"step": step, "reward": 0.5, "loss": 0.0, "seconds/x": 30.0} for step in (10, 20)]
    run = write_run(tmp_path / "run", made_up(20), metrics=rows)
    assert (
        Page(write_report(run).path.read_text()).table("seconds/x").column("run") == ["3.000"] * 2
    )


def test_which_policy_was_kept(tmp_path: Path) -> None:
    attempts = [
        {"when": when, "evaluation": k, "mode": "steps", "sample": 0, "problem_id": f"p{n}",
         "correct": n < 4 * k, "source": "toy", "failure": None, "num_steps": 2, "steps": []}
        for k, when in enumerate(("before", "after")) for n in range(8)
    ]  # fmt: skip
    run = write_run(tmp_path / "run", made_up(30), attempts=attempts)
    said = "after: policy of step 20, the best on validation"
    for best in ("checkpoint-20", "checkpoint-30", None):
        (run / "summary.json").write_text(json.dumps({"best_checkpoint": best}))
        page = Page(write_report(run).path.read_text())
        assert (said in page.words) == (best == "checkpoint-20")
        assert "+50.0 points" in page.words


def test_sources_have_curves_of_their_own(tmp_path: Path) -> None:
    flat = made_up(3, source="books", reward=0.5, kept=False, group_std=0.0)
    log = [*flat, *made_up(3, source="<web>", reward=1.0, group_std=0.25)]
    log = [replace(r, group_id=r.group_id + 4 * (r.source == "<web>")) for r in log]
    page = Page(write_report(write_run(tmp_path / "run", log)).path.read_text())
    table = page.table("reward by source")
    assert all(shown.startswith("1.000 [") for shown in table.column("<web>"))
    assert all(shown.startswith("0.500 [") for shown in table.column("books"))
    spread, kept = page.table("group std by source"), page.table("kept by source")
    assert all(shown.startswith("0.250 [") for shown in spread.column("<web>"))
    assert all(shown.startswith("0.000 [") for shown in spread.column("books"))
    assert all(shown.startswith("0.0 % [") for shown in kept.column("books"))
    assert all(shown.startswith("100.0 % [") for shown in kept.column("<web>"))


# ---- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 7, 60, 200, 10_000])
def test_at_most_so_many_rollouts(tmp_path: Path, most: int) -> None:
    run = write_run(tmp_path / "run", made_up(40, size=3))
    page = Page(write_report(run, rollouts=most).path.read_text())
    groups = page.runs[0]["groups"]
    rollouts = sum(len(group["rollouts"]) for group in groups)
    assert all(len(group["rollouts"]) == 3 for group in groups)
    assert rollouts == max(3, min(480, most - most % 3))
    assert f"{rollouts} of 480 rollouts are here" in page.words
    if most == 200:  # beside ten best and ten worst, which are the first here
        per_ten = Counter((group["step"] - 1) // 10 for group in groups)
        assert min(per_ten.values()) >= 5


def test_what_is_linked_is_inside(tmp_path: Path) -> None:
    log = made_up(100, size=2)
    log = [replace(r, reward=r.train_step / 100) for r in log]
    run = write_run(tmp_path / "run", log)
    page = Page(write_report(run, rollouts=60).path.read_text())
    links = [str(a["href"]) for tag, a in page.tags if tag == "a" and "#r=" in str(a["href"])]
    lines = {r["line"] for group in page.runs[0]["groups"] for r in group["rollouts"]}
    assert len(links) == 20
    assert {int(link.removeprefix("#r=")) for link in links} <= lines
    # With room for 3 groups the rest are named, not linked.
    page = Page(write_report(run, rollouts=6).path.read_text())
    links = [str(a["href"]) for tag, a in page.tags if tag == "a" and "#r=" in str(a["href"])]
    assert len(links) == 3


def test_two_runs_share_the_room(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, made_up(50)) for name in ("one", "two")]
    page = Page(write_report(*folders, rollouts=200).path.read_text())
    assert [sum(len(g["rollouts"]) for g in run["groups"]) for run in page.runs] == [100, 100]


def test_long_texts_are_cut(tmp_path: Path) -> None:
    long = "ab" * 500_000
    log = [
        replace(RECORD, rollout=k, action=long, thought=long, expert_step=long) for k in range(4)
    ]
    report = write_report(write_run(tmp_path / "run", log))
    assert report.bytes < 500_000
    (group,) = Page(report.path.read_text()).runs[0]["groups"]
    for said in (group["expert"], group["rollouts"][0]["action"], group["rollouts"][0]["thought"]):
        assert said.endswith("\n[cut here: 1,000,000 characters, see the log]")
        assert len(said) < 201_000
    assert all(start + length <= 200_000 for start, _, length in group["rollouts"][0]["marks"])
