"""A figure of a rollout is added in one line and every view shows it; logs of schema 1 stay
readable. Through the command line, as a user does it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import read_jsonl, train, write_config, write_toy_data
from report_pages import Page, inside, write_run
from step_logs import RECORD

from srl.commands.cli import main
from srl.rollout import rollouts as scored
from srl.runs.records import read_records

SCHEMA_1 = Path(__file__).parent / "data" / "schema_1" / "steps.jsonl"

Show = Callable[..., str]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """Run a command; returns what it wrote."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 0
        return capsys.readouterr().out

    return run


def test_one_more_metric_is_one_line(
    toy_policy: Path, tmp_path: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scored._metrics

    def with_letters(example, parsed, score):  # type: ignore[no-untyped-def]
        return {**before(example, parsed, score), "letters": float(len(parsed.action))}

    monkeypatch.setattr(scored, "_metrics", with_letters)
    with inside(tmp_path):
        write_toy_data(tmp_path / "data.jsonl", 40)
        write_config(tmp_path / "config.yaml", model=str(toy_policy))
        assert train("--max_steps", "2") == 0
        records = read_jsonl(tmp_path / "runs" / "one" / "steps.jsonl")
        trained = [r for r in records if r["phase"] == "train"]
        letters = [r["metrics"]["letters"] for r in trained]  # type: ignore[index]
        assert letters == [len(str(r["action"])) for r in trained]

        figures = json.loads(show("inspect", "one", "--figures", "--json"))["metrics"]
        assert figures["metrics/letters"]["value"] == pytest.approx(sum(letters) / len(letters))
        assert "letters" in show("inspect", "one", "--by", "step_index")
        by_letters = ("inspect", "one", "--by", "problem", "--sort=-letters", "--json")
        cells = json.loads(show(*by_letters))["cells"]
        means = [cell["metrics"]["metrics/letters"]["value"] for cell in cells]
        assert means == sorted(means, reverse=True)
        assert re.search(rf"letters +{letters[0]:.3f}", show("inspect", "one", "--record", "1"))
        assert "letters" in show("inspect", "one")
        for name in ("letters", "metrics/letters"):
            words = ("--metric", "letters:gt:3", f"--sort=-{name}", "--json")
            lines = show("inspect", "one", *words).splitlines()
            asked = [json.loads(line)["metrics"]["letters"] for line in lines]
            assert asked == sorted((n for n in letters if n > 3), reverse=True)

        show("report", "one")
        page = Page((tmp_path / "runs" / "one" / "report.html").read_text(encoding="utf-8"))
        assert "letters" in page.titles
        rollouts = [r for group in page.runs[0]["groups"] for r in group["rollouts"]]
        shown = {r["line"]: dict(r["figures"])["letters"] for r in rollouts}
        assert [shown[k + 1] for k, r in enumerate(records) if r["phase"] == "train"] == letters


def test_a_log_of_schema_1_is_read(tmp_path: Path, show: Show) -> None:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    shutil.copy(SCHEMA_1, tmp_path / "runs" / "old")
    rows = read_jsonl(SCHEMA_1)
    assert {row["schema"] for row in rows} == {1}
    with inside(tmp_path):
        records = list(read_records(SCHEMA_1))
        assert [r.metrics for r in records] == [{"lift": row["lift"]} for row in rows]
        assert {(r.schema, r.observation, len(r.tags)) for r in records} == {(2, "", 0)}
        asked = ("inspect", "old", "--phase", "all")
        figures = json.loads(show(*asked, "--figures", "--json"))["metrics"]
        valid = [row for row in rows if row["format_failure"] is None]
        lifts = [row["lift"] for row in valid if row["lift"] is not None]
        assert figures["lift"]["value"] == pytest.approx(sum(lifts) / len(lifts))  # type: ignore[arg-type]
        exact = [row["action"] == row["expert_step"] for row in valid]
        assert figures["exact"]["value"] == pytest.approx(sum(exact) / len(exact))
        lines = show(*asked, "--exact", "true", "--json").splitlines()
        assert len(lines) == sum(exact) > 0
        assert "lift" in show("inspect", "old", "--record", "1")
        show("report", "old")
        page = Page((tmp_path / "runs" / "old" / "report.html").read_text(encoding="utf-8"))
        run = page.runs[0]
        found = {
            r["line"]: dict(r["figures"]) for group in run["groups"] for r in group["rollouts"]
        }
        assert [found[k + 1]["lift"] for k in range(len(rows))] == [row["lift"] for row in rows]
        # A run that was resumed by this version goes on in schema 2: both are read.
        path = write_run(tmp_path / "runs" / "old", [RECORD]) / "steps.jsonl"
        assert len(list(read_records(path))) == len(rows) + 1
        assert json.loads(show(*asked, "--figures", "--json"))["records"] == len(rows) + 1


def test_a_metric_and_a_reward_of_one_name(tmp_path: Path, show: Show) -> None:
    values = [(0.1, 3.0), (0.3, 2.0), (0.2, 1.0)]
    records = [
        replace(RECORD, rollout=k, rewards={"same": reward}, metrics={"same": metric})
        for k, (reward, metric) in enumerate(values)
    ]
    write_run(tmp_path / "runs" / "one", records)
    with inside(tmp_path):
        for name, order in (
            ("same", [2, 1, 0]),
            ("metrics/same", [2, 1, 0]),
            ("rewards/same", [0, 2, 1]),
        ):
            lines = show("inspect", "one", f"--sort={name}", "--json").splitlines()
            assert [json.loads(line)["rollout"] for line in lines] == order
        both = show("inspect", "one", "--reward", "same:gt:0.15", "--metric", "same:gt:1", "--json")
        assert [json.loads(line)["rollout"] for line in both.splitlines()] == [1]
    with inside(tmp_path):
        assert main(["inspect", "one", "--metric", "other:lt:1"]) == 2
