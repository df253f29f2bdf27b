"""A whole run, as the command line starts it: data, trainer, before, training, after, summary.

Everything that can be refused is refused before anything is trained, and a run folder that was
made in vain is taken away again.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from environments.types import LoadReport, Trajectory
from rewards import RewardSum
from srl.config import Experiment, SRLConfig, parse_experiment
from srl.errors import UsageError
from srl.estimates import Estimate, bootstrap, share_of_rows
from srl.evaluate import (
    Attempt,
    ScoredStep,
    accuracy,
    by_length,
    sample_steps,
    solve_step_by_step,
    solve_whole,
    step_metrics,
    try_rewards,
)
from srl.policy import context_limit, load_policy, prompt_format
from srl.progress import ProgressReport
from srl.prompts import PromptFormat
from srl.records import RecordWriter, read_records, read_rows
from srl.rollouts import LocalSampler, SamplingParams
from srl.run_folder import RunFolder, check_checkpoint, write_json
from srl.steps import build_examples, split_by_problem
from srl.trainer import SRLTrainer

# Held-out rows whose steps are compared with the expert's, before and after: enough for +-3 points.
TEST_ROWS = 1000


@dataclass(frozen=True)
class Splits:
    """Trajectories by what they are for; no problem is in two of them."""

    train: list[Trajectory]
    validation: list[Trajectory]
    test: list[Trajectory]


class InterruptedRunError(Exception):
    """Ctrl-C: a checkpoint was saved, and the run can be resumed."""


def load_splits(experiment: Experiment, console: Console) -> Splits:
    """Read the experiment's data and hold out whole problems.

    Raises:
        DataError, UsageError: data that cannot be used, or too little of it.
    """
    report = LoadReport()
    trajectories = experiment.load_trajectories(report)
    args = experiment.args
    held_out: list[Trajectory] = []
    train = trajectories
    wanted = args.validation_problems + args.test_problems
    distinct = len({trajectory.problem_id for trajectory in trajectories})
    if wanted and wanted >= distinct:
        raise UsageError(
            f"validation_problems {args.validation_problems} and test_problems "
            f"{args.test_problems} leave nothing to train on: the data has {distinct:,} distinct "
            f"problems; try --validation_problems {distinct // 10} --test_problems "
            f"{distinct // 5}, or give more data"
        )
    if wanted:
        train, held_out = split_by_problem(
            trajectories,
            held_out=wanted,
            seed=args.seed,
        )
    validation, test = held_out, []
    if args.test_problems and not args.validation_problems:
        validation, test = [], held_out
    elif args.test_problems:
        validation, test = split_by_problem(held_out, held_out=args.test_problems, seed=args.seed)
    drops = "".join(f", {n:,} dropped: {why}" for why, n in report.dropped.items())
    _say(
        console,
        f"data: {experiment.data['source']}, {report.kept:,} of {report.rows:,} rows kept{drops}; "
        f"{len(train):,} trajectories to train on, {len(validation):,} to validate, "
        f"{len(test):,} to test",
    )
    return Splits(train, validation, test)


def train_run(
    experiment: Experiment, name: str | None, argv: Sequence[str], console: Console
) -> Path:
    """Train from the start; returns the run folder.

    Raises:
        UsageError, DataError: wrong use; then no run folder is left behind.
        InterruptedRunError: Ctrl-C, after saving.
    """
    run = RunFolder.create(Path(experiment.args.output_dir or "runs"), name)
    try:
        run.write_start(experiment.resolved(), argv)
        return _train(experiment, run, None, console)
    except BaseException:
        # Before the first step there is nothing to go on from and nothing to look at, and the
        # folder would only keep its name in use.
        if not any(log.is_file() and log.stat().st_size for log in (run.metrics, run.steps)):
            shutil.rmtree(run.path)
        raise


def resume_run(
    run: RunFolder, values: Mapping[str, object], argv: Sequence[str], console: Console
) -> Path:
    """Go on from a run's newest checkpoint with the settings `values`.

    Raises:
        UsageError: there is nothing to go on from, or the run is complete.
        InterruptedRunError: Ctrl-C, after saving.
    """
    experiment = parse_experiment(values, where=str(run.config))
    if run.summary.is_file():
        raise UsageError(
            f"{run.path} is complete: it has a summary.json. To train its policy further start a "
            f'new run: make train RUN={run.name}-2 ARGS="--model {run.policy}"'
        )
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        raise UsageError(
            f"{run.path} has no checkpoint yet; start the run again under another name: "
            f"make train RUN={run.name}-2"
        )
    check_checkpoint(checkpoint)
    run.add_command(argv)
    return _train(experiment, run, checkpoint, console)


def _train(
    experiment: Experiment, run: RunFolder, checkpoint: Path | None, console: Console
) -> Path:
    started = time.monotonic()
    args = experiment.args
    args.output_dir = str(run.path)
    args.run_name = args.run_name or run.name  # what trackers call it
    set_seed(args.seed)
    for stale in run.path.parent.glob(f"{run.name}.failed.*.jsonl"):
        stale.unlink()  # of an earlier start
    rewards = experiment.sum_rewards(run.path)
    splits = load_splits(experiment, console)
    model, tokenizer = load_policy(experiment.model)
    progress = ProgressReport(console, save_every_multiple_of=args.num_iterations)
    trainer = SRLTrainer(
        model,
        args,
        train_trajectories=splits.train,
        validation_trajectories=splits.validation,
        step_rewards=rewards,
        processing_class=tokenizer,
        callbacks=[progress],
    )
    _say(
        console,
        f"policy: {experiment.model}, {model.num_parameters():,} parameters, on {args.device}, "
        f"{'bf16 autocast over float32' if args.bf16 else 'float32'}",
    )
    _say(console, trainer.reward_report())
    _say(console, trainer.arithmetic())

    def test(when: str) -> dict[str, object]:
        return _test(
            trainer.model, tokenizer, experiment, trainer.rewards, splits.test, run, when, console
        )

    before_path = run.path / "before.json"
    if checkpoint is None:
        before = test("before")
        write_json(before_path, before)
    try:
        # The evaluation drew random numbers or not: training starts from the same state.
        set_seed(args.seed)
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()
    if progress.interrupted:
        raise InterruptedRunError(f"saved; go on with: make resume RUN={run.name}")
    if args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        step = trainer.state.best_model_checkpoint.rpartition("-")[2]
        _say(
            console,
            f"policy of step {step}, the best on validation: {args.metric_for_best_model} "
            f"{trainer.state.best_metric:.3f}",
        )
    _save_policy(trainer, run.policy)
    after = test("after")
    before = _read_before(before_path)
    write_json(
        run.summary,
        {
            "before": before,
            "after": after,
            "steps": trainer.state.global_step,
            "best_checkpoint": trainer.state.best_model_checkpoint,
            "best_metric": trainer.state.best_metric,
            "tokens_written": sum(int(line.get("tokens", 0)) for line in trainer.state.log_history),
            "seconds_training": result.metrics["train_runtime"],
            "seconds": time.monotonic() - started,
        },
    )
    before_path.unlink(missing_ok=True)
    if before and after:
        console.print(_compare(before, after))
    _say(
        console,
        f"policy: {run.policy}   records: {run.steps}   look at them with: make inspect "
        f"RUN={run.name}",
    )
    return run.path


def evaluate_policy(
    model_name: str, experiment: Experiment, run: RunFolder | None, console: Console
) -> dict[str, object]:
    """Evaluate a saved policy on the experiment's test problems (validation ones if it has none).

    Raises:
        UsageError: the config holds no problems out, or the policy cannot be loaded.
    """
    set_seed(experiment.args.seed)
    rewards = experiment.sum_rewards(None if run is None else run.path)
    splits = load_splits(experiment, console)
    problems = splits.test or splits.validation
    if not problems:
        raise UsageError(
            "the config holds no problems out: give --test_problems N, with N of at least 1"
        )
    if run is not None:
        _refuse_trained_on(problems, run)
    if rows := build_examples(problems, targets=experiment.args.targets):
        try_rewards(rewards, rows[0])  # now rather than after all problems are solved
    model, tokenizer = load_policy(model_name)
    model.to(experiment.args.device)
    found = _test(model, tokenizer, experiment, rewards, problems, run, "eval", console)
    console.print(_compare(found, None))
    return found


def _refuse_trained_on(problems: Sequence[Trajectory], run: RunFolder) -> None:
    """Other settings than the run's may hold out problems that it trained on.

    Raises:
        UsageError: a problem is in the run's log of training.
    """
    if not run.steps.is_file():
        return
    trained = {record.problem_id for record in read_records(run.steps) if record.phase == "train"}
    seen = sum(problem.problem_id in trained for problem in problems)
    if seen:
        raise UsageError(
            f"{seen} of the {len(problems)} problems to solve were trained on in {run.path}; keep "
            "the run's data, seed and validation_problems, and ask for no more test_problems than "
            "it held out"
        )


def _test(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    experiment: Experiment,
    rewards: RewardSum,
    problems: Sequence[Trajectory],
    run: RunFolder | None,
    when: str,
    console: Console,
) -> dict[str, object]:
    """All figures of a policy on held-out problems; every attempt goes to eval.jsonl."""
    if not problems:
        return {}
    args = experiment.args
    started = time.monotonic()
    number = 0 if run is None else _next_evaluation(run.eval)
    _say(console, f"{when}: solving {len(problems):,} held-out problems")
    form = prompt_format(
        model,
        tokenizer,
        template=args.template,
        think=args.think,
        system_prompt=args.system_prompt,
        whole_system_prompt=args.whole_system_prompt,
    )
    sampler = LocalSampler(
        model,
        pad_id=int(tokenizer.pad_token_id),
        token_budget=args.rollout_token_budget,
        share=args.prefix_tree,
    )
    # The samples of an evaluation must not move the random numbers of training.
    with (
        torch.random.fork_rng(devices=[] if args.device.type == "cpu" else None),
        torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)),
    ):
        torch.manual_seed(args.seed)
        attempts = _solve(sampler, form, problems, args, context_limit(model))
        steps = _steps(sampler, form, problems, args, rewards, context_limit(model))
    if run is not None:
        with RecordWriter(run.eval) as writer:
            writer.write(
                {"when": when, "evaluation": number, **attempt.to_json()} for attempt in attempts
            )
    figures = _figures(attempts, args)
    _say(console, f"{when}: done in {time.monotonic() - started:.0f} s")
    return {**figures, **steps}


def _next_evaluation(path: Path) -> int:
    """Evaluations are numbered in eval.jsonl: one made again after a kill is another one."""
    if not path.is_file():
        return 0
    numbers = [row.get("evaluation") for row in read_rows(path)]
    return 1 + max((n for n in numbers if isinstance(n, int)), default=-1)


def _solve(
    sampler: LocalSampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    args: SRLConfig,
    limit: int | None,
) -> list[Attempt]:
    greedy = SamplingParams(args.max_completion_length, temperature=0, stop_ids=form.stop_ids)
    sampled = SamplingParams(
        args.max_completion_length,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        stop_ids=form.stop_ids,
    )
    attempts: list[Attempt] = []
    for sample in range(args.solve_samples + 1):
        attempts += solve_step_by_step(
            sampler,
            form,
            problems,
            params=sampled if sample else greedy,
            max_steps=args.solve_max_steps,
            context_limit=limit,
            sample=sample,
        )
    if args.solve_whole:
        whole = SamplingParams(
            args.whole_max_completion_length, temperature=0, stop_ids=form.stop_ids
        )
        attempts += solve_whole(sampler, form, problems, params=whole, context_limit=limit)
        if args.solve_samples:
            whole = SamplingParams(
                args.whole_max_completion_length,
                temperature=args.temperature,
                top_p=args.top_p,
                top_k=args.top_k,
                min_p=args.min_p,
                stop_ids=form.stop_ids,
            )
            attempts += solve_whole(
                sampler,
                form,
                problems,
                params=whole,
                context_limit=limit,
                num_samples=args.solve_samples,
                first_sample=1,
            )
    return attempts


def _steps(
    sampler: LocalSampler,
    form: PromptFormat,
    problems: Sequence[Trajectory],
    args: SRLConfig,
    rewards: RewardSum,
    limit: int | None,
) -> dict[str, object]:
    """Greedy steps on held-out rows beside the expert's."""
    examples = build_examples(problems, targets=args.targets, step_title=args.step_title)
    rows = [(example, form.encode_example(example)) for example in examples]
    if limit is not None:
        rows = [row for row in rows if len(row[1]) + args.max_completion_length <= limit]
    # The problems are in the order of a hash, so the first rows are a fair sample of them.
    rows = rows[:TEST_ROWS]
    if not rows:
        return {}
    groups = sample_steps(
        sampler,
        form,
        [example for example, _ in rows],
        [prompt for _, prompt in rows],
        rewards=rewards,
        params=SamplingParams(args.max_completion_length, temperature=0, stop_ids=form.stop_ids),
        num_samples=1,
    )
    steps = [group[0] for group in groups]
    valid = [step for step in steps if step.parsed.failure is None]
    found = {f"held-out steps: {name}": _mean_reward(valid, name) for name in rewards.names}
    found["held-out steps: exact"] = share_of_rows(
        [step.exact for step in valid], [step.example.problem_id for step in valid]
    )
    found["held-out steps: format failures"] = share_of_rows(
        [step.parsed.failure is not None for step in steps],
        [step.example.problem_id for step in steps],
    )
    lift = step_metrics(steps)["lift"]
    return {
        **{name: estimate.to_json() for name, estimate in found.items() if estimate.n},
        **({} if math.isnan(lift) else {"held-out steps: lift": lift}),
    }


