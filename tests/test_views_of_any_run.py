"""Every view of a run folder that is extreme, damaged or hostile: a view, or one message."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
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


# ---- damage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that views read."""
    log = [
        replace(RECORD, train_step=step, rollout=k, problem_id=f"{step:016x}")
        for step in (1, 2)
        for k in range(3)
    ]
    problem = {"problem": "p", "steps": [RECORD.expert_step], "answer": "4"}
    attempt = {"sample": 0, "problem_id": "p", "correct": True, "source": "toy", "failure": None,
               "num_steps": 2, "steps": ["a"], "mode": "steps"}  # fmt: skip
    run = write_run(
        tmp_path_factory.mktemp("whole") / "run",
        log,
        problems=[{"problem_id": f"{step:016x}", **problem} for step in (1, 2)],
        metrics=[{"step": 1, "loss": 0.5}, {"step": 2, "eval_accuracy": 0.5, "eval_problems": 4}],
        attempts=[{"when": when, **attempt} for when in ("before", "after")],
    )
    (run / "config.yaml").write_text("model: m\ndata: {source: files}\nmax_steps: 2\n")
    (run / "command.txt").write_text("python -m srl train --config a.yaml\n")
    for name in ("environment", "summary"):
        (run / f"{name}.json").write_text(json.dumps({"started": "today", "steps": 2}))
    return run


LOGS = ("steps.jsonl", "metrics.jsonl", "problems.jsonl", "eval.jsonl")
FILES = (*LOGS, "config.yaml", "command.txt", "environment.json", "summary.json")
CONTENTS = (
    b"", b"\n\n", b"null\n", b"[]\n", b'"x"\n', b"3\n", b"{}\n", b"NaN\n", b"\0" * 9, b"\xff{}\n",
    b"[" * 99_999 + b"\n", b"!!timestamp x", b"a: &a [*a]", b'{"step": 1, "eval_loss": 1e999}\n',
)  # fmt: skip


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_in_its_place(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def link_elsewhere(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def half_a_line_more(path: Path) -> None:
    path.write_bytes(path.read_bytes() + path.read_bytes()[:20])


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE: tuple[Callable[[Path], object], ...] = (
    Path.unlink, folder_in_its_place, pipe_in_its_place, link_to_itself, link_elsewhere,
    half_a_line_more, cut_off,
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file(
    whole_run: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = CONTENTS[FILES.index(name) % 3 :: 3]
    kinds: list[Callable[[Path], object]] = [
        *DAMAGE,
        *(lambda path, content=content: path.write_bytes(content) for content in contents),  # type: ignore[misc]
    ]
    for number, damage in enumerate(kinds):
        run = Path(shutil.copytree(whole_run, tmp_path / f"run{number}"))
        damage(run / name)
        views = views_of(run, tmp_path / f"page{number}.html")
        for words in views[: 2 if damage in DAMAGE else 1]:
            code = main(words)
            said = capsys.readouterr().err
            assert code in (0, 2), (number, words)
            assert (said.count("srl: ") >= 1) == (code == 2), said
            assert "Traceback" not in said
            # What is whole, or is not needed for a view, is shown.
            if name not in LOGS or damage in (half_a_line_more, link_elsewhere):
                assert code == 0 or "no record" in said, (number, words, said)
