"""Prefix trees in transformers models: held against repeated rows; which models are refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2ForCausalLM

from srl.models import scoring
from srl.models.prefix_tree import Row
from srl.models.scoring import CompletionScores, completion_log_probs
from srl.models.tree_models import attending_over_trees, refusal

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
        {
            "head_dim": 16,
            "sliding_window": 10,
            "attn_logit_softcapping": 1.0,
            # As load_policy has it, whatever the version of transformers takes by default
            "attn_implementation": "eager",
        },
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
    monkeypatch.setattr(scoring, "_CPU_LOGITS_LIMIT", 0)
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