def _mean_reward(steps: Sequence[ScoredStep], name: str) -> Estimate:
    """Of the steps that a reward applies to."""
    scored = [(step, v) for step in steps if (v := step.score.rewards.get(name)) is not None]
    return bootstrap([v for _, v in scored], [step.example.problem_id for step, _ in scored])


def _figures(attempts: Sequence[Attempt], args: SRLConfig) -> dict[str, object]:
    found: dict[str, object] = {}
    for mode, words in (("steps", "step by step"), ("whole", "whole solution")):
        for sampled in (False, True):
            chosen = [a for a in attempts if a.mode == mode and (a.sample > 0) == sampled]
            if not chosen:
                continue
            name = f"{words}, {'sampled' if sampled else 'greedy'}"
            found[name] = accuracy(chosen).to_json()
            short = [a for a in chosen if len(a.trajectory.steps) <= args.short_steps]
            long = [a for a in chosen if len(a.trajectory.steps) > args.short_steps]
            for part, label in ((short, "short"), (long, "long")):
                if part:
                    found[f"{name}, {label}"] = accuracy(part).to_json()
            if mode == "steps" and not sampled:
                found["by expert steps"] = {
                    str(length): estimate.to_json()
                    for length, estimate in by_length(chosen).items()
                }
    return found


