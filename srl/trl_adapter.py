"""Provides the same rows and the same rewards for TRL's stock `GRPOTrainer`.

    ours = adapt(load_trajectories("gsm8k"), {"similarity": 1.0}, tokenizer)
    GRPOTrainer(
        model=model, processing_class=tokenizer, train_dataset=ours.dataset,
        reward_funcs=ours.reward_funcs,
        args=GRPOConfig(reward_weights=ours.reward_weights, ...),
    )

TRL's asynchronous trainer adds up all reward functions without weights. Give it only the first one:
`reward_funcs=ours.reward_funcs[:1]`. It sends the functions to another process; ours can be sent.

TRL then learns from the same rows and rewards as `SRLTrainer`, with -1 for format failures. It does
not have dynamic sampling. It also tokenizes a whole prompt at once, where `SRLTrainer` tokenizes
part by part. The tokens may differ at the borders of parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from environments.prompts import PAPER_EVALUATION_PROMPT, PAPER_SYSTEM_PROMPT
from environments.types import Trajectory
from rewards import RewardSum, StepContext, StepReward, StepScore
from srl.data.plain_text import leading_ids
from srl.data.prompts import PromptFormat, Template, why_uncopyable
from srl.data.steps import StepExample, StepTitle, Targets, build_examples
from srl.errors import UsageError
from srl.rollout.rollouts import try_rewards

RewardFunc = Callable[..., list[float | None]]
"""A reward function for TRL.

TRL passes the keyword arguments `prompts`, `completions`, `completion_ids` and the columns.
"""


@dataclass(frozen=True)
class ForTRL:
    """The arguments for TRL's `GRPOTrainer` and `GRPOConfig`.

    Attributes:
        dataset: one row per expert step: `prompt` as plain text, and columns for the rewards.
        reward_funcs: the weighted sum, named `step_reward`, then every reward by its own name.
        reward_weights: 1.0 for the sum and 0.0 for the others, which are only logged.
    """

    dataset: Dataset
    reward_funcs: list[RewardFunc]
    reward_weights: list[float]


def adapt(
    trajectories: Sequence[Trajectory],
    step_rewards: RewardSum | Mapping[str | StepReward, object] | Mapping[str, object],
    tokenizer: PreTrainedTokenizerBase,
    *,
    targets: Targets = "literal",
    step_title: StepTitle = "off",
    system_prompt: str | None = PAPER_SYSTEM_PROMPT,
    whole_system_prompt: str | None = PAPER_EVALUATION_PROMPT,
    template: Template = "auto",
    think: bool = True,
    stop_ids: Collection[int] | None = None,
) -> ForTRL:
    """Converts expert solutions and step rewards into arguments for TRL's trainer.

    Args:
        trajectories: the expert solutions.
        step_rewards: as for `SRLTrainer`.
        tokenizer: the policy's.
        targets, step_title, system_prompt, whole_system_prompt, template, think: as in `SRLConfig`.
        stop_ids: every token that ends a completion; needed if the model's generation config
            lists more than the tokenizer's EOS.

    Raises:
        UsageError: there are no rows, a reward cannot be used, or the tokenizer cannot write
            prompts.
    """
    form = PromptFormat(
        tokenizer,
        system_prompt=system_prompt,
        whole_system_prompt=whole_system_prompt,
        template=template,
        think=think,
        stop_ids=stop_ids,
    )
    examples = [
        example
        for example in build_examples(trajectories, targets=targets, step_title=step_title)
        if example.whole or why_uncopyable(example.expert_step, think=think) is None
    ]
    if not examples:
        raise UsageError("there are no rows: give trajectories with at least two steps each")
    try:
        rewards = step_rewards if isinstance(step_rewards, RewardSum) else RewardSum(step_rewards)
    except ValueError as error:
        raise UsageError(f"rewards: {error}") from error
    try_rewards(rewards, examples[0])
    before = leading_ids(tokenizer)
    rows = [{"prompt": _text(form, example, before), **_columns(example)} for example in examples]
    scorer = _Scorer(rewards, form, whole=targets == "whole")
    return ForTRL(
        dataset=Dataset.from_list(rows),
        reward_funcs=[_Reward(scorer, None), *(_Reward(scorer, name) for name in rewards.names)],
        reward_weights=[1.0, *(0.0 for _ in rewards.names)],
    )


def _text(form: PromptFormat, example: StepExample, before: Sequence[int]) -> str:
    """Returns the prompt as text, without the tokens that TRL's tokenizer call adds in front."""
    ids = form.encode_example(example)
    if before and ids[: len(before)] == list(before):
        ids = ids[len(before) :]
    text: str = form.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def _columns(example: StepExample) -> dict[str, object]:
    """Returns the columns of a row for the rewards; metadata is JSON, as a column has one type."""
    return {
        "problem": example.problem,
        "previous_steps": list(example.previous_steps),
        "expert_step": example.expert_step,
        "step_index": example.step_index,
        "num_steps": example.num_steps,
        "answer": example.answer,
        "source": example.source,
        "metadata": json.dumps(dict(example.trajectory.metadata), default=str),
    }


