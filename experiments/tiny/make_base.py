"""Trains the embedded base policy from random weights, with a fixed seed: `make base`.

Problems come from the ``base`` pool of `environments.word_problems`, which no other data can
contain. The prompts of all steps of a problem are nested prefixes of each other, so one row holds
them all. The trunk (problem and steps) occurs once. Every monologue with its step is a branch that
attends to its own part of the trunk. This is several times cheaper than one row per step.

A share of the rows are whole solutions under the evaluation prompt. The loss counts only what the
policy writes, never the prompt.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from demonstrations import choose_goal, solve_whole, write
from induction import wire_induction
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from environments.word_problems import WordProblem, draw_problems
from srl.data.prompts import PromptFormat

HERE = Path(__file__).parent
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# How Qwen2 cuts text into words: single digits, a space with the word that follows it.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 1024
BATCH_TOKENS = 2048
LEARNING_RATE = 2e-3
WHOLE_SHARE = 0.15
REPORT_EVERY = 25


@dataclass
class Row:
    """A token tree as one row: a trunk, then branches.

    Attributes:
        ids: [T] the tokens.
        positions: [T] the place of each token in its own root-to-leaf text.
        branch: [T] 0 on the trunk, else the number of the branch.
        trunk_seen: [T] how many trunk tokens a token may attend to.
        learn: [T] True at tokens that the policy writes.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    trunk_seen: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)

    def add(self, ids: list[int], *, start: int, branch: int, learn_from: int) -> None:
        """Appends tokens that continue the trunk's first `start` tokens.

        Tokens from index `learn_from` on are learnt.
        """
        for offset, token in enumerate(ids):
            self.ids.append(token)
            self.positions.append(start + offset)
            self.branch.append(branch)
            self.trunk_seen.append(start + offset + 1 if branch == 0 else start)
            self.learn.append(offset >= learn_from)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3, help="at least 2")
    parser.add_argument("--heads", type=int, default=4, help="at least 2; divides the hidden size")
    parser.add_argument("--out", type=Path, default=Path("runs/base"))
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty; remove it or give another folder with --out")
    if args.layers < 2 or args.heads < 2 or args.hidden_size % (2 * args.heads):
        parser.error(
            "two layers and two heads at least, and a hidden size that gives each head an even "
            f"number; given: {args.layers} layers, {args.heads} heads, {args.hidden_size}"
        )
    prompts = yaml.safe_load((HERE / "srl.yaml").read_text())
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(prompts["system_prompt"], prompts["whole_system_prompt"])
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=3 * args.hidden_size,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            num_key_value_heads=args.heads,
            max_position_embeddings=2048,
            # Qwen2.5's RoPE base makes more of a head's frequencies slow enough to compare names
            # across a whole problem. The usual initial range, 0.02, suits wider models, so this one
            # is larger.
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            initializer_range=0.08,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    wire_induction(model, torch.Generator().manual_seed(args.seed))
    form = PromptFormat(
        tokenizer,
        system_prompt=prompts["system_prompt"],
        whole_system_prompt=prompts["whole_system_prompt"],
    )
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens", flush=True)
    curriculum = Curriculum(args.updates)
    train(model, batches(form, tokenizer, args.seed, curriculum), curriculum)
    args.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


