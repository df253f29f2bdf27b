"""Compares our speed with the libraries that users would otherwise run: `make bench`.

Each row runs its contestants in turn on the same input, several times. It reports the median and
the spread of the times, and whether the results agree. Shapes on which we are slower are rows too.
Rows 3 to 11 run on two threads. The rows that need a GPU are in gpu_rows.py.

    1      similarity of 4,096 pairs of steps as long as those of s1K
    2      similarity of looping text, and how its time grows
    3      one update on the rollouts of one prompt, beside TRL
    4      one update on nested prompts, beside TRL
    5      whole steps of SRL, beside TRL
    10     growth of the time and memory of an update
    11     a whole step of SmolLM2-135M's shape, beside TRL: four minutes, one step each
    sweep  one update for several lengths and numbers of prompts; draws results/sweep.svg

    python experiments/bench/bench.py [--rows 1 3] [--repeats 5] [--steps s1k.jsonl] [--out FILE]

`--steps` names a file of JSON lines with a list `steps`, as in s1K. Without it, the steps of row 1
are pieces of this project's own documents, as long as those of s1K. Rows that are not run keep
their old results.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is loaded from the hub

from contest import Contest, machine
from growth_rows import growth_row
from model_row import model_row
from results import merge
from similarity_rows import looping_row, read_solutions, similarity_row
from step_row import step_row
from sweep_plot import check_matplotlib, draw
from sweep_rows import sweep_rows
from transformers.utils import logging
from update import threads
from update_rows import nested_row, update_row

HERE = Path(__file__).resolve().parent
THREADS = 2


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("1", "2", "3", "4", "5", "10", "11", "sweep")
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=Path, help="JSON lines with a list `steps`")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.json")
    args = parser.parse_args(words)
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: give 1 or more")
    if args.steps is not None and not args.steps.is_file():
        parser.error(f"--steps {args.steps}: no such file")
    if "sweep" in args.rows:
        check_matplotlib()
    logging.set_verbosity_error()
    about = machine()
    solutions, source = read_solutions(args.steps)
    print(f"{about['cpu']}, {about['cores']} cores, Python {about['python']}; {source}", flush=True)
    rows: dict[str, Callable[[], list[Contest]]] = {
        "1": lambda: similarity_row(solutions, int(str(about["cores"])), args.repeats),
        "2": lambda: looping_row(args.repeats),
        "3": lambda: update_row(args.repeats),
        "4": lambda: nested_row(args.repeats),
        "5": lambda: step_row(args.repeats),
        "10": lambda: growth_row(args.repeats),
        "11": lambda: model_row(),  # only one repeat, because it takes minutes
        "sweep": lambda: sweep_rows(args.repeats),
    }
    inputs = {"repeats": args.repeats, "threads": THREADS, "input": source}
    done: list[Contest] = []
    for name in args.rows:
        with threads(1 if name in ("1", "2") else THREADS):
            contests = rows[name]()
        for contest in contests:
            print("\n".join(contest.lines()), flush=True)
        # Results are saved after every row, so that nothing is lost if a later row fails.
        merge(args.out, {**about, **inputs}, contests)
        if name == "sweep":
            draw(contests, args.out.parent / "sweep.svg")
        done += contests
    print(table(done))
    print(f"written to {args.out}")


def table(contests: Sequence[Contest]) -> str:
    """Returns a table with one line per contest: our time, the peer's time and our speed."""
    lines = [f"{'row':<6} {'ours':>12} {'peer':>12} {'speed':>8} {'ceiling':>8}  input; goal"]
    for contest in contests:
        ceiling = contest.figures.get("ceiling")
        lines.append(
            f"{contest.row:<6} {1000 * contest.median(contest.ours):>9,.1f} ms "
            f"{1000 * contest.median(contest.base):>9,.1f} ms {contest.speed(contest.ours):>7.2f}x "
            f"{f'{ceiling:.2f}x' if isinstance(ceiling, float) else '':>8}  {contest.title}"
            + (f"; {contest.goal}" if contest.goal else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
