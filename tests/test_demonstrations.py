"""The making of the embedded base policy: true sums, the expert's own steps, and token trees."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from environments.answers import stated_answer
from environments.paper_sums import work_out
from environments.word_problems import WordProblem, draw_problems
from srl.data.prompts import PromptFormat, parse_text
from srl.models.loading import load_policy

RECIPE = Path(__file__).parents[1] / "experiments" / "tiny"
sys.path.insert(0, str(RECIPE))

from demonstrations import choose_goal, solve_whole, write  # noqa: E402
from make_base import (  # noqa: E402
    Row,
    _add_branch,
    collate,
    train_tokenizer,
    write_steps,
    write_whole,
)

PROBLEMS = draw_problems(60, seed=3, pool="base", min_operations=1, max_operations=8)


def claims(text: str) -> list[tuple[int, str, int, int, int]]:
    """`12-8=4, 2-1=1.` -> one (left, operation, right, value, rest) a claim; `2-8: ` is none."""
    found = []
    for claim in text.removesuffix(".").split(", "):
        match = re.fullmatch(r"(?:\d-\d: )?(\d+)([-+*/])(\d+)=(\d+)(?: rest (\d+))?", claim)
        assert match, claim
        left, right, value = int(match[1]), int(match[3]), int(match[4])
        found.append((left, match[2], right, value, int(match[5] or 0)))
    return found


def is_true(left: int, operation: str, right: int, value: int, rest: int) -> bool:
    if operation == "/":
        return left == value * right + rest and rest < right
    return (
        rest == 0 and value == {"+": left + right, "-": left - right, "*": left * right}[operation]
    )


def operands() -> Iterator[tuple[str, int, int, int]]:
    """Every sum that a problem with values from 1 to 99 can ask for, with its result."""
    for left, right in product(range(1, 100), repeat=2):
        if left + right <= 99:
            yield "+", left, right, left + right
        if left > right:
            yield "-", left, right, left - right
        if right in (2, 3, 4, 5):
            if left * right <= 99:
                yield "*", left, right, left * right
            if left % right == 0:
                yield "/", left, right, left // right


def test_every_worked_out_sum_is_true() -> None:
    count = 0
    for operation, left, right, result in operands():
        text = work_out(operation, left, right)
        ones, *tens = claims(text)
        assert all(is_true(*claim) for claim in (ones, *tens)), text
        # What the lines say together is the result.
        if operation == "/":
            assert tens[0][4] == 0, text
            assert 10 * ones[3] + tens[0][3] == result, text
        else:
            assert 10 * tens[-1][3] + ones[3] % 10 == result, text
            carries = ones[3] > 9 or (left % 10 < right % 10 and operation == "-")
            assert len(tens) == 1 + carries, text
        assert (": 1" in text) == (operation == "-" and left % 10 < right % 10), text
        count += 1
    assert count > 9_000


def steps_of(problem: WordProblem) -> list[str]:
    known = problem.given
    steps = []
    for _ in range(20):
        demonstration = problem.demonstrate(problem.target, known)
        steps.append(demonstration.step)
        if demonstration.computed is None:
            return steps
        assert demonstration.computed not in known
        known.add(demonstration.computed)
    raise AssertionError("no answer after 20 steps")


def test_towards_the_true_goal_the_demonstrator_is_the_expert() -> None:
    for problem in PROBLEMS:
        assert tuple(steps_of(problem)) == problem.trajectory().texts


def _subject(sentence: str) -> str:
    """Whom a sentence of a thought is about, `(for X) ` before it left out."""
    return re.sub(r"^\(for \w+\) ", "", sentence).split()[0]


def test_thoughts_are_true() -> None:
    """Facts are the problem's, values known ones, and the last words are the step's own sum."""
    for problem in PROBLEMS:
        rng = random.Random(problem.text)
        known = problem.given
        for _ in range(12):
            goal = choose_goal(problem, rng)
            shown = problem.demonstrate(goal, known)
            parts = shown.thought.removesuffix(".").split(". ")
            for number, (before, part) in enumerate(pairwise(["", *parts]), start=1):
                if match := re.match(r"\(for (\w+)\) ", part):
                    # The sentence before tells what an operand of this person's quantity is worth.
                    assert _subject(before) in problem.quantities[match[1]].operands
                    part = part.removeprefix(match[0])
                person = part.split()[0]
                if part + "." == problem.facts.get(person):
                    continue  # a fact of the text, word for word
                if match := re.fullmatch(r"(\w+) has \S+=(\d+) \w+", part):
                    assert match[1] in known
                    assert problem.quantities[match[1]].value == int(match[2])
                else:
                    assert number == len(parts)
                    quantity = problem.quantities[shown.computed or ""]
                    assert set(quantity.operands) <= known
                    numbers = [problem.quantities[name].value for name in quantity.operands]
                    numbers += [] if quantity.constant is None else [quantity.constant]
                    assert quantity.operation
                    assert part + "." == work_out(quantity.operation, *numbers)
            told = Counter(re.findall(r"\(for (\w+)\)", shown.thought))
            if shown.computed is not None:
                assert told[shown.computed] == len(problem.quantities[shown.computed].operands)
            assert parts[0].startswith(goal)
            if shown.computed is None:
                assert shown.step == f"The answer is {problem.quantities[goal].value}."
                break
            assert shown.step == problem.write_step(shown.computed)
            known.add(shown.computed)


def test_demonstrations_keep_the_format() -> None:
    for problem in PROBLEMS:
        shown = problem.demonstrate(problem.target, problem.given)
        parsed = parse_text(write(shown), truncated=False)
        assert (parsed.thought, parsed.action, parsed.failure) == (shown.thought, shown.step, None)


def test_short_problems_are_solved_and_long_ones_often_not() -> None:
    def share_right(operations: int, distractors: int) -> float:
        problems = draw_problems(
            150,
            seed=1,
            pool="base",
            min_operations=operations,
            max_operations=operations,
            max_distractors=distractors,
        )
        rng = random.Random(0)
        texts = [solve_whole(problem, rng) for problem in problems]
        right = [
            stated_answer(text) == p.trajectory().answer
            for text, p in zip(texts, problems, strict=True)
        ]
        return sum(right) / len(right)

    assert share_right(1, 0) == 1.0
    assert 0.0 < share_right(8, 3) < 0.5


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer("Give only the next step.", "Solve it.")


@pytest.fixture(scope="module")
def form(tokenizer: PreTrainedTokenizerFast) -> PromptFormat:
    return PromptFormat(
        tokenizer, system_prompt="Give only the next step.", whole_system_prompt="Solve it."
    )


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return Qwen2ForCausalLM(config).double().eval()


def rows(form: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    rng = random.Random(2)
    return [
        (write_whole if number % 4 == 3 else write_steps)(problem, form, tokenizer, rng)
        for number, problem in enumerate(PROBLEMS[:8])
    ]


def branches(row: Row) -> Iterator[tuple[list[int], list[int]]]:
    """Each branch as the text it stands for: its part of the trunk, then its own tokens, as places
    in the row; and those of its places that are learnt."""
    for number in range(1, max(row.branch) + 1):
        own = [place for place, branch in enumerate(row.branch) if branch == number]
        trunk = [place for place, branch in enumerate(row.branch) if branch == 0]
        start = row.positions[own[0]]
        yield trunk[:start] + own, [place for place in own if row.learn[place]]


def test_a_branch_reads_as_the_prompt_and_the_completion(
    form: PromptFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    for problem in PROBLEMS[:20]:
        steps_written = {
            problem.write_step(n) for n, q in problem.quantities.items() if q.operation
        }
        row = write_steps(problem, form, tokenizer, random.Random(1))
        before: list[str] = []
        for number, (places, learnt) in enumerate(branches(row)):
            written = [row.ids[place] for place in learnt]
            ids = [row.ids[place] for place in places]
            prompt = ids[: -len(written)]
            assert prompt + written == ids
            words = tokenizer.decode(prompt).split("<|user|>")[1].split("\n<|assistant|>")[0]
            text, *steps = words.split("\n\n")
            assert text == problem.text
            assert prompt == form.encode(text, steps)
            assert len(steps) == number
            assert steps[:-1] == before
            assert set(steps) <= steps_written
            before = steps
            assert written[-1] == tokenizer.eos_token_id
            assert form.parse(written, truncated=False).failure is None


def test_a_whole_solution_is_one_branch(
    form: PromptFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    problem = PROBLEMS[5]
    row = write_whole(problem, form, tokenizer, random.Random(1))
    prompt = form.encode_whole(problem.text)
    assert row.ids[: len(prompt)] == prompt
    assert set(row.branch) == {1}
    assert row.positions == list(range(len(row.ids)))
    assert row.learn == [place >= len(prompt) for place in range(len(row.ids))]
    text = form.read(row.ids[len(prompt) :])
    assert text == solve_whole(problem, random.Random(1))


@torch.no_grad()
def test_a_branch_in_the_tree_has_the_log_probs_it_has_alone(
    form: PromptFormat, tokenizer: PreTrainedTokenizerFast, model: Qwen2ForCausalLM
) -> None:
    made = rows(form, tokenizer)
    batch = collate(made)
    logits = model(
        input_ids=batch["ids"],
        attention_mask=batch["mask"],
        position_ids=batch["positions"],
        use_cache=False,
    ).logits.log_softmax(-1)
    compared = 0
    for number, row in enumerate(made):
        learnt_in_row: list[int] = []
        for places, learnt in branches(row):
            ids = torch.tensor([[row.ids[place] for place in places]])
            alone = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[0]
            torch.testing.assert_close(logits[number, places], alone)
            # The label of a token is what follows it in the text alone.
            for place, token in zip(places, [*ids[0, 1:].tolist(), -100], strict=True):
                if batch["labels"][number, place] != -100:
                    assert batch["labels"][number, place] == token
            learnt_in_row += [place - 1 for place in learnt]
            compared += 1
        labelled = (batch["labels"][number] != -100).nonzero().squeeze(1).tolist()
        assert labelled == learnt_in_row
    assert compared > 15
    assert logits.isfinite().all()


def test_an_empty_trunk_is_an_ordinary_row(tokenizer: PreTrainedTokenizerFast) -> None:
    row = Row()
    _add_branch(row, tokenizer, [5, 6, 7], "a", start=0, number=1)
    size = len(row.ids)
    mask = collate([row])["mask"][0, 0]
    assert torch.equal(mask, torch.ones(size, size).tril().bool())


def test_the_policy_reads_the_tokens_it_was_trained_on(
    tokenizer: PreTrainedTokenizerFast, model: Qwen2ForCausalLM, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, loaded = load_policy(str(tmp_path))
    assert len(loaded) == len(tokenizer)
    for problem in PROBLEMS[:20]:
        text = problem.text + "\n\n" + solve_whole(problem, random.Random(0))
        assert loaded.encode(text) == tokenizer.encode(text)


def test_digits_are_single_tokens_and_texts_survive(tokenizer: PreTrainedTokenizerFast) -> None:
    for problem in PROBLEMS[:20]:
        for text in (problem.text, solve_whole(problem, random.Random(0))):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.decode(ids) == text
            pieces = [tokenizer.decode([token]) for token in ids]
            assert not [piece for piece in pieces if re.search(r"\d", piece) and len(piece) > 2]
            assert not [piece for piece in pieces if re.search(r"\d.*\d", piece)]


def test_any_loader_reads_the_same_tokens(tmp_path: Path) -> None:
    """Beside a Qwen2 config AutoTokenizer builds Qwen2's tokenizer, not the saved one."""
    tokenizer = train_tokenizer("Say one step.", "Say all.")
    tokenizer.save_pretrained(tmp_path)
    Qwen2Config(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert type(other) is not type(tokenizer)
    assert (len(other), other.eos_token_id) == (len(tokenizer), tokenizer.eos_token_id)
    rng = random.Random(0)
    for problem in PROBLEMS:
        text = f"<|user|>{problem.text}\n\n<|assistant|>{solve_whole(problem, rng)}<|im_end|>"
        assert other(text).input_ids == tokenizer(text).input_ids
