"""Position embeddings whose frequencies change with the length of what is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedModel


def may_read_on(model: PreTrainedModel) -> bool:
    """Whether a prompt's keys stay what they are when it grows."""
    return not {one.get("rope_type") for one in _ropes(model)} & {"dynamic", "longrope"}


def other_beyond(model: PreTrainedModel) -> int | None:
    """So many tokens may be read before all of them have other frequencies; None if they never do.

    Models of this kind (`longrope`, as Phi-3 and Phi-4-mini have it) choose by the longest row of a
    batch. A row that long changes the others beside it, and in an update others are beside a row
    than when it was sampled.
    """
    limits = [
        int(one["original_max_position_embeddings"])
        for one in _ropes(model)
        if one.get("rope_type") == "longrope" and one.get("original_max_position_embeddings")
    ]
    return min(limits, default=None)


def _ropes(model: PreTrainedModel) -> Iterator[Mapping[str, Any]]:
    """The model's rotary embeddings, as its config describes them: one, or one a kind of layer."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    yield from (one for one in (rope, *rope.values()) if isinstance(one, Mapping))
