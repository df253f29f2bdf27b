"""Sampling against `model.generate` and against the softmax of the model's own logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampling import (
    PAD,
    PROMPTS,
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
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from srl.errors import DivergedError, UsageError
from srl.models.prefix_tree import PrefixTree
from srl.models.tree_attention import How
from srl.rollout import decoding, samplers
from srl.rollout.choice import Way
from srl.rollout.decoding import CachedDecoder
from srl.rollout.samplers import (
    Completion,
    LocalSampler,
    Prompt,
    SamplingParams,
    _chunks,
    complete,
    key_of,
)
from srl.rollout.uniforms import uniforms


def sampler(
    model: PreTrainedModel, token_budget: int = 10_000
) -> Callable[[Sequence[Sequence[int]], int, SamplingParams], list[list[Completion]]]:
    """Prompts in, all their completions out."""

    def sample(
        prompts: Sequence[Sequence[int]], num_samples: int, params: SamplingParams
    ) -> list[list[Completion]]:
        asked = [Prompt(ids, key) for key, ids in enumerate(prompts)]
        return complete(local(model, token_budget), asked, num_samples, params)

    return sample


def cut(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """A free-running completion, as far as its first stop token."""
    places = [place for place, token in enumerate(ids) if token in stop_ids]
    return list(ids[: places[0] + 1]) if places else list(ids)


@pytest.mark.parametrize("make", [qwen2, llama, gemma2])
def test_greedy_completions_equal_generate(make: Callable[[], PreTrainedModel]) -> None:
    model = build(make)
    free = [group[0].ids for group in sampler(model)(PROMPTS, 1, greedy(16))]
    # Tokens that the rows reach at different times, so that rows leave the batch one by one
    stops = sorted({free[0][2], free[1][5], free[2][9]})
    found = sampler(model)(PROMPTS, 3, greedy(16, *stops))
    for prompt, row, group in zip(PROMPTS, free, found, strict=True):
        alone = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=stops,
            pad_token_id=PAD,
        )[0, len(prompt) :].tolist()
        assert alone == cut(row, stops)
        assert group == [Completion(alone, alone[-1] not in stops)] * 3
    assert len({len(group[0].ids) for group in found}) > 2


@pytest.mark.parametrize("token_budget", [1, 60, 200, 10_000])
@pytest.mark.parametrize(("worth_a_copy", "look_every"), [(0.0, 1), (0.75, 4), (1.0, 1)])
def test_memory_settings_change_nothing(
    token_budget: int, worth_a_copy: float, look_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    expected = sampler(model)(PROMPTS, 2, greedy(10, 3, 9, 20))
    monkeypatch.setattr(decoding, "_WORTH_A_COPY", worth_a_copy)
    monkeypatch.setattr(decoding, "_ROOM", 3)
    monkeypatch.setitem(samplers._LOOK_EVERY, "cpu", look_every)
    assert sampler(model, token_budget)(PROMPTS, 2, greedy(10, 3, 9, 20)) == expected


def test_rows_leave_groups_of_which_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of a group end at different times; what is left must go on as if alone."""
    monkeypatch.setattr(decoding, "_WORTH_A_COPY", 1.0)
    model = build(lambda: qwen2(initializer_range=0.4))
    drawn = sampler(model)(PROMPTS, 20, SamplingParams(12, stop_ids=frozenset(range(6)), seed=3))
    assert len({len(completion.ids) for group in drawn for completion in group}) >= 6
    surprise = variance = 0.0
    for prompt, group in zip(PROMPTS, drawn, strict=True):
        for completion in group:
            ids = torch.tensor([*prompt, *completion.ids])
            with torch.no_grad():
                log_probs = model(ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            probs = log_probs.exp()
            expected = (probs * log_probs).sum(-1)
            drawn_at = log_probs.gather(1, ids[len(prompt) :, None])[:, 0]
            surprise += float((drawn_at - expected).sum())
            variance += float(((probs * log_probs**2).sum(-1) - expected**2).sum())
    # Tokens drawn from another row's distribution would be far less likely than they should be.
    assert abs(surprise) < 4 * variance**0.5


@pytest.mark.parametrize("make", [qwen2, llama, gemma2])
def test_what_all_prompts_begin_with_may_be_kept_once(
    make: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = [5, 6, 7, 8, 9, 10, 11, 12]
    asked = [[*start, *prompt] for prompt in PROMPTS]
    model = build(make)
    for prompts in (asked, [start, *asked], [start, start]):
        free = sampler(model)(prompts, 1, greedy(16))
        stops = sorted({free[0][0].ids[2], free[1][0].ids[5]})  # rows leave the batch meanwhile
        warm = SamplingParams(16, seed=3, stop_ids=frozenset(stops))
        expected = [sampler(model)(prompts, 3, how) for how in (greedy(16, *stops), warm)]
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_WORTH_SHARING", len(start))
            assert decoding._same_at_start(prompts) == len(start)
            found = [sampler(model)(prompts, 3, how) for how in (greedy(16, *stops), warm)]
        for groups, others in zip(expected, found, strict=True):
            for group, other in zip(groups, others, strict=True):
                assert [one.ids for one in group] == [one.ids for one in other]
                for one, alike in zip(group, other, strict=True):
                    assert one.log_probs == pytest.approx(alike.log_probs, abs=1e-5)


def test_nested_prompts_are_read_once(decoder: str) -> None:
    whole = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    prompts = [whole[:4], whole[:7], whole, [9, 9]]
    model = build()
    expected = [sampler(model)([prompt], 2, greedy(5))[0] for prompt in prompts]
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _module, args, _output: read.append(args[0].numel())
    )
    assert sampler(model)(prompts, 2, greedy(5)) == expected
    hook.remove()
    assert read[0] == (len(whole) + 2 if decoder == "shared" else len(whole) * len(prompts))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 8),
    st.integers(1, 40),
    st.integers(1, 2000),
    st.booleans(),
    st.booleans(),
)
def test_chunks_stay_within_the_budget(
    lengths: list[int],
    num_samples: int,
    max_new_tokens: int,
    budget: int,
    shared: bool,
    one_length: bool,
) -> None:
    way = Way(lambda m, pad_id, _: CachedDecoder(m, pad_id), shared=shared, one_length=one_length)
    chunks = list(_chunks(lengths, num_samples, max_new_tokens, budget, way))
    assert sorted(index for chunk in chunks for index in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        longest = max(lengths[index] for index in chunk)
        read = longest * (1 if shared else num_samples)
        assert len(chunk) == 1 or len(chunk) * (read + num_samples * max_new_tokens) <= budget
        assert not one_length or {lengths[index] for index in chunk} == {longest}


def test_every_stop_token_ends_a_completion() -> None:
    model = build()
    free = sampler(model)([PROMPTS[2]], 1, greedy(12))[0][0]
    assert free.truncated
    assert len(free.ids) == 12
    for place, stop in enumerate(free.ids):
        ended = sampler(model)([PROMPTS[2]], 1, greedy(12, stop, VOCABULARY - 1))[0][0]
        assert ended.ids == cut(free.ids, [stop, VOCABULARY - 1])
        assert not ended.truncated
        # A stop token in the very last place that is left ends it too.
        first = free.ids.index(stop) + 1
        assert not sampler(model)([PROMPTS[2]], 1, greedy(first, stop))[0][0].truncated, place


def test_completions_are_given_as_soon_as_a_prompt_has_all_of_them() -> None:
    model = build()
    free = [group[0].ids for group in sampler(model)(PROMPTS, 1, greedy(16))]
    stops = sorted({free[0][2], free[1][5], free[2][9]})
    found = sampler(model)(PROMPTS, 2, greedy(16, *stops))
    read: list[int] = []
    hook = model.register_forward_hook(lambda *_: read.append(1))
    asked = [Prompt(ids, 0) for ids in PROMPTS]
    ready = [
        (index, group, len(read))
        for index, group in local(model).sample(asked, 2, greedy(16, *stops))
    ]
    hook.remove()
    assert sorted(index for index, _, _ in ready) == list(range(len(PROMPTS)))
    # After as many forward passes as the completion has tokens, and not after the longest one's.
    assert all(group == found[index] for index, group, _ in ready)
    assert all(passes == len(group[0].ids) for _, group, passes in ready)
    assert len({passes for _, _, passes in ready}) > 2


def test_logits_that_are_no_numbers_are_not_sampled_from() -> None:
    model = build()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = torch.nan
    with pytest.raises(DivergedError, match=r"not finite.*a smaller learning_rate"):
        sampler(model)(PROMPTS, 2, SamplingParams(4))


def test_prompts_are_shared_unless_told_otherwise(decoder: str) -> None:
    read: list[int] = []
    model = build()
    model.get_input_embeddings().register_forward_hook(
        lambda _module, args, _output: read.append(args[0].numel())
    )
    for share, tokens in ((True, 4 if decoder == "shared" else 8), (False, 8)):
        unshared = LocalSampler(model, pad_id=PAD, token_budget=99, share=share)
        complete(unshared, [Prompt([1, 2, 3, 4], 0), Prompt([1, 2, 3], 1)], 1, greedy(1))
        assert read.pop() == tokens


def test_no_prompts_give_no_completions() -> None:
    assert sampler(build())([], 4, greedy(3)) == []


def next_token_probs(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].float().softmax(-1)


def assert_drawn_from(tokens: Sequence[int], probs: Tensor) -> None:
    """Pearson's statistic, rare tokens taken together, five standard deviations of it allowed."""
    counts = Counter(tokens)
    assert all(probs[token] > 0 for token in counts), "a token that was switched off"
    expected = [float(p) * len(tokens) for p in probs]
    cells = [(counts[token], e) for token, e in enumerate(expected) if e >= 5]
    rare = [(counts[token], e) for token, e in enumerate(expected) if 0 < e < 5]
    if sum(e for _, e in rare) >= 1:
        cells.append((sum(c for c, _ in rare), sum(e for _, e in rare)))
    assert len(cells) >= 2, "the distribution is too narrow to test anything"
    freedom = len(cells) - 1
    statistic = sum((count - e) ** 2 / e for count, e in cells)
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, (statistic, freedom)


def first_tokens(model: PreTrainedModel, n: int, **options: float | int) -> list[int]:
    params = SamplingParams(1, seed=1, **options)  # type: ignore[arg-type]
    return [completion.ids[0] for completion in sampler(model, 10**6)([PROMPTS[0]], n, params)[0]]


def test_samples_follow_the_models_own_distribution() -> None:
    model = build(lambda: qwen2(initializer_range=0.2))
    # What `generate` would obey, and what would make the samples off-policy
    model.generation_config.update(top_k=1, top_p=0.1, repetition_penalty=9.0, temperature=0.1)
    drawn = sampler(model, 10**6)([PROMPTS[3], PROMPTS[0]], 4000, SamplingParams(2, seed=1))
    for prompt, group in zip((PROMPTS[3], PROMPTS[0]), drawn, strict=True):
        probs = next_token_probs(model, prompt)
        assert_drawn_from([completion.ids[0] for completion in group], probs)
        likely = int(probs.argmax())
        second = [c.ids[1] for c in group if c.ids[0] == likely]
        assert len(second) > 100
        assert_drawn_from(second, next_token_probs(model, [*prompt, likely]))


def test_sampling_options() -> None:
    model = build(lambda: qwen2(initializer_range=0.2))
    probs = next_token_probs(model, PROMPTS[0])
    for temperature in (0.5, 2.0):
        warm = probs.pow(1 / temperature)
        assert_drawn_from(first_tokens(model, 4000, temperature=temperature), warm / warm.sum())

    order = probs.argsort(descending=True)
    before = probs[order].cumsum(0) - probs[order]  # mass of all tokens that are likelier
    kept = {
        "top_k": order[:3],
        "top_p": order[before < 0.6],
        "min_p": order[probs[order] >= 0.4 * probs.max()],
    }
    for (name, tokens), value in zip(kept.items(), (3, 0.6, 0.4), strict=True):
        assert 2 <= len(tokens) < VOCABULARY
        expected = torch.zeros_like(probs).index_copy(0, tokens, probs[tokens])
        assert_drawn_from(first_tokens(model, 4000, **{name: value}), expected / expected.sum())


def test_scores_of_the_memory_are_as_exact_as_in_the_update() -> None:
    """Keys with a large bias in common, as Qwen 2.5 has: in bf16 scores would lose what differs."""
    torch.manual_seed(0)
    tree = PrefixTree.of([(list(range(1, 33)), ())])
    keys, values = torch.randn(2, 1, 32, 16).bfloat16()  # [H_kv, N, D] each
    keys = (keys + 40).bfloat16()
    q, k, v = torch.randn(3, 1, 1, 1, 16).bfloat16()
    q, k = (q + 1).bfloat16(), (k + 40).bfloat16()
    memory = decoding._Memory(tree, {0: (keys, values)}, 1, torch.device("cpu"))
    memory.advance()
    found = memory.attend(0, q, k, v, How(16**-0.5))[0, 0, 0]
    every_key, every_value = (
        torch.cat([old, new[0]], dim=1)[0].double() for old, new in ((keys, k), (values, v))
    )
    expected = (every_key @ q[0, 0, 0].double() / 4).softmax(-1) @ every_value
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() / expected.norm() < 0.01  # .1 with scores in bf16


def test_the_seed_decides_and_nothing_else() -> None:
    model = build()
    drawn = sampler(model)(PROMPTS, 4, sampled(seed=1))
    torch.manual_seed(5)
    assert ids_of(sampler(model)(PROMPTS, 4, sampled(seed=1))) == ids_of(drawn)
    assert ids_of(sampler(model)(PROMPTS, 4, sampled(seed=2))) != ids_of(drawn)
    state = torch.get_rng_state()
    sampler(model)(PROMPTS, 4, sampled())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_sampled_does_not_depend_on_what_is_sampled_beside_it() -> None:
    """Neither on the other rows and their order, nor on memory, nor on sharing prompts."""
    model = build(lambda: qwen2(initializer_range=0.3))
    nested = [*PROMPTS, PROMPTS[2][:5], PROMPTS[2][:3]]
    asked = [Prompt(ids, key=key_of("place", n)) for n, ids in enumerate(nested)]
    expected = complete(local(model), asked, 6, sampled())
    assert len({len(one.ids) for group in expected for one in group}) > 3
    assert len({tuple(one.ids) for group in expected for one in group}) > 20

    for budget in (1, 90, 300):
        assert ids_of(complete(local(model, budget), asked, 6, sampled())) == ids_of(expected)
    order = [4, 0, 6, 2, 5, 1, 3]
    again = complete(local(model), [asked[i] for i in order], 6, sampled())
    assert ids_of(again) == ids_of([expected[i] for i in order])
    unshared = LocalSampler(model, pad_id=PAD, token_budget=10_000, share=False)
    assert ids_of(complete(unshared, asked, 6, sampled())) == ids_of(expected)
    # In parts, as where memory holds a few samples of a prompt at a time
    parts = [complete(local(model), asked, 2, sampled(), first_sample=n) for n in (0, 2, 4)]
    together = [[one for group in groups for one in group] for groups in zip(*parts, strict=True)]
    assert ids_of(together) == ids_of(expected)


def test_equal_prompts_at_other_places_are_sampled_apart() -> None:
    asked = [Prompt(PROMPTS[0], key) for key in (1, 2)]
    one, two = complete(local(build()), asked, 4, sampled())
    assert [c.ids for c in one] != [c.ids for c in two]


def test_log_probs_are_those_of_the_plain_forward() -> None:
    """At the sampling temperature, whatever top_p and top_k leave of the distribution."""
    model = build()
    for options in ({}, {"top_p": 0.7}, {"top_k": 4}, {"min_p": 0.05}):
        params = SamplingParams(9, temperature=0.8, stop_ids=frozenset({3}), **options)  # type: ignore[arg-type]
        drawn = sampler(model)(PROMPTS, 3, params)
        for prompt, group in zip(PROMPTS, drawn, strict=True):
            for completion in group:
                ids = torch.tensor([*prompt, *completion.ids])
                with torch.no_grad():
                    logits = model(ids[None]).logits[0, len(prompt) - 1 : -1] / 0.8
                expected = logits.log_softmax(-1).gather(1, ids[len(prompt) :, None])[:, 0]
                found = torch.tensor(completion.log_probs)
                torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert sampler(model)(PROMPTS, 1, greedy(4))[0][0].log_probs == []


def test_the_numbers_are_pinned_and_uniform() -> None:
    """A change of these would silently change every seeded run."""
    first = uniforms(seed=7, key=11, sample=2, first=0, count=8)
    assert [round(float(number), 6) for number in first[:3]] == [0.178964, 0.226585, 0.543009]
    assert np.array_equal(uniforms(7, 11, 2, 4, 4), first[4:])
    places = [(key, sample) for key in range(40) for sample in (0, 1)]
    drawn = np.concatenate([uniforms(0, *place, first=0, count=64) for place in places])
    assert 0 <= drawn.min() < drawn.max() < 1
    counts = np.bincount((drawn * 16).astype(int), minlength=16)
    expected = len(drawn) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 15 + 5 * 30**0.5  # Pearson, 15 degrees
    assert len(np.unique(drawn)) == len(drawn)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    expected = sampler(build())(PROMPTS, 1, greedy(8))
    model = build(lambda: qwen2(attention_dropout=0.9))
    model.train(training)
    assert sampler(model)(PROMPTS, 1, greedy(8)) == expected  # no dropout
    assert model.training is training
    with pytest.raises(UsageError, match="the id 25, and the model has 24 embeddings"):
        sampler(model)([[VOCABULARY + 1]], 1, greedy(2))

    def fail(*_: object) -> None:
        raise IndexError

    hook = model.lm_head.register_forward_hook(fail)
    with pytest.raises(IndexError):
        sampler(model)(PROMPTS, 1, greedy(2))
    hook.remove()
    assert model.training is training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_full_determinism_is_left_as_it_was() -> None:
    model = build()
    expected = ids_of(sampler(model)(PROMPTS, 2, sampled()))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert ids_of(sampler(model)(PROMPTS, 2, sampled())) == expected
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
