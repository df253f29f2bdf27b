"""Runs a whole training: data, trainer, test before, training, test after, summary.

Wrong settings and data are refused before training starts. The new folder of a run that fails
before its first step is removed again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from environments.types import DataError
from rewards.pool import cores
from srl.commands.inputs import Inputs, changes_since_start, inputs_of, versions_since_start
from srl.commands.session import Session, session
from srl.config.experiment import Experiment, parse_experiment
from srl.config.settings import SRLConfig
from srl.console import say
from srl.data.shots import draw_shots
from srl.data.splits import load_splits
from srl.data.steps import build_examples
from srl.errors import RunError, UsageError
from srl.evaluation.contamination import refuse_trained_on
from srl.evaluation.held_out import comparison, measure, paired_changes
from srl.models.loading import load_policy, prompt_format
from srl.models.lora import add_adapter, is_adapted, merged_within
from srl.models.routing import save_bias
from srl.rollout.choice import way_of
from srl.rollout.rollouts import try_rewards
from srl.runs.attempts import forget
from srl.runs.checkpoints import latest_checkpoint, put_in_place
from srl.runs.commands import command_again, resume_command
from srl.runs.folder import RunFolder, replace_file, write_json
from srl.threads import busy_elsewhere, choose_threads
from srl.training.checkpoints import why_kept
from srl.training.loss import load_loss
from srl.training.progress import ProgressReport
from srl.training.trainer import SRLTrainer

if TYPE_CHECKING:
    from srl.training.sft import ExpertTrainer


class InterruptedRunError(Exception):
    """A signal asked the run to stop; a checkpoint was saved, and the run can be resumed."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def train_run(
    experiment: Experiment, name: str | None, argv: Sequence[str], console: Console
) -> Path:
    """Trains from the start; returns the run folder.

    Raises:
        UsageError, DataError: wrong use; no run folder is left behind.
        RunError: the run cannot continue, for example because the disk is full; the message says
            how to continue.
        InterruptedRunError: a signal stopped the run after a checkpoint was saved.
        Stopped: a signal stopped the run at once; the message says how to continue.
    """
    run = RunFolder.create(Path(experiment.args.output_dir or "runs"), name)
    with session(run, console, argv=argv) as entered:
        run.refuse_used()  # another process may have started first
        try:
            run.write_start(experiment.resolved(), argv)
            return _train(experiment, run, None, console, entered)
        except BaseException:
            # Before the first step there is nothing to resume and nothing to inspect, and the
            # folder would only block its name.
            if not any(log.is_file() and log.stat().st_size for log in (run.metrics, run.steps)):
                run.take_away()
            raise


def resume_run(
    run: RunFolder,
    values: Mapping[str, object],
    argv: Sequence[str],
    console: Console,
    *,
    accept_changes: bool = False,
) -> Path:
    """Continues a run from its newest complete checkpoint with the settings `values`.

    Args:
        run: the run's folder.
        values: the run's settings.
        argv: the command line.
        console: where to print the progress.
        accept_changes: continue although the data, code or model have changed.

    Raises:
        UsageError: there is no checkpoint, the run is complete, or another process writes into its
            folder.
        RunError: the run cannot continue.
        InterruptedRunError: a signal stopped the run after a checkpoint was saved.
        Stopped: a signal stopped the run at once; the message says how to continue.
    """
    experiment = parse_experiment(values, where=str(run.config))
    with session(run, console, accept_changes=accept_changes) as entered:
        if run.summary.is_file():
            raise UsageError(
                f"{run.path} is complete: it has a summary.json. To train its policy further start "
                f'a new run: make train RUN={run.name}-2 ARGS="--model {run.policy}"'
            )
        again = command_again(run) or f"make train RUN={run.name}-2"
        try:
            checkpoint = latest_checkpoint(
                run.path,
                lambda line: say(console, line),
                with_best=experiment.args.load_best_model_at_end,
            )
        except UsageError as error:  # no checkpoint is complete
            raise UsageError(f"{error}; or start the run again: {again}") from error
        if checkpoint is None:
            raise UsageError(
                f"{run.path} has no checkpoint yet; start the run again under another name: {again}"
            )
        say(console, f"going on from {checkpoint}")
        before = run.read_config()
        commands = run.command.read_bytes() if run.command.is_file() else b""
        run.write_config(values)  # with accepted changes, which the next resume keeps
        try:
            run.add_command(argv)
            return _train(experiment, run, checkpoint, console, entered)
        except (UsageError, DataError):
            run.write_config(before)
            replace_file(run.command, commands)
            raise


