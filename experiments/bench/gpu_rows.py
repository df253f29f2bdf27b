"""Runs the rows of the benchmark that need a GPU: `make bench-gpu`.

    6  one update of Qwen2.5's shapes in bf16, beside TRL, and its share of the machine's rate
    7  peak memory of the activations of an update
    8  rollouts, beside `generate` as TRL calls it
    9  the share of a step in which the host works and the GPU waits

Models are built from their configs, with random weights. Weights are float32, and the forward pass
runs under bf16 autocast, as in both trainers.

    python experiments/bench/gpu_rows.py [--rows 6 7] [--repeats 5] [--out FILE]
    python experiments/bench/gpu_rows.py --toy        every row with toy sizes, on a CPU: no figures

Row 9 counts the host work between the parts of a step (scoring, packing, records, the trees'
plans). It does not count the Trainer's own loop or the gaps between the kernels of one part.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is loaded from the hub

import torch
from contest import Contest, Contestant, machine, run
from flops import update_flops
from results import merge
from shapes import Shape, base_config, qwen25_config, random_model
from step_row import Setting, Times, endless_tokenizer, mean, train_ours, train_trl
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging
from trl_update import trl_trainer, trls
from update import Case, Cut, Update, as_trained, differences, ours, padded

from rewards import StepContext
from srl.models.prefix_tree import PrefixTree
from srl.models.tree_attention import TreePlan
from srl.rollout.samplers import LocalSampler, Prompt, SamplingParams, complete
from srl.training.batch import MicroBatch, micro_batches

RESULTS = Path(__file__).resolve().parent / "results"
NO_CUDA = (
    "no CUDA device: GPU rows need one; CPU rows: make bench; "
    'a dry run: make bench-gpu ARGS="--toy"'
)


@dataclass(frozen=True)
class Plan:
    """The device, models and sizes of all rows.

    Attributes:
        device: the device of the models.
        configs: name -> config of row 6. The other rows use the last one.
        updates: name -> shape of row 6.
        memory: the shape of row 7.
        rollouts: the shape of row 8; the prompts of one trajectory.
        step: the shape of row 9.
        prompts: the number of groups of a step in row 9.
        tokens: the tokens of a micro-batch. An update of the 1.5B shape keeps 3.3 MB of activations
            for each token (bf16 autocast over float32, nothing recomputed). It also needs 25 GB
            for weights, their bf16 copies and two sets of gradients.
        square: the width of the matrices that measure the machine's rate.
    """

    device: str
    configs: dict[str, PreTrainedConfig]
    updates: dict[str, Shape]
    memory: Shape
    rollouts: Shape
    step: Shape
    prompts: int
    tokens: int
    square: int


def measured() -> Plan:
    """Returns the sizes of the published figures: prompts of mid and long trajectories."""
    return Plan(
        device="cuda",
        configs={f"Qwen2.5-{size}": qwen25_config(size) for size in ("0.5B", "1.5B")},
        updates={
            "mid": Shape(K=10, Q=475, s=100, G=8, C=300),
            "long": Shape(K=12, Q=950, s=200, G=8, C=300),
        },
        memory=Shape(K=1, Q=2048, s=0, G=8, C=256),
        rollouts=Shape(K=8, Q=575, s=100, G=8, C=256),
        step=Shape(K=10, Q=475, s=100, G=8, C=300, trajectories=4),
        prompts=8,
        tokens=12_288,
        square=8192,
    )


def toy() -> Plan:
    """Returns sizes that take seconds on a CPU; the results are no measurement."""
    small = Shape(K=3, Q=24, s=8, G=4, C=6)
    return Plan(
        device="cpu",
        configs={"toy": base_config(512, num_hidden_layers=1, layer_types=["full_attention"])},
        updates={"toy": small},
        memory=replace(small, K=1),
        rollouts=small,
        step=replace(small, trajectories=2),
        prompts=2,
        tokens=256,
        square=64,
    )


def wait() -> None:
    """Waits until the GPU has finished all its work; without a GPU, returns at once."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---- the machine itself --------------------------------------------------------------------------


