"""Loads a policy from a folder or the hub: a model in float32 and its tokenizer.

An adapter is loaded on its base and merged (`srl/models/lora.py`). Weights are float32 whatever
the checkpoint's dtype is, because they are the master weights of the optimiser. bf16 is used only
through autocast. Pickled weights are refused, because loading them runs the code in them. A model
folder that brings its own Python code is refused too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from huggingface_hub import hf_hub_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from srl.config.parts import (
    EvaluationSettings,
    ExpertsImplementation,
    PromptSettings,
    RowSettings,
)
from srl.data.prompts import PromptFormat
from srl.data.steps import StepExample
from srl.errors import UsageError
from srl.models.expert_kernels import use_experts
from srl.models.experts import sparse_layers
from srl.models.lora import CONFIG, base_of, check_peft, is_adapter_folder, merge_from
from srl.models.routing import BIAS_FILE, load_bias
from srl.models.vocabulary import embeddings, fit_tokenizer

# The files of a model's folder that determine the loaded model and its prompts.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def load_policy(
    name: str, *, experts: ExpertsImplementation = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the model and the tokenizer called `name`.

    If the folder holds an adapter, the result is a whole model: the base with the adapter merged.

    Args:
        name: a folder or a hub name.
        experts: how the experts of a sparse model are computed.

    Raises:
        UsageError: the model does not exist or cannot be used; the message says why.
    """
    model, tokenizer = _load(name, adapters=())
    fit_tokenizer(model, tokenizer)
    use_experts(model, experts)
    return model, tokenizer


