"""Measures row 10: how time and memory of an update grow with the tokens of its tree.

There are two series. All rows of a point form one tree, even if `micro_batch_tokens` is smaller:

    more of the same   more and more trajectories of one shape; the goal is linear growth
    one ever longer    one trajectory with more and more steps. Every token attends to all before
                       it, so the operations grow faster than the tokens. They are listed too.

Every point is measured in its own process. Its memory is the peak of that process, less the memory
in use before the update (read from /proc: Linux only).

    python experiments/bench/growth_rows.py 8 256 64 8 48 2      (K Q s G C trajectories: one point)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

from contest import Contest, run
from flops import update_flops
from shapes import Shape, tiny_model
from update import Case, one_tree, ours

from srl.models.prefix_tree import PrefixTree

SIZES = (2048, 4096, 8192, 16384, 32768)
SHAPE = Shape(K=4, Q=256, s=64, G=8, C=18)  # 1,024 nodes per trajectory
STEP = Shape(K=1, Q=256, s=64, G=8, C=48)  # 448 nodes per further step


def growth_row(
    repeats: int, *, sizes: Sequence[int] = SIZES, shape: Shape = SHAPE, step: Shape = STEP
) -> list[Contest]:
    """Runs both series of row 10, with a point at about each of `sizes` nodes."""
    more = [replace(shape, trajectories=max(1, round(size / shape.nodes))) for size in sizes]
    per_step = step.s + step.G * step.C
    longer = [replace(step, K=max(1, round((size - step.Q + step.s) / per_step))) for size in sizes]
    goal = "<= 1.15x linear in the tree's tokens"
    return [
        _series(f"growth, more of the same: {shape.title}", more, repeats, goal),
        _series("growth, one ever longer trajectory: "
                f"Q {step.Q}, s {step.s}, G {step.G}, C {step.C}", longer, repeats, ""),
    ]  # fmt: skip


def _series(title: str, shapes: Sequence[Shape], repeats: int, goal: str) -> Contest:
    model = tiny_model()
    contest = Contest(10, title, goal=goal)
    cases = {_name(shape): Case.of(model, shape) for shape in shapes}
    # The inputs differ, so the results are not compared.
    run(
        contest,
        {name: ours(case, one_tree) for name, case in cases.items()},
        repeats,
        compare=lambda _expected, _found: "",
        warm_up=True,
    )
    contest.agreement = {}
    points: list[dict[str, float]] = []
    for shape, (name, case) in zip(shapes, cases.items(), strict=True):
        tree = PrefixTree.of(case.rows)
        point = {
            "microseconds": 1e6 * contest.median(name),
            "operations": update_flops(model.config, tree),
            "MiB": peak_memory(shape),
        }
        a_node = {f"{what} a node": value / len(tree) for what, value in point.items()}
        beside = points[0] if points else a_node
        growth = {f"{what}, x linear": value / beside[what] for what, value in a_node.items()}
        points.append({"nodes": len(tree), **a_node, **growth})
    contest.figures["points"] = points
    return contest


def _name(shape: Shape) -> str:
    return f"{shape.nodes:,} nodes ({shape.trajectories} x {shape.K} prompts)"


def peak_memory(shape: Shape) -> float:
    """Returns the MiB that an update needs beyond the model and its libraries.

    The update runs in its own process.
    """
    point = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *map(str, astuple(shape))],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    return float(json.loads(point.stdout.splitlines()[-1])["MiB"])


def _one_point(shape: Shape) -> float:
    model = tiny_model()
    # A small update first: what torch sets up once does not belong to the update.
    ours(Case.of(model, Shape(K=1, Q=8, s=0, G=2, C=8)), one_tree)()()
    work = ours(Case.of(model, shape), one_tree)()
    before = _kib("VmRSS")
    # Reset the peak. (getrusage cannot reset it, and it includes the peak of the parent process.)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    work()
    return (_kib("VmHWM") - before) / 2**10


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    print(json.dumps({"MiB": _one_point(Shape(*map(int, sys.argv[1:])))}))