def machine_rates(plan: Plan, repeats: int = 10) -> dict[str, float]:
    """Returns the best rates of large bf16 products and copies: operations and bytes a second."""
    a, b = (
        torch.randn(plan.square, plan.square, device=plan.device, dtype=torch.bfloat16)
        for _ in range(2)
    )
    source = torch.empty(16 * plan.square**2, device=plan.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "matmul, operations/s": 2 * plan.square**3 / best_seconds(lambda: torch.mm(a, b), repeats),
        # Each byte is read once and written once.
        "copy, bytes/s": 2 * source.numel() / best_seconds(lambda: target.copy_(source), repeats),
    }


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """Returns the least seconds of `repeats` calls, including the device's work.

    One more call before them is not counted.
    """

    def seconds() -> float:
        wait()
        started = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - started

    seconds()
    return min(seconds() for _ in range(repeats))


# ---- rows ----------------------------------------------------------------------------------------


def update_rows(plan: Plan, repeats: int, rates: dict[str, float]) -> list[Contest]:
    """Runs row 6: one contest for each model and shape."""
    contests = []
    for name, config in plan.configs.items():
        model = random_model(config, plan.device)
        for kind, shape in plan.updates.items():
            contests.append(_update(f"{name}, {kind}", model, shape, plan, repeats, rates))
        del model
    return contests


