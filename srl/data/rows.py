"""Rows with their prompts, as the trainer takes them: what does not fit the policy is left out, and
counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from environments.types import Trajectory
from srl.data.prompts import PromptFormat, holds_several_steps
from srl.data.steps import StepExample, build_examples
from srl.errors import UsageError

if TYPE_CHECKING:
    from srl.config.parts import RowSettings


@dataclass(frozen=True)
class Rows:
    """Rows and their prompts, without those too long for the policy or impossible to copy.

    Attributes:
        examples: the rows.
        prompts: token ids of each row's prompt.
        dropped: why rows were left out -> how many.
    """

    examples: list[StepExample]
    prompts: list[list[int]]
    dropped: Counter[str]

    @classmethod
    def of(
        cls,
        trajectories: Iterable[Trajectory],
        form: PromptFormat,
        args: RowSettings,
        context_limit: int | None,
    ) -> Rows:
        """The rows of expert solutions, as the settings want them.

        Args:
            trajectories: the expert solutions.
            form: the words around a step.
            args: the settings.
            context_limit: tokens that the policy can read and write together; None is no limit.

        Raises:
            UsageError: no row fits.
        """
        built = build_examples(trajectories, targets=args.targets, step_title=args.step_title)
        examples = [one for one in built if one.whole or not holds_several_steps(one.expert_step)]
        dropped: Counter[str] = Counter()
        if n := len(built) - len(examples):
            # A perfect copy of it would be punished as a format failure.
            dropped["the expert's step reads as several"] = n
        prompts = [form.encode_example(example) for example in examples]
        if context_limit is None:
            return cls(examples, prompts, dropped)
        room = context_limit - args.completion_length
        fits = [len(prompt) <= room for prompt in prompts]
        if examples and not any(fits):
            raise UsageError(
                f"no row fits: the policy's context is {context_limit} tokens, the shortest prompt "
                f"takes {min(map(len, prompts))} and {args.length_field} {args.completion_length}; "
                f"use a policy with a longer context, or a smaller {args.length_field}"
            )
        if n := fits.count(False):
            dropped["too long for the policy's context"] = n
        return cls(
            [example for example, fit in zip(examples, fits, strict=True) if fit],
            [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit],
            dropped,
        )
