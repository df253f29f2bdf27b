"""Converts a GGUF file, the format of llama.cpp and many downloads, into a model folder.

transformers reads such a file and dequantises its weights, but refuses to save the loaded model. So
a second model is built from the same config, takes over the tensors, and is saved as usual: float32
safetensors, tokenizer, chat template. The saved model is loaded again. Its logits must equal those
of the model that was read from the file, to the bit.

gguf is an extra (`pip install 'stepwise-srl[gguf]'`), imported where it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from srl.errors import UsageError
from srl.models.fetching import check_room
from srl.models.loading import load_policy

_PROBE = "A farmer has 12 cows and buys 7 more. 12 + 7 = 19.\n"
# Prefix of tensors that stretch RoPE. transformers ignores them and would give another model.
_ROPE_SCALES = "rope_f"


def check_gguf(path: Path) -> None:
    """Raises UsageError if gguf is not installed or `path` is not a GGUF file."""
    if find_spec("gguf") is None:
        raise UsageError(
            f"{path} is a GGUF file, and to read it gguf is needed, which is not installed: "
            "pip install 'stepwise-srl[gguf]', or pip install -e '.[gguf]' in a checkout"
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UsageError(f"{path} is not a GGUF file: it does not begin with the word GGUF")


def convert_gguf(path: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Writes the model in the GGUF file `path` as a model folder.

    Args:
        path: the file.
        folder: an empty folder to write to.
        say: called with a text that describes the file.

    Raises:
        UsageError: gguf is missing, the file is damaged or split, transformers does not know its
            architecture or quantisation, the disk has no room, or the saved model differs from the
            one that was read.
    """
    check_gguf(path)
    words, size = _described(path)
    say(words)
    check_room(folder, size)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # the libraries raise many kinds of errors
        raise _unreadable(path, error) from error
    if missing := sorted(loading["missing_keys"]):
        raise UsageError(
            f"{path} cannot be converted: transformers finds no weights in it for {len(missing)} "
            f"tensors of the model, {missing[0]} among them; {_INSTEAD}"
        )
    _save(model, tokenizer, folder)
    _check_equal(model.eval(), tokenizer, folder, path)


_INSTEAD = (
    "give the model's own folder or hub name, with config.json and model.safetensors, as in: "
    "python -m srl model Qwen/Qwen2.5-0.5B-Instruct"
)


def _described(path: Path) -> tuple[str, int]:
    """Returns a text with the file's quantisation types and size, and its size as float32 in bytes.

    Raises:
        UsageError: the header cannot be read, or lists tensors that transformers would leave out.
    """
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
    except Exception as error:  # it raises many kinds of errors
        raise _unreadable(path, error) from error
    if scales := [tensor.name for tensor in tensors if tensor.name.startswith(_ROPE_SCALES)]:
        raise UsageError(
            f"{path} stretches its position embeddings with tensors that transformers does not "
            f"read ({scales[0]}), so the converted model would be another one; {_INSTEAD}"
        )
    kinds = Counter(tensor.tensor_type.name for tensor in tensors)
    weights = sum(int(tensor.n_elements) for tensor in tensors)
    types = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
    words = (
        f"{path.name}: {weights:,} weights in {len(tensors)} tensors: {types}; "
        f"as float32 they take {4 * weights / 1e9:.1f} GB"
    )
    return words, 4 * weights


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UsageError(
        f"{path} cannot be read as a model: {reason.rstrip(chr(46))}. Else {_INSTEAD}"
    )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    values = model.config.to_dict()
    values.pop("quantization_config", None)
    config = type(model.config).from_dict(values)
    with torch.device("meta"):  # no memory for weights that are replaced at once
        copy = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    copy.load_state_dict(model.state_dict(), assign=True)
    copy.tie_weights()
    copy.config._name_or_path = ""  # it is the file's title, not a place to load from
    copy.generation_config = model.generation_config
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_equal(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, path: Path
) -> None:
    """Raises UsageError unless the saved model has the same tokens and logits as the file's."""
    again, reader = load_policy(str(folder))
    ids = tokenizer(_PROBE, return_tensors="pt").input_ids
    with torch.no_grad():
        same = reader(_PROBE, return_tensors="pt").input_ids.equal(ids)
        same = same and again.eval()(ids).logits.equal(model(ids).logits)
    if not same:
        raise UsageError(
            f"{path} cannot be converted: the model that was saved is not the one that was read; "
            f"{_INSTEAD}"
        )
