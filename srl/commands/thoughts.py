"""Runs `thoughts`: the policy explains the expert's steps, and useful explanations become data.

The run's folder contains every explanation in steps.jsonl, with the reason if it was dropped.
`inspect` and `report` read this file. At the end the folder contains trajectories.jsonl, the data
for `method: sft`. Rows are explained in chunks, which depend only on settings, data and model, and
a chunk is written whole. Random numbers depend only on (seed, row, sample). So the same command
continues an interrupted run, with the explanations and trajectories of an uninterrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from transformers import set_seed

from srl.commands.session import session
from srl.config.experiment import Experiment
from srl.config.parts import RowSettings, SplitSettings, setting_names
from srl.console import clock, say
from srl.data.rows import dropped
from srl.data.shots import draw_shots
from srl.data.splits import load_splits
from srl.data.stream import digest_of
from srl.errors import UsageError
from srl.models.loading import fingerprint, load_policy
from srl.runs.chunks import keep_whole_chunks
from srl.runs.folder import RunFolder, changed_keys, replace_file, write_json
from srl.runs.records import RecordWriter, json_line, read_records
from srl.training.run_log import problem_row
from srl.training.thought_log import records_of, summary_of, trajectories_with
from srl.training.thoughts import (
    Row,
    ThoughtSettings,
    ThoughtWriter,
    refuse_unthinking,
)

TRAJECTORIES = "trajectories.jsonl"
_SECONDS_BETWEEN_LINES = 10.0
# The settings of an experiment that determine the explanations.
_MATTERS = (
    *(name for part in (RowSettings, SplitSettings) for name in setting_names(part)),
    *("seed", "data_seed", "bf16", "use_cpu"),
)


def write_thoughts(
    experiment: Experiment,
    settings: ThoughtSettings,
    *,
    limit: int | None,
    name: str | None,
    argv: Sequence[str],
    console: Console,
) -> Path:
    """Explains the steps of the training problems; continues the run `name` if it has begun.

    Args:
        experiment: model, data, prompts and sampling, as in the planned training.
        settings: how thoughts are made and chosen.
        limit: how many steps, from the first; None is all.
        name: the name of the run's folder in `output_dir`; None is date and time.
        argv: the command line.
        console: where to print the progress.

    Returns:
        The file with the trajectories.

    Raises:
        UsageError, DataError: wrong use; a new folder without explanations is removed.
        Stopped: a signal stopped the work; the message says how to continue.
    """
    refuse_unthinking(experiment.args)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}; it must be 1 or more, or absent for all steps")
    run = _open(Path(experiment.args.output_dir or "runs"), name)
    go_on = f"The same command with --run-name {run.name} goes on"
    with session(run, console, argv=argv, go_on=go_on):
        is_new = not run.config.is_file()
        try:
            return _write(experiment, settings, limit, run, argv, console)
        except BaseException:
            if is_new and not (run.steps.is_file() and run.steps.stat().st_size):
                run.take_away()
            raise


def _write(
    experiment: Experiment,
    settings: ThoughtSettings,
    limit: int | None,
    run: RunFolder,
    argv: Sequence[str],
    console: Console,
) -> Path:
    started = time.monotonic()
    args = experiment.args
    set_seed(args.seed)
    # Held-out problems and the problems of worked examples are never explained.
    shots, trajectories = draw_shots(
        load_splits(experiment, console).train, args, seed=args.split_seed
    )
    model, tokenizer = load_policy(experiment.model, experts=args.experts_implementation)
    model.to(args.device)
    writer = ThoughtWriter(model, tokenizer, args, settings, shots)
    rows, left_out = writer.rows(trajectories, most=limit)
    if not rows:
        raise UsageError(f"there are no steps to explain{dropped(left_out)}; give other data")
    resolved = _resolved(experiment, settings, limit, rows)
    if run.config.is_file():
        _check_same(run, resolved)
        run.add_command(argv)
    else:
        run.write_start(resolved, argv)
        solutions = {id(row.example.trajectory): row.example.trajectory for row in rows}
        lines = b"".join(json_line(problem_row(trajectory)) for trajectory in solutions.values())
        replace_file(run.problems, lines)
    say(
        console,
        f"{len(rows):,} steps to explain{dropped(left_out)}; {settings.samples} explanations of at "
        f"most {settings.max_thought_length} tokens each, by {experiment.model} on {args.device}",
    )
    _explain(writer, rows, run, console)
    output = run.path / TRAJECTORIES
    thoughts = {record.group_id: record.action for record in read_records(run.steps) if record.kept}
    replace_file(output, b"".join(map(json_line, trajectories_with(thoughts, rows))))
    summary = summary_of(run.steps, rows)
    write_json(run.summary, {**summary, "seconds_last_session": time.monotonic() - started})
    say(console, _in_words(summary))
    say(console, f"explanations: {run.steps}   look at them with: make inspect RUN={run.called}")
    say(
        console,
        f"trajectories: {output}   fine-tune on them, with an experiment file of method sft: "
        f"--data '{{source: files, path: {output}, thoughts_column: thoughts}}' "
        "--require_thoughts true",
    )
    return output


def _explain(writer: ThoughtWriter, rows: Sequence[Row], run: RunFolder, console: Console) -> None:
    """Writes the explanations that are not in steps.jsonl yet, chunk by chunk."""
    samples = writer.settings.samples
    chunks = list(writer.chunks(rows))
    keys = [[_key(row, n) for row in chunk for n in range(samples)] for chunk in chunks]
    first = keep_whole_chunks(run.steps, keys, _key_of)
    total, made = len(rows), sum(map(len, chunks[:first]))
    if made:
        say(console, f"going on: {made:,} of {total:,} steps are explained in {run.steps}")
    kept, at_first = 0, made
    last_report = began = time.monotonic()
    with RecordWriter(run.steps) as log:
        for chunk in chunks[first:]:
            by_row = writer.explain(chunk)
            log.write(
                record
                for row, explanations in zip(chunk, by_row, strict=True)
                for record in records_of(row, explanations)
            )
            made += len(chunk)
            kept += sum(
                explanation.dropped_because is None
                for explanations in by_row
                for explanation in explanations
            )
            now = time.monotonic()
            if now - last_report >= _SECONDS_BETWEEN_LINES and made < total:
                last_report = now
                left = (total - made) * (now - began) / (made - at_first)
                share = kept / (made - at_first)
                say(
                    console,
                    f"{made:,} of {total:,} steps  thoughts for {share:.0%}  {clock(left)} left",
                )


def _key(row: Row, sample: int) -> tuple[object, ...]:
    return row.number, sample, row.example.problem_id, row.example.step_index


def _key_of(line: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(line.get(name) for name in ("group_id", "rollout", "problem_id", "step_index"))


def _in_words(summary: Mapping[str, object]) -> str:
    reasons = summary["dropped"]
    assert isinstance(reasons, Mapping)
    lost = ", ".join(f"{count:,} {name}" for name, count in reasons.items())
    lift = summary["mean_lift_logprob"]
    gain = (
        ""
        if lift is None
        else f", which raise its log-probability by {lift:.2f} a token on average"
    )
    if not summary["steps_with_thought"]:
        gain = "; try more --samples, a longer --max_thought_length, or a lower --temperature"
    return (
        f"{summary['steps_with_thought']:,} of {summary['steps']:,} steps have a thought{gain}; "
        f"{summary['explanations']:,} explanations, dropped: {lost or 'none'}"
    )


def _resolved(
    experiment: Experiment, settings: ThoughtSettings, limit: int | None, rows: Sequence[Row]
) -> dict[str, object]:
    """Returns the run's config.yaml: everything that determines its explanations."""
    return {
        "model": experiment.model,
        "weights": fingerprint(experiment.model),
        "data": experiment.data,
        "rows": digest_of(row.example for row in rows),
        "thoughts": {**asdict(settings), "limit": limit},
        **{name: getattr(experiment.args, name) for name in _MATTERS},
    }


def _open(root: Path, name: str | None) -> RunFolder:
    """Returns the folder of a run that has begun, or a new folder.

    Raises:
        UsageError: the folder is in use by a run of another kind.
    """
    if name is None or not (root / name / "config.yaml").is_file():
        return RunFolder.create(root, name)
    run = RunFolder.open(root / name)
    if "thoughts" not in run.read_config():
        raise UsageError(
            f"{run.path} is in use by a run of another kind; give the thoughts a folder of their "
            f"own: --run-name {run.name}-thoughts"
        )
    return run


def _check_same(run: RunFolder, settings: Mapping[str, object]) -> None:
    """Raises UsageError if the run was started with other settings, data or weights."""
    if changed := changed_keys(run.read_config(), settings):
        raise UsageError(
            f"{run.path} was begun with other settings:\n  " + "\n  ".join(changed) + "\nIts "
            "explanations and new ones would not belong together. Give the same settings to go on, "
            "or another --run-name"
        )
