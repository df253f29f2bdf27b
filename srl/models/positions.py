"""Detects position embeddings whose frequencies change with the length of the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedModel


def may_read_on(model: PreTrainedModel) -> bool:
    """Returns whether the keys of a prompt stay the same when the prompt grows."""
    return not {rope.get("rope_type") for rope in _ropes(model)} & {"dynamic", "longrope"}


def other_beyond(model: PreTrainedModel) -> int | None:
    """Returns the number of tokens beyond which `longrope` changes the frequencies of all tokens.

    The result is None for models without `longrope`. Models with it, such as Phi-3 and Phi-4-mini,
    choose the frequencies by the longest row of a batch. A longer row changes the other rows of its
    batch. An update batches a row with other rows than sampling did.
    """
    limits = [
        int(rope["original_max_position_embeddings"])
        for rope in _ropes(model)
        if rope.get("rope_type") == "longrope" and rope.get("original_max_position_embeddings")
    ]
    return min(limits, default=None)


def _ropes(model: PreTrainedModel) -> Iterator[Mapping[str, Any]]:
    """Yields the rotary embeddings in the config: one, or one for each kind of layer."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    yield from (entry for entry in (rope, *rope.values()) if isinstance(entry, Mapping))
