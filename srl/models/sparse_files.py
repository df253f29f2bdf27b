"""Reads which tensor of a sparse model belongs to which expert, and writes a changed copy.

The copy is made on disk, tensor by tensor, because transformers would give all tensors one dtype
and write its own config. Here all unchanged tensors stay equal to the bit. Families save the
experts of a layer in two forms: one tensor for each expert (Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE),
or one tensor for all of them (Granite-MoE, GPT-OSS). Only tensors with known names are changed. A
sparse layer that holds other tensors is refused.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from srl.errors import UsageError
from srl.models.experts import need_sparse
from srl.models.fetching import check_room
from srl.models.loading import MODEL_FILES, check_folder
from srl.models.lora import is_adapter_folder
from srl.models.meta import config_of, meta_model
from srl.models.routing import BIAS, BIAS_FILE

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_BLOCK = re.compile(r"(?:.*\.)?layers\.(\d+)\.(?:mlp|block_sparse_moe)\.(.+)")
_EXPERT = re.compile(r"experts\.(\d+)\..+")
_EXPERTS = re.compile(r"experts\.[a-z_]+|(?:input_linear|output_linear)\.weight")
_ROUTER = re.compile(rf"(?:gate|router|router\.layer)\.(?:weight|bias)|{BIAS}")
_SHARED = re.compile(r"shared_expert(?:_gate)?\..+")


class Stored(NamedTuple):
    """A tensor of an expert or a router in a file.

    Attributes:
        layer: the number of the layer in the model.
        is_router: True for a tensor of a router, False for a tensor of an expert.
        expert: the number of the expert; None if the tensor has a row for every expert of the
            layer.
        shape: the shape of the tensor.
        dtype: the dtype in the notation of safetensors, such as "BF16".
    """

    layer: int
    is_router: bool
    expert: int | None
    shape: tuple[int, ...]
    dtype: str


# A change of a tensor: its new name, and a function that returns its new values. None drops it.
Change = tuple[str, Callable[[Tensor], Tensor]] | None


@dataclass(frozen=True)
class SparseFiles:
    """A sparse model in a folder; `open` makes one.

    Attributes:
        folder: the model's folder.
        config: the model's config.
        num_experts: E, the number of experts in every sparse layer.
        top_k: the number of experts for each token.
        layers: the numbers of the sparse layers.
        tensors: the tensors of experts and routers, by name.
        shards: the names of all tensors in each weights file.
    """

    folder: Path
    config: PretrainedConfig
    num_experts: int
    top_k: int
    layers: tuple[int, ...]
    tensors: Mapping[str, Stored]
    shards: Mapping[Path, tuple[str, ...]]

    @classmethod
    def open(cls, folder: Path) -> SparseFiles:
        """Reads the config and the headers of the weights files, but no weights.

        Raises:
            UsageError: the folder holds no sparse model, or its files do not match its config.
        """
        if is_adapter_folder(folder):
            raise UsageError(
                f"{folder} is an adapter, and experts are exchanged in whole models; give a folder "
                "with config.json and model.safetensors, such as a run's policy/"
            )
        check_folder(folder, str(folder))
        config = config_of(str(folder))
        sparse = need_sparse(meta_model(config, str(folder)), str(folder))
        tensors: dict[str, Stored] = {}
        shards: dict[Path, tuple[str, ...]] = {}
        layers = tuple(layer.number for layer in sparse)
        for path in _shards(folder):
            try:
                with safe_open(path, "pt") as file:
                    shards[path] = tuple(file.keys())
                    for name in shards[path]:
                        part = file.get_slice(name)
                        shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
                        if (stored := _stored(name, shape, dtype, layers, folder)) is not None:
                            tensors[name] = stored
            except (SafetensorError, OSError) as error:
                raise UsageError(f"{path} cannot be read: {error}") from error
        files = cls(folder, config, sparse[0].num_experts, sparse[0].top_k, layers, tensors, shards)
        files._check_whole()
        return files

    def _check_whole(self) -> None:
        """Raises UsageError unless each sparse layer has a router and the config's experts."""
        for layer in self.layers:
            of_layer = [tensor for tensor in self.tensors.values() if tensor.layer == layer]
            experts = [tensor for tensor in of_layer if not tensor.is_router]
            single = Counter(tensor.expert for tensor in experts if tensor.expert is not None)
            rows = {tensor.shape[0] for tensor in of_layer if tensor.expert is None}
            numbers, parts = single.keys(), set(single.values())
            complete = not single or (numbers == set(range(self.num_experts)) and len(parts) == 1)
            fits = rows <= {self.num_experts} and 0 < len(experts) < len(of_layer)
            if not (complete and fits):
                raise UsageError(
                    f"{self.folder} is not whole: its config.json says that layer {layer} has "
                    f"{self.num_experts} experts and a router, and its weights do not hold exactly "
                    "these"
                )

    def write(self, folder: Path, changes: Mapping[str, Change]) -> None:
        """Writes the model with some tensors changed; all others stay equal to the bit.

        Args:
            folder: an empty folder to write to.
            changes: the changes, by the names of the tensors.

        Raises:
            UsageError: the disk has no room.
        """
        check_room(folder, sum(path.stat().st_size for path in self.shards))
        for pattern in MODEL_FILES:
            for path in self.folder.glob(pattern):
                if path.suffix != ".safetensors" and path.name != _INDEX:
                    shutil.copyfile(path, folder / path.name)
        place: dict[str, str] = {}
        size = 0
        for path, names in self.shards.items():
            if changes.keys().isdisjoint(names):
                shutil.copyfile(path, folder / path.name)
            else:
                _write_changed(path, names, folder, changes)
            if path.name == BIAS_FILE:  # transformers does not read this file
                continue
            with safe_open(folder / path.name, "pt") as file:
                place |= dict.fromkeys(file.keys(), path.name)
            size += _bytes_of_tensors(folder / path.name)
        if not any(path.name == _WHOLE for path in self.shards):
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(place.items()))}
            (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_changed(
    path: Path, names: tuple[str, ...], folder: Path, changes: Mapping[str, Change]
) -> None:
    tensors = {}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for name in names:
            change = changes.get(name, (name, lambda tensor: tensor))
            if change is not None:
                new_name, changed = change
                tensors[new_name] = changed(file.get_tensor(name)).contiguous()
    save_file(tensors, folder / path.name, metadata=metadata)


def _bytes_of_tensors(path: Path) -> int:
    """Returns the size of all tensors: of the file without the 8-byte header length and header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def _shards(folder: Path) -> list[Path]:
    """Returns the weights files that transformers would read, and the file of a balancing bias."""
    whole, index = folder / _WHOLE, folder / _INDEX
    bias = [path for path in [folder / BIAS_FILE] if path.is_file()]
    if whole.is_file():
        return [whole, *bias]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("a weights file must lie beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder} has no {_WHOLE}, and {_INDEX} cannot be read: {error!r}"
        ) from error
    return [*(folder / name for name in names), *bias]


def _stored(
    name: str, shape: tuple[int, ...], dtype: str, layers: tuple[int, ...], folder: Path
) -> Stored | None:
    """Classifies a tensor; returns None if it is not part of a router or a routed expert.

    Raises:
        UsageError: the tensor is in a sparse layer, and its kind is unknown.
    """
    match = _BLOCK.fullmatch(name)
    if match is None or (layer := int(match[1])) not in layers or _SHARED.fullmatch(match[2]):
        return None
    if single := _EXPERT.fullmatch(match[2]):
        return Stored(layer, False, int(single[1]), shape, dtype)
    is_router = _ROUTER.fullmatch(match[2]) is not None
    if not is_router and not _EXPERTS.fullmatch(match[2]):
        raise UsageError(
            f"{folder} has a tensor {name} in a sparse layer, and what it does is not known here, "
            "so its experts are left as they are"
        )
    return Stored(layer, is_router, None, shape, dtype)
