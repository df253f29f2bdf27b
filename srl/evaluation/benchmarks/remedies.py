"""Reports how many problems got no readable answer, why, and what to try. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from srl.stats import wilson

if TYPE_CHECKING:
    from srl.config.settings import BenchmarkSettings

CUT_OFF, NO_STATEMENT, NO_ROOM = "cut off", "no statement", "no room"
# Below this share of problems nothing is reported.
_FEW = 0.05


def remedies(summary: Mapping[str, object], args: BenchmarkSettings) -> list[str]:
    """Returns a line for each benchmark whose greedy solutions often have no readable answer.

    Args:
        summary: the content of summary.json.
        args: the settings of the prompts.
    """
    benchmarks = summary["benchmarks"]
    assert isinstance(benchmarks, dict)
    lines = []
    for name, figures in benchmarks.items():
        unread, n = figures.get("unread", {}), figures["n"]
        count = sum(unread.values())
        if count < _FEW * n:
            continue
        share = wilson(count, n)
        percent = [f"{100 * value:.0f}" for value in (share.value, share.low, share.high)]
        why = {
            CUT_OFF: f"cut off at {args.whole_max_completion_length:,} tokens",
            NO_STATEMENT: "without a statement of the answer",
            NO_ROOM: "without room for a solution",
        }
        causes = ", ".join(f"{number:,} {why[cause]}" for cause, number in unread.items() if number)
        advice = _advice(max(unread, key=unread.get), args)
        lines.append(
            f"{name}: no answer is read in {count:,} of {n:,} problems, {percent[0]} % "
            f"[{percent[1]}, {percent[2]}] ({causes}). Try {advice}"
        )
    return lines


def _advice(cause: str, args: BenchmarkSettings) -> str:
    length = args.whole_max_completion_length
    if cause == NO_ROOM:
        fewer = ", or fewer examples" if args.num_fewshot else ""
        return f"--whole_max_completion_length {max(1, length // 2)}{fewer}"
    ways = []
    if cause == CUT_OFF:
        ways.append(
            f"--whole_max_completion_length {2 * length} (if the policy's context has room)"
        )
    if not args.num_fewshot and not args.as_is:
        ways += ["--num_fewshot 5 (examples show how a solution ends)", "--as-is"]
        ways.append("--whole_system_prompt with the prompt that the model was trained with")
    elif args.as_is:
        ways.append("--num_fewshot 5 instead of --as-is")
    elif cause == NO_STATEMENT:
        ways.append("more examples; flexible-extract reads answers that are not stated")
    return ", or ".join(ways)
