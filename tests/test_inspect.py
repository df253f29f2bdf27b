from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from srl.errors import UsageError
from srl.inspect import LogSummary, inspect_run, visible
from srl.records import RecordWriter, StepRecord
from srl.run_folder import RunFolder

RECORD = StepRecord(
    train_step=3,
    phase="train",
    source="gsm8k",
    problem_id="00ff00ff00ff00ff",
    step_index=1,
    num_steps=4,
    group_id=7,
    rollout=2,
    prompt_tokens=120,
    completion_tokens=31,
    truncated=False,
    thought="3 - 1",
    action="She has 3 - 1 = 2 left.",
    expert_step="3 - 1 = 2 eggs are left.",
    previous_step="She has 3 eggs.",
    format_failure=None,
    rewards={"similarity": 0.75, "equation": None},
    reward=0.75,
    lift=0.25,
    group_mean=0.5,
    group_std=0.25,
    kept=True,
    dropped_because=None,
    advantage=1.0,
)
FAILED = replace(
    RECORD,
    rollout=3,
    thought="no end",
    action="",
    format_failure="missing_close",
    rewards={"similarity": None},
    reward=-1.0,
    lift=None,
)
DROPPED = replace(
    RECORD, train_step=4, kept=False, dropped_because="flat_group", advantage=None, reward=0.25
)
EVALUATED = replace(
    RECORD,
    train_step=5,
    phase="eval",
    problem_id="ee11223344556677",
    kept=False,
    advantage=None,
    rewards={"similarity": 0.25},
    reward=0.0,
)


def run_with(tmp_path: Path, *records: StepRecord) -> RunFolder:
    with RecordWriter(tmp_path / "steps.jsonl") as writer:
        writer.write(records)
    return RunFolder(tmp_path)


def shown(run: RunFolder, *, width: int = 200, **options: int | str | bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    inspect_run(run, console=console, **options)  # type: ignore[arg-type]
    return out.getvalue()


def test_summary_counts() -> None:
    summary = LogSummary()
    for record in (RECORD, RECORD, FAILED, DROPPED, EVALUATED):
        summary.add(record)
    assert (summary.records, summary.train, summary.kept) == (5, 4, 3)
    assert summary.mean_reward == pytest.approx((0.75 + 0.75 - 1 + 0.25 + 0) / 5)
    assert summary.mean_similarity == pytest.approx((0.75 * 3 + 0.25) / 4)
    assert summary.failures == {"missing_close": 1}
    assert summary.dropped == {"flat_group": 1}
    assert LogSummary().mean_reward is None
    assert LogSummary().mean_similarity is None


def test_summary_and_table(tmp_path: Path) -> None:
    text = shown(run_with(tmp_path, RECORD, FAILED, DROPPED, EVALUATED))
    for said in (
        "4 (1 of evaluations)",
        "2 of 3 (66.7%)",
        "flat_group 1",
        "0.583 among 3 valid",
        "1 of 4 (25.0%): missing_close 1",
        "00ff00ff",
        "2/4 7/2",
        "similarity 0.750  equation -",
        "+0.250",
        "+1.000",
        "dropped",
        "[missing_close] no end",
        RECORD.action,
        RECORD.expert_step,
    ):
        assert said in text, said


def test_filters(tmp_path: Path) -> None:
    run = run_with(tmp_path, RECORD, FAILED, DROPPED, EVALUATED)
    assert "dropped │" not in shown(run, step=3)
    assert "missing_close] no end" in shown(run, failures_only=True)
    assert "7/2" not in shown(run, failures_only=True)
    assert "ee112233" in shown(run, problem="ee11", phase="eval")
    assert "00ff00ff" not in shown(run, problem="ee11", phase="all")
    with pytest.raises(UsageError, match="--problem ee11 --phase train"):
        shown(run, problem="ee11")
    with pytest.raises(
        UsageError, match="matches --step 9 --failures-only --phase train; .* steps 3 to 5"
    ):
        shown(run, step=9, failures_only=True)


def test_limit_shows_the_newest(tmp_path: Path) -> None:
    run = run_with(tmp_path, *(replace(RECORD, train_step=n + 100) for n in range(30)))
    text = shown(run)
    assert "│  129 │" in text
    assert "│  110 │" in text
    assert "│  109 │" not in text
    assert "The newest 20 of 30 records" in text
    assert "--limit" not in shown(run, limit=30)
    with pytest.raises(UsageError, match="--limit 0"):
        shown(run, limit=0)


def test_policy_text_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    hostile = "[red]x[/red] [/] :smile: \x1b[2J\x07\r\u202e\u200b\x9b31m\u2028 two\nlines\ttab"
    record = replace(
        RECORD,
        action=hostile,
        expert_step=hostile,
        problem_id="\x1b[1m" + RECORD.problem_id,
        rewards={"\x1b[5m[b]": 1.0},
    )
    failed = replace(FAILED, format_failure="\x1b[7m", thought=hostile)
    dropped = replace(DROPPED, dropped_because="\x1b[8m[i]")
    text = shown(run_with(tmp_path, record, failed, dropped), width=400)
    assert "[red]x[/red] [/] :smile: \\u{1b}[2J\\u{7}\\u{d}\\u{202e}\\u{200b}\\u{9b}31m" in text
    assert "\\u{2028} two⏎lines⇥tab" in text
    for sign in "\x07\r\u202e\u200b\x9b\u2028\t":
        assert sign not in text
    for mode in (1, 5, 7, 8):
        assert f"\x1b[{mode}m" not in text.replace("\x1b[1m\x1b", "")


def test_every_control_character_is_spelt_out() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0xFEFF, 0xD800]:
        assert visible(chr(code)).isprintable(), hex(code)
    assert visible("π ≤ é 漢 \\ {x}") == "π ≤ é 漢 \\ {x}"


@pytest.mark.parametrize("width", [80, 120])
def test_fits_the_terminal(tmp_path: Path, width: int) -> None:
    run = run_with(tmp_path, replace(RECORD, action="word " * 200, expert_step="other " * 200))
    text = shown(run, width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" in text
    for number in ("00ff00ff", "2/4 7/2", "0.750", "+0.250", "+1.000", "similarity 0.750"):
        assert number in text, number


def test_a_log_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps.jsonl does not exist: .* no rollouts yet"):
        shown(RunFolder(tmp_path))
    with pytest.raises(UsageError, match="steps.jsonl is empty"):
        shown(run_with(tmp_path))