def _refuse_gone(run: RunFolder) -> None:
    if not run.config.is_file():
        raise RunError(
            f"{run.path} is gone: the run's folder was deleted or moved while the run was going "
            "on. Where it was moved, it can be resumed there"
        )


# The share of format failures above which they are why nothing was learned.
_MOSTLY = 0.9


def _train(
    experiment: Experiment,
    run: RunFolder,
    checkpoint: Path | None,
    console: Console,
    entered: Session,
) -> Path:
    started = time.monotonic()
    args = experiment.args
    args.output_dir = str(run.path)
    args.run_name = args.run_name or run.name  # its name in trackers
    set_seed(args.seed)
    if args.device.type == "cpu":
        _use_threads(run, console, resumes=checkpoint is not None)
    if isinstance(args, SRLConfig):
        load_loss(args)  # an unusable loss is refused before data are read, like rewards
    rewards = experiment.sum_rewards(run.path)
    rewards.forget_failed_rows()  # of an earlier start
    splits = load_splits(experiment, console)
    refuse_trained_on(
        splits.test,
        experiment.model,
        lambda line: say(console, line),
        validation=splits.validation,
    )
    model, tokenizer = load_policy(experiment.model, experts=args.experts_implementation)
    inputs = inputs_of(experiment, splits)
    if checkpoint is not None:
        _compare_inputs(run, inputs, entered.accept_changes, console)
    parameters = f"{model.num_parameters():,} parameters"
    if experiment.lora is not None:
        model = add_adapter(model, experiment.lora)
        trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        parameters += f" and an adapter of {trained:,}, which alone is trained"
    entered.will_save(model, run, console)
    times = args.num_iterations if isinstance(args, SRLConfig) else 1
    progress = ProgressReport(console, save_every_multiple_of=times, signals=entered.signals)
    trainer = _trainer_of(experiment.method)(
        model,
        args,
        train_trajectories=splits.train,
        validation_trajectories=splits.validation,
        step_rewards=rewards,
        processing_class=tokenizer,
        callbacks=[progress],
        mixture=experiment.mixture,
    )
    say(
        console,
        f"policy: {experiment.model}, {parameters}, on {args.device}, "
        f"{'bf16 autocast over float32' if args.bf16 else 'float32'}",
    )
    trainer.stream.takes_any_state = entered.accept_changes
    for line in trainer.start_lines:
        say(console, line())

    def test(policy: PreTrainedModel, when: str) -> dict[str, object]:
        return measure(
            policy, trainer.form, experiment, trainer.rewards, splits.test, run, when, console
        )

    before_path = run.before
    if checkpoint is None:
        before = test(trainer.model, "before") if args.test_before else {}
        write_json(before_path, before)
    else:
        forget(run.eval, "after")  # results of a process that ended before it wrote the summary
    write_json(run.inputs, inputs)
    before = _read_before(before_path)
    _refuse_gone(run)
    try:
        # For dropout and other uses of torch's generator; rollouts have their own random numbers.
        set_seed(args.seed)
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()
    if (asked := entered.signals.asked) is not None:
        raise InterruptedRunError(f"saved; go on with: {resume_command(run)}", asked)
    entered.signals.at_once()
    best = trainer.state.best_model_checkpoint if args.load_best_model_at_end else None
    if best is not None:
        say(console, why_kept(trainer.state, str(args.metric_for_best_model)))
    _refuse_gone(run)
    after = test(_save_policy(trainer, tokenizer, run), "after")
    _refuse_gone(run)
    write_json(
        run.summary,
        {
            "before": before,
            "after": after,
            "steps": trainer.state.global_step,
            "best_checkpoint": best,
            "best_metric": None if best is None else trainer.state.best_metric,
            "tokens_written" if experiment.method == "srl" else "tokens_read": sum(
                int(line.get("tokens", 0)) for line in trainer.state.log_history
            ),
            # Of the last session only, if the run was resumed
            "seconds_training_last_session": result.metrics["train_runtime"],
            "seconds_last_session": time.monotonic() - started,
        },
    )
    before_path.unlink(missing_ok=True)
    if before and after:
        console.print(comparison(before, after))
        if (changes := paired_changes(run)) is not None:
            say(console, changes)
    kept = [line["groups_kept"] for line in trainer.state.log_history if "groups_kept" in line]
    if kept and not any(kept):  # each value is a mean over the steps since the previous line
        failures = [
            line["format_failures"]
            for line in trainer.state.log_history
            if "format_failures" in line
        ]
        advice = (
            "Nearly all of them break the format: the first step's advice above and "
            "docs/cold_start.md say what helps"
            if failures and min(failures) > _MOSTLY
            else "Look at the records, and take harder problems, or easier ones, or another reward"
        )
        say(
            console,
            f"no group was kept in any of {trainer.state.global_step} steps, so the policy is the "
            f"one that the run started from: the rollouts of every group earned the same. {advice}",
        )
    if experiment.method == "srl":
        looking = f"records: {run.steps}   look at them with: make inspect RUN={run.called}"
    else:
        looking = f"figures: {run.metrics}   attempts at the test problems: {run.eval}"
    say(console, f"policy: {run.policy}   {looking}")
    return run.path


