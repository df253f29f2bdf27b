"""Translates the config of a dense model into the config of its sparse counterpart.

All values of the dense config are copied by name, including RoPE, windows and biases. A setting
that the sparse architecture does not support is refused. Otherwise the sparse architecture's
default would silently give another model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from transformers import MixtralConfig, PretrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from srl.errors import UsageError

# Qwen2-MoE has a shared expert, which the dense model lacks. It gets an eighth of the dense size.
SHARED_PART = 8
# The kernels that multiply experts need rows of a multiple of 16 bytes: 8 numbers in bf16.
_ALIGNED = 8


class _Family(NamedTuple):
    """The sparse counterpart of a dense architecture.

    Attributes:
        config: the class of the sparse config.
        size: the config's name for the size of one expert.
        also_read: settings that the sparse model reads although its config does not list them.
        ignored: settings of the dense config that change nothing.
    """

    config: type[PretrainedConfig]
    size: str
    also_read: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()


FAMILIES = {
    "qwen2": _Family(Qwen2MoeConfig, "moe_intermediate_size"),
    "qwen3": _Family(Qwen3MoeConfig, "moe_intermediate_size", frozenset({"head_dim"})),
    "llama": _Family(MixtralConfig, "intermediate_size", ignored=frozenset({"pretraining_tp"})),
    "mistral": _Family(MixtralConfig, "intermediate_size"),
}
_OF_THE_CLASS = (
    *("model_type", "architectures", "transformers_version", "_name_or_path", "dtype"),
    "output_router_logits",
)


@dataclass(frozen=True)
class Upcycling:
    """The settings that turn a dense model into a sparse one.

    Attributes:
        num_experts: E, the number of experts in a layer.
        top_k: the number of experts for each token.
        split: S, the number of parts of each copy; every part is an expert.
        reinit: the share of each expert's intermediate columns that is redrawn, from 0 to 1.
        router_std: the standard deviation of the router's weights; None means the config's
            initializer_range.
        seed: the seed of the router's weights and of the redrawn columns.

    Raises:
        UsageError: the numbers do not fit each other.
    """

    num_experts: int = 8
    top_k: int = 2
    split: int = 1
    reinit: float = 0.0
    router_std: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_experts < 2 or not 1 <= self.top_k <= self.num_experts:
            raise UsageError(
                f"--num-experts {self.num_experts} with --top-k {self.top_k}: a layer needs 2 "
                "experts at least, and a token uses from 1 to all of them, as in --num-experts 8 "
                "--top-k 2"
            )
        if self.split < 1 or self.num_experts % self.split or self.top_k % self.split:
            raise UsageError(
                f"--split {self.split}: --num-experts ({self.num_experts}) and --top-k "
                f"({self.top_k}) must be multiples of it, because the parts of a copy are chosen "
                "together, as in --num-experts 16 --top-k 4 --split 2"
            )
        if not 0 <= self.reinit <= 1:
            raise UsageError(f"--reinit {self.reinit}: give a share from 0 to 1, such as 0.5")
        std = self.router_std
        if std is not None and not (math.isfinite(std) and std > 0):
            raise UsageError(f"--router-std {std}: give a number above 0, such as 0.02")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: give a whole number from 0 on")


def sparse_config(dense: PretrainedConfig, plan: Upcycling, name: str) -> PretrainedConfig:
    """Translates the config of a dense model into that of its sparse counterpart.

    Args:
        dense: the config of the dense model.
        plan: how many experts, and of what size.
        name: the model's name in messages.

    Raises:
        UsageError: the architecture has no counterpart; the model is quantised; the sparse config
            cannot express a setting of the dense model; or the sizes cannot be split.
    """
    family = FAMILIES.get(dense.model_type)
    if family is None:
        raise UsageError(
            f"{name} is a model of type {dense.model_type}, and only these become sparse: "
            "qwen2 (to qwen2_moe), qwen3 (to qwen3_moe), llama and mistral (to mixtral)"
        )
    size = _expert_size(dense, plan, name)
    values = {key: value for key, value in dense.to_dict().items() if key not in _OF_THE_CLASS}
    if "quantization_config" in values:
        raise UsageError(
            f"{name} is quantised, and copies of packed weights would not be exact; give the "
            "model as it was before it was quantised"
        )
    if dense.model_type == "qwen3":
        values |= _one_window(values, name)
    _refuse_lost(dense, values, family, name)
    values |= {"num_experts_per_tok": plan.top_k, family.size: size}
    if family.config is MixtralConfig:
        values["num_local_experts"] = plan.num_experts
    else:
        values |= {
            "num_experts": plan.num_experts,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if family.config is Qwen2MoeConfig:
        shared = max(1, dense.intermediate_size // SHARED_PART)
        values |= {"shared_expert_intermediate_size": shared, "qkv_bias": True}
    return family.config(**values)


def _expert_size(dense: PretrainedConfig, plan: Upcycling, name: str) -> int:
    """Returns the intermediate size of one expert; refuses sizes that the kernels refuse."""
    size, rest = divmod(dense.intermediate_size, plan.split)
    if rest or size % _ALIGNED or dense.hidden_size % _ALIGNED:
        raise UsageError(
            f"{name} has a hidden size of {dense.hidden_size} and an intermediate size of "
            f"{dense.intermediate_size}; the first, and the second divided by --split "
            f"({plan.split}), must be multiples of {_ALIGNED}, or the kernels that multiply "
            "experts refuse them"
        )
    return size


def _one_window(values: dict[str, object], name: str) -> dict[str, object]:
    """Translates Qwen3's sliding window to Qwen3-MoE, which has one window for all layers."""
    kinds = values.pop("layer_types")
    del values["max_window_layers"]
    if not isinstance(kinds, list) or len(set(kinds)) > 1:
        raise UsageError(
            f"{name} mixes layers with and without a sliding window (layer_types in its "
            "config.json), and Qwen3-MoE has one window for all layers or none, so it cannot "
            "become sparse"
        )
    return {"use_sliding_window": kinds[0] == "sliding_attention"}


def _refuse_lost(
    dense: PretrainedConfig, values: dict[str, object], family: _Family, name: str
) -> None:
    """Raises UsageError if the sparse architecture does not support a setting of the dense one."""
    usual, kept = type(dense)().to_dict(), family.config().to_dict()
    lost = [
        f"{key}: {value}"
        for key, value in values.items()
        if key in usual
        and key not in kept
        and key not in family.also_read | family.ignored
        and value != usual[key]
    ]
    if lost:
        raise UsageError(
            f"{name} has {', '.join(sorted(lost))} in its config.json, which the sparse "
            f"architecture {family.config.model_type} cannot do, so it cannot become sparse"
        )
