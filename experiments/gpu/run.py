"""Measures with one command what this project needs to know of a GPU, in at most eight minutes.

    a  rates of the machine                      d  rows 6 to 9 of the benchmark, short
    b  bf16 beside float32                       e  GSM8K: cold start, SRL, RLVR
    c  FlexAttention beside matrix products      f  where the time of a step goes

    python experiments/gpu/run.py --model FOLDER --data gsm8k_train.jsonl [--test gsm8k_test.jsonl]
    python experiments/gpu/run.py --parts a,c --minutes 3      some parts; they share the minutes
    python experiments/gpu/run.py --toy                        toy sizes on a CPU: no measurement
    python experiments/gpu/run.py --table                      the results as Markdown

Figures are saved as soon as they are known. Parts run one after another in a separate process. If a
part fails or exceeds its time, this is reported, and the next part begins in a new process.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
for folder in (ROOT, HERE, HERE.parent / "bench"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is loaded from the hub

from result_file import DONE, FAILED, RUNNING, STOPPED, ResultFile  # noqa: E402

# Name -> module, title, share of the time (its seconds of the eight minutes).
PARTS = {
    "a": ("machine_part", "rates of the machine", 10),
    "b": ("precision_part", "bf16 beside float32", 35),
    "c": ("flex_part", "FlexAttention beside matrix products", 70),
    "d": ("bench_part", "rows 6 to 9 of the benchmark, short", 110),
    "e": ("gsm8k_part", "GSM8K: cold start, SRL, RLVR", 200),
    "f": ("profile_part", "where the time of a step goes", 55),
}
# A part does not begin with fewer seconds than this.
LEAST = 2.0
PACKAGES = ("torch", "transformers", "trl", "triton", "accelerate", "datasets", "math-verify")
NO_CUDA = "no CUDA device: it needs one; a dry run: python experiments/gpu/run.py --toy"


def main(words: Sequence[str] | None = None) -> None:
    args = _arguments(words)
    if args.table:
        print(ResultFile.read(args.out).table())
        return
    if args.worker or args.toy:
        _work(args)
    else:
        _supervise(args)
    print(f"written to {args.out}" + (" (toy sizes: no measurement)" if args.toy else ""))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="such as a,c; all by default")
    parser.add_argument("--model", type=Path, help="a model's folder; e and f need one")
    parser.add_argument("--data", type=Path, help="GSM8K's training rows, JSON lines; e, f need it")
    parser.add_argument("--test", type=Path, help="its test rows; else 1,319 of --data held out")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--toy", action="store_true", help="toy sizes on a CPU: no measurement")
    parser.add_argument("--out", type=Path, help="the file of results")
    parser.add_argument("--table", action="store_true", help="print that file as Markdown")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    args.parts = [name.strip() for name in args.parts.split(",") if name.strip()]
    if unknown := sorted({*args.parts} - {*PARTS}):
        parser.error(f"--parts {','.join(unknown)}: there are {', '.join(PARTS)}")
    for name in ("model", "data", "test"):
        if (path := getattr(args, name)) is not None and not path.exists():
            parser.error(f"--{name} {path}: there is no such file")
    if not args.minutes > 0:
        parser.error(f"--minutes {args.minutes:g}: give a number above 0")
    args.out = args.out or HERE / "results" / ("toy.json" if args.toy else "gpu.json")
    return args


# ---- the parent ----------------------------------------------------------------------------------


def _supervise(args: argparse.Namespace) -> None:
    """Runs the parts in a process; if a part ends it, starts it again without that part."""
    until = time.time() + 60 * args.minutes
    waiting = list(args.parts)
    results = ResultFile.read(args.out)
    for name in waiting:  # remove the results of an older run
        results.parts.pop(name, None)
    results.save()
    while waiting:
        command = [sys.executable, "-u", str(HERE / "run.py"), "--worker", "--until", str(until)]
        command += ["--parts", ",".join(waiting), "--out", str(args.out)]
        for option in ("model", "data", "test"):
            if (path := getattr(args, option)) is not None:
                command += [f"--{option}", str(path)]
        code = _run(command, until)
        results = ResultFile.read(args.out)
        if code == 2 and results.state(waiting[0]) is None:
            raise SystemExit(2)  # the process has printed the reason
        ended = [name for name in waiting if results.state(name) in (DONE, FAILED, STOPPED)]
        for name in waiting:
            if results.state(name) == RUNNING:
                results.parts[name]["state"] = STOPPED
                results.parts[name]["error"] = f"the process ended with exit code {code}"
                results.save()
                ended.append(name)
        if not ended:
            waiting.pop(0)
        waiting = [name for name in waiting if name not in ended]
        if waiting and until - time.time() < 10:
            print(f"no time left for: {', '.join(waiting)}", flush=True)
            break
    print(results.table(), flush=True)


def _run(command: Sequence[str], until: float) -> int:
    """Runs a command and returns its exit code; ends all processes that it has started."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(timeout=max(10.0, until - time.time() + 10))
    except subprocess.TimeoutExpired:
        return -int(signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ---- the process that measures -------------------------------------------------------------------


def _work(args: argparse.Namespace) -> None:
    """Runs the parts in turn; exits after a part that failed on a GPU.

    Such a failure may have left the GPU unusable for this process.
    """
    import torch
    from given import Given, SkippedError
    from transformers.utils import logging

    if not args.toy and not torch.cuda.is_available():
        print(NO_CUDA, file=sys.stderr)
        raise SystemExit(2)
    logging.set_verbosity_error()
    results = ResultFile.read(args.out)
    results.about = _about(args, torch.cuda.get_device_name() if not args.toy else "a CPU, toys")
    until = args.until or time.time() + 60 * args.minutes
    for number, name in enumerate(args.parts):
        module, title, share = PARTS[name]
        later = sum(PARTS[other][2] for other in args.parts[number + 1 :])
        seconds = (until - time.time()) * share / (share + later)
        results.parts[name] = {"title": title, "state": RUNNING, "budget": seconds}
        results.save()
        if seconds < LEAST:
            results.parts[name] |= {"state": STOPPED, "error": "no time was left to begin"}
            results.save()
            continue
        print(f"\n== {name}. {title}, at most {seconds:.0f} s", flush=True)
        if not args.toy:  # a thread in C, which also ends a part that hangs in the driver
            faulthandler.dump_traceback_later(seconds, exit=True)
        started = time.monotonic()
        part = results.parts[name]
        with TemporaryDirectory() as folder:
            given = Given(
                args.toy, args.model, args.data, args.test, Path(folder), started + seconds
            )
            try:
                importlib.import_module(module).measure(
                    given, lambda figures, name=name: _note(results, name, figures)
                )
                part["state"] = DONE
            except SkippedError as error:
                part["state"], part["error"] = DONE, f"skipped: {error}"
            except Exception:  # noqa: BLE001  the error is reported, and the next part begins
                part["state"], part["error"] = FAILED, traceback.format_exc()
                print(part["error"], flush=True)
        faulthandler.cancel_dump_traceback_later()
        part["seconds"] = time.monotonic() - started
        results.save()
        if part["state"] == FAILED and not args.toy:
            raise SystemExit(1)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _note(results: ResultFile, name: str, figures: dict[str, object]) -> None:
    results.note(name, figures)
    print(f"  {name}: {figures}"[:1500], flush=True)


def _about(args: argparse.Namespace, device: str) -> dict[str, object]:
    """Returns what the figures depend on: machine, versions, settings and commit."""
    from contest import machine

    return {
        **machine(PACKAGES),
        "device": device,
        "toy": args.toy,
        "minutes": args.minutes,
        "model": args.model and args.model.name,
        "commit": _commit(),
    }


def _commit() -> str:
    """Returns the measured commit, with a + if files were changed; "" without git."""
    try:
        completed = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return completed.stdout.strip()


if __name__ == "__main__":
    main()