def _save_policy(trainer: SRLTrainer, folder: Path) -> None:
    """Save the policy, and prove that what is loaded again is what was trained.

    Peers' second stages have started from the base model because the trained weights were never
    loaded; so the logits on a fixed prompt must come back exactly.
    """
    trainer.save_model(str(folder))
    # Without autocast, whose rounding would hide what is compared here.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    again, _ = load_policy(str(folder))
    again.to(model.device).eval()
    ids = torch.tensor([trainer.prompts[0]], device=model.device)
    with torch.no_grad():
        difference = (model(ids).logits.float() - again(ids).logits.float()).abs().max().item()
    if not difference <= 1e-4:
        raise RuntimeError(
            f"the policy saved in {folder} is not the one that was trained: on the same prompt "
            f"their logits differ by {difference:.3g}"
        )


def _read_before(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _compare(before: Mapping[str, object], after: Mapping[str, object] | None) -> Table:
    """Figures side by side, each with its 95 % interval."""
    table = Table(title="held-out problems, 95 % intervals", title_justify="left")
    table.add_column("")
    table.add_column("n", justify="right")
    table.add_column("before" if after is not None else "value", justify="right")
    if after is not None:
        table.add_column("after", justify="right")
        table.add_column("change", justify="right")
    later = after or {}
    for name in [*before, *(name for name in later if name not in before)]:
        value, other = before.get(name), later.get(name)
        if name == "by expert steps":
            parts = [part if isinstance(part, dict) else {} for part in (value, other)]
            for length in sorted({*parts[0], *parts[1]}, key=int):
                one, two = parts[0].get(length), parts[1].get(length)
                _row(table, f"  expert takes {length} steps", one, two)
        else:
            _row(table, name, value, other)
    return table


def _row(table: Table, name: str, before: object, after: object) -> None:
    counts = [str(figure["n"]) for figure in (before, after) if isinstance(figure, dict)]
    n = "/".join(dict.fromkeys(counts))
    cells = [name, n, _cell(before)]
    if len(table.columns) > 3:
        cells += [_cell(after), _change(before, after)]
    table.add_row(*cells)


def _cell(figure: object) -> str:
    if isinstance(figure, dict):
        e = Estimate(figure["value"], figure["low"], figure["high"], figure["n"])
        return f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"
    return f"{100 * figure:.1f}" if isinstance(figure, float) else "-"


def _change(before: object, after: object) -> str:
    one = before["value"] if isinstance(before, dict) else before
    two = after["value"] if isinstance(after, dict) else after
    if isinstance(one, float) and isinstance(two, float):
        return f"{100 * (two - one):+.1f}"
    return "-"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
