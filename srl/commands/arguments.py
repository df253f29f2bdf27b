"""Defines the commands of `python -m srl` and their options for argparse.

A word that no command knows here may be a field of a config; `srl.commands.cli` handles such words.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import NoReturn

from srl.commands.experts import add_experts
from srl.errors import UsageError


class _Parser(argparse.ArgumentParser):
    """A parser that reports wrong use as one UsageError, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: python -m {self.prog} --help")


def parser_of(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Returns the parser of all commands.

    The options of `inspect` load Arrow, so they are added only if `words` begin with `inspect`.
    """
    parser = _Parser(prog="srl", description="Step-wise supervised reinforcement learning (SRL).")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # No abbreviations: the word may be a field of the config.
    add = partial(commands.add_parser, allow_abbrev=False)

    train = add("train", help="train a policy; --key value overrides any field of the config")
    train.add_argument("--config", required=True, help="an experiment file")
    train.add_argument("--run-name", help="the run's folder in output_dir; default: date and time")

    resume = add("resume", help="go on with an interrupted run")
    resume.add_argument("name", metavar="RUN", help="a run folder, or its name in runs/")
    resume.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although --key value changes the config, or data, code or model have changed",
    )
    trusts = "run code that only the run's own config names"
    resume.add_argument("--trust-code", action="store_true", help=trusts)

    evaluate = add(
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
    evaluate.add_argument(
        "--run-name", help="the evaluation's own folder; with --bench an old one goes on"
    )
    evaluate.add_argument("--trust-code", action="store_true", help=trusts)
    evaluate.add_argument(
        "--samples", type=int, metavar="K", help="with --bench: samples a problem (default 0)"
    )
    evaluate.add_argument(
        "--limit", type=int, metavar="N", help="with --bench: the first N problems of each"
    )
    evaluate.add_argument(
        "--num_fewshot",
        "--num-fewshot",
        type=int,
        metavar="N",
        help="with --bench: N worked examples in front of each problem (default 0)",
    )
    evaluate.add_argument(
        "--fewshot_file",
        "--fewshot-file",
        metavar="FILE",
        help="what they are drawn from, or NAME=FILE[,NAME=FILE]; default: the training split",
    )
    evaluate.add_argument(
        "--as-is",
        "--as_is",
        action="store_true",
        default=None,
        help="with --bench: the model's own chat template and the bare problem",
    )

    thoughts = add(
        "thoughts",
        help="the policy explains the expert's steps; explanations that make a step likelier "
        "become its thought, for method: sft; --key value as in train",
    )
    thoughts.add_argument("--config", required=True, help="the experiment file of the training")
    thoughts.add_argument("--run-name", help="the run's own folder; one that has begun goes on")
    thoughts.add_argument("--limit", type=int, metavar="N", help="the first N steps (default: all)")
    thoughts.add_argument(
        "--samples", type=int, metavar="K", help="explanations of each step (default: 4)"
    )
    thoughts.add_argument(
        "--max_thought_length",
        "--max-thought-length",
        type=int,
        metavar="TOKENS",
        help="the longest explanation (default: 96)",
    )
    thoughts.add_argument(
        "--min_lift",
        "--min-lift",
        type=float,
        metavar="NATS",
        help="an explanation must raise the step's log-probability by more, per token (default: 0)",
    )
    thoughts.add_argument(
        "--max_in_thought",
        "--max-in-thought",
        type=float,
        metavar="SHARE",
        help="the largest share of the step that it may repeat in one piece (default: 0.5)",
    )
    thoughts.add_argument("--instruction", help="what the policy is asked for, as system prompt")

    learnability = add(
        "learnability",
        help="what a policy could learn from each source of its data, on held-out steps, before "
        "any training; --key value as in train",
    )
    learnability.add_argument("--config", required=True, help="the experiment file of the training")
    learnability.add_argument("--run-name", help="the run's own folder")
    learnability.add_argument(
        "--samples", type=int, default=8, metavar="G", help="attempts at each step (default: 8)"
    )
    learnability.add_argument(
        "--rows",
        type=int,
        default=200,
        metavar="N",
        help="steps of each source, at most (default: 200)",
    )

    inspect = add(
        "inspect", help="what the policy learned, step by step: figures, records, one in full"
    )
    if "inspect" in words[:1]:
        from srl.logs.terminal.command import add_inspect

        add_inspect(inspect)

    report = add(
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

    check = add(
        "check-data", help="check a data set without a model; --key value are the source's options"
    )
    check.add_argument(
        "data", metavar="DATA", help="a source, such as gsm8k, or a file of your own"
    )
    usual_help = check.format_help

    def help_with_options() -> str:
        check.epilog = _source_options()
        return usual_help()

    check.format_help = help_with_options  # type: ignore[method-assign]
    check.add_argument("--model", help="count the rows that are too long for this policy too")
    check.add_argument(
        "--max_completion_length",
        "--max-completion-length",
        type=int,
        default=512,
        metavar="TOKENS",
        help="the longest step, with --model (default: 512)",
    )

    score = add(
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

    solve = add(
        "solve",
        help="a problem of yours, solved by a run's policy or a model; --key value as in train",
        epilog="example: python -m srl solve --run first --problem 'Ann has 4 nuts. …'",
    )
    whom = solve.add_mutually_exclusive_group(required=True)
    whom.add_argument("--run", dest="of_run", metavar="RUN", help="a run folder, or its name")
    whom.add_argument("--config", help="whose prompts, and whose model unless --model is given")
    solve.add_argument("--problem", metavar="TEXT", help="the problem; default: standard input")
    solve.add_argument("--whole", action="store_true", help="the whole solution at once")
    solve.add_argument("--trust-code", action="store_true", help=trusts)

    play = add(
        "play", help="you are the policy: type a step, see every reward; --key value as in train"
    )
    play.add_argument("--config", required=True, help="whose problems and rewards")

    demo = add(
        "demo",
        help="the method on one step: attempts, scores, advantages; --key value as in train",
        epilog="example: python -m srl demo --config experiments/tiny/srl.yaml --attempts 8",
    )
    demo.add_argument("--config", required=True, help="whose policy, problems and rewards")
    demo.add_argument(
        "--attempts", type=int, default=4, metavar="N", help="at the step (default 4)"
    )

    model = add("model", help="prepare a model to train: from the hub, a GGUF file, or a folder")
    model.add_argument("name", metavar="NAME", help="a hub name, a GGUF file, or a model folder")
    model.add_argument("--output", metavar="FOLDER", help="default: a folder of models/")

    add_experts(
        add("experts", help="sparse models: cost, upcycling, load, selection, exchange, pruning")
    )

    compare = add(
        "compare", help="many runs from one file, those that are missing, and one table of them"
    )
    compare.add_argument("--config", required=True, help="a comparison's file")
    compare.add_argument("--quick", action="store_true", help="with the changes under its `quick`")
    compare.add_argument("--model", metavar="NAME", help="instead of the file's")
    compare.add_argument("--data", metavar="PATH", help="a file instead of the file's data.path")
    compare.add_argument("--output", metavar="FOLDER", help="for the runs, instead of the file's")
    compare.add_argument("--rows", metavar="A,B", help="run these only, and what they start from")
    compare.add_argument("--seeds", metavar="0,1", help="run these only")
    compare.add_argument("--difficulties", metavar="A,B", help="run these only")
    compare.add_argument("--jobs", type=int, help="runs at a time; default: one a core, or a GPU")
    instead = compare.add_mutually_exclusive_group()
    instead.add_argument("--table", action="store_true", help="only show what is there, all of it")
    instead.add_argument("--dry-run", action="store_true", help="only list the runs")
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def with_minus(words: Sequence[str]) -> list[str]:
    """Returns `--sort -reward` as `--sort=-reward`; argparse would read the value as an option."""
    arguments: list[str] = []
    for word in words:
        if arguments and arguments[-1] == "--sort" and word.startswith("-") and word[1:2] != "-":
            arguments[-1] = f"--sort={word}"
        else:
            arguments.append(word)
    return arguments


def unknown_words(args: argparse.Namespace, words: Sequence[str]) -> str:
    """Returns a message that names unknown words and the option nearest to the first of them."""
    known = args.parser._option_string_actions
    near = get_close_matches(words[0].partition("=")[0], known, n=1)
    meant = f"did you mean {near[0]}? All options" if near else "see"
    return f"unknown words: {' '.join(words)}; {meant}: python -m {args.parser.prog} --help"


def _source_options() -> str:
    """Returns a help text on the options that each built-in source takes."""
    from environments import ENVIRONMENTS, options_of

    every = "--path FILE_OR_HUB_NAME, --limit N, --max_dropped_share 0.5, --rewards.NAME WEIGHT"
    own = "; ".join(
        f"{name}: " + (", ".join(f"--{option}" for option in options_of(environment)) or "none")
        for name, environment in ENVIRONMENTS.items()
    )
    return (
        f"further options, of any source: {every}. Of one source, with values as under data: in an "
        f"experiment file (docs/environments.md): {own}. Example: python -m srl check-data gsm8k "
        "--path gsm8k_train.jsonl --answer_step true"
    )
