"""Log-probabilities of completions, held against plain log_softmax for each way an architecture
treats its logits. Wrapped models are in test_wrapped_scoring.py, TRL's loss in test_trl_oracle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from srl.models import scoring
from srl.models.scoring import completion_log_probs

Row = tuple[list[int], list[int]]


def tiny_qwen2(seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,  # logits far enough from uniform to be worth comparing
        eos_token_id=256,
        pad_token_id=257,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def architectures() -> dict[str, Callable[[], PreTrainedModel]]:
    """Tiny models, one for each way we know of turning a projection into logits."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    t = transformers

    def build(name: str, **more: object) -> Callable[[], PreTrainedModel]:
        config = getattr(t, f"{name}Config")
        return lambda: getattr(t, f"{name}ForCausalLM")(config(**{**sizes, **more}))

    return {
        "plain, tied": build("Qwen2", tie_word_embeddings=True),
        "plain, untied": build("Llama", tie_word_embeddings=False),
        "softcap": build("Gemma2", final_logit_softcapping=2.0, query_pre_attn_scalar=8),
        "divided": build("Granite", logits_scaling=8.0),
        "multiplied": build("Cohere", logit_scale=0.25),
        "absolute positions": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        ),
        "no position_ids": lambda: t.BloomForCausalLM(
            t.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2)
        ),
    }


ROWS: list[Row] = [
    ([3, 4, 5, 6, 7], [8, 9]),
    ([5], [6, 7, 8, 2]),
    ([9, 9, 3], []),
    ([4, 30, 12, 3], [39, 2, 2, 2, 5]),
]


