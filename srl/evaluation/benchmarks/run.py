r"""Runs benchmarks: one greedy and K sampled solutions of each problem, each of them verified.

The work is cut into chunks. Their order is the same for the same model, benchmarks and settings:
for each benchmark first greedy solutions, then samples. Neighbouring problems are in one chunk as
long as they fit into `rollout_token_budget`. The samples of one problem are in several chunks if
they do not fit. A chunk is solved, verified in worker processes, and written whole. Random numbers
are drawn from (seed, problem, sample, token), so they do not depend on earlier chunks. So a run
that was killed continues with the first chunk that is not in samples.jsonl, and ends with the same
file as an uninterrupted run.

Each verdict comes from the built-in reward `answer` (math-verify behind a whitelist) with a
deadline. If a check was killed, the sample counts as not right, and the figures count such samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from transformers import set_seed

from environments.benchmarks import BENCHMARKS, LoadedBenchmark, find_benchmark, load_benchmark
from environments.few_shot import FewShot
from environments.prompts import PAPER_EVALUATION_PROMPT
from environments.shots import load_few_shot
from srl.config.experiment import short_path
from srl.config.parts import PromptSettings, setting_names
from srl.config.settings import BenchmarkSettings
from srl.config.strict_yaml import build
from srl.console import clock, say
from srl.errors import UsageError
from srl.evaluation.benchmarks.figures import figures_of, table_of
from srl.evaluation.benchmarks.remedies import remedies
from srl.evaluation.benchmarks.samples import Solver, verdicts
from srl.evaluation.contamination import trained_on
from srl.evaluation.judging import make_verifier
from srl.models.loading import fingerprint, load_policy
from srl.runs.chunks import keep_whole_chunks
from srl.runs.folder import RunFolder, changed_keys, write_json
from srl.runs.lock import only_writer
from srl.runs.records import RecordWriter

SAMPLES = "samples.jsonl"
# Settings that change no sample, so a resumed evaluation may have other values.
_FREE = ("reward_workers", "output_dir")
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class BenchmarkPlan:
    """A request to evaluate a model on benchmarks.

    Attributes:
        model: a model folder or a hub name.
        benchmarks: names and files, see `environments.benchmarks.find_benchmark`.
        samples: K, the number of sampled solutions of a problem, besides the greedy one.
        limit: only the first `limit` problems of each benchmark; None is all.
        args: the settings of prompts, sampling and checks.
    """

    model: str
    benchmarks: tuple[str, ...]
    samples: int
    limit: int | None
    args: BenchmarkSettings


def plan_from_words(
    model: str,
    benchmarks: str,
    *,
    samples: int,
    limit: int | None,
    settings: Mapping[str, object],
    of_run: Mapping[str, object] | None = None,
) -> BenchmarkPlan:
    """Checks a request and returns it as a plan.

    Args:
        model: a model folder or a hub name.
        benchmarks: names and files, separated by commas.
        samples: K.
        limit: only the first `limit` problems of each benchmark; None is all.
        settings: fields of `BenchmarkSettings` that the user gave.
        of_run: the fields of the run that trained the policy. Its prompt settings are not used if
            the prompt has worked examples, or if `as_is` is set.

    Raises:
        UsageError: a number is out of range, a setting has no effect here or a wrong type, or the
            benchmarks or files of examples are wrong.
        DataError: a benchmark is unknown.
    """
    if samples < 0:
        raise UsageError(f"--samples is {samples}; it must be 0 (greedy alone) or more")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}; it must be 1 or more, or absent for all problems")
    known = setting_names(BenchmarkSettings)
    for key in settings:
        if key not in known:
            raise UsageError(
                f"--{key} does not matter to a benchmark; settings that do: {', '.join(known)}"
            )
    names = (benchmarks,) if Path(benchmarks).exists() else tuple(benchmarks.split(","))
    names = tuple(name.strip() for name in names if name.strip())
    if not names:
        raise UsageError(f"--bench is {benchmarks!r}; give one or more of {', '.join(BENCHMARKS)}")
    called = [find_benchmark(name).name for name in names]
    if twice := [name for name in called if called.count(name) > 1]:
        raise UsageError(
            f"--bench {benchmarks}: {twice[0]} is named twice; name each once, "
            "and rename one of two files of one name"
        )
    args = build(BenchmarkSettings, _asked(settings, of_run or {}), where="eval")
    for name in _fewshot_files(args.fewshot_file):
        if name and name not in called:
            raise UsageError(
                f"--fewshot_file names {name}, but --bench asks {', '.join(called)}; "
                "give FILE, or NAME=FILE for a benchmark that is asked"
            )
    return BenchmarkPlan(model, names, samples, limit, args)


def _asked(settings: Mapping[str, object], of_run: Mapping[str, object]) -> dict[str, object]:
    """Returns the settings, with those of the run and those that few-shot and `as_is` imply."""
    as_is = settings.get("as_is") is True
    if not as_is and not settings.get("num_fewshot"):
        return {**of_run, **settings}
    prompt = setting_names(PromptSettings)
    kept = {key: value for key, value in of_run.items() if key not in prompt}
    implied = {"whole_system_prompt": None, **({"template": "chat"} if as_is else {})}
    return {**kept, **implied, **settings}


def _fewshot_files(given: str | None) -> dict[str, str]:
    """Returns benchmark -> its file of worked examples; the key "" stands for all others."""
    if given is None:
        return {}
    files = [given] if Path(given).exists() else given.split(",")
    paths: dict[str, str] = {}
    for entry in files:
        name, equals, path = entry.strip().partition("=")
        named = bool(equals) and not Path(entry.strip()).exists()
        whose = find_benchmark(name).name if named else ""
        if whose in paths:
            raise UsageError(
                f"--fewshot_file {given}: two files for {whose or 'all benchmarks'}; give one, or "
                "NAME=FILE for each"
            )
        paths[whose] = path if named else entry.strip()
    return paths


def run_benchmark(
    plan: BenchmarkPlan, name: str | None, argv: Sequence[str], console: Console
) -> dict[str, object]:
    """Solves, verifies, saves and prints; continues `runs/<name>/` if it has begun.

    Returns:
        The content of summary.json.

    Raises:
        UsageError, DataError: wrong use; a new folder without any samples is removed again.
    """
    started = time.monotonic()
    root = Path(plan.args.output_dir or "runs")
    loaded = [
        load_benchmark(find_benchmark(name_or_path), limit=plan.limit)
        for name_or_path in plan.benchmarks
    ]
    for benchmark in loaded:
        say(console, _about(benchmark, plan))
    few_shot = _few_shot(plan, loaded)
    say(console, f"asked {_how(plan.args, few_shot)}")
    seen = _trained_on(plan.model, loaded, console)
    # The quick checks come first, so no model is loaded if the folder cannot be used.
    settings = _resolved(plan, loaded, few_shot)
    run = _open(root, name)
    # Two processes that write to one folder would mix their solutions.
    with only_writer(run.path, lambda line: say(console, line)):
        run.refuse_links()
        is_new = not run.config.is_file()
        if not is_new:
            _check_same(run, settings)
        try:
            figures = _run(plan, loaded, few_shot, run, settings if is_new else None, argv, console)
        except BaseException as error:
            samples = run.path / SAMPLES
            begun = samples.is_file() and samples.stat().st_size
            if is_new and not begun:
                _take_away(run)
            elif isinstance(error, KeyboardInterrupt):
                again = f"the same command with --run-name {run.name} goes on"
                say(console, f"kept: {samples}; {again}")
            raise
    if figures.get("seconds_last_session") is None:
        figures |= {"trained on": seen, "seconds_last_session": time.monotonic() - started}
        write_json(run.summary, figures)
    say(console, f"policy: {plan.model}, asked {_how(plan.args, few_shot)}")
    console.print(table_of(figures))
    for line in remedies(figures, plan.args):
        say(console, line)
    say(console, f"samples: {run.path / SAMPLES}   figures: {run.summary}")
    return figures


def _trained_on(
    model: str, loaded: Sequence[LoadedBenchmark], console: Console
) -> dict[str, dict[str, int]]:
    """Returns benchmark -> stage of the model -> number of its problems that the stage trained on.

    Such a benchmark is run all the same, because the user decides what it is for. A message reports
    the number.
    """
    counts: dict[str, dict[str, int]] = {}
    for run, trained in trained_on(model, lambda line: say(console, line)):
        for benchmark in loaded:
            if seen := sum(problem.problem_id in trained for problem in benchmark.problems):
                stage = str(short_path(run.path))
                counts.setdefault(benchmark.name, {})[stage] = seen
                say(
                    console,
                    f"{seen:,} of the {len(benchmark.problems):,} problems of {benchmark.name} "
                    f"were trained on in {stage}: what is solved of them says nothing of new ones",
                )
    return counts


def _few_shot(plan: BenchmarkPlan, loaded: Sequence[LoadedBenchmark]) -> dict[str, FewShot]:
    """Returns the worked examples of each benchmark; empty if `num_fewshot` is 0."""
    if not plan.args.num_fewshot:
        return {}
    files = _fewshot_files(plan.args.fewshot_file)
    return {
        benchmark.name: load_few_shot(
            find_benchmark(name),
            benchmark.problems,
            number=plan.args.num_fewshot,
            seed=plan.args.seed,
            file=files.get(benchmark.name, files.get("")),
        )
        for name, benchmark in zip(plan.benchmarks, loaded, strict=True)
    }


def _how(args: BenchmarkSettings, few_shot: Mapping[str, FewShot]) -> str:
    """Returns a text that says how problems are asked, for the screen and the summary."""
    if args.as_is:
        return "as it is: the model's own chat template and the bare problem"
    if few_shot:
        drawn = ", ".join(f"{name}'s from {shots.path}" for name, shots in few_shot.items())
        return f"{args.num_fewshot}-shot, worked examples: {drawn}"
    if args.whole_system_prompt == PAPER_EVALUATION_PROMPT:
        return "with the paper's evaluation prompt"
    return (
        "with your whole_system_prompt" if args.whole_system_prompt else "without a system prompt"
    )


def _run(
    plan: BenchmarkPlan,
    loaded: Sequence[LoadedBenchmark],
    few_shot: Mapping[str, FewShot],
    run: RunFolder,
    settings: Mapping[str, object] | None,
    argv: Sequence[str],
    console: Console,
) -> dict[str, object]:
    """Makes the solutions that are not in samples.jsonl yet, and returns the figures of all."""
    samples = run.path / SAMPLES
    if settings is None and run.summary.is_file():
        say(console, f"{run.path} is complete: nothing is solved again")
        done: dict[str, object] = json.loads(run.summary.read_text(encoding="utf-8"))
        return done
    set_seed(plan.args.seed)
    model, tokenizer = load_policy(plan.model, experts=plan.args.experts_implementation)
    model.to(plan.args.device)
    solvers = {
        benchmark.name: Solver(
            model, tokenizer, plan.args, plan.samples, few_shot.get(benchmark.name)
        )
        for benchmark in loaded
    }
    numbers = {benchmark.name: benchmark.layout.numbers for benchmark in loaded}
    chunks = [
        chunk
        for benchmark in loaded
        for chunk in solvers[benchmark.name].chunks(benchmark.problems)
    ]
    if settings is not None:
        run.write_start(settings, argv)
    else:
        run.add_command(argv)
    first = keep_whole_chunks(samples, [chunk.keys for chunk in chunks], _key)
    total = sum(len(chunk.keys) for chunk in chunks)
    made = sum(len(chunk.keys) for chunk in chunks[:first])
    if made:
        say(console, f"going on: {made:,} of {total:,} solutions are in {samples}")
    verifier = make_verifier(plan.args)
    try:
        with RecordWriter(samples) as writer:
            reported_at = began = time.monotonic()
            at_first = made
            for chunk in chunks[first:]:
                solved, of = solvers[chunk.benchmark].solve(chunk), numbers[chunk.benchmark]
                writer.write(verdicts(chunk.asked, solved, verifier, numbers=of))
                made += len(chunk.keys)
                now = time.monotonic()
                if now - reported_at >= _SECONDS_BETWEEN_LINES and made < total:
                    reported_at = now
                    left = (total - made) * (now - began) / (made - at_first)
                    say(console, f"{made:,} of {total:,} solutions  {clock(left)} left")
    finally:
        verifier.close()
    return {
        "model": plan.model,
        "asked": _how(plan.args, few_shot),
        "samples": plan.samples,
        "benchmarks": figures_of(samples),
    }


def _resolved(
    plan: BenchmarkPlan, loaded: Sequence[LoadedBenchmark], few_shot: Mapping[str, FewShot]
) -> dict[str, object]:
    """Returns the content of an evaluation's config.yaml: all that determines its samples."""
    return {
        "model": plan.model,
        "weights": fingerprint(plan.model),
        "bench": {
            benchmark.name: {
                "path": benchmark.path,
                "problems": len(benchmark.problems),
                "digest": benchmark.digest,
                **(
                    {"examples": few_shot[benchmark.name].digest}
                    if benchmark.name in few_shot
                    else {}
                ),
            }
            for benchmark in loaded
        },
        "samples": plan.samples,
        "limit": plan.limit,
        **asdict(plan.args),
    }


