"""Makes the inputs of measurements: rows of chosen lengths, and models with random weights.

Speed does not depend on the values of the weights, so a model is built from its config. The small
model has the shape of `experiments/tiny/base`, which `make train` trains. The others have the
shapes of SmolLM2-135M and Qwen2.5.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from srl.models.prefix_tree import Row

BASE = Path(__file__).resolve().parents[1] / "tiny" / "base"

# https://huggingface.co/Qwen/Qwen2.5-0.5B and -1.5B, config.json
_QWEN25 = {
    "0.5B": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "intermediate_size": 4864,
    },
    "1.5B": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "intermediate_size": 8960,
    },
}


@dataclass(frozen=True)
class Shape:
    """The sizes of trajectories with nested prompts and G rollouts of every prompt.

    Attributes:
        K: the prompts of a trajectory.
        Q: the tokens of its first prompt.
        s: the tokens that each further prompt adds.
        G: the rollouts of a prompt.
        C: the tokens of a rollout.
        trajectories: the number of trajectories. They share nothing.
    """

    K: int
    Q: int
    s: int
    G: int
    C: int
    trajectories: int = 1

    @property
    def mean_prompt(self) -> float:
        return self.Q + self.s * (self.K - 1) / 2

    @property
    def repeated(self) -> int:
        """The tokens of all rows, shared tokens counted for each row, without padding."""
        return round(self.trajectories * self.K * self.G * (self.mean_prompt + self.C))

    @property
    def nodes(self) -> int:
        """The tokens of the prefix tree, if random rollouts share no tokens by chance."""
        return self.trajectories * (self.Q + self.s * (self.K - 1) + self.K * self.G * self.C)

    @property
    def ceiling(self) -> float:
        """The speed-up by sharing if time were proportional to tokens."""
        return self.repeated / self.nodes

    @property
    def title(self) -> str:
        prompts = f"P {self.Q}" if self.K == 1 else f"K {self.K}, Q {self.Q}, s {self.s}"
        times = f"{self.trajectories} x " if self.trajectories > 1 else ""
        return f"{times}{prompts}, G {self.G}, C {self.C}"

    def rows(self, vocabulary: int) -> list[Row]:
        """Returns rows of random tokens, group after group; equal shapes give equal rows."""
        rng = random.Random(0)

        def tokens(count: int) -> list[int]:
            return [rng.randrange(vocabulary) for _ in range(count)]

        rows: list[Row] = []
        for _ in range(self.trajectories):
            prompt = tokens(self.Q)
            for _ in range(self.K):
                rows += [(prompt, tokens(self.C)) for _ in range(self.G)]
                prompt = prompt + tokens(self.s)
        return rows


def base_config(positions: int, **changes: object) -> PreTrainedConfig:
    """Returns the small policy's config with `positions` positions and other changes."""
    config = AutoConfig.from_pretrained(BASE, max_position_embeddings=positions)
    config.update(changes)
    return config


def qwen25_config(size: str, vocabulary: int = 151936) -> PreTrainedConfig:
    """Returns the config of Qwen2.5, of size "0.5B" or "1.5B"."""
    return Qwen2Config(
        **_QWEN25[size],
        num_key_value_heads=2,
        vocab_size=vocabulary,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def smollm2_config(vocabulary: int = 49152, **changes: object) -> PreTrainedConfig:
    """Returns the config of SmolLM2-135M.

    Source: https://huggingface.co/HuggingFaceTB/SmolLM2-135M, config.json.
    """
    shape: dict[str, object] = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
    }
    return LlamaConfig(
        **{**shape, **changes},
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 1e5, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def random_model(config: PreTrainedConfig, device: str = "cpu") -> PreTrainedModel:
    """Returns a model in float32 with random weights, the same ones every time."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device)


def tiny_model(positions: int = 32768) -> PreTrainedModel:
    """Returns a model of the small policy's shape with random weights."""
    return random_model(base_config(positions))


def base_tokenizer() -> PreTrainedTokenizerFast:
    """Returns the small policy's tokenizer, for trainers that require a tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(BASE)