def _update(
    name: str,
    model: PreTrainedModel,
    shape: Shape,
    plan: Plan,
    repeats: int,
    rates: dict[str, float],
) -> Contest:
    case = Case.of(model, shape, bf16=True)
    contest = Contest(
        6,
        f"{name}: {shape.title}",
        goal=">= 2.7x TRL (mid), >= 4.5x (long), >= 45 % of the matmul rate",
    )
    at_once = rows_at_once(shape, plan.tokens)
    peer, trained = f"TRL, {at_once} rows at a time", "ours, as trained"
    with trl_trainer(case) as trainer:
        contestants: dict[str, Contestant] = {
            peer: trls(case, trainer, at_once),
            "ours, rows repeated": ours(case, padded(plan.tokens)),
            trained: ours(case, as_trained(plan.tokens)),
        }
        run(contest, contestants, repeats, compare=differences, warm_up=True, wait=wait)
    tree = PrefixTree.of(case.rows)
    rate = update_flops(model.config, tree) / contest.median(trained)
    halves = _parity(case, lambda rows: micro_batches(rows, plan.tokens // 2, trees=False), plan)
    contest.figures = {
        "tokens": {"repeated": shape.repeated, "in the tree": len(tree)},
        "ceiling": shape.repeated / len(tree),
        "share of the matmul rate": rate / rates["matmul, operations/s"],
        "tree beside repeated rows": _parity(case, as_trained(plan.tokens), plan),
        "repeated rows beside the same, cut otherwise": halves,
        **rates,
    }
    return contest


def rows_at_once(shape: Shape, tokens: int) -> int:
    """Returns how many of TRL's rows have about `tokens` tokens.

    TRL pads all prompts to the longest one. The result divides G.
    """
    longest = shape.Q + shape.s * (shape.K - 1) + shape.C
    fits = [rows for rows in range(1, shape.G + 1) if shape.G % rows == 0]
    return max([rows for rows in fits if rows * longest <= 1.2 * tokens], default=1)


def _parity(case: Case, cut: Cut, plan: Plan) -> dict[str, float]:
    """Returns the differences of an update from the update of repeated rows."""
    updates = []
    for cutting in (padded(plan.tokens), cut):
        update = ours(case, cutting)()()
        assert isinstance(update, Update)
        updates.append(update)
    return differences(*updates)


def memory_rows(plan: Plan) -> list[Contest]:
    """Runs row 7: peak memory beyond weights and gradients, with all rows in one micro-batch."""
    name, config = list(plan.configs.items())[-1]
    model = random_model(config, plan.device)
    case = Case.of(model, plan.memory, bf16=True)
    contest = Contest(
        7, f"{name}: activations of {plan.memory.title}", goal=">= 3.0x lower than TRL"
    )
    with trl_trainer(case) as trainer:
        contestants: dict[str, Contestant] = {
            "TRL": trls(case, trainer, len(case.rows)),
            "ours, rows repeated": ours(case, _one_batch(tree=False)),
            "ours, tree": ours(case, _one_batch(tree=True)),
        }
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            peaks = {who: _peak(model, prepare) for who, prepare in contestants.items()}
            kind = "layers computed again" if checkpointing else "all kept"
            contest.figures[f"GiB, {kind}"] = peaks
    contest.figures["ceiling"] = plan.memory.ceiling
    return [contest]


def _one_batch(*, tree: bool) -> Cut:
    return lambda rows: [MicroBatch(list(range(len(rows))), tree=tree)]


def _peak(model: PreTrainedModel, prepare: Contestant) -> float | str:
    """Returns the peak memory of an update in GiB, less the memory in use before it.

    Without a figure, returns a text that says why.
    """
    try:
        return _measured_peak(model, prepare)
    except torch.OutOfMemoryError:
        model.zero_grad(set_to_none=True)
        return "more than the device has"


def _measured_peak(model: PreTrainedModel, prepare: Contestant) -> float | str:
    prepare()()  # a first update, not measured
    if not torch.cuda.is_available():
        return "not measured"
    work = prepare()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def rollout_rows(plan: Plan, repeats: int) -> list[Contest]:
    """Runs row 8: completions of full length, because no token ends them."""
    name, config = list(plan.configs.items())[-1]
    shape = plan.rollouts
    model = random_model(config, plan.device)
    prompts = [list(prompt) for prompt, _ in shape.rows(config.vocab_size)[:: shape.G]]
    contest = Contest(8, f"{name}: rollouts, {shape.title}", goal=">= 5x generate")
    contestants = {
        "generate, as TRL calls it": lambda: lambda: _generate(model, prompts, shape),
        "ours": lambda: lambda: _rollouts(model, prompts, shape),
    }
    run(
        contest,
        contestants,
        repeats,
        compare=lambda theirs, tokens: f"{tokens} tokens, generate {theirs}",
        warm_up=True,
        wait=wait,
    )
    contest.figures["tokens/s"] = {
        who: shape.K * shape.G * shape.C / contest.median(who) for who in contestants
    }
    return [contest]


@torch.no_grad()
def _generate(model: PreTrainedModel, prompts: Sequence[list[int]], shape: Shape) -> int:
    """Generates as TRL's trainer does, and returns the number of tokens written.

    Every prompt occurs G times, padded on the left.
    """
    longest = max(map(len, prompts))
    rows = [prompt for prompt in prompts for _ in range(shape.G)]
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor(
        [[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device
    )
    config = GenerationConfig(
        max_new_tokens=shape.C,
        do_sample=True,
        pad_token_id=0,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        disable_compile=True,
    )
    model.eval()
    model.generation_config.eos_token_id = None
    with torch.autocast(model.device.type, torch.bfloat16):
        sequences = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return sequences[:, longest:].numel()


def _rollouts(model: PreTrainedModel, prompts: Sequence[list[int]], shape: Shape) -> int:
    sampler = LocalSampler(model, pad_id=0, token_budget=2**30)
    beyond = frozenset({model.config.vocab_size})  # an end token that the model cannot write
    with torch.autocast(model.device.type, torch.bfloat16):
        params = SamplingParams(shape.C, stop_ids=beyond)
        groups = complete(
            sampler, [Prompt(ids, key) for key, ids in enumerate(prompts)], shape.G, params
        )
    return sum(len(completion.ids) for group in groups for completion in group)


def idle_rows(plan: Plan, repeats: int, steps: int = 3) -> list[Contest]:
    """Runs row 9: the share of host work in whole steps.

    The vocabulary is that of the small tokenizer, so that rollouts are text that can be scored. Its
    smaller head makes the GPU's part shorter and the share of host work larger.
    """
    name, config = list(plan.configs.items())[-1]
    config = config.__class__.from_dict({**config.to_dict(), "vocab_size": _vocabulary()})
    setting = Setting.of(
        lambda: random_model(config, plan.device), plan.step, plan.prompts, bf16=True, wait=wait
    )
    trainings: dict[str, Callable[[], Times]] = {
        f"TRL with difflib, {plan.step.G} rows at a time": lambda: train_trl(
            replace(setting, rewards={by_difflib: 1.0}), steps, plan.step.G
        ),
        "ours": lambda: train_ours(setting, steps, "trajectory"),
    }
    contest = Contest(9, f"{name}: host work in a step, {plan.step.title}", goal="<= 2 %")
    times = {who: Times() for who in trainings}
    for _ in range(repeats):
        for who, training in trainings.items():
            times[who] += training()
    contest.seconds = {who: run_times.step for who, run_times in times.items()}
    contest.base, contest.ours = contest.seconds
    planning = plan_seconds(setting, plan)
    for who, run_times in times.items():
        means = {part: mean(seconds) for part, seconds in run_times.parts.items()}
        host = means.get("scoring", means.get("scoring, packing, records", 0.0))
        host += planning if who == "ours" else 0.0
        contest.figures[f"{who}, seconds of a step"] = means
        contest.figures[f"{who}, share of host work"] = host / mean(run_times.step)
    contest.figures["ours, of it the trees' plans, s"] = planning
    return [contest]


def by_difflib(step: StepContext) -> float:
    """Returns the similarity by plain difflib, the reward that a user would write first."""
    return difflib.SequenceMatcher(None, step.action, step.expert_step, autojunk=False).ratio()


def _vocabulary() -> int:
    return int(endless_tokenizer().eos_token_id)  # the first id that is no token of the model


def plan_seconds(setting: Setting, plan: Plan) -> float:
    """Returns the seconds to cut one step's rows and to make their trees and tree plans.

    This is host work inside the update.
    """
    shape = replace(setting.shape, trajectories=1, K=setting.prompts_per_step)
    rows = shape.rows(_vocabulary())
    started = time.perf_counter()
    for part in as_trained()(rows):
        if part.tree:
            TreePlan.of(PrefixTree.of([rows[i] for i in part.rows]), plan.device)
    wait()
    return time.perf_counter() - started


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("6", "7", "8", "9")
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="toy sizes on a CPU: no measurement")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    if not args.toy and not torch.cuda.is_available():
        print(NO_CUDA, file=sys.stderr)
        raise SystemExit(2)
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: give 1 or more")
    logging.set_verbosity_error()
    plan = toy() if args.toy else measured()
    out = args.out or RESULTS / ("gpu-toy.json" if args.toy else "gpu.json")
    rates = machine_rates(plan)
    device = "a CPU, toy sizes" if args.toy else torch.cuda.get_device_name()
    about = {**machine(), "device": device, "toy": args.toy, "repeats": args.repeats, **rates}
    print(f"{device}; " + ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()))
    rows: dict[str, Callable[[], list[Contest]]] = {
        "6": lambda: update_rows(plan, args.repeats, rates),
        "7": lambda: memory_rows(plan),
        "8": lambda: rollout_rows(plan, args.repeats),
        "9": lambda: idle_rows(plan, args.repeats),
    }
    for name in args.rows:
        contests = rows[name]()
        for contest in contests:
            print("\n".join(contest.lines()), flush=True)
        merge(out, about, contests)
    print(f"written to {out}" + (" (toy sizes: no measurement)" if args.toy else ""))


if __name__ == "__main__":
    main()
