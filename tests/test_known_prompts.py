"""Prompts that go on where earlier ones ended are read from there on, and nothing else changes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from sampling import (
    VOCABULARY,
    build,
    fixture_decoder,  # noqa: F401
    gemma2,
    greedy,
    ids_of,
    llama,
    local,
    qwen2,
    sampled,
)
from transformers import PreTrainedModel

from srl.models.positions import may_read_on
from srl.models.prefix_tree import PrefixTree, Row
from srl.rollout.known_prompts import KnownPrompts
from srl.rollout.samplers import Prompt, SamplingParams, complete


def rounds(seed: int) -> list[list[list[int]]]:
    """Prompts of several rounds: most begin with one of the round before, some are new, some asked
    again as they are, some end inside of an earlier one."""
    rng = random.Random(seed)

    def fresh(most: int) -> list[int]:
        return [rng.randint(1, VOCABULARY - 1) for _ in range(rng.randint(1, most))]

    found = [[fresh(9) for _ in range(6)]]
    for _ in range(3):
        before = found[-1]
        changed = [prompt[: rng.randint(1, len(prompt))] + fresh(3) for prompt in before[:3]]
        ended = [prompt[: rng.randint(1, len(prompt))] for prompt in before[3:5]]
        found.append([*changed, *ended, *before[4:5], fresh(9)])
    return found


@contextmanager
def tokens_read(model: PreTrainedModel) -> Iterator[list[int]]:
    """How many tokens each forward of the model reads."""
    counts: list[int] = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, given: counts.append(given[0].numel()))
    try:
        yield counts
    finally:
        hook.remove()


@pytest.mark.parametrize("make", [qwen2, llama, gemma2])
@pytest.mark.parametrize("budget", [10_000, 90])  # all at once; a few at a time, little room
@pytest.mark.parametrize("params", [greedy(6, 3), sampled(seed=1)], ids=["greedy", "sampled"])
def test_what_is_remembered_changes_no_completion(
    make: Callable[[], PreTrainedModel], budget: int, params: SamplingParams
) -> None:
    model = build(make)
    for seed in range(3):
        remembers, forgets = local(model, budget), local(model, budget)
        with remembers.remembering():
            for number, prompts in enumerate(rounds(seed)):
                asked = [Prompt(ids, 100 * number + k) for k, ids in enumerate(prompts)]
                found = complete(remembers, asked, 2, params)
                expected = complete(forgets, asked, 2, params)
                assert ids_of(found) == ids_of(expected)
                for group, other in zip(found, expected, strict=True):
                    for one, same in zip(group, other, strict=True):
                        assert one.log_probs == pytest.approx(same.log_probs, abs=1e-4)


def test_prompts_are_read_from_where_they_leave_earlier_ones(decoder: str) -> None:
    model = build()
    long = list(range(1, 13))
    first, second = [[*long, 14, 15], [*long, 16]], [[*long, 14, 15, 17, 18], [*long, 16], [2, 3]]
    one = SamplingParams(1, temperature=0)
    alone = local(model)
    complete(alone, [Prompt([1], 0)], 1, one)  # how the model is sampled is found at first use
    with tokens_read(model) as read, alone.remembering():
        complete(alone, [Prompt(ids, k) for k, ids in enumerate(first)], 1, one)
        complete(alone, [Prompt(ids, k) for k, ids in enumerate(second)], 1, one)
    if decoder == "shared":
        # Two new tokens, the last of a prompt that was read whole (its logits), and a new prompt.
        assert read == [12 + 2 + 1, 2 + 1 + 2]
    else:
        assert read == [2 * 14, 3 * 16]
    with tokens_read(model) as read:
        complete(alone, [Prompt(ids, k) for k, ids in enumerate(second)], 1, one)
    assert read == [12 + 4 + 1 + 2 if decoder == "shared" else 3 * 16]  # forgotten


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    rows: list[Row] = [(list(range(10)), ()), ([0, 1, 2, 20, 21], ())]
    tree = PrefixTree.of(rows)
    seen = {0: (torch.randn(1, len(tree), 4), torch.randn(1, len(tree), 4))}
    known = KnownPrompts(room=11)
    known.add(tree, seen)
    known.add(tree, seen)
    assert len(known) == 11
    places = known.places(tree)
    assert [place < 0 for place in places] == [node == 11 for node in range(12)]
    keys, values = known.read(0, torch.tensor(places[:11]))
    assert torch.equal(keys, seen[0][0][:, :11])
    assert torch.equal(values, seen[0][1][:, :11])
    # What comes behind a token that is not known is not known either, though it looks like it.
    assert all(place < 0 for place in known.places(PrefixTree.of([([7, 8, 9], ())])))


@pytest.mark.parametrize(
    ("rope", "may"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, True),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, False),
        ({"full_attention": {"rope_type": "longrope"}, "sliding_attention": {}}, False),
    ],
)
def test_keys_that_change_with_the_length_are_not_remembered(
    rope: dict[str, object], may: bool
) -> None:
    model = build()
    model.config.rope_parameters = rope
    assert may_read_on(model) == may
    alone = local(model)
    with alone.remembering():
        assert (alone._known is not None) == may
