"""`python -m srl <command>`: every make target is a thin call of one of these.

Exit codes: 0 done; 1 a failure at run time; 2 wrong use, with one message and no traceback; 130
after Ctrl-C, with a checkpoint saved.

Imports of torch and transformers happen inside the commands that need them: `--help`, `inspect`
and `check-data` answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from srl.errors import DivergedError, UsageError
from srl.logs.text import visible

if TYPE_CHECKING:
    from srl.run_folder import RunFolder

INTERRUPTED = 130
# Commands of a name and of options that argparse does not know.
_NAMED_FIRST = {"resume": "RUN", "check-data": "DATA"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # A file or a pipe gets plain lines of any length; a terminal is asked for its width.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    errors = Console(stderr=True)
    try:
        # First of all: a foreign `rewards` package would fail in ways nobody could explain.
        from srl.guard import check_packages_side_by_side

        check_packages_side_by_side()
        args, rest = _parser(words).parse_known_args(_with_minus(words))
        if rest and args.command in ("inspect", "report", "compare"):
            raise UsageError(_unknown(args.command, rest))
        if rest and args.command in _NAMED_FIRST and words[1].startswith("-"):
            what = _NAMED_FIRST[args.command]  # else an option's value would be taken for it
            raise UsageError(f"write {what} first: python -m srl {args.command} {what} --key value")
        return int(args.run(args, rest, [sys.executable, "-m", "srl", *words], console))
    except UsageError as error:
        _complain(errors, str(error))
        return 2
    except ValueError as error:
        if not _is_wrong_use(error):
            raise
        _complain(errors, str(error))
        return 2
    except RuntimeError as error:
        if not _is_known_failure(error):
            raise
        _complain(errors, str(error))
        return 1
    except KeyboardInterrupt:
        _complain(errors, "stopped")
        return INTERRUPTED


def _with_minus(words: Sequence[str]) -> list[str]:
    """`--sort -reward` as `--sort=-reward`: argparse would take the value for an option."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--sort" and word.startswith("-") and word[1:2] != "-":
            found[-1] = f"--sort={word}"
        else:
            found.append(word)
    return found


def _unknown(command: str, words: Sequence[str]) -> str:
    """Words that a command does not know, and the nearest option to the first."""
    from difflib import get_close_matches

    parser = _parser([command])
    known = [
        option
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for option in action.choices[command]._option_string_actions
    ]
    near = get_close_matches(words[0].partition("=")[0], known, n=1)
    meant = f"did you mean {near[0]}? All options" if near else "see"
    return f"unknown words: {' '.join(words)}; {meant}: python -m srl {command} --help"


def _complain(console: Console, message: str) -> None:
    # It may name a path, a key, a reward: somebody's text.
    lines = [visible(line, console.encoding) for line in f"srl: {message}".split("\n")]
    console.print("\n".join(lines), style="bold", highlight=False, markup=False, soft_wrap=True)


def _is_wrong_use(error: ValueError) -> bool:
    """Data that cannot be used: said where it is read."""
    from environments.types import DataError

    return isinstance(error, DataError)


def _is_known_failure(error: RuntimeError) -> bool:
    """A failure at run time whose message says all there is to say."""
    from rewards import RewardError

    if isinstance(error, (RewardError, DivergedError)):
        return True
    trainer = sys.modules.get("srl.trainer")
    return trainer is not None and isinstance(error, trainer.NothingToTrainOnError)


