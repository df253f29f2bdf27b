"""One loaded model may go from trainer to trainer, in bf16 too: as a cold start goes into SRL."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import toy_config, toy_trajectories

from srl.models.loading import load_policy
from srl.training.trainer import SRLTrainer


def test_a_second_trainer_finds_the_model_without_the_first_ones_autocast(
    toy_policy: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    ids = torch.tensor([[3, 4, 5]])

    def trainer(name: str) -> SRLTrainer:
        args = toy_config(tmp_path / name, max_steps=1, bf16=True, use_cpu=True)
        return SRLTrainer(model, args, toy_trajectories(40), processing_class=tokenizer)

    trainer("one").train()
    assert hasattr(model, "_original_forward")  # or there is nothing to take away any more
    second = trainer("two")  # tries the model in float32, and refuses one that rounds
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert not torch.equal(logits, logits.bfloat16().float())
    second.train()
    assert second.state.global_step == 1
