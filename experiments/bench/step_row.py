"""Measures rows 5 and 11: whole steps of SRL, TRL's `GRPOTrainer` beside our `SRLTrainer`.

Both sample with `transformers`, score the same steps with the same reward, and train the same model
from the same random weights. The prompts come from several trajectories, and each prompt is the
beginning of the next. Our dynamic sampling is off, so both train on the same number of rollouts.

A model with random weights does not know the format and does not end its rollouts. So the end token
is one that the model cannot write, and every rollout has full length. There is no monologue. Both
sides score a rollout although the length limit ended it. TRL recomputes activations in the backward
pass by default; this is off, as in ours.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from contest import Contest
from shapes import Shape, base_tokenizer, tiny_model
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from environments import Trajectory
from rewards import RewardSum, StepReward
from srl import SRLConfig, SRLTrainer
from srl.rollout.samplers import Completion, Prompt, Sampler, SamplingParams
from srl.trl_adapter import RewardFunc, adapt

# Prompts of 340 to 660 tokens, 500 on average.
SHAPE = Shape(K=6, Q=340, s=64, G=8, C=64, trajectories=12)
PROMPTS = 8
STEPS = 3
SIMILARITY = {"similarity": 1.0}


@dataclass(frozen=True)
class Setting:
    """The model, the data and the settings of a training.

    Attributes:
        make_model: returns a new model, always with the same weights.
        tokenizer: a tokenizer whose end token the model cannot write.
        trajectories: the trajectories to train on.
        shape: the shape of their rows.
        prompts_per_step: the number of groups of a step.
        rewards: the rewards, in the form that `SRLTrainer` takes.
        bf16: whether the forward pass runs under bf16 autocast.
        wait: returns when the device has finished all its work.
        vocabulary: words are added to the tokenizer up to this many tokens; None adds none.
        micro_batch_tokens: the tokens of a micro-batch of our trainer.
        uncounted: the number of steps at the start that are not counted.
    """

    make_model: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerFast
    trajectories: list[Trajectory]
    shape: Shape
    prompts_per_step: int
    rewards: Mapping[str | StepReward, object] = field(default_factory=lambda: dict(SIMILARITY))
    bf16: bool = False
    wait: Callable[[], None] = lambda: None
    vocabulary: int | None = None
    micro_batch_tokens: int = 8192
    uncounted: int = 1

    @classmethod
    def of(
        cls,
        make_model: Callable[[], PreTrainedModel],
        shape: Shape,
        prompts: int,
        *,
        vocabulary: int | None = None,
        **more: object,
    ) -> Setting:
        tokenizer = endless_tokenizer(vocabulary)
        rows = trajectories(shape, tokenizer)
        return cls(make_model, tokenizer, rows, shape, prompts, vocabulary=vocabulary, **more)

    def model(self) -> PreTrainedModel:
        """Builds a model whose completions never end: its end token is outside its vocabulary."""
        # The earlier trainer refers to itself, which keeps its weights and optimiser in memory.
        gc.collect()
        model = self.make_model()
        for config in (model.config, model.generation_config):
            config.eos_token_id = self.tokenizer.eos_token_id
        return model


@dataclass
class Times:
    """The seconds and the tokens of every step that counts, and the seconds of its parts."""

    step: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)

    def __add__(self, other: Times) -> Times:
        parts = {name: [*self.parts.get(name, []), *more] for name, more in other.parts.items()}
        return Times(self.step + other.step, parts, self.tokens + other.tokens)


def step_row(
    repeats: int,
    *,
    shape: Shape = SHAPE,
    prompts: int = PROMPTS,
    steps: int = STEPS,
    make_model: Callable[[], PreTrainedModel] = tiny_model,
) -> list[Contest]:
    """Runs row 5. Every repeat trains each contestant from the start for `steps` steps."""
    setting = Setting.of(make_model, shape, prompts)
    trainings: dict[str, Callable[[], Times]] = {
        "TRL, one batch": lambda: train_trl(setting, steps, prompts * shape.G),
        f"TRL, {shape.G} rows at a time": lambda: train_trl(setting, steps, shape.G),
        "ours, shuffled": lambda: train_ours(setting, steps, "shuffled"),
        "ours, by trajectory": lambda: train_ours(setting, steps, "trajectory"),
    }
    times = {name: Times() for name in trainings}
    for _ in range(repeats):
        for name, training in trainings.items():
            times[name] += training()
    title = f"whole steps: {prompts} prompts of about {shape.mean_prompt:.0f} tokens, G {shape.G}"
    contest = Contest(5, f"{title}, C {shape.C}", goal=">= 2.2x TRL")
    contest.seconds = {name: run_times.step for name, run_times in times.items()}
    contest.base, contest.ours = min(list(times)[:2], key=contest.median), "ours, shuffled"
    contest.figures = {
        f"{name}, mean of a step": {
            **{f"{part} s": mean(seconds) for part, seconds in run_times.parts.items()},
            "tokens written": mean(run_times.tokens),
        }
        for name, run_times in times.items()
    }
    return [contest]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---- what both train on --------------------------------------------------------------------------


def endless_tokenizer(vocabulary: int | None = None) -> PreTrainedTokenizerFast:
    """Returns the small policy's tokenizer with an end token outside the model's vocabulary."""
    tokenizer = plain_tokenizer(vocabulary)
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    return tokenizer


def plain_tokenizer(vocabulary: int | None) -> PreTrainedTokenizerFast:
    """Returns the small policy's tokenizer without its chat template.

    If `vocabulary` is given, words are added up to that many tokens.
    """
    tokenizer = base_tokenizer()
    tokenizer.chat_template = None
    if vocabulary is not None:
        tokenizer.add_tokens([f" w{number}" for number in range(len(tokenizer), vocabulary)])
    return tokenizer


def trajectories(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> list[Trajectory]:
    """Returns trajectories of random letters with K + 1 steps.

    A problem has about Q tokens and a step about s tokens.
    """
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def text(tokens: int) -> str:
        words: list[str] = []
        while len(tokenizer.encode(" ".join(words))) < tokens:
            words.append("".join(rng.choices(letters, k=rng.randint(2, 7))))
        return " ".join(words)

    return [
        Trajectory(text(shape.Q), tuple(text(shape.s) for _ in range(shape.K + 1)), answer="4")
        for _ in range(shape.trajectories)
    ]


class _Clock(TrainerCallback):
    """Records when each step ends. Times include the optimiser and the log."""

    def __init__(self, setting: Setting) -> None:
        self.wait, self.uncounted = setting.wait, setting.uncounted
        self.ends: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.ends.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.wait()
        self.ends.append(time.perf_counter())

    def steps(self) -> list[float]:
        return [b - a for a, b in pairwise(self.ends)][self.uncounted :]


# ---- TRL -----------------------------------------------------------------------------------------


def train_trl(setting: Setting, steps: int, rows_at_once: int) -> Times:
    """Trains with TRL's stock trainer, in micro-batches of `rows_at_once` rows."""
    rows = setting.prompts_per_step * setting.shape.G
    rewards = RewardSum(setting.rewards)
    ours = adapt(setting.trajectories, rewards, setting.tokenizer, system_prompt=None, think=False)
    end = setting.tokenizer.eos_token_id
    clock = _Clock(setting)
    model = setting.model()
    with TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            processing_class=setting.tokenizer,
            train_dataset=ours.dataset,
            reward_funcs=_as_ended(ours.reward_funcs[0], end),
            args=GRPOConfig(
                output_dir=str(Path(folder) / "trl"),
                per_device_train_batch_size=rows_at_once,
                gradient_accumulation_steps=rows // rows_at_once,
                num_generations=setting.shape.G,
                max_completion_length=setting.shape.C,
                max_steps=steps,
                loss_type="grpo",
                beta=0.0,
                temperature=1.0,
                bf16=setting.bf16,
                gradient_checkpointing=False,
                use_cpu=model.device.type == "cpu",
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                report_to=[],
                seed=0,
            ),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        times = Times()
        rollouts, scoring = (
            _timed(trainer, name, setting.wait)
            for name in ("_generate_single_turn", "_calculate_rewards")
        )
        trainer.train()
    rewards.close()
    times.step = clock.steps()
    times.parts = {
        "rollouts": (rollouts := rollouts[setting.uncounted :]),
        "scoring": (scoring := scoring[setting.uncounted :]),
        "update and the rest": [
            whole - a - b for whole, a, b in zip(times.step, rollouts, scoring, strict=True)
        ],
    }
    lengths = [
        line["completions/mean_length"]
        for line in trainer.state.log_history
        if "completions/mean_length" in line
    ]
    times.tokens = [round(length * rows) for length in lengths[setting.uncounted :]]
    return times


