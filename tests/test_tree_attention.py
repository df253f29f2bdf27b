"""Attention over prefix trees: held against a dense mask and against rows; who is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
import torch._dynamo.testing
import transformers
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Qwen2ForCausalLM

from srl import tree_attention as attention
from srl import trl_parts
from srl.prefix_tree import PrefixTree, Row
from srl.tree_attention import How, TreePlan, tree_attention
from srl.tree_models import attending_over_trees, refusal
from srl.trl_parts import CompletionScores, completion_log_probs

# ---- against a dense mask -----------------------------------------------------------------------


def forest(seed: int) -> PrefixTree:
    """Rows that branch, nest and end inside one another; long enough for trunks on trunks."""
    rng = random.Random(seed)

    def text(length: int) -> list[int]:
        return [rng.randrange(2 + seed % 3) for _ in range(length)]

    trunk = text((0, 20, 80)[seed % 3])
    rows: list[Row] = []
    for _ in range(rng.randrange(1, 7)):
        prompt = trunk[: rng.randrange(len(trunk) + 1)] + text(rng.choice([1, 3, 50]))
        rows += [(prompt, text(rng.choice([0, 2, 40]))) for _ in range(rng.randrange(1, 4))]
    return PrefixTree.of(rows)


def ancestors(tree: PrefixTree) -> list[list[int]]:
    """Of every node those on its path, its own number last."""
    found: list[list[int]] = []
    for node, parent in enumerate(tree.parents):
        found.append([*(found[parent] if parent >= 0 else []), node])
    return found


def random_qkv(nodes: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q [N, 4, 8], k and v [N, kv_heads, 8]."""
    generator = torch.Generator().manual_seed(nodes)
    return [
        torch.randn(nodes, heads, 8, generator=generator, dtype=dtype).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]


def dense(q: Tensor, k: Tensor, v: Tensor, tree: PrefixTree, how: How) -> Tensor:
    """The softmax over one [N, N] mask, which is made from parents alone."""
    seen = torch.zeros(len(tree), len(tree), dtype=torch.bool)
    for node, path in enumerate(ancestors(tree)):
        seen[node, path[-how.window :] if how.window else path] = True
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * how.scale
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, v)


HOWS = {
    "plain": How(0.35),
    "softcap": How(0.35, softcap=1.5),
    "window": How(0.35, window=7),
    "both": How(0.35, softcap=1.5, window=30),
}
Attend = Callable[[Tensor, Tensor, Tensor, TreePlan, How], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, how: How) -> Tensor:
    assert how == How(how.scale)
    return attention._Fused.apply(q, k, v, plan, how.scale)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize(
    ("attend", "how"),
    [
        (fused, "plain"),
        *((attention._pieces, how) for how in HOWS),
        *((tree_attention, how) for how in ("plain", "both")),
    ],
)
def test_outputs_and_gradients_are_those_of_a_dense_mask(
    attend: Attend, how: str, kv_heads: int
) -> None:
    for seed in (1, 2, 4, 6, 7):
        tree = forest(seed)
        q, k, v = random_qkv(len(tree), kv_heads)
        ours = attend(q, k, v, TreePlan.of(tree, "cpu"), HOWS[how])
        theirs = dense(q, k, v, tree, HOWS[how])
        assert (ours - theirs).abs().max() < 1e-12
        weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(seed))
        gradients = [torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (ours, theirs)]
        for our, their in zip(*gradients, strict=True):
            assert (our - their).abs().max() < 1e-11