class _Unabbreviated(argparse.ArgumentParser):
    """An abbreviation might be a field of a config that is meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)


def _parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands; of readers of logs, which load Arrow, only what `words` need."""
    parser = argparse.ArgumentParser(
        prog="srl", description="Step-wise supervised reinforcement learning (SRL)."
    )
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="COMMAND",
        parser_class=_Unabbreviated,
    )

    train = commands.add_parser(
        "train", help="train a policy; --key value overrides any field of the config"
    )
    train.add_argument("--config", required=True, help="an experiment file")
    train.add_argument("--run-name", help="the run's folder in output_dir; default: date and time")
    train.set_defaults(run=_train)

    resume = commands.add_parser("resume", help="go on with an interrupted run")
    resume.add_argument("name", metavar="RUN", help="a run folder, or its name in runs/")
    resume.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although --key value changes the config",
    )
    resume.set_defaults(run=_resume)

    evaluate = commands.add_parser(
        "eval",
        help="evaluate a run's policy, or any model, on held-out problems or on benchmarks; --key "
        "value as in train",
    )
    which = evaluate.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", dest="of_run", metavar="RUN", help="a run folder, or its name")
    which.add_argument("--model", help="a model folder or a hub name")
    whose = evaluate.add_mutually_exclusive_group()
    whose.add_argument("--config", help="whose held-out problems; by default the run's own")
    whose.add_argument(
        "--bench", metavar="NAME[,NAME]", help="benchmarks instead: gsm8k, math500, ..., or a file"
    )
    evaluate.add_argument("--run-name", help="the evaluation's own folder; an old one goes on")
    evaluate.add_argument(
        "--samples", type=int, metavar="K", help="with --bench: samples a problem (default 0)"
    )
    evaluate.add_argument(
        "--limit", type=int, metavar="N", help="with --bench: the first N problems of each"
    )
    evaluate.set_defaults(run=_eval)

    inspect = commands.add_parser(
        "inspect", help="what the policy learned, step by step: figures, records, one in full"
    )
    if "inspect" in words[:1]:
        from srl.logs.terminal.command import add_inspect

        add_inspect(inspect)
    inspect.set_defaults(run=_inspect)

    report = commands.add_parser(
        "report", help="one or two runs as one HTML file: curves, tables, and every rollout to read"
    )
    report.add_argument("name", metavar="RUN", help="a run folder, or its name in runs/")
    report.add_argument("other", metavar="RUN2", nargs="?", help="a run to compare it with")
    report.add_argument("--output", metavar="FILE", help="default: report.html in RUN's folder")
    report.add_argument(
        "--rollouts",
        type=int,
        metavar="N",
        help="at most so many are in the page, whole groups (default 20000)",
    )
    report.set_defaults(run=_report)

    check = commands.add_parser(
        "check-data", help="check a data set without a model; --key value are the source's options"
    )
    check.add_argument(
        "data", metavar="DATA", help="a source, such as gsm8k, or a file of your own"
    )
    check.set_defaults(run=_check_data)

    score = commands.add_parser(
        "score",
        help="rewards without a model, of one step or of a file; --rewards.NAME WEIGHT chooses",
        usage="srl score (FILE | --action STEP --expert STEP) [--rewards.NAME WEIGHT ...] [...]",
        description="FILE holds JSON lines with action and expert_step, as a run's steps.jsonl "
        "does. Without --rewards.NAME WEIGHT every built-in reward is shown.",
    )
    score.add_argument("--action", help="the policy's step")
    score.add_argument("--expert", help="the expert's step")
    score.add_argument("--previous", action="append", default=[], help="a step before; may repeat")
    score.add_argument("--problem", default="", help="the problem")
    score.add_argument("--thought", default="", help="the policy's thought")
    score.add_argument("--answer", help="the problem's final answer; the step is then the last one")
    score.add_argument("--deadline", type=float, default=5.0, help="seconds a call may take (5)")
    score.add_argument("--json", action="store_true", help="one line of JSON for each step")
    score.set_defaults(run=_score)

    play = commands.add_parser(
        "play", help="you are the policy: type a step, see every reward; --key value as in train"
    )
    play.add_argument("--config", required=True, help="whose problems and rewards")
    play.set_defaults(run=_play)

    compare = commands.add_parser(
        "compare", help="many runs from one file, those that are missing, and one table of them"
    )
    compare.add_argument("--config", required=True, help="a comparison's file")
    compare.add_argument("--quick", action="store_true", help="with the changes under its `quick`")
    compare.add_argument("--rows", metavar="A,B", help="run these only, and what they start from")
    compare.add_argument("--seeds", metavar="0,1", help="run these only")
    compare.add_argument("--difficulties", metavar="A,B", help="run these only")
    compare.add_argument("--jobs", type=int, help="runs at a time; default: one a core, or a GPU")
    instead = compare.add_mutually_exclusive_group()
    instead.add_argument("--table", action="store_true", help="only show what is there, all of it")
    instead.add_argument("--dry-run", action="store_true", help="only list the runs")
    compare.set_defaults(run=_compare)
    return parser


