"""Every number that `srl inspect` shows or tells, once more in plain Python from steps.jsonl."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from conftest import read_jsonl
from inspecting import FILTERS, Row, shown, write_run
from step_logs import RECORD, write_log

from rewards.similarity import normalize
from srl.commands.cli import main
from srl.errors import UsageError
from srl.stats import student_t, wilson


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def value(row: Row, name: str) -> float | None:
    """What a record says about a metric."""
    valid = row["format_failure"] is None
    train = row["phase"] == "train"
    action = normalize(str(row["action"]))
    before = row["previous_step"]
    found = {
        "reward": row["reward"],
        "lift": row["metrics"]["lift"] if valid else None,
        "exact": action == normalize(str(row["expert_step"])) if valid else None,
        "copied": action == normalize(str(before)) if valid and before is not None else None,
        "format_failures": not valid,
        "kept": row["kept"] if train else None,
        "completion_tokens": row["completion_tokens"],
        "group_std": row["group_std"],
    }
    rewards = row["rewards"]
    assert isinstance(rewards, dict)
    for reward, score in rewards.items():
        found[f"rewards/{reward}"] = score if valid else None
    one = found[name]
    return None if one is None else float(one)  # type: ignore[arg-type]


SHARES = ("exact", "copied", "format_failures", "kept")
LABELS = {
    "reward": "reward",
    "rewards/similarity": "similarity",
    "rewards/equation": "equation",
    "lift": "lift",
    "exact": "exact steps",
    "copied": "copies",
    "format_failures": "format failures",
    "completion_tokens": "tokens",
    "group_std": "group std",
}


def mean_of(rows: Sequence[Row], name: str) -> tuple[float, float, float, int] | None:
    """Mean, interval over problems, how many."""
    parts: dict[object, list[float]] = defaultdict(list)
    for row in rows:
        if (one := value(row, name)) is not None:
            parts[row["problem_id"]].append(one)
    values = [one for part in parts.values() for one in part]
    if not values:
        return None
    mean, n, m = fmean(values), len(values), len(parts)
    half = math.nan
    if m > 1:
        squares = sum((sum(part) - mean * len(part)) ** 2 for part in parts.values())
        half = student_t(m - 1) * math.sqrt(m / (m - 1) * squares) / n
    low, high = mean - half, mean + half
    if name in SHARES:
        apart = wilson(round(sum(values)), n)
        low = max(0.0, apart.low if math.isnan(low) else min(low, apart.low))
        high = min(1.0, apart.high if math.isnan(high) else max(high, apart.high))
    return mean, low, high, n


def written(name: str, number: float | None) -> str:
    """A figure as the terminal has it."""
    if number is None or math.isnan(number):
        return "-"
    if name in SHARES:
        return f"{100 * number:.1f}%"
    return f"{number:,.1f}" if name == "completion_tokens" else f"{number:.3f}"


def first(rows: Sequence[Row], name: str) -> float | None:
    found = mean_of(rows, name)
    return None if found is None else found[0]


def blocks(values: Sequence[float | None]) -> str:
    known = [one for one in values if one is not None]
    low, high = min(known), max(known)
    signs = "▁▂▃▄▅▆▇█"
    return "".join(
        " " if one is None else signs[min(7, int((one - low) / (high - low) * 8 + 1e-9))]
        for one in values
    )


def steps_of(rows: Sequence[Row]) -> list[int]:
    return [int(str(row["train_step"])) for row in rows]


def fifths(rows: Sequence[Row]) -> tuple[int, int, int, int]:
    """(first step, last step of the first fifth, first step of the last fifth, last step)."""
    begin, end = min(steps_of(rows)), max(steps_of(rows))
    width = -(-(end - begin + 1) // 5)
    return begin, begin + width - 1, end - (end - begin) % width, end


def ends(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The first and the last fifth of training."""
    _, one, two, _ = fifths(rows)
    early = [row for row, step in zip(rows, steps_of(rows), strict=True) if step <= one]
    late = [row for row, step in zip(rows, steps_of(rows), strict=True) if step >= two]
    return early, late


def line_of(text: str, label: str) -> str:
    """The one line that starts so, without its label."""
    found = [line for line in text.splitlines() if re.match(rf"{re.escape(label)}(  |$)", line)]
    assert len(found) == 1, (label, found, text)
    return " ".join(found[0][len(label) :].split())


