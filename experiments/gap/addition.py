"""Writes the data and policies of a small gap experiment: sums of three numbers.

The script writes what `addition.yaml` reads. There are two files of solutions to the same problems:
one writes down the sum of the first two numbers, and one does not. The policies have several sizes
and random weights. Run `make gap CONFIG=experiments/gap/addition.yaml` after this script.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

# Name of a policy -> its width and layers.
SIZES = {"2k": (8, 2), "7k": (16, 2), "61k": (48, 2)}
LARGEST = 20
WORDS = ("The", " answer", " is", " ", ".", "+", "=", "\n", "?", *"0123456789")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=7000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/addition"), help="addition.yaml reads runs/addition"
    )
    args = parser.parse_args()
    if not 1 <= args.problems <= (LARGEST + 1) ** 3:
        parser.error(f"--problems is {args.problems}; there are {(LARGEST + 1) ** 3:,} problems")
    args.out.mkdir(parents=True, exist_ok=True)
    write_solutions(args.out, args.problems, args.seed)
    for name, (width, layers) in SIZES.items():
        parameters = write_policy(args.out / name, width, layers, args.seed)
        print(f"{args.out / name}: {parameters:,} parameters")


def write_solutions(folder: Path, count: int, seed: int) -> None:
    """Writes `long.jsonl` and `short.jsonl`, with the same problems and one problem per line."""
    rng = random.Random(seed)
    problems: dict[tuple[int, int, int], None] = {}
    while len(problems) < count:
        problems[rng.randint(0, LARGEST), rng.randint(0, LARGEST), rng.randint(0, LARGEST)] = None
    lines: dict[str, list[str]] = {"long": [], "short": []}
    for a, b, c in problems:
        end = f"The answer is {a + b + c}."
        steps_by_length = {
            "long": [f"{a}+{b}={a + b}", f"{a + b}+{c}={a + b + c}", end],
            "short": [f"{a}+{b}+{c}={a + b + c}", end],
        }
        for name, steps in steps_by_length.items():
            row = {"problem": f"{a}+{b}+{c}?", "steps": steps, "answer": str(a + b + c)}
            lines[name].append(json.dumps(row) + "\n")
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


def write_policy(folder: Path, width: int, layers: int, seed: int) -> int:
    """Writes a model folder with random weights; returns the number of parameters."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"The| answer| is|[0-9]|[+=.?\n ]"), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(fast),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            initializer_range=0.08,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=fast.eos_token_id,
            pad_token_id=fast.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model.num_parameters()


if __name__ == "__main__":
    main()
