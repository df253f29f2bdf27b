"""Rows with their prompts, as training and held-out figures take them.

What does not fit the policy is left out, and counted; so is what no policy could be paid for in
full, because a perfect copy of it would break the format or be cut off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from environments.asking import reads_all_steps
from environments.types import Trajectory
from srl.data.prompts import PromptFormat, parse_text
from srl.data.steps import StepExample, build_examples
from srl.data.templates import CLOSE, OPEN
from srl.errors import UsageError

if TYPE_CHECKING:
    from srl.config.parts import RowSettings

TOO_LONG = "too long for the policy's context"
SEVERAL = "the expert's step reads as several"


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
        solutions = list(trajectories)
        rows = cls([], [], Counter())
        for example, prompt in usable_rows(solutions, form, args, context_limit, rows.dropped):
            rows.examples.append(example)
            rows.prompts.append(prompt)
        if not rows.examples and rows.dropped[TOO_LONG]:
            built = build_examples(solutions, targets=args.targets, step_title=args.step_title)
            first = {id(one.trajectory): one for one in reversed(built)}
            shortest = min(len(form.encode_example(one)) for one in first.values())
            raise UsageError(
                f"no row fits: the policy's context is {context_limit} tokens, the shortest prompt "
                f"takes {shortest} and {args.length_field} {args.completion_length}; "
                f"use a policy with a longer context, or a smaller {args.length_field}"
            )
        return rows


def usable_rows(
    trajectories: Iterable[Trajectory],
    form: PromptFormat,
    args: RowSettings,
    context_limit: int | None,
    dropped: Counter[str],
) -> Iterator[tuple[StepExample, list[int]]]:
    """The rows that can be trained on and measured, one after another, each with its prompt.

    Args:
        trajectories, form, args, context_limit: as in `Rows.of`.
        dropped: why rows were left out -> how many; counted into.
    """
    outgrown: Trajectory | None = None  # its prompts only grow, and one was too long
    for example in build_examples(trajectories, targets=args.targets, step_title=args.step_title):
        if example.trajectory is outgrown:
            dropped[TOO_LONG] += 1
            continue
        if why := why_unpayable(example, think=args.think):
            dropped[why] += 1
            continue
        prompt = form.encode_example(example)
        if context_limit is not None and len(prompt) + args.completion_length > context_limit:
            dropped[TOO_LONG] += 1
            if reads_all_steps(example.trajectory):
                outgrown = example.trajectory
            continue
        written = 0 if example.whole else len(form.encode_expert(example, thoughts=False))
        if context_limit is not None and len(prompt) + written > context_limit:
            dropped[TOO_LONG] += 1
        elif written > args.completion_length:
            dropped[too_long_to_write(args.completion_length)] += 1
        else:
            yield example, prompt


def why_unpayable(example: StepExample, *, think: bool) -> str | None:
    """Why a perfect copy of the expert's step would be a format failure; None if it would not.

    A whole solution is not copied, but paid for what it comes to.
    """
    if example.whole:
        return None
    copy = f"{OPEN}{CLOSE}\n{example.expert_step}" if think else example.expert_step
    failure = parse_text(copy, False, think=think).failure
    if failure == "several_steps":
        return SEVERAL
    return None if failure is None else breaks_format(failure)


def breaks_format(failure: str) -> str:
    """The reason for which a row with such a failure is left out."""
    return f"the expert's text breaks the policy's format ({failure})"


def too_long_to_write(limit: int) -> str:
    """The reason for which a step of more tokens, tags and end included, is left out."""
    return f"the expert's step is longer than max_completion_length {limit}"
