"""Made-up step logs for the tests of everything that reads one."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

from srl.runs.records import RecordWriter, StepRecord

RECORD = StepRecord(
    train_step=1,
    phase="train",
    source="made up",
    problem_id="00ff00ff00ff00ff",
    step_index=1,
    num_steps=4,
    group_id=0,
    rollout=0,
    prompt_tokens=30,
    completion_tokens=12,
    truncated=False,
    thought="So I add.",
    action="She has 5 eggs.",
    expert_step="She has 7 eggs.",
    previous_step="She has 3 eggs.",
    format_failure=None,
    rewards={"similarity": 0.75, "equation": None},
    reward=0.75,
    metrics={"lift": 0.25},
    group_mean=0.5,
    group_std=0.25,
    kept=True,
    dropped_because=None,
    advantage=1.0,
)


def write_log(folder: Path, records: Iterable[StepRecord]) -> Path:
    """A `steps.jsonl` in `folder`; more of it if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / "steps.jsonl") as writer:
        writer.write(records)
    return folder / "steps.jsonl"


def random_records(
    seed: int, *, train_steps: int = 7, groups: int = 5, rollouts: int = 4, problems: int = 6
) -> list[StepRecord]:
    """A log as a training writes it, with every kind of record: failures, kept and dropped groups,
    copies, exact steps, two sources, an evaluation at every third step."""
    rng = random.Random(seed)
    steps = ["She has 7 eggs.", "He gave 2 away.", "So 5 are left.", "The answer is 5."]
    found: list[StepRecord] = []

    def one(train_step: int, phase: str, group: int, size: int) -> list[StepRecord]:
        problem, index = rng.randrange(problems), rng.randrange(len(steps))
        rows = []
        for rollout in range(size):
            failure = rng.choice([None] * 6 + ["truncated", "missing_close"])
            copied = index > 0 and rng.random() < 0.1
            action = rng.choice([*steps, "He has 9 hens."])
            action = steps[index - 1] if copied else action
            score = None if failure else round(rng.random(), 3)
            named = {"similarity": score, "equation": rng.choice([None, 0.0, 1.0])}
            rows.append(
                StepRecord(
                    train_step=train_step,
                    phase=phase,  # type: ignore[arg-type]
                    source=f"teacher {problem % 2}",
                    problem_id=f"{problem:016x}",
                    step_index=index,
                    num_steps=len(steps),
                    group_id=group,
                    rollout=rollout,
                    prompt_tokens=rng.randrange(20, 60),
                    completion_tokens=rng.randrange(1, 40),
                    truncated=failure == "truncated",
                    thought="hm",
                    action="" if failure else action,
                    expert_step=steps[index],
                    previous_step=steps[index - 1] if index else None,
                    format_failure=failure,
                    rewards=dict.fromkeys(named) if failure else named,
                    reward=-1.0 if failure else score,
                    metrics={
                        "lift": None if failure or not index else round(rng.uniform(-1, 1), 3),
                        "exact": None if failure else float(action == steps[index]),
                    },
                    group_mean=None,
                    group_std=None,
                    kept=False,
                    dropped_because=None,
                    advantage=None,
                )
            )
        if phase == "eval":
            return rows
        rewards = [float(row.reward or 0.0) for row in rows]
        kept = rng.random() < 0.7
        dropped_because = None if kept else rng.choice(["flat_group", "surplus"])
        return [
            replace(
                row,
                group_mean=fmean(rewards),
                group_std=pstdev(rewards),
                kept=kept,
                dropped_because=dropped_because,
                advantage=round(rng.uniform(-2, 2), 3) if kept else None,
            )
            for row in rows
        ]

    for train_step in range(1, train_steps + 1):
        for group in range(groups):
            found += one(train_step, "train", group, rollouts)
        if train_step % 3 == 0:
            for group in range(groups):
                found += one(train_step, "eval", group, 1)
    return found