@pytest.mark.parametrize(("words", "passes"), FILTERS)
def test_every_figure_of_the_overview(
    run: Path, words: list[str], passes: Callable[[Row], bool]
) -> None:
    everything = read_jsonl(run / "steps.jsonl")
    rows = [row for row in everything if passes(row)]
    text = shown(run, "--figures", *words)
    groups = {(r["phase"], r["train_step"], r["group_id"]) for r in rows}
    tokens = sum(int(str(row["completion_tokens"])) for row in rows)
    begin, one, two, end = fifths(rows)
    said = re.fullmatch(r"(.*) \((.*)\): (.*)", line_of(text, "records"))
    assert said is not None
    assert said[1] == f"{len(rows):,} of {len(everything):,}"
    assert set(said[2].split()) == {*words, "--phase", words[1] if "--phase" in words else "train"}
    assert said[3] == (
        f"{len({r['problem_id'] for r in rows})} problems, {len(groups)} groups, "
        f"training steps {begin} to {end}, {tokens:,} tokens"
    )
    assert f"steps {begin} to {one}, {two} to {end}" in text

    early, late = ends(rows)
    by_step = [[r for r in rows if r["train_step"] == step] for step in range(begin, end + 1)]
    by_step = [part for part in by_step if part]
    for name, label in LABELS.items():
        mean = mean_of(rows, name)
        assert mean is not None
        trend = blocks([first(part, name) for part in by_step])
        expected = (
            f"{written(name, mean[0])} [{written(name, mean[1])}, {written(name, mean[2])}] "
            f"{trend} {written(name, first(early, name))} → {written(name, first(late, name))}"
        )
        assert line_of(text, label) == " ".join(expected.split())

    train = [row for row in rows if row["phase"] == "train"]
    one_each = list({(r["train_step"], r["group_id"]): r for r in reversed(train)}.values())
    kept = sum(bool(row["kept"]) for row in one_each)
    dropped = Counter(row["dropped_because"] for row in one_each if row["dropped_because"])
    said = line_of(text, "groups")
    assert said.startswith(f"{kept} kept of {len(one_each)} tried")
    for why, count in dropped.items():
        assert f"{why} {count}" in said
    assert line_of(text, "groups kept").startswith(f"{100 * kept / len(one_each):.1f}% ")
    reasons = Counter(row["format_failure"] for row in rows if row["format_failure"])
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], str(item[0])))
    assert line_of(text, "failures") == ", ".join(f"{why} {n}" for why, n in ordered)

    for column in ("step_index", "source"):
        if len({row[column] for row in rows}) == 1:
            assert not re.search(rf"^{column} +records", text, re.MULTILINE)
            continue
        assert re.search(rf"^{column} +records ", text, re.MULTILINE)
        for key in {row[column] for row in rows}:
            part = [row for row in rows if row[column] == key]
            expected = " +".join(map(re.escape, [str(key), f"{len(part):,}"]))
            mean = re.escape(written("reward", first(part, "reward")))
            assert re.search(rf"^{expected} .*{mean}", text, re.MULTILINE), (key, text)


def test_best_worst_and_most_improved_steps(run: Path) -> None:
    rows = read_jsonl(run / "steps.jsonl")
    steps: dict[object, list[tuple[int, Row]]] = defaultdict(list)
    for line, row in enumerate(rows, start=1):
        if row["phase"] == "train":
            steps[row["source"], row["problem_id"], row["step_index"]].append((line, row))
    found = []
    for part in steps.values():
        times = sorted({int(str(row["train_step"])) for _, row in part})
        at = {
            when: [float(str(row["reward"])) for _, row in part if row["train_step"] == when]
            for when in (times[0], times[-1])
        }
        best = max(
            ((line, row) for line, row in part if row["train_step"] == times[-1]),
            key=lambda item: (float(str(item[1]["reward"])), -item[0]),
        )
        mean = fmean(float(str(row["reward"])) for _, row in part)
        change = fmean(at[times[-1]]) - fmean(at[times[0]])
        found.append((mean, change, len(part), best[0], at, times, len(found)))
    text = shown(run, "--figures")
    _, _, tables = text.partition("most improved")
    numbers = [int(one) for one in re.findall(r"#(\d+)", tables)]
    wanted = {
        "improved": sorted(
            (one for one in found if one[1] > 0), key=lambda one: (-one[1], -one[2], one[6])
        ),
        "worst": sorted(found, key=lambda one: (one[0], -one[2], one[6])),
        "best": sorted(found, key=lambda one: (-one[0], -one[2], one[6])),
    }
    assert numbers == [one[3] for part in wanted.values() for one in part[:5]]
    mean, _, tries, line, at, times, _ = wanted["improved"][0]
    place = int(str(rows[line - 1]["step_index"])) + 1
    row = rf"most improved +#{line} +{place}/4 +{tries} +{mean:.3f} +"
    row += rf"{fmean(at[times[0]]):.3f} → {fmean(at[times[-1]]):.3f} +"
    assert re.search(row + re.escape(str(rows[line - 1]["expert_step"])), text)


