"""TRL as the oracle: on the same rollouts our loss and gradients are those of its `GRPOTrainer`.

A real `trl.GRPOTrainer` over a tiny Qwen2 generates the rollouts, scores them, normalises the
rewards and computes its own loss; ours gets the same token ids. One test fails when TRL moves the
parts we use. The log-probabilities themselves are held against log_softmax in test_scoring.py.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

# Before the first import of the hub's client: nothing may go out.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch
import trl
from conftest import build_tokenizer
from datasets import Dataset
from test_scoring import Row, flat_gradient, relative_error, tiny_qwen2
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import ChunkedLogProbFunction

from srl.config.parts import LOSS_TYPES, LossSettings
from srl.models.scoring import completion_log_probs
from srl.training.advantages import decoupled_advantages, step_advantages
from srl.training.loss import LossInputs, LossScale, load_loss, step_loss

G, PROMPTS, LONGEST, TEMPERATURE = 4, 2, 10, 0.9
LOW, HIGH = 0.2, 0.28
# Rewards of 2 groups of 4: spread out with a failure in it, and nearly flat
REWARDS = [0.31, -1.0, 0.87, 0.52, 0.40, 0.41, 0.40, 0.43]
# A second one with nulls, in one group all but one of them
SECOND = [1.0, None, 0.0, 0.25, None, None, 2.0, None]
WEIGHTS = {"first": 1.0, "second": 0.5}


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
    ours = decoupled_advantages([rows[:G], rows[G:]], WEIGHTS)
    theirs = oracle.inputs["advantages"]
    torch.testing.assert_close(torch.tensor(ours).flatten(), theirs, rtol=1e-5, atol=1e-5)


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