def built(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = architectures()[name]()
    for parameter in model.parameters():
        # Some architectures start so small that a softcap would not show.
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def one_row_at_a_time(
    model: nn.Module, rows: Sequence[Row], temperature: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs and entropies the obvious way: no padding, all logits, log_softmax."""
    log_probs, entropies = [], []
    for prompt, completion in rows:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].float()
        logits = logits[len(prompt) - 1 : len(prompt) + len(completion) - 1]
        logp = torch.log_softmax(logits / temperature, -1)
        log_probs.append(logp.gather(1, torch.tensor(completion).long().view(-1, 1)).squeeze(1))
        entropies.append(-(logp.exp() * logp).sum(-1).detach())
    return log_probs, entropies


def weighted(parts: Sequence[Tensor]) -> Tensor:
    """A scalar in which every token has its own weight."""
    flat = torch.cat([p.flatten() for p in parts])
    return (flat * torch.linspace(-1, 2, flat.numel())).sum()


def compare(model: PreTrainedModel) -> None:
    tolerance = 2e-5  # float32 through a whole model, padded against unpadded
    scored = completion_log_probs(
        model, ROWS, pad_id=0, temperature=0.7, device="cpu", with_entropy=True
    )
    expected, entropies = one_row_at_a_time(model, ROWS, 0.7)
    assert scored.mask.tolist() == [[c < len(done) for c in range(5)] for _, done in ROWS]
    assert not scored.log_probs[~scored.mask].any()
    ours = scored.log_probs[scored.mask]
    assert relative_error(ours, torch.cat(expected)) <= tolerance
    assert scored.entropy is not None
    assert not scored.entropy.requires_grad
    assert relative_error(scored.entropy[scored.mask], torch.cat(entropies)) <= tolerance

    model.zero_grad()
    weighted(expected).backward()
    their_gradient = flat_gradient(model)
    model.zero_grad()
    weighted([ours]).backward()
    assert relative_error(flat_gradient(model), their_gradient) <= tolerance


@pytest.mark.parametrize("name", architectures())
@pytest.mark.parametrize("fused", [False, True])
def test_log_probs_equal_log_softmax(
    name: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused:  # on a CPU that is otherwise for large vocabularies only
        monkeypatch.setattr(scoring, "_CPU_LOGITS_LIMIT", 0)
        monkeypatch.setattr(scoring, "_TILE_WIDTH", {"cpu": 16})  # several tiles, the last short
    model = built(name)
    compare(model)
    assert scoring._heads[model] is not None


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_fused_head_equals_log_softmax_on_the_same_hidden_states(softcap: float | None) -> None:
    torch.manual_seed(0)
    linear, targets = nn.Linear(32, 300), torch.randint(300, (50,))
    targets[:5] = 7
    with torch.no_grad():
        linear.bias[7] = 9.0  # the likeliest everywhere
    head = scoring._Head(scale=0.5, softcap=softcap)
    results = []
    for score in (scoring._fused, scoring._token_log_probs):  # 50 x 300 is below the limit
        hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        log_probs, entropy, is_top = score(
            hidden,
            linear,
            targets,
            head,
            0.8,
            with_entropy=True,
            entropy_gradient=True,
            with_top=True,
        )
        assert torch.equal(is_top, head.logits(linear(hidden)).argmax(-1) == targets)
        gradients = torch.autograd.grad(
            weighted([log_probs, entropy]), [hidden, *linear.parameters()]
        )
        results.append([log_probs.detach(), entropy.detach(), *gradients])
    for fused, plain in zip(*results, strict=True):
        assert relative_error(fused, plain) <= 1e-6


def test_a_small_cpu_batch_does_not_use_the_fused_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the fused head was called")

    monkeypatch.setattr(scoring, "_fused", fail)
    compare(built("plain, tied"))
    monkeypatch.setattr(scoring, "_CPU_LOGITS_LIMIT", 1)
    with pytest.raises(AssertionError, match="fused head was called"):
        compare(built("plain, tied"))


class Tripling(Qwen2ForCausalLM):
    """An architecture of tomorrow: its config does not say what it does to its logits."""

    def forward(self, *args: object, **kwargs: object) -> object:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * 3
        return outputs


def test_a_head_that_is_not_what_it_seems_goes_through_its_own_forward() -> None:
    model = Tripling(built("plain, tied").config).eval()
    compare(model)
    assert scoring._heads[model] is None


def test_an_adapter_on_the_head_is_not_bypassed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Adapted(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden) + 1.5 * hidden.sum(-1, keepdim=True).sin() * self.extra

    model = built("plain, untied")
    adapted = Adapted(16, 40, bias=False)
    adapted.weight = model.lm_head.weight
    adapted.extra = nn.Parameter(torch.randn(40))
    model.lm_head = adapted
    monkeypatch.setattr(scoring, "_CPU_LOGITS_LIMIT", 0)
    compare(model)


@pytest.mark.parametrize("fused", [False, True])
def test_bf16_autocast_stays_close_and_trains(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fused:
        monkeypatch.setattr(scoring, "_CPU_LOGITS_LIMIT", 0)
    model = tiny_qwen2().eval()
    exact = completion_log_probs(model, ROWS, pad_id=0, temperature=1.0, device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        half = completion_log_probs(model, ROWS, pad_id=0, temperature=1.0, device="cpu")
    assert half.log_probs.dtype == torch.float32
    assert relative_error(half.log_probs, exact.log_probs) < 0.02
    half.log_probs.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_what_pads_a_row_does_not_matter() -> None:
    model = built("plain, tied")
    a = completion_log_probs(model, ROWS, pad_id=0, temperature=1.0, device="cpu")
    b = completion_log_probs(model, ROWS, pad_id=2, temperature=1.0, device="cpu")  # pad == eos
    torch.testing.assert_close(a.log_probs, b.log_probs)


def test_looking_at_a_model_draws_no_random_numbers() -> None:
    """Else a resumed run, which looks again, would leave the path of a straight one."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    ).train()  # with dropout
    results = []
    for _ in range(2):  # the second time the head is known
        torch.manual_seed(5)
        scored = completion_log_probs(model, ROWS, pad_id=0, temperature=1.0, device="cpu")
        results.append(scored.log_probs.detach())
    assert torch.equal(*results)


def test_rows_without_any_completion_give_an_empty_result() -> None:
    scored = completion_log_probs(
        built("plain, tied"), [([3, 4], []), ([5], [])], pad_id=0, temperature=1.0, device="cpu"
    )
    assert scored.log_probs.shape == scored.mask.shape == (2, 0)


def test_wrong_use_of_the_log_probs_is_named() -> None:
    model = built("plain, tied")
    with pytest.raises(ValueError, match="row 1 has an empty prompt"):
        completion_log_probs(
            model, [([1], [2]), ([], [3])], pad_id=0, temperature=1.0, device="cpu"
        )
    with pytest.raises(ValueError, match="temperature is 0.0"):
        completion_log_probs(model, ROWS, pad_id=0, temperature=0.0, device="cpu")
    with pytest.raises(ValueError, match="no rows"):
        completion_log_probs(model, [], pad_id=0, temperature=1.0, device="cpu")
