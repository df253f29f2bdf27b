"""Runs `python -m srl <command>`.

Exit codes: 0 done; 1 a failure at run time; 2 wrong use, with one message and no traceback; 128 + n
after signal n (130 after Ctrl-C). A training that is under way saves a checkpoint first.

Only the commands that need torch and transformers import them, so `--help`, `inspect` and
`check-data` answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import srl.threads  # noqa: F401, measures the load of other processes from here on
from srl.commands.arguments import parser_of, unknown_words, with_minus
from srl.console import now_and_then, say, visible
from srl.errors import RunError, UsageError
from srl.redaction import scrubbed, without_secrets

if TYPE_CHECKING:
    from srl.runs.folder import RunFolder

INTERRUPTED = 130
# The options of eval that are settings of a benchmark.
_OF_PROMPTS = ("num_fewshot", "fewshot_file", "as_is")
# Commands whose first word is a name, followed by options that argparse does not know.
_NAMED_FIRST = {"resume": "RUN", "check-data": "DATA"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        sys.argv[1:] = without_secrets(words)  # trackers store the command line
    # A file or a pipe gets a fixed width of 120; a terminal is asked for its width.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    errors = Console(stderr=True)
    try:
        # First, because errors of a foreign `rewards` package would be hard to explain.
        from srl.guard import check_packages_side_by_side

        check_packages_side_by_side()
        args, rest = parser_of(words).parse_known_args(with_minus(words))
        no_settings = getattr(args, "experts_command", None) not in (None, "report", "select")
        if rest and (no_settings or args.command in ("inspect", "report", "model", "compare")):
            raise UsageError(unknown_words(args, rest))
        if rest and args.command in _NAMED_FIRST and words[1].startswith("-"):
            what = _NAMED_FIRST[args.command]  # else an option's value is read as the name
            raise UsageError(f"write {what} first: python -m srl {args.command} {what} --key value")
        run = _COMMANDS[args.command]
        return run(args, rest, [sys.executable, "-m", "srl", *words], console)
    except (UsageError, ValueError, RuntimeError) as error:
        code = 2 if isinstance(error, UsageError) else _exit_code(error)
        if code is None:
            raise
        _complain(errors, str(error))
        return code
    except OSError as error:
        if error.filename is None:
            raise
        _complain(errors, f"{error.filename}: {error.strerror}")
        return 1
    except KeyboardInterrupt as stop:
        _complain(errors, str(stop) or "stopped")
        return getattr(stop, "exit_code", INTERRUPTED)


def _complain(console: Console, message: str) -> None:
    # The message may contain a path, a key or a reward's name, which are foreign text.
    lines = [visible(line, console.encoding) for line in f"srl: {scrubbed(message)}".split("\n")]
    console.print("\n".join(lines), style="bold", highlight=False, markup=False, soft_wrap=True)


def _exit_code(error: Exception) -> int | None:
    """Returns the exit code of an error that is shown as its message only; None for others."""
    from environments.types import DataError
    from rewards import RewardError

    if isinstance(error, DataError):
        return 2
    trainer = sys.modules.get("srl.training.trainer")
    known = (RewardError, RunError, *([trainer.NothingToTrainOnError] if trainer else []))
    return 1 if isinstance(error, known) else None


def _until_interrupted(work: Callable[[], object], console: Console) -> int:
    """Runs `work` and returns 0; after a signal, prints how to resume and returns its code."""
    from srl.commands.train import InterruptedRunError

    try:
        work()
    except InterruptedRunError as interrupted:
        say(console, str(interrupted))
        return interrupted.exit_code
    return 0


def _train(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    _quieten()
    from srl.config.experiment import load_experiment

    experiment = load_experiment(args.config, rest)
    from srl.commands.train import train_run  # slow, so config errors come first

    return _until_interrupted(lambda: train_run(experiment, args.run_name, argv, console), console)


def _resume(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    from srl.runs.folder import RunFolder, changed_keys, run_path

    run = RunFolder.open(run_path(args.name))
    _quieten()
    from srl.commands.train import resume_run
    from srl.config.experiment import with_named_secrets
    from srl.config.strict_yaml import apply_overrides
    from srl.config.trust import note, refuse_foreign

    old, given = run.read_config(), apply_overrides({}, rest)
    if "thoughts" in old:
        raise UsageError(
            f"{run.path} holds explanations, not a training; the command that began it goes on: "
            f"see {run.command}"
        )
    new = apply_overrides(old, rest)
    if not args.trust_code:
        refuse_foreign(new, str(run.config), named=given, edited=True)
    note(new)
    old, new = with_named_secrets(old), with_named_secrets(new)
    changed = changed_keys(old, new)
    if changed and not args.accept_changes:
        raise UsageError(
            "the config would differ from the one the run was started with:\n  "
            + "\n  ".join(changed)
            + "\nThe resumed run would not equal an uninterrupted one. To go on all the same, add "
            "--accept-changes"
        )
    return _until_interrupted(
        lambda: resume_run(run, new, argv, console, accept_changes=args.accept_changes), console
    )


def _eval(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    from srl.commands.of_run import experiment_of, policy_of
    from srl.runs.folder import RunFolder, run_path

    run = None if args.of_run is None else RunFolder.open(run_path(args.of_run))
    model = args.model if run is None else policy_of(run, console)
    if args.bench is not None:
        return _eval_bench(args, rest, argv, console, model, run)
    if run is None and not args.config:
        raise UsageError(
            "--model needs --bench NAME, or --config: it says which problems, and how to prompt"
        )
    for option in ("samples", "limit", *_OF_PROMPTS):
        if getattr(args, option) is not None:
            raise UsageError(
                f"--{option} goes with --bench; for held-out problems give --solve_samples K or "
                "--test_problems N"
            )
    if run is not None and args.run_name:
        raise UsageError(
            f"--run-name goes with --model or --bench; what --run {args.of_run} finds on held-out "
            "problems goes into the run's own folder"
        )
    _quieten()
    from srl.commands.train import evaluate_into, evaluate_policy, evaluate_run
    from srl.config.experiment import load_experiment

    if args.config or run is None:
        experiment = load_experiment(args.config, rest)
    else:
        experiment = experiment_of(run, rest, console, trust_code=args.trust_code)
    if args.run_name:
        evaluate_into(args.run_name, model, experiment, argv, console)
    elif run is not None:
        evaluate_run(run, model, experiment, console)
    else:
        evaluate_policy(model, experiment, None, console)
    return 0


def _solve(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    _quieten()
    from srl.commands.of_run import experiment_of, policy_of
    from srl.commands.solve import solve
    from srl.config.experiment import load_experiment
    from srl.runs.folder import RunFolder, run_path

    if args.of_run is None:
        experiment = load_experiment(args.config, rest)
        model = experiment.model
    else:
        if any(word.partition("=")[0] == "--model" for word in rest):
            raise UsageError(
                f"--run {args.of_run} names the policy; leave --model away, or give --config for "
                "the prompts of another model"
            )
        run = RunFolder.open(run_path(args.of_run))
        experiment = experiment_of(run, rest, console, trust_code=args.trust_code)
        model = policy_of(run, console)
    problem = _typed() if args.problem is None else args.problem
    solve(experiment, model, problem, whole=args.whole, console=console)
    return 0


def _typed() -> str:
    """Returns the text on standard input; on a terminal it first says how to end it."""
    if sys.stdin.isatty():
        sys.stderr.write("Type the problem; end it with Ctrl-D on a line of its own.\n")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error.reason}") from error


def _eval_bench(
    args: argparse.Namespace,
    rest: list[str],
    argv: list[str],
    console: Console,
    model: str,
    run: RunFolder | None,
) -> int:
    _quieten()
    import torch

    from srl.config.parts import setting_names
    from srl.config.settings import BenchmarkSettings
    from srl.config.strict_yaml import apply_overrides
    from srl.config.trust import refuse_foreign
    from srl.evaluation.benchmarks.run import plan_from_words, run_benchmark

    # A run's policy gets the prompt settings of its training.
    its_own = {} if run is None else run.read_config()
    asked = {*setting_names(BenchmarkSettings)} - {"output_dir"}
    if not torch.cuda.is_available():  # the run may be from a machine with a GPU
        asked -= {"bf16"}
    its_own = {key: value for key, value in its_own.items() if key in asked}
    if run is not None and not args.trust_code:
        refuse_foreign({**its_own, "model": model}, str(run.config))
    given = {name: getattr(args, name) for name in _OF_PROMPTS}
    plan = plan_from_words(
        model,
        args.bench,
        samples=args.samples or 0,
        limit=args.limit,
        settings={
            **apply_overrides({}, rest),
            **{name: value for name, value in given.items() if value is not None},
        },
        of_run=its_own,
    )
    run_benchmark(plan, args.run_name, argv, console)
    return 0


def _thoughts(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    _quieten()
    from srl.commands.thoughts import write_thoughts
    from srl.config.experiment import load_experiment
    from srl.training.thoughts import ThoughtSettings

    named = {field.name: getattr(args, field.name) for field in fields(ThoughtSettings)}
    given = {name: value for name, value in named.items() if value is not None}
    write_thoughts(
        load_experiment(args.config, rest),
        ThoughtSettings(**given),
        limit=args.limit,
        name=args.run_name,
        argv=argv,
        console=console,
    )
    return 0


def _learnability(
    args: argparse.Namespace, rest: list[str], argv: list[str], console: Console
) -> int:
    _quieten()
    from srl.commands.learnability import measure_learnability
    from srl.config.experiment import load_experiment

    measure_learnability(
        load_experiment(args.config, rest),
        samples=args.samples,
        rows=args.rows,
        name=args.run_name,
        argv=argv,
        console=console,
    )
    return 0


def _inspect(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    from srl.logs.terminal.command import inspect_run

    return inspect_run(_log_path(args.name), args, console)


def _report(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    from srl.logs.reading import reading
    from srl.logs.report.report import ROLLOUTS, write_report

    report = write_report(
        _log_path(args.name),
        None if args.other is None else _log_path(args.other),
        output=None if args.output is None else Path(args.output),
        rollouts=ROLLOUTS if args.rollouts is None else args.rollouts,
        progress=reading(),
    )
    say(console, str(report))
    return 0


def _check_data(
    args: argparse.Namespace, rest: list[str], argv: list[str], console: Console
) -> int:
    from environments import ENVIRONMENTS, LoadReport, load_trajectories
    from srl.commands.check_data import check_data, render
    from srl.config.sources import environment_at

    options, asked = _options(rest)
    if isinstance(nested := options.pop("data", {}), Mapping):  # spelt as for train
        options = {**nested, **options}
    source = args.data
    # A word that looks like a path is one, so that a missing file is reported as missing.
    its_own = source in ENVIRONMENTS or ":" in source
    if Path(source).exists() or (not its_own and ("/" in source or "." in source)):
        options.setdefault("path", source)
        source = str(options.pop("source", "files"))
    report = LoadReport()
    environment = environment_at(source)
    trajectories = load_trajectories(environment, report=report, **options)
    tell = now_and_then(Console(stderr=True), "checking")
    check = check_data(trajectories, report, rewards=asked, tell=tell)
    console.print(render(check), highlight=False, markup=False)
    if args.model is None:
        say(console, "add --model NAME to count the rows that are too long for that model")
    else:
        _quieten()
        from srl.commands.check_data import left_out

        say(console, left_out(trajectories, args.model, args.max_completion_length))
    if check.self_score_failures:
        _complain(
            Console(stderr=True),
            f"{check.self_score_failures} expert steps do not score 1.0 against themselves",
        )
        return 1
    if failed := [name for name, reward in check.rewards.items() if reward.failed]:
        _complain(Console(stderr=True), f"rewards that failed: {', '.join(failed)}")
        return 1
    return 0


def _score(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    import json
    from dataclasses import asdict

    from srl.commands.score import built_ins_and, make_rewards, score_file, show, step_from

    words = list(rest)
    # Not parsed by argparse, which would read the value of an unknown option as the file.
    file = Path(words.pop(0)) if words and not words[0].startswith("--") else None
    options, asked = _options(words)
    if options:
        raise UsageError(f"unknown words: {' '.join(words)}; see: python -m srl score --help")
    pair = args.action is not None and args.expert is not None
    if pair == (file is not None):
        raise UsageError(
            "give a file of steps, or one step with --action and --expert, as in: "
            "python -m srl score --action '2 + 2 = 5' --expert '2 + 2 = 4'"
        )
    rewards = make_rewards(asked or built_ins_and({}), deadline=args.deadline)
    if file is not None:
        return 1 if score_file(file, rewards, console, as_json=args.json) else 0
    row = {
        "problem": args.problem,
        "previous_steps": args.previous,
        "action": args.action,
        "thought": args.thought,
        "expert_step": args.expert,
        "answer": args.answer,
        # With an answer the step is the last one; otherwise one more step follows.
        "num_steps": len(args.previous) + (1 if args.answer is not None else 2),
    }
    step = step_from(row, "the command line")
    score = rewards.score([step])[0]
    if args.json:
        print(json.dumps(asdict(score), allow_nan=False))
    else:
        show(step, score, rewards, console)
    return 1 if score.failures else 0


def _play(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    _quieten()
    from srl.commands.play import play
    from srl.config.experiment import load_experiment

    if any(word.partition("=")[0] == "--model" for word in rest):
        raise UsageError(
            "play has no model, because you are the policy; leave --model away. A model's attempts "
            "at a step are shown by: make demo MODEL=…"
        )
    play(load_experiment(args.config, rest), sys.stdin, console)
    return 0


def _demo(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    _quieten()
    from srl.commands.demo import demo
    from srl.config.experiment import load_experiment

    demo(load_experiment(args.config, rest), attempts=args.attempts, console=console)
    return 0


def _model(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    _quieten()
    from huggingface_hub.utils import enable_progress_bars

    from srl.commands.model import prepare

    enable_progress_bars()  # a download may take an hour
    prepare(args.name, None if args.output is None else Path(args.output), console)
    return 0


def _experts(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    _quieten()
    from srl.commands.experts import run_experts

    return run_experts(args, rest, argv, console)


def _compare(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    def listed(words: str | None) -> list[str] | None:
        return None if words is None else [word.strip() for word in words.split(",")]

    seeds = listed(args.seeds)
    if seeds is not None and not all(seed.isdecimal() for seed in seeds):
        raise UsageError(f"--seeds is {args.seeds!r}; give whole numbers, such as --seeds 0,1")
    # An option without effect is refused, so that nobody believes that it had one.
    idle = ["jobs"] if args.dry_run else []
    idle = ["rows", "seeds", "difficulties", "jobs"] if args.table else idle
    if given := [f"--{name}" for name in idle if getattr(args, name) is not None]:
        instead = "--table" if args.table else "--dry-run"
        why = "shows all cells" if args.table else "starts none"
        raise UsageError(f"{instead} {why}; leave {', '.join(given)} away, or {instead}")
    _quieten()
    from srl.compare.plan_file import load_plan
    from srl.compare.runner import compare, list_cells, show_table

    plan = load_plan(
        Path(args.config),
        quick=args.quick,
        model=args.model,
        data=args.data,
        output=args.output,
    )
    cells = plan.choose(
        rows=listed(args.rows),
        seeds=None if seeds is None else [int(seed) for seed in seeds],
        difficulties=listed(args.difficulties),
    )
    if args.dry_run:
        list_cells(plan, cells, console)
        return 0
    if args.table:
        show_table(plan, console)
        return 0
    return compare(plan, console, cells=cells, jobs=args.jobs)


_COMMANDS = {
    "train": _train,
    "resume": _resume,
    "eval": _eval,
    "solve": _solve,
    "thoughts": _thoughts,
    "learnability": _learnability,
    "inspect": _inspect,
    "report": _report,
    "check-data": _check_data,
    "score": _score,
    "play": _play,
    "demo": _demo,
    "model": _model,
    "experts": _experts,
    "compare": _compare,
}


def _options(words: Sequence[str]) -> tuple[dict[str, Any], Mapping[str, object]]:
    """Returns `--key value` words as a source's options, and `--rewards.name value` separately."""
    from srl.config.strict_yaml import apply_overrides

    options = apply_overrides({}, words)
    rewards = options.pop("rewards", {})
    if not isinstance(rewards, Mapping):
        raise UsageError(f"--rewards is {rewards!r}; write --rewards.NAME WEIGHT")
    return options, rewards


def _log_path(name: str) -> Path:
    """Returns the path of a run, or of the log if `name` is a steps.jsonl."""
    from srl.runs.folder import run_path

    return Path(name) if Path(name).name == "steps.jsonl" else run_path(name)


def _quieten() -> None:
    """Turns off the telemetry, progress bars and some warnings of libraries."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Newer versions name it activation_checkpointing; older ones know only the old name.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
    # peft warns about an adapter on an adapter's folder; the vocabulary is unchanged.
    warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