class _Reward:
    """A reward function for TRL. It is a class so that it can be sent to another process.

    Args:
        scorer: the scorer that all functions share.
        name: the reward to return, unweighted and None where it does not apply. With None for a
            name, the function returns the weighted sum, or what a format failure earns.
    """

    def __init__(self, scorer: _Scorer, name: str | None) -> None:
        self._scorer, self._name = scorer, name
        self.__name__ = name or "step_reward"  # the name in TRL's log

    def __call__(
        self, completion_ids: list[list[int]], **columns: Sequence[object]
    ) -> list[float | None]:
        scores = self._scorer.scores(completion_ids, columns)
        if self._name is None:
            return [score.reward for score in scores]
        return [score.rewards[self._name] for score in scores]


class _Scorer:
    """Scores a batch once for all the functions that TRL calls on it."""

    def __init__(self, rewards: RewardSum, form: PromptFormat, *, whole: bool) -> None:
        self._rewards = rewards
        self._form = form
        self._whole = whole
        self._start()

    def _start(self) -> None:
        # TRL's asynchronous trainer calls each function in a separate thread.
        self._lock = Lock()
        self._scored: tuple[list[list[int]], list[StepScore]] = ([], [])

    def __getstate__(self) -> dict[str, object]:
        own = vars(self).items()
        return {name: value for name, value in own if name not in ("_lock", "_scored")}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        vars(self).update(state)
        self._start()

    def scores(
        self, completion_ids: list[list[int]], columns: Mapping[str, Sequence[object]]
    ) -> list[StepScore]:
        """Returns the score of each completion.

        Args:
            completion_ids: the tokens of each completion.
            columns: the data set's columns, with one value per completion.
        """
        with self._lock:
            # Compared by identity: TRL passes the same batch to every function.
            if self._scored[0] is not completion_ids:
                self._scored = (completion_ids, self._score(completion_ids, columns))
            return self._scored[1]

    def _score(
        self, completion_ids: list[list[int]], columns: Mapping[str, Sequence[object]]
    ) -> list[StepScore]:
        scores: dict[int, StepScore] = {}
        valid: dict[int, StepContext] = {}
        for place, ids in enumerate(completion_ids):
            truncated = not ids or ids[-1] not in self._form.stop_ids
            parsed = self._form.parse(ids, truncated, whole=self._whole)
            if parsed.failure is None:
                row = {name: columns[name][place] for name in _ROW}
                valid[place] = _context(row, parsed.action, parsed.thought)
            else:
                scores[place] = self._rewards.failed(parsed.failure)
        scores |= zip(valid, self._rewards.score(list(valid.values())), strict=True)
        return [scores[place] for place in range(len(completion_ids))]


_ROW = (
    "problem",
    "previous_steps",
    "expert_step",
    "step_index",
    "num_steps",
    "answer",
    "source",
    "metadata",
)


def _context(row: Mapping[str, object], action: str, thought: str) -> StepContext:
    fields = {
        **row,
        "previous_steps": tuple(row["previous_steps"]),  # type: ignore[arg-type]
        "metadata": json.loads(str(row["metadata"])),
    }
    return StepContext(action=action, thought=thought, **fields)
