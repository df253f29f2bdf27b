"""Runs a grid of settings such as learning rates and group sizes, one run after another.

    python experiments/tiny/sweep.py --name lr learning_rate=1e-4,3e-4 prompts_per_step=8,16

Every combination is a whole `srl train` with its own run folder under runs/sweep-<name>/. A
combination that is finished there is not run again. Results are written to sweeps/<name>.json. The
script prints one line per run: the accuracy on the test problems (all, short, long) before and
after training, and the seconds of training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
FIGURES = ("step by step, greedy", "step by step, greedy, short", "step by step, greedy, long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--test-problems", type=int, default=210)
    parser.add_argument("--config", type=Path, default=HERE / "srl.yaml")
    parser.add_argument("grid", nargs="+", help="key=value,value,...")
    args = parser.parse_args()
    keys = [entry.partition("=")[0] for entry in args.grid]
    choices = [entry.partition("=")[2].split(",") for entry in args.grid]
    runs = []
    for values in itertools.product(*choices):
        settings = dict(zip(keys, values, strict=True))
        run = "+".join(f"{key}={value}" for key, value in settings.items())
        words = [f"--{key}={value}" for key, value in settings.items()]
        root = Path("runs") / f"sweep-{args.name}"
        if not (root / run / "summary.json").is_file():
            subprocess.run(
                [
                    *(sys.executable, "-m", "srl", "train", "--config", str(args.config)),
                    *("--run-name", run, f"--output_dir={root}", f"--max_steps={args.steps}"),
                    *(f"--test_problems={args.test_problems}", *words),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        summary = json.loads((root / run / "summary.json").read_text())
        runs.append({"settings": settings, **summary})
        print(run, _line(summary), flush=True)
        _write(args, runs)


def _write(args: argparse.Namespace, runs: list[dict]) -> None:  # type: ignore[type-arg]
    """Writes the results. It is called after every run, so that a later failure loses nothing."""
    out = HERE / "sweeps" / f"{args.name}.json"
    out.parent.mkdir(exist_ok=True)
    command = ["python", "experiments/tiny/sweep.py", *sys.argv[1:]]
    about = {
        "command": " ".join(command),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "steps": args.steps,
    }
    out.write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")


def _line(summary: dict) -> str:  # type: ignore[type-arg]
    cells = []
    for name in FIGURES:
        before, after = summary["before"][name], summary["after"][name]
        cells.append(f"{100 * before['value']:.1f} -> {100 * after['value']:.1f}")
    seconds = summary["seconds_training"]
    return f"all {cells[0]}  short {cells[1]}  long {cells[2]}  training {seconds:.0f} s"


if __name__ == "__main__":
    main()
