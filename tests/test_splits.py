"""What is said of held-out problems that no policy could be counted as solving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from srl.config.experiment import parse_experiment
from srl.data.splits import load_splits

NO_ANSWER = "do not end with a step that states the answer"
TOO_LONG = "have more than solve_max_steps"


@pytest.mark.parametrize(
    ("last", "steps", "longer", "said"),
    [
        ("The answer is 7.", 3, 0, []),
        ("So there are 7.", 3, 0, ["20 of 20 held-out solutions", NO_ANSWER]),
        ("The answer is 7.", 9, 0, ["20 of 20 held-out solutions", TOO_LONG, "longest has 9"]),
        ("The answer is 7.", 3, 2, []),  # a few are no news
    ],
)
def test_what_is_said(tmp_path: Path, last: str, steps: int, longer: int, said: list[str]) -> None:
    file = tmp_path / "mine.jsonl"
    rows = []
    for number in range(30):
        few = [f"Take {k} and {number}." for k in range(steps - 1 + 9 * (number < longer))]
        rows.append({"problem": f"problem {number}", "steps": [*few, last], "answer": "7"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": "some/model",
        "data": {"source": "files", "path": str(file)},
        "solve_max_steps": 8,
        "validation_problems": 5,
        "test_problems": 15,
    }
    console = Console(record=True, width=1000)
    load_splits(parse_experiment(values, where="here"), console)
    lines = console.export_text().strip().splitlines()
    assert len(lines) == 1 + bool(said)
    assert all(words in lines[-1] for words in said)