def train_tokenizer(*system_prompts: str) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer with single digits, trained on texts of the domain.

    Text is normalised and cut as in Qwen2's own tokenizer, and special tokens have Qwen2's names.
    The reason: for a Qwen2 model, `AutoTokenizer` builds Qwen2's tokenizer whatever was saved. If
    ours cut text in another way, it would silently read other tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    problems = draw_problems(4000, seed=0, pool="base")
    rng = random.Random(0)
    corpus = [problem.text + "\n\n" + solve_whole(problem, rng) for problem in problems]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 7,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The prompts are repeated, so that they take only a small number of tokens.
    tokenizer.train_from_iterator(corpus + list(system_prompts) * 500, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.add_tokens(["<think>", "</think>"])
    fast.chat_template = CHAT_TEMPLATE
    return fast


class Curriculum:
    """Chooses the greatest length of the problems: short ones come first.

    One more operation is allowed whenever the loss shows that the present lengths are learnt. From
    30 % of the updates on, the limit also rises with time, so that the last 30 % have all lengths.
    """

    LEARNT = 0.15

    def __init__(self, updates: int) -> None:
        self.updates = updates
        self.longest = 2

    def after(self, update: int, loss: float) -> None:
        """Raises the limit if the mean loss of the last updates is low or if it is due."""
        due = 2 + 6 * (update / self.updates - 0.3) / 0.4
        self.longest = min(8, max(self.longest + (loss < self.LEARNT), int(due)))


def batches(
    form: PromptFormat, tokenizer: PreTrainedTokenizerFast, seed: int, curriculum: Curriculum
) -> Iterator[list[Row]]:
    """Yields one list of rows per update, with about BATCH_TOKENS tokens together."""
    rng = random.Random(seed)
    for _ in range(curriculum.updates):
        rows: list[Row] = []
        # All problems of a batch have the same number of operations, so that padding is small.
        operations = rng.randint(1, curriculum.longest)
        problems = iter(
            draw_problems(
                32,
                seed=rng.getrandbits(48),
                min_operations=operations,
                max_operations=operations,
                max_distractors=min(3, curriculum.longest - 1),
                pool="base",
            )
        )
        while sum(len(row.ids) for row in rows) < BATCH_TOKENS:
            problem = next(problems)
            write = write_whole if rng.random() < WHOLE_SHARE else write_steps
            rows.append(write(problem, form, tokenizer, rng))
        yield rows


def write_steps(
    problem: WordProblem,
    form: PromptFormat,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
) -> Row:
    """Returns a row with all steps of one problem.

    In half of the rows the trunk follows the expert, and in the others the demonstrator.
    """
    follow_expert = rng.random() < 0.5
    known = problem.given
    trunk: list[str] = []
    branches: list[str] = []
    while len(branches) < 12:
        demonstration = problem.demonstrate(choose_goal(problem, rng), known)
        branches.append(write(demonstration))
        taken = demonstration
        if follow_expert:
            taken = problem.demonstrate(problem.target, known)
        if taken.computed is None:
            break
        trunk.append(taken.step)
        known.add(taken.computed)
    *segments, tail = form.encode_segments(problem.text, trunk)
    row = Row()
    starts = []
    for segment in segments[: len(branches)]:
        row.add(segment, start=len(row.ids), branch=0, learn_from=len(segment))
        starts.append(len(row.ids))
    for number, (start, text) in enumerate(zip(starts, branches, strict=True), start=1):
        _add_branch(row, tokenizer, tail, text, start=start, number=number)
    return row


def write_whole(
    problem: WordProblem,
    form: PromptFormat,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
) -> Row:
    """Returns a row with a whole solution under the evaluation prompt."""
    row = Row()
    _add_branch(
        row,
        tokenizer,
        form.encode_whole(problem.text),
        solve_whole(problem, rng),
        start=0,
        number=1,
    )
    return row


def _add_branch(
    row: Row,
    tokenizer: PreTrainedTokenizerFast,
    prompt: list[int],
    text: str,
    *,
    start: int,
    number: int,
) -> None:
    written = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    row.add(prompt + written, start=start, branch=number, learn_from=len(prompt))


def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Returns the rows as tensors: ids, positions, labels [B, T]; mask [B, 1, T, T].

    The mask is True where a token may attend. The label of a token is the next token of its own
    branch. The first token of a branch is always a prompt token, so no label crosses from the trunk
    to a branch.
    """
    longest = max(len(row.ids) for row in rows)

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    ids = torch.tensor([pad(row.ids, 0) for row in rows])
    positions = torch.tensor([pad(row.positions, 0) for row in rows])
    branch = torch.tensor([pad(row.branch, -1) for row in rows])
    seen = torch.tensor([pad(row.trunk_seen, 0) for row in rows])
    learn = torch.tensor([pad([int(flag) for flag in row.learn], 0) for row in rows]).bool()
    place = torch.arange(longest)
    same_branch = (branch[:, :, None] == branch[:, None, :]) & (place[:, None] >= place[None, :])
    trunk = (branch[:, None, :] == 0) & (place[None, None, :] < seen[:, :, None])
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = torch.where(learn[:, 1:], ids[:, 1:], -100)
    return {
        "ids": ids,
        "positions": positions,
        "mask": (same_branch | trunk)[:, None],
        "labels": labels,
    }


def train(model: Qwen2ForCausalLM, data: Iterator[list[Row]], curriculum: Curriculum) -> None:
    """Trains with AdamW and a cosine schedule; the loss is the mean over the tokens to learn."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, curriculum.updates)
    started, tokens = time.monotonic(), 0
    losses: list[float] = []
    right: list[float] = []
    for update, rows in enumerate(data, start=1):
        batch = collate(rows)
        hidden = model.model(
            input_ids=batch["ids"],
            attention_mask=batch["mask"],
            position_ids=batch["positions"],
            use_cache=False,
        ).last_hidden_state
        learn = batch["labels"] != -100
        logits = model.lm_head(hidden[learn])
        labels = batch["labels"][learn]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += sum(len(row.ids) for row in rows)
        losses.append(loss.item())
        right.append((logits.argmax(-1) == labels).float().mean().item())
        if update % REPORT_EVERY == 0:
            seconds = time.monotonic() - started
            mean = sum(losses) / len(losses)
            print(
                f"update {update}/{curriculum.updates}  up to {curriculum.longest} operations"
                f"  loss {mean:.4f}  right tokens {sum(right) / len(right):.1%}"
                f"  tokens {tokens:,}  {tokens / seconds:,.0f} tokens/s  {seconds:.0f} s",
                flush=True,
            )
            curriculum.after(update, mean)
            losses, right = [], []


if __name__ == "__main__":
    main()
