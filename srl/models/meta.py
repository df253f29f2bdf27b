"""Reads a model's config and builds its modules without weights.

The modules are built on torch's meta device, so a model of any size needs no memory. A folder that
holds only config.json is enough.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from srl.errors import UsageError
from srl.models.lora import base_of, is_adapter_folder


def config_of(name: str) -> PretrainedConfig:
    """Reads the config of the model `name`, a folder or a hub name; for an adapter, of its base.

    Raises:
        UsageError: there is no such model, or transformers does not know its architecture.
    """
    path, seen = Path(name), {name}
    while is_adapter_folder(path):
        name = base_of(path)
        if name in seen:
            raise UsageError(f"the adapter in {path} names itself as its base: {name}")
        path = Path(name)
        seen.add(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UsageError(f"{name} is not a model folder: it has no config.json")
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the libraries raise many kinds of errors
        raise _unreadable(name, error) from error


def meta_model(config: PretrainedConfig, name: str) -> PreTrainedModel:
    """Builds the model of `config` without weights.

    Args:
        config: the config of a causal language model.
        name: the model's name in messages.

    Raises:
        UsageError: the config describes no causal language model that transformers can build.
    """
    values = config.to_dict()
    values.pop("quantization_config", None)  # it says how weights are packed, not how many
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                type(config).from_dict(values), trust_remote_code=False
            )
    except Exception as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> UsageError:
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UsageError(
        f"cannot read the config of the model {name!r}{offline}: {reason.rstrip('.')}. Give a "
        "folder with the config.json of a language model, or a hub name such as Qwen/Qwen3-0.6B"
    )
