"""Writes the logs of a training.

`steps.jsonl` has every rollout, `problems.jsonl` the expert solutions of these rollouts,
`metrics.jsonl` the figures, and `experts.jsonl` the load of a sparse policy's experts.

`records.py` defines how a log is stored on the disk. This module defines its content.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from environments.types import Trajectory
from srl.data.prompts import FAILURES
from srl.errors import UsageError
from srl.rollout.rollouts import Rollout, rollout_metrics
from srl.runs.records import SUMMED, RecordWriter, StepRecord, json_line, read_rows, truncate_to
from srl.training.groups import Collected, FilterDecision, Group
from srl.training.loss import is_maximum


class RunLog:
    """Writes the logs of one training between `open` and `close`, and nothing at other times.

    Args:
        folder: the folder of the logs.
        log_completions: whether `steps.jsonl` and `problems.jsonl` are written.
        sparse: whether `experts.jsonl` is written.

    Attributes:
        listeners: called with the rollouts of each optimiser step, after they are written.
    """

    def __init__(self, folder: Path, *, log_completions: bool, sparse: bool = False) -> None:
        completions = ("steps", "problems")
        names = (*completions, "metrics", *(["experts"] if sparse else []))
        self.paths = {name: folder / f"{name}.jsonl" for name in names}
        self._written = tuple(name for name in names if log_completions or name not in completions)
        self._writers: dict[str, RecordWriter] = {}
        self._problems: set[bytes] = set()  # digests of the lines of problems.jsonl
        self._pending: dict[str, list[float]] = {}
        self.listeners: list[Callable[[Sequence[StepRecord]], None]] = []

    def refuse_another(self) -> None:
        """Refuses a fresh training in a folder that has a log.

        Raises:
            UsageError: a log exists already.
        """
        for path in self.paths.values():
            if path.is_file() and path.stat().st_size:
                raise UsageError(
                    f"{path} is the log of another training; give another output_dir, or go on "
                    "with that one: train(resume_from_checkpoint=…)"
                )

    def cut_back(self, positions: Mapping[str, int]) -> None:
        """Cuts the logs back to a checkpoint; the later lines will be written again.

        Raises:
            UsageError: a log does not belong to that checkpoint.
        """
        truncate_to({path: positions[name] for name, path in self.paths.items()})

    def open(self) -> None:
        """Starts to write at the end of the existing logs."""
        for name in self._written:
            self.paths[name].parent.mkdir(parents=True, exist_ok=True)
            self._writers[name] = RecordWriter(self.paths[name])
        if "problems" in self._writers:  # a resumed run has written some before
            self._problems = {_digest(row) for row in read_rows(self.paths["problems"])}

    def close(self) -> None:
        """Stops writing."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def positions(self) -> dict[str, int]:
        """Returns log name -> length in bytes, for a checkpoint."""
        return {
            name: self._writers[name].position()
            if name in self._writers
            else (path.stat().st_size if path.exists() else 0)
            for name, path in self.paths.items()
        }

    # -- figures ---------------------------------------------------------------------------------

    def note(self, figures: Mapping[str, float]) -> None:
        """Keeps figures for the next line about training."""
        for name, value in figures.items():
            self._pending.setdefault(name, []).append(value)

    def note_last(self, figures: Mapping[str, float]) -> None:
        """Keeps figures of all steps so far for the next line; new values replace old ones."""
        self._pending.update({name: [value] for name, value in figures.items()})

    def take_noted(self) -> dict[str, float]:
        """Returns the figures noted since the last call, one value each."""
        merged = {name: _merge(name, values) for name, values in self._pending.items()}
        self._pending = {}
        return merged

    def write_metrics(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes one line of `metrics.jsonl`."""
        if "metrics" in self._writers:
            self._writers["metrics"].write([{"step": step, **figures}])

    def write_load(self, step: int, counts: Sequence[Sequence[int]]) -> None:
        """Writes one line of `experts.jsonl`: the tokens of each expert of each sparse layer."""
        if "experts" in self._writers:
            self._writers["experts"].write([{"step": step, "layers": counts}])

    # -- records ---------------------------------------------------------------------------------

    def write_groups(self, train_step: int, collected: Collected[Group]) -> None:
        """Writes every rollout sampled for an optimiser step, kept or not."""
        if "steps" not in self._writers:
            return
        self._tell([group.rollouts[0] for group in collected.groups])
        rows = [
            _record(
                rollout,
                train_step=train_step,
                phase="train",
                group_id=group_id,
                number=number,
                decision=decision,
            )
            for group_id, (group, decision) in enumerate(
                zip(collected.groups, collected.decisions, strict=True)
            )
            for number, rollout in enumerate(group.rollouts)
        ]
        self._writers["steps"].write(rows)
        for listener in self.listeners:
            listener(rows)

    def write_evaluation(self, train_step: int, rollouts: Sequence[Rollout]) -> None:
        """Writes the rollouts of an evaluation after an optimiser step, each as its own group."""
        if "steps" in self._writers:
            self._tell(rollouts)
            self._writers["steps"].write(
                _record(rollout, train_step=train_step, phase="eval", group_id=group_id, number=0)
                for group_id, rollout in enumerate(rollouts)
            )

    def _tell(self, rollouts: Sequence[Rollout]) -> None:
        """Writes each expert solution before the first record about it."""
        new: list[Mapping[str, object]] = []
        for rollout in rollouts:
            row = problem_row(rollout.example.trajectory)
            if (digest := _digest(row)) not in self._problems:
                self._problems.add(digest)
                new.append(row)
        self._writers["problems"].write(new)


def collect_metrics(collected: Collected[Group]) -> dict[str, float]:
    """Returns the figures of one step's sampling, including each kind of format failure."""
    rollouts = [rollout for group in collected.groups for rollout in group.rollouts]
    failures = Counter(rollout.parsed.failure for rollout in rollouts)
    return {
        **rollout_metrics(rollouts),
        "groups_kept": len(collected.kept),
        "groups_tried": len(collected.groups),
        "sampling_rounds": collected.rounds,
        "group_std": sum(d.std for d in collected.decisions) / len(collected.decisions),
        "tokens": sum(len(rollout.completion_ids) for rollout in rollouts),
        **{f"format_failures/{name}": failures[name] / len(rollouts) for name in FAILURES},
    }


def mean_loss(history: Sequence[Mapping[str, float]]) -> float:
    """Returns the mean loss over all steps; each log line has the mean since the line before."""
    total, before = 0.0, 0
    for line in history:
        if "loss" in line:
            total += line["loss"] * (line["step"] - before)
            before = int(line["step"])
    return total / max(before, 1)


def _merge(name: str, values: Sequence[float]) -> float:
    """Returns one figure for several steps; NaN, a step without that figure, does not count."""
    known = [value for value in values if not math.isnan(value)]
    if name.startswith(SUMMED):
        return sum(known)
    if is_maximum(name):
        return max(known, default=math.nan)
    return sum(known) / len(known) if known else math.nan


def _digest(row: Mapping[str, object]) -> bytes:
    return hashlib.sha256(json_line(row)).digest()


def problem_row(trajectory: Trajectory) -> Mapping[str, object]:
    """Returns the line of `problems.jsonl` about one expert solution."""
    row: dict[str, object] = {
        "problem_id": trajectory.problem_id,
        "source": trajectory.source,
        "problem": trajectory.problem,
        "steps": trajectory.texts,
        "answer": trajectory.answer,
    }
    observations = [step.observation for step in trajectory.steps]
    if any(observations):
        row["observations"] = observations
    if trajectory.tags:
        row["tags"] = trajectory.tags
    return row


def _record(
    rollout: Rollout,
    *,
    train_step: int,
    phase: Literal["train", "eval"],
    group_id: int,
    number: int,
    decision: FilterDecision | None = None,
) -> StepRecord:
    """Returns a rollout's record; `number` is its place in its group.

    An evaluation has no `decision`.
    """
    example = rollout.example
    return StepRecord(
        train_step=train_step,
        phase=phase,
        source=example.source,
        problem_id=example.problem_id,
        step_index=example.step_index,
        num_steps=example.num_steps,
        group_id=group_id,
        rollout=number,
        prompt_tokens=len(rollout.prompt_ids),
        completion_tokens=len(rollout.completion_ids),
        truncated=rollout.truncated,
        thought=rollout.parsed.thought,
        action=rollout.parsed.action,
        expert_step=example.expert_step,
        previous_step=example.previous_steps[-1] if example.previous_steps else None,
        format_failure=rollout.parsed.failure,
        rewards=rollout.score.rewards,
        reward=rollout.reward,
        metrics=rollout.metrics,
        observation=rollout.observation,
        tags=example.trajectory.tags,
        group_mean=None if decision is None else decision.mean,
        group_std=None if decision is None else decision.std,
        kept=decision is not None and decision.kept,
        dropped_because=None if decision is None else decision.dropped_because,
        advantage=rollout.advantage,
    )