UNCOMPILED = {"flex_attention": flex_attention, "create_block_mask": create_block_mask}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_given_the_same_mask(how: str) -> None:
    """Uncompiled. A block is 128 nodes wide: one tree has one of them, the other three."""
    flex = partial(attention._flex, compiled=UNCOMPILED.__getitem__)
    for seed, blocks in ((8, 1), (7, 3)):
        tree = forest(seed)
        assert -(-len(tree) // 128) == blocks
        q, k, v = (x.detach() for x in random_qkv(len(tree), 2))
        ours = flex(q, k, v, TreePlan.of(tree, "cpu"), HOWS[how])
        assert (ours - dense(q, k, v, tree, HOWS[how])).abs().max() < 1e-12


@pytest.mark.parametrize("how", HOWS)
def test_flex_attention_compiles_as_a_whole(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the graph, which is what caps and windows can break; a GPU makes code of it. Other
    lengths do not compile it again."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)  # gradients on a CPU
    graphs = torch._dynamo.testing.CompileCounter()
    whole = {
        name: torch.compile(function, backend=graphs, dynamic=True, fullgraph=True)
        for name, function in UNCOMPILED.items()
    }
    for seed in (7, 14, 1, 24):  # of 2 or 3 blocks; a single one is a case of its own
        tree = forest(seed)
        q, k, v = random_qkv(len(tree), 2)
        plan = TreePlan.of(tree, "cpu")
        ours = attention._flex(q, k, v, plan, HOWS[how], compiled=whole.__getitem__)
        assert (ours - dense(q, k, v, tree, HOWS[how])).abs().max() < 1e-12
        if seed == 7:
            first = graphs.frame_count
    assert graphs.frame_count == first


@pytest.mark.parametrize(
    ("factor", "works"), [(1.0, True), (1.01, False), (float("nan"), False), (None, False)]
)
def test_flex_attention_is_tried_before_it_is_trusted(
    factor: float | None, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is first needed: perhaps inside a checkpointed layer, which runs a second time."""

    def flex(*args: object) -> Tensor:
        if factor is None:
            raise RuntimeError("no compiler")
        return attention._pieces(*args) * factor  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "_flex", flex)
    attention._flex_works.cache_clear()
    answers = []

    def layer(x: Tensor) -> Tensor:
        kind = ((2, 8), (1, 8), torch.float32, torch.device("cpu"), How(0.3))
        answers.append(attention._flex_works(*kind))
        return (x * x).sin()

    x = torch.ones(3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert answers == [works, works]
    attention._flex_works.cache_clear()


def test_keys_and_values_may_differ_in_width() -> None:
    tree = forest(5)
    q, k, v = random_qkv(len(tree), 2)
    v = v[..., :5]
    ours = tree_attention(q, k, v, TreePlan.of(tree, "cpu"), HOWS["plain"])
    assert (ours - dense(q, k, v, tree, HOWS["plain"])).abs().max() < 1e-12


def test_a_window_as_long_as_the_longest_row_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the slow way was taken")

    tree = forest(2)
    plan = TreePlan.of(tree, "cpu")
    q, k, v = random_qkv(len(tree), 2)
    expected = tree_attention(q, k, v, plan, How(0.35))
    monkeypatch.setattr(attention, "_pieces", fail)
    assert tree_attention(q, k, v, plan, How(0.35, window=plan.longest)).equal(expected)
    with pytest.raises(AssertionError, match="slow way"):
        tree_attention(q, k, v, plan, How(0.35, window=plan.longest - 1))


@pytest.mark.parametrize("attend", [fused, attention._pieces])
def test_padding_makes_no_nan_even_with_huge_scores(attend: Attend) -> None:
    """Padding repeats a stretch's first node: its scores may lie far above that node's sum."""
    padded = 0
    for seed in range(12):
        tree = forest(seed)
        plan = TreePlan.of(tree, "cpu")
        padded += any(bool(own.padding.any()) for own in plan.selves)
        exact = random_qkv(len(tree), 2)
        q, k, v = (x.detach().float().requires_grad_() for x in exact)
        ours = attend(q * 1e3, k, v, plan, How(1.0))
        theirs = dense(exact[0] * 1e3, exact[1], exact[2], tree, How(1.0))
        # Nearly a choice of one node: a tie within float32's error of the scores is no error.
        assert ((ours - theirs).abs() > 1e-2).double().mean() < 1e-2
        gradients = torch.autograd.grad(ours.square().sum(), (q, k, v))
        assert all(bool(x.isfinite().all()) for x in (ours, *gradients))
    assert padded >= 4


@pytest.mark.parametrize("seed", range(12))
def test_the_pieces_of_a_node_are_its_ancestors_once_each(seed: int) -> None:
    tree = forest(seed)
    plan = TreePlan.of(tree, "cpu")
    seen: dict[int, list[int]] = {}
    for own in plan.selves:
        R, L = own.nodes.shape
        slots = list(range(R * L)) if own.own is None else own.own.tolist()
        for slot, node in zip(slots, own.own_nodes.tolist(), strict=True):
            assert own.nodes.flatten()[slot] == node
            assert not own.padding.flatten()[slot]
            assert node not in seen
            seen[node] = own.nodes[slot // L, : slot % L + 1].tolist()
    for prefix in plan.prefixes:
        assert 0 < prefix.cut <= len(plan.paths[prefix.trunk])
        nodes = prefix.nodes.tolist()
        before = plan.paths[prefix.trunk][: prefix.cut].tolist()
        for node in nodes:
            assert seen[node][0] not in before  # so no node has two prefix pieces
            seen[node] = before + seen[node]
    assert [seen[node] for node in range(len(tree))] == ancestors(tree)
    assert plan.longest == max(map(len, tree.paths))


# ---- model families: a tree against repeated rows -----------------------------------------------

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # attention and logits far enough from uniform to show errors
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

# Class without its ending, and what its config says beyond the sizes. The windows are shorter than
# the rows, and the soft-cap is low enough to bite.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "qwen2": ("Qwen2", {}),
    "qwen2 with a window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 10}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 16, "sliding_window": 10, "attn_logit_softcapping": 1.0},
    ),
    "gemma3": ("Gemma3", {"head_dim": 16, "sliding_window": 10}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 10}),
    "qwen3moe": ("Qwen3Moe", {"head_dim": 16, "moe_intermediate_size": 32, **EXPERTS}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "olmoe": ("Olmoe", EXPERTS),
}


def built(name: str, **changes: object) -> PreTrainedModel:
    family, more = FAMILIES[name]
    config = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    settings = getattr(transformers, config)(**{**SIZES, **more, **changes})
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(settings)


def nested_rows(seed: int = 0) -> list[Row]:
    """Prompts of three steps of one trajectory with four completions each, and some odd ones."""
    rng = random.Random(seed)

    def text(length: int) -> list[int]:
        return [rng.randrange(4, 60) for _ in range(length)]

    whole = text(90)
    rows: list[Row] = [
        (whole[:n], text(rng.randrange(1, 30))) for n in (40, 60, 90) for _ in "abcd"
    ]
    return [
        *rows,
        (whole[:60], whole[60:75]),  # a completion that is another row's prompt
        (whole[:40], []),
        rows[2],
        ([*whole[:20], 7, 7], [5, 5, 5]),
        ([3], text(4)),
    ]


ROWS = nested_rows()


def attending(model: nn.Module, tree: bool) -> AbstractContextManager[None]:
    return attending_over_trees(model) if tree else nullcontext()


def scored(
    model: nn.Module, rows: Sequence[Row], *, tree: bool, with_entropy: bool = False
) -> CompletionScores:
    return completion_log_probs(
        model,
        rows,
        pad_id=0,
        temperature=0.9,
        device="cpu",
        with_entropy=with_entropy,
        tree=tree,
    )


def gradient(
    model: nn.Module, rows: Sequence[Row], *, tree: bool, half: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the gradient of a sum in which every token has its own weight."""
    model.zero_grad()
    with attending(model, tree):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            log_probs = scored(model, rows, tree=tree).log_probs
        generator = torch.Generator().manual_seed(1)
        (log_probs * torch.randn(log_probs.shape, generator=generator)).sum().backward()
    trained = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return log_probs.detach(), torch.cat(trained)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def compare(model: nn.Module) -> None:
    """A tree and repeated rows give the same in the model's present state."""
    before = model.config._attn_implementation  # type: ignore[union-attr]
    expected, expected_gradient = gradient(model, ROWS, tree=False)
    log_probs, its_gradient = gradient(model, ROWS, tree=True)
    assert model.config._attn_implementation == before  # type: ignore[union-attr]
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)
    assert relative_error(its_gradient, expected_gradient) <= 1e-5
    assert expected.min() < -6  # a uniform guess is -4.1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tree_gives_what_repeated_rows_give(name: str) -> None:
    model = built(name).train()
    assert refusal(model) is None
    assert model.training
    compare(model)


def test_the_fused_head_reads_the_same_off_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl_parts, "_CPU_LOGITS_LIMIT", 0)
    compare(built("qwen2", tie_word_embeddings=True))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    model = built("qwen2 with a window").train()
    plain = gradient(model, ROWS, tree=True)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    checkpointed = gradient(model, ROWS, tree=True)
    for ours, theirs in zip(checkpointed, plain, strict=True):
        assert relative_error(ours, theirs) <= 1e-6
    compare(model)


@pytest.mark.parametrize("family", ["qwen2", "qwen2 with a window", "gemma2"])
def test_under_bf16_a_tree_is_as_close_to_float32_as_rows_are(family: str) -> None:
    """The roundings differ, so one model says little; over several the errors are alike."""
    errors = {True: 0.0, False: 0.0}
    for seed in range(4):
        rows = nested_rows(seed)
        model = built(family)
        _, exact = gradient(model, rows, tree=False)
        for tree in errors:
            log_probs, rounded = gradient(model, rows, tree=tree, half=True)
            assert log_probs.dtype == torch.float32
            errors[tree] += relative_error(rounded, exact) / 4
    assert 1e-3 < errors[False] < 0.1
    assert errors[True] <= 1.25 * errors[False]


def test_a_window_under_float16_gives_numbers() -> None:
    model = built("qwen2 with a window")
    with attending_over_trees(model), torch.autocast("cpu", torch.float16):
        assert scored(model, ROWS, tree=True).log_probs.isfinite().all()


def test_entropy_is_the_same_over_a_tree() -> None:
    model = built("gemma2")
    expected = scored(model, ROWS, tree=False, with_entropy=True)
    with attending_over_trees(model):
        over_tree = scored(model, ROWS, tree=True, with_entropy=True)
        assert scored(model, ROWS, tree=True).entropy is None
    assert expected.entropy is not None
    assert over_tree.entropy is not None
    assert not over_tree.entropy.requires_grad
    torch.testing.assert_close(over_tree.entropy, expected.entropy, rtol=1e-5, atol=1e-5)
    assert over_tree.mask.equal(expected.mask)
    assert not over_tree.log_probs[~over_tree.mask].any()


def test_rows_without_any_completion_give_an_empty_result() -> None:
    model = built("qwen2")
    with attending_over_trees(model):
        result = scored(model, [([3, 4], []), ([3], [])], tree=True)
    assert result.log_probs.shape == result.mask.shape == (2, 0)


def test_lora_trains_the_same_over_a_tree() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.0
    )
    model = peft.get_peft_model(built("qwen2"), config)
    assert refusal(model) is None
    compare(model)
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.grad is not None} == {
        "lora_A",
        "lora_B",
    }


