"""TRL as the oracle: on the same rollouts our loss and gradients are those of its `GRPOTrainer`.

A real `trl.GRPOTrainer` over a tiny Qwen2 generates the rollouts, scores them, normalises the
rewards and computes its own loss; ours gets the same token ids. The log-probabilities are held
against plain log_softmax as well, for each way an architecture treats its logits, and one test
fails when TRL moves the parts we use.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

# Before the first import of the hub's client: nothing may go out.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch
import transformers
import trl
from conftest import build_tokenizer
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import ChunkedLogProbFunction

from srl.config.parts import LOSS_TYPES, LossSettings
from srl.models import scoring
from srl.models.scoring import completion_log_probs
from srl.training.advantages import decoupled_advantages, step_advantages
from srl.training.loss import LossInputs, LossScale, load_loss, step_loss

Row = tuple[list[int], list[int]]

G, PROMPTS, LONGEST, TEMPERATURE = 4, 2, 10, 0.9
LOW, HIGH = 0.2, 0.28
# Rewards of 2 groups of 4: spread out with a failure in it, and nearly flat
REWARDS = [0.31, -1.0, 0.87, 0.52, 0.40, 0.41, 0.40, 0.43]
# A second one with nulls, in one group all but one of them
SECOND = [1.0, None, 0.0, 0.25, None, None, 2.0, None]
WEIGHTS = {"first": 1.0, "second": 0.5}


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


@dataclass
class Oracle:
    """TRL's trainer and one generation batch of its own making, with log-probs moved apart."""

    trainer: GRPOTrainer
    inputs: dict[str, Tensor]

    @property
    def model(self) -> PreTrainedModel:
        return self.trainer.model

    @property
    def rows(self) -> list[Row]:
        """The rollouts without padding: TRL pads prompts on the left, completions on the right."""
        rows = []
        for i in range(G * PROMPTS):
            prompt = self.inputs["prompt_ids"][i][self.inputs["prompt_mask"][i].bool()]
            completion = self.inputs["completion_ids"][i][self.inputs["completion_mask"][i].bool()]
            rows.append((prompt.tolist(), completion.tolist()))
        return rows

    @property
    def settings(self) -> LossSettings:
        """Ours under TRL's names, with TRL's values."""
        names = {one.name for one in fields(LossSettings)} - {"num_iterations"}
        values = {name: getattr(self.trainer.args, name) for name in names}
        if values["loss_type"] == "cispo":  # TRL falls back on an epsilon that ours refuses
            values["epsilon_high"] = values["epsilon_high"] or values["epsilon"]
            values["epsilon"] = LossSettings.epsilon
        return LossSettings(**values)

    @property
    def scale(self) -> LossScale:
        return LossScale.of([len(completion) for _, completion in self.rows], LONGEST)

    def trl_loss(self) -> tuple[Tensor, Tensor]:
        """TRL's loss and its gradient over all weights."""
        self.model.zero_grad()
        loss = self.trainer.compute_loss(self.model, dict(self.inputs))
        loss.backward()
        return loss.detach(), flat_gradient(self.model)

    def our_loss(self, cuts: Sequence[int], settings: LossSettings | None = None) -> Result:
        """Ours, as the sum of the micro-batches between the cuts."""
        self.model.zero_grad()
        settings = settings or self.settings
        total = torch.zeros(())
        clipped = 0.0
        for a, b in zip([0, *cuts], [*cuts, G * PROMPTS], strict=True):
            scored = completion_log_probs(
                self.model,
                self.rows[a:b],
                pad_id=257,
                temperature=TEMPERATURE,
                device="cpu",
                with_entropy=True,
                entropy_gradient=settings.entropy_coef != 0.0,
            )
            C = scored.mask.shape[1]  # TRL pads to the longest row of the whole batch, we do not
            inputs = LossInputs(
                log_probs=scored.log_probs,
                advantages=self.inputs["advantages"][a:b],
                mask=scored.mask,
                old_log_probs=self.inputs["old_per_token_logps"][a:b, :C],
                ref_log_probs=self.inputs["ref_per_token_logps"][a:b, :C],
                entropy=scored.entropy,
            )
            loss, figures = step_loss(
                load_loss(settings), inputs, self.scale, entropy_coef=settings.entropy_coef
            )
            loss.backward()
            total += loss.detach()
            clipped += figures["clip_ratio_high"].item()
            clipped += figures["clip_ratio_low"].item() if "clip_ratio_low" in figures else 0.0
        return Result(total, flat_gradient(self.model), clipped)


