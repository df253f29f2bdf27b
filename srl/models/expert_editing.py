"""Copies experts from one sparse model to another, and drops the least used experts of a model.

Both work on the files of a model (`srl/models/sparse_files.py`). Only the tensors of the affected
experts and routers change. All other tensors stay equal to the bit, dtype included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from srl.errors import UsageError
from srl.models.routing import BIAS, BIAS_FILE
from srl.models.sparse_files import Change, SparseFiles, Stored

# Settings that change what an expert computes from its weights.
_MEANING = ("hidden_act", "swiglu_alpha", "swiglu_limit")
_REPORT = "python -m srl experts report"


@dataclass(frozen=True)
class Swap:
    """The experts to replace and the donor's experts that replace them.

    Attributes:
        layer: the number of the layer in the model that is changed.
        expert: the expert in this layer; None means all experts.
        donor_layer: the layer of the donor.
        donor_expert: the expert in the donor's layer; None if `expert` is None.
        with_router: whether the router's rows of these experts are copied too.
    """

    layer: int
    expert: int | None
    donor_layer: int
    donor_expert: int | None
    with_router: bool = False


def swap_experts(model: SparseFiles, donor: SparseFiles, swap: Swap, folder: Path) -> list[str]:
    """Writes `model` with experts of `donor`; returns the names of the tensors that changed.

    Args:
        model: the model to change; its own files stay as they are.
        donor: the model that the experts come from; they must have the same shapes and dtypes.
        swap: the experts to replace, and their replacements.
        folder: an empty folder to write to.

    Raises:
        UsageError: the two models do not fit, or there is no such layer or expert.
    """
    _check_fit(model, donor)
    _check_place(model, swap.layer, swap.expert)
    _check_place(donor, swap.donor_layer, swap.donor_expert)
    if swap.expert is None and model.num_experts != donor.num_experts:
        raise UsageError(
            f"{model.folder} has {model.num_experts} experts a layer and {donor.folder} has "
            f"{donor.num_experts}, so not all can be exchanged; name one with --expert E"
        )
    if swap.with_router and any(map(_is_bias, donor.tensors)) > any(map(_is_bias, model.tensors)):
        raise UsageError(
            f"{donor.folder} chooses experts by a bias ({BIAS_FILE}) and {model.folder} does not, "
            "so its rows of the router would mean something else there; leave --with-router out"
        )
    changes: dict[str, Change] = {}
    for name, stored in model.tensors.items():
        if stored.layer != swap.layer or (stored.is_router and not swap.with_router):
            continue
        if stored.expert is None or swap.expert in (None, stored.expert):
            changes[name] = (name, _taken(model, donor, swap, name, stored))
    model.write(folder, changes)
    return sorted(changes)


def _is_bias(name: str) -> bool:
    return name.endswith(f".{BIAS}")


def _taken(
    model: SparseFiles, donor: SparseFiles, swap: Swap, name: str, stored: Stored
) -> Callable[[Tensor], Tensor]:
    """Returns the function that changes the tensor `name`; it reads the donor when it is called."""
    source = name.replace(f"layers.{swap.layer}.", f"layers.{swap.donor_layer}.", 1)
    is_row = stored.expert is None and swap.expert is not None
    if stored.expert is not None and swap.donor_expert is not None:
        source = source.replace(f"experts.{stored.expert}.", f"experts.{swap.donor_expert}.", 1)
    there = donor.tensors.get(source)
    if there is None and _is_bias(name):
        raise UsageError(
            f"{model.folder} chooses experts by a bias ({BIAS_FILE}) and {donor.folder} does not, "
            "so its rows of the router mean something else there; leave --with-router out"
        )
    if there is None:
        raise UsageError(
            f"{donor.folder} has no tensor {source}, which would replace {name} of {model.folder}: "
            "the two were saved in different forms; load the donor with transformers and save it "
            "with save_pretrained"
        )
    ours, theirs = (tensor.shape[1:] if is_row else tensor.shape for tensor in (stored, there))
    if ours != theirs or stored.dtype != there.dtype:
        raise UsageError(
            f"{name} of {model.folder} is {stored.dtype} of shape {list(ours)}, and {source} of "
            f"{donor.folder} is {there.dtype} of shape {list(theirs)}; only experts of the same "
            "dtype and shape are exchanged, so that nothing is rounded"
        )
    path = next(path for path, names in donor.shards.items() if source in names)
    if is_row:
        return partial(_with_row, path=path, source=source, swap=swap)
    return partial(_whole, path=path, source=source)


def _whole(tensor: Tensor, *, path: Path, source: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(source)


def _with_row(tensor: Tensor, *, path: Path, source: str, swap: Swap) -> Tensor:
    changed = tensor.clone()
    with safe_open(path, "pt") as file:
        changed[swap.expert] = file.get_slice(source)[swap.donor_expert]
    return changed


def _check_fit(model: SparseFiles, donor: SparseFiles) -> None:
    """Raises UsageError if an expert of the donor would compute something else in the model."""
    for key in ("model_type", *_MEANING):
        ours, theirs = (getattr(files.config, key, None) for files in (model, donor))
        if ours != theirs:
            raise UsageError(
                f"{model.folder} has {key} {ours} and {donor.folder} has {key} {theirs}; experts "
                "are exchanged between models of one architecture only"
            )


def _check_place(files: SparseFiles, layer: int, expert: int | None) -> None:
    """Raises UsageError if the model has no such sparse layer or no such expert."""
    if layer not in files.layers:
        raise UsageError(
            f"layer {layer} of {files.folder} has no experts: its sparse layers are "
            f"{', '.join(map(str, files.layers))}; choose one with --layer, or --donor-layer"
        )
    if expert is not None and not 0 <= expert < files.num_experts:
        raise UsageError(
            f"there is no expert {expert} in {files.folder}: each layer has the experts 0 to "
            f"{files.num_experts - 1}; choose one with --expert, or --donor-expert"
        )


def prune_experts(
    model: SparseFiles, counts: Sequence[Sequence[int]], keep: int, folder: Path
) -> list[list[int]]:
    """Writes `model` with the `keep` most used experts of each layer, in their old order.

    If experts were used equally often, those with lower numbers stay.

    Args:
        model: the model to change; its own files stay as they are.
        counts: how often each expert was used, for each sparse layer in the model's order.
        keep: N, from the model's top-k to one less than its number of experts.
        folder: an empty folder to write to.

    Returns:
        For each sparse layer, the old numbers of the experts that stay.

    Raises:
        UsageError: the counts do not fit this model, or `keep` is out of range.
    """
    experts, top_k = model.num_experts, model.top_k
    if not top_k <= keep < experts:
        raise UsageError(
            f"--keep {keep}: {model.folder} has {experts} experts a layer and uses {top_k} for "
            f"each token, so {top_k} to {experts - 1} can stay"
        )
    if len(counts) != len(model.layers) or any(len(layer) != experts for layer in counts):
        shape = sorted({len(layer) for layer in counts})
        raise UsageError(
            f"the counts are of {len(counts)} layers with {shape} experts, and {model.folder} has "
            f"{len(model.layers)} sparse layers with {experts}; count with this model: {_REPORT}"
        )
    kept = [
        sorted(sorted(range(experts), key=lambda expert: -layer[expert])[:keep]) for layer in counts
    ]
    by_layer = dict(zip(model.layers, kept, strict=True))
    changes = {
        name: _shrunk(name, stored, by_layer[stored.layer])
        for name, stored in model.tensors.items()
    }
    model.write(folder, changes)
    _write_number(folder / "config.json", keep)
    SparseFiles.open(folder)  # the new config and the new weights must agree
    return kept


def _shrunk(name: str, stored: Stored, kept: list[int]) -> Change:
    """Returns the change that drops experts from a tensor and renumbers its name."""
    if stored.expert is None:
        return name, lambda tensor: tensor.index_select(0, torch.tensor(kept))
    if stored.expert not in kept:
        return None
    new = kept.index(stored.expert)
    return name.replace(f"experts.{stored.expert}.", f"experts.{new}.", 1), lambda tensor: tensor


def _write_number(path: Path, keep: int) -> None:
    """Sets the number of experts in a config file; all other values stay."""
    values = json.loads(path.read_text(encoding="utf-8"))
    names = [key for key in ("num_experts", "num_local_experts") if key in values]
    if not names:
        raise UsageError(
            f"{path} does not say how many experts a layer has; write num_experts or "
            "num_local_experts into it, as the architecture calls it"
        )
    values |= dict.fromkeys(names, keep)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_counts(path: Path) -> list[list[int]]:
    """Reads how often each expert of each sparse layer was used, from a `load.json`.

    The file is a JSON object. `layers` holds, for each sparse layer in the model's order, a list of
    whole numbers: how many tokens chose expert 0, 1, …. Other keys, such as `model` and `tokens`,
    are for people and are not read.

    Raises:
        UsageError: there is no such file, it holds something else, or a layer has no counts.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        layers = values["layers"]
        whole = [[_count(count) for count in layer] for layer in layers]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} cannot be read as counts ({error!r}); it must hold "
            '{"layers": [[count of expert 0, ...], ...]}, a list of whole numbers for each sparse '
            f"layer, as {_REPORT} writes it"
        ) from error
    if idle := [number for number, layer in enumerate(whole) if not sum(layer)]:
        raise UsageError(
            f"{path} has no counts in its list {idle[0]}, so it does not say which experts are "
            f"used; count on more text: {_REPORT}"
        )
    return whole


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value
