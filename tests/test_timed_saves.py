from __future__ import annotations

from pathlib import Path

import pytest
from conftest import toy_config, toy_trajectories

from srl.errors import UsageError
from srl.runs.checkpoints import damage
from srl.training.trainer import SRLTrainer


def test_a_step_that_took_long_is_saved(tmp_path: Path, toy_policy: Path) -> None:
    """But not in the middle of a batch of two passes."""
    args = toy_config(tmp_path, save_every_minutes=1e-9, num_iterations=2, max_steps=5)
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert damage(tmp_path / "checkpoint-4") is None


def test_no_checkpoint_before_its_time(tmp_path: Path, toy_policy: Path) -> None:
    args = toy_config(tmp_path, save_every_minutes=1e9, max_steps=1)
    SRLTrainer(str(toy_policy), args, toy_trajectories(20)).train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan"), float("inf")])
def test_minutes_that_cannot_be(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(UsageError, match="save_every_minutes is .*; give minutes, above 0"):
        toy_config(tmp_path, save_every_minutes=minutes)