def _open(root: Path, name: str | None) -> RunFolder:
    """Returns the folder of an evaluation, which has begun or is new.

    Raises:
        UsageError: the folder is in use but has no config.yaml, or a new one cannot be made.
    """
    if name is None or not (root / name / "config.yaml").is_file():
        return RunFolder.create(root, name)
    return RunFolder.open(root / name)


def _check_same(run: RunFolder, settings: Mapping[str, object]) -> None:
    """Raises UsageError if the folder's run is of another kind, or began with other settings."""
    old = run.read_config()
    if "bench" not in old:
        raise UsageError(
            f"{run.path} is in use by a run of another kind; give the evaluation a folder of its "
            f"own: --run-name {run.name}-bench"
        )
    before = {key: value for key, value in old.items() if key not in _FREE}
    after = {key: value for key, value in settings.items() if key not in _FREE}
    if changed := changed_keys(before, after):
        raise UsageError(
            f"{run.path} was begun with other settings:\n  " + "\n  ".join(changed) + "\nIts "
            "samples and new ones would not belong together. Give the same settings to go on, or "
            "another --run-name for a new evaluation"
        )


def _take_away(run: RunFolder) -> None:
    """Removes the files of an evaluation that has solved nothing."""
    for name in (run.config, run.command, run.environment, run.path / SAMPLES):
        name.unlink(missing_ok=True)


def _key(row: Mapping[str, object]) -> object:
    """Returns the key of a line of samples.jsonl, in the form of `Chunk.keys`."""
    return row.get("benchmark"), row.get("number"), row.get("sample")


def _about(benchmark: LoadedBenchmark, plan: BenchmarkPlan) -> str:
    drops = "".join(f", {n:,} rows dropped: {why}" for why, n in benchmark.report.dropped.items())
    counts = BENCHMARKS[benchmark.name].counts if benchmark.name in BENCHMARKS else 0
    other = ""
    if counts and plan.limit is None and len(benchmark.problems) != counts:
        other = f" (the published set has {counts:,})"
    return (
        f"{benchmark.name}: {len(benchmark.problems):,} problems{other}{drops}, "
        f"from {benchmark.path}"
    )
