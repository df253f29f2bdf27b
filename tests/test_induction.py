"""The initial weights of the embedded base: an untrained model already looks things up."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "tiny"))

from induction import wire_induction

LENGTH = 60
ROWS = 8


def fresh_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=700,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            initializer_range=0.08,
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    ).eval()


def repeated_text() -> torch.Tensor:
    """[ROWS, 2 * LENGTH]: random tokens, then the same again."""
    ids = torch.randint(700, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    return torch.cat([ids, ids], dim=1)


@torch.no_grad()
def test_heads_look_back_and_find_what_followed() -> None:
    model, text = fresh_model(), repeated_text()
    wire_induction(model, torch.Generator().manual_seed(0))
    back, find = model(text, output_attentions=True).attentions[:2]  # [B, heads, T, T]
    places = torch.arange(LENGTH + 4, 2 * LENGTH - 1)
    for head in range(3):
        # The token head + 1 places back; then, of 100 tokens, the one that followed the first time.
        assert back[:, head, places, places - head - 1].mean() > 0.7
        assert find[:, head, places, places - LENGTH + 1].mean() > 0.25
    assert back[:, 3, places, places - 1].mean() < 0.1


@torch.no_grad()
def test_an_untrained_model_repeats_what_it_read() -> None:
    text = repeated_text()

    def share_right(model: Qwen2ForCausalLM) -> float:
        guessed = model(text).logits[:, LENGTH:-1].argmax(-1)
        return (guessed == text[:, LENGTH + 1 :]).float().mean().item()

    model = fresh_model()
    assert share_right(model) < 0.02
    wire_induction(model, torch.Generator().manual_seed(0))
    assert share_right(model) > 0.2