def _train(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    _quieten()
    from srl.experiment import load_experiment
    from srl.run import InterruptedRunError, train_run

    try:
        train_run(load_experiment(args.config, rest), args.run_name, argv, console)
    except InterruptedRunError as interrupted:
        console.print(str(interrupted), highlight=False)
        return INTERRUPTED
    return 0


def _resume(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    from srl.run_folder import RunFolder, changed_keys

    run = RunFolder.open(_run_path(args.name))
    old = run.read_config()
    _quieten()
    from srl.experiment import apply_overrides
    from srl.run import InterruptedRunError, resume_run

    new = apply_overrides(old, rest)
    changed = changed_keys(old, new)
    if changed and not args.accept_changes:
        raise UsageError(
            "the config would differ from the one the run was started with:\n  "
            + "\n  ".join(changed)
            + "\nThe resumed run would not equal an uninterrupted one. To go on all the same, add "
            "--accept-changes"
        )
    try:
        resume_run(run, new, argv, console)
    except InterruptedRunError as interrupted:
        console.print(str(interrupted), highlight=False)
        return INTERRUPTED
    return 0


def _eval(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    from srl.run_folder import RunFolder

    run = RunFolder.open(_run_path(args.of_run)) if args.of_run else None
    model = args.model
    if run is not None:
        best = run.policy if run.policy.is_dir() else run.latest_checkpoint()
        if best is None:
            raise UsageError(f"{run.path} has neither a policy nor a checkpoint yet")
        model = str(best)
    if args.bench is not None:
        return _eval_bench(args, rest, argv, console, model, run)
    if run is None and not args.config:
        raise UsageError(
            "--model needs --bench NAME, or --config: it says which problems, and how to prompt"
        )
    for option in ("samples", "limit"):
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
    from srl.experiment import apply_overrides, load_experiment, parse_experiment
    from srl.run import evaluate_into, evaluate_policy

    if args.config or run is None:
        experiment = load_experiment(args.config, rest)
    else:
        experiment = parse_experiment(
            apply_overrides(run.read_config(), rest), where=str(run.config)
        )
    if args.run_name:
        evaluate_into(args.run_name, model, experiment, argv, console)
    else:
        evaluate_policy(model, experiment, run, console)
    return 0


def _eval_bench(
    args: argparse.Namespace,
    rest: list[str],
    argv: list[str],
    console: Console,
    model: str,
    run: RunFolder | None,
) -> int:
    _quieten()
    from srl.benchmarks.run import SETTINGS, plan_from_words, run_benchmark
    from srl.experiment import apply_overrides

    # A run's policy is asked as it was trained to be.
    its_own = {} if run is None else run.read_config()
    plan = plan_from_words(
        model,
        args.bench,
        samples=args.samples or 0,
        limit=args.limit,
        settings={
            **{key: its_own[key] for key in SETTINGS if key in its_own and key != "output_dir"},
            **apply_overrides({}, rest),
        },
    )
    run_benchmark(plan, args.run_name, argv, console)
    return 0


def _inspect(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    from srl.logs.terminal.command import inspect_run

    return inspect_run(_log_path(args.name), args, console)


def _report(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    from srl.logs.reading import Reading
    from srl.logs.report.report import ROLLOUTS, write_report

    with Reading() as reading:
        report = write_report(
            _log_path(args.name),
            None if args.other is None else _log_path(args.other),
            output=None if args.output is None else Path(args.output),
            rollouts=ROLLOUTS if args.rollouts is None else args.rollouts,
            told=reading,
        )
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)
    return 0


def _check_data(
    args: argparse.Namespace, rest: list[str], argv: list[str], console: Console
) -> int:
    from environments import ENVIRONMENTS, LoadReport, load_trajectories
    from srl.check_data import check_data, render

    options, asked = _options(rest)
    source = args.data
    # Whatever looks like a path is one: a missing file is then called missing.
    if source not in ENVIRONMENTS and (Path(source).exists() or "/" in source or "." in source):
        options.setdefault("path", source)
        source = str(options.pop("source", "files"))
    report = LoadReport()
    trajectories = load_trajectories(source, report=report, **options)  # type: ignore[arg-type]
    check = check_data(trajectories, report, rewards=asked)
    console.print(render(check), highlight=False, markup=False)
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

    from srl.score import as_row, built_ins_and, make_rewards, score_file, show, step_from

    words = list(rest)
    # Not argparse's: it would take the value of an option it does not know for the file.
    file = Path(words.pop(0)) if words and not words[0].startswith("--") else None
    if len(words) % 2 and not words[-1].startswith("--"):
        raise UsageError(f"{words[-1]!r} is one word too many; a FILE comes first: srl score FILE")
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
        # With an answer the step is the last one, else one more follows.
        "num_steps": len(args.previous) + (1 if args.answer is not None else 2),
    }
    step = step_from(row, "the command line")
    score = rewards.score([step])[0]
    if args.json:
        print(json.dumps(as_row(score), allow_nan=False))
    else:
        show(step, score, rewards, console)
    return 1 if score.failures else 0


def _play(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    _quieten()
    from srl.experiment import load_experiment
    from srl.play import play

    play(load_experiment(args.config, rest), sys.stdin, console)
    return 0


def _compare(args: argparse.Namespace, rest: list[str], argv: list[str], console: Console) -> int:
    def listed(words: str | None) -> list[str] | None:
        return None if words is None else [word.strip() for word in words.split(",")]

    seeds = listed(args.seeds)
    if seeds is not None and not all(seed.isdecimal() for seed in seeds):
        raise UsageError(f"--seeds is {args.seeds!r}; give whole numbers, such as --seeds 0,1")
    # What a call would not do must not look as if it had been done.
    idle = ["jobs"] if args.dry_run else []
    idle = ["rows", "seeds", "difficulties", "jobs"] if args.table else idle
    if given := [f"--{name}" for name in idle if getattr(args, name) is not None]:
        instead = "--table" if args.table else "--dry-run"
        why = "shows all cells" if args.table else "starts none"
        raise UsageError(f"{instead} {why}; leave {', '.join(given)} away, or {instead}")
    _quieten()
    from srl.compare.plan_file import load_plan
    from srl.compare.runner import compare, list_cells, show_table

    plan = load_plan(Path(args.config), quick=args.quick)
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


def _options(words: Sequence[str]) -> tuple[dict[str, object], dict[str, object]]:
    """`--key value` words as a source's options, `--rewards.name value` apart; values as YAML."""
    from srl.settings_text import read_value

    options: dict[str, object] = {}
    rewards: dict[str, object] = {}
    rest = list(words)
    while rest:
        key = rest.pop(0)
        if not key.startswith("--"):
            raise UsageError(f"{key!r}: options are given as --key value")
        if not rest and "=" not in key:
            raise UsageError(f"{key} has no value: options are given as --key value")
        name, has_value, text = key[2:].partition("=")
        text = text if has_value else rest.pop(0)
        value = read_value(text, key)
        if name.startswith("rewards."):
            rewards[name.removeprefix("rewards.")] = value
        else:
            options[name.replace("-", "_")] = value
    return options, rewards


def _run_path(name: str) -> Path:
    """`name` as a path if it is one, else a folder of runs/."""
    path = Path(name)
    return path if path.is_dir() or len(path.parts) > 1 else Path("runs") / name


def _log_path(name: str) -> Path:
    """`name` as a run's path, or as the log itself."""
    path = Path(name)
    return path if path.is_file() else _run_path(name)


def _quieten() -> None:
    """No telemetry, no progress bars of libraries: what a run prints is ours."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Newer versions call it activation_checkpointing, older ones know the old name only.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
    # peft, of an adapter on a model that is an adapter's folder: the vocabulary is unchanged.
    warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