def _as_ended(reward: RewardFunc, end: int) -> RewardFunc:
    """Returns the reward with an end token added to every completion.

    So completions that the length limit ended are scored too.
    """

    def step_reward(completion_ids: list[list[int]], **columns: object) -> list[float | None]:
        return reward(completion_ids=[[*ids, end] for ids in completion_ids], **columns)

    return step_reward


def _timed(trainer: Trainer, method: str, wait: Callable[[], None]) -> list[float]:
    """Wraps a method of the trainer, and returns a list that gets the seconds of every call."""
    seconds: list[float] = []
    call = getattr(trainer, method)

    def timed(*args: object, **more: object) -> object:
        started = time.perf_counter()
        result = call(*args, **more)
        wait()
        seconds.append(time.perf_counter() - started)
        return result

    setattr(trainer, method, timed)
    return seconds


# ---- ours ----------------------------------------------------------------------------------------


class _Sampler:
    """Our sampler with a timer. A completion that the length limit ended counts as ended."""

    def __init__(self, inner: Sampler, wait: Callable[[], None]) -> None:
        self.inner = inner
        self.wait = wait
        self.seconds = 0.0  # without the time that the caller spends on the completions
        self.tokens = 0

    def remembering(self) -> AbstractContextManager[None]:
        return self.inner.remembering()

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        params: SamplingParams,
        *,
        first_sample: int = 0,
    ) -> Iterator[tuple[int, list[Completion]]]:
        started = time.perf_counter()
        for index, group in self.inner.sample(
            prompts, num_samples, params, first_sample=first_sample
        ):
            self.seconds += time.perf_counter() - started
            self.tokens += sum(len(completion.ids) for completion in group)
            yield index, [replace(completion, truncated=False) for completion in group]
            started = time.perf_counter()
        self.wait()
        self.seconds += time.perf_counter() - started


