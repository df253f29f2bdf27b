"""A whole run, as the command line starts it: data, trainer, before, training, after, summary.

Everything that can be refused is refused before anything is trained, and a run folder that was
made in vain is taken away again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from environments.types import DataError
from srl.config.experiment import Experiment, parse_experiment
from srl.config.settings import SRLConfig
from srl.console import say
from srl.data.splits import load_splits
from srl.data.steps import build_examples
from srl.errors import UsageError
from srl.evaluation.contamination import refuse_trained_on
from srl.evaluation.held_out import comparison, measure, paired_changes
from srl.models.loading import load_policy
from srl.models.lora import add_adapter, is_adapted, merged_within
from srl.rollout.choice import way_of
from srl.rollout.rollouts import try_rewards
from srl.runs.folder import RunFolder, check_checkpoint, write_json
from srl.training.checkpoints import why_kept
from srl.training.progress import ProgressReport
from srl.training.trainer import SRLTrainer

if TYPE_CHECKING:
    from srl.training.sft import ExpertTrainer


class InterruptedRunError(Exception):
    """Ctrl-C: a checkpoint was saved, and the run can be resumed."""


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
    before = run.read_config()
    run.write_config(values)  # with changes that were accepted: the next resume goes on with them
    try:
        run.add_command(argv)
        return _train(experiment, run, checkpoint, console)
    except (UsageError, DataError):
        run.write_config(before)
        raise


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
    refuse_trained_on(
        splits.test,
        experiment.model,
        lambda line: say(console, line),
        validation=splits.validation,
    )
    model, tokenizer = load_policy(experiment.model)
    parameters = f"{model.num_parameters():,} parameters"
    if experiment.lora is not None:
        model = add_adapter(model, experiment.lora)
        trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        parameters += f" and an adapter of {trained:,}, which alone is trained"
    times = args.num_iterations if isinstance(args, SRLConfig) else 1
    progress = ProgressReport(console, save_every_multiple_of=times)
    trainer = _trainer_of(experiment.method)(
        model,
        args,
        train_trajectories=splits.train,
        validation_trajectories=splits.validation,
        step_rewards=rewards,
        processing_class=tokenizer,
        callbacks=[progress],
    )
    say(
        console,
        f"policy: {experiment.model}, {parameters}, on {args.device}, "
        f"{'bf16 autocast over float32' if args.bf16 else 'float32'}",
    )
    for line in trainer.start_lines:
        say(console, line())

    def test(policy: PreTrainedModel, when: str) -> dict[str, object]:
        return measure(
            policy, tokenizer, experiment, trainer.rewards, splits.test, run, when, console
        )

    before_path = run.path / "before.json"
    if checkpoint is None:
        before = test(trainer.model, "before") if args.test_before else {}
        write_json(before_path, before)
    try:
        # For what draws from torch's generator, such as dropout; rollouts have their own numbers.
        set_seed(args.seed)
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()
    if progress.interrupted:
        raise InterruptedRunError(f"saved; go on with: make resume RUN={run.called}")
    best = trainer.state.best_model_checkpoint if args.load_best_model_at_end else None
    if best is not None:
        say(console, why_kept(trainer.state, str(args.metric_for_best_model)))
    after = test(_save_policy(trainer, tokenizer, run), "after")
    before = _read_before(before_path)
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
            # Of the last session alone, where a run was resumed
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
    if kept and not any(kept):  # means over the steps since the line before
        say(
            console,
            f"no group was kept in any of {trainer.state.global_step} steps, so the policy is the "
            "one that the run started from: the rollouts of every group earned the same. Look at "
            "the records, and take harder problems, or easier ones, or another reward",
        )
    if experiment.method == "srl":
        looking = f"records: {run.steps}   look at them with: make inspect RUN={run.called}"
    else:
        looking = f"figures: {run.metrics}   attempts at the test problems: {run.eval}"
    say(console, f"policy: {run.policy}   {looking}")
    return run.path


def _trainer_of(method: str) -> Callable[..., SRLTrainer | ExpertTrainer]:
    if method == "srl":
        return SRLTrainer
    from srl.training.sft import ExpertTrainer

    return ExpertTrainer


def evaluate_policy(
    model_name: str, experiment: Experiment, run: RunFolder | None, console: Console
) -> dict[str, object]:
    """Evaluate a saved policy on the experiment's test problems (validation ones if it has none).

    Raises:
        UsageError: the config holds no problems out, the policy was trained on some of them, or it
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
        try_rewards(rewards, rows[0])  # now rather than after all problems are solved
    model, tokenizer = load_policy(model_name)
    model.to(experiment.args.device)
    if slower := way_of(model, share=experiment.args.prefix_tree).line():
        say(console, slower)
    found = measure(model, tokenizer, experiment, rewards, problems, run, "eval", console)
    console.print(comparison(found, None))
    return found


def evaluate_into(
    name: str, model_name: str, experiment: Experiment, argv: Sequence[str], console: Console
) -> Path:
    """Evaluate a model in a run folder of its own; returns the folder, with a summary in it.

    Raises:
        UsageError, DataError: see `evaluate_policy`; then no run folder is left behind.
    """
    run = RunFolder.create(Path(experiment.args.output_dir or "runs"), name)
    try:
        run.write_start({**experiment.resolved(), "model": model_name}, argv)
        write_json(run.summary, {"eval": evaluate_policy(model_name, experiment, run, console)})
    except BaseException:
        shutil.rmtree(run.path)
        raise
    say(console, f"figures: {run.summary}   attempts: {run.eval}")
    return run.path


def _save_policy(
    trainer: SRLTrainer | ExpertTrainer, tokenizer: PreTrainedTokenizerBase, run: RunFolder
) -> PreTrainedModel:
    """Save the policy, and prove that what is loaded again is what was trained; returns it.

    Peers' second stages have started from the base model because the trained weights were never
    loaded; so the logits on a fixed prompt must come back exactly. An adapter is saved beside the
    policy, which is the whole model with the adapter merged, and both must come back, but for the
    rounding of float32 that merging makes: it grows with the logits.
    """
    # Without autocast, whose rounding would hide what is compared here, and on the CPU: a second
    # model beside the optimiser's state may be more than a GPU holds.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    device = model.device
    model.to("cpu")
    ids = torch.tensor([trainer.prompts[0]])

    def logits(policy: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            return policy(ids).logits.float()

    trained = logits(model)
    allowed = 1e-4
    saved = [run.policy]
    if is_adapted(model):
        allowed = merged_within(trained)
        saved.append(run.path / "adapter")
        trainer.save_model(str(saved[1]))
        model = model.merge_and_unload(safe_merge=True)  # in place: nothing trains it any more
        model.save_pretrained(run.policy)
        tokenizer.save_pretrained(run.policy)
    else:
        trainer.save_model(str(run.policy))
    for folder in saved:
        again, _ = load_policy(str(folder))
        difference = (trained - logits(again.eval())).abs().max().item()
        if not difference <= allowed:
            raise RuntimeError(
                f"the policy saved in {folder} is not the one that was trained: on the same "
                f"prompt their logits differ by {difference:.3g}; rounding explains {allowed:.3g}"
            )
    return model.to(device)


def _read_before(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
