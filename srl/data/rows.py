"""Builds rows with their prompts, for training and for the figures of held-out steps.

Rows that cannot earn the full reward are dropped and counted by reason: a row that does not fit the
policy's context, and a step of which even a perfect copy would count as a format failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from environments.asking import reads_all_steps
from environments.types import Trajectory
from srl.data.prompts import PromptFormat, why_uncopyable
from srl.data.steps import StepExample, build_examples
from srl.errors import UsageError

if TYPE_CHECKING:
    from srl.config.parts import RowSettings

TOO_LONG = "too long for the policy's context"


@dataclass(frozen=True)
class Rows:
    """Rows and their prompts, without those too long for the policy or impossible to copy.

    Attributes:
        examples: the rows.
        prompts: token ids of each row's prompt.
        dropped: reason for dropping rows -> number of rows.
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
        *,
        most: int | None = None,
        also_whole: bool = False,
    ) -> Rows:
        """Returns the rows of expert solutions, built as the settings say.

        Args:
            trajectories: the expert solutions.
            form: the words around a step.
            args: the settings.
            context_limit: the most tokens of a prompt and its completion together; None is no
                limit.
            most: the largest number of rows; None is all.
            also_whole: adds one row for each whole solution.

        Raises:
            UsageError: no row is left, and at least one was too long for the policy's context.
        """
        rows = cls([], [], Counter())
        shortest = None
        examples = build_examples(
            trajectories, targets=args.targets, step_title=args.step_title, also_whole=also_whole
        )
        for example, prompt, why in _judged(examples, form, args, context_limit):
            if most is not None and len(rows.examples) == most:
                break
            if why is None and prompt is not None:
                rows.examples.append(example)
                rows.prompts.append(prompt)
            elif why is not None:
                rows.dropped[why] += 1
            if why == TOO_LONG and prompt is not None:
                shortest = min(len(prompt), shortest or len(prompt))
        if shortest is not None and not rows.examples:
            raise UsageError(
                f"no row fits: the policy's context is {context_limit} tokens, the shortest prompt "
                f"takes {shortest} and {args.length_field} {args.completion_length}; "
                f"use a policy with a longer context, or a smaller {args.length_field}"
            )
        return rows


def _judged(
    examples: Iterable[StepExample],
    form: PromptFormat,
    args: RowSettings,
    context_limit: int | None,
) -> Iterator[tuple[StepExample, list[int] | None, str | None]]:
    """Yields each row, its prompt (None if not needed), and the reason to drop it or None."""
    # A solution with a prompt that was too long, whose later prompts are only longer.
    outgrown: Trajectory | None = None
    for example in examples:
        if example.trajectory is outgrown and not example.whole:
            yield example, None, TOO_LONG
            continue
        if why := _why_unpayable(example, form, args):
            yield example, None, why
            continue
        prompt = form.encode_example(example)
        _, most = args.limit_of(whole=example.whole)
        fits = context_limit is None or len(prompt) + most <= context_limit
        if not fits and not example.whole and reads_all_steps(example.trajectory):
            outgrown = example.trajectory
        yield example, prompt, None if fits else TOO_LONG


def _why_unpayable(example: StepExample, form: PromptFormat, args: RowSettings) -> str | None:
    """Returns why even a perfect copy of the expert's step would fail; None if it would not.

    A whole solution need not be copied: another solution with the same answer is rewarded too.
    """
    if not example.trajectory.is_unicode:
        return "text that is not Unicode (a lone surrogate)"
    if example.whole:
        return None
    if failure := why_uncopyable(example.expert_step, think=form.think):
        return uncopyable(failure)
    if form.ends_early(example.expert_step):
        return f"the expert's step goes on where step_ends_at: {args.step_ends_at} ends it"
    field, most = args.limit_of(whole=False)
    if len(form.encode_expert(example, thoughts=False)) > most:
        return f"the expert's step is longer than {field} {most}"
    return None


def uncopyable(failure: str) -> str:
    """Returns the reason to drop a row if a copy of its step has this format failure."""
    if failure == "several_steps":
        return "the expert's step reads as several"
    return f"a copy of the expert's step breaks the format ({failure})"


def dropped(drops: Mapping[str, int]) -> str:
    """Returns the reasons and counts of dropped rows in brackets; "" if there are none."""
    return f" ({', '.join(f'{n:,} dropped: {why}' for why, n in drops.items())})" if drops else ""
