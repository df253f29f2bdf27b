"""TRL's stock GRPOTrainer, trained on our rows and rewards: it sees what our trainer sees."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

# Before the first import of the hub's client: nothing may go out.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
from conftest import TOY_STEPS, build_tokenizer, toy_config, toy_trajectories
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from environments import Trajectory
from rewards import StepContext
from srl import SRLTrainer
from srl.errors import UsageError
from srl.models.loading import load_policy
from srl.rollout.samplers import Completion, Prompt, SamplingParams
from srl.training.advantages import step_advantages
from srl.trl_adapter import adapt

G = 4
DATA = toy_trajectories(12)


def vowels(step: StepContext) -> float | None:
    return None if step.step_index == 1 else sum(map(step.action.count, "aeiou")) / 10


REWARDS = {"similarity": 1.0, "progress": 0.0, vowels: 0.5}


@dataclass
class Replay:
    """A sampler that says again what was said."""

    completions: Sequence[Completion]

    remembering = nullcontext

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        params: SamplingParams,
        *,
        first_sample: int = 0,
    ) -> Iterator[tuple[int, list[Completion]]]:
        for i in range(len(prompts)):
            yield i, list(self.completions[i * num_samples : (i + 1) * num_samples])


def test_the_rewards_in_trl_are_those_of_our_trainer(
    toy_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    ours = adapt(DATA, REWARDS, tokenizer, targets="all", system_prompt=None)
    seen: list[dict[str, list[object]]] = []

    def spy(**columns: list[object]) -> list[float]:
        seen.append(columns)
        return [0.0] * len(columns["completion_ids"])

    theirs = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=ours.dataset,
        reward_funcs=[*ours.reward_funcs, spy],
        args=GRPOConfig(
            output_dir=str(tmp_path / "trl"),
            reward_weights=[*ours.reward_weights, 0.0],
            per_device_train_batch_size=2 * G,
            num_generations=G,
            max_completion_length=12,
            learning_rate=1e-3,
            max_steps=3,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    batches = []
    generate = theirs._generate_and_score_completions
    monkeypatch.setattr(
        theirs,
        "_generate_and_score_completions",
        lambda inputs: batches.append(generate(inputs)) or batches[-1],
    )
    theirs.train()
    logged = [line for line in theirs.state.log_history if "reward" in line]
    assert len(seen) == len(logged) == len(batches) == 3

    trainer = SRLTrainer(
        str(toy_policy),
        toy_config(tmp_path / "srl", num_generations=G),
        DATA,
        step_rewards=REWARDS,
    )
    failures = 0
    by_place = {
        (example.problem, example.step_index): (example, prompt)
        for example, prompt in zip(trainer.examples, trainer.prompts, strict=True)
    }
    for columns, line, batch in zip(seen, logged, batches, strict=True):
        ids = columns["completion_ids"]
        places = list(zip(columns["problem"], columns["step_index"], strict=True))[::G]
        rows = [by_place[place] for place in places]
        assert columns["prompts"][::G] == [tokenizer.decode(prompt) for _, prompt in rows]
        assert tokenizer(text=columns["prompts"][::G])["input_ids"] == [p for _, p in rows]
        said = [Completion(one, one[-1] != tokenizer.eos_token_id) for one in ids]
        monkeypatch.setattr(trainer, "sampler", lambda said=said: Replay(said))
        groups = trainer._sample(
            [row for row, _ in rows], [Prompt(p, 0) for _, p in rows], G, trainer.sampling
        )
        rewards = [[step.score.reward for step in group] for group in groups]
        steps = [step for group in groups for step in group]
        failures += sum(step.parsed.failure is not None for step in steps)
        flat = [reward for group in rewards for reward in group]
        assert line["rewards/step_reward/mean"] == pytest.approx(sum(flat) / len(flat), abs=1e-6)
        assert line["reward"] == pytest.approx(sum(flat) / len(flat), abs=1e-6)
        expected = [a for group in step_advantages(rewards, scale="group") for a in group]
        assert batch["advantages"].tolist() == pytest.approx(expected, abs=1e-4)
        for name in ("similarity", "progress", "vowels"):
            values = [v for s in steps if (v := s.score.rewards[name]) is not None]
            if values:
                mean = sum(values) / len(values)
                assert line[f"rewards/{name}/mean"] == pytest.approx(mean, abs=1e-6)
    assert failures >= 1  # else -1 would go untested


def test_a_prompt_does_not_get_a_second_bos() -> None:
    tokenizer: PreTrainedTokenizerFast = build_tokenizer(bos=True)
    ours = adapt(DATA, {"similarity": 1.0}, tokenizer, system_prompt="Go on.")
    ids = tokenizer(text=ours.dataset["prompt"][:1])["input_ids"][0]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_the_columns_hold_what_a_reward_may_see() -> None:
    one = Trajectory("p", TOY_STEPS, "4", "toy", metadata={"level": 3})
    row = adapt([one], {"similarity": 1.0}, build_tokenizer()).dataset[1]
    assert row["prompt"].endswith("p\n\nadd the red box\n\n")
    assert {name: row[name] for name in ("problem", "previous_steps", "step_index")} == {
        "problem": "p",
        "previous_steps": [TOY_STEPS[0]],
        "step_index": 1,
    }
    assert row["metadata"] == '{"level": 3}'


def test_wrong_use() -> None:
    tokenizer = build_tokenizer()
    with pytest.raises(UsageError, match="no rows: give trajectories with at least two steps"):
        adapt([], {"similarity": 1.0}, tokenizer)
    with pytest.raises(UsageError, match="rewards: no step reward is called 'similarty'"):
        adapt(DATA, {"similarty": 1.0}, tokenizer)


def test_the_reward_functions_can_be_sent_to_another_process(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """TRL's asynchronous trainer scores in processes of its own."""
    ours = adapt(DATA[:2], REWARDS, chat_tokenizer)
    sent = pickle.loads(pickle.dumps(ours.reward_funcs))
    assert [one.__name__ for one in sent] == ["step_reward", "similarity", "progress", "vowels"]
    columns = {name: list(ours.dataset[name]) for name in ours.dataset.column_names}
    texts = [f"<think>x</think>{step}<|im_end|>" for step in columns["expert_step"]]
    texts[1] = "no tags<|im_end|>"
    written = [chat_tokenizer.encode(text, add_special_tokens=False) for text in texts]
    for mine, theirs in zip(ours.reward_funcs, sent, strict=True):
        assert theirs(completion_ids=written, **columns) == mine(completion_ids=written, **columns)
    assert ours.reward_funcs[0](completion_ids=written, **columns)[1] == -1


def test_functions_that_are_asked_at_once_share_the_scores(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """TRL's asynchronous trainer calls each in a thread of its own."""
    asked: list[str] = []

    def slow(step: StepContext) -> float:
        asked.append(step.action)
        time.sleep(0.1)  # the others come meanwhile
        return float(len(step.action))

    ours = adapt(DATA[:1], {slow: 1.0}, chat_tokenizer)
    columns = {name: [ours.dataset[name][0]] for name in ours.dataset.column_names}
    with ThreadPoolExecutor(8) as threads:
        for text in ("a", "aa", "aaa"):
            asked.clear()
            batch = [chat_tokenizer.encode(f"<think>x</think>{text}<|im_end|>")]
            calls = [
                threads.submit(function, completion_ids=batch, **columns)
                for function in (*ours.reward_funcs, *ours.reward_funcs)
            ]
            assert [call.result() for call in calls] == [[float(len(text))]] * 4
            assert asked == [text]