@dataclass(frozen=True)
class Result:
    loss: Tensor
    gradient: Tensor
    clipped: float


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


class MakeOracle(Protocol):
    """The signature of the fixture `make_oracle`; options are TRL's."""

    def __call__(self, loss_type: str = "grpo", **options: object) -> Oracle: ...


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / "model"
    tiny_qwen2().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make_oracle(model_folder: Path) -> MakeOracle:
    tokenizer: PreTrainedTokenizerFast = build_tokenizer()

    def first(completions: list[str], **_: object) -> list[float]:
        assert len(completions) == len(REWARDS)
        return REWARDS

    def second(completions: list[str], **_: object) -> list[float | None]:
        return SECOND

    def make(loss_type: str = "grpo", rewards: int = 1, **options: object) -> Oracle:
        args = GRPOConfig(
            output_dir=str(model_folder.parent / "run"),
            report_to=[],
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=G * PROMPTS,
            num_generations=G,
            num_iterations=2,
            max_completion_length=LONGEST,
            temperature=TEMPERATURE,
            loss_type=loss_type,
            reward_weights=list(WEIGHTS.values())[:rewards],
            seed=1,
            **{"epsilon": LOW, "epsilon_high": HIGH, **options},
        )
        trainer = GRPOTrainer(
            model=Qwen2ForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
            reward_funcs=[first, second][:rewards],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["1 + 2 =", "a longer prompt: 3 * 4 ="]}),
            processing_class=tokenizer,
        )
        # Only its training loop sets this; here is no accumulation.
        trainer.current_gradient_accumulation_steps = 1
        prompts = ["1 + 2 ="] * G + ["a longer prompt: 3 * 4 ="] * G
        trainer.model.train()
        inputs = trainer._generate_and_score_completions([{"prompt": p} for p in prompts])
        # Ragged completions, whatever the random model sampled
        for row, length in enumerate([10, 3, 7, 1, 9, 10, 2, 6]):
            inputs["completion_mask"][row, length:] = 0
        inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
        # The second iteration over the same rollouts: the policy has moved since it sampled.
        noise = torch.Generator().manual_seed(2)
        shape = inputs["completion_ids"].shape
        old = inputs["old_per_token_logps"]
        inputs["ref_per_token_logps"] = old + 0.5 * torch.randn(shape, generator=noise)
        inputs["old_per_token_logps"] = old + 0.3 * torch.randn(shape, generator=noise)
        return Oracle(trainer, inputs)

    return make


OPTIONS: list[dict[str, object]] = [
    {},
    {"beta": 0.04},
    {"beta": 0.04, "use_bias_correction_kl": False},
    {"importance_sampling_level": "sequence", "epsilon": 0.002, "epsilon_high": 0.003},
    {
        "importance_sampling_level": "sequence",
        "beta": 0.04,
        "epsilon": 0.002,
        "epsilon_high": 0.003,
    },
    {"delta": 1.3},
    {
        "delta": 1.01,
        "importance_sampling_level": "sequence",
        "epsilon": 0.002,
        "epsilon_high": 0.003,
    },
    {"entropy_coef": 0.1},
    {"entropy_coef": -0.5, "beta": 0.04},
]
CASES = [
    (loss_type, options)
    for loss_type in LOSS_TYPES
    for options in OPTIONS
    if not (loss_type == "cispo" and "delta" in options)  # which TRL then ignores, and we refuse
] + [
    ("cispo", {"epsilon_high": 5.0}),
    ("cispo", {"epsilon_high": None}),
    ("cispo", {"epsilon_high": 1.1}),
]


