"""Builds the output about explanations: step records, and solutions with useful thoughts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from environments.types import Trajectory
from srl.runs.records import StepRecord, read_records
from srl.training.advantages import group_stats
from srl.training.thoughts import Explanation, Row


def records_of(row: Row, explanations: Sequence[Explanation]) -> list[StepRecord]:
    """Returns the explanations of a row as step records, with the explanation as the action.

    Views treat a group as kept if its first record is kept. So the used explanation comes first.
    """
    example = row.example
    mean, std = group_stats([explanation.lift for explanation in explanations])
    return [
        StepRecord(
            train_step=0,
            phase="train",
            source=example.source,
            problem_id=example.problem_id,
            tags=example.trajectory.tags,
            step_index=example.step_index,
            num_steps=example.num_steps,
            group_id=row.number,
            rollout=number,
            prompt_tokens=explanation.prompt_tokens,
            completion_tokens=explanation.tokens,
            truncated=explanation.truncated,
            thought="",
            action=explanation.text,
            expert_step=example.expert_step,
            previous_step=example.previous_steps[-1] if example.previous_steps else None,
            format_failure=None,
            rewards={},
            reward=explanation.lift,
            metrics={
                "lift_logprob": explanation.lift,
                "logprob": explanation.log_prob,
                "logprob_empty": explanation.log_prob_empty,
                "in_thought": explanation.in_thought,
            },
            group_mean=mean,
            group_std=std,
            kept=explanation.dropped_because is None,
            dropped_because=explanation.dropped_because,
            advantage=None,
        )
        for number, explanation in enumerate(explanations)
    ]


def trajectories_with(thoughts: Mapping[int, str], rows: Sequence[Row]) -> list[dict[str, object]]:
    """Returns the solutions that have a thought, as lines of a file that `source: files` reads.

    Args:
        thoughts: number of a row -> the thought before its step.
        rows: all rows.
    """
    steps: dict[int, dict[int, str]] = {}
    solutions: dict[int, Trajectory] = {}
    for row in rows:
        if row.number in thoughts:
            solution = row.example.trajectory
            solutions[id(solution)] = solution
            steps.setdefault(id(solution), {})[row.example.step_index] = thoughts[row.number]
    lines = []
    for key, solution in solutions.items():
        line: dict[str, object] = {
            "problem": solution.problem,
            "steps": list(solution.texts),
            "thoughts": [steps[key].get(place, "") for place in range(len(solution.steps))],
            "answer": solution.answer,
        }
        observations = [step.observation for step in solution.steps]
        line |= {"observations": observations} if any(observations) else {}
        line |= {"tags": dict(solution.tags)} if solution.tags else {}
        metadata = {
            name: value
            for name, value in solution.metadata.items()
            if name not in line and isinstance(value, str | int | float | bool)
        }
        lines.append({**line, **metadata})
    return lines


def summary_of(log: Path, rows: Sequence[Row]) -> dict[str, object]:
    """Returns the counts and the mean lift from the log of all explanations."""
    fates: Counter[str] = Counter()
    lifts = []
    for record in read_records(log):
        fates[record.dropped_because or "kept"] += 1
        if record.kept and record.reward is not None:
            lifts.append(record.reward)
    return {
        "steps": len(rows),
        "steps_with_thought": fates["kept"],
        "explanations": sum(fates.values()),
        "dropped": {name: count for name, count in fates.most_common() if name != "kept"},
        "mean_lift_logprob": sum(lifts) / len(lifts) if lifts else None,
    }
