"""Runs `python -m srl experts COMMAND`: costs of sparse models, and ways to make and change them.

A new model is written under another name first, so a model under its final name is always complete.
torch and transformers are imported only by commands that need them, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from srl.commands.whole_folder import Tell, new_folder
from srl.console import say, visible
from srl.errors import UsageError

if TYPE_CHECKING:
    from srl.models.sparse_files import SparseFiles


def add_experts(parser: argparse.ArgumentParser) -> None:
    """Adds the commands and their options to the parser of `experts`."""
    commands = parser.add_subparsers(dest="experts_command", required=True, metavar="COMMAND")
    add = partial(
        commands.add_parser,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_card(add)
    _add_upcycle(add)
    _add_swap(add)
    _add_prune(add)
    _add_report(add)
    _add_select(add)
    for command in commands.choices.values():
        command.set_defaults(parser=command)


def _add_card(add: Callable[..., argparse.ArgumentParser]) -> None:
    card = add(
        "card",
        help="parameters, experts, arithmetic and memory of a model, sparse or dense",
        description="Reads the config only: no weights are needed.",
        epilog="example: python -m srl experts card --model mistralai/Mixtral-8x7B-v0.1",
    )
    card.add_argument("--model", required=True, metavar="NAME", help="a folder or a hub name")


def _add_upcycle(add: Callable[..., argparse.ArgumentParser]) -> None:
    upcycle = add(
        "upcycle",
        help="make a dense model sparse: its feed-forward layers become experts",
        description="qwen2 becomes qwen2_moe, qwen3 becomes qwen3_moe, llama and mistral become\n"
        "mixtral. At first the new model computes the same logits.",
        epilog="example: python -m srl experts upcycle --model models/Qwen3-0.6B \\\n"
        "           --output models/Qwen3-8x0.6B --num-experts 8 --top-k 2 --reinit 0.5",
    )
    upcycle.add_argument("--model", required=True, metavar="DENSE", help="a folder or a hub name")
    upcycle.add_argument("--output", required=True, metavar="SPARSE", help="a new folder")
    upcycle.add_argument(
        "--num-experts", type=int, default=8, metavar="E", help="experts of a layer (default: 8)"
    )
    upcycle.add_argument(
        "--top-k", type=int, default=2, metavar="K", help="experts of a token (default: 2)"
    )
    upcycle.add_argument(
        "--split", type=int, default=1, metavar="S", help="an expert is 1/S of a copy (default: 1)"
    )
    upcycle.add_argument(
        "--reinit",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="draw this share of each expert anew, so that experts differ (default: 0)",
    )
    upcycle.add_argument(
        "--router-std",
        type=float,
        metavar="X",
        help="standard deviation of the router's weights (default: initializer_range)",
    )
    upcycle.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def _add_swap(add: Callable[..., argparse.ArgumentParser]) -> None:
    swap = add(
        "swap",
        help="take experts from another model of the same shape",
        description="Only the experts named change; swapping them back from the old model undoes "
        "it.",
        epilog="example: python -m srl experts swap --model runs/one/policy \\\n"
        "           --donor runs/two/policy --layer 1 --expert 5 --output models/swapped",
    )
    swap.add_argument("--model", required=True, metavar="A", help="the folder of a sparse model")
    swap.add_argument("--donor", required=True, metavar="B", help="where the experts come from")
    swap.add_argument("--output", required=True, metavar="C", help="a new folder")
    swap.add_argument("--layer", type=int, required=True, metavar="L", help="the layer's number")
    swap.add_argument(
        "--expert", type=int, metavar="E", help="one expert (default: all of the layer)"
    )
    swap.add_argument("--donor-layer", type=int, metavar="L", help="default: that of --layer")
    swap.add_argument("--donor-expert", type=int, metavar="E", help="default: that of --expert")
    swap.add_argument(
        "--with-router", action="store_true", help="take the router's rows of these experts too"
    )


def _add_prune(add: Callable[..., argparse.ArgumentParser]) -> None:
    prune = add(
        "prune",
        help="drop the experts of each layer that are used least",
        epilog="example: python -m srl experts prune --model models/sparse --keep 6 \\\n"
        "           --by load.json --output models/pruned",
    )
    prune.add_argument("--model", required=True, metavar="A", help="the folder of a sparse model")
    prune.add_argument("--output", required=True, metavar="C", help="a new folder")
    prune.add_argument(
        "--keep", type=int, required=True, metavar="N", help="experts that stay in each layer"
    )
    prune.add_argument(
        "--by", metavar="FILE", help='how often each was used: {"layers": [[counts], ...]}'
    )


def _add_report(add: Callable[..., argparse.ArgumentParser]) -> None:
    report = add(
        "report",
        help="which experts a policy uses, by part of the text, source and step",
        description="Puts the expert's steps of an experiment's training data through its model,\n"
        "and writes load.json and load.html into a folder of runs/. --key value as in train.",
        epilog="example: python -m srl experts report --config experiments/tiny/srl.yaml \\\n"
        "           --model models/sparse --run-name load",
    )
    report.add_argument("--config", required=True, help="the experiment file of a training")
    report.add_argument("--run-name", help="the run's own folder")
    _add_rows(report)


def _add_select(add: Callable[..., argparse.ArgumentParser]) -> None:
    choose = add(
        "select",
        help="the experts that matter for an experiment's data, to train these alone",
        description="Writes a file for the setting train_experts. --key value as in train.",
        epilog="example: python -m srl experts select --config experiments/tiny/srl.yaml \\\n"
        "           --model models/sparse --by gate_score --threshold 0.2 --output chosen.json",
    )
    choose.add_argument("--config", required=True, help="the experiment file of the training")
    choose.add_argument(
        "--by",
        choices=("gate_score", "token_share"),
        default="gate_score",
        help="what an expert is scored by (default: gate_score)",
    )
    choose.add_argument(
        "--threshold",
        type=float,
        default=0.2,
        metavar="P",
        help="the fewest experts of a layer whose scores, 1 in all, sum to it (default: 0.2)",
    )
    choose.add_argument("--output", required=True, metavar="FILE", help="a new file")
    _add_rows(choose)


def _add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows", type=int, default=400, metavar="N", help="the expert's steps (default: 400)"
    )


def run_experts(
    args: argparse.Namespace, rest: Sequence[str], argv: Sequence[str], console: Console
) -> int:
    """Runs one of the commands; returns the exit code.

    Args:
        args: the command and its options.
        rest: settings of an experiment, which only some commands take.
        argv: the command line.
        console: where to print the progress.

    Raises:
        UsageError: wrong use.
    """
    if args.experts_command == "report":
        from srl.commands.expert_use import report_experts
        from srl.config.experiment import load_experiment

        report_experts(
            load_experiment(args.config, rest),
            rows=args.rows,
            name=args.run_name,
            argv=argv,
            console=console,
        )
        return 0
    if args.experts_command == "select":
        from srl.commands.expert_use import select_experts
        from srl.config.experiment import load_experiment

        select_experts(
            load_experiment(args.config, rest),
            by=args.by,
            threshold=args.threshold,
            rows=args.rows,
            output=Path(args.output),
            console=console,
        )
        return 0

    def tell(words: str) -> None:
        say(console, "\n".join(visible(line, console.encoding) for line in words.split("\n")))

    _COMMANDS[args.experts_command](args, tell)
    return 0


def _card(args: argparse.Namespace, tell: Tell) -> None:
    from srl.models.experts import Cost, sparse_layers
    from srl.models.meta import config_of, meta_model

    config = config_of(args.model)
    model = meta_model(config, args.model)
    cost, layers = Cost.of(model), sparse_layers(model)
    if layers:
        kind = "sparse"
        experts = (
            f"{layers[0].num_experts} a layer, {layers[0].top_k} of them for each token, in "
            f"{len(layers)} of {config.get_text_config().num_hidden_layers} layers"
        )
    else:
        kind, experts = "dense", "none that could be read here"
    rows = {
        "parameters": f"{cost.total:,}",
        "of a token": f"{cost.active:,} ({cost.active / cost.total:.1%})",
        "experts": experts,
        "arithmetic": f"{_scaled(cost.flops)}FLOP a token forwards, and attention over earlier "
        "tokens",
        "to read": f"{_scaled(cost.bytes_to_read(4))}B in float32, "
        f"{_scaled(cost.bytes_to_read(2))}B in bf16",
        "to train": f"{_scaled(cost.bytes_to_train)}B: float32 weights, gradients and Adam's "
        "moments; and activations",
    }
    tell(f"{args.model}: {kind}, of type {config.model_type}")
    for name, words in rows.items():
        tell(f"  {name:<11} {words}")


def _scaled(size: int) -> str:
    """Returns a size with three digits and a unit prefix, as in `93.4 G`."""
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if size >= unit:
            return f"{size / unit:.3g} {prefix}"
    return f"{size / 1e3:.3g} k"


def _upcycle(args: argparse.Namespace, tell: Tell) -> None:
    from srl.models.sparse_config import Upcycling
    from srl.models.upcycling import write_upcycled

    plan = Upcycling(
        args.num_experts, args.top_k, args.split, args.reinit, args.router_std, args.seed
    )
    with new_folder(Path(args.output), tell) as folder:
        write_upcycled(args.model, folder, plan, tell)
    tell(f"written: {args.output}")


def _swap(args: argparse.Namespace, tell: Tell) -> None:
    from srl.models.expert_editing import Swap, swap_experts
    from srl.models.sparse_files import SparseFiles

    if args.donor_expert is not None and args.expert is None:
        raise UsageError(
            "--donor-expert goes with --expert, which says whose place it takes, as in: "
            f"--expert 5 --donor-expert {args.donor_expert}"
        )
    swap = Swap(
        args.layer,
        args.expert,
        args.layer if args.donor_layer is None else args.donor_layer,
        args.expert if args.donor_expert is None else args.donor_expert,
        args.with_router,
    )
    with new_folder(Path(args.output), tell) as folder:
        model, donor = SparseFiles.open(Path(args.model)), SparseFiles.open(Path(args.donor))
        changed = swap_experts(model, donor, swap, folder)
    tell(f"changed {len(changed)} tensors of layer {args.layer}, from {changed[0]} on")
    tell(f"written: {args.output}; all else is equal to {args.model}, to the bit")


def _prune(args: argparse.Namespace, tell: Tell) -> None:
    from srl.models.expert_editing import prune_experts, read_counts
    from srl.models.sparse_files import SparseFiles

    model = SparseFiles.open(Path(args.model))
    if args.by is None:
        raise UsageError(
            "--by FILE is missing: how often each expert is used must be counted first, with: "
            f"python -m srl experts report --config FILE --model {args.model}; it writes load.json"
        )
    counts = read_counts(Path(args.by))
    with new_folder(Path(args.output), tell) as folder:
        kept = prune_experts(model, counts, args.keep, folder)
    for layer, stay, used in zip(model.layers, kept, counts, strict=True):
        share = 1 - sum(used[expert] for expert in stay) / sum(used)
        tell(
            f"layer {layer}: experts {', '.join(map(str, stay))} stay; the dropped ones had "
            f"{share:.1%} of the choices"
        )
    if _grows(model):
        tell(
            "this model does not normalise the weights of a token's experts (norm_topk_prob is "
            "false), so the weights of the experts that stay grow, and all logits change a little"
        )
    tell(f"written: {args.output}")


def _grows(model: SparseFiles) -> bool:
    """Returns whether routing weights are shares of all experts, not only of the token's own."""
    return getattr(model.config, "norm_topk_prob", True) is False


_COMMANDS = {"card": _card, "upcycle": _upcycle, "swap": _swap, "prune": _prune}