def test_what_is_said_of_the_run(run: Path) -> None:
    text = shown(run, "--figures")
    assert line_of(text, "state") == "complete, after training step 15"
    before, after = wilson(3, 10), wilson(6, 10)
    # Three won, none lost; half a problem more of each kind.
    change, half = 3 / 12, 1.959964 * math.sqrt(4 - 9 / 12) / 12
    assert line_of(text, "solved") == (
        f"30.0% [{100 * before.low:.1f}, {100 * before.high:.1f}] before → 60.0% "
        f"[{100 * after.low:.1f}, {100 * after.high:.1f}] after: +30.0 "
        f"[{100 * (change - half):.1f}, {100 * (change + half):.1f}]; "
        "10 problems, step by step, greedy"
    )
    assert re.match(
        r"25.0% \[.*\] at step 7 → 50.0% \[.*\] at step 15$", line_of(text, "validation")
    )
    sampling, updating = sum(0.5 + k for k in range(1, 16)), sum(0.25 * k for k in range(1, 16))
    speed = sum(100 * k for k in range(1, 16)) / (sampling + updating)
    assert line_of(text, "time") == (
        f"2:08 sampling, 0:30 updating, 2:01 validating; {speed:,.0f} tokens/s"
    )


@pytest.mark.parametrize(("words", "passes"), FILTERS)
def test_figures_as_json(
    run: Path,
    words: list[str],
    passes: Callable[[Row], bool],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [row for row in read_jsonl(run / "steps.jsonl") if passes(row)]
    assert main(["inspect", str(run), "--figures", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["complete"]) == (len(rows), True)
    assert found["problems"] == len({row["problem_id"] for row in rows})
    begin, one, two, end = fifths(rows)
    assert found["fifths"] == [[begin, one], [two, end]]
    bins = sorted({(step, step) for step in steps_of(rows)})
    assert found["bins"] == [list(bin_) for bin_ in bins]
    early, late = ends(rows)

    def check(cell: dict[str, float], part: list[Row], name: str) -> None:
        wanted = mean_of(part, name)
        if wanted is None:
            assert cell is None
            return
        for key, number in zip(("value", "low", "high"), wanted, strict=False):
            said = math.nan if cell[key] is None else cell[key]
            assert said == pytest.approx(number, abs=1e-9, nan_ok=True), name
        assert cell["n"] == wanted[3]

    assert set(found["metrics"]) == {*LABELS, "kept"}
    for name, cell in found["metrics"].items():
        check(cell, rows, name)
        check(cell["first_fifth"], early, name)
        check(cell["last_fifth"], late, name)
        for k, (step, _) in enumerate(bins):
            part = [row for row in rows if row["train_step"] == step]
            assert cell["trend"][k] == pytest.approx(first(part, name))
    for row in rows:
        row["steps_left"] = int(str(row["num_steps"])) - int(str(row["step_index"])) - 1
    for column, cells in found["by"].items():
        assert [cell["key"] for cell in cells] == sorted({row[column] for row in rows})  # type: ignore[type-var]
        for cell in cells:
            part = [row for row in rows if row[column] == cell["key"]]
            assert cell["records"] == len(part)
            for name in found["metrics"]:
                check(cell["metrics"][name], part, name)


@pytest.mark.parametrize(
    "column",
    [
        "step_index",
        "steps_left",
        "num_steps",
        "source",
        "problem",
        "train_step",
        "format_failure",
        "phase",
    ],
)
def test_one_table_by_a_column(run: Path, column: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_jsonl(run / "steps.jsonl")
    for row in rows:
        row["steps_left"] = int(str(row["num_steps"])) - int(str(row["step_index"])) - 1
    field = "problem_id" if column == "problem" else column
    text = shown(run, "--by", column, "--phase", "all", width=400)
    title = text.splitlines()[0].split()
    assert title[:4] == [field, "records", "problems", "groups"]
    assert main(["inspect", str(run), "--by", column, "--phase", "all", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    keys = {row[field] for row in rows}
    assert told["values"] == len(keys) == len(told["cells"])
    for cell in told["cells"]:
        part = [row for row in rows if row[field] == cell["key"]]
        assert cell["records"] == len(part)
        groups = {(r["phase"], r["train_step"], r["group_id"]) for r in part}
        assert cell["groups"] == len(groups)
        wanted = []
        for name in ("reward", "rewards/similarity", "rewards/equation", *list(LABELS)[3:]):
            mean = mean_of(part, name)
            estimate = cell["metrics"][name]
            if mean is None:
                assert estimate is None
                continue
            assert estimate["value"] == pytest.approx(mean[0])
            if name == "reward":
                bounds = "" if math.isnan(mean[1]) else f" [{mean[1]:.3f}, {mean[2]:.3f}]"
                wanted.append(f"{mean[0]:.3f}{bounds}")
        key = "none" if cell["key"] is None else str(cell["key"])
        line = " ".join(line_of(text, key).split())
        problems = len({row["problem_id"] for row in part})
        assert line.startswith(f"{len(part)} {problems} {len(groups)} {' '.join(wanted)}"), line
    if column == "problem":  # the hardest first
        means = [cell["metrics"]["reward"]["value"] for cell in told["cells"]]
        assert means == sorted(means)


def test_a_table_is_sorted_and_cut(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in read_jsonl(run / "steps.jsonl") if row["phase"] == "train"]
    for sort, key in (
        ("-reward", lambda part: -(first(part, "reward") or 0)),
        ("similarity", lambda part: first(part, "rewards/similarity")),
        ("records", len),
    ):
        words = ["--by", "train_step", "--sort", sort, "--limit", "4", "--json"]
        assert main(["inspect", str(run), *words]) == 0
        found = json.loads(capsys.readouterr().out)
        parts = [[row for row in rows if row["train_step"] == step] for step in range(1, 16)]
        wanted = [part[0]["train_step"] for part in sorted(parts, key=key)]  # type: ignore[arg-type]
        assert [cell["key"] for cell in found["cells"]] == wanted[:4]
        assert found["values"] == 15
    text = shown(run, "--by", "train_step", "--limit", "4")
    assert "4 of 15 shown; --limit shows more" in text
    with pytest.raises(UsageError, match="--sort nix: a table can be sorted by key, records"):
        shown(run, "--by", "train_step", "--sort", "nix")


def test_only_what_is_shown_of_many_values_is_worked_out(tmp_path: Path) -> None:
    records = [
        replace(RECORD, problem_id=f"{k % 2500:04x}", reward=(k * 37 % 1000) / 1000, group_id=k)
        for k in range(5000)
    ]
    write_log(tmp_path, records)
    means = {k: fmean(((j * 37) % 1000) / 1000 for j in (k, k + 2500)) for k in range(2500)}
    for sort, down in (("reward", False), ("-reward", True)):
        text = shown(tmp_path, "--by", "problem", f"--sort={sort}", "--limit", "3")
        order = sorted(means, key=lambda k: (-means[k] if down else means[k], k))
        assert [line.split()[0] for line in text.splitlines()[1:4]] == [
            f"{k:04x}" for k in order[:3]
        ]
        assert "3 of 2,500 shown" in text


def test_a_table_of_the_overview_has_an_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sources with many records, hundreds with one: those with the most are shown."""
    sources = [*["much"] * 9, *[f"teacher {k:03}" for k in range(300)], *["more"] * 8]
    write_log(tmp_path, [replace(RECORD, source=s, group_id=k) for k, s in enumerate(sources)])
    text = shown(tmp_path, "--figures")
    assert len(text.splitlines()) < 60
    assert re.search(r"^much +9 ", text, re.MULTILINE)
    assert re.search(r"^more +8 ", text, re.MULTILINE)
    assert len(re.findall(r"^teacher \d+ +1 ", text, re.MULTILINE)) == 8
    assert "10 of 302 shown; --by source shows more" in text
    assert main(["inspect", str(tmp_path), "--figures", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["by"]["source"]) == 100
    assert found["values"] == {"source": 302}
