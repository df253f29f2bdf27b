"""Builds few-shot prompts for whole solutions, and reads completions up to the next question.

A few-shot prompt is one text that the policy continues (`template: plain`), or turns of a chat
(`template: chat`). Examples and problem are data, so their text never becomes a control token. All
problems of a benchmark have the same examples, so their prompts share a prefix.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from environments.few_shot import FewShot
from srl.config.parts import PromptSettings
from srl.data.prompts import PromptFormat, tokens_with
from srl.data.templates import chat_frame
from srl.data.text_limits import TextLimits


class FewShotFormat(PromptFormat):
    """A prompt format with worked examples; a whole solution ends where a new question begins.

    Args:
        tokenizer: the policy's tokenizer.
        few_shot: the examples and their layout.
        settings: template, think, the system prompt before the examples, and the date.
        stop_ids: tokens that end a completion.

    Raises:
        UsageError: the chat template cannot be used with earlier turns.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        few_shot: FewShot,
        settings: PromptSettings,
        *,
        stop_ids: Collection[int],
    ) -> None:
        super().__init__(
            tokenizer,
            system_prompt=None,
            template=settings.template,
            think=settings.think,
            whole_system_prompt=settings.whole_system_prompt,
            stop_ids=stop_ids,
            prompt_date=settings.prompt_date,
        )
        self.few_shot = few_shot
        stops = few_shot.layout.stop
        self._limits = replace(
            self._step_limits,
            read=super().read,
            stop_strings=stops,
            end_ids=tokens_with(tokenizer, "".join(stop[-1] for stop in stops)),
        )
        if self.template == "chat":
            self._turns = chat_frame(
                tokenizer,
                settings.whole_system_prompt,
                think=settings.think,
                day=datetime.fromisoformat(settings.prompt_date),
                examples=len(few_shot.shots),
            )
            self._examples_ids = self._woven(few_shot.turns("")[:-1])

    def encode_whole(self, problem: str) -> list[int]:
        """Returns the prompt for a whole solution as token ids: examples, then the problem."""
        if self.template == "plain":
            return self._start(self._whole_frame, self.few_shot.text(problem))
        asked = self.few_shot.layout.question(problem)
        return [
            *self._examples_ids,
            *self._text.data(asked),
            *self._text.next(self._turns.tail),
        ]

    def limits(self, *, whole: bool = False) -> TextLimits:
        """Returns the limits on a completion's text: a new question ends the answer."""
        return self._limits

    def read(self, completion_ids: Sequence[int]) -> str:
        """Returns a completion as text, up to the place where the policy asks a question itself."""
        return self.few_shot.cut(super().read(completion_ids))

    def _woven(self, turns: Sequence[str]) -> list[int]:
        """Returns the template with the examples as token ids, up to where the problem begins."""
        first, *others = turns
        ids = self._start(replace(self._turns, between=()), first)
        for after, words in zip(self._turns.between, [*others, ""], strict=True):
            ids += [*self._text.next(after), *self._text.data(words)]
        return ids
