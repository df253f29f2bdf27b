"""The report: its numbers against plain loops over the logs, its bounds, refusals, hostile text."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import read_jsonl
from report_pages import (
    EVIL,
    RECORD,
    Page,
    inside,
    made_up,
    same,
    train_toy,
    with_interval,
    write_evil,
    write_run,
)

from rewards.similarity import normalize
from srl.cli import main
from srl.errors import UsageError
from srl.estimates import student_t
from srl.logs.report.embedded import evenly
from srl.logs.report.report import MARKER, ROLLOUTS, write_report

Record = dict[str, object]
REWARDS = ("--rewards.similarity", "1.0", "--rewards.novelty", "0.2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, toy_policy: Path) -> Path:
    """A folder with two runs of the toy: `one`, with two rewards, and `two`, longer."""
    folder = tmp_path_factory.mktemp("report")
    two = ("--max_steps", "6", "--seed", "1", "--learning_rate", "0.003")
    train_toy(folder, toy_policy, one=REWARDS, two=two)
    return folder


@pytest.fixture(scope="module")
def page(home: Path) -> Page:
    return Page(write_report(home / "runs/one").path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def records(home: Path) -> list[Record]:
    return read_jsonl(home / "runs/one/steps.jsonl")


# ---- the same figures, by plain loops -----------------------------------------------------------


def valid(record: Record) -> bool:
    return record["format_failure"] is None


def exact(record: Record) -> float | None:
    equal = normalize(str(record["action"])) == normalize(str(record["expert_step"]))
    return float(equal) if valid(record) else None


def copied(record: Record) -> float | None:
    if not valid(record) or record["previous_step"] is None:
        return None
    return float(normalize(str(record["action"])) == normalize(str(record["previous_step"])))


def named(name: str) -> Callable[[Record], float | None]:
    return lambda record: record["rewards"].get(name) if valid(record) else None  # type: ignore[attr-defined]


VALUES: dict[str, Callable[[Record], float | None]] = {
    "reward": lambda record: record["reward"],  # type: ignore[return-value]
    "similarity": named("similarity"),
    "novelty": named("novelty"),
    "lift": lambda record: record["lift"],  # type: ignore[return-value]
    "exact steps": exact,
    "copies": copied,
    "format failures": lambda record: float(not valid(record)),
    "kept": lambda record: float(bool(record["kept"])),
    "tokens": lambda record: float(record["completion_tokens"]),  # type: ignore[arg-type]
    "group std": lambda record: record["group_std"],  # type: ignore[return-value]
}
SHARES = {"exact steps", "copies", "format failures", "kept"}


def estimate(name: str, records: Iterable[Record]) -> tuple[float, float, float, int] | None:
    """Mean, interval over problems and how many count."""
    by_problem: dict[object, list[float]] = defaultdict(list)
    for record in records:
        value = VALUES[name](record)
        if value is not None:
            by_problem[record["problem_id"]].append(value)
    values = [v for part in by_problem.values() for v in part]
    if not values:
        return None
    n, mean, units = len(values), sum(values) / len(values), len(by_problem)
    if units == 1:
        return mean, math.nan, math.nan, n
    squares = sum(sum(v - mean for v in part) ** 2 for part in by_problem.values())
    half = student_t(units - 1) * math.sqrt(squares * units / (units - 1)) / n
    low, high = mean - half, mean + half
    if name in SHARES:
        bounds = wilson(sum(values), n)
        low, high = max(0.0, min(low, bounds[0])), min(1.0, max(high, bounds[1]))
    return mean, low, high, n


def wilson(hits: float, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def agrees(shown: str, expected: tuple[float, float, float, int] | None) -> bool:
    if expected is None:
        return shown == "–"
    value, low, high = with_interval(shown)
    if math.isnan(expected[1]):
        return same(value, expected[0]) and not low
    return same(value, expected[0]) and same(low, expected[1]) and same(high, expected[2])


def in_training(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["phase"] == "train"]


CURVES = {
    "Reward": "reward",
    "Similarity": "similarity",
    "Novelty": "novelty",
    "Lift over copying": "lift",
    "Exact steps": "exact steps",
    "Copies": "copies",
    "Format failures": "format failures",
    "Spread within groups": "group std",
    "Length of completions": "tokens",
}


@pytest.mark.parametrize("title", CURVES)
def test_curves(page: Page, records: list[Record], title: str) -> None:
    table = page.table(title)
    train = in_training(records)
    assert table.column("training step") == ["step 1", "step 2", "step 3", "step 4"]
    for step, row in enumerate(table.rows, start=1):
        expected = estimate(CURVES[title], (r for r in train if r["train_step"] == step))
        unit = " %" if CURVES[title] in SHARES else ""
        between = dict(zip(table.head, row, strict=True)).get("95 % interval", "")
        assert agrees(f"{row[1]} {between}".strip(), expected), (row, expected)
        assert row[1].endswith(unit)
        if expected is not None:
            assert row[-1] == f"{expected[3]:,}"


@pytest.mark.parametrize(
    ("title", "column"),
    [
        ("By step index", "step_index"),
        ("By expert's steps", "num_steps"),
        ("By source", "source"),
        ("By problem", "problem_id"),
    ],
)
def test_tables(page: Page, records: list[Record], title: str, column: str) -> None:
    table = page.table(title)
    train = in_training(records)
    sizes = Counter(record[column] for record in train)
    assert len(table.rows) == min(20, len(sizes))
    if column == "problem_id":
        shown = sorted((int(n) for n in table.column("rollouts")), reverse=True)
        assert shown == sorted(sizes.values(), reverse=True)[:20]
        assert table.column("rollouts") == [str(n) for n in shown]
    else:
        assert table.column(table.head[0]) == [str(key) for key in sorted(sizes)]  # type: ignore[type-var]
    for row in table.rows:
        part = [record for record in train if str(record[column]) == row[0]]
        cells = dict(zip(table.head, row, strict=True))
        assert cells["rollouts"] == str(len(part))
        assert cells["groups"] == str(len({(r["train_step"], r["group_id"]) for r in part}))
        assert cells["problems"] == str(len({r["problem_id"] for r in part}))
        for name in VALUES.keys() - {"group std"}:
            assert agrees(cells[name], estimate(name, part)), (name, cells[name])


def test_failures_and_dynamic_sampling(page: Page, records: list[Record]) -> None:
    train = in_training(records)
    failures, sampling = page.table("Format failures by reason"), page.table("Dynamic sampling")
    reasons = Counter(record["format_failure"] for record in train)
    del reasons[None]
    assert set(failures.head[1:-1]) == reasons.keys()
    for step in range(1, 5):
        part = [record for record in train if record["train_step"] == step]
        found = Counter(record["format_failure"] for record in part)
        for name in reasons:
            assert failures.column(str(name))[step - 1] == str(found[name])
        groups = {r["group_id"]: r for r in part}.values()
        assert sampling.column("kept")[step - 1] == str(sum(bool(r["kept"]) for r in groups))
        assert sampling.column("all")[step - 1] == str(len(groups))
        dropped = Counter(r["dropped_because"] for r in groups if not r["kept"])
        for name in sampling.head[2:-1]:
            why = name.removeprefix("dropped: ")
            assert sampling.column(name)[step - 1] == str(dropped[why])


def test_figures_of_the_optimiser(home: Path, page: Page) -> None:
    rows = [row for row in read_jsonl(home / "runs/one/metrics.jsonl") if "reward" in row]
    for title, name in {
        "Loss": "loss",
        "Gradient norm": "grad_norm",
        "Learning rate": "learning_rate",
        "Seconds of sampling": "seconds/collect",
        "Seconds of the update": "seconds/update",
    }.items():
        shown = page.table(title).column("value")
        assert len(shown) == 4
        assert all(same(s, row[name]) for s, row in zip(shown, rows, strict=True))  # type: ignore[arg-type]
    assert "KL" not in page.titles  # zero throughout
    for shown, row in zip(page.table("Tokens a second").column("value"), rows, strict=True):
        took = row["seconds/collect"] + row["seconds/update"]  # type: ignore[operator]
        assert same(shown, row["tokens"] / took)  # type: ignore[operator]


def test_heat_maps(page: Page, records: list[Record]) -> None:
    train = in_training(records)
    for title, name in {
        "Reward by step index": "reward",
        "Exact steps by step index": "exact steps",
    }.items():
        table = page.table(title)
        for step, row in enumerate(table.rows, start=1):
            for column, shown in list(zip(table.head, row, strict=True))[1:]:
                index = int(column.removeprefix("step index "))
                part = [r for r in train if (r["train_step"], r["step_index"]) == (step, index)]
                assert agrees(shown, estimate(name, part))


def test_evaluation(home: Path, page: Page, records: list[Record]) -> None:
    attempts = read_jsonl(home / "runs/one/eval.jsonl")
    rows = {row[0]: row for row in page.table("Held-out problems").rows}
    solved = {}
    for when in ("before", "after"):
        part = {a["problem_id"]: a for a in attempts if a["when"] == when}
        solved[when] = {key: bool(a["correct"]) for key, a in part.items()}
        hits, n = sum(solved[when].values()), len(part)
        assert rows[when][3] == str(n) == "8"
        assert agrees(rows[when][4], (hits / n, *wilson(hits, n), n))
        failures = Counter(a["failure"] for a in part.values() if a["failure"] is not None)
        shown = dict(re.findall(r"(\w+) (\d+)", rows[when][5]))
        assert shown == {name: str(count) for name, count in failures.items()}
    changes = [solved["after"][key] - solved["before"][key] for key in solved["before"]]
    more, less = (changes.count(sign) + 0.5 for sign in (1, -1))  # Agresti and Min's, of 8 + 2
    half = 1.959963984540054 * math.sqrt(more + less - (more - less) ** 2 / 10) / 10
    value, low, high = with_interval(rows["after − before"][4].replace(" points", ""))
    assert same(value, 100 * sum(changes) / 8)
    assert same(low, 100 * ((more - less) / 10 - half))
    assert same(high, 100 * ((more - less) / 10 + half))

    by_length = page.table("Held-out problems solved, by length")
    assert by_length.column("expert steps") == ["3 expert steps"]
    assert same(by_length.column("before")[0], sum(solved["before"].values()) / 8)

    metrics = [r for r in read_jsonl(home / "runs/one/metrics.jsonl") if "eval_accuracy" in r]
    table = page.table("Validation problems solved")
    assert table.column("training step") == [f"step {row['step']}" for row in metrics]
    for shown, row in zip(table.rows, metrics, strict=True):
        n, accuracy = int(row["eval_problems"]), float(row["eval_accuracy"])  # type: ignore[call-overload, arg-type]
        expected = (accuracy, *wilson(accuracy * n, n), n)
        assert n == 4
        assert agrees(f"{shown[1]} {shown[2]}", expected)
        assert shown[3] == "4"
    evaluated = [record for record in records if record["phase"] == "eval"]
    for title in ("reward", "similarity", "exact steps", "format failures"):
        table = page.table(f"Validation steps: {title}")
        for row in table.rows:
            part = [r for r in evaluated if f"step {r['train_step']}" == row[0]]
            expected = estimate(title, part)
            assert agrees(f"{row[1]} {row[2]}", expected)


def test_key_figures(home: Path, page: Page, records: list[Record]) -> None:
    train = in_training(records)
    words = " ".join(page.words.split())
    for name in ("reward", "similarity"):
        first, last = (
            estimate(name, (r for r in train if r["train_step"] == step)) for step in (1, 4)
        )
        assert first is not None
        assert last is not None
        shown = re.search(rf"{name} (\S+) ?\[(\S+), (\S+)\] ?→ ?(\S+) ?\[(\S+), (\S+)\]", words)
        assert shown is not None
        assert all(map(same, shown.groups(), (*first[:3], *last[:3])))
    groups = {(r["train_step"], r["group_id"]): r["kept"] for r in train}
    kept = sum(map(bool, groups.values()))
    assert f"{100 * kept / len(groups):.1f} % {kept} of {len(groups)} tried" in words
    assert f"tokens written {sum(int(r['completion_tokens']) for r in train):,}" in words  # type: ignore[call-overload]
    assert f"{len(records):,} rollouts recorded" in words
    assert "complete training step 4 of 4" in words


def test_steps_of_note(page: Page, records: list[Record]) -> None:
    tried: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in in_training(records):
        tried[record["problem_id"], record["step_index"]].append(record)
    means = {
        key: sum(float(r["reward"]) for r in part) / len(part)  # type: ignore[arg-type]
        for key, part in tried.items()
    }
    worst, best = page.table("Worst"), page.table("Best")
    shown = worst.column("mean reward")
    assert all(map(same, shown, sorted(means.values())[:10]))
    assert all(map(same, best.column("mean reward"), sorted(means.values(), reverse=True)[:10]))
    for row in worst.rows:
        problem, index = re.fullmatch(r"(\w+), (\d+)/3", row[0]).groups()  # type: ignore[union-attr]
        (key,) = [k for k in tried if str(k[0]).startswith(problem) and k[1] == int(index) - 1]
        assert same(row[4], means[key])
        assert row[1] == tried[key][0]["expert_step"]
    links = [a["href"] for tag, a in page.tags if tag == "a" and str(a["href"]).startswith("#r=")]
    lines = {r["line"] for group in page.runs[0]["groups"] for r in group["rollouts"]}
    assert {int(str(link).removeprefix("#r=")) for link in links} <= lines


# ---- the rollouts -------------------------------------------------------------------------------


def test_every_rollout_is_there(home: Path, page: Page, records: list[Record]) -> None:
    (run,) = page.runs
    assert run["whole"] == len(records)
    assert run["rewards"] == ["similarity", "novelty"]
    told = {p["problem"]: p for p in read_jsonl(home / "runs/one/problems.jsonl")}
    seen = []
    for group in run["groups"]:
        first = records[group["rollouts"][0]["line"] - 1]
        for ours, theirs in {
            "phase": "phase",
            "step": "train_step",
            "group": "group_id",
            "source": "source",
            "id": "problem_id",
            "index": "step_index",
            "of": "num_steps",
            "kept": "kept",
            "dropped": "dropped_because",
            "prompt": "prompt_tokens",
        }.items():
            assert group[ours] == first[theirs]
        problem = run["problems"][group["problem"]]
        assert problem["steps"] == told[problem["text"]]["steps"]
        assert problem["steps"][group["index"]] == first["expert_step"]
        for rollout in group["rollouts"]:
            record = records[rollout["line"] - 1]
            seen.append(rollout["line"])
            assert rollout["action"] == normalize(str(record["action"]))
            assert rollout["thought"] == record["thought"]
            assert rollout["failure"] == record["format_failure"]
            assert rollout["tokens"] == record["completion_tokens"]
            for name in ("reward", "lift", "advantage"):
                assert near(rollout[name], record[name])
            for name, value in zip(run["rewards"], rollout["rewards"], strict=True):
                assert near(value, record["rewards"].get(name))  # type: ignore[attr-defined]
            assert rollout["copied"] == bool(copied(record))
            if valid(record):
                check_marks(rollout["marks"], rollout["action"], group["expert"])
                matched = sum(rollout["marks"][2::3])
                whole = len(rollout["action"]) + len(group["expert"])
                assert 2 * matched / whole == pytest.approx(record["rewards"]["similarity"])  # type: ignore[index]
            else:
                assert rollout["marks"] == []
    assert seen == list(range(1, len(records) + 1))


def near(embedded: float | None, logged: object) -> bool:
    """Equal to the six digits that are embedded."""
    return embedded is None if logged is None else embedded == pytest.approx(logged, rel=1e-5)


def check_marks(marks: Sequence[int], action: str, expert: str) -> None:
    """Against difflib; places count UTF-16 units."""
    matcher = difflib.SequenceMatcher(None, action, expert, autojunk=False)
    expected = [
        (action[: b.a], expert[: b.b], action[b.a : b.a + b.size])
        for b in matcher.get_matching_blocks()
        if b.size
    ]
    here, there = (text.encode("utf-16-le", "surrogatepass") for text in (action, expert))
    found = []
    for i, j, size in zip(marks[::3], marks[1::3], marks[2::3], strict=True):
        assert here[2 * i : 2 * (i + size)] == there[2 * j : 2 * (j + size)]
        parts = here[: 2 * i], there[: 2 * j], here[2 * i : 2 * (i + size)]
        found.append(tuple(part.decode("utf-16-le", "surrogatepass") for part in parts))
    assert "".join(f[2] for f in found) == "".join(e[2] for e in expected)
    assert {f[0] for f in found} <= {e[0] for e in expected}


def test_marks_count_as_javascript_does(tmp_path: Path) -> None:
    record = replace(RECORD, action="𝔸 so 😀 = 2\r\n", expert_step="so 😀😀 = 2 𝔸")
    run = write_run(tmp_path / "run", [record])
    page = Page(write_report(run).path.read_text(encoding="utf-8"))
    (group,) = page.runs[0]["groups"]
    (rollout,) = group["rollouts"]
    assert rollout["action"] == "𝔸 so 😀 = 2"
    check_marks(rollout["marks"], rollout["action"], group["expert"])
    assert rollout["marks"] == [3, 0, 3, 6, 5, 6]


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


# ---- two runs -----------------------------------------------------------------------------------


def test_two_runs(home: Path) -> None:
    report = write_report(home / "runs/one", home / "runs/two")
    assert report.path == home / "runs/one/report-two.html"
    page = Page(report.path.read_text(encoding="utf-8"))
    assert [run["name"] for run in page.runs] == ["one", "two"]
    reward = page.table("Reward")
    assert reward.head[1::3] == ["one", "two"]
    logs = [in_training(read_jsonl(home / f"runs/{name}/steps.jsonl")) for name in ("one", "two")]
    for step, row in enumerate(reward.rows, start=1):
        for k, log in enumerate(logs):
            expected = estimate("reward", (r for r in log if r["train_step"] == step))
            cells = row[1 + 3 * k : 4 + 3 * k]
            assert cells == ["", "", ""] if expected is None else same(cells[0], expected[0])
    novelty = page.table("Novelty")
    assert novelty.head == ["training step", "one", "95 % interval", "n"]
    table = page.table("By step index")
    assert table.head[:2] == ["step index", "run"]
    assert [row[:2] for row in table.rows[:2]] == [["0", "one"], ["0", "two"]]
    assert 'class="line s0"' in page.source
    assert 'class="line s1"' in page.source
    assert "max_steps: 4 -> 6" in page.words
    assert "rewards.novelty: 0.2 -> (not set)" in page.words
    assert any(a.get("href", "").startswith("#r=2:") for t, a in page.tags if t == "a")  # type: ignore[union-attr]


def test_two_runs_of_one_name(home: Path, tmp_path: Path) -> None:
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


# ---- what is nobody else's business -------------------------------------------------------------


def test_neither_places_nor_secrets(tmp_path: Path) -> None:
    folders = []
    for k, name in enumerate(("one", "two")):
        folders.append(write_run(tmp_path / name, made_up(2)))
        settings = {
            "model": f"/home/somebody/{k}/tiny",
            "data": {"path": f"/home/somebody/{k}/data-{k}.jsonl"},
            "rewards": {"/home/somebody/mine.py:own": 1.0},
            "hub_token": "hf_SECRET",
        }
        (folders[-1] / "config.yaml").write_text(json.dumps(settings))
        (folders[-1] / "command.txt").write_text(
            "/home/somebody/bin/python -m srl train --config /home/somebody/a.yaml "
            "--hub_token 'hf_SECRET'\n"
        )
    page = Page(write_report(*folders).path.read_text(encoding="utf-8"))
    assert "python -m srl train --config a.yaml --hub_token ..." in page.words
    assert page.table("Settings").rows == [
        ["model", "tiny", "tiny"],
        ["data.path", "data-0.jsonl", "data-1.jsonl"],
        ["rewards.mine.py:own", "1.0", "1.0"],
        ["hub_token", "...", "..."],
    ]
    assert 'data.path: "data-0.jsonl" -> "data-1.jsonl"' in page.words
    assert "1 more, in the folder of a path alone" in page.words
    for word in ("somebody", "SECRET", str(tmp_path)):
        assert word not in page.source


# ---- half a run ---------------------------------------------------------------------------------


def test_a_log_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made_up(3))
    with (run / "steps.jsonl").open("a") as log:
        log.write('{"schema": 1, "train_st')
    page = Page(write_report(run / "steps.jsonl").path.read_text(encoding="utf-8"))
    assert page.runs[0]["whole"] == 24
    assert page.runs[0]["problems"] == []
    assert "not complete" in page.words
    assert "This run has no config.yaml." in page.words
    assert "No metrics.jsonl in this folder." in page.words
    assert "This run has evaluated nothing yet." in page.words


def test_a_long_run_has_no_more_points(tmp_path: Path) -> None:
    log = made_up(1000, groups=1, size=1)
    metrics = [{"step": k, "reward": 0.5, "loss": float(k)} for k in range(1, 1001)]
    metrics += [{"step": k, "eval_accuracy": k / 1000} for k in range(1, 1001)]
    run = write_run(tmp_path / "run", log, metrics=metrics)
    page = Page(write_report(run).path.read_text())
    reward, loss = page.table("Reward"), page.table("Loss")
    assert len(reward.rows) == 60
    assert reward.rows[0][0] == "steps 1–17"
    assert Counter(reward.column("n")) == {"17": 40, "16": 20}
    assert len(loss.rows) == 120
    assert loss.rows[1] == ["steps 10–17", "13.5"]
    accuracy = page.table("Validation problems solved").rows
    assert len(accuracy) <= 120
    assert accuracy[-1] == ["step 1000", "100.0 %"]
    heat = page.table("Reward by step index")
    assert len(heat.rows) == 40


def test_many_step_indices_and_sources(tmp_path: Path) -> None:
    log = made_up(1, groups=150, size=1)
    log = [replace(r, step_index=k, num_steps=200, source=f"s{k}") for k, r in enumerate(log)]
    page = Page(write_report(write_run(tmp_path / "run", log)).path.read_text())
    assert len(page.table("By step index (the 100 with most rollouts)").rows) == 100
    assert len(page.table("By source (the 100 with most rollouts)").rows) == 100
    assert "110 more rows are not drawn" in page.words
    assert len(page.table("By problem (the 20 with most rollouts)").rows) == 20
    assert len(page.table("Reward by source").head) == 1 + 2 * 6


def test_only_a_validation(tmp_path: Path) -> None:
    evaluated = made_up(1, size=1, phase="eval", kept=False, group_mean=None, group_std=None)
    page = Page(write_report(write_run(tmp_path / "run", evaluated)).path.read_text())
    assert "No rollouts of training in this log." in page.words
    assert page.table("Validation steps: reward").column("value") == ["0.750"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_that_are_missing_or_huge(tmp_path: Path) -> None:
    strange = [
        *made_up(3, reward=None, rewards={"similarity": None}, lift=None, group_std=None),
        *made_up(2, start=4, reward=1e300, rewards={"similarity": -1e300}),
        *made_up(2, start=6, reward=-1.7e308, rewards={"similarity": 5e-324}),
    ]
    page = Page(write_report(write_run(tmp_path / "run", strange)).path.read_text())
    assert "Reward" in page.titles
    assert "nan" not in page.source.lower().replace("nanum", "")
    assert "inf]" not in page.source


def test_steps_that_improve(tmp_path: Path) -> None:
    """Two expert steps, tried at step 1 and at step 5; one gets better."""
    log = [
        replace(RECORD, train_step=step, problem_id=problem, reward=reward)
        for step, problem, reward in (
            (1, "aa", 0.25), (1, "bb", 0.5), (5, "aa", 0.875), (5, "bb", 0.375),
        )
    ]  # fmt: skip
    page = Page(write_report(write_run(tmp_path / "run", log)).path.read_text())
    (row,) = page.table("Most improved").rows
    assert row[0] == "aa, 2/4"
    assert row[3:] == ["2", "0.562", "0.250 → 0.875", "1 → 5"]
    assert [g["change"] for g in page.runs[0]["groups"]] == [0.625, -0.125, 0.625, -0.125]


def test_many_rewards_are_all_drawn(tmp_path: Path) -> None:
    names = [f"r{k}" for k in range(9)]
    log = made_up(3, rewards={name: k / 8 for k, name in enumerate(names)})
    page = Page(write_report(write_run(tmp_path / "run", log)).path.read_text())
    parts = [page.table(f"Reward components, {k} of 2") for k in (1, 2)]
    assert [name for part in parts for name in part.head[1::2]] == names
    assert [part.rows[0][1] for part in parts] == ["0.000", "0.500"]


def test_seconds_are_those_of_one_step(tmp_path: Path) -> None:
    rows = [
        {"step": step, "reward": 0.5, "loss": 0.0, "seconds/collect": 30.0, "seconds/update": 5.0}
        for step in (10, 20)
    ]
    page = Page(
        write_report(write_run(tmp_path / "run", made_up(20), metrics=rows)).path.read_text()
    )
    assert page.table("Seconds of sampling").column("value") == ["3.000", "3.000"]
    assert page.table("Seconds of the update").column("value") == ["0.500", "0.500"]


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
    log = [*made_up(3, source="books", reward=0.5), *made_up(3, source="<web>", reward=1.0)]
    log = [replace(r, group_id=r.group_id + 4 * (r.source == "<web>")) for r in log]
    page = Page(write_report(write_run(tmp_path / "run", log)).path.read_text())
    table = page.table("Reward by source")
    assert table.column("<web>") == ["1.000"] * 3
    assert table.column("books") == ["0.500"] * 3


# ---- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 7, 60, 200, 10_000])
def test_at_most_so_many_rollouts(tmp_path: Path, most: int) -> None:
    run = write_run(tmp_path / "run", made_up(40, size=3))
    page = Page(write_report(run, rollouts=most).path.read_text())
    groups = page.runs[0]["groups"]
    rollouts = sum(len(group["rollouts"]) for group in groups)
    assert all(len(group["rollouts"]) == 3 for group in groups)
    assert rollouts == max(3, min(480, most - most % 3))
    if rollouts == 480:
        assert "All 480 rollouts of the log are here" in page.words
    else:
        assert f"{rollouts} of 480 rollouts are here" in page.words
    if most == 200:  # beside ten best and ten worst, which are the first here
        per_ten = Counter((group["step"] - 1) // 10 for group in groups)
        assert min(per_ten.values()) >= 8


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
    small = write_run(tmp_path / "small", made_up(5))
    large = write_run(tmp_path / "large", made_up(50))
    for pair in ((small, large), (large, small)):
        page = Page(write_report(*pair, rollouts=200).path.read_text())
        sizes = {run["name"]: sum(len(g["rollouts"]) for g in run["groups"]) for run in page.runs}
        assert sizes == {"small": 40, "large": 160}


def test_every_beginning_is_spread_evenly() -> None:
    for count in (1, 2, 3, 7, 64, 100):
        order = list(evenly(count))
        assert sorted(order) == list(range(count))
        for length in (k for k in (4, 8, 16, 32) if k <= count):
            halves = Counter(2 * place // count for place in order[:length])
            assert abs(halves[0] - halves[1]) <= length // 4 + 1


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
    assert max(group["rollouts"][0]["marks"], default=0) <= 200_000


# ---- hostile text -------------------------------------------------------------------------------


@pytest.fixture
def evil_run(tmp_path: Path) -> Path:
    return write_evil(tmp_path)


def elements(page: Page) -> Counter[str]:
    return Counter(tag for tag, _ in page.tags)


def test_hostile_text_makes_no_elements(evil_run: Path) -> None:
    page = Page(write_report(evil_run).path.read_text(encoding="utf-8"))
    found = elements(page)
    assert found["script"] == 2
    assert found["style"] == 1
    assert not {"img", "iframe", "object", "embed", "link", "base"} & found.keys()
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "style" not in attributes
        for name in ("href", "src", "action", "formaction"):
            assert str(attributes.get(name, "#")).startswith("#")
    # All of it is there, as text.
    for evil in EVIL[:4]:
        assert evil in page.words
    for hidden in ("\u202e", "\u2066", "\u200b", "\ufeff", "\0", "\x1b", "\x07"):
        assert hidden not in page.source
    assert "\\u{202e}evil\\u{2066}\\u{200b}\\u{feff}" in page.words
    assert "nul\\u{0} esc\\u{1b}[31m bell\\u{7} \\u{d83d} alone" in page.words
    (run,) = page.runs
    assert {group["rollouts"][0]["action"] for group in run["groups"]} == {
        normalize(f"{evil} action") for evil in EVIL
    }


def test_the_policy_of_the_page(page: Page) -> None:
    source = page.source
    head = source.index("<head>") + len("<head>")
    assert source[head:].lstrip().startswith('<meta http-equiv="Content-Security-Policy"')
    (policy,) = [a["content"] for _, a in page.tags if "http-equiv" in a]
    style = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    script = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    assert (len(style), len(script)) == (1, 1)
    hashes = [hashlib.sha256(part.encode()).digest() for part in (*script, *style)]
    digests = [b64encode(digest).decode() for digest in hashes]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digests[0]}'; style-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "http:" not in source.replace("http://www.w3.org", "")
    assert "https:" not in source
    for method in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert method not in script[0]


# ---- the command --------------------------------------------------------------------------------


def test_the_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(home):
        assert main(["report", "one"]) == 0
        assert re.fullmatch(r"runs/one/report.html  \d+ kB\n", capsys.readouterr().out)
        assert main(["report", "one", "two", "--output", "both.html", "--rollouts", "30"]) == 0
        assert capsys.readouterr().out.startswith("both.html  ")
        first = (home / "both.html").read_bytes()
        assert MARKER.encode() in first[:256]
        assert main(["report", "one", "two", "--output", "both.html", "--rollouts", "30"]) == 0
        assert (home / "both.html").read_bytes() == first  # ours is replaced, and is the same again
    assert not list(home.rglob(".report*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "runs/gone is not a run folder: no such folder. Runs in runs: one, two"),
        (["one", "gone"], "runs/gone is not a run folder"),
        (["one", "runs/one/"], "is the run itself: name another run"),
        (["one", "--rollouts", "0"], "--rollouts 0: at least 1"),
        (["one", "--output", "no/such/a.html"], "there is no folder no/such; make it first"),
        (["one", "--output", "runs"], "--output runs is a folder; name a file, such as runs/"),
        (["one", "--output", "a" * 300], "a: File name too long"),
        (["one", "--output", "data.jsonl"], "data.jsonl exists and is no report: it is left"),
        (["one", "--colour", "red"], "unknown words: --colour red"),
        (["bare"], "runs/bare/steps.jsonl does not exist: this run has recorded no rollouts yet"),
        (["empty"], "runs/empty/steps.jsonl is empty"),
        (["half"], "holds no whole record"),
        (["broken"], "runs/broken/steps.jsonl, line 1: not JSON"),
    ],
)
def test_wrong_use(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    logs = {"bare": None, "empty": "", "half": '{"schema"', "broken": "none\n"}
    with inside(home):
        data = Path("data.jsonl").read_bytes()
        for name, log in logs.items():
            if name in words:
                Path("runs", name).mkdir(exist_ok=True)
                Path("runs", name, "config.yaml").write_text("a: 1\n")
                if log is not None:
                    Path("runs", name, "steps.jsonl").write_text(log)
        capsys.readouterr()
        assert main(["report", *words]) == 2
        for name in logs:
            for path in Path("runs").glob(f"{name}/*"):
                path.unlink()
            if Path("runs", name).is_dir():
                Path("runs", name).rmdir()
        assert Path("data.jsonl").read_bytes() == data
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("srl: ") == 1
    assert re.search(re.escape(message), " ".join(shown.err.split())), shown.err


def test_a_log_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "steps.jsonl").write_text(json.dumps({"schema": 1, "\x1b]0;pwned\x07": 1}) + "\n")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert r"\u{1b}]0;pwned\u{7}" in said
    assert said.replace("\n", "").isprintable()


def test_the_help_knows_how_many_rollouts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert f"(default {ROLLOUTS})" in " ".join(capsys.readouterr().out.split())


def test_a_report_that_cannot_be_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match="no permission to write"):
        write_report(home / "runs/one", output=tmp_path / "a.html")
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UsageError, match="cannot write .*a.html: No space left on device"):
        write_report(home / "runs/one", output=tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []
