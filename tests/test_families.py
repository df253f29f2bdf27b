"""Architectures as users bring them, each with its family's chat template, trained by the CLI.

Templates are those that TRL ships where it ships them; the others are short ones that do what the
family's does with roles, turns, dates and thoughts. Models are random and tiny: two layers of each
kind that the architecture mixes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from conftest import read_jsonl, same_weights, weights
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from srl.commands.cli import main
from srl.config.parts import RowSettings
from srl.models.loading import load_policy, prompt_format

TASK = "Give only the next step."
# The date of the prompt, never today's; reasoning is switched off in the prompt.
SMOLLM3 = (
    "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}\nReasoning Mode: "
    "{{ '/think' if enable_thinking else '/no_think' }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
# Roles are tokens, and the text as a whole ends in EOS.
PHI4_MINI = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
# Begins with the token that also ends a turn.
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n"
    "{{ m.content }}{{ eos_token }}{% if not loop.last %}\n{% endif %}{% else %}<|{{ m.role }}|>\n"
    "{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Knows no system turn of its own: the words stand in the user's.
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
    "{{ bos_token }}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}[INST] "
    "{{ told if loop.last else '' }}{{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


@dataclass(frozen=True)
class Family:
    """A model type with sizes of its own, and a template; `end` is what ends a turn in it.

    Attributes:
        kind: transformers' model type.
        template: Jinja, or the name of one of TRL's.
        end: the token behind an assistant's words.
        head: what a prompt begins with, as a regular expression.
        tail: what it ends with, after the problem.
    """

    kind: str
    template: str
    end: str
    head: str
    tail: str
    sizes: dict[str, object] = field(default_factory=dict)
    eos: str = "<|endoftext|>"
    bos: str | None = None


CHATML_TAIL = "<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"
FAMILIES = {
    "Qwen2.5": Family(
        "qwen2",
        "qwen2_5.jinja",
        "<|im_end|>",
        r"<\|im_start\|>system\nGive only",
        CHATML_TAIL,
    ),
    "Qwen3": Family(
        "qwen3",
        "qwen3.jinja",
        "<|im_end|>",
        r"<\|im_start\|>system\nGive only",
        CHATML_TAIL + NO_THOUGHT,
    ),
    "Llama 3.2": Family(
        "llama",
        "llama3_2.jinja",
        "<|eot_id|>",
        r"<\|begin_of_text\|><\|start_header_id\|>system<\|end_header_id\|>\n\n.*26 Jul 2024.*Give",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        bos="<|begin_of_text|>",
        sizes={
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
            "tie_word_embeddings": True,
        },
    ),
    "Gemma 3": Family(
        "gemma3_text",
        "gemma3.jinja",
        "<end_of_turn>",
        r"<bos><start_of_turn>user\nGive only the next step\.\n\n",
        "<end_of_turn>\n<start_of_turn>model\n",
        {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
        eos="<eos>",
        bos="<bos>",
    ),
    "Phi-4-mini": Family(
        "phi3",
        PHI4_MINI,
        "<|end|>",
        r"<\|system\|>Give only the next step\.<\|end\|><\|user\|>",
        "<|end|><|assistant|>",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
            }
        },
    ),
    "SmolLM3": Family(
        "smollm3",
        SMOLLM3,
        "<|im_end|>",
        r"<\|im_start\|>system\nToday Date: 26 July 2024\nReasoning Mode: /no_think\n\nGive only",
        CHATML_TAIL + "<think>\n\n</think>\n",
        {"no_rope_layers": [1, 0]},
    ),
    "OLMo 2": Family(
        "olmo2",
        OLMO2,
        "<|endoftext|>",
        r"<\|endoftext\|><\|system\|>\nGive only the next step\.\n<\|user\|>\n",
        "\n<|assistant|>\n",
        bos="<|endoftext|>",
    ),
    "Mistral": Family(
        "mistral",
        MISTRAL,
        "</s>",
        r"<s>\[INST\] Give only the next step\.\n\n",
        "[/INST]",
        {"sliding_window": None},
        eos="</s>",
        bos="<s>",
    ),
    "DeepSeek-R1-Distill": Family(
        "qwen2",
        "deepseek_r1_distill.jinja",
        "<｜end▁of▁sentence｜>",
        r"<｜begin▁of▁sentence｜>Give only the next step\.<｜User｜>",
        "<｜Assistant｜><think>\n\n</think>\n\n",
        eos="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
    ),
    "GPT-OSS": Family(
        "gpt_oss",
        "gptoss.jinja",
        "<|return|>",
        r"<\|start\|>system<\|message\|>.*Give only",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        eos="<|return|>",
    ),
    "Qwen3.5": Family(
        "qwen3_5_text",
        "qwen3_5_nothink.jinja",
        "<|im_end|>",
        r"<\|im_start\|>system\nGive only",
        CHATML_TAIL + NO_THOUGHT,
        {"layer_types": ["linear_attention", "full_attention"], **LINEAR},
    ),
    "LFM2": Family(
        "lfm2",
        "lfm2.jinja",
        "<|im_end|>",
        r"<\|startoftext\|><\|im_start\|>system\nGive only",
        CHATML_TAIL,
        {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
        bos="<|startoftext|>",
    ),
}


def make_policy(family: Family, folder: Path) -> None:
    """A folder with random weights; a third of the bytes end a completion, as several EOS do."""
    template = family.template
    if template.endswith(".jinja"):
        template = (files("trl") / "chat_templates" / template).read_text(encoding="utf-8")
    pattern = r"<[|｜][^|｜<>\s'\"{}]+[|｜]>|</?s>|<(?:start|end)_of_turn>|</?think>|\[/?INST\]"
    special = {family.end, family.eos, family.bos or family.eos, *re.findall(pattern, template)}
    special |= {"<|system|>", "<|user|>", "<|assistant|>"} if "<|{{" in template else set()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(one, special=True) for one in sorted(special)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=family.eos, bos_token=family.bos, pad_token=family.eos
    )
    tokenizer.chat_template = template
    ends = [tokenizer.eos_token_id, *range(170, 256)]
    config = CONFIG_MAPPING[family.kind](
        **{
            **SIZES,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **family.sizes,
        }
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_trained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    family = FAMILIES[name]
    make_policy(family, Path("model"))
    rows = [{"problem": f"a is {n}.", "steps": [f"b = {n}", "c = 7"]} for n in range(12)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": "model",
        "data": {"source": "files", "path": "data.jsonl"},
        "system_prompt": TASK,
        "think": False,
        "use_cpu": True,
        "targets": "all",
        "max_completion_length": 12,
        "prompts_per_step": 2,
        "num_generations": 2,
        "max_sampling_rounds": 2,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "reward_workers": 1,
        "validation_problems": 0,
        "test_problems": 0,
        "save_strategy": "no",
        "eval_strategy": "no",
    }
    Path("c.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", "--config", "c.yaml", "--run-name", "r"]) == 0
    run = Path("runs/r")
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if "sampler_gap" in line]
    assert lines
    assert all(float(str(line["max_sampler_gap"])) < 1e-3 for line in lines)
    before, _ = load_policy("model")
    after, tokenizer = load_policy(str(run / "policy"))
    assert not same_weights(weights(before), weights(after))
    assert int(tokenizer.convert_tokens_to_ids(family.end)) in after.generation_config.eos_token_id
    form = prompt_format(after, tokenizer, RowSettings(think=False, system_prompt=TASK))
    prompt = tokenizer.decode(form.encode("a is 1.", []))
    assert re.match(family.head, prompt, re.DOTALL), prompt
    assert prompt.endswith("a is 1." + family.tail), prompt
    assert tokenizer.decode([form.end_id]) == family.end
