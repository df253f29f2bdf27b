"""What the tests of `srl inspect` share: a made-up run, filters, and what a terminal shows."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from step_logs import random_records, write_log

from srl.logs.terminal.command import add_inspect, inspect_run

Row = dict[str, object]

FILTERS: list[tuple[list[str], Callable[[Row], bool]]] = [
    ([], lambda row: row["phase"] == "train"),
    (["--phase", "all"], lambda row: True),
    (
        ["--source", "teacher_1", "--tokens", "ge:5"],
        lambda row: (
            row["phase"] == "train"
            and row["source"] == "teacher_1"
            and int(str(row["completion_tokens"])) >= 5
        ),
    ),
    (
        ["--kept", "true", "--step-index", "1:2"],
        lambda row: bool(row["kept"]) and row["step_index"] in (1, 2),
    ),
]


def shown(path: Path, *words: str, width: int = 200, encoding: str = "utf-8") -> str:
    """What a terminal without colours shows."""
    parser = argparse.ArgumentParser()
    add_inspect(parser)
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # strict: an unknown sign is an error
    console = Console(file=out, width=width, color_system=None)
    assert inspect_run(path, parser.parse_args([str(path), *words]), console) == 0
    out.flush()
    return out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def write_run(folder: Path) -> Path:
    """A whole run's folder, made up: its numbers are all different."""
    records = random_records(5, train_steps=15, groups=6, problems=7)
    write_log(
        folder,
        [
            # No mean ends in a 5 that could be rounded either way.
            replace(
                r,
                source=r.source.replace(" ", "_"),
                reward=(r.reward or 0.0) * 0.98765,
                rewards={k: None if v is None else v * 0.98765 for k, v in r.rewards.items()},
                metrics=r.metrics
                | {"lift": None if r.metrics["lift"] is None else r.metrics["lift"] * 0.98765},
            )
            for r in records
        ],
    )
    (folder / "config.yaml").write_text("max_steps: 15\n")
    metrics: list[Row] = []
    for step in range(1, 16):
        metrics.append(
            {"step": step, "reward": 0.1, "tokens": 100 * step, "seconds/collect": 0.5 + step}
        )
        metrics[-1]["seconds/update"] = 0.25 * step
    metrics.append({"step": 7, "eval_accuracy": 0.25, "eval_problems": 8, "eval_seconds": 61.0})
    metrics.append({"step": 15, "eval_accuracy": 0.5, "eval_problems": 8, "eval_seconds": 60.0})
    metrics.append({"step": 15, "train_runtime": 9.0})
    solved: list[Row] = [
        {
            "when": when,
            "problem_id": f"{number:016x}",
            "mode": "steps",
            "sample": 0,
            "source": "teacher_1",
            "num_steps": 2,
            "steps": ["a", "b"],
            "correct": number < hits,
            "failure": None if number < hits else "wrong",
        }
        for when, hits in (("before", 3), ("after", 6))
        for number in range(10)
    ]
    for name, rows in (("metrics", metrics), ("eval", solved)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "summary.json").write_text("{}")
    return folder
