"""A checkpoint's weights back into the model that wrote them.

transformers save some models under other names than they compute with: the experts of a sparse
model are one tensor in memory and one for each expert in the file. Its trainer reads a checkpoint
without that conversion, tells of "missing keys", and goes on with whatever weights the model had.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel


def is_converted(model: nn.Module, folder: Path) -> bool:
    """Whether a checkpoint of `model` in `folder` has names that the model has not."""
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
    """Put the weights of a checkpoint into `model`, in place; a second copy is in memory meanwhile.

    Raises:
        RuntimeError: they are not those of this architecture.
    """
    saved = type(model).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model.load_state_dict(saved.state_dict())
