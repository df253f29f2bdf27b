"""The state beside a checkpoint: read back whole, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainerState

from srl.checkpoints import STATE_FILE, read_state, why_kept
from srl.errors import UsageError

HOLDS = {"stream": dict, "empty_steps": int}
GOOD = {"stream": {"epoch": 1}, "empty_steps": 2, "positions": {"a.jsonl": 30, "b.jsonl": 0}}


def test_what_was_saved(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text(json.dumps(GOOD))
    state, positions = read_state(tmp_path, holds=HOLDS, logs=["a.jsonl"])
    assert state == {"stream": {"epoch": 1}, "empty_steps": 2}
    assert positions == {"a.jsonl": 30}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "No such file"),
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        (json.dumps({**GOOD, "stream": None}), "stream is None"),
        (json.dumps({**GOOD, "empty_steps": "2"}), "empty_steps is '2'"),
        (json.dumps({"stream": {}, "positions": {}}), "'empty_steps'"),
        (json.dumps({**GOOD, "positions": {"b.jsonl": 0}}), "'a.jsonl'"),
        (json.dumps({**GOOD, "positions": {"a.jsonl": "x"}}), "invalid literal"),
    ],
)
def test_what_is_missing_or_damaged(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / STATE_FILE).write_text(text)
    with pytest.raises(UsageError) as refused:
        read_state(tmp_path, holds=HOLDS, logs=["a.jsonl"])
    start = f"{tmp_path} is not a checkpoint of this trainer: {STATE_FILE} is missing or damaged ("
    assert str(refused.value).startswith(start)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.5, 0.75, 0.25), "policy of step 20, the best on validation: accuracy 0.750"),
        (
            (0.5, 0.5, 0.5),
            "policy of step 10, the best on validation: accuracy 0.500; so has step 20, 30, and "
            "the first is kept: more validation_problems, or another metric_for_best_model, may "
            "tell them apart",
        ),
    ],
)
def test_why_a_checkpoint_was_kept(values: tuple[float, ...], said: str) -> None:
    history = [{"step": 10 * k, "eval_accuracy": value} for k, value in enumerate(values, start=1)]
    best = history[values.index(max(values))]
    state = TrainerState(
        log_history=[{"step": 10, "eval_reward": 0.5}, *history],
        best_metric=best["eval_accuracy"],
        best_model_checkpoint=f"runs/one/checkpoint-{best['step']}",
    )
    assert why_kept(state, "accuracy") == why_kept(state, "eval_accuracy").replace("eval_", "")
    assert why_kept(state, "accuracy") == said
