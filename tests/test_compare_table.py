"""What a comparison's table says of its cells, which are made up."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from comparing import (
    MadeUp,
    fixture_file,  # noqa: F401
    fixture_no_fork_is_left,  # noqa: F401
    fixture_quick_looks,  # noqa: F401
    run,
    write,
)
from conftest import read_jsonl

from rewards.pool import cores
from srl.compare.cell_run import groups_of
from srl.compare.table import _held_out_step_rows
from srl.errors import UsageError
from srl.stats import Estimate


def test_groups_are_counted_over_all_steps() -> None:
    """A line of metrics.jsonl has means over the steps since the line before."""
    lines = [
        {"step": 4, "groups_kept": 0.5, "groups_tried": 8.0},
        {"step": 4, "eval_accuracy": 0.5},
        {"step": 5, "groups_kept": 3.0, "groups_tried": 8.0},
        {"step": 5, "train_runtime": 1.0},
    ]
    assert groups_of(lines) == (5.0, 40.0)


@pytest.mark.usefixtures("quick_looks")
def test_a_table_tells_what_its_cells_were_made_with(file: Path) -> None:
    assert run(start=MadeUp())[0] == 0
    path = Path("runs/c/toy.srl.1/environment.json")
    other = json.loads(path.read_text())
    other["packages"]["torch"] = "1.0"
    other["git"] = {"commit": "f" * 40, "dirty": True}
    path.write_text(json.dumps(other))
    assert run(start=MadeUp())[0] == 0
    table = json.loads(Path("runs/c/table.json").read_text())
    assert [made["cells"] for made in table["made_with"] if made["torch"] == "1.0"] == [
        ["toy.srl.1"]
    ]
    text = Path("runs/c/table.md").read_text()
    assert "torch 1.0 (1 cells)" in text
    assert f"commit {'f' * 10} with changes" in text
    assert "so not all cells were made alike" in text
    assert f"threads a cell: {cores()};" in text
    starts = read_jsonl(Path("runs/c/starts.jsonl"))
    starts[-1]["threads"] = 7
    Path("runs/c/starts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in starts))
    assert run(start=MadeUp())[0] == 0
    assert "threads a cell: 7 (1 cells)" in Path("runs/c/table.md").read_text()


@pytest.mark.usefixtures("quick_looks")
def test_only_what_the_run_that_is_there_took_is_counted(file: Path) -> None:
    write(rows={"srl": {}}, contrasts=[], seeds=[0])
    assert run(start=MadeUp())[0] == 0
    path = Path("runs/c/sessions.jsonl")
    [line] = read_jsonl(path)
    earlier = {**line, "started": "2020-01-01T00:00:00+00:00", "seconds": 5000.0}
    path.write_text(json.dumps(earlier) + "\n" + path.read_text())
    for _ in range(2):
        assert run(start=MadeUp())[0] == 0
        cell = json.loads(Path("runs/c/table.json").read_text())["cells"]["toy.srl.0"]
        assert len(cell["commands"]) == 1
        assert cell["seconds"] < 5000
        Path("runs/c/starts.jsonl").unlink(missing_ok=True)  # as an earlier version left it
        # A made-up run takes no time, so it can end before the second that it began with is full.
        path = Path("runs/c/toy.srl.0/environment.json")
        ended = datetime.fromisoformat(line["started"]) + timedelta(seconds=line["seconds"] + 1)
        began = ended.replace(microsecond=0).isoformat()
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": began}))


@pytest.mark.usefixtures("quick_looks")
def test_which_policies_were_tested(file: Path) -> None:
    write(rows={"base": {"train": False}, "srl": {}}, contrasts=[], seeds=[0, 1])
    for best, updates in (
        ((None, None), "4"),
        (("runs/c/x/checkpoint-2", "runs/c/x/checkpoint-4"), "2, 4 of 4"),
    ):
        assert run(start=MadeUp())[0] == 0
        for seed, checkpoint in enumerate(best):
            path = Path(f"runs/c/toy.srl.{seed}/summary.json")
            summary = {**json.loads(path.read_text()), "steps": 4, "best_checkpoint": checkpoint}
            path.write_text(json.dumps(summary))
        assert run(start=MadeUp())[0] == 0
        text = Path("runs/c/table.md").read_text()
        [header, _, base, srl] = text.partition("\n\n## toy")[2].split("\n")[2:6]
        column = header.split("|").index(" updates ")
        assert [row.split("|")[column].strip() for row in (base, srl)] == ["-", updates]


@pytest.mark.usefixtures("quick_looks")
def test_contrasts_of_two_figures(file: Path) -> None:
    write(metric=["steps greedy", "steps avg@2"])
    assert run(start=MadeUp())[0] == 0
    [part] = json.loads(Path("runs/c/table.json").read_text())["difficulties"]
    assert [(c["figure"], c["first"]) for c in part["contrasts"]] == [
        *(("steps greedy", "srl"), ("steps greedy", "two")),
        *(("steps avg@2", "srl"), ("steps avg@2", "two")),
    ]
    text = Path("runs/c/table.md").read_text()
    assert text.index("difference in steps greedy") < text.index("difference in steps avg@2")
    # Both with intervals, and what contrasts are not about without.
    assert re.search(
        r"^\| SRL \| 100.0 \[[^]]+\] \|( 100.0 \|){2} 100.0 \[[^]]+\] \| 100.0 \|",
        text,
        re.MULTILINE,
    )


@pytest.mark.usefixtures("quick_looks")
def test_intervals_over_problems_alone_are_marked(file: Path) -> None:
    rows = yaml.safe_load(file.read_text())["rows"]
    rows["more"] = {"train": False, "temperature": 0.5}
    write(rows=rows, contrasts=[["srl", "base"], ["more", "base"]])
    assert run(start=MadeUp({"toy.srl.1": 3}))[0] == 1
    text = Path("runs/c/table.md").read_text()
    assert re.search(r"\| SRL \| 100.0 \[[\d., ]+\] \(p\) \(1 of 2 cells\) \|", text)
    assert "those with (p) over problems alone" in text
    assert run(start=MadeUp())[0] == 0
    text = Path("runs/c/table.md").read_text()
    assert re.search(r"\| SRL \| 100.0 \[[\d., ]+\] \| 100.0 \|", text)
    assert re.search(r"\| base policy \| 100.0 \[[\d., ]+\] \(p\) \|", text)
    assert re.search(r"\| SRL less base policy \| \+0.0 \[[-+\d., ]+\] \| 0, 1 \|", text)
    # Of two that are not trained the problems are all that is drawn.
    assert re.search(
        r"\| more less base policy \| \+0.0 \[[-+\d., ]+\] \(p\) \| - \| not told apart", text
    )


@pytest.mark.usefixtures("quick_looks")
def test_problems_that_are_not_the_same_are_not_compared(file: Path) -> None:
    assert run(start=MadeUp())[0] == 0
    path = Path("runs/c/toy.srl.1/eval.jsonl")
    path.write_text(path.read_text().replace('"problem_id": "a"', '"problem_id": "z"'))
    with pytest.raises(UsageError, match=r"toy.srl.1 and toy.base have solved different problems"):
        run(start=MadeUp())


def test_the_titles_of_a_table_cannot_break_it(file: Path, quick_looks: None) -> None:
    write(rows={"a": {"title": "x | [bold]y\x1b[2J"}}, contrasts=[], seeds=[0])
    code, shown = run(start=MadeUp())
    assert code == 0
    assert r"x | [bold]y\u{1b}[2J" in shown
    assert r"| x \| [bold]y\u{1b}[2J | 100.0" in Path("runs/c/table.md").read_text()


def test_rows_of_one_title_are_both_told() -> None:
    def row_of(share: float) -> tuple[object, list[object]]:
        figures = {"exact": Estimate(share, share, share, 10)}
        cell = SimpleNamespace(done=True, held_out_steps=figures)
        return SimpleNamespace(title="and few_shot"), [cell]

    part = SimpleNamespace(rows=[row_of(0.1), row_of(0.7)])
    _, rows = _held_out_step_rows(part)  # type: ignore[arg-type]
    assert [title for title, _ in rows] == ["and few_shot"] * 2
    assert [shown.split()[0] for _, shown in rows] == ["10.0", "70.0"]


@pytest.mark.usefixtures("quick_looks")
def test_how_experts_were_used_in_the_first_and_the_last_fifth(file: Path) -> None:
    write(rows={"base": {"train": False}, "srl": {}}, contrasts=[], seeds=[0, 1])
    assert run(start=MadeUp())[0] == 0
    # Two layers of 4 experts, 10 updates: the first two of a fifth even, the last two all on one.
    steps = [[[5, 5, 5, 5], [5, 5, 5, 5]]] * 8 + [[[20, 0, 0, 0], [5, 5, 5, 5]]] * 2
    for seed in (0, 1):
        lines = [{"step": i, "layers": load} for i, load in enumerate(steps, 1)]
        path = Path(f"runs/c/toy.srl.{seed}/experts.jsonl")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(start=MadeUp())[0] == 0
    cell = json.loads(Path("runs/c/table.json").read_text())["cells"]["toy.srl.0"]
    assert cell["experts_first_fifth"]["router/violation"] == 0
    assert cell["experts_last_fifth"]["router/violation"] == 1.5
    assert cell["experts_last_fifth"]["max_router_violation"] == 3
    text = Path("runs/c/table.md").read_text()
    [row] = re.findall(
        r"\| experts in training .*\n\|-.*\n(\| srl .*)\n\n", text.replace("|--", "|-")
    )
    values = [cell.strip() for cell in row.strip("| ").split("|")]
    assert values == ["srl", "0.00", "1.50", "3.00", "0.50", "37.50"]
    assert "Violation is (most - mean) / mean" in text
