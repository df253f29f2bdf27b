"""Measures part d: a short run of the GPU's rows, one model and repeat each, most useful first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from contest import Contest
from given import Given, Note
from gpu_rows import (
    Plan,
    idle_rows,
    machine_rates,
    measured,
    memory_rows,
    rollout_rows,
    toy,
    update_rows,
)
from shapes import qwen25_config


def measure(given: Given, note: Note) -> None:
    """Notes the contests of each row. If a row fails, the other rows still run."""
    plan = toy() if given.toy else measured()
    large = list(plan.configs.items())[-1:]
    plan = replace(plan, configs=dict(large))
    small = plan if given.toy else replace(plan, configs={"Qwen2.5-0.5B": qwen25_config("0.5B")})
    rates = machine_rates(plan, repeats=3)

    def updates(kind: str) -> Callable[[], list[Contest]]:
        kind_plan: Plan = replace(plan, updates={kind: plan.updates[kind]})
        return lambda: update_rows(kind_plan, 1, rates)

    rows: dict[str, Callable[[], list[Contest]]] = {
        **{f"6, {kind}": updates(kind) for kind in plan.updates},
        "8": lambda: rollout_rows(plan, 1),
        "9": lambda: idle_rows(plan, 1, steps=2),
        "7": lambda: memory_rows(small),
    }
    failed = []
    contests_so_far: list[dict[str, object]] = []
    for name, row in rows.items():
        try:
            contests = row()
        except Exception as error:  # noqa: BLE001  the other rows still run
            failed.append(name)
            note({f"row {name}": f"{type(error).__name__}: {error}"})
            if not isinstance(error, torch.OutOfMemoryError) and given.device.type == "cuda":
                torch.cuda.synchronize()  # raises where the device is lost
            continue
        for contest in contests:
            print("\n".join(contest.lines()), flush=True)
            contests_so_far.append(contest.to_json())
            note({f"row {name}, {contest.title}": compact(contest), "contests": contests_so_far})
    if failed:
        raise RuntimeError(f"rows that failed: {', '.join(failed)}")


def compact(contest: Contest) -> dict[str, object]:
    """Returns a contest's figures for the table; `contests` has all of the contest."""
    speeds = {
        who: f"{1000 * contest.median(who):,.1f} ms, {contest.speed(who):.2f}x"
        for who in contest.seconds
    }
    return {**speeds, "agreement": contest.agreement, **contest.figures}