@pytest.mark.parametrize(("loss_type", "options"), CASES)
def test_loss_and_gradients_equal_trl(
    make_oracle: MakeOracle, loss_type: str, options: dict[str, object]
) -> None:
    oracle = make_oracle(loss_type, **options)
    their_loss, their_gradient = oracle.trl_loss()
    whole = oracle.our_loss(cuts=[])
    assert whole.clipped >= 3 or options.get("epsilon_high") == 5.0  # else it would go untested
    assert relative_error(whole.loss, their_loss) <= 1e-5
    assert relative_error(whole.gradient, their_gradient) <= 1e-5

    # One update of four micro-batches, uneven ones, is the same update.
    four = oracle.our_loss(cuts=[1, 4, 6])
    assert relative_error(four.loss, their_loss) <= 1e-5
    assert relative_error(four.gradient, their_gradient) <= 1e-5


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_masked_completions_equal_trl(make_oracle: MakeOracle, loss_type: str) -> None:
    """TRL empties the masks of truncated completions; to its divisors they still are rollouts."""
    oracle = make_oracle(loss_type, entropy_coef=0.01, beta=0.04)
    for row in (0, 5):
        oracle.inputs["completion_mask"][row] = 0
    oracle.inputs["num_items_in_batch"] = oracle.inputs["completion_mask"].sum()
    their_loss, their_gradient = oracle.trl_loss()
    ours = oracle.our_loss(cuts=[2, 6])
    assert relative_error(ours.loss, their_loss) <= 1e-5
    assert relative_error(ours.gradient, their_gradient) <= 1e-5


def test_the_losses_differ(make_oracle: MakeOracle) -> None:
    """Else the comparisons above would show less than they seem to."""
    oracle = make_oracle()
    every = [
        LossSettings(**{"epsilon_high": HIGH, **given, "loss_type": name})
        for name, options in CASES
        for given in [options if name == "cispo" else {"epsilon": LOW, **options}]
        if not (name == "cispo" and {"epsilon", "delta"} & options.keys())
        if (name, options) != ("cispo", {"epsilon_high": None})
    ]
    gradients = [oracle.our_loss([], settings).gradient for settings in every]
    for i, a in enumerate(gradients):
        for j, b in enumerate(gradients[:i]):
            assert relative_error(a, b) > 1e-3, (CASES[i], CASES[j])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_equal_trl(make_oracle: MakeOracle, scale: str) -> None:
    theirs = make_oracle(scale_rewards=scale).inputs["advantages"]
    ours = step_advantages([REWARDS[:G], REWARDS[G:]], scale=scale)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.tensor(ours).flatten(), theirs, rtol=1e-5, atol=1e-5)


def test_advantages_of_rewards_normalised_one_by_one_equal_trl(make_oracle: MakeOracle) -> None:
    oracle = make_oracle(rewards=2, multi_objective_aggregation="normalize_then_sum")
    rows = [{"first": a, "second": b} for a, b in zip(REWARDS, SECOND, strict=True)]
    ours = decoupled_advantages([rows[:G], rows[G:]], WEIGHTS, format_failure=-1.0)
    theirs = oracle.inputs["advantages"]
    torch.testing.assert_close(torch.tensor(ours).flatten(), theirs, rtol=1e-5, atol=1e-5)


# Log-probabilities of completions


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
    head = scoring._Head(scale=0.5, softcap=softcap)
    results = []
    for score in (scoring._fused, scoring._token_log_probs):  # 50 x 300 is below the limit
        hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        log_probs, entropy = score(
            hidden, linear, targets, head, 0.8, with_entropy=True, entropy_gradient=True
        )
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


def test_a_wrapped_model_is_called_as_a_whole() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, *args: object, **kwargs: object) -> object:
            self.calls += 1
            return self.module(*args, **kwargs)

    model = built("no position_ids")
    wrapper = Wrapper(model)
    ours = completion_log_probs(wrapper, ROWS, pad_id=0, temperature=0.7, device="cpu")
    bare = completion_log_probs(model, ROWS, pad_id=0, temperature=0.7, device="cpu")
    assert wrapper.calls == 1
    torch.testing.assert_close(ours.log_probs, bare.log_probs)


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


def test_trl_has_its_parts_where_we_take_them() -> None:
    """After an upgrade this says what moved; then read TRL's changes before widening the pin."""
    assert trl.__version__.split(".")[:2] == ["1", "16"]
    parameters = list(inspect.signature(ChunkedLogProbFunction.forward).parameters)
    assert parameters == [
        "ctx",
        "hidden",
        "weight",
        "bias",
        "targets",
        "temperature",
        "chunk_size",
        "final_logit_softcapping",
        "logit_scale",
        "outputs",
    ]
    outputs = ChunkedLogProbFunction.apply(
        torch.eye(3), torch.eye(3), None, torch.arange(3), 1.0, 2, None, 1.0, ("entropy",)
    )
    assert [output is not None for output in outputs] == [True, True, False, False, False]
    expected = torch.eye(3).log_softmax(-1)
    torch.testing.assert_close(outputs[0], expected.diagonal())
    torch.testing.assert_close(outputs[1], -(expected.exp() * expected).sum(-1))