# ---- who is refused -----------------------------------------------------------------------------


class Positionless(Qwen2ForCausalLM):
    """Counts positions by itself, as a few architectures do: right for rows, wrong for trees."""

    def forward(
        self, *args: object, position_ids: Tensor | None = None, **kwargs: object
    ) -> object:
        return super().forward(*args, **kwargs)


class Summing(Qwen2ForCausalLM):
    """Mixes tokens beside its attention: each hears a little of the one before it in the line."""

    def forward(self, *args: object, **kwargs: object) -> object:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits + 0.1 * outputs.logits.roll(1, 1)
        outputs.logits[:, 0] = 0
        return outputs


def gpt2(**settings: object) -> PreTrainedModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=256, **settings
        )
    )


def qwen3_next() -> PreTrainedModel:
    heads = {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")}
    counts = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    width = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 16}
    return transformers.Qwen3NextForCausalLM(
        transformers.Qwen3NextConfig(
            **{**SIZES, **EXPERTS, **heads, **counts, **width, "head_dim": 16}
        )
    )


def damaged() -> nn.Module:
    model = built("qwen2")
    with torch.no_grad():
        model.lm_head.weight[5, 5] = torch.nan
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (gpt2, "its attention has dropout"),
    "sinks": (
        lambda: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(
                **SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2
            )
        ),
        "its attention has sinks",
    ),
    "chunks": (
        lambda: transformers.Llama4ForCausalLM(
            transformers.Llama4TextConfig(**SIZES, head_dim=16, num_local_experts=2)
        ),
        "layers of the kind chunked_attention",
    ),
    "state space": (
        lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2)
        ),
        "layers of the kind linear_attention",
    ),
    "linear attention": (qwen3_next, "layers of the kind linear_attention"),
    "attention of its own": (
        lambda: transformers.BloomForCausalLM(
            transformers.BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4)
        ),
        "does not go through transformers' AttentionInterface",
    ),
    "no model": (lambda: nn.Linear(3, 3), "Linear is no transformers model"),
    "no numbers": (damaged, "over a tree differ from those over rows by nan"),
    "positions": (
        lambda: Positionless(built("qwen2").config),
        "over a tree differ from those over rows",
    ),
    "tokens mixed": (
        lambda: Summing(built("qwen2").config),
        "over a tree differ from those over rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_attend_over_trees_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    torch.manual_seed(0)
    model = make().eval()
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    state = torch.get_rng_state()
    assert reason in (refusal(model) or "accepted")
    assert torch.get_rng_state().equal(state)
    assert not model.training
    assert getattr(getattr(model, "config", None), "_attn_implementation", None) == before


def test_without_dropout_in_its_attention_gpt2_is_not_refused() -> None:
    """Dropout elsewhere does no harm, and trying draws no random number."""
    torch.manual_seed(0)
    model = gpt2(attn_pdrop=0.0).train()
    state = torch.get_rng_state()
    assert refusal(model) is None
    assert torch.get_rng_state().equal(state)
    assert model.training


def test_a_model_is_not_refused_for_the_roundings_of_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert refusal(built("qwen2")) is None


def unseen_window(family: str, **settings: object) -> PreTrainedModel:
    return getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(**SIZES, sliding_window=50, **settings)
    )


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Phimoe", {"num_local_experts": 4}),
        (
            "Qwen2Moe",
            {
                "use_sliding_window": True,
                "max_window_layers": 1,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
                **EXPERTS,
            },
        ),
        ("Doge", {}),
    ],
)
def test_a_window_that_only_the_mask_tells_of_is_refused(
    family: str, settings: dict[str, object]
) -> None:
    """These do not hand their window to the attention, so that over a tree they had none."""
    torch.manual_seed(0)
    model = unseen_window(family, **settings)
    assert refusal(model) is not None


# ---- wrong use ----------------------------------------------------------------------------------


def test_a_tree_outside_of_the_context_fails_loudly() -> None:
    with pytest.raises(Exception, match="attending_over_trees"):
        scored(built("qwen2"), ROWS, tree=True)


def test_rows_inside_of_the_context_fail_loudly() -> None:
    model = built("qwen2")
    with attending_over_trees(model), pytest.raises(RuntimeError, match="and was given none"):
        scored(model, ROWS, tree=False)


def test_after_an_error_a_model_attends_as_before() -> None:
    model = built("qwen2")
    expected = scored(model, ROWS, tree=False).log_probs
    with pytest.raises(KeyError), attending_over_trees(model):
        raise KeyError
    assert scored(model, ROWS, tree=False).log_probs.equal(expected)
