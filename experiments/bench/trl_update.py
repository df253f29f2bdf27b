"""Runs one update of TRL's `GRPOTrainer` on the rows of a case.

The trainer receives its tensors as they are after its generation, and computes the loss of its
training. A micro-batch keeps the padding of the whole batch, as in its training. TRL's training
recomputes activations in the backward pass by default; this is off, as in ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from contest import Contestant
from datasets import Dataset
from shapes import base_tokenizer
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from update import EPSILON, Case, Update, from_no_gradient, gradients_of


@contextmanager
def trl_trainer(case: Case) -> Iterator[GRPOTrainer]:
    """Yields TRL's trainer of the case's model. It adds a method to the model, but no weight."""
    with TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=str(Path(folder) / "trl"),
            per_device_train_batch_size=len(case.rows),
            num_generations=case.group_size,
            max_completion_length=max(len(completion) for _, completion in case.rows),
            loss_type="grpo",
            epsilon=EPSILON,
            beta=0.0,
            temperature=1.0,
            bf16=case.bf16,
            gradient_checkpointing=False,
            use_cpu=case.device.type == "cpu",
            report_to=[],
        )
        yield GRPOTrainer(
            model=case.model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["1 + 1 ="]}),
            processing_class=base_tokenizer(),
        )


def trls(case: Case, trainer: GRPOTrainer, rows_at_once: int) -> Contestant:
    """Returns the contestant of TRL's update, in micro-batches of `rows_at_once` rows."""
    inputs = _trl_inputs(case)
    starts = range(0, len(case.rows), rows_at_once)
    seen: list[Tensor] = []
    score = GRPOTrainer._get_per_token_logps_and_entropies

    def overheard(*args: object, **more: object) -> tuple[Tensor, Tensor | None, Tensor | None]:
        result = score(trainer, *args, **more)
        seen.append(result[0].detach())
        return result

    def work() -> Update:
        trainer._get_per_token_logps_and_entropies = overheard
        # Otherwise only TRL's training loop sets this.
        trainer.current_gradient_accumulation_steps = len(starts)
        seen.clear()
        for start in starts:
            part = {name: x[start : start + rows_at_once] for name, x in inputs.items()}
            trainer.compute_loss(case.model, part).backward()
        log_probs = [
            (range(start, start + len(lines)), lines)
            for start, lines in zip(starts, seen, strict=True)
        ]
        return Update(log_probs, gradients_of(case.model))

    return from_no_gradient(case.model, work)


def _trl_inputs(case: Case) -> dict[str, Tensor]:
    """Returns the rows as TRL has them after generation, with prompts padded on the left."""
    longest = max(len(prompt) for prompt, _ in case.rows)
    prompts = [([0] * (longest - len(p)), p) for p, _ in case.rows]
    completions = torch.tensor([completion for _, completion in case.rows])
    inputs = {
        "prompt_ids": torch.tensor([[*fill, *p] for fill, p in prompts]),
        "prompt_mask": torch.tensor([[*fill, *[1] * len(p)] for fill, p in prompts]),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.tensor(case.advantages()),
    }
    return {name: x.to(case.device) for name, x in inputs.items()}
