"""Measures which experts a policy uses: `experts report` and `experts select`.

The experts are measured on expert solutions. A report's folder contains load.json, the counts, and
load.html, which draws them. A selection is a JSON file for the setting `train_experts`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from srl.commands.session import session
from srl.config.experiment import Experiment
from srl.config.router import SelectBy
from srl.console import say
from srl.data.rows import Rows, dropped
from srl.data.shots import draw_shots
from srl.data.splits import load_splits
from srl.errors import UsageError
from srl.evaluation.expert_use import ExpertUse, expert_use, select
from srl.logs.report.experts import load_page
from srl.models.experts import SparseLayer, need_sparse
from srl.models.loading import context_limit, load_policy, prompt_format
from srl.models.routing import why_unreadable
from srl.runs.expert_load import load_figures
from srl.runs.folder import RunFolder, replace_file, write_json


def report_experts(
    experiment: Experiment, *, rows: int, name: str | None, argv: Sequence[str], console: Console
) -> Path:
    """Measures which experts the policy uses for expert steps, by part of text, source and step.

    Args:
        experiment: model, data and prompts.
        rows: the most steps.
        name: the name of the folder in `output_dir`; None is date and time.
        argv: the command line.
        console: where to print the progress.

    Returns:
        The folder.

    Raises:
        UsageError, DataError: wrong use.
    """
    run = RunFolder.create(Path(experiment.args.output_dir or "runs"), name)
    with session(run, console, argv=argv):
        try:
            started = time.monotonic()
            layers, use = _measure(experiment, rows, console)
            run.write_start(experiment.resolved(), argv)
            load = {"model": experiment.model, **use.to_json()}
            write_json(run.path / "load.json", load)
            page = load_page(f"experts of {experiment.model}", use.layers, use.by)
            replace_file(run.path / "load.html", page.encode())
            write_json(run.summary, {"seconds_last_session": time.monotonic() - started})
        except BaseException:
            if not run.summary.is_file():
                (run.path / "load.json").unlink(missing_ok=True)
                (run.path / "load.html").unlink(missing_ok=True)
                run.take_away()
            raise
    for table in _tables(layers, use):
        console.print(table)
    say(console, f"counts: {run.path / 'load.json'}   drawn: {run.path / 'load.html'}")
    return run.path


def select_experts(
    experiment: Experiment,
    *,
    by: SelectBy,
    threshold: float,
    rows: int,
    output: Path,
    console: Console,
) -> None:
    """Writes the experts that matter for the experiment's training steps to a file.

    Args:
        experiment: model, data and prompts.
        by: how an expert is scored.
        threshold: of each layer the fewest experts are taken whose scores sum to at least it.
        rows: the most steps.
        output: the file.
        console: where to print the progress.

    Raises:
        UsageError, DataError: wrong use.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold is {threshold}; it must be above 0 and at most 1, as 0.2")
    if output.exists():
        raise UsageError(f"--output {output} exists already; name another file, or remove it")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.absolute().parent}")
    layers, use = _measure(experiment, rows, console)
    chosen = select(use.scores(by), threshold)
    taken, every = sum(map(len, chosen)), sum(layer.num_experts for layer in layers)
    what = {"model": experiment.model, "by": by, "threshold": threshold, "tokens": use.tokens}
    write_json(output, {**what, "layers": chosen})
    table = Table(title=f"experts by {by} up to {threshold:g}", title_justify="left")
    for head in ("layer", "experts", "taken", "their scores together"):
        table.add_column(head)
    for layer, experts, scores in zip(layers, chosen, use.scores(by), strict=True):
        together = sum(scores[expert] for expert in experts)
        names = ", ".join(map(str, experts))
        table.add_row(f"{layer.number}", f"{layer.num_experts}", names, f"{together:.2f}")
    console.print(table)
    say(console, f"{taken} of {every} experts: {output}")
    say(console, f"train them alone: python -m srl train --config … --train_experts {output}")


def _measure(
    experiment: Experiment, most: int, console: Console
) -> tuple[list[SparseLayer], ExpertUse]:
    """Returns the policy's sparse layers and their use; equal settings give the same steps."""
    if most < 1:
        raise UsageError(f"--rows is {most}; it must be 1 or more")
    args = experiment.args
    splits = load_splits(experiment, console)
    shots, trajectories = draw_shots(splits.train, args, seed=args.split_seed)
    model, tokenizer = load_policy(experiment.model, experts=args.experts_implementation)
    layers = need_sparse(model, experiment.model)
    if (why := why_unreadable(layers)) is not None:
        raise UsageError(f"the experts of {experiment.model} cannot be watched: {why}")
    model.to(args.device)
    form = prompt_format(model, tokenizer, args, shots=shots)
    rows = Rows.of(trajectories, form, args, context_limit(model), most=most)
    if not rows.examples:
        raise UsageError(f"there are no training steps{dropped(rows.dropped)}; give other data")
    say(console, f"{len(rows.examples):,} of the expert's steps{dropped(rows.dropped)}")
    with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
        budget, share = args.rollout_token_budget // 8, args.prefix_tree
        return layers, expert_use(model, layers, form, rows, budget=budget, share=share)


def _tables(layers: Sequence[SparseLayer], use: ExpertUse) -> list[Table]:
    """Returns two tables of how even the load is: by layer, and by part, source and step."""
    first = Table(title=f"load of the experts, {use.tokens:,} tokens", title_justify="left")
    for head in ("layer", "experts", "a token's", "violation", "entropy", "idle", "busiest"):
        first.add_column(head, justify="right")
    for layer, counts in zip(layers, use.layers, strict=True):
        busiest = max(range(len(counts)), key=counts.__getitem__)
        first.add_row(
            *(f"{layer.number}", f"{layer.num_experts}", f"{layer.top_k}", *_figures([counts])),
            f"{busiest}: {counts[busiest] / sum(counts):.0%}",
        )
    second = Table(title="by part of the text, source and step", title_justify="left")
    for head in ("", "tokens", "violation", "entropy", "idle"):
        second.add_column(head, justify="right" if head else "left")
    for split, values in use.by.items():
        for value, counts_of in values.items():
            if tokens := sum(counts_of[0]) // layers[0].top_k:
                cells = _figures(counts_of)
                second.add_row(f"{split.replace('_', ' ')} {value}", f"{tokens:,}", *cells)
    return [first, second]


def _figures(counts: Sequence[Sequence[int]]) -> tuple[str, str, str]:
    figures = load_figures(counts)
    return (
        f"{figures['router/violation']:.2f}",
        f"{figures['router/entropy']:.2f}",
        f"{figures['router/idle']:.0%}",
    )