def _load(
    name: str, *, adapters: tuple[Path, ...]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model and its tokenizer; `adapters` are the resolved folders of adapters on it."""
    path = Path(name)
    if is_adapter_folder(path):
        return _load_adapted(path, adapters)
    beside = path.parent != Path(".") and path.parent.is_dir()  # so runs/nothing is not a hub name
    if path.exists() or beside or name.startswith((".", "/")) or name.count("/") != 1:
        check_folder(path, name)
    try:
        # `name` is a str: transformers' check fails on a Path in a script without a __main__ file.
        tokenizer = _load_tokenizer(name)
        model, loading = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except UsageError:
        raise
    except Exception as error:  # the libraries raise many kinds of errors
        if "trust_remote_code" in str(error):
            raise _brings_code(name) from error
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"cannot load the model {name!r}{offline}: {reason} "
            "Give a folder with config.json, model.safetensors and a tokenizer, or a hub name "
            "such as Qwen/Qwen2.5-0.5B-Instruct"
        ) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError(
            f"{name!r} is an adapter on the hub; download it and name its folder, so that it is "
            "merged: hf download NAME --local-dir FOLDER"
        )
    # transformers replaces missing weights by random ones, and a missing tokenizer by an empty one.
    if missing := sorted(loading["missing_keys"]):
        raise UsageError(
            f"the weights of {name!r} are incomplete: {len(missing)} tensors of its architecture "
            f"are missing, {missing[0]} among them; save the whole model with save_pretrained"
        )
    words = "1 + 1 = 2"
    if words not in tokenizer.decode(tokenizer.encode(words, add_special_tokens=False)):
        raise UsageError(
            f"{name!r} has no tokenizer that can write {words!r}: are its files, such as "
            "tokenizer.json, missing? Save it there with tokenizer.save_pretrained"
        )
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if capped and model.config._attn_implementation == "sdpa":
        # sdpa has no soft-cap. transformers 5.17 uses sdpa for Gemma 2 and leaves the cap out.
        model.set_attn_implementation("eager")
    text = model.config.get_text_config()
    if getattr(text, "output_router_logits", False):
        # SFT of a sparse model leaves this on. No code reads router logits from a policy, and the
        # auxiliary loss computed from them fails when a row continues from a cache.
        text.output_router_logits = False
    if path.is_dir():
        load_bias(model, path)
    elif sparse_layers(model) and (bias := _on_hub(name, BIAS_FILE)) is not None:
        load_bias(model, bias.parent)
    return model, tokenizer


def _on_hub(name: str, file: str) -> Path | None:
    """Downloads a file of a model on the hub; returns None if the model has no such file."""
    try:
        return Path(hf_hub_download(name, file))
    except (OSError, ValueError):  # no such file, or no hub and no copy in the cache
        return None


def _load_adapted(
    folder: Path, adapters: tuple[Path, ...]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the base of an adapter and merges the adapter; the base may be an adapter itself.

    Raises:
        UsageError: the base cannot be loaded, or the adapter does not fit it.
    """
    base = base_of(folder)
    check_peft(f"{folder}, an adapter,")
    adapters = (*adapters, folder.resolve())
    if Path(base).resolve() in adapters:
        raise UsageError(f"the adapter in {folder} names itself as its base: {base}")
    try:
        model, tokenizer = _load(base, adapters=adapters)
    except UsageError as error:
        raise UsageError(
            f"{folder} is an adapter on the model {base!r}, which cannot be loaded: {error}. Put "
            f"the base where it was, or set base_model_name_or_path in {folder / CONFIG}"
        ) from error
    if any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = _load_tokenizer(str(folder))
    model = merge_from(model, folder)
    load_bias(model, folder)
    return model, tokenizer


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns the ids of all tokens that end a completion.

    These are the tokenizer's EOS and every EOS of the generation config.

    Raises:
        UsageError: there is no EOS token, or the model has no embedding for any of them.
    """
    listed = model.generation_config.eos_token_id if model.generation_config else None
    listed = listed if isinstance(listed, list) else [listed]
    ids = {int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None}
    if ids and min(ids) >= (size := embeddings(model)):
        raise UsageError(
            f"no completion could end: the policy's EOS tokens have the ids {sorted(ids)}, and it "
            f"has {size} embeddings; set eos_token_id in its generation_config.json"
        )
    if not ids:
        raise UsageError(
            "the policy has no EOS token, so no completion could end; set eos_token in its "
            "tokenizer_config.json"
        )
    return frozenset(ids)


def end_turns(model: PreTrainedModel, end_id: int) -> None:
    """Adds `end_id` to the EOS tokens of the generation config, in place.

    A base model's generation config lacks the token that ends a turn of its chat template. With
    it, generation from the saved policy stops where the policy learned to stop.
    """
    config = model.generation_config
    if config is None:
        return
    listed = config.eos_token_id
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if end_id not in ids:
        config.eos_token_id = [*ids, end_id] if ids else end_id


def context_limit(model: PreTrainedModel) -> int | None:
    """Returns the maximum length of a text in tokens; None if the model has no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def prompt_format(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: PromptSettings,
    *,
    shots: Sequence[StepExample] = (),
) -> PromptFormat:
    """Returns the prompt format for this policy.

    Settings that are not `RowSettings` (benchmarks) have no system prompt for steps.
    """
    steps = settings if isinstance(settings, RowSettings) else None
    return PromptFormat(
        tokenizer,
        template=settings.template,
        think=settings.think,
        open_thought=settings.open_thought,
        think_budget=settings.think_budget,
        system_prompt=None if steps is None else steps.system_prompt,
        step_ends_at="turn" if steps is None else steps.step_ends_at,
        shots=shots,
        source_tag=None if steps is None else steps.source_tag,
        solve_as=settings.solve_as if isinstance(settings, EvaluationSettings) else None,
        whole_system_prompt=settings.whole_system_prompt,
        stop_ids=stop_ids(model, tokenizer),
        prompt_date=settings.prompt_date,
    )


def read_tokenizer(name: str) -> tuple[PreTrainedTokenizerBase, int | None]:
    """Reads a policy's tokenizer and its context limit in tokens, without the weights.

    Raises:
        UsageError: the tokenizer or the config cannot be read.
    """
    try:
        tokenizer = _load_tokenizer(name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the libraries raise many kinds of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"cannot read the tokenizer of the model {name!r}: {reason} Give a model's folder, or "
            "a hub name such as Qwen/Qwen2.5-0.5B-Instruct"
        ) from error
    return tokenizer, getattr(config.get_text_config(), "max_position_embeddings", None)


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer exactly as it was saved.

    A tokenizer of a generic class is fully described by its tokenizer.json. But beside a model of
    type qwen2 and some others, `AutoTokenizer` replaces it by the model's usual class, splits words
    by other rules and adds tokens. The policy would then read other tokens than in training.

    Raises:
        UsageError: only Python code beside the model defines the tokenizer's class.
    """
    config = get_tokenizer_config(name)
    declared = config.get("tokenizer_class")
    if "AutoTokenizer" in (config.get("auto_map") or {}) and not hasattr(
        transformers, str(declared)
    ):
        raise _brings_code(name)  # otherwise the model's usual tokenizer would be used
    if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(name)
        return tokenizer
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _brings_code(name: str) -> UsageError:
    return UsageError(
        f"{name!r} brings Python code of its own (auto_map in its config.json or "
        "tokenizer_config.json), and no code of a model is run here; give a model of an "
        "architecture that transformers has, such as Qwen/Qwen2.5-0.5B-Instruct"
    )


def check_folder(path: Path, name: str) -> None:
    if not path.is_dir():
        raise UsageError(
            f"there is no model folder {name!r}; give a folder with config.json and "
            "model.safetensors, or a hub name such as Qwen/Qwen2.5-0.5B-Instruct"
        )
    if not (path / "config.json").is_file():
        policy = path / "policy"
        meant = f"; the run's policy is {policy}" if policy.is_dir() else ""
        raise UsageError(f"{path} is not a model folder: it has no config.json{meant}")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(
            p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in path.glob(pattern)
        )
        if pickled:
            raise UsageError(
                f"{path} has pickled weights only ({', '.join(pickled[:3])}), and loading a pickle "
                "runs whatever code is in it; convert them once, where you trust them, with "
                "model.save_pretrained(folder), which writes model.safetensors"
            )
        raise UsageError(f"{path} has no weights: model.safetensors is missing")


def fingerprint(model: str) -> str | None:
    """Returns a digest of a model's folder; another model under the same name has another digest.

    The digest covers everything that determines solutions: weights, tokenizer, chat template and
    the tokens that end a text. It covers the same files of an adapter's base. The result is None
    for a hub name, because the hub's newest version is loaded then.

    Raises:
        UsageError: the folder of an adapter cannot be used.
    """
    files = model_files(model)
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(file.name.encode())
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def model_files(model: str) -> list[Path]:
    """Returns the files that determine solutions, of a model's folder and its adapter's bases.

    The list is empty for a hub name.

    Raises:
        UsageError: the folder of an adapter cannot be used.
    """
    files: list[Path] = []
    folders = [Path(model)] if Path(model).is_dir() else []
    for folder in folders:  # the loop appends the bases
        files += sorted(path for kind in MODEL_FILES for path in folder.glob(kind))
        if is_adapter_folder(folder):
            base = Path(base_of(folder))
            if base.is_dir() and base.resolve() not in {path.resolve() for path in folders}:
                folders.append(base)
    return files
