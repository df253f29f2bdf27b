"""The state beside a checkpoint: read back whole, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from srl.errors import UsageError
from srl.runs.checkpoints import STATE_FILE, checkpoints, damage
from srl.training.checkpoints import Saving, read_state, why_kept

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


def test_it_is_whole_before_anybody_looks(tmp_path: Path, toy_policy: Path) -> None:
    """Trackers upload when a checkpoint is saved; until one is whole, the one before stays."""
    seen = []

    class Tracker(TrainerCallback):
        def on_save(self, args: object, state: TrainerState, control: object, **_: object) -> None:
            there = checkpoints(tmp_path)
            seen.append([(path.name, damage(path)) for path in there])

    def state() -> dict[str, object]:
        assert len(checkpoints(tmp_path)) == min(2, 1 + len(seen))
        return GOOD

    model = AutoModelForCausalLM.from_pretrained(toy_policy)
    args = TrainingArguments(
        str(tmp_path), max_steps=3, save_steps=1, save_total_limit=1, use_cpu=True, report_to=[]
    )
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}] * 3
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[Tracker()])
    saving = Saving(state)
    saving.attach(trainer)
    save_model = trainer.save_model

    def save(folder: str, _internal_call: bool = False) -> None:
        saving.begin(Path(folder), args)
        save_model(folder, _internal_call)

    trainer.save_model = save
    trainer.train()
    assert seen == [[(f"checkpoint-{step}", None)] for step in (1, 2, 3)]
    assert args.save_total_limit == 1
    assert read_state(tmp_path / "checkpoint-3", holds=HOLDS, logs=["a.jsonl"])[1] == {
        "a.jsonl": 30
    }
