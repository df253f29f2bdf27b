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
from report_pages import RECORD, Page, same, train_toy, with_interval, write_run

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
    # Of the toy's groups of four some have so small a spread.
    dropping = (*REWARDS, "--dynamic_sampling_epsilon", "0.3")
    train_toy(folder, toy_policy, one=dropping, two=two)
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
    "lift": lambda record: record["metrics"]["lift"],  # type: ignore[index]
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


@pytest.mark.parametrize("name", VALUES)
def test_curves(page: Page, records: list[Record], name: str) -> None:
    table = page.table(name)
    train = in_training(records)
    assert table.column("training step") == ["step 1", "step 2", "step 3", "step 4"]
    for step, (_, shown) in enumerate(table.rows, start=1):
        expected = estimate(name, (r for r in train if r["train_step"] == step))
        assert expected is not None
        assert agrees(shown, expected), (shown, expected)
        assert shown.endswith(f", n = {expected[3]:,}")
        assert ("%" in shown) == (name in SHARES)


@pytest.mark.parametrize(
    ("title", "column"),
    [
        ("by step index", "step_index"),
        ("by expert's steps", "num_steps"),
        ("by source", "source"),
        ("by problem", "problem_id"),
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


def test_why_rollouts_failed_and_were_dropped(page: Page, records: list[Record]) -> None:
    train = in_training(records)
    for title, field in (("Format failures", "format_failure"), ("Dropped", "dropped_because")):
        names = {str(record[field]) for record in train if record[field] is not None}
        assert (f"{title} by reason" in page.titles) == bool(names)
        for name in names:
            table = page.table(f"{title} by reason")
            found = Counter(record["train_step"] for record in train if record[field] == name)
            shown = dict(zip(table.column("training step"), table.column(name), strict=True))
            assert all(same(shown[f"step {step}"], found[step]) for step in range(1, 5))


def test_figures_of_the_optimiser(home: Path, page: Page) -> None:
    """By their names: figures of metrics.jsonl that no rollout has, unless they are always zero."""
    rows = [row for row in read_jsonl(home / "runs/one/metrics.jsonl") if "reward" in row]
    for name in ("loss", "grad_norm", "learning_rate", "seconds/collect", "groups_tried"):
        shown = page.table(name).column("one")
        assert len(shown) == 4
        assert all(same(s, row[name]) for s, row in zip(shown, rows, strict=True))  # type: ignore[arg-type]
    assert not {"kl", "rewards/similarity", "completion_tokens"} & set(page.titles)


def test_heat_maps(page: Page, records: list[Record]) -> None:
    train = in_training(records)
    for name in ("reward", "exact steps"):
        table = page.table(f"{name} by step index")
        assert [row[0] for row in table.rows] == [f"step index {k}" for k in range(len(table.rows))]
        for index, row in enumerate(table.rows):
            for column, shown in zip(table.head[1:], row[1:], strict=True):
                where = (int(column.removeprefix("step ")), index)
                part = [r for r in train if (r["train_step"], r["step_index"]) == where]
                expected = estimate(name, part)
                assert same(shown, expected and expected[0])


def test_evaluation(home: Path, page: Page, records: list[Record]) -> None:
    attempts = read_jsonl(home / "runs/one/eval.jsonl")
    rows = {row[0]: row for row in page.table("held-out problems").rows}
    solved = {}
    for when in ("before", "after"):
        part = {a["problem_id"]: a for a in attempts if a["when"] == when}
        solved[when] = {key: bool(a["correct"]) for key, a in part.items()}
        hits, n = sum(solved[when].values()), len(part)
        row = rows[f"{when}, step by step, greedy"]
        assert row[1] == str(n) == "8"
        assert agrees(row[2], (hits / n, *wilson(hits, n), n))
        failures = Counter(a["failure"] for a in part.values() if a["failure"] is not None)
        shown = dict(re.findall(r"(\w+) (\d+)", row[3]))
        assert shown == {name: str(count) for name, count in failures.items()}
    changes = [solved["after"][key] - solved["before"][key] for key in solved["before"]]
    more, less = (changes.count(sign) + 0.5 for sign in (1, -1))  # Agresti and Min's, of 8 + 2
    half = 1.959963984540054 * math.sqrt(more + less - (more - less) ** 2 / 10) / 10
    value, low, high = with_interval(rows["after − before"][2].replace(" points", ""))
    assert same(value, 100 * sum(changes) / 8)
    assert same(low, 100 * ((more - less) / 10 - half))
    assert same(high, 100 * ((more - less) / 10 + half))

    by_length = page.table("solved by number of expert's steps")
    assert by_length.column("steps") == ["3"]
    shown = with_interval(by_length.column("before")[0])[0]
    assert same(shown, sum(solved["before"].values()) / 8)

    metrics = [r for r in read_jsonl(home / "runs/one/metrics.jsonl") if "eval_accuracy" in r]
    table = page.table("validation problems solved")
    assert table.column("training step") == [f"step {row['step']}" for row in metrics]
    for (_, shown), row in zip(table.rows, metrics, strict=True):
        n, accuracy = int(row["eval_problems"]), float(row["eval_accuracy"])  # type: ignore[call-overload, arg-type]
        assert agrees(shown, (accuracy, *wilson(accuracy * n, n), n))
        assert shown.endswith(", n = 4")
    evaluated = [record for record in records if record["phase"] == "eval"]
    for name in ("reward", "similarity", "novelty", "exact steps", "format failures"):
        for when, shown in page.table(f"validation steps: {name}").rows:
            part = [r for r in evaluated if f"step {r['train_step']}" == when]
            assert agrees(shown, estimate(name, part))


def test_key_figures(page: Page, records: list[Record]) -> None:
    train = in_training(records)
    rows = {row[0]: row[1:] for row in page.table("one").rows}
    for name in VALUES:
        ends = (estimate(name, (r for r in train if r["train_step"] == step)) for step in (1, 4))
        assert all(map(agrees, rows[name], ends))
        assert rows[name][2] == "step 1 → step 4"
    assert "points" in rows["held-out problems solved"][2]
    groups = {(r["train_step"], r["group_id"]): r["kept"] for r in train}
    kept = sum(map(bool, groups.values()))
    shown = [f"{100 * kept / len(groups):.1f} %", f"{kept} of {len(groups)} tried"]
    assert rows["groups kept"][1:] == shown
    written = sum(int(r["completion_tokens"]) for r in train)  # type: ignore[call-overload]
    assert rows["tokens written"][1] == f"{written:,}"
    assert f"{len(records):,} rollouts recorded" in page.words
    assert "complete · training step 4 of 4" in page.words


def test_steps_of_note(page: Page, records: list[Record]) -> None:
    tried: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in in_training(records):
        tried[record["problem_id"], record["step_index"]].append(record)
    means = {
        key: sum(float(r["reward"]) for r in part) / len(part)  # type: ignore[arg-type]
        for key, part in tried.items()
    }
    worst, best = page.table("worst"), page.table("best")
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
            assert near(rollout["reward"], record["reward"])
            figures = dict(rollout["figures"])
            assert rollout["tokens"] == record["completion_tokens"]
            logged = record["rewards"] | record["metrics"] | {"advantage": record["advantage"]}  # type: ignore[operator]
            assert figures.keys() == logged.keys()
            assert all(near(figures[name], value) for name, value in logged.items())
            if valid(record):
                check_marks(rollout["marks"], rollout["action"], group["expert"])
                matched = sum(length for _, _, length in rollout["marks"])
                whole = len(rollout["action"]) + len(group["expert"])
                assert 2 * matched / whole == pytest.approx(record["rewards"]["similarity"])  # type: ignore[index]
            else:
                assert rollout["marks"] == []
    assert seen == list(range(1, len(records) + 1))


def near(embedded: float | None, logged: object) -> bool:
    """Equal to the six digits that are embedded."""
    return embedded is None if logged is None else embedded == pytest.approx(logged, rel=1e-5)


def check_marks(marks: Sequence[Sequence[int]], action: str, expert: str) -> None:
    """Against difflib; places count characters, also of those beyond the first 65,536."""
    blocks = difflib.SequenceMatcher(None, action, expert, autojunk=False).get_matching_blocks()
    for i, j, size in marks:
        assert action[i : i + size] == expert[j : j + size]
    assert "".join(action[i : i + size] for i, _, size in marks) == "".join(
        action[block.a : block.a + block.size] for block in blocks
    )


def test_whatever_a_record_has_is_shown_by_its_name(tmp_path: Path) -> None:
    metrics = {"gap": 0.5, "similarity": 0.25}  # the name of a reward too
    record = replace(RECORD, metrics=metrics, tags={"skill": "sums"}, observation="It is 3.")
    page = Page(write_report(write_run(tmp_path / "run", [record])).path.read_text("utf-8"))
    (group,) = page.runs[0]["groups"]
    (rollout,) = group["rollouts"]
    figures = {"similarity": 0.75, "gap": 0.5, "metrics/similarity": 0.25, "advantage": 1.0}
    assert dict(rollout["figures"]) == figures
    assert group["tags"] == [["skill", "sums"]]
    assert rollout["observation"] == "It is 3."
    assert page.table("gap").rows == [["step 1", "0.500, n = 1"]]
    assert "gap" in page.table("by step index").head


# ---- two runs -----------------------------------------------------------------------------------


def test_two_runs(home: Path) -> None:
    report = write_report(home / "runs/one", home / "runs/two")
    assert report.path == home / "runs/one/report-two.html"
    page = Page(report.path.read_text(encoding="utf-8"))
    assert [run["name"] for run in page.runs] == ["one", "two"]
    reward = page.table("reward")
    assert reward.head == ["training step", "one", "two"]
    logs = [in_training(read_jsonl(home / f"runs/{name}/steps.jsonl")) for name in ("one", "two")]
    for step, row in enumerate(reward.rows, start=1):
        for shown, log in zip(row[1:], logs, strict=True):
            expected = estimate("reward", (r for r in log if r["train_step"] == step))
            assert shown == "" if expected is None else agrees(shown, expected)
    assert page.table("novelty").head == ["training step", "one"]
    rows = page.table("by step index").rows
    assert [row[0] for row in rows[:2]] == ["0 (one)", "0 (two)"]
    differ = {row[0]: row[1:] for row in page.table("settings that differ").rows}
    assert differ["max_steps"] == ["4", "6"]
    assert differ["rewards.novelty"] == ["0.2", "–"]
    assert "rewards.similarity" not in differ
    assert any(a.get("href", "").startswith("#r=2:") for t, a in page.tags if t == "a")  # type: ignore[union-attr]
