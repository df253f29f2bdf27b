"""Counts which kinds of tokens a base policy predicts right, given the demonstrator's text so far.

    python experiments/tiny/read_base.py [experiments/tiny/base]

The goal that a thought starts with is drawn at random (demonstrations.py), so it is counted
separately. A branch is right if all its other tokens are right.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import torch
import yaml
from make_base import HERE, collate, write_steps

from environments.word_problems import OBJECTS, PEOPLE, draw_problems
from srl.data.prompts import PromptFormat
from srl.models.loading import load_policy

PROBLEMS = 12


def main() -> None:
    model, tokenizer = load_policy(sys.argv[1] if len(sys.argv) > 1 else str(HERE / "base"))
    prompts = yaml.safe_load(Path(HERE / "srl.yaml").read_text())
    form = PromptFormat(tokenizer, system_prompt=prompts["system_prompt"])
    rng = random.Random(1)
    for operations in (1, 2, 3, 4, 6, 8):
        tried: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for problem in draw_problems(
            PROBLEMS,
            seed=99,
            min_operations=operations,
            max_operations=operations,
            max_distractors=min(3, operations - 1),
        ):
            row = write_steps(problem, form, tokenizer, rng)
            batch = collate([row])
            with torch.no_grad():
                logits = model.eval()(
                    input_ids=batch["ids"],
                    attention_mask=batch["mask"],
                    position_ids=batch["positions"],
                    use_cache=False,
                ).logits[0]
            hits = logits.argmax(-1) == batch["labels"][0]
            for branch in range(1, max(row.branch) + 1):
                kinds = [
                    (place, tokenizer.decode([int(batch["labels"][0, place])]))
                    for place in range(len(row.ids))
                    if row.branch[place] == branch and batch["labels"][0, place] != -100
                ]
                _count(kinds, hits.tolist(), tried, right)
        figures = "  ".join(f"{kind} {right[kind]}/{tried[kind]}" for kind in sorted(tried))
        print(f"{operations} operations: {figures}")


def _count(
    tokens: list[tuple[int, str]], hits: list[bool], tried: Counter[str], right: Counter[str]
) -> None:
    where, goal, whole = "thought", True, True
    for place, text in tokens:
        word = text.strip()
        if word in PEOPLE and goal:
            kind, goal = "goal", False
        else:
            kind = f"{where} {_kind(word)}"
            whole = whole and hits[place]
        tried[kind] += 1
        right[kind] += hits[place]
        if word == "</think>":
            where = "step"
    tried["branch"] += 1
    right["branch"] += whole


def _kind(word: str) -> str:
    if word in PEOPLE:
        return "people"
    if word in OBJECTS:
        return "things"
    return "digits" if word.isdigit() else "words"


if __name__ == "__main__":
    main()
