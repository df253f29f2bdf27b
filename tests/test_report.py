"""The report of real runs: its numbers against plain loops over the logs, and every rollout."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import read_jsonl
from report_pages import (
    RECORD,
    Page,
    same,
    train_toy,
    with_interval,
    write_run,
)

from rewards.similarity import normalize
from srl.logs.report.report import write_report
from srl.stats import student_t

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
    "lift": lambda record: record["metrics"]["lift"],  # type: ignore[return-value]
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
    assert set(failures.head[1:]) == reasons.keys()
    for step in range(1, 5):
        part = [record for record in train if record["train_step"] == step]
        found = Counter(record["format_failure"] for record in part)
        for name in reasons:
            assert failures.column(str(name))[step - 1] == str(found[name])
        groups = {r["group_id"]: r for r in part}.values()
        assert sampling.column("kept")[step - 1] == str(sum(bool(r["kept"]) for r in groups))
        assert sampling.column("tried")[step - 1] == str(len(groups))
        dropped = Counter(r["dropped_because"] for r in groups if not r["kept"])
        for name in sampling.head[3:]:
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


def test_curves_by_step_index(page: Page, records: list[Record]) -> None:
    train = in_training(records)
    for title, name in {
        "Reward by step index": "reward",
        "Exact steps by step index": "exact steps",
    }.items():
        table = page.table(title)
        for step, row in enumerate(table.rows, start=1):
            cells = dict(zip(table.head, row, strict=True))
            for index in range(3):
                part = [r for r in train if (r["train_step"], r["step_index"]) == (step, index)]
                expected = estimate(name, part)
                assert same(cells[str(index)] or "–", expected and expected[0])


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
            for name in ("reward", "advantage"):
                assert near(rollout[name], record[name])
            for name, value in zip(run["metrics"], rollout["metrics"], strict=True):
                assert near(value, record["metrics"].get(name))  # type: ignore[attr-defined]
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
