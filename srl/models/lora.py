"""Adds LoRA adapters to models, loads saved adapters, and merges them into their bases.

The output of a stage is always a whole model. If a given model is an adapter, it is loaded on its
base and merged at once, so no stage starts without it. Every tensor of the adapter is checked,
because peft only warns of missing weights and continues with the base.

peft is an extra (`pip install 'stepwise-srl[lora]'`), imported where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from srl.config.lora import LoraSettings
from srl.errors import UsageError
from srl.models.rounding import rounding_of
from srl.models.vocabulary import embeddings

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ALL_LINEAR = "all-linear"
# Number of tokens for the comparison of a merged model.
_TRIED = 32


def check_peft(why: str) -> None:
    """Raises UsageError if peft is not installed; `why` names what needs it."""
    if find_spec("peft") is None:
        raise UsageError(
            f"{why} needs peft, which is not installed: pip install 'stepwise-srl[lora]', "
            "or pip install -e '.[lora]' in a checkout"
        )


def add_adapter(model: PreTrainedModel, lora: LoraSettings) -> PeftModel:
    """Returns `model` with a new adapter, which at first changes nothing; only it is trained.

    Raises:
        UsageError: peft is missing, the model has none of the target modules, they include the LM
            head, or `check_adapter` refuses the model.
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
        # The trainers multiply by the head's own weight, so an adapter on it would never learn.
        raise UsageError(
            f"lora.target_modules {lora.target_modules!r} takes in the LM head, whose adapter "
            f"would never be trained; leave it out, or give {_ALL_LINEAR}"
        )
    check_adapter(adapted)
    return adapted


def check_adapter(model: nn.Module) -> None:
    """Refuses a model whose adapter cannot be trained, or cannot be merged afterwards.

    Raises:
        UsageError: the adapter puts tokens before the prompt, or changes a weight that two layers
            share.
    """
    adapter = getattr(model, "active_peft_config", None)
    if adapter is None:
        return
    if adapter.is_prompt_learning:
        raise UsageError(
            f"the policy has an adapter of type {adapter.peft_type.value}, which puts tokens of "
            "its own before the prompt; use one that lives in the layers, such as LoRA"
        )
    if shared := _shared_weights(cast("PeftModel", model)):
        raise UsageError(
            f"the adapter's target_modules take in {shared[0]}, whose weight {shared[1]} uses too: "
            f"merged, the adapter would change both; leave it out, or give {_ALL_LINEAR}"
        )


def _shared_weights(adapted: PeftModel) -> tuple[str, str] | None:
    """Returns an adapted layer and another layer that uses its weight; None if there are none."""
    users: dict[int, list[str]] = {}
    weights: dict[str, int] = {}
    for name, part in adapted.get_base_model().named_modules():
        base = getattr(part, "base_layer", None)
        weight = getattr(part if base is None else base, "weight", None)
        if isinstance(weight, nn.Parameter) and not name.endswith(".base_layer"):
            users.setdefault(id(weight), []).append(name)
            if base is not None:
                weights[name] = id(weight)
    for name, weight_id in weights.items():
        for other in users[weight_id]:
            if other != name:
                return name, other
    return None


def is_adapted(model: object) -> bool:
    """Returns whether `model` is a base with an adapter."""
    return hasattr(model, "merge_and_unload") and hasattr(model, "peft_config")


def is_adapter_folder(path: Path) -> bool:
    """Returns whether this folder holds an adapter; transformers then loads its base too."""
    return (path / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Returns the base of the adapter in `folder`: a folder or a hub name.

    Raises:
        UsageError: the adapter's config cannot be read or names no base; the adapter is not LoRA,
            is pickled or has no weights; or the folder also holds a whole model.
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


def merged_within(
    adapted: PeftModel, logits_of: Callable[[nn.Module], Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns how far merging an adapter may move logits.

    The bound is the effect of rounding, plus a thousandth of the change that the adapter makes. A
    wrong merge moves the logits by about as much as the adapter itself.

    Args:
        adapted: the base with the adapter, not merged.
        logits_of: computes a model's logits [T, V] of some tokens.

    Returns:
        The bound for each token [T], and the logits with the adapter.
    """
    with adapted.disable_adapter():
        without = logits_of(adapted)
    beside = logits_of(adapted)
    rounding = rounding_of(adapted, partial(logits_of, adapted), beside)
    least = max(1e-4, 2e-5 * beside.abs().max().item())
    most = 2e-2 * beside.abs().max().item()
    return rounding.clamp(least, max(least, most)) + 1e-3 * (beside - without).abs().max(), beside


@torch.no_grad()
def _logits_of(model: PreTrainedModel | PeftModel) -> Tensor:
    """Returns logits [T, V] on T tokens spread over the whole vocabulary."""
    size = embeddings(model)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _TRIED
    ids = torch.linspace(0, size - 1, min(_TRIED, limit, size)).long()
    was_training = model.training
    try:
        logits = model.eval()(input_ids=ids[None].to(model.device), use_cache=False).logits[0]
    finally:
        model.train(was_training)
    return logits.float()


def merge_from(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merges the adapter in `folder` into the weights of its base `model`; returns the result.

    The result has the adapter's folder as its name. So an adapter that is trained on it does not
    name only the base as its own base.

    Raises:
        UsageError: peft is missing, a tensor of the adapter does not fit the base, or merging moves
            the logits by more than `merged_within` allows.
    """
    check_peft(f"{folder}, an adapter,")
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        held = load_file(folder / WEIGHTS)
        adapted = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # the libraries raise many kinds of errors
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
    allowed, before = merged_within(adapted, _logits_of)
    whole = adapted.merge_and_unload(safe_merge=True)
    head = whole.get_output_embeddings()
    if head is not None and head.weight is not whole.get_input_embeddings().weight:
        # An adapter may hold its own copy of one of two tied tensors.
        whole.config.get_text_config().tie_word_embeddings = False
        whole.config.tie_word_embeddings = False
    differences = (before - _logits_of(whole)).abs().amax(-1)
    if not bool((differences <= allowed).all()):
        at = int((differences - allowed).argmax())
        raise UsageError(
            f"the adapter in {folder} cannot be merged into its base: their logits before and "
            f"after differ by {differences[at]:.3g}, and rounding explains {allowed[at]:.3g}. An "
            "adapter on "
            "the embeddings of a model whose LM head is the same tensor (tie_word_embeddings) "
            "gives this; train one on the linear layers, such as target_modules: all-linear"
        )
    whole.name_or_path = whole.config._name_or_path = str(folder)
    return whole
