"""Runs `learnability`: measures before training what a policy could learn from each data source.

The run's folder contains every attempt in steps.jsonl, so `inspect` and `report` can read it. It
also contains the figures in learnability.json, and learnability.html, which draws them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from environments.types import Trajectory
from srl.commands.session import session
from srl.config.experiment import Experiment
from srl.config.parts import GroupSettings
from srl.console import say
from srl.data.rows import Rows, dropped
from srl.data.shots import draw_shots
from srl.data.splits import load_splits
from srl.errors import UsageError
from srl.evaluation.learnability import Learned, attempt_rows, bands, figures_of, rollouts_of
from srl.logs.report.learnability import COLUMNS, page
from srl.models.loading import context_limit, load_policy, prompt_format
from srl.rollout.samplers import make_sampler
from srl.runs.folder import RunFolder, replace_file, write_json
from srl.training.groups import Collected, FilterDecision, Group
from srl.training.run_log import RunLog


def measure_learnability(
    experiment: Experiment,
    *,
    samples: int,
    rows: int,
    name: str | None,
    argv: Sequence[str],
    console: Console,
) -> Path:
    """Measures the policy on held-out steps of each source.

    Args:
        experiment: model, data, prompts and sampling, as in the planned training.
        samples: attempts at each step.
        rows: the most steps of each source.
        name: the name of the run's folder in `output_dir`; None is date and time.
        argv: the command line.
        console: where to print the progress.

    Returns:
        The run's folder.

    Raises:
        UsageError, DataError: wrong use.
    """
    for option, value, least in (("--samples", samples, 2), ("--rows", rows, 2)):
        if value < least:
            raise UsageError(f"{option} is {value}; it must be {least} or more")
    run = RunFolder.create(Path(experiment.args.output_dir or "runs"), name)
    with session(run, console, argv=argv):
        try:
            return _measure(experiment, samples, rows, run, argv, console)
        except BaseException:
            if not run.summary.is_file():
                run.take_away()
            raise


def _measure(
    experiment: Experiment,
    samples: int,
    most: int,
    run: RunFolder,
    argv: Sequence[str],
    console: Console,
) -> Path:
    started = time.monotonic()
    args = experiment.args
    set_seed(args.seed)
    splits = load_splits(experiment, console)
    held_out = splits.test or splits.validation
    if not held_out:
        raise UsageError(
            "there are no held-out problems: set validation_problems or test_problems, so that the "
            "policy is measured on steps that no training of this experiment sees"
        )
    shots, _ = draw_shots(splits.train, args, seed=args.split_seed)
    model, tokenizer = load_policy(experiment.model, experts=args.experts_implementation)
    model.to(args.device)
    form = prompt_format(model, tokenizer, args, shots=shots)
    rewards = experiment.sum_rewards(run.path)
    sampler = make_sampler(model, pad_id=int(form.tokenizer.pad_token_id), settings=args)
    epsilon = GroupSettings.dynamic_sampling_epsilon
    if isinstance(args, GroupSettings):
        epsilon = args.dynamic_sampling_epsilon
    run.write_start(experiment.resolved(), argv)
    log = RunLog(run.path, log_completions=True)
    log.open()
    by_source: dict[str, list[Learned]] = {}
    try:
        for number, (source, trajectories) in enumerate(_by_source(held_out).items()):
            own = Rows.of(trajectories, form, args, context_limit(model), most=most)
            if not own.examples:
                raise UsageError(f"source {source} has no held-out steps{dropped(own.dropped)}")
            say(
                console,
                f"{source}: {len(own.examples):,} held-out steps{dropped(own.dropped)}, {samples} "
                "attempts at each",
            )
            with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
                by_source[source] = attempt_rows(
                    model,
                    sampler,
                    form,
                    own,
                    args,
                    rewards,
                    samples=samples,
                    epsilon=epsilon,
                    seed=args.seed,
                )
            log.write_groups(number, _as_collected(by_source[source]))
    finally:
        log.close()
        rewards.close()
    figures = {source: _figures(of) for source, of in by_source.items()}
    what = {"policy": experiment.model, "samples": samples, "sources": figures}
    write_json(run.path / "learnability.json", what)
    html = run.path / "learnability.html"
    replace_file(html, page(what).encode())
    write_json(run.summary, {"seconds_last_session": time.monotonic() - started})
    for table in _tables(by_source):
        console.print(table)
    say(console, f"figures: {run.path / 'learnability.json'}   drawn: {html}")
    say(console, f"attempts: {run.steps}   look at them with: make inspect RUN={run.called}")
    return run.path


def _by_source(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    by_source: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_source.setdefault(trajectory.source, []).append(trajectory)
    return dict(sorted(by_source.items()))


def _as_collected(rows: Sequence[Learned]) -> Collected[Group]:
    """Returns the attempts as groups with the decisions of dynamic sampling, for the log."""
    decisions = [
        FilterDecision(
            sum(rollout.reward for rollout in row.rollouts) / len(row.rollouts),
            row.std,
            None if row.is_kept else "flat_group",
        )
        for row in rows
    ]
    return Collected([Group(rollouts_of(row)) for row in rows], decisions, 1)


def _figures(rows: Sequence[Learned]) -> dict[str, object]:
    by_index: dict[int, list[Learned]] = {}
    for row in rows:
        by_index.setdefault(row.example.step_index, []).append(row)

    def of(part: Sequence[Learned]) -> dict[str, object]:
        return {
            "steps": len(part),
            **{name: value.to_json() for name, value in figures_of(part).items()},
        }

    return {
        "all": of(rows),
        "by_step_index": {str(index): of(part) for index, part in sorted(by_index.items())},
        "by_length": {label: of(part) for label, part in bands(rows)},
    }


def _tables(by_source: dict[str, list[Learned]]) -> list[Table]:
    """Returns two tables to print: by source, and each source by the length of its steps."""
    tables = []
    for title, lines in (
        ("what could be learned from each source, 95 % intervals", list(by_source.items())),
        (
            "by tokens of the expert's step",
            [
                (f"{source} {label}", part)
                for source, of in by_source.items()
                for label, part in bands(of)
            ],
        ),
    ):
        table = Table(title=title, title_justify="left")
        for name in ("", "steps", *(column.label for column in COLUMNS)):
            table.add_column(name, justify="right" if name else "left")
        for label, part in lines:
            figures = figures_of(part)
            cells = [
                column.shown(figures[column.name].to_json()) if column.name in figures else "-"
                for column in COLUMNS
            ]
            table.add_row(label, f"{len(part):,}", *cells)
        tables.append(table)
    return tables
