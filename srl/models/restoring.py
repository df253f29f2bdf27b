"""Loads a checkpoint's weights back into the model that wrote them.

transformers saves some models under other tensor names than in memory: the experts of a sparse
model are one tensor in memory, and one for each expert in the file. Its trainer reads a checkpoint
without that conversion. It warns of "missing keys" and continues with the model's old weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel


def is_converted(model: nn.Module, folder: Path) -> bool:
    """Returns whether a checkpoint in `folder` has tensor names that `model` does not have."""
    if not isinstance(model, PreTrainedModel):  # an adapter is saved as it is
        return False
    known = set(model.state_dict())
    return any(
        name not in known for file in folder.glob("model*.safetensors") for name in _names(file)
    )


def _names(file: Path) -> list[str]:
    with safe_open(str(file), framework="pt") as opened:
        return list(opened.keys())


def restore(model: PreTrainedModel, folder: Path) -> None:
    """Loads a checkpoint's weights into `model`, in place; needs memory for a second copy.

    Raises:
        RuntimeError: the weights do not belong to this architecture.
    """
    saved = type(model).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model.load_state_dict(saved.state_dict())
