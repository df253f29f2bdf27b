"""What a training says of rollouts that break the format: the reason, an example, what to try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import toy_config, toy_trajectories

from rewards import RewardSum
from srl.config.format_failures import FAILURES
from srl.config.parts import setting_names
from srl.config.settings import SRLConfig
from srl.data.prompts import ParsedStep
from srl.data.steps import build_examples
from srl.rollout.rollouts import Rollout
from srl.training.groups import Collected, FilterDecision, Group
from srl.training.start_lines import broken_format

[EXAMPLE, *_] = build_examples(toy_trajectories(1), targets="all")
REWARDS = RewardSum({"similarity": 1.0})


def collected(*reasons: str | None) -> Collected[Group]:
    """One group with a rollout for each reason; None keeps the format."""
    rollouts = [
        Rollout(
            example=EXAMPLE,
            prompt_ids=[1],
            completion_ids=[number],
            log_probs=[0.0],
            loss_mask=[True],
            policy_version=0,
            truncated=reason == "truncated",
            parsed=ParsedStep("", "", reason),
            score=REWARDS.failed(reason or ""),
            metrics={},
        )
        for number, reason in enumerate(reasons)
    ]
    return Collected([Group(rollouts)], [FilterDecision(-1.0, 0.0, "flat_group")], 1)


def told(folder: Path, *reasons: str | None, **settings: Any) -> str | None:
    args: SRLConfig = toy_config(folder, **settings)
    return broken_format(args, collected(*reasons), lambda ids: f"text {ids[0]}\n")


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("reason", FAILURES)
def test_every_reason_has_its_example_and_settings_that_exist(
    tmp_path: Path, reason: str, think: bool
) -> None:
    other = "empty_action" if reason != "empty_action" else "truncated"
    words = told(tmp_path, other, *[reason] * 9, think=think)
    assert words is not None
    first, example, *rest = words.splitlines()
    assert len(words.splitlines()) <= 5
    assert first.startswith("10 of 10 rollouts break the format")
    assert f"9 of them as '{reason}'" in first
    assert example == '  "text 1⏎"'
    named = [line for line in rest if line.startswith("  Settings that help: ")]
    for line in named:
        for setting in line.removeprefix("  Settings that help: ").split("; or "):
            name = setting.removeprefix("a larger ").split(":")[0].split(" (")[0]
            assert name in setting_names(SRLConfig), setting
    assert ("srl thoughts" in words) == think


def test_what_is_in_use_is_not_advised(tmp_path: Path) -> None:
    ends = told(tmp_path, *["truncated"] * 4)
    assert ends is not None
    assert "step_ends_at: blank_line; or open_thought: true with think_budget: 6" in ends
    used = {"step_ends_at": "line", "open_thought": True, "think_budget": 4}
    words = told(tmp_path, *["truncated"] * 4, **used)
    assert words is not None
    assert "Settings that help: a larger max_completion_length (now 12)\n" in words
    shown = told(tmp_path, *["missing_open"] * 4, few_shot=2)
    assert shown is not None
    assert "few_shot" not in shown


def test_paying_by_reason_is_advised_where_there_are_several_and_it_is_not_done(
    tmp_path: Path,
) -> None:
    by_reason = {"truncated": -0.5}
    two = ["truncated", "missing_open"] * 2
    for reasons, settings, advised in (
        (two, {}, True),
        (two, {"format_failure_reward": by_reason}, False),
        (["truncated"] * 4, {}, False),
    ):
        words = told(tmp_path, *reasons, **settings)
        assert words is not None
        assert ("format_failure_reward" in words) == advised


def test_nothing_is_said_where_some_keep_the_format(tmp_path: Path) -> None:
    assert told(tmp_path, *["truncated"] * 8, None, None) is None
    assert told(tmp_path, *["truncated"] * 9, None) is not None
