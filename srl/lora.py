"""LoRA adapters: training one, loading one, and merging it, so that no stage starts without it.

What a stage hands on is always the whole model. An adapter that is named as a model is loaded on
its base and merged at once, tensor by tensor accounted for: peft itself only warns of weights that
an adapter lacks, and would go on with the base.

peft is an extra (`pip install 'stepwise-srl[lora]'`), imported where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from srl.errors import UsageError

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraSettings:
    """A LoRA adapter, in peft's names and with peft's meanings.

    Attributes:
        r: the rank.
        lora_alpha: the adapter's output is multiplied by lora_alpha / r.
        lora_dropout: dropout before the adapter, while it trains.
        target_modules: "all-linear" is every linear layer but the head; or names of layers.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = _ALL_LINEAR

    @classmethod
    def of(cls, values: object) -> LoraSettings | None:
        """The settings in an experiment's `lora` block; none for null.

        Raises:
            UsageError: an unknown key (the nearest one is named), or a value that cannot be.
        """
        if values is None:
            return None
        if not isinstance(values, Mapping):
            raise UsageError(
                f"lora is {values!r}; give a block such as lora: {{r: 16, lora_alpha: 32}}, "
                "or null for none"
            )
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; allowed: {', '.join(known)}"
                raise UsageError(f"lora: unknown key {key!r}{hint}")
        for key in ("r", "lora_alpha"):
            value = values.get(key, 1)
            if type(value) is not int or value < 1:
                raise UsageError(f"lora.{key} is {value!r}; give a whole number of 1 or more")
        dropout = values.get("lora_dropout", 0.0)
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise UsageError(f"lora.lora_dropout is {dropout!r}; give 0 or more, and less than 1")
        modules = values.get("target_modules", _ALL_LINEAR)
        names = modules if isinstance(modules, list) else [modules]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise UsageError(
                f"lora.target_modules is {modules!r}; give {_ALL_LINEAR}, or names of layers such "
                "as [q_proj, v_proj]"
            )
        return cls(**{**dict(values), "lora_dropout": float(dropout)})

    def to_json(self) -> dict[str, object]:
        """As an experiment file holds it."""
        return asdict(self)


def check_peft(why: str) -> None:
    """Raise UsageError where peft is not installed; `why` says what needs it."""
    if find_spec("peft") is None:
        raise UsageError(
            f"{why} needs peft, which is not installed: pip install 'stepwise-srl[lora]', "
            "or pip install -e '.[lora]' in a checkout"
        )


def add_adapter(model: PreTrainedModel, lora: LoraSettings) -> PeftModel:
    """`model` with a fresh adapter, which alone is trained; at first it changes nothing.

    Raises:
        UsageError: peft is missing, or the model has none of these layers.
    """
    check_peft("lora")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UsageError(f"lora.target_modules {lora.target_modules!r}: {reason}") from error
    head = model.get_output_embeddings()
    if any(part is head for part in adapted.base_model.modules() if hasattr(part, "lora_A")):
        # The trainers multiply by the head's own weight, past any adapter: it would never learn.
        raise UsageError(
            f"lora.target_modules {lora.target_modules!r} takes in the LM head, whose adapter "
            f"would never be trained; leave it out, or give {_ALL_LINEAR}"
        )
    return adapted


def is_adapted(model: object) -> bool:
    """Whether `model` is a base with an adapter."""
    return hasattr(model, "merge_and_unload") and hasattr(model, "peft_config")


def is_adapter_folder(path: Path) -> bool:
    """Whether an adapter lies in this folder; transformers, too, then loads its base."""
    return (path / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The model that the adapter in `folder` was trained on: a folder or a hub name.

    Raises:
        UsageError: the adapter does not say, is of a kind that cannot be merged, or is pickled; or
            a whole model lies in the same folder.
    """
    if any(folder.glob("model*.safetensors")):
        raise UsageError(
            f"{folder} holds a whole model and an adapter ({CONFIG}): which one is meant? Move one "
            "of them to a folder of its own"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / CONFIG} cannot be read: {error!r}") from error
    if kind != "LORA":
        raise UsageError(f"the adapter in {folder} is of type {kind}; only LORA can be merged here")
    if not isinstance(base, str) or not base:
        raise UsageError(
            f"{folder / CONFIG} does not say which model it belongs to: set "
            "base_model_name_or_path there to the model's folder or hub name"
        )
    if not (folder / WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise UsageError(
                f"the adapter in {folder} has pickled weights only, and loading a pickle runs "
                f"whatever code is in it; save it again as {WEIGHTS}"
            )
        raise UsageError(f"the adapter in {folder} has no weights: {WEIGHTS} is missing")
    return base


def merge_from(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`model`, the base, with the adapter in `folder` merged into its weights.

    The result calls itself by the adapter's folder: an adapter trained on it must not name the
    base alone as what it belongs to.

    Raises:
        UsageError: peft is missing, or the adapter does not fit the base, every tensor of it.
    """
    check_peft(f"{folder}, an adapter,")
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        held = load_file(folder / WEIGHTS)
        adapted = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # of a foreign folder the libraries raise all kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"cannot load the adapter in {folder} on its base: {reason}") from error
    taken = get_peft_model_state_dict(adapted)
    if missing := sorted(taken.keys() ^ held.keys()):
        raise UsageError(
            f"the adapter in {folder} does not fit its base: {len(missing)} tensors are in one and "
            f"not in the other, {missing[0]} among them"
        )
    if wrong := [name for name in held if not taken[name].cpu().float().equal(held[name].float())]:
        raise UsageError(f"the adapter in {folder} was not loaded: {wrong[0]} is another tensor")
    whole = adapted.merge_and_unload(safe_merge=True)
    whole.name_or_path = whole.config._name_or_path = str(folder)
    return whole
