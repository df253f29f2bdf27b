"""What is measured on: rows of chosen lengths, and models with random weights.

Speed does not depend on what weights say, so a model is built from its config. The small one has
the shape of `experiments/tiny/base`, which `make train` trains; the large ones are Qwen2.5's.
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
    """Trajectories whose prompts are nested, and G rollouts of every prompt.

    Attributes:
        K: prompts of a trajectory.
        Q: tokens of its first prompt.
        s: tokens that each further prompt has more.
        G: rollouts of a prompt.
        C: tokens of a rollout.
        trajectories: how many such, which share nothing.
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
        """Tokens of the rows one by one, without padding."""
        return round(self.trajectories * self.K * self.G * (self.mean_prompt + self.C))

    @property
    def nodes(self) -> int:
        """Tokens of the prefix tree, but for what random rollouts share by chance."""
        return self.trajectories * (self.Q + self.s * (self.K - 1) + self.K * self.G * self.C)

    @property
    def ceiling(self) -> float:
        """The speed that sharing could give if time were tokens."""
        return self.repeated / self.nodes

    @property
    def title(self) -> str:
        prompts = f"P {self.Q}" if self.K == 1 else f"K {self.K}, Q {self.Q}, s {self.s}"
        times = f"{self.trajectories} x " if self.trajectories > 1 else ""
        return f"{times}{prompts}, G {self.G}, C {self.C}"

    def rows(self, vocabulary: int) -> list[Row]:
        """Random tokens, the same ones for the same shape; groups one after another."""
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
    """The small policy's config, with room for longer texts."""
    config = AutoConfig.from_pretrained(BASE, max_position_embeddings=positions)
    config.update(changes)
    return config


def qwen25_config(size: str, vocabulary: int = 151936) -> PreTrainedConfig:
    """Qwen2.5's, "0.5B" or "1.5B"."""
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
    """SmolLM2-135M's: https://huggingface.co/HuggingFaceTB/SmolLM2-135M, config.json."""
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
    """In float32, the same weights every time."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device)


def tiny_model(positions: int = 32768) -> PreTrainedModel:
    """The small policy's shape."""
    return random_model(base_config(positions))


def base_tokenizer() -> PreTrainedTokenizerFast:
    """The small policy's, for trainers that will not be built without one."""
    return PreTrainedTokenizerFast.from_pretrained(BASE)
