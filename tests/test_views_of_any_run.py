"""Every view of a run folder that is extreme, damaged or hostile: a view, or one message."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from report_pages import RECORD, write_run

from srl.commands.cli import main

EXTREMES = (
    0.1, 1e308, -1.7e308, 5e-324, 1e-310, -0.0, 0.0, 1 / 3, 1e17, 2**53, 1e160, None, 1, 7,
)  # fmt: skip
STEPS = (0, 1, 2, 10**6, 2**31 - 2, 2**31 - 1)


def views_of(run: Path, output: Path) -> list[list[str]]:
    name = str(run)
    return [
        ["report", name, "--output", str(output)],
        ["inspect", name],
        ["inspect", name, "--phase", "eval"],
        ["inspect", name, "--figures", "--json"],
        ["inspect", name, "--by", "step_index"],
        ["inspect", name, "--record", "1"],
        ["inspect", name, "--export", "parquet", "--to", str(output.with_suffix(""))],
    ]


@pytest.mark.parametrize("seed", range(6))
def test_numbers_of_any_size(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(seed)
    taken = rng.sample(EXTREMES, k=1 + seed % 4)

    def any_number() -> float | None:
        return rng.choice(taken)

    log = [
        replace(
            RECORD,
            train_step=rng.choice(STEPS),
            phase=rng.choice(["train", "train", "eval"]),
            group_id=rng.choice([0, 1, 2**31 - 1]),
            rollout=rollout,
            problem_id=rng.choice("abc"),
            step_index=rng.choice([0, 1, 2**31 - 1]),
            completion_tokens=rng.choice([0, 5, 2**31 - 1]),
            rewards={"similarity": any_number(), "own": any_number()},
            metrics={name: any_number() for name in ("lift", "exact", "mine")},
            reward=any_number(),
            group_mean=any_number(),
            group_std=any_number(),
            advantage=any_number(),
            format_failure=rng.choice([None, None, "truncated"]),
        )
        for rollout in range(9)
    ]
    figures = ("loss", "reward", "seconds/collect", "tokens", "reward_errors/own")
    validations = ("eval_accuracy", "eval_problems", "eval_seconds")
    metrics = [
        {"step": rng.choice(STEPS), **{name: any_number() for name in names}}
        for names in (figures, figures, validations, validations)
    ]
    run = write_run(tmp_path / "run", log, metrics=metrics)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for words in views_of(run, tmp_path / "page.html"):
            code = main(words)
            assert code == 0 or "no record" in capsys.readouterr().err, words