def _compare_inputs(run: RunFolder, inputs: Inputs, accept: bool, console: Console) -> None:
    """Reports that data, code or model of a resumed run have changed; refuses unless accepted.

    Raises:
        UsageError: something has changed, and that was not accepted.
    """
    if changed := changes_since_start(run, inputs):
        lines = "\n  ".join(["not what the run was started with:", *changed])
        if not accept:
            raise UsageError(
                f"{lines}\nThe resumed run would not equal an uninterrupted one. Put back what was "
                "changed; or, to go on all the same, add --accept-changes"
            )
        say(console, lines)
    if versions := versions_since_start(run):
        say(console, versions)


def _use_threads(run: RunFolder, console: Console, *, resumes: bool) -> None:
    """Sets the number of torch threads by the free cores; a new run records the number."""
    environment = run.read_environment()
    recorded = environment.get("threads") if resumes else None
    threads = choose_threads(
        cores=cores(),
        busy=busy_elsewhere(),
        recorded=recorded if isinstance(recorded, int) else None,
        environ=os.environ,
    )
    if threads.count is not None:
        torch.set_num_threads(threads.count)
    elif not os.environ.get("OMP_NUM_THREADS") and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())  # a container's quota, which torch ignores
    if threads.why:
        say(console, threads.why)
    if not resumes:
        write_json(run.environment, {**environment, "threads": torch.get_num_threads()})


def _trainer_of(method: str) -> Callable[..., SRLTrainer | ExpertTrainer]:
    if method == "srl":
        return SRLTrainer
    from srl.training.sft import ExpertTrainer

    return ExpertTrainer


def evaluate_policy(
    model_name: str, experiment: Experiment, run: RunFolder | None, console: Console
) -> dict[str, object]:
    """Evaluates a saved policy on the experiment's test problems, or else its validation problems.

    Raises:
        UsageError: the config holds out no problems, the policy was trained on some of them, or it
            cannot be loaded.
    """
    set_seed(experiment.args.seed)
    rewards = experiment.sum_rewards(None if run is None else run.path)
    splits = load_splits(experiment, console)
    problems = splits.test or splits.validation
    if not problems:
        raise UsageError(
            "the config holds no problems out: give --test_problems N, with N of at least 1"
        )
    refuse_trained_on(problems, model_name, lambda line: say(console, line))
    rows = build_examples(problems, targets=experiment.args.targets)
    if rows and experiment.args.test_rows:
        try_rewards(rewards, rows[0])  # before all problems are solved
    model, tokenizer = load_policy(model_name, experts=experiment.args.experts_implementation)
    model.to(experiment.args.device)
    if slower := way_of(model, share=experiment.args.prefix_tree).line():
        say(console, slower)
    args = experiment.args
    shots, _ = draw_shots(splits.train, args, seed=args.split_seed)
    form = prompt_format(model, tokenizer, args, shots=shots)
    figures = measure(model, form, experiment, rewards, problems, run, "eval", console)
    console.print(comparison(figures, None))
    return figures


