"""Checks that a model scores padded rows like its plain forward scores each row alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from srl.errors import DivergedError, UsageError
from srl.models.rounding import WorstError, tolerated
from srl.models.scoring import completion_log_probs
from srl.models.tree_models import FAILURES, devices_of

NOT_FINITE = (
    "the policy's logits are not finite, so nothing can be sampled: training has diverged (a "
    "smaller learning_rate helps), or the model is damaged"
)


def named(model: nn.Module) -> str:
    """Returns a model's description for messages: its name or path, and its class."""
    return f"the model {getattr(model, 'name_or_path', '') or 'given'} ({type(model).__name__})"


def few_tokens(model: nn.Module, start: int, count: int) -> list[int]:
    """Returns `count` token ids that the model has, for a trial."""
    size = cast(PreTrainedModel, model).get_input_embeddings().num_embeddings
    return [(start + 7 * i) % (size - 1) + 1 for i in range(count)]


def short_length(model: nn.Module, room: int) -> int:
    """Returns the length of a trial's prompt that leaves `room` tokens in the model's context."""
    config = cast(PreTrainedModel, model).config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or 64
    return max(2, min(7, int(limit) - room))


def plain_logits(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """Computes the logits [T, V] of one row with the plain forward, in float32.

    Raises:
        DivergedError: the logits are not finite.
    """
    row = torch.tensor([ids], device=next(model.parameters()).device)
    logits: Tensor = model(input_ids=row, use_cache=False).logits[0].float()
    if not bool(logits.isfinite().all()):
        raise DivergedError(NOT_FINITE)
    return logits


@torch.no_grad()
def check_scoring(model: nn.Module, *, pad_id: int) -> None:
    """Refuses a model whose training log-probabilities would differ from those of its sampling.

    Args:
        model: the bare model.
        pad_id: the token id that rows are padded with.

    Raises:
        UsageError: the scores of padded rows differ from those of each row alone, or scoring fails.
        DivergedError: the model's logits are not finite.
    """
    length = short_length(model, room=5)
    rows = [
        (few_tokens(model, 0, length), few_tokens(model, 3, 5)),
        (few_tokens(model, 5, length // 2), few_tokens(model, 2, 3)),
    ]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with (
            torch.random.fork_rng(devices_of(model)),
            torch.autocast(device.type, enabled=False),
        ):
            plain = [partial(plain_logits, model, [*prompt, *written]) for prompt, written in rows]
            right = [logits() for logits in plain]
            allowed = [tolerated(model, *both) for both in zip(plain, right, strict=True)]
            scores = completion_log_probs(
                model, rows, pad_id=pad_id, temperature=1.0, device=device
            ).log_probs
        worst = WorstError()
        for (prompt, written), logits, log_probs, most in zip(
            rows, right, scores, allowed, strict=True
        ):
            positions = slice(len(prompt) - 1, -1)
            every = logits[positions].log_softmax(-1)
            expected = every[torch.arange(len(written)), torch.tensor(written)]
            error = (log_probs[: len(written)] - expected).abs() / logits.abs().max()
            worst.add(error, most[positions])
        fits, reason = worst.fits, f"they differ {worst}"
    except DivergedError:
        raise
    except FAILURES as error:
        fits = False
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    finally:
        model.train(was_training)
    if not fits:
        raise UsageError(
            f"{named(model)} cannot be trained: the log-probabilities of padded rows are not those "
            f"of the plain forward of each row ({reason}); take a causal decoder, such as "
            "Qwen/Qwen2.5-0.5B-Instruct"
        )
