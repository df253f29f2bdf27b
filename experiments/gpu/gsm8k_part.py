"""Measures part e: a small instruct model on GSM8K, in bf16: a cold start, then SRL and RLVR.

    stock       the model as it is
    cold start  fine-tuning on single steps and whole solutions, because later stages write both
    SRL         from the cold start: steps, rewarded for similarity to the expert's steps
    RLVR        from the same cold start: whole solutions, rewarded for their answers

The same greedy evaluation follows each stage, on all test problems, step by step and whole.
Training takes the time that the evaluations leave. The learning rate is constant after a warm-up,
so that training can end at any step. Everything runs through the library's own trainers and its own
`measure`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from given import Given, Note, rounded
from rich.console import Console
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from rewards import RewardSum
from srl import SRLTrainer
from srl.config.experiment import parse_experiment, sum_rewards
from srl.config.parts import RewardSettings
from srl.evaluation.held_out import measure as measured
from srl.models.loading import prompt_format
from srl.training.sft import ExpertTrainer
from srl.training.trainer import NothingToTrainOnError

SIMILARITY = {"similarity": 1.0}
ANSWER = {"answer": 1.0}
# Stage -> its share of the training time.
SHARES = {"cold start": 0.35, "SRL": 0.35, "RLVR": 0.3}
# The figures of a step that are noted.
LOGGED = (
    *("loss", "reward", "rewards/similarity", "exact", "format_failures", "groups_kept"),
    *("groups_tried", "completion_tokens", "tokens", "grad_norm", "sampler_gap"),
    *("seconds/collect", "seconds/update"),
)
# Seconds reserved for saving, and in case an estimate is too low.
SPARE = 15.0


def common(given: Given) -> dict[str, object]:
    """Returns the settings of every stage."""
    toy = given.toy
    return {
        "model": str(given.model or "toy"),
        "data": given.source,
        "system_prompt": "Give only the next step.",
        "whole_system_prompt": "Solve the problem step by step.",
        "think": False,
        "targets": "all",
        "max_completion_length": 8 if toy else 80,
        "whole_max_completion_length": 8 if toy else 320,
        "solve_max_steps": 2 if toy else 10,
        "solve_whole": True,
        "test_rows": 2 if toy else 1000,
        "validation_problems": 0,
        "bf16": True,
        "use_cpu": toy,
        "rollout_token_budget": 262_144,
        "micro_batch_tokens": 2048 if toy else 32_768,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 3,
        "max_steps": 1 if toy else 1000,
        "save_strategy": "no",
        "disable_tqdm": True,
        "reward_workers": 1 if toy else None,
        "seed": 0,
    }


def sft_settings(given: Given) -> dict[str, object]:
    """Returns the settings of fine-tuning."""
    return {
        **common(given),
        "method": "sft",
        "also_whole": True,
        "prompts_per_step": 4 if given.toy else 64,
        "learning_rate": 5e-5,
    }


def srl_settings(given: Given, *, profiled: bool = False) -> dict[str, object]:
    """Returns the settings of SRL; if `profiled`, smaller steps and only fields of `SRLConfig`."""
    settings = {
        **common(given),
        "prompts_per_step": 2 if given.toy else 16 if profiled else 64,
        "num_generations": 2 if given.toy else 8,
        "dynamic_sampling": not given.toy and not profiled,
        "dynamic_sampling_epsilon": 0.01,
        "max_sampling_rounds": 2,
        "max_empty_steps": 2,
        # A profile has one event per operation, and all events must be read.
        **({"max_completion_length": 48} if profiled and not given.toy else {}),
        "learning_rate": 1e-5,
        "log_completions": False,
    }
    beside = ("model", "data", "max_steps")
    return {name: x for name, x in settings.items() if not profiled or name not in beside}


def rlvr_settings(given: Given) -> dict[str, object]:
    """Returns the settings of RLVR: whole solutions, and reward 0 for a broken format."""
    return {**srl_settings(given), "targets": "whole", "format_failure_reward": 0.0}


def rewards_of(weights: Mapping[str, object], settings: RewardSettings) -> RewardSum:
    """Returns the rewards as a run of the command line makes them."""
    return sum_rewards(weights, settings, None)


class _Until(TrainerCallback):
    """Ends a training after the step in which its time runs out."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    def on_step_end(  # type: ignore[no-untyped-def]
        self, args, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        if time.monotonic() >= self.ends:
            control.should_training_stop = True