def evaluate_run(
    run: RunFolder, model_name: str, experiment: Experiment, console: Console
) -> dict[str, object]:
    """Evaluates like `evaluate_policy` and writes every attempt into the run's folder.

    Raises:
        UsageError: see `evaluate_policy`; or another process writes into the folder.
    """
    with session(run, console):
        return evaluate_policy(model_name, experiment, run, console)


def evaluate_into(
    name: str, model_name: str, experiment: Experiment, argv: Sequence[str], console: Console
) -> Path:
    """Evaluates a model into a new run folder; returns the folder, which contains a summary.

    Raises:
        UsageError, DataError: see `evaluate_policy`; no run folder is left behind.
    """
    run = RunFolder.create(Path(experiment.args.output_dir or "runs"), name)
    with session(run, console, argv=argv):
        run.refuse_used()  # another process may have started first
        try:
            run.write_start({**experiment.resolved(), "model": model_name}, argv)
            figures = evaluate_policy(model_name, experiment, run, console)
            write_json(run.summary, {"eval": figures})
        except BaseException:
            run.take_away()
            raise
    say(console, f"figures: {run.summary}   attempts: {run.eval}")
    return run.path


def _save_policy(
    trainer: SRLTrainer | ExpertTrainer, tokenizer: PreTrainedTokenizerBase, run: RunFolder
) -> PreTrainedModel:
    """Saves the policy, checks that it loads again as the trained model, and returns it.

    In other projects a second stage started from the base model because the trained weights were
    never loaded. So the logits of the loaded policy on a fixed prompt must equal the trained ones
    within 1e-4. With an adapter, the policy is the whole model with the adapter merged, and the
    adapter is saved beside it. Both are checked, within the float32 rounding of the merge
    (`merged_within`).
    """
    # Without autocast, whose rounding would hide differences. On the CPU, because a second model
    # beside the optimiser's state may not fit on the GPU.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    device = model.device
    model.to("cpu")
    ids = torch.tensor([trainer.prompts[0]])

    @torch.no_grad()
    def logits(policy: nn.Module) -> torch.Tensor:
        return cast(torch.Tensor, policy(ids).logits[0]).float()

    trained = logits(model)
    allowed = torch.full(trained.shape[:1], 1e-4)
    # Written under another name first, so that a killed process leaves no half-written policy.
    policy, adapter = (run.path / f".{name}.new" for name in ("policy", "adapter"))
    saved = {policy: run.policy}
    for folder in (policy, adapter):
        shutil.rmtree(folder, ignore_errors=True)
    if is_adapted(model):
        allowed, _ = merged_within(model, logits)
        saved[adapter] = run.path / "adapter"
        trainer.save_model(str(adapter))
        model = model.merge_and_unload(safe_merge=True)  # in place, because the training has ended
        model.save_pretrained(policy)
        save_bias(model, policy)
        tokenizer.save_pretrained(policy)
    else:
        trainer.save_model(str(policy))
    for folder, place in saved.items():
        again, _ = load_policy(str(folder))
        differences = (trained - logits(again.eval())).abs().amax(-1)
        if not bool((differences <= allowed).all()):
            at = int((differences - allowed).argmax())
            raise RuntimeError(
                f"the policy to be saved in {place} is not the one that was trained: on the same "
                f"prompt their logits differ by {differences[at]:.3g}; rounding explains "
                f"{allowed[at]:.3g}"
            )
    for folder, place in saved.items():
        put_in_place(folder, place)
    return model.to(device)


def _read_before(path: Path) -> dict[str, object]:
    """Returns the figures from before the training, which no later process can measure.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"cannot read {path}, the figures from before the training: {error}. Restore it; or "
            f"write {{}} into it, and the summary has no figures from before"
        ) from error
    if not isinstance(figures, dict):
        raise UsageError(f"{path} is not a JSON object, as the run wrote it. Restore it")
    return figures