class _Trainer(SRLTrainer):
    """Our trainer with timed rollouts. `wait` and `samplers` are set after it is built."""

    wait: Callable[[], None]
    samplers: list[_Sampler]

    def sampler(self) -> _Sampler:  # type: ignore[override]
        self.samplers.append(_Sampler(super().sampler(), self.wait))
        return self.samplers[-1]

    def training_step(self, *args: object, **more: object) -> torch.Tensor:
        loss = super().training_step(*args, **more)  # type: ignore[arg-type]
        self.wait()
        return loss


def train_ours(setting: Setting, steps: int, order: str) -> Times:
    """Trains with our trainer, with the prompts in the given order."""
    clock = _Clock(setting)
    model = setting.model()
    with TemporaryDirectory() as folder:
        trainer = _Trainer(
            model,
            SRLConfig(
                output_dir=str(Path(folder) / "srl"),
                prompts_per_step=setting.prompts_per_step,
                num_generations=setting.shape.G,
                micro_batch_tokens=setting.micro_batch_tokens,
                # Large enough for the experts' steps. The length of rollouts is set below.
                max_completion_length=2 * (setting.shape.C + setting.shape.s) + 16,
                prompt_order=order,
                max_steps=steps,
                dynamic_sampling=False,
                log_completions=False,
                learning_rate=1e-6,  # TRL's default
                lr_scheduler_type="linear",
                temperature=1.0,
                system_prompt=None,
                think=False,
                bf16=setting.bf16,
                use_cpu=model.device.type == "cpu",
                save_strategy="no",
                seed=0,
            ),
            setting.trajectories,
            step_rewards=setting.rewards,
            processing_class=plain_tokenizer(setting.vocabulary),
            callbacks=[clock],
        )
        never = frozenset({int(setting.tokenizer.eos_token_id)})
        trainer.form.stop_ids = never
        trainer.sampling = replace(trainer.sampling, stop_ids=never, max_new_tokens=setting.shape.C)
        trainer.wait, trainer.samplers = setting.wait, []
        trainer.train()
        trainer.rewards.close()
    logged = [line for line in trainer.state.log_history if "seconds/collect" in line]
    logged, samplers = (x[setting.uncounted :] for x in (logged, trainer.samplers))
    times = Times(step=clock.steps(), tokens=[sampler.tokens for sampler in samplers])
    collect = [line["seconds/collect"] for line in logged]
    update = [line["seconds/update"] for line in logged]
    times.parts = {
        "rollouts": [sampler.seconds for sampler in samplers],
        "scoring, packing, records": [
            a - b.seconds for a, b in zip(collect, samplers, strict=True)
        ],
        "update": update,
        "optimiser and the rest": [
            whole - a - b for whole, a, b in zip(times.step, collect, update, strict=True)
        ],
    }
    return times