def measure(given: Given, note: Note) -> None:
    """Notes the figures of each stage when it ends."""
    model, tokenizer = given.policy()
    train, test = given.problems()
    note({"problems": {"train": len(train), "test": len(test)}})
    stages = _Stages(given, note, model, tokenizer)
    experiment = parse_experiment(srl_settings(given), where="part e")
    form = prompt_format(model, tokenizer, experiment.args)
    rewards, console = rewards_of(SIMILARITY, experiment.args), Console(quiet=True)

    def evaluate(name: str) -> float:
        started = time.monotonic()
        figures = measured(model, form, experiment, rewards, test, None, name, console)
        seconds = time.monotonic() - started
        kept = {key: figures[key] for key in figures if key.endswith("greedy") or "held-out" in key}
        note({f"{name}, evaluated": rounded({**kept, "seconds": seconds})})
        return seconds

    longest = evaluate("stock")
    # Reserve time for three more evaluations. Each counts 1.5 times the first one, because a policy
    # that ends its steps takes longer.
    time_to_train = max(4.0, given.left - SPARE - 3 * 1.5 * longest)

    def seconds_of(name: str) -> float:
        return SHARES[name] * time_to_train

    seconds = seconds_of("cold start")
    stages.train("cold start", ExpertTrainer, sft_settings(given), train, SIMILARITY, seconds)
    longest = max(longest, evaluate("cold start"))
    start = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    for name, settings, weights in (
        ("SRL", srl_settings(given), SIMILARITY),
        ("RLVR", rlvr_settings(given), ANSWER),
    ):
        seconds = min(seconds_of(name), given.left - SPARE - longest)
        if seconds < 2 and not given.toy:
            note({f"{name}, not reached": "no time was left; give more with --minutes"})
            continue
        model.load_state_dict(start)
        stages.train(name, SRLTrainer, settings, train, weights, seconds)
        longest = max(longest, evaluate(name))
    rewards.close()


class _Stages:
    """Trains one model in stages, and notes what each stage logged."""

    def __init__(
        self,
        given: Given,
        note: Note,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.given, self.note = given, note
        self.model, self.tokenizer = model, tokenizer

    def train(
        self,
        name: str,
        kind: Callable[..., ExpertTrainer | SRLTrainer],
        settings: Mapping[str, object],
        problems: object,
        weights: Mapping[str, object],
        seconds: float,
    ) -> None:
        """Trains for `seconds`, but at least one step."""
        args = parse_experiment(settings, where=f"part e, {name}").args
        args.output_dir = str(self.given.folder / name.replace(", ", "-").replace(" ", "-"))
        rewards = rewards_of(weights, args)
        started = time.monotonic()
        trainer = kind(
            self.model,
            args,
            train_trajectories=problems,
            validation_trajectories=(),
            step_rewards=rewards,
            processing_class=self.tokenizer,
            callbacks=[_Until(seconds)],
        )
        ready = time.monotonic() - started
        ended = ""
        try:
            trainer.train()
        except NothingToTrainOnError as error:
            ended = str(error)
        finally:
            rewards.close()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        figures: dict[str, object] = {
            "steps": trainer.state.global_step,
            "rows": len(trainer.prompts),
            "seconds": time.monotonic() - started,
            "seconds to make ready": ready,
            **({"ended": ended} if ended else {}),
            "first step": _means(lines[:1]),
            "means of the first third": _means(lines[: max(1, len(lines) // 3)]),
            "means of the last third": _means(lines[-max(1, len(lines) // 3) :]),
        }
        self.note({f"{name}, trained": rounded(figures)})
        self.model.zero_grad(set_to_none=True)
        del trainer
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _means(lines: list[dict[str, float]]) -> dict[str, float]:
    """Returns the mean of each figure over the lines that have it."""
    values = {name: [line[name] for line in lines if name in line] for name in LOGGED}
    return {name: sum(of) / len(of) for name, of in values.items() if of}
